"""Diffusers pipelines in the names of CompVis' and Stability's single files, by the rules of the official scripts."""

import re

import torch


def denoiser_names(unet):
    """(name in the file, name in diffusers) of every tensor."""
    per_level = unet.config.layers_per_block + 1
    for name in unet.state_dict():
        yield f"model.diffusion_model.{_denoiser_name(name, per_level)}", name


def _denoiser_name(name, per_level):
    tops = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    for new, old in tops.items():
        if name.startswith(new):
            return name.replace(new, old, 1)
    resnet = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1",
        "conv_shortcut": "skip_connection",
    }
    if ".resnets." in name:
        for new, old in resnet.items():
            name = re.sub(rf"(resnets\.\d+)\.{new}\.", rf"\1.{old}.", name)
    if match := re.match(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", name):
        level, kind, i, rest = match.groups()
        return f"input_blocks.{per_level * int(level) + int(i) + 1}.{int(kind == 'attentions')}.{rest}"
    if match := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", name):
        return f"input_blocks.{per_level * (int(match[1]) + 1)}.0.op.{match[2]}"
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", name):
        kind, i, rest = match.groups()
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(i)}.{rest}"
    if match := re.match(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", name):
        level, kind, i, rest = match.groups()
        return f"output_blocks.{per_level * int(level) + int(i)}.{int(kind == 'attentions')}.{rest}"
    match = re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.(conv\..*)", name)
    return f"output_blocks.{per_level * (int(match[1]) + 1) - 1}.UP.{match[2]}"


def autoencoder_tensors(vae):
    """Tensors in the names of the file; attention as convolutions of one pixel."""
    levels = len(vae.config.block_out_channels)
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    for name, tensor in vae.state_dict().items():
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block.", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_norm_out", "norm_out")
        name = name.replace("conv_shortcut", "nin_shortcut")
        for new, old in attention.items():
            if f"attn_1.{new}." in name:
                name = name.replace(f"attn_1.{new}.", f"attn_1.{old}.")
                if old != "norm" and name.endswith("weight"):
                    tensor = tensor[:, :, None, None]
        yield f"first_stage_model.{name}", tensor.contiguous()


def clip_tensors(encoder, prefix):
    """Of OpenAI's CLIP, in the names that transformers had."""
    for name, tensor in encoder.state_dict().items():
        yield f"{prefix}text_model.{name.removeprefix('text_model.')}", tensor
    yield f"{prefix}text_model.embeddings.position_ids", torch.arange(encoder.config.max_position_embeddings)[None]


def open_clip_tensors(encoder, prefix, *, blocks_more=0):
    """Of OpenCLIP: queries, keys and values in one tensor, the projection turned over."""
    state = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    width = encoder.config.hidden_size
    yield f"{prefix}positional_embedding", state["embeddings.position_embedding.weight"]
    yield f"{prefix}token_embedding.weight", state["embeddings.token_embedding.weight"]
    yield f"{prefix}logit_scale", torch.ones(())
    projection = state.get("text_projection.weight", torch.zeros(width, width))
    yield f"{prefix}text_projection", projection.T.contiguous()
    layers = encoder.config.num_hidden_layers
    for kind in ("weight", "bias"):
        yield f"{prefix}ln_final.{kind}", state[f"final_layer_norm.{kind}"]
        for i in range(layers + blocks_more):
            old, new = f"{prefix}transformer.resblocks.{i}.", f"encoder.layers.{min(i, layers - 1)}."
            three = [state[f"{new}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            yield f"{old}attn.in_proj_{kind}", torch.cat(three)
            yield f"{old}attn.out_proj.{kind}", state[f"{new}self_attn.out_proj.{kind}"]
            yield f"{old}ln_1.{kind}", state[f"{new}layer_norm1.{kind}"]
            yield f"{old}ln_2.{kind}", state[f"{new}layer_norm2.{kind}"]
            yield f"{old}mlp.c_fc.{kind}", state[f"{new}mlp.fc1.{kind}"]
            yield f"{old}mlp.c_proj.{kind}", state[f"{new}mlp.fc2.{kind}"]


def single_file(pipeline, kind):
    """Every tensor of a pipeline as one file of a kind ("sd1", "sd2", "sdxl") holds them."""
    state = pipeline.unet.state_dict()
    tensors = {old: state[new] for old, new in denoiser_names(pipeline.unet)}
    attended = {name.split(".1.")[0] for name in tensors if name.startswith("model.diffusion_model.output_blocks")}
    for old in [old for old in tensors if ".UP." in old]:
        place = 2 if old.split(".UP.")[0] in attended else 1  # after the attention, where there is one
        tensors[old.replace(".UP.", f".{place}.")] = tensors.pop(old)
    tensors |= dict(autoencoder_tensors(pipeline.vae))
    if kind == "sd1":
        tensors |= dict(clip_tensors(pipeline.text_encoder, "cond_stage_model.transformer."))
    elif kind == "sd2":
        tensors |= dict(open_clip_tensors(pipeline.text_encoder, "cond_stage_model.model.", blocks_more=1))
    else:
        tensors |= dict(clip_tensors(pipeline.text_encoder, "conditioner.embedders.0.transformer."))
        tensors |= dict(open_clip_tensors(pipeline.text_encoder_2, "conditioner.embedders.1.model."))
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}

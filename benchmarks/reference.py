"""The yardstick: EmerDiff written straight from the paper, as a competent reader would, one thing at a time.

One mask and one sign at a time, an inversion over all steps, explicit attention maps recorded on the reference run and
given back through attention processors. Slow and plain on purpose; shares no code with the library but model loading
and the function that gives the noise, so that both see the same x_t.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from sklearn.cluster import KMeans
from torch import Tensor

from emerdiff_probe.trajectories.noise import noise


@dataclass(frozen=True)
class Paper:
    """The paper's settings; `block` is the dotted path of the upward block that is probed."""

    clusters: int
    block: str
    strength: float = 10.0
    modulate_at: int = 281
    steps: int = 50
    smoothing: float = 2.0
    seed: int = 0


@dataclass
class Moment:
    """What the attention processors need to know: the timestep, and whether maps are recorded or injected."""

    timestep: int = 0
    mode: str = "plain"
    maps: dict[tuple[str, int], Tensor] = field(default_factory=dict)


@dataclass
class MapProcessor:
    """Attention with explicit probabilities, which are recorded by (layer, timestep) or taken from the record."""

    layer: str
    moment: Moment

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        """As diffusers' plain processor does it for the attention layers of its U-Nets."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        value = attn.head_to_batch_dim(attn.to_v(context))
        address = self.layer, self.moment.timestep
        if self.moment.mode == "inject":
            probabilities = self.moment.maps[address]
        else:
            query, key = attn.head_to_batch_dim(attn.to_q(hidden_states)), attn.head_to_batch_dim(attn.to_k(context))
            probabilities = attn.get_attention_scores(query, key)
        if self.moment.mode == "record":
            self.moment.maps[address] = probabilities
        hidden = attn.batch_to_head_dim(torch.bmm(probabilities, value))
        return attn.to_out[1](attn.to_out[0](hidden))


@dataclass
class Reference:
    """The method on one pipeline; counts what it runs.

    Attributes:
        pipeline: a StableDiffusionPipeline on its device, whose scheduler is a DDIMScheduler with an offset of 1.
        paper: settings.
        passes, decodes: of the denoiser and of the decoder, one image each.
    """

    pipeline: Any
    paper: Paper
    passes: int = 0
    decodes: int = 0

    @torch.no_grad()
    def segment(self, image: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels (height, width), difference maps (mask, height, width) and low-resolution masks of an image.

        Args:
            image: (1, 3, side, side) in [-1, 1], on the pipeline's device.
        """
        unet, self.moment = self.pipeline.unet, Moment()
        before = unet.attn_processors
        unet.set_attn_processor({name: MapProcessor(name, self.moment) for name in before})
        try:
            self.empty = self._embed_empty()
            self._invert(image)
            coarse = self._cluster()
            self._replay("record")
            maps = np.stack([self._difference_map(coarse == mask) for mask in range(coarse.max() + 1)])
        finally:
            unet.set_attn_processor(before)
        return maps.argmax(0), maps, coarse

    def _embed_empty(self) -> Tensor:
        tokenizer = self.pipeline.tokenizer
        tokens = tokenizer([""], padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
        return self.pipeline.text_encoder(tokens.input_ids.to(self.pipeline.unet.device))[0]

    def _predict(self, latent: Tensor, timestep: int, mode: str = "plain") -> Tensor:
        self.moment.timestep, self.moment.mode = timestep, mode
        self.passes += 1
        unet = self.pipeline.unet
        return unet(latent.to(unet.dtype), timestep, encoder_hidden_states=self.empty).sample.float()

    def _mean(self, latent: Tensor, timestep: int, mode: str = "plain") -> Tensor:
        """Mean of the DDPM step from x_t."""
        prediction = self._predict(latent, timestep, mode)
        step = self.pipeline.scheduler.step(
            prediction, timestep, latent, eta=1.0, variance_noise=torch.zeros_like(latent)
        )
        return step.prev_sample

    def _invert(self, image: Tensor) -> None:
        """Edit-friendly inversion over the whole grid, reading the queries of the first layer on the way."""
        vae, scheduler, paper = self.pipeline.vae, self.pipeline.scheduler, self.paper
        encoded = vae.encode(image.to(vae.dtype)).latent_dist.mean.float()
        latent = (encoded - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
        scheduler.set_timesteps(paper.steps)
        self.timesteps = [int(timestep) for timestep in scheduler.timesteps]
        self.start = self.timesteps.index(paper.modulate_at)
        self.path = {len(self.timesteps): latent}
        for index, timestep in enumerate(self.timesteps):
            draw = noise(paper.seed, timestep, latent.shape[1:]).to(latent)  # the library's, so that results agree
            self.path[index] = scheduler.add_noise(latent, draw[None], torch.tensor([timestep]))
        self.queries: list[Tensor] = []
        read = self._attention(0).to_q.register_forward_hook(lambda *call: self.queries.append(call[2]))
        try:
            self.noise = {
                index: self.path[index + 1] - self._mean(self.path[index], timestep)
                for index, timestep in enumerate(self.timesteps)
            }
        finally:
            read.remove()

    def _attention(self, nth: int) -> Any:
        block = self.pipeline.unet.get_submodule(self.paper.block)
        return block.attentions[nth].transformer_blocks[0].attn2

    def _cluster(self) -> np.ndarray:
        """K-means over the queries of the last timestep, numbered in reading order; square images only."""
        features = self.queries[-1][0].double().cpu().numpy()
        labels = KMeans(self.paper.clusters, n_init=10, random_state=self.paper.seed).fit_predict(features)
        _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
        side = round(len(features) ** 0.5)
        return np.argsort(np.argsort(first))[inverse].reshape(side, side)

    def _replay(self, mode: str) -> Tensor:
        latent = self.path[self.start]
        for index in range(self.start, len(self.timesteps)):
            latent = self._mean(latent, self.timesteps[index], mode) + self.noise[index]
        return latent

    def _difference_map(self, mask: np.ndarray) -> np.ndarray:
        minus, plus = (self._modulated(mask, sign * self.paper.strength) for sign in (-1, 1))
        return gaussian_filter(torch.linalg.vector_norm(minus - plus, dim=1)[0].numpy(), self.paper.smoothing)

    def _modulated(self, mask: np.ndarray, strength: float) -> Tensor:
        """The image when the third layer's output is offset at t_m: (1, 3, side, side)."""
        offset = strength * torch.from_numpy(mask.astype(np.float32)).reshape(1, -1, 1)

        def add(module: Any, inputs: Any, output: Tensor) -> Tensor:
            here = self.moment.timestep == self.paper.modulate_at
            return output + offset.to(output) if here else output

        hook = self._attention(2).register_forward_hook(add)
        try:
            latent = self._replay("inject")
        finally:
            hook.remove()
        self.decodes += 1
        vae = self.pipeline.vae
        scaled = latent / vae.config.scaling_factor + (vae.config.shift_factor or 0)
        return vae.decode(scaled.to(vae.dtype)).sample.float().cpu()

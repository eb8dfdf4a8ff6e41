"""What every idea of exact mode is worth: modulated denoising with one of them left out, or another put in.

    python -m benchmarks.ideas --model pocket --clusters 20

Each way makes the same difference maps of one scene in turn with the others; the table has medians and how much longer
than exact mode they take, with the 95% interval of the median of paired differences, and the largest difference of the
maps relative to their largest value. The same for one pass of the bare denoiser, which can also be compiled (hooks
cannot go into a compiled one).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Annotated, Any
from unittest.mock import patch

import pandas as pd
import torch
import typer
from einops import rearrange
from torch import Tensor, nn

from benchmarks.rounds import beside_the_first, seconds_of
from benchmarks.shapes import load
from emerdiff_probe.hooks import shared_attention
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.pocket.world import draw_scene
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, check_config
from emerdiff_probe.trajectories import denoise
from emerdiff_probe.trajectories.inversion import invert

Way = Callable[[], Tensor]


def modulations(model: ProbeModel, config: EmerDiffConfig) -> dict[str, Way]:
    """Difference maps of one scene by exact mode, which is the first, and by its variants."""
    scene = draw_scene(0, height=model.native_size, width=model.native_size)
    site, modulation = check_config(model, config, *scene.image.shape[:2])
    probed = config.probe(model, scene.image)
    coarse = probed.low_resolution_masks(site, config.given_clusters, config.features.timesteps)

    def exact() -> Tensor:
        return probed.difference_maps(coarse, modulation, smoothing=config.smoothing)

    def with_residuals() -> Tensor:
        invert(model, probed.latents, start=config.modulation.modulate_at, steps=config.inversion.steps)
        return exact()

    return {
        "exact": exact,
        "one variant at a time": partial(_under, _one_at_a_time, exact),
        "nothing shared in the first step": partial(_under, _first_step_of_every_row, exact),
        "queries and keys of every row": partial(_under, _own_queries_and_keys, exact),
        "fused kernel, queries and keys repeated": partial(_under, _fused_kernel, exact),
        "channels first": partial(_under, partial(_channels_first, model), exact),
        "residuals by passes of their own": with_residuals,
    }


def passes(model: ProbeModel, rows: int) -> dict[str, Way]:
    """One pass of the bare denoiser, which is the first, and variants of it."""
    size = int(model.denoiser.config.sample_size)
    shape = (rows, model.denoiser.config.in_channels, size, size)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.device, model.dtype)
    told = model.embed("", model.native_size, model.native_size).expand(rows)

    def run(denoiser: Callable[..., Any]) -> Tensor:
        conditions = {"encoder_hidden_states": told.hidden_states, "added_cond_kwargs": dict(told.added)}
        return denoiser(latents, 281, **conditions, return_dict=False)[0]

    bare = partial(run, model.denoiser)
    return {
        "bare": bare,
        "bare, channels first": partial(_under, partial(_channels_first, model), bare),
        "bare, compiled": partial(run, torch.compile(model.denoiser)),
    }


def _under(change: Callable[[], AbstractContextManager[Any]], way: Way) -> Tensor:
    with change():
        return way()


def _one_at_a_time() -> AbstractContextManager[Any]:
    return patch.object(denoise, "denoiser_rows_that_fit", lambda model, latents: 1)


def _first_step_of_every_row() -> AbstractContextManager[Any]:
    attached = denoise.attached
    return patch.object(denoise, "attached", lambda *given, **named: attached(*given, **{**named, "equal_at": None}))


def _own_queries_and_keys() -> AbstractContextManager[Any]:
    return patch.object(shared_attention.SharedAttention, "serves", staticmethod(lambda layer: False))


def _fused_kernel() -> AbstractContextManager[Any]:
    def weigh(query: Tensor, key: Tensor, values: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
        rows = (len(values), -1, -1, -1)
        weighed = nn.functional.scaled_dot_product_attention(
            query.expand(rows), key.expand(rows), values, attn_mask=mask, scale=scale
        )
        return rearrange(weighed, "batch head cell head_dim -> batch cell (head head_dim)")

    return patch.object(shared_attention, "weigh", weigh)


@contextmanager
def _channels_first(model: ProbeModel) -> Iterator[None]:
    """Weights as diffusers loads them; converting is a small part of what is timed."""
    modules = (model.denoiser, model.autoencoder)
    with ExitStack() as back:
        for module in modules:
            module.to(memory_format=torch.contiguous_format)
            back.callback(module.to, memory_format=torch.channels_last)
        yield


@torch.no_grad()
def measure(ways: dict[str, Way], model: ProbeModel, repeats: int) -> pd.DataFrame:
    """Times beside the first way, and the largest difference from what it gives, relative to its largest value."""
    table = beside_the_first(seconds_of(ways, model.device, repeats))
    results = {name: way() for name, way in ways.items()}
    expected = next(iter(results.values()))
    table["difference"] = [float((made - expected).abs().max() / expected.abs().max()) for made in results.values()]
    return table


def main(
    model: Annotated[str, typer.Option(help="pocket, sd14-shape, or a folder.")] = "pocket",
    clusters: Annotated[int, typer.Option(help="Number of masks.")] = 20,
    repeats: Annotated[int, typer.Option(help="Times of every way.")] = 3,
    steps: Annotated[int, typer.Option(help="Of the scheduler's grid.")] = 50,
    modulate_at: Annotated[int, typer.Option()] = 101,
    rows: Annotated[int, typer.Option(help="Of a pass of the bare denoiser.")] = 24,
    size: Annotated[int | None, typer.Option(help="Pixels of a side, for sd14-shape.")] = None,
    device: Annotated[str | None, typer.Option()] = None,
    precision: Annotated[str, typer.Option()] = "float32",
) -> None:
    """Print both tables and, as the last line, one JSON object."""
    probed = load(model, device, precision, size)
    config = EmerDiffConfig.for_model(probed, clusters=clusters, steps=steps, modulate_at=modulate_at)
    print(f"{probed!r}, K = {clusters}, {torch.get_num_threads()} threads", flush=True)
    tables = {
        "modulations": measure(modulations(probed, config), probed, repeats),
        "passes": measure(passes(probed, rows), probed, repeats),
    }
    for name, table in tables.items():
        print(f"\n{name}\n{table.to_string(index=False)}")
    print(json.dumps({name: table.to_dict("records") for name, table in tables.items()}))


if __name__ == "__main__":
    typer.run(main)

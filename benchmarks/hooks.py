"""What hooks cost: attached ones beside the bare denoiser, and beside nnsight doing the same.

    python -m benchmarks.hooks --model pocket --batch 8

Every way runs the same pass in turn, many times; the table has medians, and their share over the bare denoiser with
the 95% interval of the median of paired differences. Results are compared with nnsight's, where it is installed.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.rounds import beside_the_first, seconds_of
from benchmarks.shapes import load
from emerdiff_probe.hooks.attach import Capture, Edit, attached
from emerdiff_probe.interventions import attention_part
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, find_feature_sites
from emerdiff_probe.sites import Site, find_site

TIMESTEP = 281
OFFSET = 1.0


class Ways:
    """One pass of a denoiser in several ways; each gives (output, captured), None for what it does not have."""

    def __init__(self, model: ProbeModel, batch: int) -> None:
        self.model = model
        config = EmerDiffConfig.for_model(model)
        self.query = find_feature_sites(model, config)[0]
        self.output = attention_part(model, find_site(model, config.modulation.layer), "output")
        size = int(model.denoiser.config.sample_size)
        generator = torch.Generator().manual_seed(0)
        shape = (batch, model.denoiser.config.in_channels, size, size)
        self.latents = torch.randn(shape, generator=generator).to(model.device, model.dtype)
        text = model.embed("", model.native_size, model.native_size).expand(batch)
        self.arguments = {"encoder_hidden_states": text.hidden_states, "added_cond_kwargs": dict(text.added)}

    def all(self) -> dict[str, Callable[[], tuple[Tensor | None, Tensor | None]]]:
        """Every way by name, the bare denoiser first."""
        ways = {
            "bare": self.bare,
            "attached, nothing asked": self.nothing,
            "attached, one capture": self.captured,
            "attached, one edit": self.edited,
            "stopped after the capture": self.stopped,
        }
        try:
            import nnsight  # noqa: F401
        except ImportError:
            print("# nnsight is not installed: compared with the bare denoiser alone")
            return ways
        return {**ways, "nnsight, one capture": self.nnsight_captured, "nnsight, one edit": self.nnsight_edited}

    def _run(self) -> Tensor:
        return self.model.denoiser(self.latents, TIMESTEP, **self.arguments, return_dict=False)[0]

    def bare(self) -> tuple[Tensor, None]:
        """The denoiser without anything."""
        return self._run(), None

    def nothing(self) -> tuple[Tensor, None]:
        """Attached, but with neither captures nor edits."""
        with attached(self.model):
            return self._run(), None

    def captured(self) -> tuple[Tensor, Tensor]:
        """The features that are clustered, read."""
        with attached(self.model, captures=[Capture(self.query)]) as record:
            output = self._run()
        return output, record[self.query, TIMESTEP]

    def edited(self) -> tuple[Tensor, None]:
        """The modulated layer's output, offset for every row."""

        def offset(activation: Tensor, rows: list[int], grid: tuple[int, int]) -> Tensor:
            return activation[rows] + OFFSET

        with attached(self.model, edits=[Edit(self.output, None, None, offset, "offset")]):
            return self._run(), None

    def stopped(self) -> tuple[None, Tensor]:
        """The same features, the denoiser left as soon as they are there."""
        with attached(self.model, captures=[Capture(self.query)], stop_early=True) as record:
            self._run()
        return None, record[self.query, TIMESTEP]

    def nnsight_captured(self) -> tuple[Tensor, Tensor]:
        """As `captured`, by nnsight."""
        wrapped = self._wrapped
        with wrapped.trace(self.latents, TIMESTEP, **self.arguments, return_dict=False):
            captured = _inside(wrapped, self.query).output.save()
            output = wrapped.output[0].save()
        return output, captured

    def nnsight_edited(self) -> tuple[Tensor, None]:
        """As `edited`, by nnsight."""
        wrapped = self._wrapped
        with wrapped.trace(self.latents, TIMESTEP, **self.arguments, return_dict=False):
            layer = _inside(wrapped, self.output)
            layer.output = layer.output + OFFSET
            output = wrapped.output[0].save()
        return output, None

    @cached_property
    def _wrapped(self) -> Any:
        """A copy of the denoiser for nnsight alone, whatever it leaves in it."""
        from nnsight import NNsight

        return NNsight(copy.deepcopy(self.model.denoiser))


def _inside(wrapped: Any, site: Site) -> Any:
    for name in site.path.split("."):
        wrapped = wrapped[int(name)] if name.isdigit() else getattr(wrapped, name)
    return wrapped


@torch.no_grad()
def largest_differences(ways: Ways) -> dict[str, float]:
    """Largest difference of ours from nnsight's: of what was captured, and of what an edit makes of the output."""
    captured, theirs = ways.captured()[1], ways.nnsight_captured()[1]
    edited, other = ways.edited()[0], ways.nnsight_edited()[0]
    return {
        "captured": float((captured - theirs).abs().max()),
        "edited": float((edited - other).abs().max()),
    }


def main(
    model: Annotated[str, typer.Option(help="pocket, sd14-shape, or a folder.")] = "pocket",
    batch: Annotated[int, typer.Option(help="Rows a pass.")] = 8,
    repeats: Annotated[int, typer.Option(help="Passes of every way.")] = 50,
    size: Annotated[int | None, typer.Option(help="Pixels of a side, for sd14-shape.")] = None,
    device: Annotated[str | None, typer.Option()] = None,
    precision: Annotated[str | None, typer.Option()] = "float32",
) -> None:
    """Print the table and, as the last line, one JSON object."""
    ways = Ways(load(model, device, precision, size), batch)
    table = beside_the_first(seconds_of(ways.all(), ways.model.device, repeats))
    differences = largest_differences(ways) if any("nnsight" in name for name in table["way"]) else None
    print(f"{ways.model!r}, {batch} rows a pass\n\n{table.to_string(index=False)}\n")
    print(f"largest differences from nnsight: {differences}\n")
    print(json.dumps({"rows": table.to_dict("records"), "largest_differences": differences}))


if __name__ == "__main__":
    typer.run(main)

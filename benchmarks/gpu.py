"""What is worth knowing on a day with a GPU, in one command of less than ten minutes.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --train-minutes 8 --images PHOTOGRAPHS --init MODEL --out trained

The first measures Stable Diffusion v1.4's architecture (random weights, float16, 512 x 512): the paper written plainly,
exact, fast and draft mode with 8, 20 and 30 masks (seconds, memory, share of what a matrix product reaches), and the
laws on the device: injecting a trajectory's own attention changes nothing, a batch equals one at a time, memory that
runs out halves batches and changes no result, float16 finds float32's labels. What the minutes do not pay for is told,
not done.

The second goes on training from a pipeline folder in bfloat16, and leaves the weights in files of less than 16 MB each.
Every finished part is a line of JSON at once. On a processor it runs at a small size (`--size 64 --clusters 2 --steps
10 --modulate-at 101`), without what is measured of a device's memory.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from benchmarks.emerdiff import LIBRARY, Run, Setup, agreement, matrix_product_ceiling, run
from benchmarks.shapes import SD14_SHAPE, load
from emerdiff_probe.interventions import InjectAttention, Modulate
from emerdiff_probe.models.loading import find_device, load_model
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.pocket.train import TrainConfig, train
from emerdiff_probe.pocket.world import draw_scene
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.presets import paper_preset
from emerdiff_probe.segmentation.segment import segment
from emerdiff_probe.sites import find_site
from emerdiff_probe.trajectories.denoise import denoise
from emerdiff_probe.trajectories.inversion import invert

LARGEST_FILE = 15_000_000
"""Bytes of a file of weights, at most."""
VARIANTS = 8
"""Modulated images with which the laws of batches are tried."""


@dataclass
class Clock:
    """Minutes that are left."""

    minutes: float

    def __post_init__(self) -> None:
        self.began = time.monotonic()

    @property
    def over(self) -> bool:
        """Whether nothing more should be begun."""
        return time.monotonic() - self.began > 60 * self.minutes


def speed(setup: Setup, clusters: Sequence[int], clock: Clock) -> Iterator[dict[str, Any]]:
    """Seconds, memory and share of the ceiling of every mode; each is run twice, of which the second is timed.

    The first run of the plain method, which asks for one row at a time and takes longest, has two masks: its FLOP are
    counted from those of one row and one image, as both runs ask for the same.
    """
    ceiling = matrix_product_ceiling(setup)
    yield {"part": "ceiling", "tera_flop_per_second": ceiling / 1e12}
    two = run(setup, "reference", 2, counting=True)
    for masks in clusters:
        if clock.over:
            yield {"part": "speed", "clusters": masks, "left_out": "no time"}
            continue
        reference = run(setup, "reference", masks, counting=False)
        found: dict[str, tuple[Run, dict[str, Any] | None]] = {
            "reference": (replace(reference, flop=_scaled_flop(two, reference)), None)
        }
        for mode in LIBRARY:
            counted = run(setup, mode, masks, counting=True)
            timed = replace(run(setup, mode, masks, counting=False), flop=counted.flop)
            found[mode] = timed, agreement(timed, reference)
        for mode, (one, agreed) in found.items():
            yield {
                "part": "speed",
                "mode": mode,
                "clusters": masks,
                "seconds": one.seconds,
                "times_as_fast": reference.seconds / one.seconds,
                "mebibytes": one.mebibytes,
                "memory_ratio": one.mebibytes / reference.mebibytes if one.mebibytes and reference.mebibytes else None,
                "rows": one.rows,
                "share_of_ceiling": (one.flop or 0) / one.seconds / ceiling,
                **(agreed or {}),
            }


def _scaled_flop(counted: Run, other: Run) -> int:
    """FLOP of the plain method by those of another number of masks: per row, which decodes nearly grow with."""
    return round((counted.flop or 0) * other.rows / counted.rows)


def laws(setup: Setup) -> Iterator[dict[str, Any]]:
    """The laws on the device, each with the largest difference relative to the largest value, and what is accepted."""
    model = load(setup.model, setup.device, setup.precision, setup.size)
    image = draw_scene(setup.scene, height=model.native_size, width=model.native_size).image
    trajectory = invert(model, model.encode(model.to_tensor(image)), steps=setup.steps, start=setup.modulate_at)
    accepted = 1e-4 if setup.precision == "float32" else 0.02
    variants = [list(variant) for variant in _variants(model, setup, trajectory.final)]

    plain, injected = denoise(model, trajectory, [[], [InjectAttention()]])
    yield law("self-injection", injected, plain, accepted)
    together = denoise(model, trajectory, variants, batch_size=len(variants))
    yield law("batch against one at a time", together, denoise(model, trajectory, variants, batch_size=1), accepted)
    if model.device.type == "cuda":
        halved, shortages = _with_little_memory(
            lambda: denoise(model, trajectory, variants, batch_size=len(variants)), model.device
        )
        told = law("out-of-memory halving", halved, together, accepted)
        yield {**told, "shortages": shortages, "holds": told["holds"] and shortages > 0}
    yield _precision(model, setup, image)


def law(name: str, one: Tensor, other: Tensor, accepted: float) -> dict[str, Any]:
    """Whether two results are one."""
    difference = float((one - other).abs().max() / other.abs().max())
    return {"part": "law", "law": name, "difference": difference, "holds": difference <= accepted}


def _variants(model: ProbeModel, setup: Setup, latents: Tensor) -> Iterator[list[Any]]:
    site = find_site(model, str(paper_preset(model).options["layer"]))
    height, width = site.grid(*latents.shape[-2:])
    for number in range(VARIANTS):
        mask = torch.zeros(height, width)
        mask.view(-1)[number::VARIANTS] = 1
        yield [Modulate(site, mask, 10.0, modulate_at=(setup.modulate_at,)), InjectAttention()]


def _with_little_memory(work: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, int]:
    """What work gives when memory runs out on the way, and how often it ran out."""
    _, total = torch.cuda.mem_get_info(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    work()
    needed = torch.cuda.max_memory_allocated(device) - held
    torch.cuda.empty_cache()
    before = torch.cuda.memory_stats(device).get("num_ooms", 0)
    torch.cuda.set_per_process_memory_fraction((held + 0.6 * needed) / total, device)
    try:
        return work(), torch.cuda.memory_stats(device).get("num_ooms", 0) - before
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def _precision(half: ProbeModel, setup: Setup, image: Any) -> dict[str, Any]:
    """Labels in the measured precision and in float32, over the same low-resolution masks or not."""
    full = load(setup.model, setup.device, "float32", setup.size)
    changes = {"clusters": 8, "steps": setup.steps, "modulate_at": setup.modulate_at, "sharpen": "none"}
    one, other = (segment(model, image, EmerDiffConfig.for_model(model, **changes)) for model in (half, full))
    agreed = float((one.labels == other.labels).mean())
    return {
        "part": "law",
        "law": f"{setup.precision} finds float32's labels",
        "same_low_resolution_masks": bool((one.low_resolution_masks == other.low_resolution_masks).all()),
        "label_agreement": agreed,
        "holds": agreed >= 0.95,
    }


def go_on(
    images: Path | None, init: str, minutes: float, out: Path, device: torch.device, **options: Any
) -> dict[str, Any]:
    """Train the denoiser of a pipeline folder for some minutes; returns what it came to and the files of weights."""
    config = TrainConfig(
        out=out,
        world=images is None,
        images=images,
        init=init,
        autoencoder_minutes=0,
        denoiser_minutes=minutes,
        bfloat16=True,
        device=str(device),
        **options,
    )
    pipeline = train(config)
    split_weights(pipeline, LARGEST_FILE)
    load_model(pipeline, device=device)
    figures = json.loads((out / "figures.json").read_text(encoding="utf-8"))
    sizes = {str(file.relative_to(out)): file.stat().st_size for file in sorted(pipeline.rglob("*.safetensors"))}
    return {"part": "training", **figures["denoiser"], "weights": sizes}


def split_weights(pipeline: Path, most: int) -> None:
    """Write the weights of a pipeline folder's denoiser and autoencoder in files of `most` bytes at most."""
    for name, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        folder = pipeline / name
        whole = folder / "diffusion_pytorch_model.safetensors"
        if whole.stat().st_size > most:
            module = kind.from_pretrained(folder, torch_dtype=torch.float16, use_safetensors=True)
            whole.unlink()
            module.save_pretrained(folder, max_shard_size=most)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line of JSON for every part as soon as it is done."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default=SD14_SHAPE)
    parser.add_argument("--device", default=None, help="the fastest that is there")
    parser.add_argument("--precision", default="float16")
    parser.add_argument("--size", type=int, default=512, help=f"pixels of a side, for {SD14_SHAPE}")
    parser.add_argument("--clusters", type=int, nargs="+", default=[8, 20, 30])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--modulate-at", type=int, default=281)
    parser.add_argument("--minutes", type=float, default=7.0, help="after which no more is begun")
    parser.add_argument("--train-minutes", type=float, default=None, help="train in the place of measuring")
    parser.add_argument("--images", type=Path, default=None, help="to train on; drawn scenes by default")
    parser.add_argument("--init", default="pocket", help="model to go on from")
    parser.add_argument("--out", type=Path, default=Path("trained"), help="run folder of the training")
    given = parser.parse_args(arguments)
    device, clock = find_device(given.device), Clock(given.minutes)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    print(json.dumps({"part": "device", "device": name, "torch": torch.__version__}), flush=True)
    if given.train_minutes is not None:
        print(json.dumps(go_on(given.images, given.init, given.train_minutes, given.out, device)), flush=True)
        return
    setup = Setup(
        given.model, str(device), given.precision, given.size, scene=0, steps=given.steps, modulate_at=given.modulate_at
    )
    for part in (laws(setup), speed(setup, given.clusters, clock)):
        for line in part:
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

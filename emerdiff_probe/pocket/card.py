"""The model card of a trained pocket model, written from what its run logged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

_STAGE_COLOURS = {"autoencoder": (0, 114, 178), "denoiser": (213, 94, 0)}


def write_model_card(run: Path, *, weaknesses: str = "") -> Path:
    """Write ``pipeline/README.md`` and its pictures from the figures, losses and samples in a run folder."""
    figures = json.loads((run / "figures.json").read_text(encoding="utf-8"))
    folder = run / "pipeline"
    pictures = folder / "card"
    pictures.mkdir(exist_ok=True)
    losses = read_losses(run / "losses.jsonl")
    sections = [_summary(figures)]
    for stage, curve in losses.items():
        draw_curve(curve, stage).save(pictures / f"{stage}-loss.png")
        steps, last = curve[-1, 0], curve[-max(1, len(curve) // 10) :, 1].mean()
        sections.append(
            f"## Loss of the {stage}\n\n![loss by step](card/{stage}-loss.png)\n\n"
            f"{steps:,.0f} steps; mean over the last tenth: {last:.4f}."
        )
    for name, title in (
        ("reconstructions", "Originals and reconstructions"),
        ("prompts", "Samples from captions"),
    ):
        with Image.open(run / "samples" / f"{name}.png") as grid:
            grid.convert("RGB").save(pictures / f"{name}.jpg", quality=88)
        sections.append(f"## {title}\n\n![{title.lower()}](card/{name}.jpg)")
    prompts = "\n".join(f"{number}. {prompt or '(empty)'}" for number, prompt in enumerate(figures["prompts"], 1))
    sections.append(
        f"Left to right, top to bottom; DDIM with {figures['sample_steps']} steps, "
        f"guidance {figures['guidance']:g}:\n\n{prompts}"
    )
    if weaknesses:
        sections.append(f"## Known weaknesses\n\n{weaknesses.strip()}")
    path = folder / "README.md"
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return path


def read_losses(path: Path) -> dict[str, np.ndarray]:
    """Curves (point, 2) of step and loss by stage, from a run's log."""
    curves: dict[str, list[tuple[float, float]]] = {}
    if path.exists():
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            curves.setdefault(line["stage"], []).append((line["step"], line["loss"]))
    return {stage: np.array(points) for stage, points in curves.items()}


def draw_curve(curve: np.ndarray, stage: str, *, width: int = 640, height: int = 240) -> Image.Image:
    """A line plot of loss (logarithmic) by step, on white."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = 56, 12, width - 12, height - 28
    draw.line([(left, top), (left, bottom), (right, bottom)], fill=(120, 120, 120))
    steps, losses = curve[:, 0], np.log(np.maximum(curve[:, 1], 1e-8))
    low, high = losses.min(), max(losses.max(), losses.min() + 1e-6)
    across = left + (right - left) * steps / steps.max()
    down = bottom - (bottom - top) * (losses - low) / (high - low)
    draw.line(
        list(zip(across.tolist(), down.tolist(), strict=True)),
        fill=_STAGE_COLOURS.get(stage, "black"),
        width=2,
    )
    draw.text((4, top), f"{np.exp(high):.3g}", fill="black")
    draw.text((4, bottom - 10), f"{np.exp(low):.3g}", fill="black")
    draw.text((left, bottom + 8), "step 0", fill="black")
    draw.text((right - 60, bottom + 8), f"{steps.max():,.0f}", fill="black")
    return image


def _summary(figures: dict[str, Any]) -> str:
    autoencoder, denoiser = figures["autoencoder"], figures["denoiser"]
    judged = f"{figures['held_out']} held-out pictures" if figures["held_out"] else "training pictures (none held out)"
    seeds = f", seeds from {figures['first_seed']:,}" if "first_seed" in figures else ""
    mirrored = " and their mirror images" if figures["mirror"] else ""
    parameters = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in figures["parameters"].items())
    size = figures["image_size"]
    rows = {
        "Data": f"{figures['pictures']:,} pictures ({figures['data']}{seeds}){mirrored}",
        "Started from": figures["init"] or "random weights",
        "Pictures": f"{size} x {size} pixels",
        "Parameters": parameters,
        "Size": f"{figures['bytes'] / 1e6:.1f} MB",
        "Trained on": figures["device"],
        "Autoencoder": f"{autoencoder['steps']:,} steps of {autoencoder['batch']} crops of "
        f"{autoencoder['crop']} pixels, {autoencoder['minutes']:.1f} minutes",
        "Denoiser": f"{denoiser['steps']:,} steps of {denoiser['batch']} latents, "
        f"{denoiser['minutes']:.1f} minutes (encoding included)",
        "Reconstruction": f"{figures['psnr']:.1f} dB PSNR on {judged}; colours of 8 x 8 blocks off by "
        f"{figures['colour_error']:.1f} of 255 levels",
        "Latent scaling factor": f"{figures['scaling_factor']:.4f}",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    lead = "A small latent diffusion model of Stable Diffusion's kind."
    return f"# Pocket model\n\n{lead}\n\n| | |\n|---|---|\n{table}"

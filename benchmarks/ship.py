"""Put a trained model of photographs into the package: its weights, and a card whose pictures may be published.

    python -m benchmarks.ship --pipeline RUN/pipeline --held-out ../shared/photos/test/images --history "..."

Photographs that were trained on may not be published, nor those held out. Reconstructions in the card are of
photographs that come with scikit-image and scikit-learn; figures are of the held-out ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from emerdiff_probe.files import write_folder
from emerdiff_probe.images import load_image
from emerdiff_probe.models.loading import SHIPPED
from emerdiff_probe.models.pixels import to_pixels
from emerdiff_probe.pocket.architecture import MODULES, Parts
from emerdiff_probe.pocket.data import visit_images
from emerdiff_probe.pocket.examples import middle_square
from emerdiff_probe.pocket.train import reconstruction_figures

SAMPLES = (
    ("sklearn.datasets.images", "china.jpg"),
    ("skimage.data", "rocket.jpg"),
    ("skimage.data", "astronaut.png"),
    ("skimage.data", "chelsea.png"),
    ("skimage.data", "coffee.png"),
    ("sklearn.datasets.images", "flower.jpg"),
)
"""Photographs that may be shown: package and file."""
PAINTED = 8
"""Samples in the card."""
LICENCE = """The photographs that it was trained on are LabelMeFacade's (Froehlich, Rodner, Denzler, ICPR 2010; images
from LabelMe) and CamVid's (Brostow, Fauqueur, Cipolla 2009). Both are for research and non-commercial use; none of them
is in this package, and **the weights are for research, too**."""

FOUND = """The sample china.jpg (`make demo`): the masks of its features, enlarged; what modulated denoising makes of
them, read as in the paper; and with the photograph's own borders."""


@torch.no_grad()
def reconstruct(parts: Parts, images: np.ndarray) -> np.ndarray:
    """What the autoencoder makes of images (image, height, width, 3), uint8."""
    painted = []
    for image in images:
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        latent = parts.autoencoder.encode(pixels).latent_dist.mean
        painted.append(to_pixels(parts.autoencoder.decode(latent).sample))
    return np.concatenate(painted)


def draw_samples(parts: Parts, steps: int) -> np.ndarray:
    """Pictures (image, height, width, 3), uint8, painted from noise alone: it knows no captions."""
    pipeline = parts.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    painted = pipeline(
        [""] * PAINTED,
        height=parts.image_size,
        width=parts.image_size,
        num_inference_steps=steps,
        guidance_scale=1.0,
        generator=[torch.Generator().manual_seed(seed) for seed in range(PAINTED)],
        output_type="np",
    ).images
    return (np.nan_to_num(painted) * 255).round().astype(np.uint8)


def held_out_figures(parts: Parts, folder: Path) -> dict[str, float]:
    """Of the middle squares of a folder's photographs: how many, PSNR and error of colours."""
    squares: list[np.ndarray] = []

    def keep(image: np.ndarray, _: str) -> bool:
        squares.append(middle_square(image, parts.image_size))
        return True

    visit_images(folder, keep)
    images = np.stack(squares)
    return {"count": len(images), **reconstruction_figures(images, reconstruct(parts, images))}


def write_card(folder: Path, parts: Parts, held_out: Path, history: str, weaknesses: str, steps: int) -> None:
    """Write README.md and its pictures into a pipeline folder."""
    figures = held_out_figures(parts, held_out)
    places = [Path(str(resources.files(package) / name)) for package, name in SAMPLES]
    shown = np.stack([middle_square(load_image(place), parts.image_size) for place in places])
    pictures = folder / "card"
    pictures.mkdir()
    painted = draw_samples(parts, steps)
    for name, rows in (
        ("reconstructions", [shown, reconstruct(parts, shown)]),
        ("samples", [painted[: PAINTED // 2], painted[PAINTED // 2 :]]),
    ):
        grid = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
        Image.fromarray(grid).save(pictures / f"{name}.jpg", quality=88)
    counts = {name: sum(one.numel() for one in getattr(parts, name).parameters()) for name in MODULES}
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 1e6
    facts = {
        "Data": "1,293 street photographs of LabelMeFacade and CamVid, no labels, no captions",
        "History": history,
        "Pictures": f"{parts.image_size} x {parts.image_size} pixels",
        "Parameters": ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items()),
        "Weights": f"{size:.1f} MB, half precision",
        "Reconstruction": f"{figures['psnr']:.1f} dB PSNR on the middle squares of {figures['count']:.0f} photographs "
        f"that it never saw; colours of 8 x 8 blocks off by {figures['colour_error']:.1f} of 255 levels",
        "Latent scaling factor": f"{parts.autoencoder.config.scaling_factor:.4f}",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    names = ", ".join(name for _, name in SAMPLES)
    (folder / "README.md").write_text(
        "# Pocket model of street photographs\n\n"
        'A small latent diffusion model of Stable Diffusion\'s kind: `load_model("photo")`.\n\n'
        f"| | |\n|---|---|\n{table}\n\n## Licence\n\n{LICENCE}\n\n"
        f"## Originals and reconstructions\n\n![originals and reconstructions](card/reconstructions.jpg)\n\n"
        f"Sample photographs of scikit-image and scikit-learn: {names}.\n\n"
        f"## Samples\n\n![samples](card/samples.jpg)\n\nFrom noise alone; DDIM with {steps} steps.\n\n"
        f"## What it finds\n\n![masks and segments of a photograph](../assets/photograph.png)\n\n{FOUND}\n\n"
        f"## Known weaknesses\n\n{weaknesses.strip()}\n",
        encoding="utf-8",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the folder of the model that ships."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ship", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pipeline", type=Path, required=True, help="pipeline folder of the trained model")
    parser.add_argument("--held-out", type=Path, required=True, help="folder of photographs that it never saw")
    parser.add_argument("--history", required=True, help="how it was trained, in words")
    parser.add_argument("--weaknesses", type=Path, default=None, help="file of Markdown; those it has by default")
    parser.add_argument("--steps", type=int, default=50, help="of the samples")
    parser.add_argument("--out", type=Path, default=SHIPPED["photo"], help="folder that is written")
    given = parser.parse_args(arguments)
    parts = Parts.load(given.pipeline)
    kept = given.out / "README.md" if given.weaknesses is None else given.weaknesses
    weaknesses = (
        kept.read_text(encoding="utf-8").split("## Known weaknesses")[-1] if kept.exists() else "None are known."
    )

    def write(folder: Path) -> None:
        parts.save(folder)
        write_card(folder, parts, given.held_out, given.history, weaknesses, given.steps)

    write_folder(given.out, write)
    print(given.out)


if __name__ == "__main__":
    main()

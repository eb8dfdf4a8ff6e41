"""How long the explorers take to answer, against what their reader would wait for.

    python -m benchmarks.explorers --model pocket

Explorers are driven in Python as a page drives them; the page's own drawing is not in the seconds, nor the way there.
Seconds are medians and the longest of several answers, each to something that was not asked before (another cell, site
or K), on a machine that should do nothing else.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Annotated, Any

import pandas as pd
import typer

from emerdiff_probe.models.loading import load_model
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.pocket.world import draw_scene
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading.atlas import response_atlas
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, resolve_modulation
from emerdiff_probe.viz.widgets.layers import explore_layers
from emerdiff_probe.viz.widgets.modulation import explore_modulation
from emerdiff_probe.viz.widgets.segmentation import explore_segmentation

HOVER, CHOICE, PUSH = 0.3, 1.0, 2.0
"""Seconds: of what follows the pointer, of another site or K, of a push."""


class Late(AssertionError):
    """An answer that did not come, or was an error."""


def timed(explorer: Any, change: Callable[[], object]) -> float:
    """Seconds from a change of an explorer until its answer is shown.

    Raises:
        Late: none came within a minute, or it was an error.
    """
    began = time.perf_counter()
    change()
    if not explorer.wait(60) or explorer.error is not None:
        raise Late(f"{type(explorer).__name__}: {explorer.error or 'no answer'}")
    return time.perf_counter() - began


def put(control: Any, value: Any) -> Callable[[], object]:
    """A change of a control's value."""
    return partial(setattr, control, "value", value)


def layers(model: ProbeModel, scene: Any, repeats: int) -> Iterator[tuple[str, float, list[float]]]:
    """Pointing at cells, other sites and other K in the layers explorer."""
    explorer = explore_layers(model, scene.image)
    height, width = scene.image.shape[:2]
    places = [((7 * turn + 3) % width, (11 * turn + 5) % height) for turn in range(1, repeats + 1)]
    yield "layers: hover", HOVER, [timed(explorer, partial(explorer._point, *at)) for at in places]
    sites = [name for name in explorer.site.options if name != explorer.site.value]
    chosen = sites[:: max(1, len(sites) // repeats)][:repeats]
    yield "layers: another site", CHOICE, [timed(explorer, put(explorer.site, name)) for name in chosen]
    counts = [count for count in range(2, explorer.clusters.max) if count != explorer.clusters.value][-repeats:]
    yield "layers: another K", CHOICE, [timed(explorer, put(explorer.clusters, count)) for count in counts]


def modulation(model: ProbeModel, scene: Any, repeats: int) -> Iterator[tuple[str, float, list[float]]]:
    """Pushes of one cell and of a part of the grid in the modulation explorer, and another strength."""
    explorer = explore_modulation(model, scene.image)
    rows, columns = explorer._grid
    yield (
        "modulation: push a cell",
        PUSH,
        [timed(explorer, partial(explorer.choose, (turn * 5 % (rows * columns),))) for turn in range(1, repeats + 1)],
    )
    strengths = [value for _, value in explorer.strength.options if value != explorer.strength.value][:repeats]
    yield "modulation: another strength", PUSH, [timed(explorer, put(explorer.strength, each)) for each in strengths]


def segmentation(model: ProbeModel, scene: Any, repeats: int) -> Iterator[tuple[str, float, list[float]]]:
    """Pointing at pixels and other K in the segmentation explorer, from an atlas.

    Pushed late, an atlas is made in a minute where the model's own takes twenty; reading it takes as long.
    """
    config = EmerDiffConfig.for_atlas(model, steps=10, modulate_at=101)
    probed: ProbedImage = config.probe(model, scene.image)
    atlas = response_atlas(model, probed.trajectory, resolve_modulation(model, config))
    explorer = explore_segmentation(model, scene.image, atlas=atlas, config=config)
    places = [(5 * turn % 60, 9 * turn % 60) for turn in range(1, repeats + 1)]
    yield "segmentation: hover", HOVER, [timed(explorer, partial(explorer._preview, *at)) for at in places]
    counts = [count for count in range(2, explorer.clusters.max) if count != explorer.clusters.value][-repeats:]
    yield "segmentation: another K", CHOICE, [timed(explorer, put(explorer.clusters, count)) for count in counts]


def main(
    model: Annotated[str, typer.Option(help="As `load_model` takes it.")] = "pocket",
    seed: Annotated[int, typer.Option(help="Of the scene.")] = 900_000,
    repeats: Annotated[int, typer.Option(min=1, help="Answers of each kind.")] = 5,
    device: Annotated[str | None, typer.Option()] = None,
) -> None:
    """Print a table and, as the last line, one JSON object."""
    probed = load_model(model, device=device)
    scene = draw_scene(seed, height=probed.native_size, width=probed.native_size)
    rows = []
    for explorer in (layers, modulation, segmentation):
        for name, target, seconds in explorer(probed, scene, repeats):
            middle, longest = round(median(seconds), 3), round(max(seconds), 3)
            print(f"{name}: {middle} s", flush=True)
            rows.append(
                {"what": name, "seconds": middle, "longest": longest, "at most": target, "held": middle <= target}
            )
    table = pd.DataFrame(rows)
    print(f"\n{probed!r}, {repeats} answers each\n\n{table.to_string(index=False)}\n")
    print(json.dumps({"rows": table.to_dict("records")}))


if __name__ == "__main__":
    typer.run(main)

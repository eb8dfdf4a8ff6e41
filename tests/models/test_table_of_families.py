"""The table of families in the docs is what a run gives; `UPDATE_DOCS=1 pytest` on this file writes it anew."""

import os
from collections import Counter
from pathlib import Path

import pytest
import tiny

from benchmarks.families import PUBLISHED, REFUSED, SMALL
from emerdiff_probe.errors import ModelError
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.segment import segment
from emerdiff_probe.sites import list_sites

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
U_NETS = {"Stable Diffusion 1.x": tiny.sd1, "Stable Diffusion 2.x": tiny.sd2, "Stable Diffusion XL": tiny.sdxl}
"""In the published topology and small; the first also on the published grid."""


def attention_of(model):
    """Its attention layers by stage, grid and kind, as `double64.joint x 24`."""
    layers = Counter(
        f"{site.stage}{site.resolution}.{site.kind}" for site in list_sites(model, part="query") if site.layer
    )
    return ", ".join(f"{name} x {count}" for name, count in layers.items())


def served(name, published, small):
    """One row: the published topology's sites and settings, and whether the small one is segmented."""
    model, runs = load_model(published(), device="cpu"), load_model(small(), device="cpu")
    config = EmerDiffConfig.for_model(model)
    result = segment(runs, tiny.picture(64, 64), EmerDiffConfig.fast(runs, clusters=3, steps=8))
    features, modulation = config.features, config.modulation
    settings = (
        f"features {', '.join(f'`{site}`' for site in features.sites)} at {', '.join(map(str, features.timesteps))}, "
        f"modulated `{modulation.layer}` at "
        f"{modulation.modulate_at}, injection {', '.join(modulation.injection)}"
    )
    labels = "runs" if result.labels.shape == (64, 64) else "fails"
    return f"| {name} | `{model.family}` | {model.native_size} | {attention_of(model)} | {settings} | {labels} |"


def refused(name, build):
    """One row: what the refusal says."""
    with pytest.raises(ModelError) as caught:
        load_model(build(), device="cpu")
    said = str(caught.value).split(": ", 1)[1].split("; accepted")[0]
    return f"| {name} | {said} |"


def tables():
    """Both tables, as they stand in the page."""
    rows = [served(name, build, build) for name, build in U_NETS.items()]
    rows += [served(name, PUBLISHED[name], build) for name, build in SMALL.items()]
    return "\n".join(
        [
            "| model | family | pixels | attention layers | settings by default | segment |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "| refused at load | because |",
            "|---|---|",
            *(refused(name, build) for name, build in REFUSED.items()),
        ]
    )


def test_the_table_in_the_docs_is_what_a_run_gives():
    begin, end = "<!-- made by tests/models/test_table_of_families.py -->\n", "\n<!-- end -->"
    page, made = PAGE.read_text(), tables()
    before, rest = page.split(begin)
    stands, after = rest.split(end)
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(before + begin + made + end + after)
    else:
        assert stands == made, f"UPDATE_DOCS=1 pytest {Path(__file__).name} writes it anew"

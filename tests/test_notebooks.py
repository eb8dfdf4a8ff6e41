"""Every notebook runs on the model and pictures that its first cell names: a small Stable Diffusion on photographs.

`make notebooks` runs them as they are. Here their code runs in this process, on models of random weights.
"""

import os
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import tiny
from PIL import Image
from skimage import data as photographs
from sklearn.datasets import load_sample_image

from benchmarks.notebooks import tidy

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
ALL = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
DRAWN = {"07", "14"}
"""That ask for scenes to be drawn again."""
QUICK = {"08", "16"}
"""That are run by every test run."""
LOGGED = re.compile(r"Writing model shards|Loading weights|it/s\]|Warning|\[transformers\]")
"""What libraries print that is no result."""
LABELLED = {"09", "11", "12", "13"}
"""That ask for labels."""


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """What the first cells name: a model's folder, pictures, the same with labels, and one picture."""
    place = tmp_path_factory.mktemp("given")
    pipeline = tiny.stable_diffusion(
        sample_size=16, channels=(16, 16, 32, 32), levels=3, groups=8, heads=2, cross_width=32,
        prediction_type="epsilon",
    )  # fmt: skip
    pipeline.save_pretrained(place / "model", safe_serialization=True)
    for part in ("pictures", "labelled/images", "labelled/labels", "more/images", "more/labels"):
        (place / part).mkdir(parents=True)
    shots = [photographs.astronaut(), load_sample_image("china.jpg")]
    for number, shot in enumerate(shots):
        small = Image.fromarray(shot).resize((80, 64))
        grey = np.array(small.convert("L")) // 90
        for folder in ("labelled", "more"):
            turned = small if folder == "labelled" else small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            turned.save(place / folder / "images" / f"{number}.png")
            Image.fromarray(grey).save(place / folder / "labels" / f"{number}.png")
            (place / folder / "classes.txt").write_text("dark\nmiddle\nlight")
    small.save(place / "pictures" / "0.png")
    return place


def code_of(notebook, given):
    """The cells of code, with the assignments of the first one made for another model and other data."""
    number = notebook.stem[:2]
    labels, picture = f"folder:{given / 'labelled'}", str(given / "pictures" / "0.png")
    told = {"MODEL": str(given / "model"), "DATA": f"images:{given / 'pictures'}", "IMAGE": picture}
    if number in LABELLED:
        told |= {"DATA": labels, "IMAGE": f"{labels},names=one.txt", "LABELLED": f"folder:{given / 'more'}"}
        (given / "labelled" / "one.txt").write_text("0\n")
    if number == "08":
        told["IMAGE"] = [f"images:{given / 'pictures'},ending=0.png"]
    if number in DRAWN:
        told = {"MODEL": told["MODEL"]}
    first, *rest = [cell.source for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"]
    for name, value in told.items():
        first = re.sub(rf"^{name} = .*$", f"{name} = {value!r}", first, flags=re.MULTILINE)
    # Its atlas is made in the background, which a process that ends does not wait for; explorers have own tests.
    return [first, *(source for source in rest if "explore_segmentation(" not in source)]


@pytest.mark.parametrize("notebook", ALL, ids=lambda path: path.stem)
def test_a_notebook_begins_with_the_cell_that_a_user_changes(notebook):
    cells = nbformat.read(notebook, 4).cells
    first = next(cell for cell in cells if cell.cell_type == "code")
    assert re.search(r"^MODEL = ", first.source, re.MULTILINE)
    assert re.search(r"^IMAGE = |^DATA = ", first.source, re.MULTILINE)
    assert "import emerdiff_probe as ep" in first.source
    assert any("static_pictures()" in cell.source for cell in cells)
    assert not any(".reduce(" in cell.source for cell in cells), "pictures are shown as large as they are"


@pytest.mark.parametrize("notebook", ALL, ids=lambda path: path.stem)
def test_no_log_lines_are_committed(notebook):
    for cell in nbformat.read(notebook, 4).cells:
        for output in cell.get("outputs", []):
            text = str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
            assert not re.search(r"Writing model shards|Loading weights|it/s\]|Warning|\[transformers\]", text), text[
                :200
            ]


def is_run(notebook):
    """Whether its code is run: a minute and a half of a processor for all of them, which `make elsewhere` takes."""
    return notebook.stem[:2] in QUICK or "EMERDIFF_ALL_NOTEBOOKS" in os.environ


@pytest.mark.parametrize("notebook", list(filter(is_run, ALL)), ids=lambda path: path.stem)
def test_a_small_stable_diffusion_and_photographs_run_through(notebook, given, tmp_path, monkeypatch):
    monkeypatch.setenv("PLOTLY_RENDERER", "plotly_mimetype")
    monkeypatch.setenv("EMERDIFF_SCENES", "1")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "results").symlink_to(NOTEBOOKS / "results")
    monkeypatch.chdir(tmp_path / "notebooks")
    names = {}
    for source in code_of(notebook, given):
        exec(compile(source, notebook.name, "exec"), names)


def test_outputs_are_kept_without_log_lines_and_without_a_picture_twice():
    picture = nbformat.v4.new_output("display_data", {"image/png": "long" * 9, "image/jpeg": "short", "text/plain": ""})
    logged = nbformat.v4.new_output("stream", name="stderr", text="Writing model shards\n")
    printed = nbformat.v4.new_output("stream", name="stdout", text="27.2%\n")
    cell = nbformat.v4.new_code_cell("run()", outputs=[picture, logged, printed])
    made = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {"state": {}}})
    assert tidy(made) == ["Writing model shards"]
    assert [output.output_type for output in cell.outputs] == ["display_data", "stream"]
    assert set(cell.outputs[0].data) == {"image/jpeg", "text/plain"}
    assert "widgets" not in made.metadata

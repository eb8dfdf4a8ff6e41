"""What a notebook needs is importable from `emerdiff_probe`, and costs nothing before it is used."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import emerdiff_probe

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("name", emerdiff_probe.__all__)
def test_every_name_of_the_front_door_is_there(name):
    assert getattr(emerdiff_probe, name) is not None


def test_the_package_itself_loads_nothing_heavy():
    code = "import sys, emerdiff_probe; print({'torch', 'plotly', 'diffusers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_name_of_the_front_door_is_on_the_page_of_the_api_once():
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^   (\w+)$", page, re.MULTILINE) + re.findall(r"autodata:: [\w.]+\.(\w+)", page)
    assert sorted(listed) == sorted(emerdiff_probe.__all__)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_reach_into_the_package_by_the_front_door_alone(path):
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    lines = [line for cell in cells for line in "".join(cell["source"]).splitlines()]
    deep = [line for line in lines if re.match(r"\s*(from|import) emerdiff_probe\.", line)]
    assert len(deep) <= 1
    used = {name for line in lines for name in re.findall(r"\bep\.(\w+)", line)}
    assert used <= set(emerdiff_probe.__all__)
    for cell in cells:
        imports = [line for line in "".join(cell["source"]).splitlines() if re.match(r"(from|import) ", line)]
        assert len(imports) <= 6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_of_a_notebook_is_all_that_another_model_needs(path):
    """It names the model in six lines at most, and later cells do not."""
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    first, *later = ("".join(cell["source"]) for cell in cells)
    assert len([line for line in first.splitlines() if line]) <= 6
    assert "import emerdiff_probe as ep" in first
    assert re.search(r"^MODEL\b", first, re.MULTILINE)
    assert "load_model(MODEL)" in "".join(later)
    assert not [cell for cell in later if re.search(r"load_model\([\"']", cell)]

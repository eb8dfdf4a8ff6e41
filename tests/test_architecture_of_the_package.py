"""The house plan: a module imports only from modules above it, and hooks live in one file."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "emerdiff_probe"
ORDER = (
    "errors",
    "checks",
    "files",
    "arrays",
    "images",
    "metrics",
    "models",
    "sites",
    "hooks",
    "interventions",
    "trajectories",
    "reading",
    "probe",
    "segmentation",
    "naming",
    "pocket",
    "data",
    "runs",
    "batch",
    "methods",
    "evaluation",
    "studies",
    "calibration",
    "viz",
    "cli",
)
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
OUTSIDE = {"__init__.py", "__main__.py"}
"""The front door and the command: they may import anything."""


def storey(file):
    return file.parts[0].removesuffix(".py")


def imported_storeys(source):
    """Storeys of the house that a module imports, also inside functions and in every way of writing it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "emerdiff_probe" and len(parts) > 1 and parts[1] in ORDER:
                yield parts[1]
            elif name == "emerdiff_probe":
                yield "emerdiff_probe"


def test_the_check_finds_imports_however_they_are_written():
    source = (
        "import emerdiff_probe.cli\ndef f():\n    from emerdiff_probe import viz, hooks\nimport emerdiff_probe as e"
    )
    assert set(imported_storeys(source)) == {"cli", "viz", "hooks", "emerdiff_probe"}


def test_every_module_has_a_storey():
    assert {storey(file) for file in FILES if str(file) not in OUTSIDE} <= set(ORDER)
    assert {"errors", "hooks", "segmentation", "cli", "pocket"} <= {storey(file) for file in FILES}


@pytest.mark.parametrize("file", [file for file in FILES if str(file) not in OUTSIDE], ids=str)
def test_a_module_imports_only_from_above(file):
    above = set(ORDER[: ORDER.index(storey(file)) + (len(file.parts) > 1)])
    below = set(imported_storeys((PACKAGE / file).read_text())) - above
    assert not below, f"{file} imports {', '.join(sorted(below))}"


@pytest.mark.parametrize("file", [file for file in FILES if str(file) != "hooks/attach.py"], ids=str)
def test_only_one_file_touches_torch_hooks(file):
    assert not re.search(r"register_(full_)?(forward|backward|module|state_dict)\w*", (PACKAGE / file).read_text())


def test_that_file_does():
    assert "register_forward_hook" in (PACKAGE / "hooks" / "attach.py").read_text()


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_public_module_function_and_class_says_what_it_is(file):
    tree = ast.parse((PACKAGE / file).read_text())
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{file}: {node.name}"

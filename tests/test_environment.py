"""pyproject.toml, constraints.txt and environment.yml say the same."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = [
    *PROJECT["dependencies"],
    *(line for lines in PROJECT["optional-dependencies"].values() for line in lines if "emerdiff" not in line),
]


def pins():
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return [Requirement(line) for line in lines if line]


def environment():
    return yaml.safe_load((ROOT / "environment.yml").read_text())


def test_every_constraint_is_one_exact_version():
    names = [canonicalize_name(pin.name) for pin in pins()]
    assert len(names) == len(set(names))
    for pin in pins():
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        assert "*" not in specifier.version


@pytest.mark.parametrize("line", DIRECT)
def test_every_direct_dependency_is_pinned_within_its_range(line):
    wanted = Requirement(line)
    (pin,) = [pin for pin in pins() if canonicalize_name(pin.name) == canonicalize_name(wanted.name)]
    (specifier,) = pin.specifier
    assert wanted.specifier.contains(specifier.version, prereleases=True), f"{pin} is outside {line}"


@pytest.mark.parametrize("line", DIRECT)
def test_a_dependency_gives_a_range_and_not_a_version(line):
    specifiers = list(Requirement(line).specifier)
    assert specifiers
    assert all(specifier.operator not in {"==", "==="} for specifier in specifiers)


def test_condas_python_is_one_that_the_package_takes():
    (python,) = [line for line in environment()["dependencies"] if re.match(r"python\b", str(line))]
    version = re.sub(r"^python\s*=+\s*", "", python)
    assert SpecifierSet(PROJECT["requires-python"]).contains(Version(version))


def test_conda_installs_this_package_with_the_same_pins():
    described = environment()
    assert described["channels"] == ["conda-forge"]
    assert "pip" in described["dependencies"]
    (section,) = [entry["pip"] for entry in described["dependencies"] if isinstance(entry, dict)]
    options = [line.split() for line in section]
    assert any(words[0] in {"-c", "--constraint"} and words[1] == "constraints.txt" for words in options)
    assert any(words[0] in {"-e", "--editable"} and words[1] == ".[dev]" for words in options)
    assert len(options) == 2, "everything else belongs into pyproject.toml"

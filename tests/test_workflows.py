"""What runs on every push is what runs here."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").glob("*.yml")}


def commands(workflow):
    return [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]


def test_every_push_runs_what_the_readme_says():
    assert commands(WORKFLOWS["ci"]) == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_the_versions_that_are_installed_are_audited():
    assert any("pip-audit" in line and "constraints.txt" in line for line in commands(WORKFLOWS["audit"]))


def test_workflows_may_only_read():
    assert all(workflow["permissions"] == {"contents": "read"} for workflow in WORKFLOWS.values())

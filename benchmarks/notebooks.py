"""Run the notebooks and keep their outputs as they are committed: no log lines, no widgets' state, no picture twice.

python -m benchmarks.notebooks             # all, in place
python -m benchmarks.notebooks 02 05       # those whose names begin so
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Annotated, Any

import nbformat
import typer
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
PICTURES = ("image/jpeg", "image/png")


def tidy(notebook: Any) -> list[str]:
    """Take out of a notebook that was run what readers have no use for, and give the lines that libraries printed."""
    printed: list[str] = []
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        kept = []
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if output.get("name") == "stderr":
                printed += output["text"].splitlines()
                continue
            if str(data.get("text/plain", "")).startswith(("Loading weights", "Output()")):
                continue  # a progress bar
            if all(kind in data for kind in PICTURES):
                del data[max(PICTURES, key=lambda kind: len(data[kind]))]
            kept.append(output)
        if cell.cell_type == "code":
            cell["outputs"] = kept
            cell["metadata"].pop("execution", None)
    return printed


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Beginnings of names; all when none is given.")] = None,
) -> None:
    """Run notebooks in place and say what each took; what libraries printed comes here and not into the notebook."""
    asked = tuple(names or [""])
    for path in sorted(path for path in NOTEBOOKS.glob("[0-9]*.ipynb") if path.name.startswith(asked)):
        notebook, before = nbformat.read(path, as_version=4), _seconds()
        NotebookClient(
            notebook,
            timeout=None,
            resources={"metadata": {"path": str(NOTEBOOKS)}},
            store_widget_state=False,
            record_timing=False,
        ).execute()
        for line in tidy(notebook):
            print(f"{path.name}: {line}", file=sys.stderr)
        nbformat.write(notebook, path)
        size = path.stat().st_size / 1e6
        print(f"{path.name}: {_seconds() - before:.0f} s of a processor, {size:.1f} MB", flush=True)


def _seconds() -> float:
    """Of a processor, that kernels which have ended took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    typer.run(main)

"""The command line `emerdiff-probe`: one subcommand a verb, a file a verb, no logic of its own."""

from __future__ import annotations

import io
import sys

from emerdiff_probe.cli import evaluate, layers, segment, study, train, train_clip, world
from emerdiff_probe.cli.options import app
from emerdiff_probe.errors import ProbeError

__all__ = ["app", "evaluate", "layers", "main", "segment", "study", "train", "train_clip", "world"]


def main() -> None:
    """Run the command line: exit code 2 and one line for bad input or a place that cannot be written, 130 for Ctrl-C.

    Finished results are kept. What the terminal's encoding lacks is printed as its code: no name ends a run.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(standalone_mode=True)
    except (ProbeError, OSError) as error:
        print(f"emerdiff-probe: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == 130:  # what typer makes of Ctrl-C
            print("emerdiff-probe: interrupted; finished results are kept", file=sys.stderr)
        raise

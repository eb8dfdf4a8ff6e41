"""The command line `emerdiff-probe`: one subcommand a verb, a file a verb, no logic of its own."""

from __future__ import annotations

import io
import sys
import warnings
from typing import Any, NoReturn

from emerdiff_probe.cli import calibrate, evaluate, find, layers, segment, study, train, train_clip, world
from emerdiff_probe.cli.options import app
from emerdiff_probe.errors import ProbeError, ProbeWarning

__all__ = ["app", "calibrate", "evaluate", "find", "layers", "main", "segment", "study", "train", "train_clip", "world"]


def main() -> None:
    """Run the command line: exit code 2 and one line for bad input or a place that cannot be written, 130 for Ctrl-C.

    Finished results are kept. What the terminal's encoding lacks is printed as its code: no name ends a run.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except (ProbeError, OSError) as error:
        _refuse(str(error))
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's errors of a wrong call, whose class it does not give away
            raise
        _refuse(error.format_message())
    if code == 130:  # what typer makes of Ctrl-C
        print("emerdiff-probe: interrupted; finished results are kept", file=sys.stderr)
    if code:
        sys.exit(code)


def _refuse(message: str) -> NoReturn:
    print(f"emerdiff-probe: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _show_warning(message: Warning | str, category: type[Warning], *where: Any) -> None:
    """Our own warnings are a line for the user; libraries' are not for them."""
    if issubclass(category, ProbeWarning):
        print(f"emerdiff-probe: {message}", file=sys.stderr)

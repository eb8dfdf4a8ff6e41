"""The command line, run in the test's own process."""

import sys

import pytest

from emerdiff_probe import cli


@pytest.fixture
def run(monkeypatch, capfd):
    """Run the command; gives exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["emerdiff-probe", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        output = capfd.readouterr()
        return code, output.out, output.err

    return run

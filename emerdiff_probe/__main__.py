"""`python -m emerdiff_probe` is the command `emerdiff-probe`."""

from emerdiff_probe.cli import main

main()

"""Models under the probe: one contract, and loading."""

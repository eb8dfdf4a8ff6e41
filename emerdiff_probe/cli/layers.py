"""`emerdiff-probe layers`."""

from __future__ import annotations

from emerdiff_probe.cli.options import DeviceOption, ModelOption, app


@app.command()
def layers(model: ModelOption = "pocket", device: DeviceOption = None) -> None:
    """Print the table of sites: every tensor of the denoiser that can be read, clustered or changed."""
    from emerdiff_probe.models.loading import load_model
    from emerdiff_probe.sites import list_sites

    print(list_sites(load_model(model, device=device)))

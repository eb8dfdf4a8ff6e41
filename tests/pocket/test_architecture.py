"""What a pocket model is before any training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emerdiff_probe.errors import InputError
from emerdiff_probe.pocket.architecture import Architecture, Parts
from emerdiff_probe.pocket.world import caption_vocabulary, draw_scene


@pytest.fixture(scope="module")
def fresh() -> Parts:
    return Parts.build(Architecture(), caption_vocabulary())


def test_a_fresh_autoencoder_keeps_the_colours_of_every_cell(fresh: Parts) -> None:
    images = np.stack([draw_scene(seed).image for seed in range(3)])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        painted = fresh.autoencoder.decode(fresh.autoencoder.encode(pixels).latent_dist.mean).sample
    cells, painted_cells = (torch.nn.functional.avg_pool2d(x, 8) for x in (pixels, painted))
    blank = (cells - cells.mean((2, 3), keepdim=True)).square().mean()
    assert (painted_cells - cells).square().mean() < 0.2 * blank


def test_the_denoiser_has_three_cross_attention_layers_at_half_the_latent_resolution(fresh: Parts) -> None:
    block = fresh.denoiser.up_blocks[1]
    assert len(block.attentions) == 3
    assert all(layer.transformer_blocks[0].attn2.is_cross_attention for layer in block.attentions)
    resolutions = [bool(getattr(block, "attentions", ())) for block in fresh.denoiser.down_blocks]
    assert sum(resolutions) >= 2


def test_widths_too_narrow_to_carry_the_colours_are_refused() -> None:
    with pytest.raises(InputError, match="autoencoder_channels"):
        Architecture(autoencoder_channels=(4, 8, 16, 16))

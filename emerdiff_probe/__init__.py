"""Tools for finding out what a pretrained diffusion model knows about the pixels it paints.

from emerdiff_probe import load_model, segment

model = load_model("pocket")
result = segment(model, "photo.png")
result.save("out/photo")
"""

from emerdiff_probe.correspondence import Modulation, difference_maps, modulated_images
from emerdiff_probe.diffusion import Trajectory, denoise, generate
from emerdiff_probe.features import capture, cluster, one_hot_masks, pca_view
from emerdiff_probe.images import load_image
from emerdiff_probe.interventions import InjectAttention, Modulate, Noise, Replace, Scale
from emerdiff_probe.inversion import invert
from emerdiff_probe.layers import Site, find_site, list_sites
from emerdiff_probe.models import ProbeModel, load_model
from emerdiff_probe.segmentation import EmerDiffConfig, Segmentation, segment, segment_all

__all__ = [
    "EmerDiffConfig",
    "InjectAttention",
    "Modulate",
    "Modulation",
    "Noise",
    "ProbeModel",
    "Replace",
    "Scale",
    "Segmentation",
    "Site",
    "Trajectory",
    "capture",
    "cluster",
    "denoise",
    "difference_maps",
    "find_site",
    "generate",
    "invert",
    "list_sites",
    "load_image",
    "load_model",
    "modulated_images",
    "one_hot_masks",
    "pca_view",
    "segment",
    "segment_all",
]

from .atlas import ResponseAtlas, response_atlas
from .correspondence import Modulation, difference_maps, modulated_images
from .diffusion import Trajectory, denoise, generate
from .features import capture, cluster, one_hot_masks, pca_view
from .images import load_image
from .interventions import InjectAttention, Modulate, Noise, Replace, Scale
from .inversion import invert
from .layers import Site, find_site, list_sites
from .models import ProbeModel, load_model
from .segmentation import EmerDiffConfig, Segmentation, segment, segment_all
from .viz.widgets import compare, explore_layers, explore_modulation, explore_segmentation, explore_study

__all__ = [
    "EmerDiffConfig",
    "InjectAttention",
    "Modulate",
    "Modulation",
    "Noise",
    "ProbeModel",
    "Replace",
    "ResponseAtlas",
    "Scale",
    "Segmentation",
    "Site",
    "Trajectory",
    "capture",
    "cluster",
    "compare",
    "denoise",
    "difference_maps",
    "explore_layers",
    "explore_modulation",
    "explore_segmentation",
    "explore_study",
    "find_site",
    "generate",
    "invert",
    "list_sites",
    "load_image",
    "load_model",
    "modulated_images",
    "one_hot_masks",
    "pca_view",
    "response_atlas",
    "segment",
    "segment_all",
]

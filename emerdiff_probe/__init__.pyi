from .atlas import ResponseAtlas, response_atlas
from .clip import Clip, load_clip
from .correspondence import Modulation, difference_maps, modulated_images
from .diffusion import Trajectory, denoise, generate
from .evaluation.open_vocabulary.find import Found, find
from .evaluation.open_vocabulary.maskclip import MaskClip
from .evaluation.open_vocabulary.vocabulary import ScoreMap, Vocabulary
from .evaluation.open_vocabulary.words import ClassWords, WordAttention
from .features import capture, capture_replayed, cluster, one_hot_masks, pca_view
from .images import load_image
from .interventions import InjectAttention, Modulate, Noise, Replace, Scale
from .inversion import invert
from .layers import Site, find_site, list_sites
from .models import ProbeModel, load_model
from .segmentation import EmerDiffConfig, Segmentation, segment, segment_all
from .viz.widgets import compare, explore_layers, explore_modulation, explore_segmentation, explore_study

__all__ = [
    "ClassWords",
    "Clip",
    "EmerDiffConfig",
    "Found",
    "InjectAttention",
    "MaskClip",
    "Modulate",
    "Modulation",
    "Noise",
    "ProbeModel",
    "Replace",
    "ResponseAtlas",
    "Scale",
    "ScoreMap",
    "Segmentation",
    "Site",
    "Trajectory",
    "Vocabulary",
    "WordAttention",
    "capture",
    "capture_replayed",
    "cluster",
    "compare",
    "denoise",
    "difference_maps",
    "explore_layers",
    "explore_modulation",
    "explore_segmentation",
    "explore_study",
    "find",
    "find_site",
    "generate",
    "invert",
    "list_sites",
    "load_clip",
    "load_image",
    "load_model",
    "modulated_images",
    "one_hot_masks",
    "pca_view",
    "response_atlas",
    "segment",
    "segment_all",
]

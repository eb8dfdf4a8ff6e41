from .images import load_image
from .interventions import Apply, InjectAttention, Modulate, Noise, Replace, Scale
from .models.clip import Clip, load_clip
from .models.loading import load_model
from .models.probe_model import ProbeModel
from .naming.find import Found, find
from .naming.maskclip import MaskClip
from .naming.vocabulary import ScoreMap, Vocabulary
from .naming.words import ClassWords, WordAttention
from .reading.atlas import ResponseAtlas, response_atlas
from .reading.attention import attention
from .reading.correspondence import Modulation, difference_maps, modulated_images
from .reading.features import capture, capture_replayed, cluster, one_hot_masks, pca_view
from .reading.readout import Readout
from .segmentation.configuration import EmerDiffConfig, find_feature_sites
from .segmentation.result import Segmentation
from .segmentation.segment import segment, segment_all
from .segmentation.settings import FeatureSettings, InversionSettings, ModulationSettings
from .sites import Site, find_site, list_sites
from .trajectories.denoise import denoise
from .trajectories.generate import generate
from .trajectories.inversion import invert
from .trajectories.trajectory import Trajectory
from .viz.widgets import compare, explore_layers, explore_modulation, explore_segmentation, explore_study

__all__ = [
    "Apply",
    "ClassWords",
    "Clip",
    "EmerDiffConfig",
    "FeatureSettings",
    "Found",
    "InjectAttention",
    "InversionSettings",
    "MaskClip",
    "Modulate",
    "Modulation",
    "ModulationSettings",
    "Noise",
    "ProbeModel",
    "Readout",
    "Replace",
    "ResponseAtlas",
    "Scale",
    "ScoreMap",
    "Segmentation",
    "Site",
    "Trajectory",
    "Vocabulary",
    "WordAttention",
    "attention",
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
    "find_feature_sites",
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

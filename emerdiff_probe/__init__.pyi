from .calibration.calibrate import calibrate
from .calibration.result import Calibration
from .data.sources import open_data
from .evaluation.report import make_report
from .evaluation.run import Evaluation, run_evaluation
from .images import colour_labels, contact_sheet, contours, draw_segments, heatmap, load_image, write_names
from .interventions import Apply, InjectAttention, Modulate, Noise, Replace, Scale
from .methods.catalogue import METHODS, TRAININGS, find_method, find_methods
from .methods.emerdiff import EmerDiff
from .methods.naming import Words
from .methods.predictions import Predictions
from .methods.references import Reference
from .metrics.overlaps import majority_confusion, mean_iou
from .metrics.protocols import Majority, Supervised
from .models.clip import Clip, load_clip
from .models.loading import load_model
from .models.pixels import to_pixels
from .models.probe_model import ProbeModel
from .naming.find import Found, find
from .naming.maskclip import MaskClip
from .naming.vocabulary import ScoreMap, Vocabulary
from .naming.words import ClassWords, WordAttention
from .pocket.train import TrainConfig, train
from .pocket.world import OBJECT_NAMES, PART_NAMES, counterfactual_pair, draw_clip, draw_scene
from .probe import ProbedImage
from .reading.atlas import ResponseAtlas, response_atlas
from .reading.attention import attention
from .reading.correspondence import Modulation, assign, difference_map, difference_maps, modulated_images
from .reading.features import capture, capture_replayed, cluster, mask_embeddings, one_hot_masks, pca_view, upsampled
from .reading.readout import Readout
from .segmentation.configuration import EmerDiffConfig, find_feature_sites, resolve_modulation
from .segmentation.result import Segmentation
from .segmentation.segment import segment, segment_all
from .segmentation.settings import FeatureSettings, InversionSettings, ModulationSettings
from .sites import Site, find_site, list_sites
from .studies.catalogue import STUDIES, make_study
from .studies.portable import read_result, write_result
from .studies.run import run_study
from .trajectories.denoise import denoise
from .trajectories.generate import generate
from .trajectories.inversion import invert
from .trajectories.trajectory import Trajectory
from .viz.calibration import calibration_figure, criterion_figure
from .viz.figures import (
    class_figure,
    confusion_figure,
    difference_figure,
    report_figure,
    segmentation_figure,
    static_pictures,
    study_figure,
)
from .viz.forest import forest_figure
from .viz.naming import Naming
from .viz.sites import sites_figure
from .viz.tables import FoldedTable
from .viz.widgets import compare, explore_layers, explore_modulation, explore_segmentation, explore_study

__all__ = [
    "METHODS",
    "OBJECT_NAMES",
    "PART_NAMES",
    "STUDIES",
    "TRAININGS",
    "Apply",
    "Calibration",
    "ClassWords",
    "Clip",
    "EmerDiff",
    "EmerDiffConfig",
    "Evaluation",
    "FeatureSettings",
    "FoldedTable",
    "Found",
    "InjectAttention",
    "InversionSettings",
    "Majority",
    "MaskClip",
    "Modulate",
    "Modulation",
    "ModulationSettings",
    "Naming",
    "Noise",
    "Predictions",
    "ProbeModel",
    "ProbedImage",
    "Readout",
    "Reference",
    "Replace",
    "ResponseAtlas",
    "Scale",
    "ScoreMap",
    "Segmentation",
    "Site",
    "Supervised",
    "TrainConfig",
    "Trajectory",
    "Vocabulary",
    "WordAttention",
    "Words",
    "assign",
    "attention",
    "calibrate",
    "calibration_figure",
    "capture",
    "capture_replayed",
    "class_figure",
    "cluster",
    "colour_labels",
    "compare",
    "confusion_figure",
    "contact_sheet",
    "contours",
    "counterfactual_pair",
    "criterion_figure",
    "denoise",
    "difference_figure",
    "difference_map",
    "difference_maps",
    "draw_clip",
    "draw_scene",
    "draw_segments",
    "explore_layers",
    "explore_modulation",
    "explore_segmentation",
    "explore_study",
    "find",
    "find_feature_sites",
    "find_method",
    "find_methods",
    "find_site",
    "forest_figure",
    "generate",
    "heatmap",
    "invert",
    "list_sites",
    "load_clip",
    "load_image",
    "load_model",
    "majority_confusion",
    "make_report",
    "make_study",
    "mask_embeddings",
    "mean_iou",
    "modulated_images",
    "one_hot_masks",
    "open_data",
    "pca_view",
    "read_result",
    "report_figure",
    "resolve_modulation",
    "response_atlas",
    "run_evaluation",
    "run_study",
    "segment",
    "segment_all",
    "segmentation_figure",
    "sites_figure",
    "static_pictures",
    "study_figure",
    "to_pixels",
    "train",
    "upsampled",
    "write_names",
    "write_result",
]

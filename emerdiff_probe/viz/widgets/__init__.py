"""Explorers for notebooks, each opened in one line: they ask the library and show what it answers."""

from emerdiff_probe.viz.widgets.comparison import compare
from emerdiff_probe.viz.widgets.layers import explore_layers
from emerdiff_probe.viz.widgets.modulation import explore_modulation
from emerdiff_probe.viz.widgets.segmentation import explore_segmentation
from emerdiff_probe.viz.widgets.study import explore_study

__all__ = ["compare", "explore_layers", "explore_modulation", "explore_segmentation", "explore_study"]

"""Patching: what the metric is with parts of one run put into another, by sites, by edges between components, and along paths."""

from ._activation_patch import activation_patch as activation_patch
from ._edge_attribution import edge_attribution as edge_attribution
from ._exact_edges import exact_edges as exact_edges
from ._greedy_search import greedy_search as greedy_search
from ._head_patterns import head_patterns as head_patterns
from ._patch_edges import patch_edges as patch_edges
from ._patched_metrics import PatchedMetrics as PatchedMetrics
from ._path_patch import path_patch as path_patch
from ._search import GreedySearch as GreedySearch, Step as Step
from ._train_masks import train_masks as train_masks
from ._trained_masks import TrainedMasks as TrainedMasks

"""Patching: what the metric is with parts of one run put into another, by sites, by edges between components, and along paths."""

from ._activation_patch import activation_patch as activation_patch
from ._edge_attribution import edge_attribution as edge_attribution
from ._head_patterns import head_patterns as head_patterns
from ._patch_edges import patch_edges as patch_edges
from ._patched_metrics import PatchedMetrics as PatchedMetrics
from ._path_patch import path_patch as path_patch

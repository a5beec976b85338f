"""Patching: what the metric is with parts of one run put into another, by sites, by edges between components, and along paths."""

from ._edge_attribution import edge_attribution as edge_attribution
from ._patch_edges import patch_edges as patch_edges
from ._path_patch import path_patch as path_patch

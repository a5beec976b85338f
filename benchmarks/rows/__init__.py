"""The rows of the table, registered by name."""

from . import (
    _edges as _edges,
    _features as _features,
    _full as _full,
    _latents as _latents,
    _lens as _lens,
    _node_edges as _node_edges,
    _patching as _patching,
    _path_patching as _path_patching,
    _scrubbing as _scrubbing,
    _self_repair as _self_repair,
    _sparse_circuits as _sparse_circuits,
    _whole_graph as _whole_graph,
)

"""The benchmark's PyTorch files of edge scores: plain tensors by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._files import read_torch
from ._benchmark_names import config_of, graph_of, receiver_names, sender_names
from ._edge_scores import EdgeScores
from ._prune import nodes_in, pruned


_TENSORS = ("edges_scores", "edges_in_graph", "nodes_in_graph")


def to_tensors(scores: EdgeScores, path: Path) -> None:
    """Writes float32 scores and booleans. **Raises:** `ImportError` without PyTorch."""
    try:
        import torch
    except ImportError:
        raise ImportError(
            "A .pt file is written by PyTorch: pip install 'jaxcirc[torch]'. A .json file needs none."
        ) from None
    graph = scores.graph
    held = {
        "cfg": config_of(graph, scores.d_model),
        "src_nodes": sender_names(graph),
        "dst_nodes": receiver_names(graph),
        "edges_scores": torch.tensor(np.nan_to_num(scores.scores), dtype=torch.float32),
        "edges_in_graph": torch.tensor(scores.kept),
        "nodes_in_graph": torch.tensor(nodes_in(pruned(scores.kept, graph.reads))),
    }
    if not np.isnan(scores.node_scores).all():
        held["nodes_scores"] = torch.tensor(scores.node_scores, dtype=torch.float32)
    torch.save(held, path)


def parse_tensors(path: Path) -> EdgeScores:
    """Reads such a file. **Raises:** `ValueError` as `load_scores`; `ImportError` without PyTorch."""
    held = read_torch(path)
    names = ("cfg", "src_nodes", "dst_nodes", *_TENSORS)
    missing = [name for name in names if name not in held] if isinstance(held, Mapping) else None
    if not isinstance(held, Mapping) or missing:
        lacks = f" (it lacks {', '.join(missing)})" if missing else ""
        raise ValueError(f"{path} is not a file of edge scores{lacks}. Expected a dict with {', '.join(names)}.")
    if "neurons_in_graph" in held or "neurons_scores" in held:
        raise ValueError(f"{path} has scores of single neurons. Give one of edges, or of nodes.")
    graph, d_model = graph_of(held["cfg"], path)
    for name, ours in (("src_nodes", sender_names(graph)), ("dst_nodes", receiver_names(graph))):
        if list(held[name]) != ours:
            differ = next(
                (pair for pair in zip(held[name], ours, strict=False) if pair[0] != pair[1]),
                (len(held[name]), len(ours)),
            )
            raise ValueError(
                f"{path}: {name} are not those of the model of its cfg: {differ[0]} where {differ[1]} was expected."
            )
    n_senders, shape = len(graph.senders), graph.edges.shape
    scores, kept = (_array(held, name, shape, path) for name in ("edges_scores", "edges_in_graph"))
    # Where whole nodes were chosen, cells of these tensors are set at which there is no edge.
    of_nodes = (
        _array(held, "nodes_scores", (n_senders,), path) if "nodes_scores" in held else np.full(n_senders, np.nan)
    )
    return EdgeScores(
        graph,
        d_model,
        np.where(graph.edges, scores.astype(np.float64), 0),
        kept.astype(bool) & graph.edges,
        of_nodes.astype(np.float64),
    )


def _array(held: Mapping[str, Any], name: str, shape: tuple[int, ...], path: Path) -> np.ndarray:
    import torch

    value = held[name]
    if not isinstance(value, torch.Tensor) or tuple(value.shape) != shape:
        got = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise ValueError(f"{path}: {name}: expected a tensor {list(shape)}, got {got}.")
    return (value if value.dtype == torch.bool else value.float()).numpy()

"""Circuits of several sizes, chosen by scores or given."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ..graph import ComponentGraph
from ._given import By, check_mask_of, check_node_scores, check_scores, check_sizes, count_of, How
from ._prune import pruned
from ._select import select_edges


class Circuits(NamedTuple):
    """Circuits of increasing size: how many edges each had when it was chosen, and the edges without those that lead nowhere."""

    sizes: Float[np.ndarray, " size"]
    edges: Int[np.ndarray, " size"]
    masks: Bool[np.ndarray, "size sender receiver"]


def by_scores(verb: str, graph: ComponentGraph, scores: Any, sizes: Any, by: By, how: How) -> Circuits:
    """Chooses circuits by scores of edges or of senders. **Raises:** `ValueError` as `select_edges`."""
    shares, of_senders = check_sizes(f"{verb}: sizes", sizes), np.ndim(scores) == 1
    check = check_node_scores if of_senders else check_scores
    found, there_are = check(f"{verb}: scores", graph, scores), len(graph.senders) if of_senders else graph.n_edges
    masks = [select_edges(graph, found, count_of(share, there_are), by=by, how=how) for share in shares]
    return _pruned(graph, shares, masks)


def as_given(verb: str, graph: ComponentGraph, masks: Any, sizes: Any) -> Circuits:
    """Takes circuits as they are, one for each size. **Raises:** `ValueError` for one that is larger than its size."""
    shares, given = check_sizes(f"{verb}: sizes", sizes), np.asarray(masks)
    if len(given) != len(shares):
        raise ValueError(
            f"{verb}: {len(given)} circuits were given, and {len(shares)} sizes. Pass the share of edges that each stands for."
        )
    checked = [check_mask_of(f"{verb}: scores", graph, mask) for mask in given]
    for share, mask in zip(shares, checked, strict=True):
        if mask.sum() > share * graph.n_edges:
            raise ValueError(
                f"{verb}: a circuit has {int(mask.sum())} edges, more than {share:g} of the graph's {graph.n_edges}, the size that it "
                "stands for. Leave edges out, or pass another size."
            )
    return _pruned(graph, shares, checked)


def _pruned(graph: ComponentGraph, shares: np.ndarray, masks: list[np.ndarray]) -> Circuits:
    reads = graph.reads
    return Circuits(shares, np.array([int(mask.sum()) for mask in masks]), np.array([pruned(m, reads) for m in masks]))

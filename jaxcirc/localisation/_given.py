"""What the verbs here are given, checked: a graph without positions, scores and masks of it, and sizes."""

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from .._checks import check_choice, check_count, check_kind, check_numbers, check_share
from ..graph import ComponentGraph
from ..graph._masks import check_mask


By = Literal["signed", "absolute"]
How = Literal["best", "greedy"]
SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The sizes of circuits in the benchmark, as shares of all edges."""


def check_graph(verb: str, graph: Any) -> None:
    """Raises unless it is a graph whose edges are of senders and receivers alone."""
    check_kind(f"{verb}: graph", graph, ComponentGraph, "a graph as jc.component_graph gives")
    if graph.n_positions is not None:
        raise ValueError(f"{verb}: the graph has edges at each position apart. Make it without positions.")


def check_scores(name: str, graph: ComponentGraph, scores: Any) -> Float[np.ndarray, "sender receiver"]:
    """Gives scores of edges as an array, 0 where there is no edge. **Raises:** `ValueError` for another shape, or NaN at an edge."""
    found = _numbers(name, scores)
    if found.shape != graph.edges.shape:
        senders, receivers = graph.edges.shape
        raise ValueError(
            f"{name}: the graph has {senders} senders and {receivers} receivers, and the scores are {list(found.shape)}. Give scores "
            "[sender receiver] of this graph, averaged over prompts, or pass the graph that they are of."
        )
    missing = np.isnan(found) & graph.edges
    if missing.any():
        raise ValueError(
            f"{name}: {int(missing.sum())} of {graph.n_edges} edges are not scored (NaN), such as "
            f"{graph.edge_names(missing)[0]}. Give each edge a number, 0 where nothing is known."
        )
    return np.where(graph.edges, found, 0)


def check_node_scores(name: str, graph: ComponentGraph, scores: Any) -> Float[np.ndarray, " sender"]:
    """Gives scores of senders as an array. **Raises:** `ValueError` for another number of them, or NaN."""
    found = _numbers(name, scores)
    if found.shape != (len(graph.senders),):
        raise ValueError(
            f"{name}: the graph has {len(graph.senders)} senders, and the scores are {list(found.shape)}. Give one number a sender."
        )
    if np.isnan(found).any():
        raise ValueError(
            f"{name}: {int(np.isnan(found).sum())} of {len(found)} senders are not scored (NaN), such as "
            f"{graph.senders[int(np.isnan(found).argmax())]}. Give each a number."
        )
    return found


def check_mask_of(name: str, graph: ComponentGraph, mask: Any) -> Bool[np.ndarray, "sender receiver"]:
    """Gives a mask as an array. **Raises:** `ValueError` for another shape, or for what is kept where there is no edge."""
    return check_mask(name, mask, graph.named)


def check_ranking(verb: str, by: str, how: str) -> None:
    check_choice(f"{verb}: by", by, ("signed", "absolute"))
    check_choice(f"{verb}: how", how, ("best", "greedy"))


def check_sizes(name: str, sizes: Sequence[float]) -> Float[np.ndarray, " size"]:
    """Gives sizes as an array. **Raises:** `ValueError` unless there are two or more, increasing, each a share."""
    found = check_numbers(name, sizes)
    for size in found:
        check_share(name, "edges", size)
    if len(found) < 2 or any(a >= b for a, b in itertools.pairwise(found)):
        raise ValueError(
            f"{name}: expected two or more shares of the edges, each larger than the one before, got {sizes!r}."
        )
    return np.array(found)


def check_size(verb: str, what: str, size: Any, there_are: int) -> int:
    """Gives how many of them `size` is, a number of them or a share. **Raises:** `ValueError` for more than there are."""
    if isinstance(size, float | np.floating):
        check_share(f"{verb}: size", what, size)
        return count_of(float(size), there_are)
    check_count(f"{verb}: size", what, size, least=0)
    if size > there_are:
        raise ValueError(f"{verb}: size: the graph has {there_are} {what}, got {size}. Ask for that many or fewer.")
    return int(size)


def count_of(share: float, there_are: int) -> int:
    """How many a share of them is, rounded down as the benchmark does: in floating point, so that .001 of 32,491 is 32."""
    return int(share * there_are)


def _numbers(name: str, scores: Any) -> np.ndarray:
    found = np.asarray(scores)
    if found.dtype == bool or not np.issubdtype(found.dtype, np.number):
        raise TypeError(f"{name}: expected numbers, a score for each, got dtype {found.dtype}.")
    return found.astype(np.float64)

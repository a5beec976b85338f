"""The edges of a circuit, chosen by their scores."""

import heapq

import numpy as np
from jaxtyping import Array, Bool, Float

from ..graph import ComponentGraph
from ._given import By, check_graph, check_node_scores, check_ranking, check_scores, check_size, How


def select_edges(
    graph: ComponentGraph,
    scores: Float[Array | np.ndarray, "sender receiver"] | Float[Array | np.ndarray, " sender"],
    size: int | float,
    *,
    by: By = "signed",
    how: How = "best",
) -> Bool[np.ndarray, "sender receiver"]:
    """Chooses as many edges as asked for, those with the largest scores.

    Among equal scores the first in the graph's order is taken. Some of the edges may lead nowhere: `jc.localisation.prune` drops those.

    **Arguments:**

    - `scores` `[sender receiver]`: of edges. `[sender]`: of senders, of which each that is chosen comes with all edges out of it.
    - `size`: how many edges, or senders; a float is a share of them, rounded down.
    - `by`: the score itself, `"signed"`, so that edges that hurt are left out, or its size, `"absolute"`.
    - `how`: the `"best"` anywhere, or `"greedy"`, from the logits backwards: always the best edge into what is in the circuit already.

    **Returns:** a mask of edges.

    **Raises:** `ValueError` for scores of another graph, NaN among them, or more edges than there are; for senders chosen greedily.

    >>> graph = jc.component_graph(model)
    >>> scores = np.random.default_rng(0).normal(size=graph.edges.shape)
    >>> int(jc.localisation.select_edges(graph, scores, 0.02).sum())
    9

    **Reference:** Mueller et al. 2025, arXiv 2504.13151; greedily, Ferrando and Voita 2024, arXiv 2403.00824.
    """
    check_graph("select_edges", graph)
    check_ranking("select_edges", by, how)
    if np.ndim(scores) == 1:
        if how == "greedy":
            raise ValueError(
                "select_edges: greedy selection goes along edges, and these are scores of senders. Rank them with how='best'."
            )
        of_senders = check_node_scores("select_edges: scores", graph, scores)
        count = check_size("select_edges", "senders", size, len(of_senders))
    else:
        of_edges = check_scores("select_edges: scores", graph, scores)
        count = check_size("select_edges", "edges", size, graph.n_edges)
        return chosen(graph, strength(of_edges, by), count, how)
    return graph.edges & np.isin(np.arange(len(of_senders)), best(strength(of_senders, by), count))[:, None]


def chosen(
    graph: ComponentGraph, strength: Float[np.ndarray, "sender receiver"], count: int, how: How
) -> Bool[np.ndarray, "sender receiver"]:
    """Chooses the `count` strongest edges."""
    if how == "greedy":
        return _greedy(graph, strength, count)
    kept = np.zeros(graph.edges.shape, bool)
    at = np.argwhere(graph.edges)[best(strength[graph.edges], count)]
    kept[tuple(at.T)] = True
    return kept


def strength(scores: Float[np.ndarray, "*shape"], by: By) -> Float[np.ndarray, "*shape"]:
    """By what scores are ranked."""
    return np.abs(scores) if by == "absolute" else scores


def best(strength: Float[np.ndarray, " item"], count: int) -> np.ndarray:
    """The places of the `count` largest, the earlier of two that are equal."""
    return np.argsort(-strength, kind="stable")[:count]


def _greedy(
    graph: ComponentGraph, strength: Float[np.ndarray, "sender receiver"], count: int
) -> Bool[np.ndarray, "sender receiver"]:
    """Takes the strongest edge into the circuit so far, time after time, beginning with the logits alone."""
    kept, reads = np.zeros(graph.edges.shape, bool), graph.reads
    reached = ~reads.any(0)  # receivers that no component is behind: the logits
    frontier: list[tuple[float, int, int]] = []

    def reach(receivers: np.ndarray) -> None:
        for j in receivers:
            for i in np.flatnonzero(graph.edges[:, j]):
                heapq.heappush(frontier, (-float(strength[i, j]), int(i), int(j)))

    reach(np.flatnonzero(reached))
    for _ in range(count):
        _, i, j = heapq.heappop(frontier)
        kept[i, j] = True
        new = reads[i] & ~reached
        reached |= new
        reach(np.flatnonzero(new))
    return kept

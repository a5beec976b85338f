"""How well scores tell the edges of a known circuit from the others."""

import dataclasses
import math
from typing import Literal

import numpy as np
from jaxtyping import Array, Bool, Float

from .._checks import check_choice
from ..graph import ComponentGraph
from ._areas import area
from ._given import By, check_graph, check_mask_of, check_ranking, check_scores, SIZES
from ._prune import pruned
from ._select import chosen, strength


@dataclasses.dataclass(frozen=True, eq=False)
class ROC:
    """The receiver operating characteristic: of the true edges, and of the others, the shares that are found, for ever more edges.

    **Attributes:** - `false`, `true` `[point]`: the false and the true positive rate. - `area`: under the curve; 1 if all true edges come
    first, 0.5 by chance.
    """

    false: Float[np.ndarray, " point"]
    true: Float[np.ndarray, " point"]

    @property
    def area(self) -> float:
        # The benchmark's curve need not end at 1: it is stretched to.
        return float(area(self.false / self.false[-1], self.true)) if self.false[-1] else math.nan


def roc(
    graph: ComponentGraph,
    scores: Float[Array | np.ndarray, "sender receiver"],
    truth: Bool[Array | np.ndarray, "sender receiver"],
    *,
    by: By = "absolute",
    points: Literal["all", "benchmark"] = "all",
) -> ROC:
    """How well scores tell the edges of a known circuit from all others.

    **Arguments:**

    - `scores` `[sender receiver]`: the larger, the more an edge belongs to the circuit. - `truth` `[sender receiver]`: its edges.
    - `by`: the score itself, `"signed"`, or its size, `"absolute"`.
    - `points`: with `"all"` the curve goes through every score, and its area is the probability that a true edge is before a false one, of
      which equal scores are half. With `"benchmark"` it is that of Mueller et al.: circuits of the ten sizes are found greedily from the
      logits, and pruned; the curve begins at the smallest of them, not at 0, so that an area below 0.5 can be better than chance; and it is
      stretched to end at 1. Sizes are rounded up there. (Their program counts an edge that a score file lacks as found. Files here have
      every edge.)

    **Returns:** `ROC`, its `area` the AUROC.

    **Raises:** `ValueError` for scores or a truth of another graph, NaN, or a truth that has no edge, or all of them.

    >>> graph = jc.component_graph(model)
    >>> truth = graph.mask(["embed->m0", "m0->logits"])
    >>> jc.localisation.roc(graph, truth.astype(float), truth).area
    1.0

    **Reference:** Mueller et al. 2025, arXiv 2504.13151.
    """
    check_graph("roc", graph)
    check_ranking("roc", by, "best")
    check_choice("roc: points", points, ("all", "benchmark"))
    found = strength(check_scores("roc: scores", graph, scores), by)
    known = check_mask_of("roc: truth", graph, truth)
    if not 0 < known.sum() < graph.n_edges:
        raise ValueError(
            f"roc: truth has {int(known.sum())} of {graph.n_edges} edges. Expected some edges in the circuit and some outside."
        )
    return _at_each_score(found[graph.edges], known[graph.edges]) if points == "all" else _at_sizes(graph, found, known)


def _at_each_score(scores: Float[np.ndarray, " edge"], truth: Bool[np.ndarray, " edge"]) -> ROC:
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # of edges with the same score
    true, found = np.cumsum(truth[order])[last], np.flatnonzero(last) + 1
    rate = lambda counts: np.concatenate([[0.0], counts / counts[-1]])
    return ROC(rate(found - true), rate(true))


def _at_sizes(
    graph: ComponentGraph, strength: Float[np.ndarray, "sender receiver"], truth: Bool[np.ndarray, "sender receiver"]
) -> ROC:
    counts, reads = [math.ceil(size * graph.n_edges) for size in SIZES], graph.reads
    circuits = [pruned(chosen(graph, strength, count, "greedy"), reads) for count in counts]
    n_true = int(truth.sum())
    true = np.array([int((kept & truth).sum()) for kept in circuits]) / n_true
    false = np.array([int((kept & ~truth).sum()) for kept in circuits]) / (graph.n_edges - n_true)
    return ROC(false, true)

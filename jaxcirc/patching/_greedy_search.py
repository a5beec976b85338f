"""The greedy search for a circuit: edge by edge from the logits back, each removed for good if little changes."""

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_choice, check_threshold
from .._metrics import Metric
from .._traced import check_untraced
from .._typing import Progress
from ..components import AbstractAblation
from ..graph import ComponentGraph
from ..models import Transformer
from ..runs import prepare_prompts
from ._common import check_carried, given_budget, graph_for, others_of
from ._search import GreedySearch, Step
from ._search_runs import SearchRuns


Order = Literal["last", "first"]


def greedy_search(
    model: Transformer,
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"] | None,
    metric: Metric,
    *,
    threshold: float,
    graph: ComponentGraph | None = None,
    ablation: AbstractAblation | None = None,
    order: Order | Float[Array | np.ndarray, "..."] = "last",
    absolute: bool = False,
    mask: Bool[Array, "batch seq"] | None = None,
    budget: int | None = None,
    progress: Progress | None = None,
) -> GreedySearch:
    r"""Removes edges of the component graph one after the other, as long as the metric hardly changes (ACDC).

    Receivers are visited from the logits back, and at each the edges into it. With $m$ the metric's mean over the prompts in the run in
    which all edges removed so far carry the corrupt prompt, and $m'$ that without this edge, too, it is removed for good if
    $m' - m < threshold$. So the metric is one that grows as a circuit gets worse, such as `jc.KL`; of one that may move either way, such as
    `jc.LogitDiff`, take the size of the change.

    An edge is one run from its receiver's layer on, where all before is the clean run. Edges into one receiver are run ahead several at
    once, each as if all before it were removed; behind the first that is not, what was run ahead is thrown away, so that the outcome is
    that of one at a time. Edges into a component of which no edge is left, and those that carry the same in both runs, change nothing and
    take no run. What no edge leads to any more may be left; `jc.localisation.prune` drops it, where
    the graph has no positions.

    **Arguments:**

    - `threshold`: how much an edge may change the metric and yet be removed, in its units.
    - `absolute`: whether it is the size of the change that is compared.
    - `graph`, `ablation`: as in `jc.patch_edges`; of its conventions this is `"tree"`. With positions each edge is removed at each position
      by itself.
    - `order`: of the edges into a receiver: from the `"last"` sender, or from the `"first"`; or scores `[sender receiver]`, as
      `jc.edge_attribution` gives them for a prompt, and those of the smallest size come first.
    - `mask` `[batch seq]`: False for padding. - `budget`: bytes that variants which are run at once may take,
      unless given those that suit the device; the clean and the corrupt run of all prompts are kept beside them.
    - `progress(done, of, stage)` is called on the way.

    **Returns:** `GreedySearch`: the edges kept, and what was tried in order.

    **Raises:** `ValueError` as `jc.patch_edges`, for a threshold below 0, and for scores of another shape.

    >>> prompts = jc.data.ioi(tokenizer, 2, seed=0)
    >>> found = jc.patching.greedy_search(
    ...     model, prompts.clean, prompts.corrupt, prompts.metric(), threshold=0.1, absolute=True
    ... )
    >>> int(found.kept.sum()) < found.graph.n_edges, len(found.steps) == found.graph.n_edges
    (True, True)

    **Reference:** Conmy et al. 2023, arXiv 2304.14997, algorithm 1. Their graph has an edge more for each query, key and value, from its
    input to it.
    """
    who = "greedy_search"
    check_untraced(who, model)
    check_carried(who, corrupt, ablation)
    budget = given_budget(who, budget)
    check_threshold(f"{who}: threshold", threshold)
    if isinstance(order, str):
        check_choice(f"{who}: order", order, ("last", "first"))
    problem = prepare_prompts(model, clean, corrupt, metric, mask)
    model, graph = graph_for(who, model, graph, int(problem.length))
    ranks = _ranks(who, graph, order)
    runs = SearchRuns(model, graph, problem, others_of(model, graph, problem, ablation), budget)
    accepts = lambda now, before: bool((abs(now - before) if absolute else now - before) < threshold)
    kept, current, steps = graph.edges.copy(), runs.start, []
    for receiver in reversed(range(len(graph.receivers))):
        edges = _edges_into(graph, receiver, ranks)
        for step in _tried(runs, kept, edges, receiver, current, accepts):
            steps.append(step)
            current = step.after
        if progress is not None:
            progress(len(steps), graph.n_edges, "greedy search")
    return GreedySearch(graph, kept, runs.start, tuple(steps), runs.count)


def _tried(
    runs: SearchRuns,
    kept: Bool[np.ndarray, "*position sender receiver"],
    edges: list[tuple[int, ...]],
    receiver: int,
    current: float,
    accepts: Callable[[float, float], bool],
) -> Iterator[Step]:
    """Tries the edges into a receiver in order, and yields what came of each; those removed are taken from `kept`."""
    silent, number = runs.is_dead(kept, receiver), 0
    while number < len(edges):
        some = edges[number:]
        alone = silent or not runs.carries(some[0])
        found = [current] if alone else runs.removed_in_turn(kept, some, receiver)
        all_removed = True
        for edge, without in zip(some, found, strict=False):
            all_removed = accepts(without, current)
            yield Step(edge, current, without, all_removed)
            number += 1
            if not all_removed:
                break
            kept[edge], current = False, without
        if not alone:
            runs.adapt(all_removed=all_removed)


def _edges_into(
    graph: ComponentGraph, receiver: int, ranks: Float[np.ndarray, "*position sender receiver"]
) -> list[tuple[int, ...]]:
    """The edges into a receiver in the order in which they are tried; of one rank, in that of the graph."""
    places = np.argwhere(graph.edges[..., receiver])
    by_rank = np.argsort(ranks[..., receiver][tuple(places.T)], kind="stable")
    return [(*map(int, places[number]), receiver) for number in by_rank]


def _ranks(who: str, graph: ComponentGraph, order: object) -> Float[np.ndarray, "*position sender receiver"]:
    """Numbers of edges: the least is tried first."""
    if isinstance(order, str):
        numbers = np.arange(len(graph.senders), dtype=float) * (-1 if order == "last" else 1)
        return np.broadcast_to(numbers[:, None], graph.edges.shape)
    scores = np.asarray(order)
    if scores.shape != graph.edges.shape:
        raise ValueError(
            f"{who}: order is 'last', 'first' or scores {graph.axes}, here {graph.edges.shape}; got shape {scores.shape}. Take the mean "
            "over prompts: scores.mean(0)."
        )
    if not np.issubdtype(scores.dtype, np.number):
        raise TypeError(f"{who}: order is 'last', 'first' or scores, which are numbers; got dtype {scores.dtype}.")
    if not np.isfinite(scores).all():
        raise ValueError(f"{who}: order holds NaN or infinity, so that edges have no order. Give finite scores.")
    return np.abs(scores)

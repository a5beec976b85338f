r"""Influence of nodes on what a graph explains, and what of a graph is kept by it.

Rows are normalised by their absolute sums, $\hat A_{ts} = |A_{ts}| / \sum_{s'} |A_{ts'}|$, and a node's influence is that of all paths from
it to the outputs, of any length,

$$\text{infl}_s = \sum_{k \ge 1} (w \hat A^k)_s,$$

with $w$ the outputs' probabilities. Rows of nodes that only write are zero and not held: `rows` `[target node]`, and `targets` `[target]`
says which node each row is of.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ._table import ERROR, LATENT, LOGIT, POSITION, Table, TOKEN


LEAST = 1e-10  # an absolute sum of a row below which it is taken for zero
LONGEST = 1000  # edges of a path
Rows = Float[np.ndarray, "target node"]


class Scores(NamedTuple):
    """How much of a graph goes by what it explains: both between 0 and 1.

    - `replacement`: of the influence of where paths begin, how much is the prompt's (tokens and position embeddings) and not errors'.
    - `completeness`: of the inputs of all nodes, weighed by the nodes' influence, how much is not errors'.
    """

    replacement: float
    completeness: float


class Kept(NamedTuple):
    """What pruning keeps: the numbers of nodes, and `edges`, whether there is one, of the rows of those of them that have one."""

    nodes: Int[np.ndarray, " kept"]
    edges: Bool[np.ndarray, "kept_target kept"]


def absolute_sums(rows: Rows) -> Float[np.ndarray, " target"]:
    """The sum of each row's absolute values; in float64, as of millions of numbers of float32 a sum loses digits."""
    sums = [np.abs(rows[some]).sum(axis=1, dtype=np.float64) for some in _some(rows)]
    return np.maximum(np.concatenate(sums) if sums else np.zeros(0), LEAST)


def _some(rows: Rows) -> Iterator[slice]:
    """Yields slices of rows, a few million numbers each: of all there is never a copy."""
    step = max(1, 2**22 // max(1, rows.shape[1]))
    for begin in range(0, len(rows), step):
        yield slice(begin, begin + step)


def _times_shares(weights: Float[np.ndarray, " target"], rows: Rows, sums: Float[np.ndarray, " target"]):
    """The sum of normalised rows, weighed."""
    total = np.zeros(rows.shape[1])
    for some in _some(rows):
        total += (weights[some] / sums[some]).astype(rows.dtype) @ np.abs(rows[some])
    return total


def influence(
    rows: Rows,
    targets: Int[np.ndarray, " target"],
    weights: Float[np.ndarray, " node"],
    sums: Float[np.ndarray, " target"] | None = None,
) -> Float[np.ndarray, " node"]:
    """The influence of every node, given the outputs' weights; `sums` are the rows' absolute ones, if they are known.

    **Raises:** `ValueError` if there are paths without end.
    """
    sums = absolute_sums(rows) if sums is None else sums
    between = np.abs(rows[:, targets]) / sums[:, None]  # [target target]
    here = total = weights[targets]
    for _ in range(LONGEST):
        here = here @ between
        if not here.any():
            # The last edge of every path leads from a target to any node: one product for all of them.
            return _times_shares(total, rows, sums)
        total = total + here
    raise ValueError(
        f"There are paths of more than {LONGEST} edges: the graph has a cycle, or is not that of a model. Is it damaged?"
    )


def output_weights(table: Table) -> Float[np.ndarray, " node"]:
    """The weights of outputs, 0 elsewhere."""
    return np.where(table.kind == LOGIT, table.probability, 0.0)


def scores(
    rows: Rows, targets: Int[np.ndarray, " target"], table: Table, reached: Float[np.ndarray, " node"]
) -> Scores:
    """The scores of a graph whose nodes have the influence `reached`."""
    prompt = reached[(table.kind == TOKEN) | (table.kind == POSITION)].sum()
    errors = table.kind == ERROR
    missed = reached[errors].sum()
    passing = reached + output_weights(table)
    lost = np.zeros(len(table))
    lost[targets] = np.abs(rows[:, errors]).sum(axis=1, dtype=np.float64) / absolute_sums(rows)
    both = prompt + missed
    return Scores(float(prompt / both) if both else 1.0, float(((1 - lost) * passing).sum() / passing.sum()))


def prune(
    rows: Rows,
    targets: Int[np.ndarray, " target"],
    table: Table,
    reached: Float[np.ndarray, " node"],
    node_threshold: float,
    edge_threshold: float,
) -> Kept:
    """Keeps the nodes, and of the edges between them those, that carry these shares of all influence; then drops nodes that lead nowhere,
    and latents to which nothing leads, until there are none. Tokens and outputs stay; a threshold of 1 keeps all.
    """
    forced = (table.kind == TOKEN) | (table.kind == LOGIT)
    kept = np.ones(len(table), bool)
    if node_threshold < 1:
        kept = forced | (reached >= _least(reached, node_threshold))
    nodes = np.flatnonzero(kept)
    left, table = rows[kept[targets]][:, nodes], table.some(nodes)
    mine = np.searchsorted(nodes, targets[kept[targets]])
    edges = left != 0
    if edge_threshold < 1:
        strength = edge_influence(left, mine, output_weights(table))
        edges &= strength >= _least(strength[edges], edge_threshold)
    if node_threshold < 1 or edge_threshold < 1:
        alive = _drop_dead_ends(edges, mine, table)
        edges, nodes = edges[alive[mine]][:, alive], nodes[alive]
    return Kept(nodes, edges)


def edge_influence(
    rows: Rows, targets: Int[np.ndarray, " target"], weights: Float[np.ndarray, " node"]
) -> Float[np.ndarray, "target node"]:
    """The influence of every edge: its share of its target's inputs, times the influence and the weight of that."""
    sums = absolute_sums(rows)
    passing = (influence(rows, targets, weights, sums) + weights)[targets]
    return np.abs(rows) * (passing / sums)[:, None].astype(rows.dtype)


def _drop_dead_ends(
    edges: Bool[np.ndarray, "target node"], targets: Int[np.ndarray, " target"], table: Table
) -> Bool[np.ndarray, " node"]:
    """Drops the edges of nodes without the edges that they need, in place. **Returns:** which nodes are left."""
    needs_out, needs_in = (table.kind != TOKEN) & (table.kind != LOGIT), table.kind == LATENT
    alive = np.ones(len(table), bool)
    while True:
        has_in = np.zeros(len(alive), bool)
        has_in[targets] = edges.any(axis=1)
        dead = alive & ((needs_out & ~edges.any(axis=0)) | (needs_in & ~has_in))
        if not dead.any():
            return alive
        alive &= ~dead
        edges[dead[targets]] = False
        edges[:, dead] = False


def _least(values: Float[np.ndarray, " value"], share: float) -> float:
    """The value from which on the larger ones make up this share of the sum."""
    if not len(values):
        return 0.0
    falling = np.sort(values)[::-1]
    reached = np.cumsum(falling, dtype=np.float64)
    at = np.searchsorted(reached, share * reached[-1])
    return float(falling[min(int(at), len(falling) - 1)])

"""Effects averaged over prompts, a batch at a time."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._sites import Site
from ..attribution import (
    AbstractMethod,
    direct_to_metric,
    IntegratedGradients,
    iterate_edges,
    Problem,
    states,
    wiring,
)
from ..models import Transformer


if TYPE_CHECKING:
    import scipy.sparse

Progress = Callable[[int, int, str], None]


class Batch(NamedTuple):
    """Prompts of one size: the last batch is filled up with copies, which weigh nothing."""

    problem: Problem
    weights: Float[np.ndarray, " batch"]


def batches_of(problem: Problem, size: int) -> Iterator[Batch]:
    n = problem.clean.shape[0]
    for start in range(0, n, size):
        rows = np.minimum(np.arange(start, start + size), n - 1)
        part = jax.tree.map(
            lambda x, rows=rows: x[rows], (problem.clean, problem.corrupt, problem.metric, problem.mask)
        )
        yield Batch(Problem(problem.saes, *part), (np.arange(start, start + size) < n) / n)


def mean_effects(
    model: Transformer,
    problem: Problem,
    batches: list[Batch],
    method: AbstractMethod,
    aggregate: str,
    report: Progress,
) -> tuple[dict[Site, np.ndarray], list[dict[Site, np.ndarray]], dict[str, float]]:
    """Mean effects `[node]` or `[seq node]` at each site, the gradients of each batch, and the mean metric and its change."""
    effects: dict[Site, np.ndarray] = {}
    gradients, clean, total = [], 0.0, 0.0
    for i, batch in enumerate(batches):
        report(i, len(batches), "nodes")
        at = states(model, problem.saes, batch.problem.clean, batch.problem.corrupt, batch.problem.mask)
        found = method.effects(model, problem.saes, batch.problem.clean, batch.problem.metric, at)
        _check_finite(found.clean, found.total)
        for site in problem.saes:
            mean = np.einsum("b,bsn->sn", batch.weights, np.asarray(found.nodes(site), np.float64))
            effects[site] = effects.get(site, 0.0) + (mean.sum(0) if aggregate == "sum" else mean)
        clean += float(batch.weights @ np.asarray(found.clean))
        total += float(batch.weights @ np.asarray(found.total))
        gradients.append(jax.tree.map(np.asarray, found.gradient))
    report(len(batches), len(batches), "nodes")
    return effects, gradients, {"clean_metric": clean, "total_effect": total}


def mean_edges(
    model: Transformer,
    problem: Problem,
    batches: list[Batch],
    gradients: list[dict[Site, np.ndarray]],
    kept: dict[Site, np.ndarray],
    aggregate: str,
    path: IntegratedGradients | None,
    report: Progress,
) -> "dict[tuple[Site, Site | None], scipy.sparse.csr_array]":
    """Mean edge weights between all nodes of each pair of sites, `[target source]`; target `None` is the metric."""
    import scipy.sparse  # a third of a second, which `import jaxcirc` need not take

    shape = problem.mask.shape[1]
    seq = 1 if aggregate == "sum" else shape
    sums: dict[tuple[Site, Site | None], scipy.sparse.csr_array] = {}

    def add(source: Site, target: Site | None, rows, columns, values):
        size = (1 if target is None else seq * (problem.saes[target].d_sae + 1), seq * (problem.saes[source].d_sae + 1))
        part = scipy.sparse.coo_array((values.astype(np.float64), (rows, columns)), shape=size).tocsr()
        sums[source, target] = sums[source, target] + part if (source, target) in sums else part

    def number(site: Site, index):
        """The number of a node instance among the nodes of its site."""
        return index[:, 2] + (0 if aggregate == "sum" else index[:, 1] * (problem.saes[site].d_sae + 1))

    wires = len(wiring(model, problem.saes))
    for i, (batch, gradient) in enumerate(zip(batches, gradients, strict=True)):
        at = states(model, problem.saes, batch.problem.clean, batch.problem.corrupt, batch.problem.mask)
        weights = batch.weights
        gradient = jax.tree.map(jnp.asarray, gradient)
        used = {
            site: (weights > 0)[:, None, None] & np.broadcast_to(mask, (shape, mask.shape[-1]))
            for site, mask in kept.items()
        }
        done = 0
        seen = set()
        chosen = used.__getitem__
        for wire, targets, sources, values in iterate_edges(
            model, batch.problem, at, gradient, targets=chosen, sources=chosen, path=path
        ):
            if wire not in seen:
                report(i * wires + done, len(batches) * wires, "edges")
                seen.add(wire)
                done += 1
            add(
                wire.source,
                wire.target,
                number(wire.target, targets),
                number(wire.source, sources),
                values * weights[targets[:, 0]],
            )
        for source, values in direct_to_metric(model, batch.problem, at, gradient, path).items():
            values = np.where(used[source], np.asarray(values), 0)
            index = np.argwhere(values)
            add(
                source,
                None,
                np.zeros(len(index), int),
                number(source, index),
                values[tuple(index.T)] * weights[index[:, 0]],
            )
    report(len(batches) * wires, len(batches) * wires, "edges")
    return sums


def _check_finite(clean: Array, total: Array) -> None:
    bad = np.flatnonzero(~np.isfinite(np.asarray(clean)) | ~np.isfinite(np.asarray(total)))
    if len(bad):
        raise ValueError(
            f"discover: the metric is not finite on prompt {int(bad[0])}: {float(clean[bad[0]])} on the clean run."
        )

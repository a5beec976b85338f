"""Effects averaged over prompts in two passes: the nodes of every batch and then, when it is known which matter, the edges of every batch.

What is held between the batches does not grow with their number, but for what the second pass needs of the first, the gradients: they
are kept while they fit into `KEEP` bytes of the host's memory, and found again where they do not.
"""

from typing import NamedTuple, TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Bool, Int

from .._sites import Site
from .._typing import Progress
from ..attribution import (
    AbstractMethod,
    direct_to_metric,
    IntegratedGradients,
    iterate_edges,
    NodeEffects,
    States,
    states,
)
from ..graph import reaches_output, wiring
from ..models import Transformer
from ..runs import lengthened, Problem
from ..saes import AbstractDictionary
from ._batches import Batch, Source


if TYPE_CHECKING:
    import scipy.sparse

KEEP = 2**31


class Averaging(NamedTuple):
    """How effects become a circuit's numbers.

    **Attributes:** - `method`: of the nodes. - `path`: of the edges, if they are integrated. - `summed`: over positions. -
    `instances_above`: an instance of a node is a target if its own effect is above this; `None` for every instance of a kept node.
    """

    method: AbstractMethod
    path: IntegratedGradients | None
    summed: bool
    instances_above: float | None


class Memory(NamedTuple):
    """What the edges of a batch need of its nodes: gradients, and which instances are above the threshold, if that is asked."""

    gradients: dict[Site, np.ndarray]
    instances: dict[Site, Int[np.ndarray, "n 3"]]

    def nbytes(self) -> int:
        return sum(array.nbytes for part in self for array in part.values())


class NodeMeans(NamedTuple):
    """The first pass.

    **Attributes:** - `effects[site]`: mean effects, `[node]` or `[seq node]`. - `clean`, `total`: the mean metric of the clean prompts
    and its mean change. - `prompts`: how many. - `lengths`: the lengths of the batches. - `paired`: whether there are corrupt prompts. -
    `memory`: of each batch, `None` where it is to be found again. - `saes`: the dictionaries.
    """

    effects: dict[Site, np.ndarray]
    clean: float
    total: float
    prompts: int
    lengths: list[int]
    paired: bool
    memory: list[Memory | None]
    saes: dict[Site, AbstractDictionary]


def mean_effects(model: Transformer, batches: Source[Batch], how: Averaging, report: Progress) -> NodeMeans:
    """The first pass. **Raises:** `ValueError` if a metric is not finite, or if it does not change on any prompt."""
    sums: dict[Site, np.ndarray] = {}
    metrics, memory, room, problem = [], [], KEEP, None
    lengths: set[int] = set()
    for i, (problem, real) in enumerate(batches):
        report(i, len(batches), "nodes")
        length = int(problem.length)
        lengths.add(length)
        _check_positions(problem, lengths, how)
        found = how.method.effects(model, problem, states(model, problem))
        metrics.append(np.stack([np.asarray(x, np.float64)[real] for x in (found.clean, found.total)]))
        _check_finite(metrics)
        for site in problem.saes:
            # [batch] · [batch seq node] -> [seq node]
            part = np.einsum("b,bsn->sn", real, np.asarray(found.nodes(site), np.float64))
            sums[site] = sums.get(site, 0.0) + (part.sum(0) if how.summed else part[:length])
        remembered = _memory(model, problem, found, how)
        memory.append(remembered if remembered.nbytes() <= room else None)
        room -= 0 if memory[-1] is None else remembered.nbytes()
    assert problem is not None
    report(len(batches), len(batches), "nodes")
    clean, total = np.concatenate(metrics, axis=1)
    if not total.any():
        raise ValueError(
            "The metric of every prompt is the same with the corrupt prompt as with the clean one, so there is no effect to explain."
        )
    means = {site: values / len(clean) for site, values in sums.items()}
    paired = problem.corrupt is not None
    return NodeMeans(
        means, float(clean.mean()), float(total.mean()), len(clean), sorted(lengths), paired, memory, dict(problem.saes)
    )


def mean_edges(
    model: Transformer,
    batches: Source[Batch],
    how: Averaging,
    nodes: NodeMeans,
    kept: dict[Site, np.ndarray],
    report: Progress,
) -> "tuple[dict[tuple[Site, Site | None], scipy.sparse.csr_array], list[float]]":
    """The second pass: mean edge weights between the kept nodes of each pair of sites, `[target source]`, with target `None` for the
    metric; and the relative errors of those that were compared with float64.
    """
    import scipy.sparse  # a third of a second, which `import jaxcirc` need not take

    sums: dict[tuple[Site, Site | None], scipy.sparse.csr_array] = {}
    errors: list[float] = []

    def add(source: Site, target: Site | None, rows, columns, values):
        size = (1 if target is None else kept[target].size, kept[source].size)
        part = scipy.sparse.coo_array((values.astype(np.float64), (rows, columns)), shape=size).tocsr()
        sums[source, target] = sums[source, target] + part if (source, target) in sums else part

    def number(site: Site, index):
        """The number of a node instance among the nodes of its site."""
        return index[:, 2] + (0 if how.summed else index[:, 1] * kept[site].shape[-1])

    wires = len(wiring(model, nodes.saes))
    for i, (batch, remembered) in enumerate(zip(batches, nodes.memory, strict=True)):
        problem, at = batch.problem, states(model, batch.problem)
        gradient, sources, targets = _chosen(model, batch, at, how, remembered, kept)
        seen = set()
        for edges in iterate_edges(
            model,
            problem,
            at,
            gradient,
            targets=targets.__getitem__,
            sources=sources.__getitem__,
            path=how.path,
            certify=i == 0,
        ):
            if edges.wire not in seen:
                report(i * wires + len(seen), len(batches) * wires, "edges")
                seen.add(edges.wire)
            source, target = edges.wire.source, edges.wire.target
            targets_at, sources_at, values = edges.coo()
            add(source, target, number(target, targets_at), number(source, sources_at), values)
            errors += [] if edges.error is None else [edges.error]
        for source, values in direct_to_metric(model, problem, at, gradient, how.path).items():
            values = np.where(sources[source], np.asarray(values), 0)
            index = np.argwhere(values)
            add(source, None, np.zeros(len(index), int), number(source, index), values[tuple(index.T)])
    report(len(batches) * wires, len(batches) * wires, "edges")
    return {ends: matrix / nodes.prompts for ends, matrix in sums.items()}, errors


def _memory(model: Transformer, problem: Problem, found: NodeEffects, how: Averaging) -> Memory:
    """Integrated edges have gradients of their own; what they need is that of the nodes with nothing between them and the metric."""
    sites = [site for site, later in reaches_output(model, problem.saes).items() if not later]
    gradients = {site: np.asarray(found.gradient[site]) for site in (problem.saes if how.path is None else sites)}
    if how.instances_above is None:
        return Memory(gradients, {})
    above = {site: np.abs(np.asarray(found.nodes(site))) > how.instances_above for site in problem.saes}
    return Memory(gradients, {site: np.argwhere(mask).astype(np.int32) for site, mask in above.items()})


def _chosen(
    model: Transformer,
    batch: Batch,
    at: States,
    how: Averaging,
    remembered: Memory | None,
    kept: dict[Site, np.ndarray],
) -> tuple[dict, dict[Site, Bool[np.ndarray, "batch seq node"]], dict[Site, Bool[np.ndarray, "batch seq node"]]]:
    """The gradients of a batch, and which instances of nodes are sources of edges and which are targets."""
    problem, real = batch
    if remembered is None:
        found = how.method.effects(model, problem, at)
        remembered = _memory(model, problem, found, how)
    everywhere = lambda mask: np.broadcast_to(mask, (len(real), int(problem.length), mask.shape[-1]))
    seq = problem.clean.shape[1]
    sources = {site: lengthened(real[:, None, None] & everywhere(mask), seq, False) for site, mask in kept.items()}
    if how.instances_above is None:
        return jax.device_put(remembered.gradients), sources, sources
    targets = {site: np.zeros_like(mask) for site, mask in sources.items()}
    for site, index in remembered.instances.items():
        targets[site][tuple(index.T)] = sources[site][tuple(index.T)]
    return jax.device_put(remembered.gradients), sources, targets


def _check_positions(problem: Problem, lengths: set[int], how: Averaging) -> None:
    if how.summed:
        return
    if not problem.given_mask().all():
        raise ValueError(
            "discover: aggregate='none' keeps positions apart, and padded prompts do not align. Use aggregate='sum'."
        )
    if len(lengths) > 1:
        raise ValueError(
            f"discover: aggregate='none' keeps positions apart, and there are prompts of {min(lengths)} and of {max(lengths)} tokens. Use "
            "aggregate='sum'."
        )


def _check_finite(metrics: list[np.ndarray]) -> None:
    bad = np.flatnonzero(~np.isfinite(metrics[-1]).all(axis=0))
    if len(bad):
        before = sum(each.shape[1] for each in metrics[:-1])
        raise ValueError(
            f"discover: the metric is not finite on prompt {before + int(bad[0])}: {metrics[-1][0, bad[0]]} on the clean run."
        )

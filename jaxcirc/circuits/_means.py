"""Effects averaged over prompts in two passes: the nodes of every batch and then, when it is known which matter, the edges of every batch.

What is held between the batches does not grow with their number, but for what the second pass needs of the first: it is kept while it
fits into `KEEP` bytes of the host's memory, and found again where it does not.
"""

from typing import NamedTuple, TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Array, Int

from .._sites import Site
from .._typing import Progress
from ..attribution import (
    AbstractMethod,
    direct_to_metric,
    IntegratedGradients,
    iterate_edges,
    Lists,
    NodeEffects,
    NodeMask,
    nodes_among,
    States,
    states,
)
from ..graph import reaches_output, wiring
from ..models import Transformer
from ..runs import metric_name, Problem
from ..saes import AbstractDictionary
from ._batches import Batch, Source
from ._node_list import NodeList


if TYPE_CHECKING:
    import scipy.sparse

KEEP = 2**31


class Averaging(NamedTuple):
    """How effects become a circuit's numbers.

    **Attributes:** - `method`: of the nodes. - `path`: of the edges, if they are integrated. - `summed`: over positions. -
    `instances_above`: an instance of a node is a target if its own effect is above this; `None` for every instance of a kept node.
    - `verb`: who asks, for messages.
    """

    method: AbstractMethod
    path: IntegratedGradients | None
    summed: bool
    instances_above: float | None
    verb: str


class Memory(NamedTuple):
    """What the edges of a batch need of its nodes: gradients; which instances are above the threshold, if that is asked; and the runs, or
    of those no more than the lists of latents, whose encoding takes most of the time.
    """

    gradients: dict[Site, np.ndarray]
    instances: dict[Site, Int[np.ndarray, "n 3"]]
    runs: States | Lists

    def nbytes(self) -> int:
        return sum({id(array): array.nbytes for array in jax.tree.leaves(self)}.values())

    def listed(self) -> "Memory":
        """With no more of the runs than the lists."""
        return self if isinstance(self.runs, Lists) else self._replace(runs=self.runs.lists)


class NodeMeans(NamedTuple):
    """The first pass.

    **Attributes:** - `effects[site]`: mean effects. - `clean`, `total`: the mean metric of the clean prompts
    and its mean change. - `prompts`: how many. - `lengths`: the lengths of the batches. - `paired`: whether there are corrupt prompts. -
    `memory`: of each batch, `None` where it is to be found again. - `saes`: the dictionaries. - `metric`: its name.
    """

    effects: dict[Site, NodeList]
    clean: float
    total: float
    prompts: int
    lengths: list[int]
    paired: bool
    memory: list[Memory | None]
    saes: dict[Site, AbstractDictionary]
    metric: str


def mean_effects(model: Transformer, batches: Source[Batch], how: Averaging, report: Progress) -> NodeMeans:
    """The first pass. **Raises:** `ValueError` if a metric is not finite, or if it does not change on any prompt."""
    sums: dict[Site, NodeList] = {}
    metrics, memory, room, problem = [], [], KEEP, None
    lengths: set[int] = set()
    for i, (problem, real) in enumerate(batches):
        report(i, len(batches), "nodes")
        length = int(problem.length)
        lengths.add(length)
        _check_positions(problem, lengths, how)
        found = how.method.effects(model, problem, states(model, problem))
        metrics.append(np.stack([np.asarray(x, np.float64)[real] for x in (found.clean, found.total)]))
        _check_finite(metrics, how.verb)
        for site, values in found.listed.items():
            shape = (values.d_sae + 1,) if how.summed else (length, values.d_sae + 1)
            index, effects = values.shortened(length).instances()
            sums[site] = sums.get(site, NodeList.empty(*shape)).plus(index, effects * real[index[:, 0]])
        remembered = _memory(model, problem, found, how)
        # The runs of some batches would take the room of the gradients of others, which take longer to be found again.
        remembered = remembered if len(batches) * remembered.nbytes() <= KEEP else remembered.listed()
        memory.append(remembered if remembered.nbytes() <= room else None)
        room -= 0 if memory[-1] is None else remembered.nbytes()
    assert problem is not None
    report(len(batches), len(batches), "nodes")
    clean, total = np.concatenate(metrics, axis=1)
    if not total.any():
        raise ValueError(
            "The metric of every prompt is the same with the corrupt prompt as with the clean one, so there is no effect to explain."
        )
    means = {site: nodes.divided(len(clean)) for site, nodes in sums.items()}
    paired = problem.corrupt is not None
    return NodeMeans(
        means,
        float(clean.mean()),
        float(total.mean()),
        len(clean),
        sorted(lengths),
        paired,
        memory,
        dict(problem.saes),
        metric_name(problem.metric),
    )


def mean_edges(
    model: Transformer,
    batches: Source[Batch],
    how: Averaging,
    nodes: NodeMeans,
    kept: dict[Site, NodeList],
    report: Progress,
    *,
    into: dict[Site, NodeList] | None = None,
    out_of: dict[Site, NodeList] | None = None,
    precision: str | None = None,
    certify: bool = True,
) -> "tuple[dict[tuple[Site, Site | None], scipy.sparse.csr_array], list[float]]":
    """The second pass: mean edge weights between the kept nodes of each pair of sites, `[target source]`, with target `None` for the
    metric; and the relative errors of those that were compared with float64.

    **Arguments:** - `into`, `out_of`: of the kept nodes those between which edges are wanted, by default all; then there are none to the
    metric. - `precision`: as of `iterate_edges`.
    """
    import scipy.sparse  # a third of a second, which `import jaxcirc` need not take

    sums: dict[tuple[Site, Site | None], scipy.sparse.csr_array] = {}
    errors: list[float] = []

    def add(source: Site, target: Site | None, rows, columns, values):
        size = (1 if target is None else kept[target].size, kept[source].size)
        part = scipy.sparse.coo_array((values.astype(np.float64), (rows, columns)), shape=size).tocsr()
        sums[source, target] = sums[source, target] + part if (source, target) in sums else part

    wires = len(wiring(model, nodes.saes))
    for i, (batch, remembered) in enumerate(zip(batches, nodes.memory, strict=True)):
        problem = batch.problem
        at, gradient, instances = _recalled(model, problem, how, remembered)
        sources, targets = _chosen(
            batch, how, instances, kept if out_of is None else out_of, kept if into is None else into
        )
        seen = set()
        for edges in iterate_edges(
            model,
            problem,
            at,
            gradient,
            targets=targets,
            sources=sources,
            path=how.path,
            certify=certify and i == 0,
            precision=precision,
        ):
            if edges.wire not in seen:
                report(i * wires + len(seen), len(batches) * wires, "edges")
                seen.add(edges.wire)
            source, target = edges.wire.source, edges.wire.target
            targets_at, sources_at, values = edges.coo()
            add(source, target, kept[target].number(targets_at), kept[source].number(sources_at), values)
            errors += [] if edges.error is None else [edges.error]
        if into is not None:
            continue
        for source, direct in direct_to_metric(model, problem, at, gradient, how.path).items():
            index, values = direct.instances()
            there = (values != 0) & sources(source, index)
            index, values = index[there], values[there]
            add(source, None, np.zeros(len(index), int), kept[source].number(index), values)
    report(len(batches) * wires, len(batches) * wires, "edges")
    return {ends: matrix / nodes.prompts for ends, matrix in sums.items()}, errors


def _memory(model: Transformer, problem: Problem, found: NodeEffects, how: Averaging) -> Memory:
    """Integrated edges have gradients of their own; what they need is that of the nodes with nothing between them and the metric."""
    sites = [site for site, later in reaches_output(model, problem.saes).items() if not later]
    gradients = {site: np.asarray(found.gradient[site]) for site in (problem.saes if how.path is None else sites)}
    above = how.instances_above
    instances = {} if above is None else {site: values.above(above) for site, values in found.listed.items()}
    return Memory(gradients, instances, jax.device_get(found.at))


def _recalled(
    model: Transformer, problem: Problem, how: Averaging, remembered: Memory | None
) -> tuple[States, dict[Site, Array], dict[Site, Int[np.ndarray, "n 3"]]]:
    """The runs of a batch, the gradients and the instances above the threshold, as they are remembered or found again."""
    if remembered is None:
        at = states(model, problem)
        remembered = _memory(model, problem, how.method.effects(model, problem, at), how)
    elif isinstance(remembered.runs, Lists):
        at = states(model, problem, remembered.runs)
    else:
        at = jax.device_put(remembered.runs)
    return at, jax.device_put(remembered.gradients), remembered.instances


def _chosen(
    batch: Batch,
    how: Averaging,
    instances: dict[Site, Int[np.ndarray, "n 3"]],
    out_of: dict[Site, NodeList],
    into: dict[Site, NodeList],
) -> tuple[NodeMask, NodeMask]:
    """Which instances of nodes are sources of edges, and which are targets: those of kept nodes, on prompts that are real."""
    among = lambda nodes: lambda site, index: batch.real[index[:, 0]] & nodes[site].holds(index)
    sources, targets = among(out_of), among(into)
    if how.instances_above is None:
        return sources, targets
    above = nodes_among(instances, batch.problem.clean.shape, batch.problem.saes)
    return sources, lambda site, index: targets(site, index) & above(site, index)


def _check_positions(problem: Problem, lengths: set[int], how: Averaging) -> None:
    if how.summed:
        return
    if not problem.given_mask().all():
        raise ValueError(
            f"{how.verb}: aggregate='none' keeps positions apart, and padded prompts do not align. Use aggregate='sum'."
        )
    if len(lengths) > 1:
        raise ValueError(
            f"{how.verb}: aggregate='none' keeps positions apart, and there are prompts of {min(lengths)} and of {max(lengths)} tokens. "
            "Use aggregate='sum'."
        )


def _check_finite(metrics: list[np.ndarray], verb: str) -> None:
    bad = np.flatnonzero(~np.isfinite(metrics[-1]).all(axis=0))
    if len(bad):
        before = sum(each.shape[1] for each in metrics[:-1])
        raise ValueError(
            f"{verb}: the metric is not finite on prompt {before + int(bad[0])}: {metrics[-1][0, bad[0]]} on the clean run."
        )

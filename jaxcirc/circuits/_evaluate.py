"""How much of a behaviour a circuit carries: its nodes, and its edges."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._edits import Blend
from .._run import run, site_shapes
from .._sites import Site
from ..attribution import Metric, prepare, Problem, reaches_output, wiring
from ..models import Transformer
from ..saes import AbstractDictionary
from ._ablations import AbstractAblation, MeanAblation, Nodes, Values
from ._circuit import Circuit
from ._feature_graph import Clean, clean_run, everything_at, metric_at, Source, targets_at
from ._means import Batch, batches_of, Progress
from ._members import check_same, edge_masks, Into, node_masks


ERRORS = ("default", "keep", "remove")
RUNS = ("full", "circuit", "empty", "complement")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    r"""How much of a metric a circuit carries.

    **Attributes:**

    - `m_full`, `m_circuit`, `m_empty`, `m_complement`: the mean metric of the whole model, with all but the circuit ablated, with
      everything ablated, and with the circuit ablated.
    - `per_prompt[run]` `[prompt]`: the same of each prompt, for `"full"`, `"circuit"`, `"empty"`, `"complement"`.
    - `meta`: how it was measured; plain JSON.
    """

    per_prompt: dict[str, Float[np.ndarray, " prompt"]]
    meta: dict[str, Any]

    @property
    def m_full(self) -> float:
        return float(self.per_prompt["full"].mean())

    @property
    def m_circuit(self) -> float:
        return float(self.per_prompt["circuit"].mean())

    @property
    def m_empty(self) -> float:
        return float(self.per_prompt["empty"].mean())

    @property
    def m_complement(self) -> float:
        return float(self.per_prompt["complement"].mean())

    @property
    def faithfulness(self) -> float:
        r"""$(m_{circuit} - m_{empty}) / (m_{full} - m_{empty})$: 1 if the circuit alone does what the model does."""
        return (self.m_circuit - self.m_empty) / (self.m_full - self.m_empty)

    @property
    def completeness(self) -> float:
        r"""$(m_{complement} - m_{empty}) / (m_{full} - m_{empty})$: 0 if without the circuit nothing of it is left. Low is good."""
        return (self.m_complement - self.m_empty) / (self.m_full - self.m_empty)

    def interval(
        self, of: str = "faithfulness", *, level: float = 0.95, samples: int = 2000, seed: int = 0
    ) -> tuple[float, float]:
        """A bootstrap confidence interval over prompts, of `"faithfulness"` or `"completeness"` (Efron 1979, percentiles)."""
        if of not in ("faithfulness", "completeness"):
            raise ValueError(f"Evaluation.interval: of must be 'faithfulness' or 'completeness', got {of!r}.")
        n = len(self.per_prompt["full"])
        rows = np.random.default_rng(seed).integers(0, n, (samples, n))
        mean = {name: values[rows].mean(1) for name, values in self.per_prompt.items()}
        part = mean["circuit" if of == "faithfulness" else "complement"]
        found = (part - mean["empty"]) / (mean["full"] - mean["empty"])
        low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the single prompts, as plain JSON."""
        means = {f"m_{name}": float(values.mean()) for name, values in self.per_prompt.items()}
        return {
            **{name: getattr(self, name) for name in ("faithfulness", "completeness")},
            "faithfulness_interval": list(self.interval()),
            "completeness_interval": list(self.interval("completeness")),
            **means,
            **self.meta,
        }

    def __repr__(self) -> str:
        return (
            f"Evaluation(faithfulness={self.faithfulness:.3f}, completeness={self.completeness:.3f}, m_full={self.m_full:.3f}, "
            f"m_circuit={self.m_circuit:.3f}, m_empty={self.m_empty:.3f}, m_complement={self.m_complement:.3f})"
        )


def evaluate(
    circuit: Circuit,
    model: Transformer,
    saes: Mapping[Site, AbstractDictionary] | Mapping[str, AbstractDictionary],
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"] | None,
    metric: Metric,
    *,
    ablation: AbstractAblation = MeanAblation(),
    level: str = "nodes",
    start_layer: int = 0,
    errors: str = "default",
    batch_size: int | None = None,
    mask: Bool[Array, "batch seq"] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    r"""Runs the circuit without the rest of the model, and the rest without the circuit.

    `level="nodes"`: at each dictionary's site in turn, latents and error are computed from what has been ablated before; those that are
    not in the circuit are overwritten. Every edge between nodes of the circuit counts, found or not.

    `level="edges"`: every node of the circuit reads, along each edge of the circuit, its source as it is in this run, and along all other
    edges what the source is ablated to. So only the edges that were found carry anything. A node that is not in the circuit is ablated; a
    circuit with all edges between its nodes gives what `level="nodes"` gives. For the complement it is the other way round: the edges of
    the circuit carry what is ablated, and all others what is there. Where a decoder depends on its input (normalised dictionaries, skip
    transcoders) it is that of the clean run.

    **Arguments:**

    - `clean`, `corrupt`, `metric`, `mask`: as in `jc.discover`; prompts that the circuit was not found on, for an honest number.
    - `ablation`: `jc.MeanAblation()`, `jc.ZeroAblation()` or `jc.ResampleAblation(seed)`, of the corrupt prompts, or of the clean ones if
      there are none.
    - `start_layer`: dictionaries of earlier layers are left alone in every run.
    - `errors`: `"default"`, error nodes are in the circuit or not like others; `"keep"`, no error is ever ablated (`level="nodes"` only);
      `"remove"`, they are ablated in circuit and complement alike.
    - `batch_size`: how many prompts are run at once.

    **Returns:** `Evaluation`.

    **Raises:** `ValueError` as `jc.discover`; for a circuit of another model or other dictionaries, naming both; if ablating everything
    changes nothing.

    **Reference:** Marks et al. 2024, arXiv 2403.19647, §3.3 and appendix; means there are over the batch and for each position, as here.
    Edges are not evaluated there.

    >>> prompts = jc.data.subject_verb(tokenizer, 8, kind="rc", seed=0)
    >>> arguments = (prompts.clean, prompts.corrupt, prompts.metric())
    >>> circuit = jc.discover(model, saes, *arguments, node_threshold=0.1, edge_threshold=0.02)
    >>> found = jc.evaluate(circuit, model, saes, *arguments)
    >>> 0.5 < found.faithfulness < 1.5
    True
    """
    problem = prepare(model, saes, clean, corrupt, metric, mask)
    _check(circuit, model, problem, level, errors, start_layer, batch_size)
    n, seq = problem.clean.shape
    batches = list(batches_of(problem, batch_size or n))
    report = progress or (lambda done, of, stage: None)
    ablated = ablation.values(n, *_reference(model, problem, batches), padded=not bool(problem.mask.all()))
    intact = frozenset(site for site in problem.saes if (site.layer or 0) < start_layer)
    found: dict[str, list[np.ndarray]] = {name: [] for name in RUNS}
    size = batch_size or n
    for i, batch in enumerate(batches):
        report(i, len(batches), level)
        values = ablated(np.minimum(np.arange(i * size, (i + 1) * size), n - 1))
        real = batch.weights > 0
        keeps = _keeps(node_masks(circuit, problem.saes, seq), intact, errors)
        names = RUNS if level == "nodes" else ("full", "empty")
        for name in names:
            found[name].append(_by_nodes(model, batch.problem, keeps[name], values)[real])
        if level == "edges":
            into = edge_masks(circuit, problem.saes, seq)
            start, nodes = clean_run(model, problem.saes, batch.problem.clean, batch.problem.mask)
            for name in ("circuit", "complement"):
                runs = _EdgeRun(
                    model, batch.problem, start, nodes, values, intact, errors == "remove", name == "complement"
                )
                found[name].append(runs.metric(into, keeps["circuit"])[real])
    report(len(batches), len(batches), level)
    per_prompt = {name: np.concatenate(parts) for name, parts in found.items()}
    return Evaluation(
        _checked(per_prompt), _settings(model, circuit, ablation, level, start_layer, errors, n, corrupt is None)
    )


def _check(circuit, model, problem: Problem, level, errors, start_layer, batch_size) -> None:
    if level not in ("nodes", "edges"):
        raise ValueError(f"evaluate: level must be 'nodes' or 'edges', got {level!r}.")
    if errors not in ERRORS:
        raise ValueError(f"evaluate: errors must be one of {', '.join(map(repr, ERRORS))}, got {errors!r}.")
    if level == "edges" and errors == "keep":
        raise ValueError(
            "evaluate: errors='keep' is of level='nodes'; an error node has no single input when every edge has its own value."
        )
    if not 0 <= start_layer <= model.n_layers:
        raise ValueError(f"evaluate: start_layer is from 0 to {model.n_layers}, got {start_layer}.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"evaluate: batch_size must be at least 1, got {batch_size}.")
    check_same(circuit, model, problem.saes)
    positions = circuit.nodes["pos"].dropna()
    seq = problem.clean.shape[1]
    if len(positions) and int(positions.max()) >= seq:
        raise ValueError(
            f"The circuit has nodes at position {int(positions.max())}, and the prompts have {seq} tokens."
        )
    if len(positions) and not bool(problem.mask.all()):
        raise ValueError(
            "The circuit keeps positions apart, and padded prompts do not align. Use prompts of one length."
        )


def _reference(model: Transformer, problem: Problem, batches: list[Batch]):
    """The nodes' values on reference prompts, and their mean over all of them."""
    tokens = problem.clean if problem.corrupt is None else problem.corrupt

    def of(rows: np.ndarray) -> Values:
        return clean_run(model, problem.saes, tokens[rows], problem.mask[rows])[1]

    def mean() -> Values:
        total: Any = None
        size = len(batches[0].weights)
        count = np.maximum(np.asarray(problem.mask).sum(0), 1)  # of prompts that have the position
        for i, batch in enumerate(batches):
            rows = np.minimum(np.arange(i * size, (i + 1) * size), len(tokens) - 1)
            weights = (batch.weights > 0)[:, None] * np.asarray(problem.mask)[rows] / count
            part = jax.tree.map(lambda x, w=weights: jnp.einsum("bs,bsn->sn", w.astype(x.dtype), x)[None], of(rows))
            total = part if total is None else jax.tree.map(jnp.add, total, part)
        return total

    return of, mean


def _keeps(
    members: Mapping[Site, np.ndarray], intact: Iterable[Site], errors: str
) -> dict[str, dict[Site, np.ndarray]]:
    """For each run which nodes are left as they are."""
    keeps = {}
    for name in RUNS:
        keeps[name] = {}
        for site, member in members.items():
            keep = {
                "full": np.ones_like(member),
                "circuit": member.copy(),
                "empty": np.zeros_like(member),
                "complement": ~member,
            }[name]
            if errors == "keep" or (errors == "remove" and name in ("circuit", "complement")):
                keep[:, -1] = errors == "keep"
            keeps[name][site] = np.ones_like(member) if site in intact else keep
    return keeps


def _by_nodes(model: Transformer, problem: Problem, keep: Mapping[Site, np.ndarray], values: Values) -> np.ndarray:
    arrays = {site: jnp.asarray(mask) for site, mask in keep.items()}
    return np.asarray(_overwritten(model, problem, arrays, values), np.float64)


@jax.jit
def _overwritten(model: Transformer, problem: Problem, keep, values: Values) -> Float[Array, " batch"]:
    shapes = site_shapes(model, problem.clean.shape[1])

    def one(tokens, keys, metric, values):
        edits = {}
        for site, nodes in values.items():
            error = nodes.error.reshape(shapes[site].shape)
            dropped = ~keep[site][:, -1].reshape(-1, *[1] * (error.ndim - 1))
            edits |= {site.acts: Blend(~keep[site][:, :-1], nodes.acts), site.error: Blend(dropped, error)}
        return metric(run(model, tokens, saes=problem.saes, edits=edits, mask=keys)[0])

    return jax.vmap(one)(problem.clean, problem.mask, problem.metric, values)


class _EdgeRun(NamedTuple):
    """One run in which every edge carries a value of its own."""

    model: Transformer
    problem: Problem
    clean: Clean
    nodes: Mapping[Site, Nodes]  # of the clean run
    ablated: Values
    intact: frozenset[Site]
    without_errors: bool
    complement: bool

    def metric(self, into: Mapping[Site | None, Into], members: Mapping[Site, np.ndarray]) -> np.ndarray:
        """The metric of each prompt, when the edges `into` every site carry what is there, or for the complement all others."""
        saes, feeds = self.problem.saes, {}
        for wire in wiring(self.model, saes):
            feeds.setdefault(wire.target, []).append(wire.source)
        now: dict[Site, Nodes] = {}
        for site in sorted(saes):
            if site in self.intact or (site not in feeds and self.complement):
                now[site] = self.nodes[site]
            elif site not in feeds:
                now[site] = self._kept(site, members[site])
            else:
                now[site] = self._at(site, feeds[site], now, into.get(site), members[site])
        ends = tuple(reaches_output(self.model, saes))
        masks = self._masks(into.get(None), ends, 1)
        masks = {site: jnp.asarray(mask[0]) for site, mask in masks.items()}
        return np.asarray(
            metric_at(self.model, self.clean, self.problem.metric, self._sources(ends, now), masks), np.float64
        )

    def _at(self, site: Site, feeds, now, into: Into | None, member: np.ndarray) -> Nodes:
        """The nodes at a site: each target from its own mixture, the others ablated, or for the complement from all there is."""
        sae, sources = self.problem.saes[site], self._sources(feeds, now)
        given = (self.model, sae, site, self.clean, sources)
        start = self.ablated[site]
        if self.complement:
            start = everything_at(*given, self._masks(None, feeds, 1))
            targets = _none() if into is None else into
        else:
            targets = _with_members(into, member)
        acts, error = start
        masks = self._masks(targets, feeds, len(targets.units))
        for of_error in (False, True):
            chosen = np.flatnonzero((targets.units == sae.d_sae) == of_error)
            if not len(chosen):
                continue
            found = targets_at(*given, {source: mask[chosen] for source, mask in masks.items()}, targets.units[chosen])
            units, pos, rows = targets.units[chosen], targets.pos[chosen], np.arange(len(chosen))
            if of_error:
                error = found[:, 0] if pos[0] < 0 else error.at[:, pos].set(found[:, rows, pos])
            elif pos[0] < 0:
                acts = acts.at[:, :, units].set(found.transpose(0, 2, 1))
            else:
                acts = acts.at[:, pos, units].set(found[:, rows, pos])
        if self.without_errors:
            error = self.ablated[site].error
        return Nodes(acts, error)

    def _kept(self, site: Site, member: np.ndarray) -> Nodes:
        """A site that no node leads to: clean where it is in the circuit."""
        clean, ablated = self.nodes[site], self.ablated[site]
        error = member[:, -1:] & (not self.without_errors)
        return Nodes(jnp.where(member[:, :-1], clean.acts, ablated.acts), jnp.where(error, clean.error, ablated.error))

    def _sources(self, sites: Iterable[Site], now: Mapping[Site, Nodes]) -> dict[Site, Source]:
        saes, read = self.problem.saes, lambda site: self.clean.values[saes[site].reads or site]
        return {site: Source(saes[site], read(site), now[site], self.ablated[site]) for site in sites}

    def _masks(self, into: Into | None, sources: Iterable[Site], n: int) -> dict[Site, np.ndarray]:
        """For each of `n` targets which nodes of each source it reads as they are in this run."""
        masks = {}
        for source in sources:
            nodes = self.problem.saes[source].d_sae + 1
            mask = np.zeros((n, 1, nodes), bool) if into is None or source not in into.reached else into.reached[source]
            mask = ~mask if self.complement else mask.copy()
            if self.without_errors:
                mask[..., -1] = False
            masks[source] = np.ones_like(mask) if source in self.intact else mask
        return masks


def _none() -> Into:
    return Into(np.zeros(0, int), np.zeros(0, int), {})


def _with_members(into: Into | None, member: np.ndarray) -> Into:
    """The targets of the circuit's edges, and its nodes that no edge of it leads to."""
    into = _none() if into is None else into
    summed = bool((member == member[:1]).all())
    have = set(zip(into.units.tolist(), into.pos.tolist(), strict=True))
    if summed and not any(pos >= 0 for _, pos in have):
        nodes = [(int(unit), -1) for unit in np.flatnonzero(member[0])]
    else:
        nodes = [(int(unit), int(pos)) for pos, unit in np.argwhere(member)]
    more = [node for node in nodes if node not in have]
    units, positions = (
        np.concatenate([have, np.array([node[i] for node in more], int)]) for i, have in enumerate(into[:2])
    )
    widen = lambda mask: np.concatenate([mask, np.zeros((len(more), *mask.shape[1:]), bool)])
    return Into(units, positions, {source: widen(mask) for source, mask in into.reached.items()})


def _checked(per_prompt: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for name, values in per_prompt.items():
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ValueError(
                f"evaluate: the metric is not finite on prompt {int(bad[0])} in the {name} run: {values[bad[0]]}."
            )
    full, empty = per_prompt["full"].mean(), per_prompt["empty"].mean()
    if abs(full - empty) <= 1e-6 * max(abs(full), abs(empty)):
        raise ValueError(
            f"evaluate: ablating every node leaves the metric at {empty:.4g}, as it is in the whole model, so there is nothing to explain. "
            "Use prompts on which clean and corrupt differ, or another ablation."
        )
    return per_prompt


def _settings(model, circuit: Circuit, ablation, level, start_layer, errors, prompts, own) -> dict[str, Any]:
    return {
        "level": level,
        "ablation": {"name": type(ablation).__name__, **dataclasses.asdict(ablation)},
        "reference": "clean prompts" if own else "corrupt prompts",
        "start_layer": start_layer,
        "errors": errors,
        "prompts": prompts,
        "nodes": len(circuit.nodes),
        "edges": len(circuit.edges),
        "model": model.name,
    }

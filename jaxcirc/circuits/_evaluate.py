"""How much of a behaviour a circuit carries: its nodes, and its edges."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._edits import Blend
from .._run import run, site_shapes
from .._sites import Site
from ..attribution import Metric, prepare, Problem
from ..models import Transformer
from ..saes import AbstractDictionary
from ._ablations import AbstractAblation, MeanAblation, Values
from ._circuit import Circuit
from ._edge_run import EdgeRun
from ._evaluation import Evaluation
from ._feature_graph import clean_run
from ._means import Batch, batches_of, Progress
from ._members import check_same, edge_masks, node_masks


ERRORS = ("default", "keep", "remove")
RUNS = ("full", "circuit", "empty", "complement")


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
    size = batch_size or n
    batches = list(batches_of(problem, size))
    report = progress or (lambda done, of, stage: None)
    ablated = ablation.values(n, *_reference(model, problem, batches), padded=not bool(problem.mask.all()))
    intact = frozenset(site for site in problem.saes if (site.layer or 0) < start_layer)
    keeps = _keeps(node_masks(circuit, problem.saes, seq), intact, errors)
    into = edge_masks(circuit, problem.saes, seq) if level == "edges" else {}
    found: dict[str, list[np.ndarray]] = {name: [] for name in RUNS}
    for i, batch in enumerate(batches):
        report(i, len(batches), level)
        values = ablated(np.minimum(np.arange(i * size, (i + 1) * size), n - 1))
        real = batch.weights > 0
        names = RUNS if level == "nodes" else ("full", "empty")
        for name in names:
            found[name].append(_by_nodes(model, batch.problem, keeps[name], values)[real])
        if level == "edges":
            start, nodes = clean_run(model, problem.saes, batch.problem.clean, batch.problem.mask)
            for name in ("circuit", "complement"):
                runs = EdgeRun(
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

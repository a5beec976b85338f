"""Prompts on which circuits are run: each run leaves some nodes or edges as they are, and ablates the others."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._edits import Blend
from .._metrics import Metric
from .._run import run_metric, site_shapes
from .._sites import Site
from ..attribution import prepare, Problem
from ..models import Transformer
from ..saes import AbstractDictionary
from ._ablations import AbstractAblation, Values
from ._batches import ArrayBatches, Progress
from ._circuit import Circuit
from ._edge_run import EdgeRun
from ._feature_graph import clean_run
from ._members import check_same, edge_masks, node_masks


ERRORS = ("default", "keep", "remove")
RUNS = ("full", "circuit", "empty", "complement")


class Trial(NamedTuple):
    """Prompts in batches, and what takes the place of what is ablated.

    **Attributes:** - `ablated(rows)`: what the nodes of some prompts, by number, are ablated to. - `level`: `"nodes"` or `"edges"`. -
    `intact`: the sites that are left alone. - `errors`: what happens to error nodes. - `settings`: all this in plain JSON.
    """

    model: Transformer
    batches: ArrayBatches
    ablated: Callable[[np.ndarray], Values]
    level: str
    intact: frozenset[Site]
    errors: str
    settings: dict[str, Any]

    def runs(
        self, circuit: Circuit, names: Sequence[str], progress: Progress | None = None
    ) -> dict[str, Float[np.ndarray, " prompt"]]:
        """The metric of each prompt in each of the runs asked for, of `RUNS`: the whole model, all but the circuit ablated, everything
        ablated, and the circuit ablated.
        """
        problem, report = self.batches.problem, progress or (lambda done, of, stage: None)
        saes, seq = problem.saes, problem.clean.shape[1]
        keeps = keeps_of(node_masks(circuit, saes, seq), self.intact, self.errors)
        by_edges = [name for name in names if self.level == "edges" and name in ("circuit", "complement")]
        into = edge_masks(circuit, saes, seq) if by_edges else {}
        found: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for i, (part, real) in enumerate(self.batches):
            report(i, len(self.batches), self.level)
            values = self.ablated(self.batches.rows(i))
            for name in names:
                if name not in by_edges:
                    found[name].append(by_nodes(self.model, part, keeps[name], values)[real])
            if by_edges:
                start, nodes = clean_run(self.model, saes, part.clean, part.mask)
                given = (self.model, part, start, nodes, values, self.intact, self.errors == "remove")
                for name in by_edges:
                    edges = EdgeRun(*given, complement=name == "complement")
                    found[name].append(edges.metric(into, keeps["circuit"])[real])
        report(len(self.batches), len(self.batches), self.level)
        return {name: _finite(np.concatenate(parts), name) for name, parts in found.items()}


def trial_of(
    circuit: Circuit,
    model: Transformer,
    saes: Mapping[Site, AbstractDictionary] | Mapping[str, AbstractDictionary],
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"] | None,
    metric: Metric,
    mask: Bool[Array, "batch seq"] | None,
    ablation: AbstractAblation,
    level: str,
    start_layer: int,
    errors: str,
    batch_size: int | None,
) -> Trial:
    """The trial of these arguments of `jc.evaluate`, for the circuit and its parts. **Raises:** `ValueError` for one that is not right."""
    if not isinstance(ablation, AbstractAblation):
        raise TypeError(
            "ablation: expected jc.MeanAblation(), jc.ZeroAblation() or jc.ResampleAblation(), got a "
            f"{type(ablation).__name__}."
        )
    problem = prepare(model, saes, clean, corrupt, metric, mask)
    _check(model, level, errors, start_layer)
    batches = ArrayBatches(problem, batch_size)
    check_circuit(circuit, model, problem)
    return Trial(
        model=model,
        batches=batches,
        ablated=ablation.values(batches.n, *_reference(model, batches), padded=not bool(problem.mask.all())),
        level=level,
        intact=frozenset(site for site in problem.saes if (site.layer or 0) < start_layer),
        errors=errors,
        settings={
            "level": level,
            "ablation": {"name": type(ablation).__name__, **dataclasses.asdict(ablation)},
            "reference": "clean prompts" if corrupt is None else "corrupt prompts",
            "start_layer": start_layer,
            "errors": errors,
            "prompts": batches.n,
            "model": model.name,
        },
    )


def _check(model, level, errors, start_layer) -> None:
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


def check_circuit(circuit: Circuit, model: Transformer, problem: Problem) -> None:
    """ValueError if the circuit is of another model, other dictionaries or other prompts."""
    check_same(circuit, model, problem.saes)
    positions = [row.pos for row in circuit.node_rows() if row.pos is not None]
    seq = problem.clean.shape[1]
    if positions and max(positions) >= seq:
        raise ValueError(f"The circuit has nodes at position {max(positions)}, and the prompts have {seq} tokens.")
    if positions and not bool(problem.mask.all()):
        raise ValueError(
            "The circuit keeps positions apart, and padded prompts do not align. Use prompts of one length."
        )


def _reference(model: Transformer, batches: ArrayBatches):
    """The nodes' values on reference prompts, and their mean over all of them."""
    problem = batches.problem
    tokens = problem.clean if problem.corrupt is None else problem.corrupt

    def of(rows: np.ndarray) -> Values:
        return clean_run(model, problem.saes, tokens[rows], problem.mask[rows])[1]

    def mean() -> Values:
        total: Any = None
        count = np.maximum(np.asarray(problem.mask).sum(0), 1)  # of prompts that have the position
        for i, (_, real) in enumerate(batches):
            rows = batches.rows(i)
            weights = real[:, None] * np.asarray(problem.mask)[rows] / count
            part = jax.tree.map(lambda x, w=weights: jnp.einsum("bs,bsn->sn", w.astype(x.dtype), x)[None], of(rows))
            total = part if total is None else jax.tree.map(jnp.add, total, part)
        return total

    return of, mean


def keeps_of(
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


def by_nodes(model: Transformer, problem: Problem, keep: Mapping[Site, np.ndarray], values: Values) -> np.ndarray:
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
        return run_metric(model, metric, tokens, saes=problem.saes, edits=edits, mask=keys)[0]

    return jax.vmap(one)(problem.clean, problem.mask, problem.metric, values)


def _finite(metrics: np.ndarray, name: str) -> np.ndarray:
    bad = np.flatnonzero(~np.isfinite(metrics))
    if len(bad):
        raise ValueError(
            f"evaluate: the metric is not finite on prompt {int(bad[0])} in the {name} run: {metrics[bad[0]]}."
        )
    return metrics

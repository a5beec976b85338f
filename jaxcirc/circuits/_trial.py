"""Prompts on which circuits are run: each run leaves some nodes or edges as they are, and ablates the others."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_choice, check_count, check_kind
from .._edits import AbstractEdit, Blend
from .._metrics import Metric
from .._run import run_metric, site_shapes
from .._sites import Site
from ..components import Reference
from ..models import Transformer
from ..runs import prepare, Problem
from ..saes import AbstractDictionary
from ._ablations import AbstractAblation, Values
from ._batches import ArrayBatches, Progress
from ._circuit import Circuit
from ._edge_run import EdgeRun
from ._feature_graph import clean_run, held_inputs
from ._members import check_same, edge_masks, node_masks


ERRORS = ("default", "keep", "remove")
LEVELS = ("nodes", "edges")
RUNS = ("full", "circuit", "empty", "complement")


class Trial(NamedTuple):
    """Prompts in batches, and what takes the place of what is ablated.

    **Attributes:** - `verb`: asks for it, for messages. - `ablated(rows)`: what the nodes of some prompts, by number, are ablated to. -
    `level`: `"nodes"` or `"edges"`. - `intact`: the sites that are left alone. - `errors`: what happens to error nodes. - `settings`: all
    this in plain JSON.
    """

    verb: str
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
        return {name: self._finite(np.concatenate(parts), name) for name, parts in found.items()}

    def _finite(self, metrics: np.ndarray, name: str) -> np.ndarray:
        bad = np.flatnonzero(~np.isfinite(metrics))
        if len(bad):
            raise ValueError(
                f"{self.verb}: the metric is not finite on prompt {int(bad[0])} in the {name} run: {metrics[bad[0]]}."
            )
        return metrics


def trial_of(
    verb: str,
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
    *,
    of_parts: bool,
) -> Trial:
    """The trial of these arguments of `verb`, for the circuit and its parts, of which there are some if it is `of_parts`. **Raises:**
    `ValueError` for one that is not right.
    """
    check_kind(f"{verb}: circuit", circuit, Circuit, "a circuit, as jc.discover gives one")
    if not isinstance(ablation, AbstractAblation):
        raise TypeError(
            f"{verb}: expected jc.MeanAblation(), jc.ZeroAblation() or jc.ResampleAblation() as the ablation, got a "
            f"{type(ablation).__name__}."
        )
    _check(verb, model, level, errors, start_layer)
    problem = prepare(model, saes, clean, corrupt, metric, mask)
    batches = ArrayBatches(problem, batch_size, verb)
    check_circuit(circuit, model, problem)
    if of_parts:
        _check_any(verb, circuit, level)
    return Trial(
        verb=verb,
        model=model,
        batches=batches,
        ablated=ablation.values(_reference(model, batches, type(ablation).__name__)),
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


def _check(verb: str, model: Transformer, level: str, errors: str, start_layer: int) -> None:
    check_choice(f"{verb}: level", level, LEVELS)
    check_choice(f"{verb}: errors", errors, ERRORS)
    if level == "edges" and errors == "keep":
        raise ValueError(
            f"{verb}: errors='keep' is of level='nodes'; an error node has no single input when every edge has its own value."
        )
    check_count(f"{verb}: start_layer", "layers are left alone", start_layer, least=0)
    if start_layer > model.n_layers:
        raise ValueError(f"{verb}: start_layer is from 0 to {model.n_layers}, got {start_layer}.")


def _check_any(verb: str, circuit: Circuit, level: str) -> None:
    """ValueError for a circuit without parts."""
    if not len(circuit.nodes if level == "nodes" else circuit.edges):
        raise ValueError(
            f"{verb}: the circuit has no {level}. Find it with lower thresholds, and for edges with an edge_threshold."
        )


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


def _reference(model: Transformer, batches: ArrayBatches, who: str) -> Reference:
    """The corrupt prompts, or the clean ones if there are none."""
    problem = batches.problem
    tokens = problem.clean if problem.corrupt is None else problem.corrupt
    of = lambda rows: clean_run(model, problem.saes, tokens[rows], problem.mask[rows])[1]
    return Reference(who, of, np.asarray(problem.mask), [batches.rows(i) for i in range(len(batches))])


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
        edits: dict[Site, AbstractEdit] = {**held_inputs(model, problem.saes, tokens, keys)}
        for site, nodes in values.items():
            error = nodes.error.reshape(shapes[site].shape)
            dropped = ~keep[site][:, -1].reshape(-1, *[1] * (error.ndim - 1))
            edits |= {site.acts: Blend(~keep[site][:, :-1], nodes.acts), site.error: Blend(dropped, error)}
        return run_metric(model, metric, tokens, saes=problem.saes, edits=edits, mask=keys)[0]

    return jax.vmap(one)(problem.clean, problem.mask, problem.metric, values)

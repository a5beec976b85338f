"""Runs of circuits on prompts: each leaves some nodes or edges as they are, and ablates the others."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._edits import AbstractEdit, Blend
from .._run import run_metric, site_shapes
from .._sites import Site
from .._typing import Progress
from ..models import Transformer
from ..runs import Problem, record
from ._ablations import Values
from ._batches import ArrayBatches
from ._circuit import Circuit
from ._edge_run import EdgeRun
from ._feature_graph import clean_run, held_inputs
from ._members import edge_masks, node_masks


RUNS = ("full", "circuit", "empty", "complement")


class Runs(NamedTuple):
    """How circuits are run.

    **Attributes:** - `verb`: asks for it, for messages. - `batches`: the prompts. - `ablated(rows)`: what the nodes of some prompts, by
    number, are ablated to. - `level`: `"nodes"` or `"edges"`. - `intact`: the sites that are left alone. - `errors`: what happens to
    error nodes. - `settings`: all this in plain JSON.
    """

    verb: str
    model: Transformer
    batches: ArrayBatches
    ablated: Callable[[np.ndarray], Values]
    level: str
    intact: frozenset[Site]
    errors: str
    settings: dict[str, Any]

    def metrics(
        self, circuit: Circuit, names: Sequence[str], progress: Progress | None = None
    ) -> dict[str, Float[np.ndarray, " prompt"]]:
        """Returns the metric of each prompt in each of the runs asked for, of `RUNS`: the whole model, all but the circuit ablated,
        everything ablated, and the circuit ablated.
        """
        problem, report = self.batches.problem, progress or (lambda done, of, stage: None)
        saes, seq = problem.saes, problem.clean.shape[1]
        keeps = keeps_of(node_masks(circuit, saes, seq), self.intact, self.errors)
        by_edges = [name for name in names if self.level == "edges" and name in ("circuit", "complement")]
        into = edge_masks(circuit, saes, seq) if by_edges else {}
        metrics: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for i, (part, real) in enumerate(self.batches):
            report(i, len(self.batches), self.level)
            values = self.ablated(self.batches.rows(i))
            for name in names:
                if name == "full":  # dictionaries that are left alone change nothing
                    whole = record(self.model, part.clean, part.mask, metric=part.metric).metric
                    metrics[name].append(np.asarray(whole, np.float64)[real])
                elif name not in by_edges:
                    metrics[name].append(by_nodes(self.model, part, keeps[name], values)[real])
            if by_edges:
                start, nodes = clean_run(self.model, saes, part.clean, part.mask)
                given = (self.model, part, start, nodes, values, self.intact, self.errors == "remove")
                for name in by_edges:
                    edges = EdgeRun(*given, complement=name == "complement")
                    metrics[name].append(edges.metric(into, keeps["circuit"])[real])
        report(len(self.batches), len(self.batches), self.level)
        return {name: self._finite(np.concatenate(parts), name) for name, parts in metrics.items()}

    def _finite(self, metrics: np.ndarray, name: str) -> np.ndarray:
        bad = np.flatnonzero(~np.isfinite(metrics))
        if len(bad):
            raise ValueError(
                f"{self.verb}: the metric is not finite on prompt {int(bad[0])} in the {name} run: {metrics[bad[0]]}."
            )
        return metrics


def keeps_of(
    members: Mapping[Site, np.ndarray], intact: Iterable[Site], errors: str
) -> dict[str, dict[Site, np.ndarray]]:
    """Says for each run in which some are not which nodes are left as they are, `[seq node]` at each site."""
    keeps = {}
    for name in RUNS[1:]:
        keeps[name] = {}
        for site, member in members.items():
            keep = {
                "circuit": member.copy(),
                "empty": np.zeros_like(member),
                "complement": ~member,
            }[name]
            if errors == "keep" or (errors == "remove" and name in ("circuit", "complement")):
                keep[:, -1] = errors == "keep"
            keeps[name][site] = np.ones_like(member) if site in intact else keep
    return keeps


def by_nodes(model: Transformer, problem: Problem, keep: Mapping[Site, np.ndarray], values: Values) -> np.ndarray:
    """Runs the prompts with all nodes but those of `keep` overwritten, and returns the metric `[batch]`."""
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

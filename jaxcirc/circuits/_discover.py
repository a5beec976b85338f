"""From prompts to a circuit."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jaxlib
import numpy as np
from jaxtyping import Array, Bool, Int

from .._sites import Site
from .._version import __version__
from ..attribution import (
    AbstractMethod,
    IntegratedGradients,
    is_cut,
    Metric,
    prepare,
    Problem,
)
from ..models import Transformer
from ..saes import AbstractDictionary
from ..view import METRIC
from ._circuit import Circuit
from ._means import batches_of, mean_edges, mean_effects, Progress


def discover(
    model: Transformer,
    saes: Mapping[Site, AbstractDictionary] | Mapping[str, AbstractDictionary],
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"] | None,
    metric: Metric,
    *,
    node_threshold: float,
    edge_threshold: float,
    method: AbstractMethod = IntegratedGradients(),
    aggregate: str = "sum",
    edges: str = "clean",
    batch_size: int | None = None,
    mask: Bool[Array, "batch seq"] | None = None,
    progress: Progress | None = None,
) -> Circuit:
    """Finds the sparse feature circuit of a metric: the latents and errors that matter to it, and the edges between them.

    Effects are averaged over prompts first, and thresholds are applied to the averages: a node is kept if `|effect| >
    node_threshold`, an edge between kept nodes if `|weight| > edge_threshold`. Every instance of a kept node counts.

    **Arguments:**

    - `node_threshold`, `edge_threshold`: in the metric's units.
    - `method`: how node effects are estimated; edges use the same gradients.
    - `aggregate`: `"sum"` sums over positions; `"none"` keeps them apart, for prompts that align position by position.
    - `edges`: `"clean"`, or `"integrated"` along the path of `method`, so that they sum to the nodes' effects; see `jc.edge_effects`.
    - `batch_size`: how many prompts are run at once, all by default. It changes memory and time, not the result.
    - `progress`: called as `progress(done, of, stage)`.
    - the rest as in `jc.node_effects`.

    **Returns:** a `Circuit`. Its `meta["completeness"]` holds, for each residual site, the sum of the node effects there over the
    total effect: integrated gradients are complete, so it tells how good the nodes' estimate is.

    **Raises:** `ValueError` as `jc.node_effects` does; if clean equals corrupt; if no node is above the threshold.

    **Reference:** Marks et al. 2024, "Sparse Feature Circuits", arXiv 2403.19647, §3.2. The reference implementation thresholds nodes
    of single prompts before it averages edges, which loses the edges into the rest.

    >>> prompts = jc.data.subject_verb(tokenizer, 8, kind="rc", seed=0)
    >>> circuit = jc.discover(model, saes, prompts.clean, prompts.corrupt, prompts.metric(), node_threshold=0.1, edge_threshold=0.02)
    >>> {"source", "target", "weight"} <= set(circuit.edges)
    True
    """
    problem = prepare(model, saes, clean, corrupt, metric, mask)
    _check_arguments(problem, aggregate, batch_size)
    path = _path(edges, method)
    batches = list(batches_of(problem, batch_size or problem.clean.shape[0]))
    report = progress or (lambda done, of, stage: None)

    effects, gradients, total = mean_effects(model, problem, batches, method, aggregate, report)
    kept = {site: np.abs(values) > node_threshold for site, values in effects.items()}
    if not any(mask.any() for mask in kept.values()):
        largest = max(float(np.abs(values).max()) for values in effects.values())
        raise ValueError(
            f"No node has an effect above node_threshold={node_threshold:g}; the largest is {largest:g}. Lower it."
        )
    weights = mean_edges(model, problem, batches, gradients, kept, aggregate, path, report)
    nodes, names = _node_table(effects, kept, aggregate)
    meta = {
        **_settings(model, problem, method),
        "aggregate": aggregate,
        "edges": edges,
        "node_threshold": node_threshold,
        "edge_threshold": edge_threshold,
        **total,
        "completeness": _completeness(problem, effects, total["total_effect"]),
    }
    return Circuit(nodes, _edge_table(weights, names, edge_threshold), meta)


def _check_arguments(problem: Problem, aggregate: str, batch_size: int | None) -> None:
    if aggregate not in ("sum", "none"):
        raise ValueError(f"discover: aggregate must be 'sum' or 'none', got {aggregate!r}.")
    if aggregate == "none" and not bool(problem.mask.all()):
        raise ValueError(
            "discover: aggregate='none' keeps positions apart, and padded prompts do not align. Use aggregate='sum'."
        )
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"discover: batch_size must be at least 1, got {batch_size}.")
    if problem.corrupt is not None and np.array_equal(problem.clean, problem.corrupt):
        raise ValueError("discover: the corrupt prompts are equal to the clean ones, so there is no effect to explain.")


def _path(edges: str, method: AbstractMethod) -> IntegratedGradients | None:
    if edges not in ("clean", "integrated"):
        raise ValueError(f"discover: edges must be 'clean' or 'integrated', got {edges!r}.")
    if edges == "integrated" and not isinstance(method, IntegratedGradients):
        raise ValueError(
            f"discover: edges='integrated' takes the path of the nodes' method, and {type(method).__name__} has none. Use "
            "method=jc.IntegratedGradients(steps)."
        )
    return method if isinstance(method, IntegratedGradients) and edges == "integrated" else None


def _node_table(effects: dict[Site, np.ndarray], kept: dict[Site, np.ndarray], aggregate: str):
    """The table of kept nodes, and for each site their names by number."""
    import pandas as pd

    rows, names = [], {}
    for site, mask in kept.items():
        d_sae = mask.shape[-1] - 1
        names[site] = {}
        for index in np.argwhere(mask):
            unit, pos = int(index[-1]), None if aggregate == "sum" else int(index[0])
            name = f"{site}/{'error' if unit == d_sae else unit}" + ("" if pos is None else f"@{pos}")
            names[site][int(unit + (pos or 0) * (d_sae + 1))] = name
            kind = "error" if unit == d_sae else "latent"
            rows.append((name, str(site), unit, kind, pos, float(effects[site][tuple(index)])))
    table = pd.DataFrame(rows, columns=["node", "site", "unit", "kind", "pos", "effect"])
    return table.astype({"pos": "Int64"}), names


def _edge_table(weights: dict, names: dict[Site, dict[int, str]], threshold: float):
    """The table of edges above the threshold, the strongest first."""
    import pandas as pd

    rows = []
    for (source, target), matrix in weights.items():
        entries = matrix.tocoo()
        for row, column, value in zip(*entries.coords, entries.data, strict=True):
            if abs(value) > threshold:
                end = METRIC if target is None else names[target][int(row)]
                rows.append((names[source][int(column)], end, float(value)))
    table = pd.DataFrame(rows, columns=["source", "target", "weight"])
    return table.sort_values("weight", key=abs, ascending=False, ignore_index=True)


def _completeness(problem: Problem, effects: dict[Site, np.ndarray], total: float) -> dict[str, float]:
    """The summed effects over the total effect, at each site that the whole residual stream passes."""
    if problem.corrupt is None or total == 0:  # every site has a baseline of its own, or there is nothing to sum to
        return {}
    return {str(site): float(values.sum()) / total for site, values in effects.items() if is_cut(site)}


def _settings(model: Transformer, problem: Problem, method: AbstractMethod) -> dict[str, Any]:
    return {
        "model": model.name,
        "dictionaries": {str(site): sae.origin for site, sae in problem.saes.items()},
        "metric": type(problem.metric).__name__,
        "method": {"name": type(method).__name__, **dataclasses.asdict(method)},
        "prompts": problem.clean.shape[0],
        "length": problem.clean.shape[1],
        "baseline": "zero" if problem.corrupt is None else "corrupt prompts",
        "dtype": str(model.dtype),
        "device": jax.devices()[0].device_kind,
        "versions": {"jaxcirc": __version__, "jax": jax.__version__, "jaxlib": jaxlib.version.__version__},
    }

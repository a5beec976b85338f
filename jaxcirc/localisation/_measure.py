"""How much of a behaviour circuits of increasing size carry: the runs."""

import warnings
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._metrics import Metric
from .._traced import check_untraced
from ..components import AbstractAblation
from ..graph import component_graph, ComponentGraph
from ..models import Transformer
from ..patching import patch_edges
from ._circuit_curve import CircuitCurve
from ._circuits_of import as_given, by_scores, Circuits
from ._given import By, check_graph, check_ranking, How, SIZES
from ._signs import sign_of


Scores = (
    Float[Array | np.ndarray, "sender receiver"]
    | Float[Array | np.ndarray, " sender"]
    | Bool[Array | np.ndarray, "size sender receiver"]
)


def circuit_curve(
    model: Transformer,
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"] | None,
    metric: Metric,
    scores: Scores,
    *,
    graph: ComponentGraph | None = None,
    sizes: Sequence[float] = SIZES,
    by: By = "signed",
    how: How = "best",
    ablation: AbstractAblation | None = None,
    mask: Bool[Array, "batch seq"] | None = None,
) -> CircuitCurve:
    r"""The faithfulness of circuits of increasing size, the edges with the largest scores: the circuit-localisation benchmark.

    Of each circuit the edges that lead nowhere are dropped; all other edges of the graph carry what they carry on the corrupt prompt.

    **Arguments:**

    - `clean`, `corrupt` `[batch seq]`: pairs of prompts. - `metric`: the larger, the better the model does its task, such as the logit of
      the answer less that of the foil.
    - `scores` `[sender receiver]`: of edges, above 0 for those that help: `-jc.edge_attribution(…).mean(0)`, as effects there are corrupt
      less clean. `[sender]`: of senders, each with all edges out of it. Booleans `[size sender receiver]` are the circuits themselves.
    - `graph`: what the scores are of; by default the model's. The benchmark's is `jc.localisation.benchmark_graph(model)`.
    - `sizes`: shares of the edges, or of the senders, increasing. - `by`, `how`: how edges are ranked and chosen, as in
      `jc.localisation.select_edges`.
    - `ablation`: what other edges carry, if not the corrupt prompt. - `mask` `[batch seq]`: False for padding.

    **Returns:** `CircuitCurve`, with the metric of each example in each circuit, `.faithfulness`, `.cpr`, `.cmd`, `.acc_auc`.

    **Raises:** `ValueError` for scores of another graph, NaN among them, sizes that do not increase, or a metric that the full model and
    the empty circuit have the same of.

    >>> prompts = jc.data.ioi(tokenizer, 4, seed=0)
    >>> graph = jc.component_graph(model)
    >>> scores = np.random.default_rng(0).normal(size=graph.edges.shape)
    >>> curve = jc.circuit_curve(model, prompts.clean, prompts.corrupt, prompts.metric(), scores, sizes=(0.1, 0.5, 1.0))
    >>> curve.faithfulness.shape, round(float(curve.faithfulness[-1]), 3)
    ((3,), 1.0)

    **Reference:** Mueller et al. 2025, "MIB: A Mechanistic Interpretability Benchmark", arXiv 2504.13151. There CPR is of signed scores and
    CMD of absolute ones; no interval is given.
    """
    check_untraced("circuit_curve", model)
    check_ranking("circuit_curve", by, how)
    graph = component_graph(model) if graph is None else graph
    check_graph("circuit_curve", graph)
    given = np.asarray(scores).dtype.kind == "b"
    if given:
        circuits = as_given("circuit_curve", graph, scores, sizes)
    else:
        circuits = by_scores("circuit_curve", graph, scores, sizes, by, how)
    full, empty = graph.edges, np.zeros(graph.edges.shape, bool)
    keep, which = np.unique(np.array([full, empty, *circuits.masks]), axis=0, return_inverse=True)
    values = patch_edges(model, clean, corrupt, metric, jnp.asarray(keep), graph=graph, ablation=ablation, mask=mask)
    # [mask batch] -> [2+size batch]: small graphs have one circuit for several sizes.
    of_circuits = np.asarray(values, np.float64)[which.reshape(-1)]
    curve = _curve(circuits, of_circuits, None if given else by)
    if curve.by == "signed" and np.ndim(scores) == 2 and sign_of(graph, np.asarray(scores, np.float64)) == "hurts":
        warnings.warn(
            "circuit_curve: scores below 0 outweigh those above, as where a score above 0 means that the edge hurts. Effects of "
            "jc.edge_attribution are corrupt less clean: give them with the other sign, or rank by='absolute'.",
            stacklevel=2,
        )
    return curve


def _curve(circuits: Circuits, values: Float[np.ndarray, "two_and_size batch"], by: By | None) -> CircuitCurve:
    full, empty, *_ = values
    gap, size = abs(full.mean() - empty.mean()), np.abs(np.concatenate([full, empty])).mean()
    if gap <= 1e-6 * size:  # rounding of float32
        raise ValueError(
            f"circuit_curve: the metric of the full model and that with every edge ablated are the same, {full.mean():z.4g}, so that there "
            "is nothing to localise. Give corrupt prompts on which the model does something else."
        )
    kept = circuits.masks.sum((1, 2))
    return CircuitCurve(circuits.sizes, circuits.edges, kept, values[2:], full, empty, by)

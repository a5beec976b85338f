"""From prompts to a circuit."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jaxlib
import numpy as np
from jaxtyping import Array, Bool, Int

from .._checks import check_choice, check_threshold
from .._metrics import Metric
from .._precision import LOWER, matmul_precision
from .._target import running_device
from .._traced import check_untraced
from .._typing import Progress
from .._version import __version__
from ..attribution import AbstractMethod, check_method, fingerprints, IntegratedGradients
from ..data import Prompts
from ..graph import is_cut
from ..jacobian._certificate import certify_edges
from ..models import Transformer
from ..runs import prepare
from ..saes import Saes
from ._batches import ArrayBatches, Batch, PromptBatches, Source
from ._circuit import Circuit
from ._means import Averaging, mean_edges, mean_effects, NodeMeans
from ._meta import CircuitMeta
from ._sure_edges import sure_edges
from ._tables import edge_table, node_table


def discover(
    model: Transformer,
    saes: Saes,
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"] | None,
    metric: Metric,
    *,
    node_threshold: float,
    edge_threshold: float | None,
    method: AbstractMethod = IntegratedGradients(),
    aggregate: str = "sum",
    edges: str = "clean",
    thresholds: str = "averages",
    edge_precision: str | None = None,
    batch_size: int | None = None,
    mask: Bool[Array, "batch seq"] | None = None,
    progress: Progress | None = None,
) -> Circuit:
    """Finds the sparse feature circuit of a metric: the latents and errors that matter to it, and the edges between them.

    Effects are averaged over prompts. A node is kept if its average has `|effect| > node_threshold`, an edge between kept nodes if its
    average has `|weight| > edge_threshold`.

    **Arguments:**

    - `node_threshold`, `edge_threshold`: 0 or more, in the metric's units; `edge_threshold=None` finds nodes only, in a fraction of the
      time. About a hundredth of the total effect shows the strongest parts, to look at; run alone these carry little of the behaviour, by
      edges next to nothing. For a circuit that carries it, find one with thresholds ten times lower, for edges a hundred times, and let
      `jc.prune` raise them.
    - `method`: how node effects are estimated; edges use the same gradients.
    - `aggregate`: `"sum"` sums over positions; `"none"` keeps them apart, for prompts that align position by position.
    - `edges`: `"clean"`, or `"integrated"` along the path of `method`, so that they sum to the nodes' effects; see `jc.edge_effects`.
    - `thresholds`: which instances of a kept node, on single prompts at single positions, edges are computed into. `"averages"`: all, as
      the threshold has been applied to averages. `"instances"`: those with `|effect| > node_threshold` themselves; fewer, and what goes
      into the others is lost to the averages of edges.
    - `edge_precision`: of the matrix products that make edges: `None` as configured, or `"bfloat16"` or `"tensorfloat32"`, which are faster
      on accelerators. Then their error is measured, and edges that it could put on the wrong side of `edge_threshold` are computed again
      in float32. `meta.recomputed` says how many, and how large the error was. On a CPU it rounds as well, and nothing is gained.
    - `batch_size`: how many prompts are run at once, all by default. It changes memory and time, not the result.
    - `progress`: called as `progress(done, of, stage)`.
    - the rest as in `jc.node_effects`.

    **Returns:** a `Circuit`. Its `meta.completeness` holds, for each residual site, the sum of the node effects there over the
    total effect: integrated gradients are complete, so it tells how good the nodes' estimate is. `meta.certificate` holds the relative
    error of edges into each kind of site, measured against forward mode in float64, which NumPy computes.

    **Raises:** `ValueError` as `jc.node_effects` does; for a threshold that is negative or NaN; if the metric does not change; if no node
    is above the threshold; if edges are wrong by the certificate.

    **Reference:** Marks et al. 2024, "Sparse Feature Circuits", arXiv 2403.19647, §3.2. The reference implementation is
    `thresholds="instances"`.

    >>> prompts = jc.data.subject_verb(tokenizer, 16, kind="rc", seed=0)
    >>> circuit = jc.discover(model, saes, prompts.clean, prompts.corrupt, prompts.metric(), node_threshold=0.2, edge_threshold=0.05)
    >>> {"source", "target", "weight"} <= set(circuit.edges)
    True
    """
    check_untraced("discover", model)
    settings = _Settings(
        node_threshold, edge_threshold, method, aggregate, edges, thresholds, edge_precision, "discover"
    )
    problem = prepare(model, saes, clean, corrupt, metric, mask)
    batches = ArrayBatches(problem, batch_size, "discover")
    return _discover(model, batches, settings, progress)


def discover_batches(
    model: Transformer,
    saes: Saes,
    batches: Source[Prompts],
    *,
    node_threshold: float,
    edge_threshold: float | None,
    metric: Callable[[Prompts], Metric] = Prompts.metric,
    method: AbstractMethod = IntegratedGradients(),
    aggregate: str = "sum",
    edges: str = "clean",
    thresholds: str = "averages",
    edge_precision: str | None = None,
    progress: Progress | None = None,
) -> Circuit:
    """`jc.discover` for more prompts than one wants to have in memory.

    **Arguments:**

    - `batches`: gives `jc.data.Prompts`, one batch after another, and again when it is gone through a second time:
      `jc.data.PromptFile(path, tokenizer, batch_size=…)`, a list, or a collection of your own. Batches as large compile once
      for all lengths up to the next multiple of 8, or beyond 128 tokens of 16, and so on.
    - `metric`: makes the metric of a batch.
    - the rest as in `jc.discover`.

    **Returns:** the `Circuit` that `jc.discover` finds in all of them together.

    >>> batches = [jc.data.subject_verb(tokenizer, 16, kind="rc", seed=seed) for seed in range(2)]
    >>> circuit = jc.discover_batches(model, saes, batches, node_threshold=0.2, edge_threshold=0.05)
    >>> circuit.meta.prompts
    32
    """
    check_untraced("discover_batches", model)
    settings = _Settings(
        node_threshold, edge_threshold, method, aggregate, edges, thresholds, edge_precision, "discover_batches"
    )
    source = PromptBatches(model, saes, batches, metric)
    return _discover(model, source, settings, progress)


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What the two ways to ask have in common."""

    node_threshold: float
    edge_threshold: float | None
    method: AbstractMethod
    aggregate: str
    edges: str
    thresholds: str
    edge_precision: str | None
    verb: str

    def __post_init__(self):
        verb = self.verb
        check_threshold(f"{verb}: node_threshold", self.node_threshold)
        if self.edge_threshold is not None:
            check_threshold(f"{verb}: edge_threshold", self.edge_threshold)
        check_choice(f"{verb}: aggregate", self.aggregate, ("sum", "none"))
        check_choice(f"{verb}: edges", self.edges, ("clean", "integrated"))
        check_choice(f"{verb}: thresholds", self.thresholds, ("averages", "instances"))
        if self.edge_precision is not None:
            check_choice(f"{verb}: edge_precision", self.edge_precision, tuple(LOWER))
        check_method(self.method)
        if self.edges == "integrated" and not isinstance(self.method, IntegratedGradients):
            raise ValueError(
                f"{verb}: edges='integrated' takes the path of the nodes' method, and {type(self.method).__name__} has none. Use "
                "method=jc.IntegratedGradients(steps)."
            )

    def averaging(self) -> Averaging:
        method = self.method
        path = method if isinstance(method, IntegratedGradients) and self.edges == "integrated" else None
        above = self.node_threshold if self.thresholds == "instances" else None
        return Averaging(method, path, self.aggregate == "sum", above, self.verb)

    def as_dict(self) -> dict[str, Any]:
        shallow = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del shallow["edge_precision"], shallow["verb"]  # `recomputed` says the first, with what came of it
        shallow["edges_at"] = shallow.pop("edges")  # beside `edges`, which counts them wherever results are printed
        return {**shallow, "method": {"name": type(self.method).__name__, **dataclasses.asdict(self.method)}}


def _discover(model: Transformer, batches: Source[Batch], settings: _Settings, progress: Progress | None) -> Circuit:
    how, report = settings.averaging(), progress or (lambda done, of, stage: None)
    means = mean_effects(model, batches, how, report)
    kept = {site: nodes.above(settings.node_threshold) for site, nodes in means.effects.items()}
    if not any(len(nodes.numbers) for nodes in kept.values()):
        largest = max(float(np.abs(nodes.effects).max()) for nodes in means.effects.values())
        raise ValueError(
            f"No node has an effect above node_threshold={settings.node_threshold:g}; the largest is {largest:g}. Lower it."
        )
    given, recomputed = (model, batches, how, means, kept, report), None
    if settings.edge_threshold is None:
        weights, errors = {}, []
    elif settings.edge_precision is None:
        weights, errors = mean_edges(*given)
    else:
        limits = {"threshold": settings.edge_threshold, "precision": settings.edge_precision}
        weights, errors, recomputed = sure_edges(*given, **limits)
    nodes, names = node_table(kept)
    largest_edge = max((float(abs(matrix).max()) for matrix in weights.values() if matrix.nnz), default=0.0)
    certificate = certify_edges(errors, model.activation_dtype)
    meta = CircuitMeta(
        **_described(model, means),
        **settings.as_dict(),
        clean_metric=means.clean,
        total_effect=means.total,
        largest_edge=largest_edge,
        completeness=_completeness(means),
        certificate=None if certificate is None else certificate.as_dict(),
        recomputed=None if recomputed is None else recomputed.as_dict(),
    )
    return Circuit(nodes, edge_table(weights, names, settings.edge_threshold or 0.0), meta)


def _completeness(means: NodeMeans) -> dict[str, float]:
    """Divides the summed effects by the total effect, at each site that the whole residual stream passes."""
    if (
        not means.paired or means.total == 0
    ):  # every site has a baseline of its own, or prompts cancel and there is nothing to sum to
        return {}
    return {
        str(site): float(nodes.effects.sum()) / means.total for site, nodes in means.effects.items() if is_cut(site)
    }


def _described(model: Transformer, means: NodeMeans) -> dict[str, Any]:
    """Says what the circuit is of, and where it was computed."""
    of_model, of_dictionaries = fingerprints(model, means.saes)
    return {
        "model": model.name,
        "dictionaries": {str(site): sae.origin for site, sae in means.saes.items()},
        "d_sae": {str(site): sae.d_sae for site, sae in means.saes.items()},
        "fingerprints": {"model": of_model, "dictionaries": of_dictionaries},
        "metric": means.metric,
        "prompts": means.prompts,
        "length": means.lengths[0] if len(means.lengths) == 1 else means.lengths,
        "baseline": "corrupt prompts" if means.paired else "zero",
        "dtype": str(model.dtype),
        "device": running_device().device_kind,
        "precision": matmul_precision(),
        "versions": {"jaxcirc": __version__, "jax": jax.__version__, "jaxlib": jaxlib.version.__version__},
    }

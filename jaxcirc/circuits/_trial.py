"""A circuit on prompts that it is tried on: with everything that its evaluations take, checked once."""

import dataclasses
import functools as ft
from collections.abc import Iterable, Sequence
from typing import Any, TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from .._checks import check_choice, check_count, check_kind
from .._metrics import Metric
from .._traced import check_untraced
from .._typing import Progress
from ..components import AbstractAblation, Mean, Receivers
from ..models import Transformer
from ..runs import of_size, prepare, Problem, shortened
from ..saes import Saes
from ._batches import ArrayBatches
from ._circuit import Circuit
from ._curve import recovered
from ._evaluation import evaluated, Evaluation
from ._feature_graph import clean_run
from ._members import check_same
from ._minimality import lost
from ._prune import pruned
from ._runs import Runs
from ._steer import moved


if TYPE_CHECKING:
    import pandas as pd

ERRORS = ("default", "keep", "remove")
LEVELS = ("nodes", "edges")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Trial:
    r"""A circuit, a model with its dictionaries, and prompts: what is asked of a circuit is asked of these.

    `level="nodes"`: at each dictionary's site in turn, latents and error are computed from what has been ablated before; those that are
    not in the circuit are overwritten. Every edge between nodes of the circuit counts, found or not.

    `level="edges"`: every node of the circuit reads, along each edge of the circuit, its source as it is in this run, and along all other
    edges what the source is ablated to. So only the edges that were found carry anything. A node that is not in the circuit is ablated; a
    circuit with all edges between its nodes gives what `level="nodes"` gives. For the complement it is the other way round: the edges of
    the circuit carry what is ablated, and all others what is there.

    Where a decoder reads its input (normalised dictionaries, skip transcoders) that is held at its clean value at both levels, and the
    error of a run is what its latents leave there.

    **Arguments:**

    - `clean`, `corrupt`, `metric`, `mask`: as in `jc.discover`; prompts that the circuit was not found on, for an honest number.
    - `level`: what carries, `"nodes"` or `"edges"`.
    - `ablation`: what takes the place of the rest: `jc.MeanAblation()`, `jc.ZeroAblation()` or `jc.ResampleAblation(seed)`, of the corrupt
      prompts, or of the clean ones if there are none; `jc.Mean(tokens)` and `jc.Resample(tokens)` of others. Corrupt prompts have the
      padding of the clean ones, as `mask` is of both.
    - `start_layer`: dictionaries of earlier layers are left alone in every run.
    - `errors`: `"default"`, error nodes are in the circuit or not like others; `"keep"`, no error is ever ablated (`level="nodes"` only);
      `"remove"`, they are ablated in circuit and complement alike.
    - `batch_size`: how many prompts are run at once.
    - `verb`: who asks, for messages.

    **Raises:** `ValueError` as `jc.discover`; for a circuit of another model or other dictionaries, naming both; for nodes at positions
    of prompts of another length. Nothing is run before it is asked for; means over prompts are taken once.

    `dataclasses.replace(trial, level="edges")` is the same with another setting.

    >>> prompts = jc.data.subject_verb(tokenizer, 16, kind="rc", seed=0)
    >>> arguments = (prompts.clean, prompts.corrupt, prompts.metric())
    >>> circuit = jc.discover(model, saes, *arguments, node_threshold=0.02, edge_threshold=0.0005)
    >>> trial = jc.circuits.Trial(circuit, model, saes, *arguments)
    >>> 0.5 < trial.evaluate().faithfulness < 1.5
    True
    >>> trial.curve(thresholds=[0.1, 0.5])["nodes"].is_monotonic_decreasing
    True
    """

    circuit: Circuit
    model: Transformer
    saes: Saes
    clean: Int[Array, "batch seq"]
    corrupt: Int[Array, "batch seq"] | None
    metric: Metric
    _: dataclasses.KW_ONLY
    level: str = "nodes"
    ablation: AbstractAblation = Mean()
    start_layer: int = 0
    errors: str = "default"
    batch_size: int | None = None
    mask: Bool[Array, "batch seq"] | None = None
    verb: str = "Trial"

    def __post_init__(self):
        check_kind(f"{self.verb}: circuit", self.circuit, Circuit, "a circuit, as jc.discover gives one")
        if not isinstance(self.ablation, AbstractAblation):
            raise TypeError(
                f"{self.verb}: expected jc.MeanAblation(), jc.ZeroAblation() or jc.ResampleAblation() as the ablation, got a "
                f"{type(self.ablation).__name__}."
            )
        self._check_settings()
        _check_circuit(self.circuit, self.model, self.batches.problem)

    def evaluate(self, *, progress: Progress | None = None) -> Evaluation:
        """Runs the circuit without the rest of the model, and the rest without the circuit: see `jc.evaluate`."""
        return evaluated(self.circuit, self._runs, progress)

    def curve(
        self, *, thresholds: Sequence[float] | None = None, seed: int = 0, progress: Progress | None = None
    ) -> "pd.DataFrame":
        """Evaluates the circuit at one threshold after another: see `jc.recovery_curve`."""
        return recovered(self._some(), self._runs, thresholds, seed, progress)

    def minimality(self, *, most: int = 50, progress: Progress | None = None) -> "pd.DataFrame":
        """Takes the strongest nodes, or edges, out of the circuit one by one: see `jc.minimality`."""
        return lost(self._some(), self._runs, most, progress)

    def prune(self, *, faithfulness: float = 0.8, progress: Progress | None = None) -> Circuit:
        """Raises a threshold until what is left of the circuit carries just as much as is asked for: see `jc.prune`."""
        return pruned(self._some(), self._runs, faithfulness, progress)

    def steer(
        self, nodes: Iterable[str], *, strengths: Sequence[float] = (1.0,), progress: Progress | None = None
    ) -> "pd.DataFrame":
        """Moves nodes and compares the change of the metric with what the circuit's edges predict: see `jc.steer`."""
        return moved(self.verb, self.circuit, self.model, self.batches, nodes, strengths, progress)

    def __repr__(self) -> str:
        return f"Trial({self.circuit}, {self.batches.n} prompts, by {self.level})"

    @ft.cached_property
    def batches(self) -> ArrayBatches:
        """The prompts, checked."""
        check_untraced(self.verb, self.model, self.saes)
        problem = prepare(self.model, self.saes, self.clean, self.corrupt, self.metric, self.mask)
        return ArrayBatches(problem, self.batch_size, self.verb)

    @ft.cached_property
    def _runs(self) -> Runs:
        """**Raises:** `ValueError` where there are no values to ablate to."""
        return Runs(
            verb=self.verb,
            model=self.model,
            batches=self.batches,
            ablated=self.ablation.values(_receivers(self.model, self.batches)),
            level=self.level,
            intact=frozenset(site for site in self.batches.problem.saes if (site.layer or 0) < self.start_layer),
            errors=self.errors,
            settings=self._settings(),
        )

    def _settings(self) -> dict[str, Any]:
        """All that the numbers depend on beside the circuit, in plain JSON."""
        beside = "clean prompts" if self.corrupt is None else "corrupt prompts"
        return {
            "level": self.level,
            "ablation": {"name": type(self.ablation).__name__, **_plain(self.ablation)},
            "reference": "the ablation's own" if jax.tree.leaves(self.ablation) else beside,
            "start_layer": self.start_layer,
            "errors": self.errors,
            "prompts": self.batches.n,
            "model": self.model.name,
        }

    def _check_settings(self) -> None:
        check_choice(f"{self.verb}: level", self.level, LEVELS)
        check_choice(f"{self.verb}: errors", self.errors, ERRORS)
        if self.level == "edges" and self.errors == "keep":
            raise ValueError(
                f"{self.verb}: errors='keep' is of level='nodes'; an error node has no single input when every edge has its own value."
            )
        check_count(f"{self.verb}: start_layer", "layers are left alone", self.start_layer, least=0)
        if self.start_layer > self.model.n_layers:
            raise ValueError(f"{self.verb}: start_layer is from 0 to {self.model.n_layers}, got {self.start_layer}.")

    def _some(self) -> Circuit:
        """Returns the circuit. **Raises:** `ValueError` if there is nothing in it that could be taken away."""
        if not len(self.circuit.nodes if self.level == "nodes" else self.circuit.edges):
            raise ValueError(
                f"{self.verb}: the circuit has no {self.level}. Find it with lower thresholds, and for edges with an edge_threshold."
            )
        return self.circuit


def _check_circuit(circuit: Circuit, model: Transformer, problem: Problem) -> None:
    """ValueError if the circuit is of another model, other dictionaries or other prompts."""
    check_same(circuit, model, problem.saes)
    positions = [row.pos for row in circuit.node_rows() if row.pos is not None]
    seq, found = int(problem.length), circuit.meta.length
    if positions and isinstance(found, int) and found != seq:
        raise ValueError(
            f"The circuit keeps the positions of prompts of {found} tokens apart, and these have {seq}, which do not align with them. Use "
            "prompts of that length, or a circuit whose positions were summed."
        )
    if positions and max(positions) >= seq:
        raise ValueError(f"The circuit has nodes at position {max(positions)}, and the prompts have {seq} tokens.")
    if positions and not problem.given_mask().all():
        raise ValueError(
            "The circuit keeps positions apart, and padded prompts do not align. Use prompts of one length."
        )


def _receivers(model: Transformer, batches: ArrayBatches) -> Receivers:
    """Says what ablations need to know of the prompts: values are nodes, of the corrupt prompts where there are any."""
    problem = batches.problem
    of = lambda tokens, keys: clean_run(model, problem.saes, tokens, keys)[1]
    given = lambda tokens: shortened(np.asarray(tokens), int(problem.length))
    shapes = lambda: jax.eval_shape(of, problem.clean[:1], problem.mask[:1])
    return Receivers(
        model=model,
        tokens=given(problem.clean),
        mask=problem.given_mask(),
        others=given(problem.clean if problem.corrupt is None else problem.corrupt),
        of=of,
        zeros=lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes()),
        groups=lambda count: of_size(count, batches.size),
    )


def _plain(ablation: AbstractAblation) -> dict[str, Any]:
    """Lists the settings of an ablation that are not arrays."""
    return {
        field.name: getattr(ablation, field.name)
        for field in dataclasses.fields(ablation)
        if field.metadata.get("static")
    }

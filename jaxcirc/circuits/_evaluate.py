"""How much of a behaviour a circuit carries: its nodes, and its edges."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Array, Bool, Int

from .._metrics import Metric
from .._sites import Site
from ..models import Transformer
from ..saes import AbstractDictionary
from ._ablations import AbstractAblation, MeanAblation
from ._batches import Progress
from ._circuit import Circuit
from ._evaluation import Evaluation
from ._trial import RUNS, Trial, trial_of


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
    the circuit carry what is ablated, and all others what is there.

    Where a decoder reads its input (normalised dictionaries, skip transcoders) that is held at its clean value at both levels, and the
    error of a run is what its latents leave there.

    **Arguments:**

    - `clean`, `corrupt`, `metric`, `mask`: as in `jc.discover`; prompts that the circuit was not found on, for an honest number.
    - `ablation`: `jc.MeanAblation()`, `jc.ZeroAblation()` or `jc.ResampleAblation(seed)`, of the corrupt prompts, or of the clean ones if
      there are none. Corrupt prompts have the padding of the clean ones, as `mask` is of both.
    - `start_layer`: dictionaries of earlier layers are left alone in every run.
    - `errors`: `"default"`, error nodes are in the circuit or not like others; `"keep"`, no error is ever ablated (`level="nodes"` only);
      `"remove"`, they are ablated in circuit and complement alike.
    - `batch_size`: how many prompts are run at once.

    **Returns:** `Evaluation`.

    **Raises:** `ValueError` as `jc.discover`; for a circuit of another model or other dictionaries, naming both; for prompts whose
    positions do not align where values are taken from others; if ablating everything changes nothing.

    **Reference:** Marks et al. 2024, arXiv 2403.19647, §3.3 and appendix; means there are over the batch and for each position, as here.
    Edges are not evaluated there.

    >>> prompts = jc.data.subject_verb(tokenizer, 8, kind="rc", seed=0)
    >>> arguments = (prompts.clean, prompts.corrupt, prompts.metric())
    >>> circuit = jc.discover(model, saes, *arguments, node_threshold=0.1, edge_threshold=0.02)
    >>> found = jc.evaluate(circuit, model, saes, *arguments)
    >>> 0.5 < found.faithfulness < 1.5
    True
    """
    trial = trial_of(
        "evaluate",
        circuit,
        model,
        saes,
        clean,
        corrupt,
        metric,
        mask,
        ablation,
        level,
        start_layer,
        errors,
        batch_size,
        of_parts=False,
    )
    return evaluation(trial, circuit, trial.runs(circuit, RUNS, progress))


def evaluation(trial: Trial, circuit: Circuit, per_prompt: dict[str, np.ndarray]) -> Evaluation:
    """The result of all four runs. **Raises:** `ValueError` if ablating everything changes nothing."""
    check_explained(trial, per_prompt)
    return Evaluation(per_prompt, {**trial.settings, "nodes": len(circuit.nodes), "edges": len(circuit.edges)})


def check_explained(trial: Trial, per_prompt: dict[str, np.ndarray]) -> None:
    """ValueError if ablating everything changes nothing."""
    full, empty = per_prompt["full"].mean(), per_prompt["empty"].mean()
    if abs(full - empty) <= 1e-6 * max(abs(full), abs(empty)):
        raise ValueError(
            f"{trial.verb}: ablating every node leaves the metric at {empty:.4g}, as it is in the whole model, so there is nothing to "
            "explain. Use prompts on which clean and corrupt differ, or another ablation."
        )

"""Fits a Jacobian lens: prompt after prompt, one sweep back each, with a running mean for every layer."""

import contextlib
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool

from .._checks import check_choice, check_count, check_number, check_threshold
from .._files import check_writable
from .._fingerprint import fingerprint
from .._run import check_model
from .._traced import check_untraced
from .._typing import Progress as Report
from .._words import counted
from ..jacobian._rules import RULES
from ..models import check_known, Transformer
from ..runs import Corpus, corpus_prompts
from ._checkpoint import Checkpoint, Progress
from ._clusters import find_centres
from ._lanes import lanes_of, Swept, swept
from ._lens import JacobianLens
from ._running import add, nothing, Running
from ._settings import LensSettings
from ._store import check_suffix


AVERAGES = ("corpus", "cluster", "head")


def fit_lens(
    model: Transformer,
    prompts: Corpus,
    *,
    skip_first: int = 16,
    target_layer: int | None = None,
    rule: str = "exact",
    average: str = "corpus",
    clusters: int = 8,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: int | float = 60,
    stop_error: int | float | None = None,
    stop_movement: int | float | None = None,
    least: int = 100,
    mask: Bool[Array | np.ndarray, "prompt seq"] | None = None,
    budget: int | None = None,
    mesh: Mesh | None = None,
    progress: Report | None = None,
) -> JacobianLens:
    r"""Fits the Jacobian lens of a model: for every layer $l$ below the target layer the mean Jacobian

    $$J_l = E_{prompt} \Big[ \frac{1}{|V|} \sum_{p \in V} \sum_{p' \in V} \frac{\partial h_{target}[p']}{\partial h_l[p]} \Big],$$

    where $h_l$ is `blocks.l.hook_resid_post` and the valid positions $V$ of a prompt are those from `skip_first` on, but for the last. In
    a causal model only $p' \ge p$ have a part.

    **Arguments:**

    - `prompts`: token sequences of any lengths: a list of them, an array `[prompt seq]` with its `mask`, False for padding, or whatever
      else `jc.jacobian.mean` takes; those with fewer than `skip_first + 2` tokens are left out and counted.
    - `target_layer`: the layer to whose output the maps lead, the last unless given; from -1, the last, it counts from the end.
    - `rule`: `"exact"` derivatives; `"lrp"`: norm scales and attention patterns are held, activation functions are a held quotient times
      what they read, and of a product of two activations each passes half; `"detached"`: norm scales, patterns and gates are held, so
      that the map of each prompt is exactly linear.
    - `average`: `"corpus"`: one mean. `"cluster"`: one for each of `clusters` clusters of the layer's residual stream, found by k-means;
      each is over the positions of its cluster. `"head"`: the one mean in parts, by way of each head of the block behind the layer, and
      last by what passes all of them; their sum is the mean.
    - `checkpoint`: a file (`.safetensors`, or `.pt` as it is published) to which the fit is written every `checkpoint_seconds` and at the
      end, and from which it goes on if it is there, also with more prompts.
    - `stop_error`, `stop_movement`: stop after at least `least` prompts, when at every layer the standard error is this small beside the
      mean, or when a prompt has moved the means by no more than this (relative, Frobenius). `None` uses all prompts. A standard error is
      known, and can be small, from the second prompt on that has a part, for each cluster by itself.
    - `budget`: bytes for the rows of Jacobians that are swept at once, a quarter of the free memory unless given; halved where the device
      runs out.
    - `mesh`: a `jax.sharding.Mesh` of devices of this process, as `jax.make_mesh((4, 2), ("data", "tangents"))` gives one. Along `data`
      prompts are divided, along `tangents` the rows of a prompt's Jacobians; either axis may be left out. Every device has the model. Means
      and checkpoints are those of one device: to the last bit where only prompts are divided, else up to rounding.
    - `progress`: called with (done, of, "prompts").

    A prompt is run once, and swept back once for all layers. All valid positions of all output coordinates go together.

    **Returns:** `JacobianLens`: `.J[layer]` `[out in]`, `.standard_error[layer]`, `.readout(model, tokens)`, `.save(path)`.

    **Raises:** `ValueError` for no prompt that is long enough, prompts that the model cannot run, a target layer without layers below it, a
    checkpoint of something else, or a lens that is not finite; before any work.

    >>> lens = jc.fit_lens(model, [tokens], skip_first=1)
    >>> lens.J[0].shape, lens.n_prompts
    ((128, 128), 1)

    **Reference:** Gurnee et al. 2026, "Verbalizable Representations Form a Global Workspace in Language Models". The estimator is that of
    the reference implementation; it differs in that positions which have no part are not computed.
    """
    check_untraced("fit_lens", model)
    check_model(model)
    check_count("fit_lens: skip_first", "positions are left out", skip_first, least=0)
    check_choice("fit_lens: rule", rule, RULES)
    check_choice("fit_lens: average", average, AVERAGES)
    check_count("fit_lens: clusters", "clusters", clusters)
    check_count("fit_lens: least", "prompts", least)
    check_number("fit_lens: checkpoint_seconds", checkpoint_seconds)
    for name, value in (("stop_error", stop_error), ("stop_movement", stop_movement)):
        if value is not None:
            check_threshold(f"fit_lens: {name}", value)
    if budget is not None:
        check_count("fit_lens: budget", "bytes", budget)
    if average == "head":
        check_known("fit_lens: average='head'", model, "attn")
    lanes = lanes_of(mesh)
    target = _target(model, target_layer)
    given = corpus_prompts("fit_lens", model, prompts, mask)
    long_enough = [len(tokens) >= skip_first + 2 for tokens in given]
    if not any(long_enough):
        raise ValueError(
            f"fit_lens: none of {counted(len(given), 'prompt')} has the {skip_first + 2} tokens that skip_first={skip_first} asks for. "
            "Give longer prompts, or skip fewer positions."
        )
    path = None if checkpoint is None else check_suffix("fit_lens: checkpoint", checkpoint)
    if path is not None:
        check_writable(path)
    settings = LensSettings(target, skip_first, rule, average, model.name, fingerprint(model))
    of = {"corpus": 1, "cluster": clusters, "head": model.n_heads + 1}[average]
    kept = Checkpoint(path, checkpoint_seconds, settings, given, model, of)
    state = kept.resumed()
    if state is None:
        usable = (tokens for tokens, use in zip(given, long_enough, strict=True) if use)
        centres = (
            None
            if average != "cluster"
            else find_centres(model, usable, range(target), clusters=clusters, skip_first=skip_first)
        )
        means = {layer: nothing(of, model.d_model, model.activation_dtype) for layer in range(target)}
        held = None if centres is None else {layer: jnp.asarray(x) for layer, x in centres.items()}
        state = Progress(means, 0, 0, (), held)
    report = progress or (lambda done, of, stage: None)
    report(state.next, len(given), "prompts")
    ahead = [number for number in range(state.next, len(given)) if long_enough[number]]
    found = swept(model, settings, [given[number] for number in ahead], state.centres, budget, lanes)
    with contextlib.closing(found):
        for number in range(state.next, len(given)):
            if _is_enough(state, stop_error, stop_movement, least):
                break
            if long_enough[number]:
                state = _taken_in(state, next(found), number, settings, model.d_model)
            else:
                state = state._replace(next=number + 1, skipped=state.skipped + 1)
            kept.keep(state)
            report(number + 1, len(given), "prompts")
    kept.keep(state, at_once=True)
    if state.skipped:
        warnings.warn(
            f"fit_lens: {counted(state.skipped, 'prompt')} of {state.next} had fewer than {skip_first + 2} tokens and had no part.",
            stacklevel=2,
        )
    return JacobianLens(state.means, settings, state.n_prompts, state.skipped, state.centres, state.history)


def _target(model: Transformer, layer: int | None) -> int:
    """The target layer counted from the first. **Raises:** `ValueError` for one that is not there, or has no layer below it."""
    n = model.n_layers
    if layer is None:
        layer = n - 1
    check_number("fit_lens: target_layer", layer)
    found = int(layer) + n if layer < 0 else int(layer)
    if found != layer % n or not 0 < found < n:
        raise ValueError(
            f"fit_lens: target_layer is {layer}, and {model.name} has {n} layers. Expected one that has a layer below it: 1 to {n - 1}, or "
            "-1 for the last, -2 for the one before."
        )
    return found


def _is_enough(state: Progress, error: int | float | None, movement: int | float | None, least: int) -> bool:
    """Whether the means are as sure as was asked for."""
    if state.n_prompts < least or not state.history:
        return False
    if movement is not None and state.history[-1][2] <= movement:
        return True
    if error is None:
        return False
    # Not the `max` of Python, which passes over an error that is not known yet where that comes behind another.
    return bool(np.max([jnp.max(running.relative_error) for running in state.means.values()]) <= error)


def _taken_in(state: Progress, swept: Swept, number: int, settings: LensSettings, d_model: int) -> Progress:
    """With one prompt more in the means."""
    moved, size, summed = 0.0, 0.0, settings.average == "head"
    means: dict[int, Running] = {}
    for layer, matrices in swept.jacobians.items():
        weight = np.broadcast_to(swept.weights[layer], len(matrices)).astype(matrices.dtype)
        means[layer], by, of = add(state.means[layer], matrices, jnp.asarray(weight), summed=summed)
        moved, size = (float(np.maximum(*pair)) for pair in ((moved, by), (size, of)))  # NaN if either is
    if not np.isfinite(size):
        raise ValueError(
            f"fit_lens: the Jacobian of prompt {number} is not finite. Does the model hold NaN, or overflow on it?"
        )
    history = (*state.history, (number, size / d_model**0.5, moved))
    return state._replace(means=dict(sorted(means.items())), next=number + 1, history=history)

"""The problem that a verb is given: prompts, metric, dictionaries and mask, checked once, before anything is traced."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from .._checks import check_kind
from .._edits import as_pytree
from .._guard import check_backend
from .._metrics import AbstractMetric, Metric, position_read
from .._run import check_dictionaries, check_mask, check_metric, check_scalar, check_tokens, site_shapes
from .._sites import by_site, did_you_mean, Kind, Site
from .._tap import site_read
from .._traced import check_untraced, is_traced, kept_known
from .._typing import Logits
from ..graph import check_nodes
from ..models import check_known, Transformer
from ..saes import AbstractDictionary
from ._lengths import filled, lengthened, metric_of_first, shortened


class Problem(eqx.Module):
    """Checked arguments, in one form: sites as keys, arrays, a mask, a metric whose leaves carry the batch axis.

    Prompts are filled up with padding to a `seq` that many lengths share; `length` is theirs as they were given. It is an array, as a
    static one would be part of every program.
    """

    saes: dict[Site, AbstractDictionary]
    clean: Int[Array, "batch seq"]
    corrupt: Int[Array, "batch seq"] | None
    metric: Metric
    mask: Bool[Array, "batch seq"]
    length: Int[Array | np.ndarray, ""]

    def prompts(self) -> Int[Array, "side batch seq"]:
        """Clean and, if there are any, corrupt."""
        return jnp.stack([self.clean] if self.corrupt is None else [self.clean, self.corrupt])

    def given_mask(self) -> Bool[np.ndarray, "batch length"]:
        """The mask of the prompts as they were given."""
        return shortened(np.asarray(self.mask), int(self.length))


def prepare(
    model: Transformer,
    saes: Mapping[Site, AbstractDictionary] | Mapping[str, AbstractDictionary],
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"] | None,
    metric: Metric,
    mask: Bool[Array, "batch seq"] | None,
) -> Problem:
    """Checks and normalises the arguments. **Raises:** `ValueError`, each time with what was expected and what came."""
    sites = by_site(saes)
    check_saes(model, sites)
    return dataclasses.replace(prepare_prompts(model, clean, corrupt, metric, mask), saes=sites)


def prepare_prompts(
    model: Transformer,
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"] | None,
    metric: Metric,
    mask: Bool[Array, "batch seq"] | None,
) -> Problem:
    """The same for verbs without dictionaries; with the metric `ALL_LOGITS`, which reads padding too, for one that keeps them all."""
    check_untraced("prompts and their masks", clean, corrupt, mask)
    check_backend()
    check_tokens(model, clean, batched=True)
    check_known("Effects on a metric", model)
    shape = jnp.shape(clean)
    check_mask(clean, mask)
    real = np.ones(shape, bool) if mask is None else np.asarray(mask)
    if corrupt is not None:
        if jnp.shape(corrupt) != shape:
            raise ValueError(
                f"Clean and corrupt prompts come in pairs of equal length: clean has shape {shape}, corrupt {jnp.shape(corrupt)}. "
                "Pad both alike and give a mask, or drop the pairs whose lengths differ."
            )
        check_tokens(model, corrupt, batched=True)
        if not (real & (np.asarray(clean) != np.asarray(corrupt))).any():
            raise ValueError(
                "The corrupt prompts are equal to the clean ones, so there is no effect to explain. Give prompts that differ."
            )
    of_batch = metric if metric is ALL_LOGITS else batched(model, metric, shape)
    check_positions(of_batch, real)
    prompts, keys = filled(clean, real, model.most_positions)
    others = None if corrupt is None else lengthened(corrupt, prompts.shape[1])
    with kept_known():
        clean, corrupt, keys = jax.device_put((prompts, others, keys))
    return Problem(
        saes={},
        clean=clean,
        corrupt=corrupt,
        metric=of_batch if metric is ALL_LOGITS else metric_of_first(of_batch, shape[1]),
        mask=keys,
        length=np.asarray(shape[1], np.int32),
    )


def _logits(logits: Logits) -> Logits:
    return logits


ALL_LOGITS: Any = as_pytree(_logits)


def check_saes(model: Transformer, saes: Mapping[Site, AbstractDictionary]) -> None:
    """ValueError unless there are dictionaries, all at sites of the model that can hold nodes, and of the right widths."""
    if not saes:
        raise ValueError(
            "No dictionaries were given, so there are no nodes. Load some: saes = jc.load_saes(folder_or_name)."
        )
    shapes = site_shapes(model, 1)
    for site, sae in saes.items():
        check_kind(f"saes: at `{site}`", sae, AbstractDictionary, "a dictionary, as jc.load_sae gives one")
        for wanted in (site, site_read(site, sae)):
            if wanted not in shapes:
                hint = did_you_mean(str(wanted), map(str, shapes))
                raise ValueError(f"saes=…: no site `{wanted}` in {model.name} with {model.n_layers} layers. {hint}")
        widths = (int(np.prod(shapes[s].shape[1:])) for s in (site_read(site, sae), site))
        sae.check_width(site, *widths)
    check_nodes(sorted(saes))
    for kind, part in ((Kind.Z, "attn"), (Kind.MLP_POST, "mlp")):
        if any(site.kind == kind for site in saes):
            check_known(f"A dictionary at sites like `{Site(0, kind)}`", model, part)
    check_dictionaries(model, saes)


def batched(model: Transformer, metric: Metric, shape: tuple[int, ...]) -> Metric:
    """The metric as a pytree whose leaves have a leading batch axis, for prompts of `shape`; single token ids serve the whole batch.

    **Raises:** `ValueError` unless it makes one number of each prompt's logits.
    """
    batch, seq = shape
    check_metric(model, metric)
    metric = as_pytree(metric)
    leaves = jax.tree.leaves(metric)
    if isinstance(metric, AbstractMetric) and all(jnp.ndim(leaf) == 0 for leaf in leaves):
        with kept_known(metric):
            metric = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (batch,)), metric)
    elif wrong := [jnp.shape(leaf) for leaf in leaves if jnp.shape(leaf)[:1] != (batch,)]:
        raise ValueError(
            f"The metric's arrays carry a leading axis over the {batch} prompts; got one of shape {wrong[0]} in "
            f"{type(metric).__name__}. Give it one answer a prompt."
        )
    of_one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], jnp.result_type(leaf)), metric)
    check_scalar(of_one, jax.ShapeDtypeStruct((seq, len(model.b_U)), model.activation_dtype))
    return metric


def check_positions(metric: Metric, mask: Bool[np.ndarray, "batch seq"]) -> None:
    """ValueError if the metric reads beyond a prompt, or its padding: indexing would clamp and say nothing."""
    positions = position_read(metric)
    if positions is None or is_traced(positions):  # of which one that is not there makes NaN
        return
    seq = mask.shape[1]
    for prompt, position in enumerate(np.asarray(positions)):
        if not -seq <= position < seq:
            raise ValueError(
                f"The metric reads position {position} of prompt {prompt}, and the prompts have {seq} tokens."
            )
        if not mask[prompt, position]:
            raise ValueError(
                f"The metric reads position {position} of prompt {prompt}, which is padding. Give it the position of each prompt's "
                "last real token, as Prompts.metric() does."
            )

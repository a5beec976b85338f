"""Reads the residual stream of every layer through a lens: the strongest tokens, and the ranks of those that are asked for."""

import functools as ft
from collections.abc import Mapping
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._indexing import take
from .._shown import Shown
from .._sites import Kind, Site
from .._tap import bare_tap
from ..models import Transformer
from ..runs import filled, record
from ._clusters import nearest_centre


if TYPE_CHECKING:
    import pandas as pd


class LensReadout(Shown, eqx.Module):
    """A prompt, read at every layer.

    **Attributes:** for each of `layers`, of which the last is the lens's target:

    - `tokens`, `logits`, `probabilities` `[layer seq top_k]`: the tokens with the largest logits, these, and what they are by the softmax.
    - `entropy` `[layer seq]`: of the distribution over tokens, in nats.
    - `next_rank`, `logit_lens_rank` `[layer seq-1]`: the rank of the token that follows, 1 for the largest logit, as the lens reads it and
      as the logit lens does, which is the lens with every map the identity.
    - `ranks`, `logits_of` `[layer seq token]`: of the tokens that were asked for; `logit_lens_ranks`: by the logit lens.
    """

    layers: tuple[int, ...] = eqx.field(static=True)
    tokens: Int[Array, "layer seq top_k"]
    logits: Float[Array, "layer seq top_k"]
    probabilities: Float[Array, "layer seq top_k"]
    entropy: Float[Array, "layer seq"]
    next_rank: Int[Array, "layer seq-1"]
    logit_lens_rank: Int[Array, "layer seq-1"]
    ranks: Int[Array, "layer seq token"]
    logits_of: Float[Array, "layer seq token"]
    logit_lens_ranks: Int[Array, "layer seq token"]

    def _tables(self) -> "Mapping[str, pd.DataFrame]":
        return {".next_token()": self.next_token()}

    def next_token(self) -> "pd.DataFrame":
        """A row a layer: the median and the mean logarithm of the rank of the token that follows, by the lens and by the logit lens."""
        return ranks_table(self.layers, np.asarray(self.next_rank), np.asarray(self.logit_lens_rank))


def ranks_table(
    layers: tuple[int, ...], lens: Int[np.ndarray, "layer position"], logit_lens: Int[np.ndarray, "layer position"]
) -> "pd.DataFrame":
    """Sums up ranks of the tokens that follow, a row a layer; `top` is the share of positions at which it is the first."""
    import pandas as pd

    columns: dict[str, object] = {"layer": list(layers)}
    for name, ranks in (("lens", lens), ("logit_lens", logit_lens)):
        columns |= {
            f"{name}_median": np.median(ranks, axis=1),
            f"{name}_log_rank": np.log(ranks).mean(axis=1),
            f"{name}_top": (ranks == 1).mean(axis=1),
        }
    return pd.DataFrame(columns)


def read_layers(
    model: Transformer,
    tokens: Int[np.ndarray, " seq"],
    maps: Mapping[int, Float[Array, "map d_model d_model"]],
    centres: Mapping[int, Float[Array, "map d_model"]] | None,
    target: int,
    *,
    top_k: int,
    chosen: Int[np.ndarray, " token"],
    logit_lens: bool,
) -> LensReadout:
    """Runs a prompt, filled up to one of few lengths, and reads the layers that have `maps`, and the target, which needs none."""
    seq, layers = len(tokens), tuple(sorted({*maps, target}))
    run_tokens, mask = filled(tokens[None], np.ones((1, seq), bool), model.most_positions)
    sites = [Site(layer, Kind.RESID_POST) for layer in layers]
    run = record(model, run_tokens, mask, sites)
    following = jnp.asarray(np.roll(run_tokens[0], -1))
    ask = jnp.asarray(chosen.astype(np.int32))
    found = []
    for layer, site in zip(layers, sites, strict=True):
        resid = run.values[site][0]
        of, mine = (
            None if held is None or layer == target else held[layer].astype(resid.dtype) for held in (maps, centres)
        )
        read = ft.partial(_read, model.without_blocks, resid, following=following, chosen=ask, top_k=top_k)
        by_itself = read(None, None)
        by_lens = by_itself if of is None else read(of, mine)
        found.append((by_itself if logit_lens else by_lens, by_lens.following, by_itself))
    shown, next_rank, plain = zip(*found, strict=True)
    stack = lambda each, end: jnp.stack([x[:end] for x in each])
    of = lambda name, end=seq: stack([getattr(x, name) for x in shown], end)
    return LensReadout(
        layers,
        of("tokens"),
        of("logits"),
        of("probabilities"),
        of("entropy"),
        stack(next_rank, seq - 1),
        stack([each.following for each in plain], seq - 1),
        of("ranks"),
        of("logits_of"),
        stack([each.ranks for each in plain], seq),
    )


class _Reading(eqx.Module):
    tokens: Int[Array, "seq top_k"]
    logits: Float[Array, "seq top_k"]
    probabilities: Float[Array, "seq top_k"]
    entropy: Float[Array, " seq"]
    following: Int[Array, " seq"]
    ranks: Int[Array, "seq token"]
    logits_of: Float[Array, "seq token"]


@ft.partial(jax.jit, static_argnames="top_k")
def _read(ends: Transformer, resid, maps, centres, *, following, chosen, top_k: int) -> _Reading:
    """Carries a residual stream to the target, by the map of the nearest of the centres if there are several, and unembeds it."""
    if maps is not None:
        resid = _carried(resid, maps, centres)
    logits = ends.unembed(resid, bare_tap())
    values, ids = jax.lax.top_k(logits, top_k)
    logs = jax.nn.log_softmax(logits)
    rank = lambda own: 1 + jnp.sum(logits > own[:, None], axis=1)
    entropy = -jnp.sum(jnp.exp(logs) * logs, axis=1)
    own = take(logits, chosen, axis=1)
    following_rank = rank(jnp.take_along_axis(logits, following[:, None], 1)[:, 0])
    top = jnp.exp(values - jax.nn.logsumexp(logits, axis=1, keepdims=True))
    return _Reading(ids, values, top, entropy, following_rank, jax.vmap(rank, 1, 1)(own), own)


def _carried(
    resid: Float[Array, "seq d_model"],
    maps: Float[Array, "map d_model d_model"],
    centres: Float[Array, "map d_model"] | None,
) -> Float[Array, "seq d_model"]:
    if centres is None:
        # [seq d_model] · [out d_model] -> [seq out]
        return resid @ maps[0].T
    nearest = nearest_centre(resid, centres)
    # [seq d_model] · [map out d_model] -> [seq map out]
    every = jnp.einsum("sd,mod->smo", resid, maps)
    return jnp.take_along_axis(every, nearest[:, None, None], axis=1)[:, 0]

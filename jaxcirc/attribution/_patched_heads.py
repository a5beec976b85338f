"""Exact effects of heads' parts: all patches of a layer at once, from that layer on.

A head's query, key, value or output acts on the rest of the model through what the head writes, and this reaches the residual stream after
all of the layer's heads have read it. So a patched run is the clean run up to there, and goes on from that cut.
"""

import functools as ft
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._metrics import Metric
from .._precision import widened
from .._sites import Kind, Site
from ..graph import entry
from ..models import Transformer
from ..parts import Block
from ..runs import metric_from, windows_of
from ._heads import HeadStates, PARTS


class _Patches(NamedTuple):
    """Vectors to be patched in a layer, each by itself: of which prompt, which part of which head, and where."""

    rows: Int[np.ndarray, " patch"]
    parts: Int[np.ndarray, " patch"]
    positions: Int[np.ndarray, " patch"]
    heads: Int[np.ndarray, " patch"]


def patched_heads(
    model: Transformer, metric: Metric, mask: Bool[Array, "batch seq"], at: HeadStates, *, tokens_at_once: int
) -> dict[str, Float[np.ndarray, "batch layer seq head"]]:
    """The metric with one vector as in the corrupt run, less the clean metric, for every vector of each part. Those that do not differ
    have no effect and take no run.
    """
    differs = np.stack([np.asarray((at.differences[part] != 0).any(-1)) for part in PARTS], axis=2)
    clean, masks = np.asarray(at.metrics[0]), model.batch_masks(mask)
    effects = np.zeros(differs.shape, clean.dtype)  # [batch layer part seq head]
    layers = [_Patches(*np.nonzero(differs[:, layer])) for layer in range(model.n_layers)]
    windows = windows_of(model, metric, mask.shape[1], differs.size)
    caches = windows.caches(model, at.resid)
    groups = windows.groups([(patches.rows, patches.positions) for patches in layers], tokens_at_once)
    for layer, (block, patches) in enumerate(zip(model.blocks, layers, strict=True)):
        cut = entry(model, Site(layer, Kind.Z))
        for numbers, size in groups[layer]:
            some = _Patches(*(x[numbers] for x in patches))
            window = windows.window(some.positions, size, caches)
            resid = _replaced(block, at, at.resid[cut], layer, some, window.first, size=size)
            after = metric_from(model, metric, masks, cut, some.rows, resid, window)
            effects[some.rows, layer, some.parts, some.positions, some.heads] = np.asarray(after) - clean[some.rows]
    return dict(zip(PARTS, np.moveaxis(effects, 2, 0), strict=True))


@ft.partial(jax.jit, static_argnames="size")
def _replaced(
    block: Block, at: HeadStates, entered, layer, patches: _Patches, first, *, size: int
) -> Float[Array, "patch seq d_model"]:
    """Puts the patches in place: the residual stream that their heads enter, at `size` positions from the `first` of each patch on."""
    attn = widened(block.attn)

    def one(row, part, position, head, first):
        ours = lambda x: jax.lax.dynamic_slice_in_dim(x, first, size)
        q, k, v = (at.clean[name][row, layer, :, head] for name in "qkv")  # [seq d_head]
        change = {
            name: jnp.where(part == number, at.differences[name][row, layer, position, head], 0)
            for number, name in enumerate(PARTS)
        }
        key = jnp.arange(len(k)) == position
        query, scores = ours(key), ours(at.scores[row, layer, head])
        # [seq d_head] · [d_head] -> [seq]: of one row, and of one column
        of_query, of_key = k @ change["q"] * attn.scale, ours(q) @ change["k"] * attn.scale
        moved = scores + jnp.where(query[:, None], of_query, 0) + jnp.where(key, of_key[:, None], 0)
        written = lambda scores, v: (
            jax.nn.softmax(scores, axis=-1) @ v
        )  # [q_seq k_seq] · [k_seq d_head] -> [q_seq d_head]
        difference = written(moved, v + jnp.where(key[:, None], change["v"], 0)) - written(scores, v)
        difference += jnp.where(query[:, None], change["z"], 0)
        alone = jnp.zeros((size, *attn.b_Q.shape), difference.dtype).at[:, head].set(difference)
        # [seq head d_head] · [head d_head d_model] -> [seq d_model]
        return ours(entered[row]) + jnp.einsum("shd,hdm->sm", alone, attn.W_O)

    return jax.vmap(one)(*patches, first)

"""Exact effects of heads' parts: all patches of a layer at once, from that layer on.

A head's query, key, value or output acts on the rest of the model through what the layer's heads write, and this reaches the residual
stream after all of them have read it. So a patched run is the clean run up to there, and goes on from that cut. A key or value that
several heads read moves what all of them write.
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
from ..graph import Entry, entry
from ..models import Transformer
from ..parts import Block
from ..parts._attention import grouped_average, grouped_scores
from ..runs import metric_from, tokens_together, windows_of
from ._heads import HeadStates, PARTS
from ._scores import capped_change, moves_together, placed_change


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
    differs = np.stack(_by_head([np.asarray((at.differences[part] != 0).any(-1)) for part in PARTS]), axis=2)
    clean, masks = np.asarray(at.metrics[0]), model.batch_masks(mask)
    effects = np.zeros(differs.shape, clean.dtype)  # [batch layer part seq head]
    layers = [_Patches(*np.nonzero(differs[:, layer])) for layer in range(model.n_layers)]
    windows = windows_of(model, metric, mask.shape[1], differs.size)
    caches = windows.caches(model, at.resid)
    lists = [(patches.rows, patches.positions) for patches in layers]
    groups = windows.groups(lists, tokens_together(model, windows.seq, tokens_at_once))
    for layer, (block, patches) in enumerate(zip(model.blocks, layers, strict=True)):
        cut = entry(model, Site(layer, Kind.Z))
        for numbers, size in groups[layer]:
            some = _Patches(*(x[numbers] for x in patches))
            window = windows.window(some.positions, size, caches)
            resid = _replaced(block, at, at.resid[cut], layer, some, window.first, size=size)
            after = metric_from(model, metric, masks, cut, some.rows, resid, window)
            effects[some.rows, layer, some.parts, some.positions, some.heads] = np.asarray(after) - clean[some.rows]
    units = {part: each.shape[-2] for part, each in at.differences.items()}
    return {part: effects[:, :, number, :, : units[part]] for part, number in _NUMBER.items()}


_NUMBER = {part: number for number, part in enumerate(PARTS)}


def _by_head(parts: list[np.ndarray]) -> list[np.ndarray]:
    """Fills up what there is of each part `[… head]` to as many heads as have most: several may share keys and values."""
    most = max(each.shape[-1] for each in parts)
    return [np.pad(each, [(0, 0)] * (each.ndim - 1) + [(0, most - each.shape[-1])]) for each in parts]


@ft.partial(jax.jit, static_argnames="size")
def _replaced(
    block: Block, at: HeadStates, entered, layer, patches: _Patches, first, *, size: int
) -> Float[Array, "patch seq d_model"]:
    """Puts the patches in place: the residual stream that their heads enter, at `size` positions from the `first` of each patch on."""
    attn = widened(block.attn)
    # Heads in sets that move together: those that share keys and values, or all of them.
    heads, groups = attn.b_Q.shape[0], attn.b_K.shape[0]
    sets = 1 if moves_together(attn) else groups
    in_sets = lambda x: x.reshape(*x.shape[:-2], sets, -1, x.shape[-1])
    clean, placed, differences = (jax.tree.map(in_sets, x) for x in (at.clean, at.placed, at.differences))
    all_scores = at.scores.reshape(*at.scores.shape[:2], sets, -1, *at.scores.shape[3:])

    def one(row, part, position, unit, first):
        ours = lambda x, axis=0: jax.lax.dynamic_slice_in_dim(x, first, size, axis)
        shared = (part == _NUMBER["k"]) | (part == _NUMBER["v"])
        which, own = jnp.divmod(unit, jnp.where(shared, groups // sets, heads // sets).astype(unit.dtype))
        there = lambda x: x[row, layer, position, which][None]  # [1 head d_head]
        everywhere = lambda x: x[row, layer, :, which]  # [seq head d_head]

        def change(name: str) -> Float[Array, "1 head d_head"]:
            x = there(differences[name])
            mine = (part == _NUMBER[name]) & (jnp.arange(x.shape[1]) == own)
            return jnp.where(mine[:, None], x, 0)

        move = lambda name, norm: placed_change(norm, attn.rotary, there(clean[name]), change(name), position[None])
        by = lambda q, k: grouped_scores(q, k) * attn.scale
        queries, keys = ours(everywhere(placed["q"])), everywhere(placed["k"])
        # [head 1 k_seq] and [head q_seq 1]: of one row, and of one column.
        of_query = capped_change(attn, by(there(placed["q"]), keys), by(move("q", attn.q_norm), keys))
        of_key = capped_change(attn, by(queries, there(placed["k"])), by(queries, move("k", attn.k_norm)))
        key = jnp.arange(len(keys)) == position
        query, scores = ours(key), ours(all_scores[row, layer, which], 1)
        moved = scores + jnp.where(query[:, None], of_query, 0) + jnp.where(key, of_key, 0)
        v = everywhere(clean["v"])
        averaged = lambda scores, v: grouped_average(jax.nn.softmax(scores, axis=-1), v)
        difference = averaged(moved, v + jnp.where(key[:, None, None], change("v"), 0)) - averaged(scores, v)
        difference += jnp.where(query[:, None, None], change("z"), 0)
        alone = jnp.zeros((size, sets, *difference.shape[1:]), difference.dtype).at[:, which].set(difference)
        # [seq head d_head] · [head d_head d_model] -> [seq d_model]
        added = jnp.einsum("shd,hdm->sm", alone.reshape(size, *attn.b_Q.shape), attn.W_O)
        read = None if at.heads_out is None else ours(at.heads_out[row, layer])
        return ours(entered[row]) + Entry(added, read, block.ln1_post).at(1)

    return jax.vmap(one)(*patches, first)

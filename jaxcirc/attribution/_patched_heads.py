"""Exact effects of heads' parts: all patches of a layer at once, from that layer on.

A head's query, key, value or output acts on the rest of the model through what the head writes, and this reaches the residual stream after
all of the layer's heads have read it. So a patched run is the clean run up to there, and goes on from that cut.
"""

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
from ..runs import in_groups, metric_of_variants, resume, rounded_up
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
    most = rounded_up(int(differs.sum((0, 2, 3, 4)).max()), steps=8)
    for layer, block in enumerate(model.blocks):
        patches, cut = _Patches(*np.nonzero(differs[:, layer])), entry(model, Site(layer, Kind.Z))
        for numbers in in_groups(len(patches.rows), mask.shape[1], tokens_at_once, most=most):
            some = _Patches(*(x[numbers] for x in patches))
            last, _ = resume(model, masks, cut, some.rows, _replaced(block, at, layer, some))
            after = np.asarray(metric_of_variants(model.without_blocks, metric, some.rows, last))
            effects[some.rows, layer, some.parts, some.positions, some.heads] = after - clean[some.rows]
    return dict(zip(PARTS, np.moveaxis(effects, 2, 0), strict=True))


@jax.jit
def _replaced(block: Block, at: HeadStates, layer, patches: _Patches) -> Float[Array, "patch seq d_model"]:
    """Puts the patches in place: the residual stream that their heads enter."""
    attn = widened(block.attn)

    def one(row, part, position, head):
        clean = {name: at.clean[name][row, layer, :, head] for name in PARTS}  # [seq d_head]
        change = {
            name: jnp.where(part == number, at.differences[name][row, layer, position, head], 0)
            for number, name in enumerate(PARTS)
        }
        here = jnp.arange(clean["z"].shape[0]) == position
        scores = at.scores[row, layer, head]
        # [seq d_head] · [d_head] -> [seq]: of one row, and of one column
        of_query, of_key = clean["k"] @ change["q"] * attn.scale, clean["q"] @ change["k"] * attn.scale
        moved = scores + jnp.where(here[:, None], of_query, 0) + jnp.where(here, of_key[:, None], 0)
        add = lambda name: clean[name] + jnp.where(here[:, None], change[name], 0)
        written = lambda scores, v: (
            jax.nn.softmax(scores, axis=-1) @ v
        )  # [q_seq k_seq] · [k_seq d_head] -> [q_seq d_head]
        difference = written(moved, add("v")) - written(scores, clean["v"]) + add("z") - clean["z"]
        alone = jnp.zeros((len(here), *attn.b_Q.shape), difference.dtype).at[:, head].set(difference)
        # [seq head d_head] · [head d_head d_model] -> [seq d_model]
        resid = at.entered[row, layer] + jnp.einsum("shd,hdm->sm", alone, attn.W_O)
        return resid

    return jax.vmap(one)(*patches)

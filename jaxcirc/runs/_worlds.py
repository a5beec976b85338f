"""Worlds: a run in which every component reads its own mixture of what components write here and what they wrote in another run.

In an ordinary run all that read the residual stream at a place read the same. Here each head's query, key and value and each MLP has an
input of its own: the stream of this run, and for each sender before it a share of the difference to the other run,

    x_v = resid + sum_u weight[u, v] (other_u - own_u).

With all weights 0 that is the ordinary run, with all 1 the other one. What senders write "here" follows from what they read here, so
effects compose.
"""

import functools as ft
from collections.abc import Collection, Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from .._edits import AbstractEdit, Replace
from .._metrics import Metric
from .._precision import widened
from .._run import NOTHING
from .._sites import Kind, Site
from .._tap import Tap
from ..graph import ComponentGraph
from ..models import Transformer
from ..parts import Attention, Block, RMSNorm
from ._resume import Masks, metric_of_variants, Variants
from ._writes import attention_writes, EMBEDDED, embedding_writes, kinds_written, mlp_writes


Weights = Float[Array, "variant *position sender receiver"]
Values = dict[Kind, Float[Array, "..."]]
Edits = Mapping[Site, AbstractEdit]


class HeadReads(eqx.Module):
    """What each query, key and value of a block's heads reads of the residual stream."""

    q: Float[Array, "head seq d_model"]
    k: Float[Array, "kv_head seq d_model"]
    v: Float[Array, "kv_head seq d_model"]


def as_graph(model: Transformer, graph: ComponentGraph) -> Transformer:
    """The model as the graph has it: with keys and values of its own for each head, where heads that share them are receivers each."""
    share = graph.n_heads // model.n_kv_heads
    if graph.n_kv_heads != graph.n_heads or share == 1:
        return model
    return eqx.tree_at(lambda model: model.blocks, model, tuple(_ungrouped(block, share) for block in model.blocks))


def _ungrouped(block: Block, share: int) -> Block:
    each = lambda x: jnp.repeat(x, share, axis=0)
    owned = lambda attn: [attn.W_K, attn.b_K, attn.W_V, attn.b_V]
    attn = eqx.tree_at(owned, block.attn, list(map(each, owned(block.attn))))
    if isinstance(attn.k_norm, RMSNorm) and attn.k_norm.joint:  # its mean is over heads of which each is there as often
        attn = eqx.tree_at(lambda attn: attn.k_norm.weight, attn, each(attn.k_norm.weight))
    return eqx.tree_at(lambda block: block.attn, block, attn)


def attend_each(
    block: Block,
    resid: Float[Array, "seq d_model"],
    reads: HeadReads,
    mask: Bool[Array, "q_seq k_seq"],
    edits: Edits = NOTHING,
    record: Collection[Kind] = (),
) -> tuple[Float[Array, "seq d_model"], Values]:
    """Runs the attention of a block with an input for each head's query, key and value. Sites are of layer 0.

    **Returns:** `resid` with what it makes added, and what was recorded.
    """
    attn: Attention = widened(block.attn)
    in_norm = lambda x: x if block.ln1 is None else block.ln1(x, Tap(NOTHING, edits, (), layer=0))
    # [head seq d_model] · [head d_model d_head] -> [seq head d_head]
    project = lambda x, W, b: jnp.einsum("htm,hmd->thd", jax.vmap(in_norm)(x), W) + b
    own = {
        Kind.Q: project(reads.q, attn.W_Q, attn.b_Q),
        Kind.K: project(reads.k, attn.W_K, attn.b_K),
        Kind.V: project(reads.v, attn.W_V, attn.b_V),
    }
    return attend_projected(block, resid, own, mask, edits, record)


def attend_projected(
    block: Block,
    resid: Float[Array, "seq d_model"],
    own: Values,
    mask: Bool[Array, "q_seq k_seq"],
    edits: Edits = NOTHING,
    record: Collection[Kind] = (),
) -> tuple[Float[Array, "seq d_model"], Values]:
    """The same with queries, keys and values at hand."""
    edited = lambda site, x: Replace(edits[site](x) if site in edits else x)
    placed = {Site(0, kind): edited(Site(0, kind), x) for kind, x in own.items()}
    tap = Tap(NOTHING, {**edits, **placed}, {Site(0, kind) for kind in record}, layer=0)
    after = block.attend(resid, mask, tap)
    return after, {site.kind: value for site, value in tap.cache.items()}


def feed_own(
    block: Block,
    resid: Float[Array, "seq d_model"],
    read: Float[Array, "seq d_model"],
    edits: Edits = NOTHING,
    record: Collection[Kind] = (),
) -> tuple[Float[Array, "seq d_model"], Values]:
    """Runs the MLP of a block on an input of its own. **Returns:** `resid` with what it makes added, and what was recorded."""
    tap = Tap(NOTHING, edits, {Site(0, kind) for kind in {Kind.MLP_OUT, *record}}, layer=0)
    block.feed(read, tap)
    found = {site.kind: value for site, value in tap.cache.items()}
    return resid + found[Kind.MLP_OUT], found


def run_worlds(
    model: Transformer,
    graph: ComponentGraph,
    tokens: Int[Array, "batch seq"],
    mask: Bool[Array, "batch seq"],
    metric: Metric,
    other: Float[Array, "other sender seq d_model"],
    rows: Int[np.ndarray, " variant"],
    weight: Weights,
) -> Float[Array, " variant"]:
    """Runs variants of prompts `rows`, each with its own mixture of two worlds.

    **Arguments:** - `model`: as the graph has it. - `other`: what senders wrote in the other run of each prompt, or of all, `[1 …]`. -
    `weight`: how much of the other world each receiver reads from each sender; 0 where there is no edge.

    **Returns:** the metric.
    """
    start = _enter(graph, model.without_blocks, tokens, mask, other, jnp.asarray(rows))
    return worlds_from(model, graph, model.batch_masks(mask), metric, other, rows, weight, start)


def worlds_from(
    model: Transformer,
    graph: ComponentGraph,
    masks: Masks,
    metric: Metric,
    other: Float[Array, "other sender seq d_model"],
    rows: Int[np.ndarray, " variant"],
    weight: Weights,
    start: tuple[Variants, Float[Array, "variant sender seq d_model"]],
    *,
    layer: int = 0,
    half: bool = False,
) -> Float[Array, " variant"]:
    """The same from the beginning of a layer on, or from its second `half`: `start` is the residual stream there, and by how much what
    senders write differs from the other world, of which those further on are not read. Both may be overwritten.
    """
    resid, moved = start
    step = _through if any(isinstance(x, Tracer) for x in (moved, weight)) else _through_in_place
    for number in range(layer, model.n_layers):
        numbers, whole = np.asarray(number, np.int32), number > layer or not half
        given = masks[number], numbers, rows, resid, moved, weight, other
        resid, moved = step(graph, model.blocks[number], *given, whole=whole)
    resid = _leave(graph, resid, moved, weight)
    return metric_of_variants(model.without_blocks, metric, rows, resid)


def bytes_of_variant(model: Transformer, graph: ComponentGraph, seq: int) -> int:
    """Counts what one variant holds: what senders moved, and what the receivers of a layer read, twice as often as they are."""
    readers = len(graph.receivers) // graph.n_layers
    return (2 * len(graph.senders) + 2 * readers + 8) * seq * model.d_model * model.activation_dtype.itemsize


@ft.partial(jax.jit, static_argnames="graph")
def _enter(
    graph: ComponentGraph, ends: Transformer, tokens, mask, other, rows
) -> tuple[Float[Array, "variant seq d_model"], Float[Array, "variant sender seq d_model"]]:
    """Embeds variants: their residual stream, and by how much what senders write differs from the other world; 0 of those in blocks."""

    def one(row):
        tap = Tap(NOTHING, NOTHING, {Site(None, kind) for kind in EMBEDDED})
        resid = ends.embed(tokens[row], tap, mask[row])
        own = embedding_writes(graph, {site.kind: value for site, value in tap.cache.items()})
        theirs = other[row % len(other)]
        return resid, jnp.zeros_like(theirs).at[: len(own)].set(theirs[: len(own)] - own)

    return jax.vmap(one)(rows)


def _step(graph: ComponentGraph, block: Block, masks, layer, rows, resid, moved, weight, other, *, whole: bool):
    """Runs a block, or its MLP alone, the same program for all: the residual stream behind it, and what its senders moved put with the
    others'.
    """
    shape = graph.of_layer
    H, K = graph.n_heads, graph.n_kv_heads

    def one(row, resid, moved, weight):
        mine = jax.lax.dynamic_slice_in_dim(weight, layer * shape.receivers, shape.receivers, axis=-1)
        first = shape.first + layer * shape.senders

        def differing(own, moved, first):
            theirs = jax.lax.dynamic_slice_in_dim(other[row % len(other)], first, len(own))
            return jax.lax.dynamic_update_slice_in_dim(moved, theirs - own, first, axis=0)

        after = resid
        if whole:
            reads = resid + mixed(mine[..., : H + 2 * K], moved)
            reads = HeadReads(reads[:H], reads[H : H + K], reads[H + K :])
            after, values = attend_each(block, resid, reads, masks[row], record=kinds_written(block))
            moved = differing(attention_writes(graph, block, values), moved, first)
        if block.mlp is None:
            return after, moved
        read = (resid if graph.parallel else after) + mixed(mine[..., H + 2 * K :], moved)[0]
        after, values = feed_own(block, after, read, record=kinds_written(block))
        return after, differing(mlp_writes(graph, block, values), moved, first + H + int(graph.biases))

    return jax.vmap(one)(rows, resid, moved, weight)


_through = jax.jit(_step, static_argnames=("graph", "whole"))
_through_in_place = jax.jit(_step, static_argnames=("graph", "whole"), donate_argnames=("resid", "moved"))


@ft.partial(jax.jit, static_argnames="graph")
def _leave(graph: ComponentGraph, resid, moved, weight) -> Float[Array, "variant seq d_model"]:
    """What the logits read."""
    last = len(graph.receivers) - 1
    return resid + jax.vmap(lambda weight, moved: mixed(weight[..., last:], moved)[0])(weight, moved)


def mixed(
    weight: Float[Array, "*position sender receiver"], moved: Float[Array, "sender seq d_model"]
) -> Float[Array, "receiver seq d_model"]:
    """Sums what senders moved, each by its weight to a receiver, at all positions or of each position."""
    # [sender receiver] · [sender seq d_model] -> [receiver seq d_model]
    return jnp.einsum("uv,utm->vtm" if weight.ndim == 2 else "tuv,utm->vtm", weight, moved)

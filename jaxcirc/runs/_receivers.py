"""The way back to every receiver: the gradient of the metric at what each head's query, key and value and each MLP reads by itself."""

import functools as ft
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._metrics import Metric
from .._precision import widened
from .._run import metric_of_last, NOTHING
from .._sites import Kind, Site
from .._tap import Tap
from ..graph import ComponentGraph
from ..models import Transformer
from ..parts import Block
from ._resume import blocks_from, Edits, onwards, Variants
from ._worlds import attend_projected, feed_own


Gradients = Float[Array, "variant receiver seq d_model"]


def receiver_gradients(
    model: Transformer,
    graph: ComponentGraph,
    metric: Metric,
    masks: tuple[Bool[Array, "batch q_seq k_seq"], ...],
    cut: Site,
    rows: Int[np.ndarray, " variant"],
    resid: Variants | Sequence[Variants],
    edits: Edits = NOTHING,
) -> Iterator[tuple[int, Gradients]]:
    """Runs variants `resid` of prompts `rows` from a residual cut on, and back.

    **Arguments:** - `model`: as the graph has it. - `resid`: where that is known, also what enters each block from there on and what
    leaves the last; then there is only the way back. - `edits`: at sites of blocks and behind the last, the same for all variants: what is
    detached there is held on the way back.

    **Returns:** from the logits back, the number of the first of some receivers that stand behind one another, and the gradient of each
    variant's metric at what they read. Of the way there only the residual stream between blocks is held, and each block is run again.
    """
    layers = list(blocks_from(model, cut))
    if isinstance(resid, Sequence):
        entering = list(resid)
    else:
        entering = [resid, *(after for _, after, _ in onwards(model, masks, cut, rows, resid))]
    behind = {site: edit for site, edit in edits.items() if site.layer is None}
    gradient = _at_logits(model.without_blocks, metric, rows, entering.pop(), behind)
    yield len(graph.receivers) - 1, gradient[:, None]
    for layer, whole in reversed(layers):
        block = model.blocks[layer]
        inside = {site.offset_layers(-layer): edit for site, edit in edits.items() if site.layer == layer}
        resid = entering.pop()
        gradient, found = _back(graph, block, masks[layer], rows, resid, gradient, inside, whole=whole)
        yield (layer + 1) * graph.of_layer.receivers - found.shape[1], found


def bytes_of_way_back(model: Transformer, graph: ComponentGraph, seq: int) -> int:
    """Counts what the way back of one variant holds: the stream between blocks, and in a block a few times what its receivers read."""
    held = model.n_layers + 8 * graph.of_layer.receivers + 16
    return held * seq * model.d_model * model.activation_dtype.itemsize


@ft.partial(jax.jit, static_argnames=("graph", "whole"))
def _back(
    graph: ComponentGraph, block: Block, masks, rows, resid: Variants, gradient: Variants, edits: Edits, *, whole: bool
) -> tuple[Variants, Gradients]:
    """Pulls the gradient behind a block, or behind its MLP, back to what enters, and to each receiver in it by itself.

    All heads read the same on the way there, so the norm in front of them is run once; on the way back each query, key and value has a
    gradient of its own, which passes it by itself.
    """

    def one(row, resid, gradient):
        of_heads, own = (lambda own: resid[None][:0]), {}
        if whole:
            own, of_heads = _projections(block, resid, edits)

        def run(resid, own, change):
            after = attend_projected(block, resid, own, masks[row], edits)[0] if whole else resid
            if block.mlp is None:
                return after
            return feed_own(block, after, (resid if graph.parallel else after) + change, edits)[0]

        of_stream, of_own, of_mlp = jax.vjp(run, resid, own, jnp.zeros_like(resid))[1](gradient)
        found = of_heads(of_own)
        return of_stream + found.sum(0), jnp.concatenate([found, of_mlp[None]] if block.mlp is not None else [found])

    return jax.vmap(one)(rows, resid, gradient)


def _projections(
    block: Block, resid: Float[Array, "seq d_model"], edits: Edits
) -> tuple[
    dict[Kind, Float[Array, "seq head d_head"]], Callable[[dict[Kind, Array]], Float[Array, "slot seq d_model"]]
]:
    """All queries, keys and values where `resid` enters; and a function from gradients at these to those at what each by itself reads."""
    attn = widened(block.attn)
    weights = {Kind.Q: (attn.W_Q, attn.b_Q), Kind.K: (attn.W_K, attn.b_K), Kind.V: (attn.W_V, attn.b_V)}
    in_norm = lambda x: x if block.ln1 is None else block.ln1(x, Tap(NOTHING, edits, (), layer=0))
    read, through_norm = jax.vjp(in_norm, resid)
    # [seq d_model] · [head d_model d_head] -> [seq head d_head]
    own = {kind: jnp.einsum("tm,hmd->thd", read, W) + b for kind, (W, b) in weights.items()}

    def back(of_own):
        # [seq head d_head] · [head d_model d_head] -> [head seq d_model]
        at_read = [jnp.einsum("thd,hmd->htm", of_own[kind], W) for kind, (W, _) in weights.items()]
        return jax.vmap(lambda x: through_norm(x)[0])(jnp.concatenate(at_read))

    return own, back


@jax.jit
def _at_logits(ends: Transformer, metric: Metric, rows, resid: Variants, edits: Edits) -> Variants:
    def one(row, resid):
        mine = jax.tree.map(lambda x: x[row], metric)
        return jax.grad(lambda x: metric_of_last(ends, mine, x, edits))(resid)

    return jax.vmap(one)(jnp.asarray(rows), resid)

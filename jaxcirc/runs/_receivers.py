"""The way back to every receiver: the gradient of the metric at what each head's query, key and value and each MLP reads by itself."""

import functools as ft
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._metrics import Metric
from .._run import metric_of_last, NOTHING
from .._sites import Site
from ..graph import ComponentGraph
from ..models import Transformer
from ..parts import Block
from ._resume import blocks_from, Edits, onwards, Variants
from ._worlds import attend_each, feed_own, HeadReads


Gradients = Float[Array, "variant receiver seq d_model"]


def receiver_gradients(
    model: Transformer,
    graph: ComponentGraph,
    metric: Metric,
    masks: tuple[Bool[Array, "batch q_seq k_seq"], ...],
    cut: Site,
    rows: Int[np.ndarray, " variant"],
    resid: Variants,
    edits: Edits = NOTHING,
) -> Iterator[tuple[int, Gradients]]:
    """Runs variants `resid` of prompts `rows` from a residual cut on, and back.

    **Arguments:** - `model`: as the graph has it. - `edits`: at sites of blocks and behind the last, the same for all variants: what is
    detached there is held on the way back.

    **Returns:** from the logits back, the number of the first of some receivers that stand behind one another, and the gradient of each
    variant's metric at what they read. Of the way there only the residual stream between blocks is held, and each block is run again.
    """
    layers, entering = list(blocks_from(model, cut)), [resid]
    entering += [after for _, after, _ in onwards(model, masks, cut, rows, resid)]
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
    """Pulls the gradient behind a block, or behind its MLP, back to what enters, and to each receiver in it by itself."""

    def one(row, resid, gradient):
        repeat = lambda count: jnp.broadcast_to(resid, (count, *resid.shape))
        heads = HeadReads(repeat(graph.n_heads), repeat(graph.n_kv_heads), repeat(graph.n_kv_heads))

        def run(resid, heads, change):
            after = attend_each(block, resid, heads, masks[row], edits)[0] if whole else resid
            if block.mlp is None:
                return after
            return feed_own(block, after, (resid if graph.parallel else after) + change, edits)[0]

        of_stream, of_heads, of_mlp = jax.vjp(run, resid, heads, jnp.zeros_like(resid))[1](gradient)
        found = [of_heads.q, of_heads.k, of_heads.v] if whole else []
        before = of_stream + sum(each.sum(0) for each in found)
        return before, jnp.concatenate([*found, *([] if block.mlp is None else [of_mlp[None]])])

    return jax.vmap(one)(rows, resid, gradient)


@jax.jit
def _at_logits(ends: Transformer, metric: Metric, rows, resid: Variants, edits: Edits) -> Variants:
    def one(row, resid):
        mine = jax.tree.map(lambda x: x[row], metric)
        return jax.grad(lambda x: metric_of_last(ends, mine, x, edits))(resid)

    return jax.vmap(one)(jnp.asarray(rows), resid)

"""Any path: a run in which what some senders write is replaced, up to where a component reads it."""

import functools as ft
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._indexing import rows_of
from .._run import NOTHING
from .._sites import Kind, Site
from .._tap import Tap
from ..graph import ComponentGraph
from ..graph._slots import Slot
from ..models import Transformer
from ..parts import Block
from ..runs import attention_writes, feed_own, kinds_written, mlp_writes
from ._plain import Plain


Stream = Float[Array, "variant seq d_model"]
Columns = Bool[Array | np.ndarray, "variant seq"]  # at which positions


class Put(NamedTuple):
    """What a sender writes in place of what it would, in each variant, and at which positions."""

    slot: Slot
    value: Stream
    columns: Columns


def stream_with(
    model: Transformer,
    graph: ComponentGraph,
    plain: Plain,
    rows: Int[np.ndarray, " variant"],
    puts: list[Put],
    end: Site,
) -> Stream:
    """Runs prompts `rows` with what senders write replaced, and returns the residual stream at the cut `end`."""
    first = max(min(put.slot.layer for put in puts), 0)
    of = lambda part, layer: [put for put in puts if (put.slot.part, put.slot.layer) == (part, layer)]
    resid = rows_of(plain.streams[Site(first, Kind.RESID_PRE)], rows)
    for put in of("embed", -1):
        resid = _embedded(resid, plain.writes["embed"], rows, put.value, put.columns)
    for layer in range(first, model.n_layers):
        block = model.blocks[layer]
        if end == Site(layer, Kind.RESID_PRE):
            break
        heads = of("head", layer)
        numbers = np.array([put.slot.head for put in heads], np.int32)
        there = [(put.value, put.columns) for put in heads]
        after = _attend(graph, block, plain.masks[layer], rows, resid, numbers, there)
        if end == Site(layer, Kind.RESID_MID):
            return after
        if block.mlp is not None:
            there = [(put.value, put.columns) for put in of("mlp", layer)]
            after = _feed(graph, block, after, resid if graph.parallel else after, there)
        resid = after
    return resid


@jax.jit
def _embedded(resid: Stream, written, rows, value: Stream, columns: Columns) -> Stream:
    return resid + jnp.where(columns[..., None], value - written[rows], 0)


@ft.partial(jax.jit, static_argnames="graph")
def _attend(graph: ComponentGraph, block: Block, masks, rows, resid: Stream, heads, there) -> Stream:
    """Adds what attention writes, of some heads by their number what is put there."""

    def one(row, resid, there):
        tap = Tap(NOTHING, NOTHING, {Site(0, kind) for kind in kinds_written(block)} if there else frozenset(), layer=0)
        after = block.attend(resid, masks[row], tap)
        if there:
            own = attention_writes(graph, block, {site.kind: value for site, value in tap.cache.items()})
            after = sum((_put(own[head], *put) for head, put in zip(heads, there, strict=True)), after)
        return after

    return jax.vmap(one)(rows, resid, there)


@ft.partial(jax.jit, static_argnames="graph")
def _feed(graph: ComponentGraph, block: Block, resid: Stream, read: Stream, there) -> Stream:
    """Adds what the MLP writes, or what is put there."""

    def one(resid, read, there):
        after, values = feed_own(block, resid, read, record=kinds_written(block))
        return sum((_put(mlp_writes(graph, block, values)[0], *put) for put in there), after)

    return jax.vmap(one)(resid, read, there)


def _put(own: Float[Array, "seq d_model"], value: Float[Array, "seq d_model"], columns: Bool[Array, " seq"]):
    """The difference that it makes to the stream."""
    return jnp.where(columns[:, None], value - own, 0)

"""Covectors on their way back through a model, block by block, for every example of a batch.

A covector at one position is spread over the positions that its block reads, pulled back at all of them through the blocks before, and
meets vectors where these enter. What is known behind a block serves all vectors before it, and blocks that are alike share their programs.
"""

import dataclasses
import functools as ft

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._target import on_cpu
from ..runs import allowance
from ._chain import chunk_of_rows
from ._chain_contract import meet, placed, spread, through, tile_width
from ._cost import chunk_for
from ._forms import is_closed
from ._segment import Segment, vjp
from ._tiles import tile


Rows = Float[Array, "batch m seq _"]


def spread_batch(
    segment: Segment,
    masks: tuple[Array, ...],
    resid: Float[Array, "batch seq d_model"],
    left: Float[Array, "batch m d_target"],
    left_pos: Int[Array, "batch m"],
) -> Rows:
    """Pulls covectors at single positions of a one-block segment's target back to the residual stream that enters the block. `masks` and
    `resid` are of every example, the rest is shared.
    """
    return _spread_batch(segment, masks, resid, left, left_pos, chunk=_chunk(segment, len(resid), left.shape[1]))


def pull_batch(
    segment: Segment,
    masks: tuple[Array, ...],
    resid: Float[Array, "batch seq d_model"],
    displacement: Float[Array, "batch ..."] | None,
    rows: Rows,
) -> Rows:
    """Pulls covectors at all positions of the residual stream behind a one-block segment back to its source, flat. `masks`, `resid` and
    `displacement` are of every example, the rest is shared.
    """
    chunk = _chunk(segment, len(resid), rows.shape[1])
    return _pull_batch(segment, masks, resid, displacement, rows, chunk=chunk)


def _chunk(segment: Segment, batch: int, rows: int) -> int:
    """Finds how many covectors of each example go at once."""
    if rows == 1:
        return 1
    budget = max(1, allowance() // batch)
    if is_closed(segment):
        return chunk_of_rows(segment, rows, len(segment.resid), budget)
    return min(rows, chunk_for((segment,), budget))


@ft.partial(jax.jit, static_argnames="chunk")
def _spread_batch(segment: Segment, masks, resid, left, left_pos, *, chunk: int) -> Rows:
    def one(masks, resid, left, left_pos):
        example = dataclasses.replace(segment, masks=masks, resid=resid)
        if is_closed(segment):
            return spread(example, left, left_pos, window=len(resid))
        return _by_autodiff(example, placed(left, left_pos, 0, window=len(resid)), chunk)

    return jax.vmap(one)(masks, resid, left, left_pos)


@ft.partial(jax.jit, static_argnames="chunk")
def _pull_batch(segment: Segment, masks, resid, displacement, rows, *, chunk: int) -> Rows:
    def one(masks, resid, displacement, rows):
        example = dataclasses.replace(segment, masks=masks, resid=resid, displacement=displacement)
        if is_closed(segment):
            return through(example, None, rows, 0, forward=False, chunk=chunk)
        return _by_autodiff(example, rows, chunk)

    return jax.vmap(one)(masks, resid, displacement, rows)


def _by_autodiff(segment: Segment, rows: Float[Array, "m seq _"], chunk: int) -> Float[Array, "m seq _"]:
    """Pulls covectors back by the block's own code, whatever its parts are."""
    source, target = segment.shapes()
    found = vjp(segment, rows.reshape(-1, *target.shape), chunk=chunk)
    return found.reshape(len(found), source.shape[0], -1)


def meet_batch(
    rows: Rows, right: Float[Array, "batch k width"], right_pos: Int[Array, "batch k"]
) -> Float[Array, "batch m k"]:
    """Contracts covectors at all positions with vectors at single ones."""
    # On an accelerator as many tiles at once as are together as large as the rows.
    return _meet_batch(rows, right, right_pos, together=1 if on_cpu() else rows.shape[2])


@ft.partial(jax.jit, static_argnames="together")
def _meet_batch(rows: Rows, right, right_pos, *, together: int) -> Float[Array, "batch m k"]:
    m, seq = rows.shape[1:3]

    def one(rows, right, right_pos):
        tiles = tile(right_pos, seq, tile_width(len(right), seq), 1)
        everything = jnp.zeros((m, len(right)), rows.dtype), jnp.arange(m, dtype=jnp.int32)
        return meet(*everything, rows, right, tiles, 0, together=together)

    return jax.vmap(one)(rows, right, right_pos)

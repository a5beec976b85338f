"""Bilinear forms of any Jacobian by autodiff: the fewer of the two sides' items are swept through the network, a few at a time."""

import functools as ft

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._indexing import take
from ._segment import Segment
from ._tiles import tile, Tiles


def contract_segments(
    segments: tuple[Segment, ...],
    left: Float[Array, "m d_target"],
    left_pos: Int[Array, " m"],
    right: Float[Array, "k d_source"],
    right_pos: Int[Array, " k"],
    *,
    chunk: int,
    forward: bool,
) -> Float[Array, "m k"]:
    """`left_m^T J right_k` for the segments one after another, in the coordinates of their ends' sites.

    `chunk` covectors are pulled back at a time, or with `forward` as many vectors pushed.
    """
    tiles = tile(left_pos if forward else right_pos, segments[0].resid.shape[0], 4, 1)
    return _sweep(segments, left, left_pos, right, right_pos, tiles, chunk=chunk, forward=forward)


@ft.partial(jax.jit, static_argnames=("chunk", "forward"))
def _sweep(segments, left, left_pos, right, right_pos, tiles: Tiles, *, chunk: int, forward: bool):
    seq = segments[0].resid.shape[0]
    (start, _), (_, end) = segments[0].shapes(), segments[-1].shapes()
    swept, swept_pos, waiting = (right, right_pos, left) if forward else (left, left_pos, right)
    shape = start.shape if forward else end.shape
    maps = _linear_maps(segments, forward)
    waiting = take(waiting, tiles.item.reshape(-1)).reshape(*tiles.item.shape, -1)

    def sweep(item):
        vector, position = item
        value = jnp.zeros((seq, vector.shape[0]), vector.dtype).at[position].set(vector).reshape(shape)
        for linear in maps:
            value = linear(value)
        return value.reshape(seq, -1)

    def sweep_some(items):
        values = jax.vmap(sweep)(items).at[:, tiles.position].get(mode="promise_in_bounds")
        # [tangent tile d] · [tile slot d] -> [tangent tile slot]
        found = jnp.einsum("ntd,twd->ntw", values, waiting)
        return found.reshape(found.shape[0], -1).at[:, tiles.slot].get(mode="promise_in_bounds")

    count = len(swept_pos)
    padded = lambda x: jnp.concatenate([x, jnp.zeros((-count % chunk, *x.shape[1:]), x.dtype)])
    cut = lambda x: padded(x).reshape(-1, chunk, *x.shape[1:])
    found = jax.lax.map(sweep_some, (cut(swept), cut(swept_pos)))
    found = found.reshape(-1, found.shape[-1])[:count]
    return found.T if forward else found


def _linear_maps(segments: tuple[Segment, ...], forward: bool):
    """Linearises the segments: one function of tangents, or of cotangents, for each, in the order in which these meet them."""
    if forward:
        return [jax.linearize(segment, segment.zero())[1] for segment in segments]
    pulls = [jax.vjp(segment, segment.zero())[1] for segment in reversed(segments)]
    return [lambda cotangent, pull=pull: pull(cotangent)[0] for pull in pulls]

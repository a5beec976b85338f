"""Bilinear forms through several blocks that mix positions, in closed form.

Covectors are spread over the positions that they read by the last block, pulled back through the others in a window of positions that they
reach, and meet vectors at the queries, keys and values of the first. Where vectors are fewer they are pushed instead, by the transposed
maps, and meet covectors at the output of the last block's attention. So the projections of the one, or the MLP of the other, are computed
for items at single positions alone.
"""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._indexing import take
from .._sites import Kind
from .._target import on_cpu
from ..runs import in_loop, rounded_up
from ._attention import SpreadRows
from ._bilinear import bilinear
from ._block import linearise
from ._chain import (
    around_heads,
    before_heads,
    behind_heads,
    chunk_of_rows,
    how_many_windows,
    is_causal,
    mlp_matrices,
    MLPs,
    pay_matrices,
    pulled,
)
from ._maps import pull, push
from ._segment import Segment
from ._tiles import tile, Tiles


Windowed = Float[Array, "n window _"]


def contract_chain(
    steps: tuple[Segment, ...],
    left: Float[Array, "m d_target"],
    left_pos: Int[Array, " m"],
    right: Float[Array, "k d_source"],
    right_pos: Int[Array, " k"],
    budget: int,
) -> Float[Array, "m k"]:
    """`left_m^T J right_k` through steps of one block each, of which the first and the last mix positions."""
    forward = len(right_pos) < len(left_pos)
    right = _pushed_to_heads(steps[0], right, right_pos)
    if forward:
        left = _pulled_to_heads(steps[-1], left, left_pos)
        swept, swept_pos, waiting, waiting_pos = right, right_pos, left, left_pos
    else:
        swept, swept_pos, waiting, waiting_pos = left, left_pos, right, right_pos
    seq, d_model = steps[0].resid.shape
    tiles = tile(waiting_pos, seq, tile_width(len(waiting_pos), seq), 1)
    held = 8 * seq * d_model * swept.dtype.itemsize  # of a row, where it meets what waits, in two layouts
    most = max(1, budget // (2 * held))
    groups = max(how_many_windows(12 * len(steps) * len(swept) * seq * d_model**2), -(-len(swept) // most))
    out = jnp.zeros((len(swept), len(waiting)), swept.dtype)
    for rows, first, window in _windows(np.asarray(swept_pos), seq, groups, forward=forward, causal=is_causal(steps)):
        rows = jnp.asarray(rows)
        items = take(swept, rows), take(swept_pos, rows)
        at_end = _sweep(steps, *items, first, window=window, forward=forward, budget=budget)
        # As many as there are positions in the window: together they are as large as what they are taken of.
        out = meet(out, rows, at_end, waiting, tiles, first, together=1 if on_cpu() else window)
    return out.T if forward else out


def tile_width(count: int, seq: int) -> int:
    return min(64, max(4, 1 << (max(1, count // seq).bit_length() - 1)))


def _windows(
    positions: Int[np.ndarray, " n"], seq: int, groups: int, *, forward: bool, causal: bool
) -> list[tuple[Int[np.ndarray, " group"], int, int]]:
    """Sorts items into groups of one size by position, each with the first position and the width of the window in which it is not 0. The
    last item fills up the last group, and windows have few widths: other positions run the same programs.
    """
    order = np.argsort(positions, kind="stable")
    size = rounded_up(-(-len(order) // groups), steps=16)
    step, found = -(-seq // 16), []
    for begin in range(0, len(order), size):
        rows = order[np.minimum(np.arange(begin, begin + size), len(order) - 1)]
        reached = int(seq - positions[rows].min() if forward else positions[rows].max() + 1)
        window = min(seq, -(-reached // step) * step) if causal else seq
        found.append((rows.astype(np.int32), seq - window if forward else 0, window))
    return found


def _sweep(
    steps: tuple[Segment, ...],
    items: Array,
    positions: Array,
    first: int,
    *,
    window: int,
    forward: bool,
    budget: int,
) -> Windowed:
    """Sweeps items through all steps, to the plane of the last at which they meet what waits: what they are there, in their window."""
    begin, *inner, end = steps if forward else steps[::-1]
    some = lambda step: chunk_of_rows(step, len(items), window, budget)
    in_chunks = lambda step, rows, mlps=None, **planes: through(
        step, mlps, rows, first, forward=forward, chunk=some(step), **planes
    )
    if forward:
        rows = in_chunks(begin, placed(items, positions, first, window=window), end=True)
    else:
        rows = spread(begin, items, positions, window=window)
    for step in inner:
        rows = in_chunks(step, rows, mlp_matrices(step) if pay_matrices(step, len(items), budget) else None)
    return in_chunks(end, rows, begin=forward, end=not forward)


@jax.jit
def _pushed_to_heads(segment: Segment, right: Array, right_pos: Array) -> Float[Array, "k joined"]:
    """Pushes vectors to the queries, keys and values that they make: with the vectors themselves the plane before the heads."""
    linear = linearise(segment)
    return before_heads(linear).join(push(linear.before, {segment.source.kind: right}, right_pos), right)


@jax.jit
def _pulled_to_heads(segment: Segment, left: Array, left_pos: Array) -> Float[Array, "m joined"]:
    """Pulls covectors back to attention's output, and past attention to the source: to the plane behind the heads."""
    linear = linearise(segment)
    items = pull(linear.after, {segment.target.kind: left}, left_pos)
    return behind_heads(linear).join(*around_heads(segment, linear, items, left_pos))


@ft.partial(jax.jit, static_argnames="window")
def placed(items: Array, positions: Array, first, *, window: int) -> Windowed:
    """Puts items at their positions, 0 elsewhere."""
    rows = jnp.arange(len(items), dtype=jnp.int32)
    return jnp.zeros((len(items), window, items.shape[1]), items.dtype).at[rows, positions - first].set(items)


@ft.partial(jax.jit, static_argnames="window")
def spread(segment: Segment, left: Array, left_pos: Array, *, window: int) -> Windowed:
    """Pulls covectors at single positions back through a block, to all positions of its source that they read."""
    linear, source = linearise(segment), segment.source.kind
    form = bilinear(segment, linear, spread=True)
    rows = form.prepare_rows(left, left_pos)
    out = jnp.zeros((len(left), window, segment.resid.shape[1]), left.dtype)
    if isinstance(rows.attended, SpreadRows):
        weights, positions = rows.attended.weights[:, :, :window], jnp.arange(window, dtype=jnp.int32)
        # [part n seq] · [part n width] -> [n seq width]
        read = {Kind.ATTN_IN: jnp.einsum("pnt,npd->ntd", weights, rows.attended.directions)}
        if rows.attended.keys is not None:
            assert linear.heads is not None
            read[linear.heads.kinds[Kind.K]] = rows.attended.keys[:, :window]
        enter = lambda rows: pull(linear.before, rows, positions).get(source, jnp.zeros_like(rows[Kind.ATTN_IN]))
        out = jax.vmap(enter)(read)
    if rows.local is not None:
        out = out.at[jnp.arange(len(left)), left_pos].add(rows.local)
    return out


@ft.partial(jax.jit, static_argnames=("forward", "chunk", "begin", "end"))
def through(
    segment: Segment,
    mlps: MLPs | None,
    rows: Windowed,
    first,
    *,
    forward: bool,
    chunk: int,
    begin: bool = False,
    end: bool = False,
) -> Windowed:
    """Takes rows in their window through one step, `chunk` of them at a time, or through the part of it that lies before the plane behind
    its heads (`begin`), or behind the plane before them (`end`).
    """
    seq, window = segment.resid.shape[0], rows.shape[1]
    positions, linear = first + jnp.arange(window, dtype=jnp.int32), linearise(segment)
    first_plane, last_plane = behind_heads(linear) if begin else None, before_heads(linear) if end else None
    step = pulled(segment, mlps, positions, keys=seq if forward else window, begin=first_plane, end=last_plane)
    if forward:
        pull_back, target = step, segment.shapes()[1]
        width = target.size // seq if first_plane is None else sum(first_plane.widths) + segment.resid.shape[1]
        like = jax.ShapeDtypeStruct((window, chunk, width), rows.dtype)
        step = lambda some: jax.linear_transpose(pull_back, like)(some)[0]
    n = len(rows)
    padded = jnp.concatenate([rows, jnp.zeros((-n % chunk, *rows.shape[1:]), rows.dtype)]) if n % chunk else rows
    cut = padded.reshape(-1, chunk, *rows.shape[1:])
    found = jax.lax.map(lambda some: step(some.transpose(1, 0, 2)).transpose(1, 0, 2), cut)
    return found.reshape(-1, *found.shape[2:])[:n]


@ft.partial(jax.jit, static_argnames="together", donate_argnums=0)
def meet(
    out: Float[Array, "m k"],
    place: Int[Array, " n"],
    rows: Windowed,
    waiting: Array,
    tiles: Tiles,
    first,
    *,
    together: int,
) -> Float[Array, "m k"]:
    """Writes into `out` at the rows `place` what rows in their window make of the items that wait in tiles of one position each, `together`
    tiles at a time.
    """

    def at_tile(tile):
        item, position = tile
        here = jax.lax.dynamic_index_in_dim(rows, position - first, 1, keepdims=False)
        inside = (position >= first) & (position < first + rows.shape[1])
        # [n width] · [slot width] -> [n slot]
        return jnp.where(inside, here @ take(waiting, item).T, 0)

    found = in_loop(at_tile, (tiles.item, tiles.position), together)  # [tile n slot]
    found = found.transpose(1, 0, 2).reshape(len(rows), -1)
    return out.at[place].set(found.at[:, tiles.slot].get(mode="promise_in_bounds"))

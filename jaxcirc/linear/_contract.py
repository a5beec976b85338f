r"""Bilinear forms of one block's Jacobian, `E[m, k] = left_m^T J right_k`, in closed form.

A covector at a position is pulled back to attention's output and past it, a vector at a position is pushed to what attention reads; there
they meet in attention's three terms (`_attention`), of which the last, with everything that does not pass attention, is one inner product
at equal positions. Where a key may not be attended nothing is computed: items are sorted by position, and blocks that no query reaches
are not visited. A block of M x K edges costs, beside the pushing of the vectors, about as much as one matrix product of M x D x K, for a
causal model. Where rows are few the pushing would be most of it: then vectors are pushed no further than the layer norm, and rows are
spread over the keys. Memory is the output and a budget, whatever M and K are.
"""

import functools as ft
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from .._indexing import take
from .._target import on_cpu
from ..runs import at_once, rounded_up
from ._bilinear import bilinear, contract_same
from ._block import linearise
from ._cost import heads_of
from ._forms import attends, can_spread
from ._segment import Segment
from ._tiles import sort, tile, Tiles


class Sizes(NamedTuple):
    """How a contraction is cut: `block` rows meet `tiles` tiles of `width` columns at once, through attention, and `near` tiles where they
    are at equal positions; rows are `spread` over the keys, or not. Columns are `kept` for all rows if the budget allows it, and else made
    anew for each block of rows; of the keys that they make, what every query `asked` of them is kept, if that fits too.

    On an accelerator loops over rows, tiles and examples one by one are too small for it: rows are written, and tiles are met, `at_once`,
    and of a batch whose rows and columns all meet at once so many `examples`.
    """

    block: int
    tiles: int
    near: int
    width: int
    spread: bool
    kept: bool
    asked: bool
    at_once: bool = False
    examples: int = 1


def sizes_for(segment: Segment, m: int, k: int, budget: int) -> Sizes:
    """Sizes that keep all that a contraction of `m` rows and `k` columns holds beside its output within `budget` bytes."""
    (seq, d_model), heads, itemsize = segment.resid.shape, heads_of(segment), segment.resid.dtype.itemsize
    numbers = budget // itemsize
    # A block's numbers stay in a core's cache on a CPU, and fill an accelerator.
    few, many = (128, 512) if on_cpu() else (512, max(512, min(4096, _power_below(numbers // (16 * d_model)))))
    positions = min(seq, k)
    spread = 16 * m <= k and can_spread(
        segment
    )  # measured on CPUs: spreading a row takes as long as pushing about sixteen columns
    width = min(64, -(-k // (8 * positions)) * 8) if spread else min(8, _power_below(max(1, k // (2 * positions))))
    columns = min(many, rounded_up(k + width * positions)) // width * width
    everything = k + width * positions + columns
    fits = lambda each: everything * each <= numbers // 2
    kept = fits(d_model if spread else 4 * d_model)  # values and keys, or one vector, at most as wide as a hidden layer
    asked = kept and not spread and fits(2 * d_model + heads * seq)
    row = 3 * heads * columns + 3 * heads * seq + 4 * d_model + 2 * everything
    row += (columns // width + 4 * heads) * d_model if spread else 0
    most = few if kept else 1024  # the more rows, the fewer times
    block = max(8, min(most, rounded_up(m), _power_below(numbers // (2 * row))))
    tiles = max(1, columns // width)
    # At equal positions an accelerator meets all tiles of a group at once too: what it computes in vain takes less than to begin anew.
    near = max(n for n in range(1, max(1, columns // 8 // width) + 1) if tiles % n == 0) if on_cpu() else tiles
    # All rows of an example, if they are one block, its columns as they are pushed, and the edges.
    example = 2 * row * m + 4 * d_model * k
    return Sizes(block, tiles, near, width, spread, kept, asked, not on_cpu(), at_once(example, numbers, on_cpus=1))


def _power_below(n: int) -> int:
    return 1 << (max(n, 1).bit_length() - 1)


class Layout(NamedTuple):
    """Where rows and columns are: the rows in the order of their positions, and the columns in tiles."""

    order: Int[Array, "*batch m"]
    columns: Tiles


def lay_out(
    segment: Segment, left_pos: Int[Array, "*batch m"], right_pos: Int[Array, "*batch k"], sizes: Sizes
) -> Layout | None:
    """Sorts rows and columns by position, of each example apart; `None` where they are so few that all meet at once.

    It has programs of its own, because sorting takes as long to compile as the rest, and is the same for all kinds of edges.
    """
    one_block = right_pos.shape[-1] <= sizes.tiles * sizes.width or (sizes.spread and not attends(segment))
    if left_pos.shape[-1] <= sizes.block and one_block:
        return None
    return Layout(sort(left_pos), tile(right_pos, segment.resid.shape[0], sizes.width, sizes.tiles))


def contract_block(
    segment: Segment,
    left: Array,
    left_pos: Int[Array, " m"],
    right: Array,
    right_pos: Int[Array, " k"],
    *,
    sizes: Sizes,
) -> Float[Array, "m k"]:
    """`left_m^T J right_k` for a segment of one block."""
    layout = lay_out(segment, left_pos, right_pos, sizes)
    return contract_laid_out(segment, layout, left, left_pos, right, right_pos, sizes=sizes)


def contract_laid_out(
    segment: Segment,
    layout: Layout | None,
    left: Array,
    left_pos: Int[Array, " m"],
    right: Array,
    right_pos: Int[Array, " k"],
    *,
    sizes: Sizes,
) -> Float[Array, "m k"]:
    """The same of rows and columns that are laid out. Under `vmap` one after another, so that memory stays what it is."""
    if layout is None:
        return _contract_at_once(segment, left, left_pos, right, right_pos, examples=sizes.examples)
    return _contract_sorted(segment, left, left_pos, layout.order, right, right_pos, layout.columns, sizes=sizes)


@ft.partial(jax.jit, static_argnames="examples")
def _contract_at_once(segment: Segment, left, left_pos, right, right_pos, *, examples: int):
    """Contracts what is one block of rows and columns, without sorting: every vector is a tile. Few rows that meet columns at their own
    positions only are, however many columns there are: sorting these would take longer than the products that it saves.
    """

    def contract(segment, left, left_pos, right, right_pos):
        form = bilinear(segment, _linear(segment), forward=len(right_pos) < len(left_pos))
        rows, columns = form.prepare_rows(left, left_pos), form.prepare_columns(right, right_pos)
        through = form.contract_tiles(rows, columns.attended, right_pos)
        same = None if rows.local is None else contract_same(rows.local, left_pos, columns.local, right_pos)
        found = [edges.reshape(len(left_pos), -1) for edges in (through, same) if edges is not None]
        return sum(found, jnp.zeros((len(left_pos), len(right_pos)), segment.resid.dtype))

    return some_under_vmap(contract, examples)(segment, left, left_pos, right, right_pos)


def some_under_vmap(f: Callable[..., Array], together: int) -> Callable[..., Array]:
    """`f`, that under `vmap` is mapped over so many examples at once, whatever else is batched: memory stays what it is."""
    if together == 1:
        return jax.custom_batching.sequential_vmap(f)
    mapped = jax.custom_batching.custom_vmap(f)

    @mapped.def_vmap
    def rule(axis_size: int, in_batched: list[PyTree], *arguments: PyTree) -> tuple[Array, bool]:
        leaves, tree = jax.tree.flatten(arguments)
        batched = jax.tree.leaves(in_batched)
        moving = [leaf for leaf, each in zip(leaves, batched, strict=True) if each]

        def one(moving: list[Array]) -> Array:
            mine = iter(moving)
            return f(
                *tree.unflatten([next(mine) if each else leaf for leaf, each in zip(leaves, batched, strict=True)])
            )

        if axis_size <= together:
            return jax.vmap(one)(moving), True
        return jax.lax.map(one, moving, batch_size=together), True

    return mapped


@ft.partial(jax.jit, static_argnames="sizes")
def _contract_sorted(segment: Segment, left, left_pos, order, right, right_pos, columns: Tiles, *, sizes: Sizes):
    @jax.custom_batching.sequential_vmap
    def contract(*arguments):
        return _in_blocks(*arguments, sizes=sizes)

    return contract(segment, left, left_pos, order, right, right_pos, columns)


def _linear(segment: Segment):
    return linearise(segment)


def _in_blocks(segment: Segment, left, left_pos, order, right, right_pos, tiles: Tiles, *, sizes: Sizes):
    m, k, block = len(left_pos), len(right_pos), sizes.block
    form = bilinear(
        segment, _linear(segment), forward=k < m, spread=sizes.spread, asked=sizes.asked, at_once=sizes.at_once
    )
    prepare = lambda item: form.prepare_columns(take(right, item), take(right_pos, item))
    # What is at the source is kept where it was pushed there; else it is had for the taking.
    part = (lambda item: prepare(item).local) if form.attention is None else (lambda item: prepare(item).attended)
    kept = _prepare_all(part, tiles, sizes.tiles) if sizes.kept else None
    padded = jnp.concatenate([order, jnp.broadcast_to(order[-1], (-m % block,))])

    def attended(j):
        """Takes what attention has of the columns in `sizes.tiles` tiles, the `j`th so many."""
        return part(_cut(tiles.item, j, sizes.tiles)) if kept is None else jax.tree.map(lambda x: x[j], kept)

    def local(j):
        """Takes what the columns in `sizes.near` tiles, the `j`th so many, are at one end of the segment."""
        if kept is None or form.attention is not None:
            return prepare(_cut(tiles.item, j, sizes.near)).local
        return _cut(kept.reshape(-1, sizes.width, kept.shape[-1]), j, sizes.near)

    def some_rows(i, out):
        item = jax.lax.dynamic_slice_in_dim(padded, i * block, block)
        rows = form.prepare_rows(take(left, item), take(left_pos, item))

        def through_attention(j, found):
            edges = form.contract_tiles(rows, attended(j), _cut(tiles.position, j, sizes.tiles))
            return found if edges is None else _put(found, edges, j * sizes.tiles * sizes.width)

        found = jnp.zeros((block, tiles.item.size), out.dtype)
        if form.attention is not None:
            first, last = form.attention.reach()
            between = take(first, rows.positions).min(), take(last, rows.positions).max()
            found = jax.lax.fori_loop(*tiles.range(*between, sizes.tiles), through_attention, found)
        if (at_source := rows.local) is not None:

            def at_same_position(j, found):
                edges = contract_same(at_source, rows.positions, local(j), _cut(tiles.position, j, sizes.near))
                begin = j * sizes.near * sizes.width
                there = jax.lax.dynamic_slice_in_dim(found, begin, edges[0].size, 1)
                return _put(found, there + edges.reshape(there.shape), begin)

            between = rows.positions[0], rows.positions[-1]
            found = jax.lax.fori_loop(*tiles.range(*between, sizes.near), at_same_position, found)
        if sizes.at_once:
            return out.at[item].set(take(found, tiles.slot, axis=1), mode="promise_in_bounds")
        # Row by row: the rows at the end repeat the last one, with the same values.
        put = lambda r, out: jax.lax.dynamic_update_slice(
            out, take(found[r], tiles.slot)[None], (item[r], jnp.int32(0))
        )
        return jax.lax.fori_loop(0, block, put, out, unroll=8)

    out = jnp.zeros((m, k), segment.resid.dtype)
    return jax.lax.fori_loop(0, len(padded) // block, some_rows, out)


def _prepare_all(prepare: Callable[[Array], PyTree], tiles: Tiles, count: int) -> PyTree:
    """Prepares the columns of all tiles in use, `count` tiles at a time, which are the leading axis of what comes."""
    items = tiles.item.reshape(-1, count * tiles.item.shape[1])
    put = lambda j, all, x: jax.lax.dynamic_update_index_in_dim(all, x, j, 0)
    some = lambda j, all: jax.tree.map(ft.partial(put, j), all, prepare(items[j]))
    empty = jax.tree.map(lambda x: jnp.zeros((len(items), *x.shape), x.dtype), jax.eval_shape(prepare, items[0]))
    return jax.lax.fori_loop(0, -(-tiles.used // count), some, empty)


def _cut(x: Array, j: Int[Array, ""], count: int) -> Array:
    """Takes the `j`th `count` entries."""
    x = jax.lax.dynamic_slice_in_dim(x, j * count, count)
    return x.reshape(-1, *x.shape[2:])


def _put(found: Float[Array, "row slot"], edges: Array, begin: Int[Array, ""]) -> Float[Array, "row slot"]:
    return jax.lax.dynamic_update_slice_in_dim(found, edges.reshape(len(found), -1), begin, 1)

r"""Bilinear forms of one block's Jacobian, `E[m, k] = left_m^T J right_k`, in closed form.

A covector at a position is pulled back to attention's output, `g` for each head, and past it; a vector at a position is pushed to its
value and key images `v`, `k`. With the pattern `A`, the queries `q_t` and keys and values `k_s`, `v_s` of the clean run, what attention
adds for a covector at query `t` and a vector at key `s` is (Vaswani et al. 2017, arXiv 1706.03762, eq. 1, differentiated)

$$\sum_h A_{hts} \langle g_h, v_h \rangle + dS_{hs} \langle q_{th}, k_h \rangle
  + [s = t] \Big\langle \sum_{s'} dS_{hs'} k_{s'h}, q_h \Big\rangle, \qquad
  dS_{hs} = A_{hts} \Big( \langle g_h, v_{sh} \rangle - \sum_{s'} A_{hts'} \langle g_h, v_{s'h} \rangle \Big) \cdot \mathrm{scale}.$$

The last term and everything that does not pass attention are one inner product at equal positions. Where a key may not be attended
nothing is computed: items are sorted by position, and blocks that no query reaches are not visited. The vectors are laid out in tiles of
one position each, so that a pattern's entry multiplies a whole tile, and a block of M x K edges costs about two matrix products of
M x D x K beside the pushing of the vectors. Where rows are few, that would be most of it: then vectors are pushed no further than the
layer norm, and rows are carried to their positions, as sums of two covectors a head, $W_V g_h$ and $W_K q_{th}$, with entries of the
pattern and of the scores as weights. Memory is the output and a budget, whatever M and K are.
"""

import functools as ft
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ._block import linearise
from ._forms import attends
from ._maps import take as rows
from ._meeting import meet, sides
from ._segment import Span
from ._sizes import rounded_up
from ._tiles import sort, tile, Tiles


class Sizes(NamedTuple):
    """How a contraction is cut: `block` rows meet `tiles` tiles of `width` columns at once; rows are `carried` to the columns' positions,
    or not; what columns bring is `kept` for all rows, if the budget allows it, and else made anew for each block of rows.
    """

    block: int
    tiles: int
    width: int
    carried: bool
    kept: bool


def sizes_for(m: int, k: int, seq: int, heads: int, d_model: int, itemsize: int, budget: int) -> Sizes:
    """Sizes that keep all that a contraction holds beside its output within `budget` bytes."""
    numbers = budget // itemsize
    # A block's numbers stay in a core's cache on a CPU, and fill an accelerator.
    few, many = (128, 512) if jax.default_backend() == "cpu" else (512, 4096)
    positions = min(seq, k)
    carried = 16 * m <= k  # measured on CPUs: carrying a row takes as long as pushing about sixteen columns
    width = min(64, -(-k // (8 * positions)) * 8) if carried else min(8, _power_below(max(1, k // (2 * positions))))
    columns = min(many, rounded_up(k + width * positions)) // width * width
    everything = k + width * positions + columns
    each = d_model if carried else 4 * d_model + heads * seq
    kept = everything * each <= numbers // 2
    row = 3 * heads * columns + 3 * heads * seq + 4 * d_model + 2 * everything
    row += (columns // width + 4 * heads) * d_model if carried else 0
    most = few if kept else 1024  # the more rows, the fewer times
    block = max(8, min(most, rounded_up(m), _power_below(numbers // (2 * row))))
    return Sizes(block, max(1, columns // width), width, carried, kept)


def _power_below(n: int) -> int:
    return 1 << (max(n, 1).bit_length() - 1)


def contract_block(
    span: Span,
    left: Array,
    left_pos: Int[Array, " m"],
    right: Array,
    right_pos: Int[Array, " k"],
    *,
    sizes: Sizes,
) -> Float[Array, "m k"]:
    """`left_m^T J right_k` for a span of one block. Under `vmap` one after another, so that memory stays what it is."""
    one_block = len(right_pos) <= sizes.tiles * sizes.width or (sizes.carried and not attends(span))
    if len(left_pos) <= sizes.block and one_block:
        return _contract_at_once(span, left, left_pos, right, right_pos)
    # Apart, because sorting takes as long to compile as the rest, and is the same for all kinds of edges.
    columns = tile(right_pos, span.resid.shape[0], sizes.width, sizes.tiles)
    return _contract_sorted(span, left, left_pos, sort(left_pos), right, right_pos, columns, sizes=sizes)


@jax.jit
def _contract_at_once(span: Span, left, left_pos, right, right_pos):
    """What is one block of rows and columns, without sorting: every vector is a tile. Few rows that meet columns at their own positions
    only are, however many columns there are: sorting these would take longer than the products that it saves.
    """

    @jax.custom_batching.sequential_vmap
    def contract(span, left, left_pos, right, right_pos):
        linear = _linear(span)
        ask, bring, _ = sides(span, linear, forward=len(right_pos) < len(left_pos))
        return meet(ask(left, left_pos), bring(right, right_pos), right_pos, linear.heads, ordered=False)

    return contract(span, left, left_pos, right, right_pos)


@ft.partial(jax.jit, static_argnames="sizes")
def _contract_sorted(span: Span, left, left_pos, order, right, right_pos, columns: Tiles, *, sizes: Sizes):
    @jax.custom_batching.sequential_vmap
    def contract(*arguments):
        return _in_blocks(*arguments, sizes=sizes)

    return contract(span, left, left_pos, order, right, right_pos, columns)


def _linear(span: Span):
    return linearise(span, 0, span.held)


def _in_blocks(span: Span, left, left_pos, order, right, right_pos, columns: Tiles, *, sizes: Sizes):
    (m, k), seq, (block, tiles, width, carried, kept) = (
        (len(left_pos), len(right_pos)),
        span.resid.shape[0],
        sizes,
    )
    linear = _linear(span)
    ask, bring, attending = sides(span, linear, forward=k < m, carried=carried, kept=kept)
    each, n_columns = tiles * width, columns.item.size
    blocks = columns.item.reshape(-1, each)
    bring_some = lambda indices: bring(rows(right, indices), rows(right_pos, indices))
    everything = jax.lax.map(bring_some, blocks) if kept else None
    columns_at = lambda j: bring_some(blocks[j]) if everything is None else jax.tree.map(lambda x: x[j], everything)
    padded = jnp.concatenate([order, jnp.broadcast_to(order[-1], (-m % block,))])
    first, last = _reach(linear.heads.mask) if attending else (jnp.arange(seq, dtype=jnp.int32),) * 2

    def block_of_rows(i, out):
        indices = jax.lax.dynamic_slice_in_dim(padded, i * block, block)
        asked = ask(rows(left, indices), rows(left_pos, indices))

        def block_of_columns(j, found):
            place = jax.lax.dynamic_slice_in_dim(columns.position, j * tiles, tiles)
            edges = meet(asked, columns_at(j), place, linear.heads, ordered=True)
            return jax.lax.dynamic_update_slice_in_dim(found, edges, j * each, 1)

        nearest, furthest = rows(first, asked.positions).min(), rows(last, asked.positions).max()
        begin = jnp.sum(columns.position < nearest, dtype=jnp.int32) // tiles
        end = jnp.sum(columns.position <= furthest, dtype=jnp.int32)
        end = -(-jnp.minimum(end, columns.used) // tiles)
        found = jax.lax.fori_loop(begin, end, block_of_columns, jnp.zeros((block, n_columns), out.dtype))
        found = found.at[:, columns.slot].get(mode="promise_in_bounds")
        # Row by row: the rows at the end repeat the last one, with the same values.
        put = lambda r, out: jax.lax.dynamic_update_slice(out, found[r][None], (indices[r], jnp.int32(0)))
        return jax.lax.fori_loop(0, block, put, out, unroll=8)

    out = jnp.zeros((m, k), span.resid.dtype)
    return jax.lax.fori_loop(0, len(padded) // block, block_of_rows, out)


def _reach(mask: Array) -> tuple[Array, Array]:
    """For each query the first and the last key that it may attend to."""
    first = lambda mask: jnp.argmax(mask, axis=1).astype(jnp.int32)
    return first(mask), mask.shape[1] - 1 - first(mask[:, ::-1])

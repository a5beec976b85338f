r"""Bilinear forms of one block's Jacobian, `E[m, k] = left_m^T J right_k`, in closed form.

A covector at a position is pulled back to attention's output, `g` for each head, and past it; a vector at a position is pushed to its
value and key images `v`, `k`. With the pattern `A`, the queries `q_t` and keys and values `k_s`, `v_s` of the clean run, what attention
adds for a covector at query `t` and a vector at key `s` is (Vaswani et al. 2017, arXiv 1706.03762, eq. 1, differentiated)

$$\sum_h A_{hts} \langle g_h, v_h \rangle + dS_{hs} \langle q_{th}, k_h \rangle
  + [s = t] \Big\langle \sum_{s'} dS_{hs'} k_{s'h}, q_h \Big\rangle, \qquad
  dS_{hs} = A_{hts} \Big( \langle g_h, v_{sh} \rangle - \sum_{s'} A_{hts'} \langle g_h, v_{s'h} \rangle \Big) \cdot \mathrm{scale}.$$

The last term and everything that does not pass attention are one inner product at equal positions. So a block of M x K edges costs
about as much as two matrix products of M x D x K where a key may be attended, and nothing where it may not: items are sorted by
position, and blocks that no query reaches are not visited. The vectors are laid out in tiles of one position each, so that a pattern's
entry multiplies a whole tile. Memory is the output and a budget, whatever M and K are.
"""

import functools as ft
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._sites import Kind
from ._ends import source_vectors, target_covectors
from ._engine import attends as is_attending, read_site
from ._links import Heads, LinearBlock, linearise, pull, push, rows
from ._span import Span
from ._tiles import sort, tile, Tiles


class Sizes(NamedTuple):
    """How a contraction is cut: `block` rows meet `tiles` tiles of `width` columns at once; what columns bring is `kept` for all rows,
    if the budget allows it, and else made anew for each block of rows.
    """

    block: int
    tiles: int
    width: int
    kept: bool


def sizes_for(m: int, k: int, seq: int, heads: int, d_model: int, itemsize: int, budget: int) -> Sizes:
    """Sizes that keep all that a contraction holds beside its output within `budget` bytes."""
    numbers = budget // itemsize
    width = min(16, _power_below(max(1, k // (2 * min(seq, k)))))
    columns = min(1024, _power_above(k + width * min(seq, k)))
    everything = k + width * min(seq, k) + columns
    kept = everything * (4 * d_model + heads * seq) <= numbers // 2
    row = 3 * heads * columns + 3 * heads * seq + 4 * d_model + 2 * everything
    most = 256 if kept else 1024  # the more rows, the fewer times
    block = max(8, min(most, _power_above(m), _power_below(numbers // (2 * row))))
    return Sizes(block, max(1, columns // width), width, kept)


def _power_above(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


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
    # Apart, because sorting takes as long to compile as the rest, and is the same for all kinds of edges.
    columns = tile(right_pos, span.resid.shape[0], sizes.width, sizes.tiles)
    return _contract_sorted(span, left, left_pos, *sort(left_pos), right, right_pos, columns, sizes=sizes)


@ft.partial(jax.jit, static_argnames="sizes")
def _contract_sorted(span: Span, left, left_pos, order, inverse, right, right_pos, columns: Tiles, *, sizes: Sizes):
    @jax.custom_batching.sequential_vmap
    def contract(span, *items):
        frozen = frozenset(site.kind for site in span.frozen)
        return _contract(linearise(span, 0, frozen), span, *items, sizes=sizes)

    return contract(span, left, left_pos, order, inverse, right, right_pos, columns)


def _contract(
    linear: LinearBlock, span: Span, left, left_pos, order, inverse, right, right_pos, columns: Tiles, sizes: Sizes
):
    (m, k), seq, (block, tiles, width, kept) = (len(left_pos), len(right_pos)), span.resid.shape[0], sizes
    left_at, right_at = target_covectors(span), source_vectors(span)
    source, target, heads = span.source.kind, read_site(span).kind, linear.heads
    attends = bool(heads.paths) and is_attending(span)
    forward = k < m and not attends  # push the fewer items, where there is a choice
    item, n_columns, each = columns.item.reshape(-1), columns.item.size, tiles * width

    def ask(indices) -> "Rows":
        """What the rows at `indices` ask of the columns."""
        positions = rows(left_pos, indices)
        covectors = {target: left_at(rows(left, indices), positions)}
        if forward:
            return Rows(positions, covectors[target], None, None, None)
        covectors = pull(linear.after, covectors, positions)
        g = pattern = scores = None
        if attends and Kind.Z in covectors:
            g, pattern, scores = _at_attention(heads, covectors[Kind.Z], positions)
            if Kind.Q in heads.paths:  # [head m k_seq] · [k_seq head d_head] -> [m (head d_head)]
                asked = jnp.einsum("hms,she->mhe", scores, heads.k).reshape(len(positions), -1)
                covectors[Kind.Q] = covectors.get(Kind.Q, 0) + asked
        return Rows(positions, pull(linear.before, covectors, positions).get(source), g, pattern, scores)

    def bring(indices) -> "Columns":
        """What the columns at `indices` bring."""
        positions = rows(right_pos, indices)
        vectors = {source: right_at(rows(right, indices), positions)}
        if forward:
            return Columns(push(linear.links, vectors, positions)[target], None, None, None)
        if not attends:
            return Columns(vectors[source], None, None, None)
        images = push(linear.before[:1], vectors, positions)  # up to the normalised residual stream
        v, k = (_image(heads, images, kind) for kind in (Kind.V, Kind.K))
        asked = None if k is None or not kept else jnp.einsum("the,hek->htk", heads.q, k)
        return Columns(vectors[source], v, k if asked is None else None, asked)

    blocks = item.reshape(-1, each)
    everything = jax.lax.map(bring, blocks) if kept else None
    columns_at = lambda j: bring(blocks[j]) if everything is None else jax.tree.map(lambda x: x[j], everything)

    padded = jnp.concatenate([order, jnp.broadcast_to(order[-1], (-m % block,))])
    first, last = _reach(heads.mask) if attends else (jnp.arange(seq, dtype=jnp.int32),) * 2

    def found_for(indices):
        """The edges of some rows from all columns."""
        asked = ask(indices)

        def block_of_columns(j, found):
            place = jax.lax.dynamic_slice_in_dim(columns.position, j * tiles, tiles)
            return jax.lax.dynamic_update_slice_in_dim(found, _meet(asked, columns_at(j), place, heads), j * each, 1)

        nearest, furthest = rows(first, asked.positions).min(), rows(last, asked.positions).max()
        begin = jnp.sum(columns.position < nearest, dtype=jnp.int32) // tiles
        end = jnp.sum(columns.position <= furthest, dtype=jnp.int32)
        end = -(-jnp.minimum(end, columns.used) // tiles)
        if n_columns == each:
            found = _meet(asked, columns_at(0), columns.position, heads)
        else:
            found = jax.lax.fori_loop(begin, end, block_of_columns, jnp.zeros((block, n_columns), span.resid.dtype))
        return found.at[:, columns.slot].get(mode="promise_in_bounds")

    if len(padded) == block:
        return rows(found_for(padded), inverse)

    def block_of_rows(i, out):
        indices = jax.lax.dynamic_slice_in_dim(padded, i * block, block)
        found = found_for(indices)
        # Row by row: the rows at the end repeat the last one, with the same values.
        put = lambda r, out: jax.lax.dynamic_update_slice(out, found[r][None], (indices[r], jnp.int32(0)))
        return jax.lax.fori_loop(0, block, put, out, unroll=8)

    out = jnp.zeros((m, k), span.resid.dtype)
    return jax.lax.fori_loop(0, len(padded) // block, block_of_rows, out)


class Rows(NamedTuple):
    """Rows sorted by position: their covectors at the source, and where attention is passed, at its output, with pattern and scores."""

    positions: Int[Array, " m"]
    local: Float[Array, "m width"] | None
    g: Float[Array, "head m d_head"] | None
    pattern: Float[Array, "head m k_seq"] | None
    scores: Float[Array, "head m k_seq"] | None


class Columns(NamedTuple):
    """Columns: their vectors at the source, and where attention is passed, their value images and either their key images or what every
    query's score has of them.
    """

    local: Float[Array, "k width"]
    v: Float[Array, "head d_head k"] | None
    k: Float[Array, "head d_head k"] | None
    asked: Float[Array, "head q_seq k"] | None


def _at_attention(heads: Heads, covectors, positions):
    _, n_heads, d_head = heads.q.shape
    g = covectors.reshape(-1, n_heads, d_head).transpose(1, 0, 2)
    pattern = heads.pattern.at[:, positions].get(mode="promise_in_bounds")
    if not heads.paths & {Kind.Q, Kind.K}:
        return g, pattern, None
    values = jnp.einsum("hme,she->hms", g, heads.v)
    scores = pattern * (values - jnp.sum(pattern * values, axis=-1, keepdims=True)) * heads.scale
    return g, pattern, scores


def _image(heads: Heads, images, kind: Kind) -> Float[Array, "head d_head k"] | None:
    """The keys or values that vectors make; items last, so that the product is laid out as it is read."""
    if kind not in heads.paths:
        return None
    if kind in images:
        return images[kind].T.reshape(*heads.q.shape[1:], -1)
    if Kind.LN1_NORMALIZED not in images:
        return None
    return jnp.einsum("hmd,km->hdk", heads.W_V if kind == Kind.V else heads.W_K, images[Kind.LN1_NORMALIZED])


def _meet(asked: Rows, brought: Columns, place: Int[Array, " tile"], heads: Heads) -> Float[Array, "m k"]:
    """The edges of a block of rows from a block of columns, whose tiles are at the positions `place`."""
    positions, tiled = asked.positions, lambda x: x.reshape(*x.shape[:-1], len(place), -1)
    at_tiles = lambda x: x.at[:, :, place].get(mode="promise_in_bounds")[..., None]  # [head m tile 1]
    out = jnp.zeros((len(positions), len(place), brought.local.shape[0] // len(place)), heads.q.dtype)
    if asked.pattern is not None and brought.v is not None:
        values = jnp.einsum("hme,hek->hmk", asked.g, brought.v)
        out += jnp.sum(tiled(values) * at_tiles(asked.pattern), axis=0)
    if asked.scores is not None and (brought.k is not None or brought.asked is not None):
        if brought.asked is None:
            moved = jnp.einsum("mhe,hek->hmk", rows(heads.q, positions), brought.k)
        else:
            moved = brought.asked.at[:, positions].get(mode="promise_in_bounds")
        out += jnp.sum(tiled(moved) * at_tiles(asked.scores), axis=0)

    def with_local(out):
        if asked.local is None:
            return out
        same = (positions[:, None] == place)[..., None]
        return out + jnp.where(same, tiled(asked.local @ brought.local.T), 0)

    # A branch even where there is nothing local: what follows it is not fused with the sums, which would then be done number by number.
    meeting = (positions[0] <= place[-1]) & (place[0] <= positions[-1])
    return jax.lax.cond(meeting, with_local, lambda out: out, out).reshape(len(positions), -1)


def _reach(mask: Array) -> tuple[Array, Array]:
    """For each query the first and the last key that it may attend to."""
    first = lambda mask: jnp.argmax(mask, axis=1).astype(jnp.int32)
    return first(mask), mask.shape[1] - 1 - first(mask[:, ::-1])

r"""The whole Jacobian of one block, `J[t, :, s, :]`, in closed form.

For a target at position `t`, each of its coordinates is pulled back to attention's output once, `g` `[head n d_head]`. What the source at
`s` has of it through its keys and values is, up to the norm at the block's entrance and with the notation of `_attention`,

$$\sum_h A_{hts}\; g_h W_{V,h}^T + dS_{hs}\; q_{th} W_{K,h}^T.$$

Only the numbers $A_{hts}$ and $dS_{hs}$ depend on `s`, so an entry costs `4 head` operations however wide the model is. The norm divides
by its scale at `s`, and its derivative adds one term along its value $\hat y_s$. What does not pass attention, and the query's part, is
at `s = t` alone. Keys that a query may not attend to are not visited: half of a causal block is free.
"""

import functools as ft
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._indexing import take
from .._sites import Kind
from .._target import on_cpu
from ._attention import AttentionMap, AttentionRows
from ._bilinear import bilinear, Rows
from ._block import LinearBlock, linearise
from ._cost import numbers_held
from ._maps import pull
from ._segment import Segment


class Sizes(NamedTuple):
    """How much is made at once: `rows` coordinates of the target are pulled back together, and are written in tiles of `coordinates`
    of them by `keys` positions of the source.
    """

    rows: int
    coordinates: int
    keys: int


class Factors(NamedTuple):
    """What comes from the keys, for some coordinates of the target at one position: at each of the source's positions `weights` times
    `directions`, and so much `along` the value of the norm.
    """

    weights: Float[Array, "n s rank"]
    directions: Float[Array, "n rank width"]
    along: Float[Array, "n s"] | None


def block_matrix(
    segment: Segment, target_pos: Int[Array, " t"], source_pos: Int[Array, " s"], *, budget: int
) -> Float[Array, "t n_target s n_source"]:
    """The Jacobian of a one-block segment between some positions. Its source is not in a dictionary's coordinates."""
    n, width = _widths(segment)
    numbers, cpu = budget // segment.resid.dtype.itemsize, on_cpu()
    most = min(2**18 if cpu else numbers, numbers // 8)
    # On a CPU a tile stays in a core's cache until it is written.
    keys = min(len(source_pos), 16 if cpu else 256)
    coordinates = max(1, min(n, most // (keys * width)))
    row = numbers_held(segment) // segment.resid.shape[0]
    together = max(coordinates, min(n, numbers // (2 * row)))
    return _matrix(segment, target_pos, source_pos, sizes=Sizes(together, coordinates, keys))


@ft.partial(jax.jit, static_argnames="sizes")
def _matrix(segment: Segment, target_pos: Array, source_pos: Array, *, sizes: Sizes) -> Array:
    @jax.custom_batching.sequential_vmap
    def compute(segment, target_pos, source_pos):
        return _in_tiles(segment, target_pos, source_pos, sizes)

    return compute(segment, target_pos, source_pos)


def _widths(segment: Segment) -> tuple[int, int]:
    source, target = segment.shapes()
    return math.prod(target.shape[1:]), math.prod(source.shape[1:])


def _in_tiles(segment: Segment, target_pos: Array, source_pos: Array, sizes: Sizes) -> Array:
    (n, width), kind = _widths(segment), segment.source.kind
    linear = linearise(segment)
    form = bilinear(segment, linear)
    y = (
        take(linear.norm.y, source_pos)
        if linear.norm is not None and linear.norm.live and kind == Kind.RESID_PRE
        else None
    )
    begins = jnp.minimum(jnp.arange(0, len(source_pos), sizes.keys), len(source_pos) - sizes.keys)
    groups = take(source_pos, begins[:, None] + jnp.arange(sizes.keys))

    def at_target(i, out):
        t = target_pos[i]
        # The groups of keys that matter come first: those that the query may attend to, and its own position.
        matters = (groups == t) | (take(form.attention.mask[t], groups) if form.attention is not None else False)
        order, count = begins[jnp.argsort(~matters.any(1))], matters.any(1).sum()
        by_key = None if form.attention is None else _key_directions(linear, form.attention, kind, t, source_pos)

        def some_rows(j, out):
            first = jnp.minimum(j * sizes.rows, n - sizes.rows)
            rows = form.prepare_rows(first + jnp.arange(sizes.rows, dtype=jnp.int32), jnp.full(sizes.rows, t))

            def some_coordinates(j, out):
                begin = jnp.minimum(j * sizes.coordinates, sizes.rows - sizes.coordinates)
                local, attended = _some(rows, begin, sizes.coordinates)
                factors = _factors(linear, form.attention, kind, attended, t, source_pos)
                scores = None if by_key is None or attended is None else attended.scores

                def some_keys(j, out):
                    at = lambda x, axis=0: jax.lax.dynamic_slice_in_dim(x, order[j], sizes.keys, axis)
                    found = jnp.zeros((sizes.coordinates, sizes.keys, width), out.dtype)
                    if local is not None:
                        found += jnp.where((at(source_pos) == t)[:, None], local[:, None], 0)
                    if factors is not None:
                        # [n s rank] · [n rank width] -> [n s width]
                        found += jnp.einsum("nsr,nrw->nsw", at(factors.weights, 1), factors.directions)
                        if y is not None and factors.along is not None:
                            found += at(factors.along, 1)[..., None] * at(y)
                    if by_key is not None and scores is not None:
                        asked = at(take(scores, source_pos, axis=2), 2)
                        found += jnp.einsum(
                            "hns,shw->nsw", asked, at(by_key)
                        )  # [head n s] · [s head width] -> [n s width]
                    return jax.lax.dynamic_update_slice(out, found[None], (i, first + begin, order[j], 0))

                return jax.lax.fori_loop(0, count, some_keys, out)

            return jax.lax.fori_loop(0, -(-sizes.rows // sizes.coordinates), some_coordinates, out)

        return jax.lax.fori_loop(0, -(-n // sizes.rows), some_rows, out)

    out = jnp.zeros((len(target_pos), n, len(source_pos), width), segment.resid.dtype)
    return jax.lax.fori_loop(0, len(target_pos), at_target, out)


def _some(rows: Rows, begin: Int[Array, ""], count: int) -> tuple[Array | None, AttentionRows | None]:
    """Cuts `count` of the rows: what they are at the source, and at attention's output."""
    cut = lambda x, axis: jax.lax.dynamic_slice_in_dim(x, begin, count, axis)
    local = None if rows.local is None else cut(rows.local, 0)
    return local, jax.tree.map(lambda x: cut(x, 1), rows.attended)


def _factors(
    linear: LinearBlock,
    attention: AttentionMap | None,
    source: Kind,
    rows: AttentionRows | None,
    t: Int[Array, ""],
    source_pos: Int[Array, " s"],
) -> Factors | None:
    """Factors what comes from the keys: of rank `head` by values, of rank `head` by keys. `None` where neither is on the way."""
    spread = None if rows is None or attention is None else attention.spread_to_keys(rows, t[None], source)
    if spread is None or not (source > Kind.ATTN_IN or _leads(linear, source)):
        return None
    weights, directions, norm = (
        take(spread.weights, source_pos, axis=2).transpose(1, 2, 0),
        spread.directions,
        linear.norm,
    )
    if norm is None or source > Kind.LN1_NORMALIZED:
        return Factors(weights, directions, None)
    directions = directions if norm.weight is None else directions * norm.weight
    if source == Kind.LN1_NORMALIZED:
        return Factors(weights, directions, None)
    if norm.centres:
        directions -= jnp.mean(directions, axis=-1, keepdims=True)
    weights /= take(norm.scale, source_pos)
    if not norm.live:
        return Factors(weights, directions, None)
    y = take(norm.y, source_pos)
    # [n rank width] · [s width] -> [n s rank]
    shares = jnp.einsum("nrw,sw->nsr", directions, y) / y.shape[1]
    return Factors(weights, directions, -jnp.sum(weights * shares, axis=2))


def _leads(linear: LinearBlock, source: Kind) -> bool:
    """Whether what attention reads has a tangent of the source."""
    reached = {source}
    for each in linear.entrance:
        reached |= {each.target} if each.source in reached else set()
    return Kind.ATTN_IN in reached


def _key_directions(
    linear: LinearBlock, attention: AttentionMap, source: Kind, t: Int[Array, ""], source_pos: Int[Array, " s"]
) -> Float[Array, "s head width"] | None:
    """Pulls what each head of a query at `t` has of the keys at each position back to the source: where no one matrix makes the keys, so
    that this is another at each. `None` where it is not so, or does not lead there.
    """
    if Kind.K not in attention.paths or attention.W_K is not None:
        return None
    queries = attention.of_all_heads(take(attention.q, t[None]))[0]
    items = jnp.tile(queries, (len(source_pos), 1))
    positions = jnp.repeat(source_pos, len(queries))
    pulled = pull(linear.before, {attention.kinds[Kind.K]: items}, positions).get(source)
    return None if pulled is None else pulled.reshape(len(source_pos), len(queries), -1)

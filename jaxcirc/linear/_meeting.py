"""Rows and columns of a bilinear form, prepared so that they meet in matrix products; see `_contract` for the equations."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._sites import Kind
from ._block import Heads, LinearBlock
from ._ends import source_vectors, target_covectors
from ._forms import attends, read_site
from ._maps import pull, push, take as rows
from ._segment import Span


class Rows(NamedTuple):
    """Rows sorted by position: their covectors at the source; where attention is passed, those at its output, with pattern and scores, or
    what attention carries to other positions.
    """

    positions: Int[Array, " m"]
    local: Float[Array, "m width"] | None = None
    g: Float[Array, "head m d_head"] | None = None
    pattern: Float[Array, "head m k_seq"] | None = None
    scores: Float[Array, "head m k_seq"] | None = None
    carried: "Carried | None" = None


class Carried(NamedTuple):
    """Covectors at the normalised residual stream of every position: at position `s` the sum of `each` over its parts, two a head, times
    `weights[:, m, s]`.
    """

    each: Float[Array, "m part d_model"]
    weights: Float[Array, "part m k_seq"]


class Columns(NamedTuple):
    """Columns: their vectors at the source, and where attention is passed, their value images and either their key images or what every
    query's score has of them; or, for rows that are carried to them, their images at the normalised residual stream.
    """

    local: Float[Array, "k width"]
    v: Float[Array, "head d_head k"] | None = None
    k: Float[Array, "head d_head k"] | None = None
    asked: Float[Array, "head q_seq k"] | None = None
    normalized: Float[Array, "k d_model"] | None = None


class Sides(NamedTuple):
    """How items become rows and columns, `(items, positions) -> …`, and whether they meet in attention."""

    ask: Callable[[Array, Array], Rows]
    bring: Callable[[Array, Array], Columns]
    attends: bool


def sides(
    span: Span, linear: LinearBlock, *, forward: bool = False, carried: bool = False, kept: bool = False
) -> Sides:
    """The two sides of a one-block span. `forward`: where nothing passes attention, push the columns and not pull the rows. `carried`:
    rows are carried to the columns' positions. `kept`: columns bring what every query asks of them, and not their keys.
    """
    left_at, right_at = target_covectors(span), source_vectors(span)
    source, target, heads = span.source.kind, read_site(span).kind, linear.heads
    attending = bool(heads.paths) and attends(span)
    forward = forward and not attending
    carried = carried and attending and source <= Kind.LN1_NORMALIZED and bool(heads.paths & {Kind.V, Kind.K})

    def ask(items: Array, positions: Array) -> Rows:
        covectors = {target: left_at(items, positions)}
        if forward:
            return Rows(positions, covectors[target])
        covectors = pull(linear.after, covectors, positions)
        passed = None
        if attending and Kind.Z in covectors:
            passed = _at_attention(heads, covectors[Kind.Z], positions)
            if Kind.Q in heads.paths:  # [head m k_seq] · [k_seq head d_head] -> [m (head d_head)]
                asked = jnp.einsum("hms,she->mhe", passed[2], heads.k).reshape(len(positions), -1)
                covectors[Kind.Q] = covectors.get(Kind.Q, 0) + asked
        local = pull(linear.before, covectors, positions).get(source)
        if passed is None:
            return Rows(positions, local)
        return (
            Rows(positions, local, carried=_carry(heads, positions, *passed))
            if carried
            else Rows(positions, local, *passed)
        )

    def bring(items: Array, positions: Array) -> Columns:
        vectors = {source: right_at(items, positions)}
        if forward:
            return Columns(push(linear.maps, vectors, positions)[target])
        if not attending:
            return Columns(vectors[source])
        images = push(linear.entrance, vectors, positions)  # up to the normalised residual stream
        if carried:
            return Columns(vectors[source], normalized=images.get(Kind.LN1_NORMALIZED))
        v, k = (_image(heads, images, kind) for kind in (Kind.V, Kind.K))
        asked = None if k is None or not kept else jnp.einsum("the,hek->htk", heads.q, k)
        return Columns(vectors[source], v, k if asked is None else None, asked)

    return Sides(ask, bring, attending)


def _at_attention(heads: Heads, covectors, positions):
    _, n_heads, d_head = heads.q.shape
    g = covectors.reshape(-1, n_heads, d_head).transpose(1, 0, 2)
    pattern = heads.pattern.at[:, positions].get(mode="promise_in_bounds")
    if not heads.paths & {Kind.Q, Kind.K}:
        return g, pattern, None
    values = jnp.einsum("hme,she->hms", g, heads.v)
    scores = pattern * (values - jnp.sum(pattern * values, axis=-1, keepdims=True)) * heads.scale
    return g, pattern, scores


def _carry(heads: Heads, positions, g, pattern, scores) -> Carried:
    """Per head a value's covector, with the pattern as its weight, and a key's, with the scores."""
    each, weights = [], []
    if Kind.V in heads.paths:
        each, weights = [jnp.einsum("hme,hde->mhd", g, heads.W_V)], [pattern]
    if Kind.K in heads.paths:
        few = heads.q.shape[0] <= len(positions)  # positions, of which rows have the same
        keys = jnp.einsum("mhe,hde->mhd", heads.q if few else rows(heads.q, positions), heads.W_K)
        each, weights = [*each, rows(keys, positions) if few else keys], [*weights, scores]
    return Carried(jnp.concatenate(each, axis=1), jnp.concatenate(weights, axis=0))


def _image(heads: Heads, images, kind: Kind) -> Float[Array, "head d_head k"] | None:
    """The keys or values that vectors make; items last, so that the product is laid out as it is read."""
    if kind not in heads.paths:
        return None
    if kind in images:
        return images[kind].T.reshape(*heads.q.shape[1:], -1)
    if Kind.LN1_NORMALIZED not in images:
        return None
    return jnp.einsum("hmd,km->hdk", heads.W_V if kind == Kind.V else heads.W_K, images[Kind.LN1_NORMALIZED])


def meet(
    asked: Rows, brought: Columns, place: Int[Array, " tile"], heads: Heads, *, ordered: bool
) -> Float[Array, "m k"]:
    """The edges of a block of rows from a block of columns, whose tiles are at the positions `place`; `ordered` if rows and tiles are
    in the order of their positions.
    """
    positions, tiled = asked.positions, lambda x: x.reshape(*x.shape[:-1], len(place), -1)
    at_tiles = lambda x: x.at[:, :, place].get(mode="promise_in_bounds")[..., None]  # [head m tile 1]
    out = jnp.zeros((len(positions), len(place), brought.local.shape[0] // len(place)), heads.q.dtype)
    if asked.pattern is not None and brought.v is not None:
        values = jnp.einsum("hme,hek->hmk", asked.g, brought.v)
        out += jnp.sum(tiled(values) * at_tiles(asked.pattern), axis=0)
    if asked.carried is not None and brought.normalized is not None:
        out += _meet_carried(asked.carried, brought.normalized, place).transpose(1, 0, 2)
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

    if not ordered:
        return with_local(out).reshape(len(positions), -1)
    # A branch even where there is nothing local: what follows it is not fused with the sums, which would then be done number by number.
    meeting = (positions[0] <= place[-1]) & (place[0] <= positions[-1])
    return jax.lax.cond(meeting, with_local, lambda out: out, out).reshape(len(positions), -1)


def _meet_carried(carried: Carried, normalized: Array, place: Int[Array, " tile"]) -> Float[Array, "tile m width"]:
    weights = carried.weights.at[:, :, place].get(mode="promise_in_bounds")
    # [part m tile] · [m part d_model] -> [m tile d_model], each row at each tile's position; a transposed copy of it would take longer
    # than both products.
    there = jax.lax.optimization_barrier(jnp.einsum("pmt,mpd->mtd", weights, carried.each))
    tiled = normalized.reshape(len(place), -1, normalized.shape[-1])
    at_tile = lambda i: jax.lax.dynamic_index_in_dim(there, i, 1, keepdims=False) @ tiled[i].T
    return jax.lax.map(at_tile, jnp.arange(len(place), dtype=jnp.int32))

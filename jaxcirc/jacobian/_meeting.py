"""Rows and columns of a bilinear form, prepared so that they meet in matrix products; see `_contract` for the equations."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._sites import Kind
from ._ends import source_vectors, target_covectors
from ._engine import attends, read_site
from ._links import Heads, LinearBlock, pull, push, rows
from ._span import Span


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


class Sides(NamedTuple):
    """How items become rows and columns, `(items, positions) -> …`, and whether they meet in attention."""

    ask: Callable[[Array, Array], Rows]
    bring: Callable[[Array, Array], Columns]
    attends: bool


def sides(span: Span, linear: LinearBlock, *, forward: bool, kept: bool) -> Sides:
    """The two sides of a one-block span. `forward`: where nothing passes attention, push the columns and not pull the rows. `kept`:
    columns bring what every query asks of them, and not their keys.
    """
    left_at, right_at = target_covectors(span), source_vectors(span)
    source, target, heads = span.source.kind, read_site(span).kind, linear.heads
    attending = bool(heads.paths) and attends(span)
    forward = forward and not attending

    def ask(items: Array, positions: Array) -> Rows:
        covectors = {target: left_at(items, positions)}
        if forward:
            return Rows(positions, covectors[target], None, None, None)
        covectors = pull(linear.after, covectors, positions)
        g = pattern = scores = None
        if attending and Kind.Z in covectors:
            g, pattern, scores = _at_attention(heads, covectors[Kind.Z], positions)
            if Kind.Q in heads.paths:  # [head m k_seq] · [k_seq head d_head] -> [m (head d_head)]
                asked = jnp.einsum("hms,she->mhe", scores, heads.k).reshape(len(positions), -1)
                covectors[Kind.Q] = covectors.get(Kind.Q, 0) + asked
        return Rows(positions, pull(linear.before, covectors, positions).get(source), g, pattern, scores)

    def bring(items: Array, positions: Array) -> Columns:
        vectors = {source: right_at(items, positions)}
        if forward:
            return Columns(push(linear.links, vectors, positions)[target], None, None, None)
        if not attending:
            return Columns(vectors[source], None, None, None)
        images = push(linear.before[:1], vectors, positions)  # up to the normalised residual stream
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

"""A sublayer by itself: pushed through from the stream to a site in it, pulled back from there, by its own code with what is frozen held.

Behind the site a node writes by a matrix and a norm, if there is one; these are here too.
"""

import functools as ft

import jax
from jaxtyping import Array, Float, Int

from .._edits import Replace
from .._indexing import take
from .._precision import wide
from .._run import NOTHING
from .._sites import Kind, Site
from .._tap import Tap
from .._typing import Mask, Resid
from ..parts import Block, LayerNorm, Norm
from ._order import in_mlp
from ._point import holding, Kinds, Values


Rows = Int[Array, " row"]
AtRows = Float[Array, "row d_model"]


@ft.partial(jax.jit, static_argnames=("site", "frozen"))
def pull(
    block: Block, mask: Mask, resid: Resid, covector: Float[Array, "..."], *, site: Kind, frozen: Kinds
) -> Float[Array, "seq d_model"]:
    """Pulls a covector of the value at a site back to the stream that its sublayer reads."""
    return jax.vjp(lambda x: _value(block, mask, x, site, frozen), resid)[1](covector)[0]


@ft.partial(jax.jit, static_argnames=("site", "frozen"))
def push(
    block: Block, mask: Mask, resid: Resid, tangent: Float[Array, "seq d_model"], *, site: Kind, frozen: Kinds
) -> Float[Array, "..."]:
    """Pushes a tangent of the stream that a sublayer reads to the value at a site in it."""
    return jax.jvp(lambda x: _value(block, mask, x, site, frozen), (resid,), (tangent,))[1]


def _value(block: Block, mask: Mask, resid: Resid, kind: Kind, frozen: Kinds) -> Float[Array, "..."]:
    tap = Tap(NOTHING, holding(frozen), {Site(0, kind)}, layer=0)
    if in_mlp(kind) and block.has_middle:
        block.feed(resid, tap)
    else:  # compiled, what is not asked for is not computed
        block(resid, mask, tap)
    return tap.cache[Site(0, kind)]


@ft.partial(jax.jit, static_argnames=("site", "to", "frozen"))
def pull_inside(
    block: Block, mask: Mask, values: Values, covector: Float[Array, "..."], *, site: Kind, to: Kind, frozen: Kinds
) -> Float[Array, "..."]:
    """Pulls a covector of the value at a site of attention back to its queries, keys or values, one of them, at which it is computed."""

    def value(x):
        projected = {kind: values[kind] for kind in (Kind.Q, Kind.K, Kind.V)} | {to: x}
        edits = holding(frozen) | {Site(0, kind): Replace(each) for kind, each in projected.items()}
        tap = Tap(NOTHING, edits, {Site(0, site)}, layer=0)
        block(values[Kind.RESID_PRE], mask, tap)
        return tap.cache[Site(0, site)]

    return jax.vjp(value, values[to])[1](covector)[0]


def one_row(x: Float[Array, "seq ..."], row: Int[Array, ""]) -> Float[Array, "1 ..."]:
    """What is at one position: for sublayers that work on each by itself."""
    return jax.lax.dynamic_index_in_dim(x, row, keepdims=True)


@ft.partial(jax.jit, static_argnames=("site", "frozen"))
def pull_behind(
    block: Block, values: Values, gradient: AtRows, rows: Rows, *, site: Kind, frozen: Kinds
) -> Float[Array, "row width"]:
    """Pulls covectors of the stream that a site's value enters, at rows, to covectors of that value, flat: through what is behind it."""
    matrix, norm, before = _behind(block, site)
    if norm is not None:
        through = lambda x: norm(x, Tap(NOTHING, holding(frozen), frozenset(), layer=0))
        gradient = jax.vjp(through, take(values[before], rows))[1](gradient)[0]
    return gradient if matrix is None else gradient @ matrix.T


@ft.partial(jax.jit, static_argnames=("site", "frozen"))
def push_behind(
    block: Block, values: Values, vectors: Float[Array, "row width"], rows: Rows, *, site: Kind, frozen: Kinds
) -> AtRows:
    """Pushes vectors of a site's value, flat, at rows, to the stream that it enters."""
    matrix, norm, before = _behind(block, site)
    vectors = vectors if matrix is None else vectors @ matrix
    if norm is None:
        return vectors
    through = lambda x: norm(x, Tap(NOTHING, holding(frozen), frozenset(), layer=0))
    return jax.jvp(through, (take(values[before], rows),), (vectors,))[1]


def _behind(block: Block, site: Kind) -> tuple[Float[Array, "width d_model"] | None, Norm | None, Kind]:
    """The matrix and the norm between a site and the stream, and the site that the norm reads."""
    if site in (Kind.Z, Kind.HEADS_OUT):
        W = wide(block.attn.W_O)
        return (W.reshape(-1, W.shape[-1]) if site == Kind.Z else None), block.ln1_post, Kind.HEADS_OUT
    if site in (Kind.MLP_POST, Kind.NEURONS_OUT):
        assert block.mlp is not None
        return (wide(block.mlp.W_out) if site == Kind.MLP_POST else None), block.ln2_post, Kind.NEURONS_OUT
    return None, None, site


def bias_behind(block: Block, site: Kind) -> Float[Array, " d_model"] | float:
    """The bias of the norm behind a sublayer, which it adds to the stream: of norms that have one."""
    norm = _behind(block, site)[1]
    return wide(norm.bias) if isinstance(norm, LayerNorm) and norm.bias is not None else 0.0

r"""Bilinear forms between items at the same position, through any number of blocks of a causal model.

What leaves a position goes to later ones and never comes back. So the derivative of the value at position `p` of one block with respect
to that at `p` of an earlier block is the product of the blocks' own: that of the chain at `p` with the keys and values of all other
positions held. A block's own derivative is local, and takes vectors of all positions at once, each as one row of a matrix product.
For a head with queries `q`, keys and values `k`, `v` and pattern `A` at the clean point, vectors `dq`, `dk`, `dv` at `p` become

$$dz = A_{pp}\, dv + \sum_s A_{ps} \Big( dS_s - \sum_{s'} A_{ps'} dS_{s'} \Big) v_s, \qquad
  dS_s = (\langle dq, k_s \rangle + [s = p] \langle q_p, dk \rangle) \cdot \mathrm{scale}.$$
"""

import functools as ft

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._sites import Kind
from ._block import Heads, linearise
from ._maps import Positions, push, take as rows
from ._segment import Span


TILE = 32  # rows and columns of one position that meet in one product


@ft.partial(jax.jit, static_argnames="forward")
def contract_own(
    spans: tuple[Span, ...],
    left: Float[Array, "m d_target"],
    left_pos: Int[Array, " m"],
    right: Float[Array, "k d_source"],
    right_pos: Int[Array, " k"],
    corners: Int[Array, "tile 2"],
    *,
    forward: bool,
) -> Float[Array, "tile row column"]:
    """`left_m^T J right_k` in tiles of `TILE` rows and columns from each of `corners` on. It is right where both are at one position.

    With `forward` the vectors are pushed to the target, else the covectors are pulled to the source; each passes every block once.
    """
    if forward:
        right = _push(spans, right, right_pos)
    else:
        like = jax.ShapeDtypeStruct((len(left), right.shape[1]), left.dtype)
        (left,) = jax.linear_transpose(lambda vectors: _push(spans, vectors, left_pos), like)(left)

    def tile(corner):
        row, column = (jax.lax.dynamic_slice_in_dim(*each, TILE) for each in ((left, corner[0]), (right, corner[1])))
        return row @ column.T

    return jax.lax.map(tile, corners)


def _push(
    spans: tuple[Span, ...], vectors: Float[Array, "n d_source"], positions: Positions
) -> Float[Array, "n d_target"]:
    """Vectors at single positions as their images at the same positions, through one block after another."""
    for span in spans:
        linear = linearise(span, 0, frozenset())
        images = push(linear.before, {span.source.kind: vectors}, positions)
        if images.keys() & {Kind.Q, Kind.K, Kind.V}:
            images[Kind.Z] = _attend(linear.heads, images, positions)
        vectors = push(linear.after, images, positions)[span.target.kind]
    return vectors


def _attend(heads: Heads, images: dict[Kind, Array], positions: Positions) -> Float[Array, "n d_z"]:
    seq, *shape = heads.q.shape
    queries, keys, values = (
        images[kind].reshape(-1, *shape) if kind in images else None for kind in (Kind.Q, Kind.K, Kind.V)
    )
    pattern = rows(heads.pattern.transpose(1, 0, 2), positions)  # [n head k_seq]
    here = (positions[:, None] == jnp.arange(seq, dtype=positions.dtype))[:, None]
    scores, out = jnp.zeros_like(pattern), jnp.zeros((len(positions), *shape), pattern.dtype)
    if queries is not None:
        scores += jnp.einsum("nhe,she->nhs", queries, heads.k)
    if keys is not None:
        scores += jnp.where(here, jnp.einsum("nhe,nhe->nh", rows(heads.q, positions), keys)[..., None], 0)
    if queries is not None or keys is not None:
        scores *= heads.scale
        moved = pattern * (scores - jnp.sum(pattern * scores, axis=-1, keepdims=True))
        out += jnp.einsum("nhs,she->nhe", moved, heads.v)
    if values is not None:
        out += jnp.sum(jnp.where(here, pattern, 0), axis=-1, keepdims=True) * values
    return out.reshape(len(positions), -1)

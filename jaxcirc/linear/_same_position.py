r"""Bilinear forms between items at the same position, through any number of blocks of a causal model.

What leaves a position goes to later ones and never comes back. So the derivative of the value at position `p` of one block with respect
to that at `p` of an earlier block is the product of the blocks' own: that of the chain at `p` with the keys and values of all other
positions held. A block's own derivative is local, and takes vectors of all positions at once, each as one row of a matrix product.
"""

import functools as ft

import jax
from jaxtyping import Array, Float, Int

from .._sites import Kind
from ..runs import at_once, in_loop
from ._block import linearise
from ._maps import Positions, push
from ._segment import Segment


TILE = 32  # rows and columns of one position that meet in one product


def contract_own(
    segments: tuple[Segment, ...],
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
    widths = sum(x.shape[1] for x in (left, right))
    together = at_once(TILE * widths * left.dtype.itemsize, on_cpus=1)
    return _own(segments, left, left_pos, right, right_pos, corners, forward=forward, together=together)


@ft.partial(jax.jit, static_argnames=("forward", "together"))
def _own(segments, left, left_pos, right, right_pos, corners, *, forward: bool, together: int):
    if forward:
        right = _push(segments, right, right_pos)
    else:
        like = jax.ShapeDtypeStruct((len(left), right.shape[1]), left.dtype)
        (left,) = jax.linear_transpose(lambda vectors: _push(segments, vectors, left_pos), like)(left)

    def tile(corner):
        row, column = (jax.lax.dynamic_slice_in_dim(*each, TILE) for each in ((left, corner[0]), (right, corner[1])))
        return row @ column.T

    return in_loop(tile, corners, together)


def _push(
    segments: tuple[Segment, ...], vectors: Float[Array, "n d_source"], positions: Positions
) -> Float[Array, "n d_target"]:
    """Pushes vectors at single positions to the same positions of the target, through one block after another."""
    for segment in segments:
        linear = linearise(segment)
        images = push(linear.before, {segment.source.kind: vectors}, positions)
        if linear.heads is not None and images.keys() & set(linear.heads.kinds.values()):
            images[Kind.Z] = linear.heads.own(images, positions)
        vectors = push(linear.after, images, positions)[segment.target.kind]
    return vectors

"""Positions that act inside attention: queries and keys, rotated by angles that grow with their position."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._indexing import take
from .._precision import wide


BITS = 10
STEPS = 1 << BITS  # the angles of a position are those of its quotient and of its remainder by this, added


class Rotary(eqx.Module):
    """Rotary positions (Su et al. 2021, arXiv 2104.09864, §3.2): coordinate `i` of a head and coordinate `i + pair` are rotated by the
    position times a frequency; those behind the first two `pair`s stay. Products of queries and keys then depend on their distance.

    A position `p` is `1024 a + b`, and `cos` and `sin` hold the angles of all `a` and all `b`, made in float64: so no rounding of an angle
    grows with the position, and layers that differ in their frequencies still share a program. Up to a million positions.
    """

    cos: Float[Array, "2 1024 pair"]
    sin: Float[Array, "2 1024 pair"]

    MOST = STEPS**2  # positions

    def __call__(
        self, x: Float[Array, "seq head d_head"], positions: Int[Array, " seq"]
    ) -> Float[Array, "seq head d_head"]:
        """Rotates what is at `positions`: linear in `x`, and orthogonal, so that the transpose rotates back."""
        return rotate(x, self.angles(positions))

    def angles(self, positions: int | Int[Array, " seq"]) -> "Angles":
        """Cosine and sine of the angles at positions, or at so many from the first on."""
        cos, sin = wide(self.cos), wide(self.sin)
        # Rows of a table: few operations, in the program of every block.
        if isinstance(positions, int) and positions <= STEPS:
            return Angles(*(table[1, :positions, None] for table in (cos, sin)))
        at = jnp.arange(positions, dtype=jnp.int32) if isinstance(positions, int) else positions
        high, low = at >> BITS, at & (STEPS - 1)
        (a, b), (c, d) = ((take(table[0], high), take(table[1], low)) for table in (cos, sin))
        return Angles((a * b - c * d)[:, None], (c * b + a * d)[:, None])


class Angles(NamedTuple):
    """Cosine and sine of angles."""

    cos: Float[Array, "seq 1 pair"]
    sin: Float[Array, "seq 1 pair"]


def rotate(x: Float[Array, "seq head d_head"], by: Angles) -> Float[Array, "seq head d_head"]:
    """Rotates coordinate `i` and coordinate `i + pair` by an angle at each position."""
    pair = by.cos.shape[-1]
    if 2 * pair > x.shape[-1]:  # else the sums below would make an array of another width
        raise ValueError(
            f"Rotary: {pair} pairs of coordinates are to rotate, and a head has {x.shape[-1]} coordinates."
        )
    first, second = x[..., :pair], x[..., pair : 2 * pair]
    rest = [x[..., 2 * pair :]] if x.shape[-1] > 2 * pair else []
    return jnp.concatenate([first * by.cos - second * by.sin, second * by.cos + first * by.sin, *rest], axis=-1)


def make_rotary(frequencies: Float[np.ndarray, " pair"], dtype: np.dtype) -> Rotary:
    """The rotation by these frequencies, in radians a position, whose tables are of `dtype`."""
    steps = np.arange(STEPS, dtype=np.float64)
    angles = np.stack([STEPS * steps, steps])[..., None] * np.asarray(frequencies, np.float64)
    # On the host first: nothing is compiled for it.
    return Rotary(jnp.asarray(np.cos(angles).astype(dtype)), jnp.asarray(np.sin(angles).astype(dtype)))

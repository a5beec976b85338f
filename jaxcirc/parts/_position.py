"""Positions that act inside attention: queries and keys, rotated by angles that grow with their position."""

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
        cos, sin = self._angles(positions)
        pair = self.cos.shape[-1]
        first, second, rest = x[..., :pair], x[..., pair : 2 * pair], x[..., 2 * pair :]
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)

    def _angles(self, positions: Int[Array, " seq"]) -> tuple[Float[Array, "seq 1 pair"], Float[Array, "seq 1 pair"]]:
        """Cosine and sine of a sum of two angles."""
        high, low = positions >> BITS, positions & (STEPS - 1)
        (a, b), (c, d) = ((take(table[0], high), take(table[1], low)) for table in (wide(self.cos), wide(self.sin)))
        return (a * b - c * d)[:, None], (c * b + a * d)[:, None]


def make_rotary(frequencies: Float[np.ndarray, " pair"], dtype: np.dtype) -> Rotary:
    """The rotation by these frequencies, in radians a position, whose tables are of `dtype`."""
    steps = np.arange(STEPS, dtype=np.float64)
    angles = np.stack([STEPS * steps, steps])[..., None] * np.asarray(frequencies, np.float64)
    # On the host first: nothing is compiled for it.
    return Rotary(jnp.asarray(np.cos(angles).astype(dtype)), jnp.asarray(np.sin(angles).astype(dtype)))

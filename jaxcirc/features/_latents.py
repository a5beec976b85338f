"""Which latents are on, listed; and what a list of them stands for: vectors that a decoder writes, covectors that an encoder reads."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..saes import AbstractDictionary
from ..units import covectors, vectors
from ._point import Point


class Latents(NamedTuple):
    """Latents that are on, in the order of positions: `unit` `[n]` at `position` `[n]`."""

    position: Int[np.ndarray, " n"]
    unit: Int[np.ndarray, " n"]

    def padded(self, size: int) -> tuple[Int[Array, " size"], Int[Array, " size"]]:
        """As arrays of a fixed size; behind the latents is unit 0 at position 0, which nobody looks at."""
        fill = lambda column: jnp.asarray(np.pad(column, (0, size - len(column))))
        return fill(self.position), fill(self.unit)

    def at(self, index: np.ndarray | slice) -> "Latents":
        """Some of them."""
        return Latents(self.position[index], self.unit[index])


class Pairs(NamedTuple):
    """Pairs of latents, by their numbers in the list of targets and that of sources."""

    target: Int[np.ndarray, " pair"]
    source: Int[np.ndarray, " pair"]

    def at(self, index: slice) -> "Pairs":
        """Some of them."""
        return Pairs(self.target[index], self.source[index])


def latents_above(acts: Float[np.ndarray, "seq d_sae"], minimum: float) -> Latents:
    """Those whose value is above the minimum."""
    return Latents(*(column.astype(np.int32) for column in np.nonzero(acts > minimum)))


@jax.jit
def written(
    sae: AbstractDictionary, point: Point, position: Int[Array, " k"], unit: Int[Array, " k"]
) -> Float[Array, "k width"]:
    """What the source's latents write a unit of: their decoder directions, as long as the dictionary's normalisation makes them."""
    return vectors(sae, unit, point.source_scale[position]).astype(point.read.dtype)


@jax.jit
def read(
    sae: AbstractDictionary, point: Point, position: Int[Array, " m"], unit: Int[Array, " m"]
) -> Float[Array, "m d_read"]:
    """The derivatives of the target's latents by what they read: encoder directions times the slopes of the nonlinearity."""
    slopes = point.slopes[position, unit]
    return covectors(sae, point.read[position], unit, slopes).astype(point.read.dtype)

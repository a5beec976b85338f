"""Where an operator begins or ends: a site, in which layer, and which of its positions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Int

from .._indexing import entries
from .._sites import Site
from ._positions import position_axis


class Place(eqx.Module):
    """One end of an operator.

    **Attributes:** `first`: the site, in layer 0; `layer`: in which layer it is, an array, so that all layers share their programs;
    `positions`: those that the operator is restricted to, `None` for all. One beyond the sequence is of nothing: what is made of it is NaN.
    """

    first: Site = eqx.field(static=True)
    layer: Int[Array, ""]
    positions: Int[Array, " n"] | None

    @property
    def site(self) -> Site:
        return self.first.offset_layers(int(self.layer))

    @property
    def known(self) -> bool:
        """Whether it is said which layer it is: not under a transformation that has it as an argument, nor of several stacked ones."""
        return not isinstance(self.layer, Tracer) and jnp.ndim(self.layer) == 0

    def __str__(self) -> str:
        return str(self.site if self.known else self.first)

    def meets(self, other: "Place") -> bool:
        """Whether it is at the same site, as far as is said."""
        return self.site == other.site if self.known and other.known else self.first == other.first

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a value at its positions, of one with the shape `whole`."""
        axis = position_axis(self.first)
        return whole if self.positions is None else (*whole[:axis], len(self.positions), *whole[axis + 1 :])

    def index(self, seq: int) -> Int[Array, " n"]:
        """Its positions in a sequence of `seq` tokens, the last for one that is beyond it."""
        return jnp.arange(seq, dtype=jnp.int32) if self.positions is None else jnp.minimum(self.positions, seq - 1)

    def there(self, seq: int) -> Bool[Array, " n"] | None:
        """Which of its positions are within the sequence; `None` where all are, as the host knows."""
        if self.positions is None:
            return None
        known = not isinstance(self.positions, Tracer)
        return None if known and (np.asarray(self.positions) < seq).all() else self.positions < seq

    def take(self, values: Array) -> Array:
        """Of values `[n *whole]` what is at its positions."""
        return values if self.positions is None else entries(values, self.positions, axis=1 + position_axis(self.first))

    def put(self, values: Array, whole: tuple[int, ...]) -> Array:
        """Values at its positions, `[n *value]`, as ones of the shape `whole`, 0 elsewhere."""
        if self.positions is None:
            return values
        index = (slice(None),) * (1 + position_axis(self.first)) + (self.positions,)
        return jnp.zeros((len(values), *whole), values.dtype).at[index].add(values, mode="drop")


def place_of(site: Site, positions: Int[Array, " n"] | None = None) -> Place:
    """The place of a site at all positions, or some."""
    with jax.ensure_compile_time_eval():  # so that an operator made under `jit` knows its layers
        layer = jnp.asarray(site.layer or 0, jnp.int32)
    return Place(site.offset_layers(-(site.layer or 0)), layer, positions)

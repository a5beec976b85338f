"""Positions: checked on the host, restricted, and which axis counts them."""

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int

from .._sites import Kind, Site


def check_positions(name: str, positions: Int[Array, " n"], seq: int) -> Int[Array, " n"]:
    """Positions counted from 0, also where they came counted from the end; ValueError for one outside the sequence, which indexing
    would clamp."""
    if not isinstance(positions, Tracer):
        values = np.asarray(positions)
        outside = values[(values < -seq) | (values >= seq)]
        if len(outside):
            raise ValueError(f"{name}: position {int(outside[0])} is outside the sequence of {seq} tokens.")
    return jnp.where(positions < 0, positions + seq, positions).astype(jnp.int32)


def position_axis(site: Site) -> int:
    """The axis of the value at `site` that counts positions, the queries' where there are two."""
    return 1 if site.kind in (Kind.ATTN_SCORES, Kind.PATTERN) else 0


def restricted_shape(shape: tuple[int, ...], site: Site, positions: Int[Array, " n"] | None) -> tuple[int, ...]:
    """The shape of the value at some positions."""
    axis = position_axis(site)
    return shape if positions is None else (*shape[:axis], len(positions), *shape[axis + 1 :])


def take_positions(values: Array, site: Site, positions: Int[Array, " n"] | None) -> Array:
    """`[n *value]` at some positions."""
    return values if positions is None else jnp.take(values, positions, axis=1 + position_axis(site))


def put_positions(values: Array, site: Site, positions: Int[Array, " n"] | None, shape: tuple[int, ...]) -> Array:
    """`[n *value]` given at some positions, as values of the whole `shape`, 0 elsewhere."""
    if positions is None:
        return values
    index = (slice(None),) * (1 + position_axis(site)) + (positions,)
    return jnp.zeros((len(values), *shape), values.dtype).at[index].add(values)


def every_unit(positions: Int[Array | np.ndarray, " n"], size: int) -> tuple[Int[Array, " size"], Int[Array, " size"]]:
    """All coordinates of a value of `size` numbers at so many positions, as units and their positions, in the order of the value."""
    width = size // len(positions)
    units = jnp.tile(jnp.arange(width, dtype=jnp.int32), len(positions))
    return units, jnp.repeat(jnp.asarray(positions, jnp.int32), width)

"""Positions: checked on the host, restricted, and which axis counts them."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int

from .._sites import Kind, Site


def check_positions(name: str, positions: Int[Array, " n"], seq: int) -> Int[Array, " n"]:
    """Positions counted from 0, also where they came counted from the end; ValueError for one outside the sequence, which indexing
    would clamp. Under `jit` and `vmap`, where they are not known, each that is outside becomes `seq`, where there is nothing.
    """
    positions = positions.astype(jnp.int32) if positions.dtype.itemsize < 4 else positions  # `seq` fits into it
    counted = jnp.where(positions < 0, positions + seq, positions)
    if isinstance(positions, Tracer):
        return jnp.where((counted < 0) | (counted >= seq), seq, counted).astype(jnp.int32)
    values = np.asarray(positions)
    outside = values[(values < -seq) | (values >= seq)]
    if len(outside):
        raise ValueError(f"{name}: position {int(outside[0])} is outside the sequence of {seq} tokens.")
    return counted.astype(jnp.int32)


def given_positions(name: str, positions: Sequence[int] | Int[Array, " n"] | None, seq: int) -> Int[Array, " n"] | None:
    """What a caller gave as the list of positions `name`, or not: checked, counted from 0. ValueError for what is no such list."""
    if positions is None:
        return None
    array = jnp.asarray(positions)
    if array.ndim != 1 or not len(array) or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"{name} is a list of positions, such as [0, -1]; got {positions!r}.")
    return check_positions(name, array, seq)


def position_axis(site: Site) -> int:
    """The axis of the value at `site` that counts positions, the queries' where there are two."""
    return 1 if site.kind in (Kind.ATTN_SCORES, Kind.PATTERN) else 0


def every_unit(positions: Int[Array | np.ndarray, " n"], size: int) -> tuple[Int[Array, " size"], Int[Array, " size"]]:
    """All coordinates of a value of `size` numbers at so many positions, as units and their positions, in the order of the value."""
    width = size // len(positions)
    units = jnp.tile(jnp.arange(width, dtype=jnp.int32), len(positions))
    return units, jnp.repeat(jnp.asarray(positions, jnp.int32), width)

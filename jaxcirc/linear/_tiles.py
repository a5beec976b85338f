"""Items sorted by position into tiles of one position each, with array shapes that do not depend on the positions."""

import functools as ft
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from .._indexing import take


class Tiles(NamedTuple):
    """Items sorted into tiles of one position each: `item` `[tile width]` (padding repeats others), `position` `[tile]`, how many tiles
    are `used`, and the `slot` `[item]` at which each item lies in the flattened tiles.
    """

    item: Int[Array, "tile width"]
    position: Int[Array, " tile"]
    used: Int[Array, ""]
    slot: Int[Array, " item"]

    def range(self, first: Int[Array, ""], last: Int[Array, ""], count: int) -> tuple[Int[Array, ""], Int[Array, ""]]:
        """Finds which groups of `count` tiles have all tiles at positions from `first` to `last`: the first, and the one after them."""
        begin, end = (jnp.sum(there, dtype=jnp.int32) for there in (self.position < first, self.position <= last))
        return begin // count, -(-jnp.minimum(end, self.used) // count)


@ft.partial(jax.jit, static_argnames=("seq", "width", "multiple"))
def tile(positions: Int[Array, "*batch item"], seq: int, width: int, multiple: int) -> Tiles:
    """Tiles for items at `positions`, of each example apart; as many as any positions may need, rounded up to a `multiple`."""
    if positions.ndim > 1:
        return jax.vmap(lambda positions: tile(positions, seq, width, multiple))(positions)
    items = positions.shape[0]
    most = items // width + min(seq, items)
    most += -most % multiple
    # Sorting and searching throughout: a scatter is a loop, number by number, on CPUs.
    order = jnp.argsort(positions, stable=True).astype(jnp.int32)
    there = take(positions, order)
    begin, end = (
        jnp.searchsorted(there, jnp.arange(seq, dtype=jnp.int32), side=side).astype(jnp.int32)
        for side in ("left", "right")
    )
    last_tile = jnp.cumsum(-(-(end - begin) // width))  # the tiles up to and with each position
    first_tile = last_tile + (begin - end) // width
    tiles = jnp.arange(most, dtype=jnp.int32)
    position = jnp.minimum(jnp.searchsorted(last_tile, tiles, side="right"), seq - 1).astype(jnp.int32)
    nth = (tiles - take(first_tile, position))[:, None] * width + jnp.arange(width, dtype=jnp.int32)
    nth = jnp.clip(take(begin, position)[:, None] + nth, 0, items - 1)
    slots = take(first_tile, there) * width + jnp.arange(items, dtype=jnp.int32) - take(begin, there)
    return Tiles(take(order, nth), position, last_tile[-1], take(slots, jnp.argsort(order)))


@jax.jit
def sort(positions: Int[Array, "*batch item"]) -> Int[Array, "*batch item"]:
    """The items in the order of their positions."""
    return jnp.argsort(positions, axis=-1, stable=True).astype(jnp.int32)

"""What latents write and read: their decoder and encoder directions, one by one or summed, of lists that hold only those that are on.

Of tens of thousands of latents a few are on at each position, and only those are looked at again. Both ways through a dictionary's rows,
`W_dec` or the transpose of `W_enc`, are here: where most latents are listed, an array of all of them is the faster way.
"""

from collections.abc import Hashable, Mapping
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._indexing import take
from .._precision import wide
from .._sites import Site
from .._target import on_cpu
from ..runs import size_for
from ..saes import AbstractDictionary


class Latents(eqx.Module):
    """One list of latents, or nodes, for each example: `units[b, i]` at position `positions[b, i]` has `values[b, i]`. They are in the
    order of positions, and of units; behind the last unit and position are -1 and 0, and the value is 0.
    """

    positions: Int[np.ndarray | Array, "*batch n"]
    units: Int[np.ndarray | Array, "*batch n"]
    values: Float[np.ndarray | Array, "*batch n"]

    def instances(self) -> tuple[Int[np.ndarray, "n 3"], Float[np.ndarray, " n"]]:
        """Those of all examples in one list: as (example, position, unit), and their values."""
        positions, units, values = (np.asarray(x) for x in (self.positions, self.units, self.values))
        there = np.nonzero(units >= 0)
        return np.stack([there[0], positions[there], units[there]], axis=-1), values[there]


def listed(dense: Float[np.ndarray, "batch seq d_sae"]) -> Latents:
    """Those that are not zero."""
    return from_instances(*not_zero(dense), len(dense))


def not_zero(dense: Float[np.ndarray, "..."]) -> tuple[Int[np.ndarray, "n axes"], Float[np.ndarray, " n"]]:
    """The indices of what is not zero, in their order, and its values."""
    flat = np.flatnonzero(dense)  # in a fraction of the time that all axes at once take
    return np.stack(np.unravel_index(flat, dense.shape), axis=-1), dense.reshape(-1)[flat]


def from_instances(index: Int[np.ndarray, "n 3"], values: Float[np.ndarray, " n"], batch: int) -> Latents:
    """Lists for each of `batch` examples, as long as the longest, of instances in the order of their index."""
    example, *place = index.T
    count = np.bincount(example, minlength=batch)
    there = example, np.arange(len(example)) - np.repeat(np.cumsum(count) - count, count)
    fill = lambda value, dtype: np.full((batch, int(count.max())), value, dtype)
    positions, units, sizes = fill(0, np.int32), fill(-1, np.int32), fill(0, values.dtype)
    for array, column in zip((positions, units, sizes), (*place, values), strict=True):
        array[there] = column
    return Latents(positions, units, sizes)


def of_one_size(lists: Mapping[Site, Latents], *kind: Hashable) -> dict[Site, Latents]:
    """Lists of all sites with as many places, so that they share programs; with as many as others of this `kind` had, if that will do."""
    batch, longest = (max(each.units.shape[axis] for each in lists.values()) for axis in (0, 1))
    width = size_for(longest, *kind, batch)
    return {site: widened(each, width) for site, each in lists.items()}


def widened(latents: Latents, width: int) -> Latents:
    """Lists of `width` places."""
    pad = lambda array, value: np.pad(array, [(0, 0), (0, width - array.shape[1])], constant_values=value)
    return Latents(pad(latents.positions, 0), pad(latents.units, -1), pad(latents.values, 0))


def vectors(sae: AbstractDictionary, units: Int[Array, " n"], sizes: Float[Array, " n"]) -> Float[Array, "n width"]:
    """Takes the direction that each latent writes, times its size."""
    return sizes[:, None] * wide(take(sae.W_dec, units))


def covectors(
    sae: AbstractDictionary, x: Float[Array, "n d_in"], units: Int[Array, " n"], sizes: Float[Array, " n"]
) -> Float[Array, "n d_in"]:
    """Takes the covector by which each latent reads its dictionary's input `x`, times its size: normalisations are gone through."""
    return sae.pull_input(x, sizes[:, None] * wide(take(sae.W_enc, units, axis=1)).T)


class WriteTiles(NamedTuple):
    """How many positions are written at once, and by how many latents."""

    positions: int
    latents: int


def write_tiles() -> WriteTiles:
    """Chooses the sizes: a few kernels for an accelerator, and what a core's cache holds else. It is asked before a function is traced,
    and what it says is a static argument.
    """
    return WriteTiles(32, 512) if on_cpu() else WriteTiles(256, 8192)


def write(
    latents: Latents, rows: Float[Array, "d_sae width"], seq: int, *, tiles: WriteTiles
) -> Float[Array, "seq width"]:
    """What latents of one example write at each position: the sum of their rows, times their values."""
    if _most(latents, rows, seq):
        dense = (
            jnp.zeros((seq, len(rows)), latents.values.dtype).at[latents.positions, latents.units].add(latents.values)
        )
        return dense @ wide(rows)
    if seq <= tiles.positions:
        return _written(latents, rows, 0, seq)
    in_tiles = jax.custom_batching.sequential_vmap(lambda latents, rows: _write_in_tiles(latents, rows, seq, tiles))
    return in_tiles(latents, rows)


def _write_in_tiles(
    latents: Latents, rows: Float[Array, "d_sae width"], seq: int, tiles: WriteTiles
) -> Float[Array, "seq width"]:
    """Writes some positions at a time, as latents are in their order: work grows with the latents, and not with them times positions."""
    (size, width), n = tiles, latents.units.shape[0]
    blocks, pad = -(-seq // size), lambda x, value: jnp.pad(x, (0, -n % width), constant_values=value)
    latents = Latents(pad(latents.positions, 0), pad(latents.units, -1), pad(latents.values, 0))
    at = jnp.where(latents.units < 0, seq, latents.positions)
    begins = jnp.searchsorted(at, jnp.minimum(jnp.arange(blocks + 1) * size, seq).astype(at.dtype))

    def some_positions(block, out):
        def some_latents(tile, found):
            part = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, tile * width, width), latents)
            return found + _written(part, rows, block * size, size)

        there = begins[block] // width, -(-begins[block + 1] // width)
        found = jax.lax.fori_loop(*there, some_latents, jnp.zeros((size, rows.shape[1]), out.dtype))
        return jax.lax.dynamic_update_slice_in_dim(out, found, block * size, 0)

    nothing = jnp.zeros((blocks * size, rows.shape[1]), jnp.result_type(latents.values, wide(rows)))
    return jax.lax.fori_loop(0, blocks, some_positions, nothing)[:seq]


def _written(latents: Latents, rows: Float[Array, "d_sae width"], first, count: int) -> Float[Array, "count width"]:
    """What latents write at `count` positions from the `first` on."""
    dtype = latents.positions.dtype
    at = jnp.arange(count, dtype=dtype)[:, None] + jnp.asarray(first, dtype)
    # [position n] · [n width]
    return jnp.where(latents.positions == at, latents.values, 0) @ wide(take(rows, _units(latents)))


def read(latents: Latents, rows: Float[Array, "d_sae width"], vectors: Float[Array, "seq width"]) -> Float[Array, " n"]:
    """The inner product of each latent's row with the vector at its position."""
    if _most(latents, rows, len(vectors)):
        return (vectors @ wide(rows).T)[latents.positions, latents.units]
    # As one fused loop: an einsum writes down what is gathered, which takes several times as long.
    return (wide(take(rows, _units(latents))) * take(vectors, jnp.asarray(latents.positions))).sum(-1)


def _units(latents: Latents) -> Int[Array, " n"]:
    """Which rows are theirs; behind the last latent any will do, as its value is 0."""
    return jnp.maximum(latents.units, 0)


def bytes_through(latents: Latents, rows: Float[Array, "d_sae width"], seq: int, tiles: WriteTiles) -> int:
    """Counts what is held while the latents of one example are read, or write."""
    few = latents.units.shape[-1] * (min(seq, tiles.positions) + rows.shape[1])
    numbers = seq * len(rows) if _most(latents, rows, seq) else few
    return numbers * latents.values.dtype.itemsize


def _most(latents: Latents, rows: Array, seq: int) -> bool:
    return latents.units.shape[-1] > seq * len(rows) // 16

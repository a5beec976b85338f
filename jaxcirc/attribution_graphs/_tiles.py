"""What latents write, against gradients at their positions: in tiles of one position each, so that each tile is one product."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._indexing import slice_filled, take
from .._precision import wide
from .._sites import Site
from ..runs import allowance, rounded_up, WAY_BACK
from ._replacement import Replaced
from ._table import Columns


class Tiles(NamedTuple):
    """Latents in tiles of one position each.

    `pos` `[tile]`; `rows`, `scale` `[tile slot]`, 0 where a tile is filled up; `place` `[latent]`, where each latent is.
    """

    pos: Int[np.ndarray, " tile"]
    rows: Int[np.ndarray, "tile slot"]
    scale: Float[np.ndarray, "tile slot"]
    place: Int[np.ndarray, " latent"]

    def up_to(self, seq: int) -> int:
        """How many tiles are at the first `seq` positions."""
        return int(np.searchsorted(self.pos, seq))


class Writing(NamedTuple):
    """What the latents of a dictionary write at a site: their rows, in tiles, and the first of their columns."""

    rows: Float[Array, "row d_model"]
    tiles: Tiles
    first: int


class Writings(NamedTuple):
    """What latents write, by site, in tiles of `slots` latents."""

    of: dict[Site, list[Writing]]
    slots: int

    def contract(
        self, site: Site, gradient: Float[Array, "n seq d_model"]
    ) -> Iterator[tuple[slice, Float[np.ndarray, "n latent"]]]:
        """Contracts gradients at a site with what is written there at their positions.

        **Returns:** some columns at a time, and their entries.
        """
        for rows, tiles, first in self.of.get(site, ()):
            together, count = self._together(gradient), tiles.up_to(gradient.shape[1])
            for begin in range(0, count, together):
                some = (slice_filled(x[:count], begin, together) for x in tiles[:3])
                found = np.asarray(_contract(gradient, rows, *some))
                ends = begin * self.slots, min(begin + together, count) * self.slots
                latents = slice(*np.searchsorted(tiles.place, ends))
                yield slice(first + latents.start, first + latents.stop), found[:, tiles.place[latents] - ends[0]]

    def _together(self, gradient: Float[Array, "n seq d_model"]) -> int:
        """How many tiles are contracted at once: half of what a dictionary has, and for all as many, so that they share programs."""
        n, seq, d_model = gradient.shape
        counts = [writing.tiles.up_to(seq) for writings in self.of.values() for writing in writings]
        granted = allowance(on_cpus=WAY_BACK) // ((n + self.slots) * d_model * gradient.dtype.itemsize)
        return max(1, min(granted, rounded_up(sum(counts) // (2 * len(counts)))))


def writings_of(replaced: Replaced, columns: Columns) -> Writings:
    """Lays out what all latents write; a tile holds about half of those that are on at a position, on average."""
    latents = sum(len(each.pos) for each in replaced.features)
    places = sum(len(np.unique(each.pos)) for each in replaced.features)
    slots = min(256, max(8, rounded_up(latents // (2 * max(1, places)))))
    found: dict[Site, list[Writing]] = {}
    for features, first in zip(replaced.features, columns.features, strict=True):
        for written in features.writes:
            tiles = _tiled(features.pos, written.index, written.scale, slots)
            found.setdefault(written.site, []).append(Writing(written.rows, tiles, first))
    return Writings(found, slots)


def _tiled(
    pos: Int[np.ndarray, " latent"],
    index: Int[np.ndarray, " latent"],
    scale: Float[np.ndarray, " latent"],
    slots: int,
) -> Tiles:
    """Lays out latents, which are in the order of their positions."""
    count = np.bincount(pos) if len(pos) else np.zeros(1, int)
    tiles = -(-count // slots)
    first = np.cumsum(tiles) - tiles
    nth = np.arange(len(pos)) - np.repeat(np.cumsum(count) - count, count)
    place = (np.repeat(first, count) + nth // slots) * slots + nth % slots
    indices, scales = np.zeros(int(tiles.sum()) * slots, np.int32), np.zeros(int(tiles.sum()) * slots, scale.dtype)
    indices[place], scales[place] = index, scale
    at = np.repeat(np.arange(len(count)), tiles).astype(np.int32)
    return Tiles(at, indices.reshape(-1, slots), scales.reshape(-1, slots), place)


@jax.jit
def _contract(gradient, rows, pos, index, scale):
    vectors = scale[..., None].astype(gradient.dtype) * wide(take(rows, index))
    there = take(gradient, pos, axis=1)
    # [n tile d_model] · [tile slot d_model] -> [n tile slot]
    return jnp.einsum("ntd,tsd->nts", there, vectors).reshape(len(gradient), -1)

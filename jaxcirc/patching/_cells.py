"""Cells of a sweep over a site: which part of it each run replaces."""

import functools as ft
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._sites import Site
from ..components._patched_runs import Patches, position_axis


# What a cell is, beside a layer: one head or all, one position or all.
BY = {"layer": (False, False), "layer_position": (False, True), "head": (True, False), "head_position": (True, True)}


class Cells(NamedTuple):
    """The cells of one site.

    **Attributes:** - `other` `[batch …]`: the value at the site in the other run. - `moved` `[batch unit seq]`: where it differs from that
    of the base run; one unit where heads are not told apart. - `heads`, `position`: what a cell is, as in `BY`.
    """

    site: Site
    other: Float[Array, "batch ..."]
    moved: Bool[np.ndarray, "batch unit seq"]
    heads: bool
    position: bool

    def patches(self) -> Patches:
        """Lists the cells in which anything differs: the others are the base run."""
        if self.position:
            rows, units, first = np.nonzero(self.moved)
            positions = first
        else:
            rows, units = np.nonzero(self.moved.any(-1))
            first = self.moved.argmax(-1)[rows, units]
            positions = np.full_like(rows, -1)
        return Patches(self.site, self.other, rows, units if self.heads else np.full_like(rows, -1), positions, first)

    def table(
        self, base: Float[np.ndarray, " batch"], after: Float[np.ndarray, " patch"], length: int
    ) -> Float[np.ndarray, "batch ..."]:
        """Puts the metrics of the patched runs in their cells, `[batch (head) (position)]`; of the first `length` positions."""
        shape = self.moved.shape if self.position else self.moved.shape[:2]
        out = np.empty(shape, base.dtype)
        out[:] = base.reshape(-1, *[1] * (len(shape) - 1))
        out[np.nonzero(self.moved if self.position else self.moved.any(-1))] = after
        out = out[..., :length] if self.position else out
        return out if self.heads else out[:, 0]


def cells_of(
    by: str,
    site: Site,
    base: Float[Array, "batch ..."],
    other: Float[Array, "batch ..."],
    mask: Bool[Array, "batch seq"],
) -> Cells:
    """Compares a site's values in the two runs."""
    heads, position = BY[by]
    moved = _moved(base, other, mask, axis=position_axis(site), heads=heads)
    return Cells(site, other, np.asarray(moved), heads, position)


@ft.partial(jax.jit, static_argnames=("axis", "heads"))
def _moved(base, other, mask, *, axis: int, heads: bool) -> Bool[Array, "batch unit seq"]:
    """Compares values at a site, whose positions are behind the batch on `axis`, at real tokens."""
    differs = jnp.moveaxis(base != other, axis + 1, 1)
    differs = differs.reshape(*differs.shape[:2], differs.shape[2] if heads else 1, -1).any(-1)
    return jnp.swapaxes(differs & mask[:, :, None], 1, 2)

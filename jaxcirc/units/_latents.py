"""What latents write and read: their decoder and encoder directions, one by one or summed, of lists that hold only those that are on.

Of tens of thousands of latents a few are on at each position, and only those are looked at again. Both ways through a dictionary's rows,
`W_dec` or the transpose of `W_enc`, are here: where most latents are listed, an array of all of them is the faster way.
"""

from collections.abc import Hashable, Mapping, Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._indexing import take
from .._precision import wide
from .._sites import Site
from ..runs import size_for
from ..saes import AbstractDictionary


class Latents(eqx.Module):
    """One list of latents, or nodes, for each example: `units[b, i]` at position `positions[b, i]` has `values[b, i]`. They are in the
    order of positions, and of units; behind the last unit and position are -1 and 0, and the value is 0.
    """

    positions: Int[np.ndarray | Array, "*batch n"]
    units: Int[np.ndarray | Array, "*batch n"]
    values: Float[np.ndarray | Array, "*batch n"]


def listed(dense: Float[np.ndarray, "batch seq d_sae"]) -> Latents:
    """Those that are not zero."""
    flat = dense.reshape(len(dense), -1)
    index = [np.flatnonzero(each) for each in flat]
    return from_lists(index, [each[i] for each, i in zip(flat, index, strict=True)], dense.shape[-1])


def from_lists(index: Sequence[np.ndarray], values: Sequence[np.ndarray], units: int) -> Latents:
    """Lists of their indices into positions times units, and of their values, as long as the longest."""
    width = max(map(len, index))
    flat = np.stack([np.pad(each, (0, width - len(each)), constant_values=-1) for each in index])
    positions, latents = np.where(flat < 0, 0, flat // units), np.where(flat < 0, -1, flat % units)
    sizes = np.stack([np.pad(each, (0, width - len(each))) for each in values])
    return Latents(positions.astype(np.int32), latents.astype(np.int32), sizes)


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


def write(latents: Latents, rows: Float[Array, "d_sae width"], seq: int) -> Float[Array, "seq width"]:
    """What latents of one example write at each position: the sum of their rows, times their values."""
    if _most(latents, rows, seq):
        dense = (
            jnp.zeros((seq, len(rows)), latents.values.dtype).at[latents.positions, latents.units].add(latents.values)
        )
        return dense @ wide(rows)
    at = jnp.arange(seq, dtype=latents.positions.dtype)[:, None]
    # [seq n] · [n width]
    return jnp.where(latents.positions == at, latents.values, 0) @ wide(rows[latents.units])


def read(latents: Latents, rows: Float[Array, "d_sae width"], vectors: Float[Array, "seq width"]) -> Float[Array, " n"]:
    """The inner product of each latent's row with the vector at its position."""
    if _most(latents, rows, len(vectors)):
        return (vectors @ wide(rows).T)[latents.positions, latents.units]
    # [n width] · [n width] -> [n]
    return jnp.einsum("nd,nd->n", wide(rows[latents.units]), vectors[latents.positions])


def _most(latents: Latents, rows: Array, seq: int) -> bool:
    return latents.units.shape[0] > seq * len(rows) // 16

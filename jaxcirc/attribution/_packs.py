"""Which nodes take part, gathered: the sources' vectors and the targets' covectors, padded to fixed sizes.

Of tens of thousands of latents a few are on at each position. Only those enter the contraction, and an error node is one more vector
among them; the array of all latents by all latents never exists.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._sites import Site
from .._tap import site_read
from ..saes import AbstractDictionary, anonymous
from ._states import node_differences, States


class Sources(NamedTuple):
    """What the nodes at a site write, `slot`s to a position: node `units[b, s, j]` writes `vectors[b, s, j]`, its difference times its
    direction. Empty slots hold zeros.
    """

    units: Int[np.ndarray, "batch seq slot"]
    vectors: Float[Array, "batch seq slot width"]


class TargetChunk(NamedTuple):
    """What the nodes at a site read, `row`s of them to an example: node `units[b, i]` at position `positions[b, i]` reads the site
    with covector `at_site[b, i]`, and where its dictionary reads, if that is elsewhere, with `at_read[b, i]`. Empty rows hold zeros.
    """

    positions: Int[np.ndarray, "batch row"]
    units: Int[np.ndarray, "batch row"]
    at_read: Float[Array, "batch row d_in"]
    at_site: Float[Array, "batch row width"]


def pack_sources(
    saes: Mapping[Site, AbstractDictionary], at: States, masks: Mapping[Site, Bool[np.ndarray, "batch seq node"]]
) -> dict[Site, Sources]:
    """The nodes of `masks` whose values differ between the prompts; as many slots at every site, so that programs are shared."""
    differences = {site: node_differences(sae, site, at) for site, sae in saes.items()}
    chosen = {site: _nonzero(*differences[site]) & masks[site] for site in saes}
    slots = max(1, max(int(mask.sum(axis=-1).max()) for mask in chosen.values()))
    slots = 2 ** (slots - 1).bit_length()
    out = {}
    for site, sae in saes.items():
        units = _left_packed(chosen[site], min(slots, chosen[site].shape[-1]))
        scale = sae.decoder_scale(at.values[site_read(site, sae)])
        out[site] = Sources(units, _vectors(sae.W_dec, scale, *differences[site], units))
    return out


def pack_targets(
    sae: AbstractDictionary,
    site: Site,
    at: States,
    gradient: Float[Array, "batch seq width"],
    mask: Bool[np.ndarray, "batch seq node"],
    rows: int,
) -> Iterator[TargetChunk]:
    """The nodes of `mask`, `rows` of each example at a time; at least one chunk."""
    batch, _, nodes = mask.shape
    flat = mask.reshape(batch, -1)
    rounds = max(1, -(-int(flat.sum(axis=-1).max()) // rows))
    index = _left_packed(flat, rows * rounds)
    read, bare = at.values[site_read(site, sae)], anonymous(sae)
    errors = _error_covectors(bare, read, gradient)
    for chunk in np.split(index, rounds, axis=-1):
        positions = np.where(chunk < 0, 0, chunk // nodes)
        units = np.where(chunk < 0, -1, chunk % nodes)
        yield TargetChunk(positions, units, *_covectors(bare, read, gradient, errors, positions, units))


def _left_packed(mask: Bool[np.ndarray, "... n"], width: int) -> Int[np.ndarray, "... width"]:
    """The indices at which `mask` is set, in order, at the left of `width` places; -1 behind them."""
    order = np.argsort(~mask, axis=-1, kind="stable")[..., :width]
    packed = np.where(np.take_along_axis(mask, order, axis=-1), order, -1)
    missing = max(width - packed.shape[-1], 0)
    return np.pad(packed, [(0, 0)] * (mask.ndim - 1) + [(0, missing)], constant_values=-1).astype(np.int32)


def _nonzero(d_acts: Array, d_error: Array) -> Bool[np.ndarray, "batch seq node"]:
    return np.concatenate([np.asarray(d_acts) != 0, np.asarray(d_error != 0).any(-1, keepdims=True)], axis=-1)


@jax.jit
def _vectors(W_dec, scale, d_acts, d_error, units):
    d_sae = W_dec.shape[0]
    latent = jnp.clip(units, 0, d_sae - 1)
    size = jnp.take_along_axis(d_acts, latent, axis=-1) * scale[..., None]
    vectors = jnp.where((units == d_sae)[..., None], d_error[:, :, None, :], size[..., None] * W_dec[latent])
    return jnp.where((units < 0)[..., None], 0, vectors)


@jax.jit
def _error_covectors(sae, read, gradient):
    """By which covector an error, times its gradient, reads its dictionary's input at each position.

    The error is what is left at the clean point's decoder, so the input's statistics are held in it.
    """

    def example(x, g):
        latents = sae.slopes(x) * (sae.decoder_scale(x)[:, None] * (g @ sae.W_dec.T))
        return -sae.pull_input(x, latents @ sae.W_enc.T)

    return jax.vmap(example)(read, gradient)


@jax.jit
def _covectors(sae, read, gradient, errors, positions, units):
    """For each target the covectors by which its value, times its gradient, reads its dictionary's input and its site."""

    def example(x, g, errors, positions, units):
        latent, is_error = jnp.clip(units, 0, sae.d_sae - 1), units == sae.d_sae
        here = x[positions]
        size = sae.decoder_scale(here) * jnp.einsum("rd,rd->r", sae.W_dec[latent], g[positions])
        size = size * sae.slopes(x)[positions, latent]
        latents = sae.pull_input(here, size[:, None] * sae.W_enc[:, latent].T)
        at_read = jnp.where(is_error[:, None], errors[positions], latents)
        at_site = jnp.where(is_error[:, None], g[positions], 0)
        empty = (units < 0)[:, None]
        return jnp.where(empty, 0, at_read), jnp.where(empty, 0, at_site)

    return jax.vmap(example)(read, gradient, errors, positions, units)

"""Which nodes take part, gathered: the sources' vectors and the targets' covectors, padded to fixed sizes.

Of tens of thousands of latents a few are on at each position, and at some positions many times as many as at others. Only those enter the
contraction, in one list for all positions of an example, and an error node is one more among them; the array of all latents by all
latents never exists.
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
    """What the nodes at a site write, in columns: node `units[b, j]` at position `positions[b, j]` writes its direction `sizes[b, j]`
    times, and an error what `errors` `[b, s]` has there. Columns that are not there have unit -1.
    """

    positions: Int[np.ndarray, "batch column"]
    units: Int[np.ndarray, "batch column"]
    sizes: Float[Array, "batch column"]
    errors: Float[Array, "batch seq width"]

    def vectors(self, sae: AbstractDictionary) -> Float[Array, "batch column width"]:
        """What each column writes, its difference times its direction."""
        return _vectors(sae.W_dec, *self)


class PositionedSources(NamedTuple):
    """What the nodes at a site write, `slot`s to a position: node `units[b, s, j]` writes `vectors[b, s, j]`. Empty slots hold zeros."""

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


def pack_columns(
    saes: Mapping[Site, AbstractDictionary], at: States, masks: Mapping[Site, Bool[np.ndarray, "batch seq node"]]
) -> dict[Site, Sources]:
    """The nodes of `masks` whose values differ between the prompts; as many columns at every site, so that programs are shared."""
    index, values = {}, {}
    for site, sae in saes.items():
        acts, errors = node_differences(sae, site, at)
        scale = sae.decoder_scale(at.values[site_read(site, sae)])
        mask = _nonzero(acts, errors) & masks[site]
        index[site] = _left_packed(mask.reshape(len(mask), -1))
        values[site] = _at(np.asarray(acts), np.asarray(scale), index[site]), errors
    count = _fixed(max(packed.shape[1] for packed in index.values()))
    out = {}
    for site, (sizes, errors) in values.items():
        positions, units = _split(_padded(index[site], count, -1), saes[site].d_sae + 1)
        out[site] = Sources(positions, units, jnp.asarray(_padded(sizes, count, 0)), errors)
    return out


def pack_sources(
    saes: Mapping[Site, AbstractDictionary], at: States, masks: Mapping[Site, Bool[np.ndarray, "batch seq node"]]
) -> dict[Site, PositionedSources]:
    """The nodes of `masks` whose values differ between the prompts, position by position."""
    out = {}
    for site, sae in saes.items():
        acts, errors = node_differences(sae, site, at)
        scale = sae.decoder_scale(at.values[site_read(site, sae)])
        mask, shape = _nonzero(acts, errors) & masks[site], acts.shape[:2]
        index = _left_packed(mask.reshape(-1, mask.shape[-1]))  # every position an example
        sizes = _at(np.asarray(acts).reshape(-1, 1, acts.shape[-1]), np.asarray(scale).reshape(-1, 1), index)
        one = errors.reshape(-1, 1, errors.shape[-1])
        vectors = Sources(*_split(index, mask.shape[-1]), jnp.asarray(sizes), one).vectors(sae)
        out[site] = PositionedSources(index.reshape(*shape, -1), vectors.reshape(*shape, *vectors.shape[1:]))
    return out


def pack_targets(
    sae: AbstractDictionary,
    site: Site,
    at: States,
    gradient: Float[Array, "batch seq width"],
    mask: Bool[np.ndarray, "batch seq node"],
    rows: int,
) -> Iterator[TargetChunk]:
    """The nodes of `mask`, `rows` of each example at a time; at least one chunk. Latents that are off read nothing, and are left out."""
    read, bare = at.values[site_read(site, sae)], anonymous(sae)
    device_slopes = _slopes(bare, read)
    slopes = np.asarray(device_slopes)
    moving = np.concatenate([slopes != 0, np.ones((*mask.shape[:2], 1), bool)], axis=-1)
    index = _left_packed((mask & moving).reshape(len(mask), -1))
    rounds = max(1, -(-index.shape[1] // rows))
    index = _padded(index, rows * rounds, -1)
    errors = jnp.zeros_like(read)
    if mask[..., -1].any():
        errors = _errors(bare, read, gradient, device_slopes, slopes)
    sizes = jnp.asarray(_at(slopes, np.ones(mask.shape[:2], slopes.dtype), index))
    for chunk, size in zip(np.split(index, rounds, axis=-1), jnp.split(sizes, rounds, axis=-1), strict=True):
        positions, units = _split(chunk, mask.shape[-1])
        yield TargetChunk(positions, units, *_covectors(bare, read, gradient, errors, size, positions, units))


def _errors(
    sae: AbstractDictionary, read: Array, gradient: Array, device_slopes: Array, slopes: np.ndarray
) -> Float[Array, "batch seq d_in"]:
    """By which covector an error, times its gradient, reads its dictionary's input at each position.

    The error is what is left at the clean point's decoder, so the input's statistics are held in it. Latents that are off take no part;
    where they are few, the others are not gathered.
    """
    batch, seq, d_sae = slopes.shape
    on = _left_packed(slopes.reshape(batch, -1) != 0)
    if on.shape[1] > seq * d_sae // 16:
        return _error_covectors(sae, read, gradient, device_slopes)
    positions, units = _split(_padded(on, _fixed(on.shape[1]), -1), d_sae)
    sizes = np.where(units < 0, 0, slopes[np.arange(batch)[:, None], positions, units])
    return _error_covectors_of_few(sae, read, gradient, sizes, positions, units)


def _left_packed(mask: Bool[np.ndarray, "batch n"]) -> Int[np.ndarray, "batch width"]:
    """The indices at which `mask` is set, in order, at the left of as many places as there are at most, one at least; -1 behind them."""
    found = [np.flatnonzero(each) for each in mask]
    width = max(1, max(map(len, found)))
    return np.stack([np.pad(each, (0, width - len(each)), constant_values=-1) for each in found]).astype(np.int32)


def _fixed(count: int) -> int:
    """`count` rounded up to one of few sizes, powers of two and what is halfway between them, so that few programs are compiled."""
    power = 1 << max(count - 1, 0).bit_length()
    return 3 * power // 4 if count <= 3 * power // 4 else power


def _padded(array: np.ndarray, width: int, value: int) -> np.ndarray:
    return np.pad(array, [(0, 0), (0, width - array.shape[1])], constant_values=value)


def _split(index: Int[np.ndarray, "batch n"], nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions and units, from indices into both; position 0 and unit -1 for what is not there."""
    return np.where(index < 0, 0, index // nodes), np.where(index < 0, -1, index % nodes)


def _at(
    values: Float[np.ndarray, "batch seq d_sae"],
    scale: Float[np.ndarray, "batch seq"],
    index: Int[np.ndarray, "batch n"],
) -> Float[np.ndarray, "batch n"]:
    """The scaled values of latents among the nodes at `index`; 0 for errors and what is not there."""
    d_sae = values.shape[-1]
    positions, units = _split(index, d_sae + 1)
    is_latent = (units >= 0) & (units < d_sae)
    example = np.arange(len(index))[:, None]
    return np.where(is_latent, values[example, positions, np.where(is_latent, units, 0)] * scale[example, positions], 0)


def _nonzero(d_acts: Array, d_error: Array) -> Bool[np.ndarray, "batch seq node"]:
    return np.concatenate([np.asarray(d_acts) != 0, np.asarray(d_error != 0).any(-1, keepdims=True)], axis=-1)


@jax.jit
def _vectors(W_dec, positions, units, sizes, errors):
    d_sae = W_dec.shape[0]
    latents = sizes[..., None] * W_dec[jnp.clip(units, 0, d_sae - 1)]
    there = jnp.take_along_axis(errors, positions[..., None], axis=1)
    return jnp.where((units == d_sae)[..., None], there, latents)


@jax.jit
def _slopes(sae, read):
    return jax.vmap(sae.slopes)(read)


@jax.jit
def _error_covectors(sae, read, gradient, slopes):
    def example(x, g, slopes):
        latents = slopes * (sae.decoder_scale(x)[:, None] * (g @ sae.W_dec.T))
        return -sae.pull_input(x, latents @ sae.W_enc.T)

    return jax.vmap(example)(read, gradient, slopes)


@jax.jit
def _error_covectors_of_few(sae, read, gradient, slopes, positions, units):
    def example(x, g, slopes, positions, units):
        size = slopes * sae.decoder_scale(x)[positions] * jnp.einsum("nd,nd->n", sae.W_dec[units], g[positions])
        # [seq n] · [n d_in]
        latents = jnp.where(positions == jnp.arange(len(x), dtype=positions.dtype)[:, None], size, 0)
        return -sae.pull_input(x, latents @ sae.W_enc[:, units].T)

    return jax.vmap(example)(read, gradient, slopes, positions, units)


@jax.jit
def _covectors(sae, read, gradient, errors, slopes, positions, units):
    """For each target the covectors by which its value, times its gradient, reads its dictionary's input and its site."""

    def example(x, g, errors, slopes, positions, units):
        latent, is_error = jnp.clip(units, 0, sae.d_sae - 1), units == sae.d_sae
        here = x[positions]
        size = sae.decoder_scale(here) * jnp.einsum("rd,rd->r", sae.W_dec[latent], g[positions]) * slopes
        latents = sae.pull_input(here, size[:, None] * sae.W_enc[:, latent].T)
        at_read = jnp.where(is_error[:, None], errors[positions], latents)
        at_site = jnp.where(is_error[:, None], g[positions], 0)
        empty = (units < 0)[:, None]
        return jnp.where(empty, 0, at_read), jnp.where(empty, 0, at_site)

    return jax.vmap(example)(read, gradient, errors, slopes, positions, units)

"""Which nodes take part, gathered: the sources' vectors and the targets' covectors, padded to fixed sizes.

Only those enter the contraction, in one list for all positions of an example, and an error node is one more among them; the array of all
latents by all latents never exists.
"""

import functools as ft
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._precision import wide
from .._sites import Site
from .._tap import site_read
from ..runs import some_at_once
from ..saes import AbstractDictionary, anonymous
from ..units import (
    bytes_through,
    covectors,
    from_instances,
    Latents,
    of_one_size,
    read,
    widened,
    write,
    write_tiles,
    WriteTiles,
)
from ._states import error_differences, States


NodeMask = Callable[[Site, Int[np.ndarray, "n 3"]], Bool[np.ndarray, " n"]]
"""Which nodes at a site take part, of those that are given as (example, position, node)."""


def every_node(site: Site, index: Int[np.ndarray, "n 3"]) -> Bool[np.ndarray, " n"]:
    """Leaves no node out."""
    return np.ones(len(index), bool)


def nodes_among(
    chosen: Mapping[Site, Int[np.ndarray, "n 3"]], shape: tuple[int, ...], saes: Mapping[Site, AbstractDictionary]
) -> NodeMask:
    """Takes the nodes that are listed, of prompts of `shape` `[batch seq]`."""
    shapes = {site: (*shape, sae.d_sae + 1) for site, sae in saes.items()}
    flat = lambda site, index: np.ravel_multi_index(tuple(index.T), shapes[site])
    numbers = {site: flat(site, index) for site, index in chosen.items()}
    return lambda site, index: np.isin(flat(site, index), numbers[site])


class Sources(NamedTuple):
    """What the nodes at a site write, in columns: a latent writes its direction as many times as its value in `nodes` says, scaled, and an
    error what `errors` `[b, s]` has there.
    """

    nodes: Latents
    scale: Float[Array, "batch seq"]
    errors: Float[Array, "batch seq width"]

    def vectors(self, sae: AbstractDictionary) -> Float[Array, "batch column width"]:
        """What each column writes, its difference times its direction."""
        return _vectors(sae.W_dec, *self)


class TargetChunk(NamedTuple):
    """What the nodes at a site read, `row`s of them to an example: node `units[b, i]` at position `positions[b, i]` reads the site
    with covector `at_site[b, i]`, and where its dictionary reads, if that is elsewhere, with `at_read[b, i]`. Empty rows hold zeros.
    """

    positions: Int[np.ndarray, "batch row"]
    units: Int[np.ndarray, "batch row"]
    at_read: Float[Array, "batch row d_in"]
    at_site: Float[Array, "batch row width"]

    def covectors(self, site: Site, sae: AbstractDictionary) -> dict[Site, Float[Array, "batch row _"]]:
        """By the sites at which they are, given that of the nodes."""
        read = site_read(site, sae)
        return {site: self.at_read + self.at_site} if read == site else {read: self.at_read, site: self.at_site}


def pack_columns(saes: Mapping[Site, AbstractDictionary], at: States, masks: NodeMask) -> dict[Site, Sources]:
    """The nodes of `masks` whose values differ between the prompts; as many columns at every site, so that programs are shared."""
    out = {}
    for site, sae in saes.items():
        x = at.values[site_read(site, sae)]
        errors = error_differences(anonymous(sae), x, at.differences[site], at.changes[site], write_tiles())
        nodes = _nodes(site, sae, at.changes[site], np.asarray(_any(errors)), masks)
        out[site] = Sources(nodes, sae.decoder_scale(x), errors)
    kind = "sources", at.mask.shape[1], *sorted({sae.d_sae for sae in saes.values()})
    nodes = of_one_size({site: source.nodes for site, source in out.items()}, *kind)
    return {site: source._replace(nodes=nodes[site]) for site, source in out.items()}


def pack_rows(at: States, site: Site, sae: AbstractDictionary, mask: NodeMask) -> Latents:
    """The nodes of `mask` with their slopes, but for padding. Latents that are off read nothing, and are left out."""
    real = np.asarray(at.mask)
    return _nodes(site, sae, at.slopes[site], real, lambda site, index: real[*index.T[:2]] & mask(site, index))


def pack_targets(
    sae: AbstractDictionary,
    site: Site,
    at: States,
    gradient: Float[Array, "batch seq width"],
    nodes: Latents,
    rows: int,
) -> Iterator[TargetChunk]:
    """What nodes read, `rows` of each example at a time; at least one chunk."""
    x, bare = at.values[site_read(site, sae)], anonymous(sae)
    errors = jnp.zeros_like(x)
    if (nodes.units == sae.d_sae).any():
        errors = _error_covectors(bare, x, gradient, at.slopes[site], write_tiles())
    most = max(1, int((nodes.units >= 0).sum(axis=1).max()))
    rounds = -(-most // rows)
    nodes = widened(nodes, max(rows * rounds, nodes.units.shape[1]))
    for first in range(0, rows * rounds, rows):
        chunk = jax.tree.map(lambda x, first=first: x[:, first : first + rows], nodes)
        yield TargetChunk(chunk.positions, chunk.units, *_covectors(bare, x, gradient, errors, chunk))


def _nodes(
    site: Site, sae: AbstractDictionary, latents: Latents, errors: Bool[np.ndarray, "batch seq"], mask: NodeMask
) -> Latents:
    """The latents and errors of `mask` in one list; an error's value is 0."""
    index, values = latents.instances()
    wrong = np.argwhere(errors)
    index = np.concatenate([index, np.pad(wrong, [(0, 0), (0, 1)], constant_values=sae.d_sae)])
    kept = mask(site, index)
    index, values = index[kept], np.pad(values, (0, len(wrong)))[kept]
    order = np.lexsort(index.T[::-1])
    return from_instances(index[order], values[order], len(errors))


@jax.jit
def _any(errors: Float[Array, "batch seq width"]) -> Bool[Array, "batch seq"]:
    """Where there is an error at all."""
    return (errors != 0).any(-1)


@jax.jit
def _vectors(W_dec, nodes: Latents, scale, errors):
    d_sae = W_dec.shape[0]
    size = nodes.values * jnp.take_along_axis(scale, nodes.positions, axis=1)
    latents = size[..., None] * wide(W_dec[jnp.clip(nodes.units, 0, d_sae - 1)])
    there = jnp.take_along_axis(errors, nodes.positions[..., None], axis=1)
    return jnp.where((nodes.units == d_sae)[..., None], there, latents)


@ft.partial(jax.jit, static_argnames="tiles")
def _error_covectors(sae, x, gradient, slopes, tiles: WriteTiles):
    """By which covector an error, times its gradient, reads its dictionary's input at each position.

    The error is what is left at the clean point's decoder, so the input's statistics are held in it. Latents that are off take no part.
    """

    def example(x, gradient, slopes: Latents):
        size = slopes.values * sae.decoder_scale(x)[slopes.positions] * read(slopes, sae.W_dec, gradient)
        asked = write(Latents(slopes.positions, slopes.units, size), sae.W_enc.T, len(x), tiles=tiles)
        return -sae.pull_input(x, asked)

    each = 2 * bytes_through(slopes, sae.W_dec, x.shape[1], tiles)
    return some_at_once(example, each, x, gradient, slopes)


@jax.jit
def _covectors(sae, x, gradient, errors, nodes: Latents):
    """For each target the covectors by which its value, times its gradient, reads its dictionary's input and its site."""

    def example(x, gradient, errors, nodes: Latents):
        latent, is_error = jnp.clip(nodes.units, 0, sae.d_sae - 1), nodes.units == sae.d_sae
        here, slope = x[nodes.positions], gradient[nodes.positions]
        # [row width] · [row width] -> [row]
        size = sae.decoder_scale(here) * jnp.einsum("rd,rd->r", wide(sae.W_dec[latent]), slope) * nodes.values
        latents = covectors(sae, here, latent, size)
        at_read = jnp.where(is_error[:, None], errors[nodes.positions], latents)
        at_site = jnp.where(is_error[:, None], slope, 0)
        empty = (nodes.units < 0)[:, None]
        return jnp.where(empty, 0, at_read), jnp.where(empty, 0, at_site)

    return jax.vmap(example)(x, gradient, errors, nodes)

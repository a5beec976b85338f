"""What the methods know of a pair of prompts: the clean run at every node, and how the corrupt run differs there."""

import dataclasses
import functools as ft
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._indexing import take
from .._precision import wide
from .._sites import Kind, Site
from .._tap import site_read
from ..graph import as_output, canonical, entry
from ..models import Transformer
from ..runs import allowance, in_groups, Problem, record_sides, Recorded, some_at_once
from ..saes import AbstractDictionary, anonymous
from ..units import bytes_through, from_instances, Latents, not_zero, of_one_size, write, WriteTiles


ARRAYS = 5  # of all latents, while prompts are encoded


class Lists(NamedTuple):
    """Of the latents of every site: how they change, corrupt − clean, and the slopes of the clean ones."""

    changes: dict[Site, Latents]
    slopes: dict[Site, Latents]


class States(eqx.Module):
    """A batch of prompt pairs, run with padding behind them to a length that others share. Values are of the clean run and flat,
    `[batch seq width]`.

    **Attributes:**

    - `values`: at every node's site, and where its dictionary reads.
    - `differences`: corrupt − clean at every node's site, 0 at padding.
    - `changes`: of the latents of every site, corrupt − clean; `slopes`: their derivatives with respect to their pre-activations, in
      the clean run.
    - `resid`: at the residual cuts, every block's `resid_pre`, the last `resid_post` (as `resid_pre` of the block after) and the
      `resid_mid`s at which a node enters.
    - `clean`, `corrupt` `[batch]`: the metric; `corrupt` is `None` for the zero baseline.
    - `prompts` `[2 batch seq]`, or `[1 batch seq]` for the zero baseline; `mask` `[batch seq]`: False for padding.
    """

    values: dict[Site, Float[Array, "batch seq _"]]
    differences: dict[Site, Float[Array, "batch seq _"]]
    changes: dict[Site, Latents]
    slopes: dict[Site, Latents]
    resid: dict[Site, Float[Array, "batch seq d_model"]]
    clean: Float[Array, " batch"]
    corrupt: Float[Array, " batch"] | None
    prompts: Int[Array, "side batch seq"]
    mask: Bool[Array, "batch seq"]

    @property
    def lists(self) -> Lists:
        """What is known of latents."""
        return Lists(self.changes, self.slopes)

    @property
    def total(self) -> Float[Array, " batch"]:
        """The change of the metric; with the zero baseline there is no corrupt run, and it is the clean metric's negative."""
        return -self.clean if self.corrupt is None else self.corrupt - self.clean


def states(model: Transformer, problem: Problem, lists: Lists | None = None) -> States:
    """Runs both sides. Without corrupt prompts, every latent and every error goes to zero: the difference is `decode(0) - x`. What latents
    do is encoded, unless it is given.
    """
    saes, mask, cuts = problem.saes, problem.mask, residual_cuts(model, problem.saes)
    reads = {site: site_read(site, sae) for site, sae in saes.items()}
    clean, corrupt = record_sides(model, problem, {*cuts.values(), *saes, *reads.values()})
    differences = {}
    for site, sae in saes.items():
        after = _without_latents(anonymous(sae), clean.flat(reads[site])) if corrupt is None else corrupt.flat(site)
        differences[site] = _difference(after, clean.flat(site), mask)
    changes, slopes = lists or _lists(saes, reads, clean, corrupt, mask)
    return States(
        values={site: clean.flat(site) for site in {*saes, *reads.values()}},
        differences=differences,
        changes=changes,
        slopes=slopes,
        resid={cut: clean.values[name] for cut, name in cuts.items()},
        clean=clean.metric,
        corrupt=None if corrupt is None else corrupt.metric,
        prompts=problem.prompts(),
        mask=mask,
    )


def _lists(
    saes: dict[Site, AbstractDictionary], reads: dict[Site, Site], clean: Recorded, corrupt: Recorded | None, mask
) -> Lists:
    """Encodes what dictionaries read on both sides."""
    found = {}
    for site, sae in saes.items():
        here, other = (None if side is None else side.flat(reads[site]) for side in (clean, corrupt))
        found[site] = _in_lists(sae, mask.shape, ft.partial(_encoded, anonymous(sae), here, other, mask))
    kinds = (
        _alike(kind, saes, {site: lists[i] for site, lists in found.items()}, mask)
        for i, kind in enumerate(Lists._fields)
    )
    return Lists(*kinds)


@jax.jit
def _without_latents(sae, x: Float[Array, "batch seq d_in"]) -> Float[Array, "... width"]:
    """Decodes no latents: to one vector for all positions, unless the decoder reads `x`."""
    return sae.decode(jnp.zeros(sae.d_sae, x.dtype), x)


def residual_cuts(model: Transformer, nodes) -> dict[Site, Site]:
    """The cuts of `States.resid`, and the site that holds the value of each."""
    cuts = [Site(layer, Kind.RESID_PRE) for layer in range(model.n_layers + 1)]
    cuts += sorted({entry(model, site) for site in nodes} - {*cuts})
    end = Site(model.n_layers, Kind.RESID_PRE)
    # What is held for a node is not held again.
    names = {canonical(site): site for site in nodes if site.kind == Kind.RESID_POST} | {end: as_output(end)}
    return {cut: names.get(cut, cut) for cut in cuts}


@jax.jit
def _difference(after, before, mask) -> Float[Array, "batch seq width"]:
    """What differs, and 0 at padding."""
    return jnp.where(mask[..., None], after - before, 0)


def _in_lists(sae: AbstractDictionary, shape: tuple[int, ...], of_positions: Callable) -> list[Latents]:
    """Lists what is not zero in the arrays `[place d_sae]` that `of_positions` makes of some places in the flat array of positions, of
    `shape` `[batch seq]`. Of so many places at a time that these fit.
    """
    count, found = int(np.prod(shape)), []
    for places in in_groups(count, ARRAYS * sae.d_sae * wide(sae.W_dec).dtype.itemsize, allowance()):
        real = count - places[0]  # those behind it repeat the last
        parts = [not_zero(np.asarray(dense)[:real]) for dense in of_positions(places)]
        found.append([(index + np.array([places[0], 0]), values) for index, values in parts])
    return [_of_flat(shape, *map(np.concatenate, zip(*parts, strict=True))) for parts in zip(*found, strict=True)]


def _of_flat(shape: tuple[int, ...], index: Int[np.ndarray, "n 2"], values: Float[np.ndarray, " n"]) -> Latents:
    """Lists latents by example, given their places in the flat array of positions."""
    place, unit = index.T
    return from_instances(np.stack([*np.divmod(place, shape[1]), unit], axis=-1), values, shape[0])


@jax.jit
def _encoded(
    sae, clean, other, mask, places: Int[Array, " place"]
) -> tuple[Float[Array, "place d_sae"], Float[Array, "place d_sae"]]:
    """How latents differ at some places, and the slopes of the clean ones."""
    x = _at(clean, places)
    before = sae.encode(x)
    after = jnp.zeros_like(before) if other is None else sae.encode(_at(other, places))
    return jnp.where(mask.reshape(-1)[places, None], after - before, 0), sae.slopes(x)


@jax.jit
def _slopes(sae, clean, places: Int[Array, " place"]) -> tuple[Float[Array, "place d_sae"]]:
    """The slopes of latents at some places."""
    return (sae.slopes(_at(clean, places)),)


def _at(x: Float[Array, "batch seq d_in"], places: Int[Array, " place"]) -> Float[Array, "place d_in"]:
    return take(x.reshape(-1, x.shape[-1]), places)


def with_values(
    saes: dict[Site, AbstractDictionary],
    at: States,
    values: dict[Site, Float[Array, "batch seq _"]],
    resid: dict[Site, Float[Array, "batch seq d_model"]],
) -> States:
    """Another run of the same prompts; what differs between their sides stays."""
    slopes = {}
    for site, sae in saes.items():
        of_places = ft.partial(_slopes, anonymous(sae), values[site_read(site, sae)])
        (slopes[site],) = _in_lists(sae, at.mask.shape, of_places)
    return dataclasses.replace(at, values=values, resid=resid, slopes=_alike("slopes", saes, slopes, at.mask))


def _alike(what: str, saes: dict[Site, AbstractDictionary], lists: dict[Site, Latents], mask) -> dict[Site, Latents]:
    """Lists of one size at all sites, which prompts of this length and dictionaries as wide share."""
    return of_one_size(lists, what, mask.shape[1], *sorted({sae.d_sae for sae in saes.values()}))


@ft.partial(jax.jit, static_argnames="tiles")
def error_differences(
    sae: AbstractDictionary,
    x: Float[Array, "batch seq d_in"],
    difference: Float[Array, "batch seq width"],
    changes: Latents,
    tiles: WriteTiles,
) -> Float[Array, "batch seq width"]:
    """How the error of a dictionary differs, corrupt − clean, where its input is `x`, the value differs by `difference`, and latents
    by `changes`.

    The error takes what the latents leave: the two differences, decoded at the clean input, make up the difference of the value
    exactly. For a dictionary that does not normalise its input that is the difference of the reconstruction errors.
    """
    each = bytes_through(changes, sae.W_dec, x.shape[1], tiles)
    written = some_at_once(lambda changes: write(changes, sae.W_dec, x.shape[1], tiles=tiles), each, changes)
    return difference - sae.decoder_scale(x)[..., None] * written

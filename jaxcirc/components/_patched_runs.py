"""Runs in which a part of one site has another value: each is the base run up to the site, and goes on from there."""

import functools as ft
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._edits import AbstractEdit, Blend, Replace
from .._sites import Kind, Part, Site
from .._tap import site_read, Tap
from ..graph import canonical
from ..graph._wiring import RESIDUAL
from ..models import Transformer
from ..runs import metric_from, Problem, Recorded, resume, tokens_together, windows_of
from ..runs._windows import Window, Windows
from ..saes import AbstractDictionary, anonymous


Saes = Mapping[Site, AbstractDictionary]


class Patches(NamedTuple):
    """Runs of prompts in which a part of one site is replaced.

    **Attributes:**

    - `site`: of the embedding or of a block. `values` `[batch …]`: what takes its place, in a shape that broadcasts to its value.
    - `rows`: of which prompt each run is. `units`: which head or latent is replaced, and `positions`: where; -1 for all.
    - `first`: the first position at which the run can differ from its prompt's.
    """

    site: Site
    values: Array
    rows: Int[np.ndarray, " patch"]
    units: Int[np.ndarray, " patch"]
    positions: Int[np.ndarray, " patch"]
    first: Int[np.ndarray, " patch"]


def sites_needed(model: Transformer, saes: Saes, sites: Iterable[Site]) -> set[Site]:
    """Lists what the base run has to record for patches at these sites: where each is and where its dictionary reads, from where it is run
    on, and what enters the blocks, whose keys and values runs of some positions take.
    """
    needed = {Site(layer, Kind.RESID_PRE) for layer in range(model.n_layers)}
    for site in sites:
        needed |= {site.value, _read(saes, site), _start(model, site)}
    return needed


def metric_of_patches(
    model: Transformer, saes: Saes, problem: Problem, base: Recorded, patches: Sequence[Patches], tokens_at_once: int
) -> list[Float[np.ndarray, "patch ..."]]:
    """Computes the metric of every run, a list a site. One that cannot move the metric takes no run, and has that of the base run.

    **Arguments:** - `base`: the prompts, run, with the `sites_needed` recorded; and with the metric if that reads one position.
    """
    windows = windows_of(model, problem.metric, problem.clean.shape[1], sum(len(each.rows) for each in patches))
    caches = windows.caches(model, base.values)
    together, found = tokens_together(model, windows.seq, tokens_at_once), []
    for each, groups in zip(patches, _groups(windows, patches, together), strict=True):
        after = []
        for numbers, size in groups:
            some = each._replace(**{name: getattr(each, name)[numbers] for name in each._fields[2:]})
            window = windows.window(some.first, size, caches)
            after.append(_metric_of_group(model, saes, problem, base, some, window, size))
        found.append(_in_order(base, each.rows, [numbers for numbers, _ in groups], after))
    return found


def _groups(windows: Windows, patches: Sequence[Patches], tokens_at_once: int):
    """Groups the runs of each site, as `Windows.groups` does. All groups of a size have as many runs as the longest list asks for, so lists
    of at most half its length have their own.
    """
    found, left = {}, sorted(range(len(patches)), key=lambda n: -len(patches[n].rows))
    while left:
        longest = len(patches[left[0]].rows)
        alike = [n for n in left if 2 * len(patches[n].rows) > longest or longest == 0]
        lists = [(patches[n].rows, patches[n].first) for n in alike]
        found |= dict(zip(alike, windows.groups(lists, tokens_at_once), strict=True))
        left = left[len(alike) :]
    return [found[n] for n in range(len(patches))]


def _metric_of_group(
    model: Transformer, saes: Saes, problem: Problem, base: Recorded, some: Patches, window: Window, size: int
) -> Float[Array, "patch ..."]:
    """Runs patches together, at `size` positions each."""
    site, rows, start = some.site, some.rows, _start(model, some.site)
    layer = 0 if site.layer is None else site.layer
    sae, read = saes.get(site.value), _read(saes, site).offset_layers(-layer)
    arrays = some.values, base.values[site.value], base.values[_read(saes, site)]
    of_each = rows, some.units, some.positions, window.first
    given = (None if sae is None else anonymous(sae, None if sae.reads is None else read), *arrays, *of_each)
    value = _patched(*given, site=site.offset_layers(-layer), read=read, size=size)
    if site.value.kind in RESIDUAL:
        resid, cut = value, start
    elif site.layer is None:
        entering = _entering(base.at_cut(start), rows, window.first, size=size)
        resid, cut = _embedded(entering, value, base.values[site.value], rows, window.first), start
    else:
        entering = _entering(base.at_cut(start), rows, window.first, size=size)
        edits = {site.value: Replace(value)}
        resid, _ = resume(model, base.masks, start, rows, entering, edits=edits, until=layer, window=window)
        cut = Site(layer + 1, Kind.RESID_PRE)
    return metric_from(model, problem.metric, base.masks, cut, rows, resid, window)


def _in_order(
    base: Recorded, rows: Int[np.ndarray, " patch"], groups: Sequence[np.ndarray], after: Sequence[Array]
) -> Float[np.ndarray, "patch ..."]:
    """Sorts what the groups gave by the patches' numbers, with the base run's metric where there was no run."""
    run = np.unique(np.concatenate([np.empty(0, int), *groups]))
    if len(run) < len(rows) or not len(rows):
        out = np.array(base.metric)[rows]
    else:
        out = np.empty((len(rows), *after[0].shape[1:]), after[0].dtype)
    for numbers, metric in zip(groups, after, strict=True):
        out[numbers] = np.asarray(metric)
    return out


def _read(saes: Saes, site: Site) -> Site:
    """Finds where the dictionary at a site reads; without one, where the site is."""
    return site_read(site.value, saes[site.value]) if site.value in saes else site.value


def _start(model: Transformer, site: Site) -> Site:
    """Finds the residual cut from which a run goes on: the site itself where it is one, or the last before it."""
    place = canonical(site.value)
    if place.layer is None:
        return Site(0, Kind.RESID_PRE)
    if place.kind in RESIDUAL:
        return place
    in_second_half = model.blocks[place.layer].has_middle and place.kind > Kind.RESID_MID
    return Site(place.layer, Kind.RESID_MID if in_second_half else Kind.RESID_PRE)


def position_axis(site: Site) -> int:
    """Finds which axis of a site's value is over positions, those of the queries of attention's scores; heads or latents are the other of
    the first two.
    """
    return int(site.part == Part.VALUE and site.kind in (Kind.ATTN_SCORES, Kind.PATTERN))


class _Place(AbstractEdit):
    """Puts `value` in place: at one position or all (-1), and of one head or latent or all."""

    value: Array
    unit: Int[Array, ""]
    position: Int[Array, ""]
    axis: int = eqx.field(static=True)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        def chosen(number, axis):
            return (number < 0) | (jax.lax.broadcasted_iota(number.dtype, x.shape, axis) == number)

        return Blend(chosen(self.position, self.axis) & chosen(self.unit, 1 - self.axis), self.value)(x)


@ft.partial(jax.jit, static_argnames=("site", "read", "size"))
def _patched(
    sae: AbstractDictionary | None,
    values,
    clean,
    beside,
    rows,
    units,
    positions,
    first,
    *,
    site: Site,
    read: Site,
    size,
) -> Float[Array, "patch ..."]:
    """Computes the value at a site, with its latents and error where `site` is one of them, with a part of it replaced: of each patch's
    prompt, at `size` positions from its `first` on. Sites are as in block 0; `clean` is the value of the base run, and `beside` where the
    dictionary reads.
    """

    def one(row, unit, position, first):
        def ours(x, site):
            axis = position_axis(site)
            broadcasts = x.ndim <= axis + 1 or x.shape[axis + 1] == 1
            return x[row] if broadcasts else jax.lax.dynamic_slice_in_dim(x[row], first, size, axis)

        there = jnp.where(position < 0, position, position - first)
        edit = _Place(ours(values, site), unit, there, position_axis(site))
        tap = Tap({} if sae is None else {site.value: sae}, {site: edit}, (), layer=site.layer)
        tap.inputs[read] = ours(beside, read)
        return tap(site.kind, ours(clean, site.value))

    return jax.vmap(one)(rows, units, positions, first)


@ft.partial(jax.jit, static_argnames="size")
def _entering(resid, rows, first, *, size: int) -> Float[Array, "patch seq d_model"]:
    """Takes each patch's prompt, at `size` positions from its `first` on."""
    return jax.vmap(lambda row, first: jax.lax.dynamic_slice_in_dim(resid[row], first, size))(rows, first)


@jax.jit
def _embedded(entering, value, clean, rows, first) -> Float[Array, "patch seq d_model"]:
    """Replaces one of the embeddings, tokens' or positions', in their sum."""
    ours = lambda row, first: jax.lax.dynamic_slice_in_dim(clean[row], first, entering.shape[1])
    return entering + value - jax.vmap(ours)(rows, first)

"""Runs in which one part of the model has another value, each the clean run up to the part's block, and on from there."""

import functools as ft
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._edits import Blend, Replace
from .._indexing import rows_of
from .._sites import Kind, layer_of, Site
from .._tap import site_read, Tap
from ..models import Transformer
from ..runs import in_groups, metric_from, Problem, record, resume, rounded_up, windows_of
from ..saes import AbstractDictionary, anonymous
from ._parts import Place


def ablated_from_blocks(
    model: Transformer,
    saes: Mapping[Site, AbstractDictionary],
    problem: Problem,
    places: Sequence[Place],
    member: Mapping[Site, Array],
    values: Mapping[Site, Array],
    tokens_at_once: int,
) -> Float[Array, "part batch ..."]:
    """Computes the metric with each part ablated by itself, of parts in blocks; `member` and `values` are of their sites."""
    sites = sorted({place.site for place in places})
    reads = {
        site.value: site_read(site.value, saes[site.value]) if site.value in saes else site.value for site in sites
    }
    starts = {site: Site(layer_of(site), Kind.RESID_PRE) for site in sites}
    clean = record(model, problem.clean, problem.mask, {*starts.values(), *reads, *reads.values()})
    (batch, seq), order, found = problem.clean.shape, [], []
    windows = windows_of(model, problem.metric, seq, len(places) * batch)
    for site, start in starts.items():
        mine, layer = np.array([n for n, place in enumerate(places) if place.site == site]), layer_of(site)
        sae, read = saes.get(site.value), reads[site.value].offset_layers(-layer)
        bare = None if sae is None else anonymous(sae, None if sae.reads is None else read)
        count = len(mine) * batch
        order.append(mine)
        groups = []
        for numbers in in_groups(count, seq, tokens_at_once, most=rounded_up(count, steps=2)):
            which, rows = np.divmod(numbers, batch)
            of_clean = clean.values[site.value], clean.values[reads[site.value]]
            given = (bare, member[site], values[site], *of_clean, mine[which], rows)
            edits = {site.value: Replace(_ablated(*given, site=site.offset_layers(-layer), read=read))}
            entering = rows_of(clean.at_cut(start), rows)
            resid, _ = resume(model, clean.masks, start, rows, entering, edits=edits, until=layer)
            behind = Site(layer + 1, Kind.RESID_PRE)
            groups.append(metric_from(model, problem.metric, clean.masks, behind, rows, resid, windows.whole(rows)))
        after = jnp.concatenate(groups)[:count]
        found.append(after.reshape(len(mine), batch, *after.shape[1:]))
    return jnp.concatenate(found)[np.argsort(np.concatenate(order))]


@ft.partial(jax.jit, static_argnames=("site", "read"))
def _ablated(
    sae: AbstractDictionary | None, member, values, clean, beside, parts, rows, *, site: Site, read: Site
) -> Float[Array, "variant ..."]:
    """Computes the value at a site, with its latents and error where `site` is one of them, of each prompt with a part of it ablated.
    Sites are as in block 0; `clean` is the value of the clean run, and `beside` where the dictionary reads.
    """

    def one(part, row):
        tap = Tap({} if sae is None else {site.value: sae}, {site: Blend(member[part], values[row])}, (), layer=0)
        tap.inputs[read] = beside[row]
        return tap(site.kind, clean[row])

    return jax.vmap(one)(parts, rows)

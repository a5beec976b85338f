"""Runs in which one part of the model is ablated, each the clean run up to the part's block, and on from there."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Array, Float

from .._sites import Site
from ..models import Transformer
from ..runs import Problem, record
from ._parts import Place
from ._patched_runs import metric_of_patches, Patches, Saes, sites_needed


def ablated_from_blocks(
    model: Transformer,
    saes: Saes,
    problem: Problem,
    places: Sequence[Place],
    values: Mapping[Site, Array],
    tokens_at_once: int,
) -> Float[Array, "part batch ..."]:
    """Computes the metric with each part ablated by itself, of parts in blocks; `values` are those of their sites."""
    sites, batch = sorted({place.site for place in places}), len(problem.clean)
    patches, order = [], []
    for site in sites:
        mine = [number for number, place in enumerate(places) if place.site == site]
        units = np.array([-1 if (unit := places[number].unit) is None else unit for number in mine])
        which, rows = np.divmod(np.arange(len(mine) * batch), batch)
        all_positions, first = np.full_like(rows, -1), np.zeros_like(rows)
        patches.append(Patches(site, values[site], rows, units[which], all_positions, first))
        order += mine
    clean = record(model, problem.clean, problem.mask, sites_needed(model, saes, sites))
    after = np.concatenate(metric_of_patches(model, saes, problem, clean, patches, tokens_at_once))
    return jax.device_put(after.reshape(len(places), batch, *after.shape[1:])[np.argsort(order)])

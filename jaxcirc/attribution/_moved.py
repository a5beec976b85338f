"""Runs on the way from clean to corrupt: some sites moved, and all that follows computed from there."""

import dataclasses
from collections.abc import Mapping

import jax
from jaxtyping import Array, Float, Int

from .._edits import Add
from .._run import run, site_shapes
from .._sites import Kind, Site
from ..models import Transformer
from ._effects import Metric
from ._states import States


@jax.jit
def states_moved(
    model: Transformer,
    tokens: Int[Array, "batch seq"],
    metric: Metric,
    at: States,
    fractions: Mapping[Site, Float[Array, ""]],
) -> tuple[States, dict[Site, Float[Array, "batch seq width"]]]:
    """The clean run with each site moved by a fraction of the difference there, and the gradient of the metric at all these sites.

    The differences stay those of the prompts.
    """
    shapes = site_shapes(model, tokens.shape[1])
    end = Site(model.n_layers, Kind.RESID_PRE)
    name = lambda cut: Site(model.n_layers - 1, Kind.RESID_POST) if cut == end else cut
    record = {*at.values, *map(name, at.resid)}

    def one(tokens, keys, metric, differences):
        def value(moves):
            edits = {site: Add(move.reshape(shapes[site].shape)) for site, move in moves.items()}
            logits, cache = run(model, tokens, edits=edits, record=record, mask=keys)
            return metric(logits), (logits, {site: x.reshape(x.shape[0], -1) for site, x in cache.items()})

        moves = {site: fractions[site] * differences[site] for site in fractions}
        return jax.grad(value, has_aux=True)(moves)

    gradient, (logits, cache) = jax.vmap(one)(tokens, at.mask, metric, at.differences)
    values, resid = {site: cache[site] for site in at.values}, {cut: cache[name(cut)] for cut in at.resid}
    return dataclasses.replace(at, values=values, resid=resid, clean=logits), gradient

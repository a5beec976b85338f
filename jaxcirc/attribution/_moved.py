"""Runs on the way from clean to corrupt: some sites moved, and all that follows computed from there."""

import functools as ft
from collections.abc import Mapping

import jax
from jaxtyping import Array, Float

from .._edits import Add
from .._run import run_metric, site_shapes
from .._sites import Site
from ..models import Transformer
from ..runs import Problem
from ._states import residual_cuts, States, with_values


def states_moved(
    model: Transformer, problem: Problem, at: States, fractions: Mapping[Site, Float[Array, ""]]
) -> tuple[States, dict[Site, Float[Array, "batch seq width"]]]:
    """The clean run with each site moved by a fraction of the difference there, and the gradient of the metric at all these sites.

    The differences stay those of the prompts.
    """
    cuts = residual_cuts(model, problem.saes)
    gradient, cache = _moved(model, problem, at.differences, fractions, record=frozenset({*at.values, *cuts.values()}))
    resid = {cut: cache[name] for cut, name in cuts.items()}
    return with_values(problem.saes, at, {site: cache[site] for site in at.values}, resid), gradient


@ft.partial(jax.jit, static_argnames="record")
def _moved(model, problem: Problem, differences, fractions, *, record: frozenset[Site]):
    shapes = site_shapes(model, problem.clean.shape[1])

    def one(tokens, keys, metric, differences):
        def value(moves):
            edits = {site: Add(move.reshape(shapes[site].shape)) for site, move in moves.items()}
            value, cache = run_metric(model, metric, tokens, edits=edits, record=record, mask=keys)
            return value, {site: x.reshape(x.shape[0], -1) for site, x in cache.items()}

        moves = {site: fractions[site] * differences[site] for site in fractions}
        return jax.grad(value, has_aux=True)(moves)

    return jax.vmap(one)(problem.clean, problem.mask, problem.metric, differences)

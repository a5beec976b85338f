"""The metric's gradient at residual cuts, averaged over points on a path: only what lies behind is run, as many points at once as fit."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._metrics import Metric
from .._sites import Site
from ..graph import Entry
from ..models import Transformer
from ..runs import allowance, bytes_held, cut_gradients, halving, in_groups, repeated, WAY_BACK
from ._states import States


FEWEST = 128  # tokens: of fewer a block's matrices are read for too little


def mean_gradients(
    model: Transformer,
    metric: Metric,
    at: States,
    start: Site,
    change: Entry,
    points: tuple[np.ndarray, np.ndarray],
    wanted: frozenset[Site],
    *,
    most: int = 0,
) -> dict[Site, Float[Array, "batch seq d_model"]]:
    """Averages the gradient at the residual cuts `wanted`, where the one at `start` is moved by fractions of `change` and all that follows
    is computed from there; at `start` it is that of the change, before a norm that it passes on its way. `points` are the fractions and
    their weights. Calls share programs if they are given the `most` variants that there are in any of them.
    """
    (batch, seq), (fractions, weights) = at.mask.shape, points
    masks, each = model.batch_masks(at.mask), bytes_held(model, seq)

    def within(budget: int) -> dict[Site, Array]:
        cuts = sorted(wanted)
        total = [jnp.zeros_like(at.resid[start])] * len(cuts)
        count = batch * len(fractions)
        for numbers in in_groups(count, each, budget, most=max(most, count)):
            rows, point = np.divmod(numbers, len(fractions))
            weight = np.where(repeated(numbers), np.zeros_like(weights[point]), weights[point])
            resid = _on_path(at.resid[start], change, rows, fractions[point])
            found = cut_gradients(model, metric, masks, rows, resid, start, wanted)
            if start in found and change.norm is not None:
                found[start] = _before_norm(change, rows, fractions[point], found[start])
            # Lists, and not by cut: one program for all.
            total = _added(total, rows, weight, [found[cut] for cut in cuts])
            jax.block_until_ready(total)  # or the next group's way back would be there beside this one's
        return dict(zip(cuts, total, strict=True))

    return halving(within, max(allowance(on_cpus=WAY_BACK), -(-FEWEST // seq) * each), "the memory of the way back")


@jax.jit
def _on_path(resid, change: Entry, rows: Int[Array, " variant"], fractions) -> Float[Array, "variant seq d_model"]:
    """Moves prompts `rows` by a fraction of their change."""
    return resid[rows] + _of_each(Entry.at, change, rows, fractions)


@jax.jit
def _before_norm(
    change: Entry, rows: Int[Array, " variant"], fractions, gradient
) -> Float[Array, "variant seq d_model"]:
    """Pulls each variant's gradient at the residual stream back through the norm that its change passes."""
    return _of_each(Entry.pull, change, rows, fractions, gradient)


def _of_each(function: Callable[..., Array], change: Entry, rows: Int[Array, " variant"], *more: Array) -> Array:
    """Applies a function of a prompt's change to each variant; the norm is that of all."""
    one = lambda moved, before, *more: function(Entry(moved, before, change.norm), *more)
    of_rows = lambda x: None if x is None else x[rows]
    return jax.vmap(one)(of_rows(change.change), of_rows(change.before), *more)


@jax.jit
def _added(totals, rows, weights, gradients) -> list[Float[Array, "batch seq d_model"]]:
    """Adds weighted gradients `[variant seq d_model]` to the sums of their prompts, cut by cut."""
    add = lambda total, each: total.at[rows].add(weights[:, None, None] * each)
    return [add(total, each) for total, each in zip(totals, gradients, strict=True)]

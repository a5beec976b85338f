"""The metric as a function of the residual stream at a cut."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._metrics import Metric
from .._run import metric_of_last
from .._sites import Kind, layer_of, Site
from .._tap import bare_tap
from .._typing import Keys, Resid
from ..models import Transformer


Halves = tuple[Bool[Array | np.ndarray, " layer"], Bool[Array | np.ndarray, " layer"]]


def halves_after(model: Transformer, start: Site) -> Halves:
    """Which blocks attend and which feed forward after a residual cut. It is data: one program serves all cuts."""
    layers = np.arange(model.n_layers)
    feeds = layers >= layer_of(start)
    return (feeds if start.kind == Kind.RESID_PRE else layers > layer_of(start)), feeds


def metric_after(model: Transformer, halves: Halves, keys: Keys, metric: Metric) -> Callable[[Resid], Float[Array, ""]]:
    """The metric as a function of the residual stream at a cut; the blocks are one program, compiled once."""
    blocks, masks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *model.blocks), model.masks(keys.shape[0], keys)

    def half(resid, what):
        block, mask, attend, feed = what
        tap = bare_tap(0)
        if not block.has_middle:  # nothing begins in its middle
            return jax.lax.cond(attend, lambda x: block(x, mask, tap), lambda x: x, resid), None
        resid = jax.lax.cond(attend, lambda x: block.attend(x, mask, tap), lambda x: x, resid)
        return jax.lax.cond(feed, lambda x: block.feed(x, tap), lambda x: x, resid), None

    def value(resid):
        last, _ = jax.lax.scan(half, resid, (blocks, jnp.stack(masks), *halves))
        return metric_of_last(model, metric, last)

    return value

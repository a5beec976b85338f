"""A metric whose gradient vanishes where it is taken: first-order methods see nothing of it, and must say so."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._metrics import Metric
from .._run import metric_of_last, run
from .._sites import Kind, Site
from ..models import Transformer


VANISHING = 1e-4  # of the metric's change; in float32 rounding alone leaves about a hundredth of that


def check_gradient(
    model: Transformer,
    tokens: Int[Array, "batch seq"],
    metric: Metric,
    mask: Bool[Array, "batch seq"],
    *,
    found: Float[np.ndarray, " batch"],
    total: Float[Array, " batch"],
) -> None:
    """ValueError if the metric moves by `total`, and to first order around these prompts nothing would move it.

    `found` is the most of it that a method has accounted for. Nodes of little effect are no reason: where it is next to nothing, the
    metric's gradient with respect to the last residual stream decides.
    """
    change = np.abs(np.asarray(total, np.float64))
    if not change.any() or (np.abs(found) > VANISHING * change).any():
        return
    if (np.asarray(_reach(model, tokens, metric, mask), np.float64) <= VANISHING * change).all():
        raise ValueError(
            "The metric's gradient vanishes where it is taken, so it says nothing of what moves the metric: jc.KL has none at its own "
            "reference. Use method=jc.ExactPatching(), which takes none, or of nodes method=jc.IntegratedGradients(steps), whose gradients "
            "are taken on the way to the corrupt prompts."
        )


@jax.jit
def _reach(model, tokens, metric, mask) -> Float[Array, " batch"]:
    """How far the metric would move, to first order, with the last residual stream moved by its own length."""
    last = Site(model.n_layers - 1, Kind.RESID_POST)
    size = lambda x: jnp.sqrt(jnp.sum(jnp.square(x)))

    def one(tokens, metric, keys):
        resid = run(model, tokens, record=[last], mask=keys)[1][last]
        return size(jax.grad(lambda x: metric_of_last(model, metric, x))(resid)) * size(resid)

    return jax.vmap(one)(tokens, metric, mask)

"""A metric whose gradient vanishes where it is taken: first-order methods see nothing of it, and must say so."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._metrics import Metric
from .._run import metric_of_last, run
from .._sites import Kind, Site
from ..models import Transformer
from ..runs import Problem


VANISHING = 1e-4  # of the gradient at the corrupt prompts; rounding leaves a thousandth of that in float32
LITTLE = 0.1  # of the metric's change: a gradient that accounts for more of it need not be looked at


def check_gradient(
    model: Transformer, problem: Problem, *, found: Float[np.ndarray, " batch"], total: Float[Array, " batch"]
) -> None:
    """ValueError if the metric moves by `total`, and to first order around the clean prompts nothing would move it.

    `found` is the most of it that a method has accounted for. Nodes of little effect are no reason: where it is little, the metric's
    gradient with respect to the last residual stream decides, beside that at the corrupt prompts, or with the zero baseline beside the
    change itself.
    """
    change = np.abs(np.asarray(total, np.float64))
    if not change.any() or (np.abs(found) > LITTLE * change).any():
        return
    reach = lambda tokens: np.asarray(_reach(model, tokens, problem.metric, problem.mask), np.float64)
    usual = change if problem.corrupt is None else reach(problem.corrupt)
    if (reach(problem.clean) <= VANISHING * usual).all():
        raise ValueError(
            "The metric's gradient vanishes where it is taken, so it says nothing of what moves the metric: jc.KL has none at its own "
            "reference. Use method=jc.ExactPatching(), which takes none, or of nodes method=jc.IntegratedGradients(steps), whose gradients "
            "are taken on the way to the corrupt prompts."
        )


@jax.jit
def _reach(model: Transformer, tokens, metric: Metric, mask) -> Float[Array, " batch"]:
    """How far the metric would move, to first order, with the last residual stream moved by its own length."""
    last = Site(model.n_layers - 1, Kind.RESID_POST)
    size = lambda x: jnp.sqrt(jnp.sum(jnp.square(x)))

    def one(tokens, metric, keys):
        resid = run(model, tokens, record=[last], mask=keys)[1][last]
        return size(jax.grad(lambda x: metric_of_last(model, metric, x))(resid)) * size(resid)

    return jax.vmap(one)(tokens, metric, mask)

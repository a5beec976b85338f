"""A metric whose gradient vanishes where it is taken: first-order methods see nothing of it, and must say so."""

import numpy as np
from jaxtyping import Array, Float

from .._metrics import Metric
from .._sites import Kind, Site
from ..models import Transformer
from ..runs import cut_gradients, Problem, record


VANISHING = 1e-4  # of the gradient at the corrupt prompts; rounding leaves a thousandth of that in float32
LITTLE = 0.1  # of the metric's change: a gradient that accounts for more of it need not be looked at


OF_NODES = (
    "method=jc.ExactPatching(), which takes none, or of nodes method=jc.IntegratedGradients(steps), whose gradients are taken on the way "
    "to the corrupt prompts."
)


def check_gradient(
    model: Transformer,
    problem: Problem,
    *,
    found: Float[np.ndarray, " batch"],
    total: Float[Array, " batch"],
    instead: str = OF_NODES,
) -> None:
    """ValueError if the metric moves by `total`, and to first order around the clean prompts nothing would move it.

    `found` is the most of it that a method has accounted for. Nodes of little effect are no reason: where it is little, the metric's
    gradient with respect to the last residual stream decides, beside that at the corrupt prompts, or with the zero baseline beside the
    change itself. `instead` is what to use, the end of a sentence.
    """
    change = np.abs(np.asarray(total, np.float64))
    if not change.any() or (np.abs(found) > LITTLE * change).any():
        return
    reach = lambda tokens: _reach(model, tokens, problem.metric, problem.mask)
    usual = change if problem.corrupt is None else reach(problem.corrupt)
    if (reach(problem.clean) <= VANISHING * usual).all():
        raise ValueError(
            "The metric's gradient vanishes where it is taken, so it says nothing of what moves the metric: jc.KL has none at its own "
            f"reference. Use {instead}"
        )


def _reach(model: Transformer, tokens, metric: Metric, mask) -> Float[np.ndarray, " batch"]:
    """Computes how far the metric would move, to first order, with the last residual stream moved by its own length."""
    run, end = record(model, tokens, mask), Site(model.n_layers, Kind.RESID_PRE)
    rows = np.arange(len(tokens))
    gradient = cut_gradients(model, metric, run.masks, rows, run.last, end, frozenset({end}))[end]
    size = lambda x: np.sqrt(np.square(np.asarray(x, np.float64)).sum((1, 2)))
    return size(gradient) * size(np.where(np.asarray(mask)[..., None], run.last, 0))

"""Runs on the way from clean to corrupt: one site moved, and all that follows computed from there."""

from jaxtyping import Array, Float

from .._edits import Add
from .._run import site_shapes
from .._sites import Site
from ..graph import entry
from ..models import Transformer
from ..runs import Problem, record
from ._methods import clean_gradients
from ._states import residual_cuts, States, with_values


def states_moved(
    model: Transformer, problem: Problem, at: States, source: Site, fraction: float
) -> tuple[States, dict[Site, Float[Array, "batch seq width"]]]:
    """Runs the clean prompts with the value at `source` moved by a fraction of the difference there.

    **Returns:** that run, whose differences stay those of the prompts; and the gradient of the metric at the sites that come after.
    """
    cuts, shape = residual_cuts(model, problem.saes), site_shapes(model, problem.clean.shape[1])[source].shape
    move = {source: Add((fraction * at.differences[source]).reshape(-1, *shape))}
    run = record(model, problem.clean, problem.mask, {*at.values, *cuts.values()}, edits=move)
    resid = {cut: run.values[name] for cut, name in cuts.items()}
    moved = with_values(problem.saes, at, {site: run.flat(site) for site in at.values}, resid)
    after = [site for site in problem.saes if entry(model, site) >= entry(model, source)]
    return moved, clean_gradients(model, problem.metric, moved, after)

"""Runs on the way from clean to corrupt: one site moved, and all that follows computed from there."""

from jaxtyping import Array, Float

from .._edits import Add
from .._run import site_shapes
from .._sites import Kind, Site
from ..graph import canonical, entry
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
    cuts, move = residual_cuts(model, problem.saes), {source: Add(step_of(model, at, source, fraction))}
    run = record(model, problem.clean, problem.mask, {*at.values, *cuts.values()}, edits=move)
    resid = {cut: run.values[name] for cut, name in cuts.items()}
    moved = with_values(problem.saes, at, {site: run.flat(site) for site in at.values}, resid)
    after = [site for site in problem.saes if entry(model, site) >= entry(model, source)]
    return moved, clean_gradients(model, problem.metric, moved, after)


def moved_by(model: Transformer, at: States, source: Site, fraction: float) -> Float[Array, "batch ..."] | None:
    """How far the value at `source` is moved, if it is inside a block, where what enters that in `states_moved` does not tell."""
    return None if fraction == 0 or canonical(source).kind == Kind.RESID_PRE else step_of(model, at, source, fraction)


def step_of(model: Transformer, at: States, source: Site, fraction: float) -> Float[Array, "batch ..."]:
    """A fraction of what differs at a site in the corrupt run, in the shape of its value."""
    difference = fraction * at.differences[source]
    return difference.reshape(-1, *site_shapes(model, difference.shape[1])[source].shape)

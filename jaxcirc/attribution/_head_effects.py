"""Effects of attention heads: which query, key, value or output at which position matters to a metric."""

from jaxtyping import Array, Bool, Int

from .._metrics import Metric
from ..models import Transformer
from ._atp_star import AtPStar
from ._heads import AbstractHeadMethod, head_states, HeadEffects
from ._prepare import prepare_prompts


def head_effects(
    model: Transformer,
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"] | None,
    metric: Metric,
    *,
    method: AbstractHeadMethod = AtPStar(),
    mask: Bool[Array, "batch seq"] | None = None,
) -> HeadEffects:
    r"""Effects of every head's query, key, value and output at every position on the metric, for a batch of prompt pairs.

    Each is an estimate of the change of the metric when this one vector is what it is in the corrupt run and all else is computed from
    there: with `jc.Gradient()` to first order, with `jc.AtPStar()` corrected, with `jc.ExactPatching()` by a run for each.

    **Arguments:**

    - `clean`, `corrupt`, `metric`, `mask`: as in `jc.node_effects`.
    - `method`: `jc.AtPStar(qk_fix, grad_drop)`, `jc.Gradient()` or `jc.ExactPatching()`.

    **Returns:** `HeadEffects`.

    **Raises:** `ValueError` as `jc.node_effects` does; `TypeError` for a method that does not know heads.

    >>> prompts = jc.data.ioi(tokenizer, 2, seed=0)
    >>> effects = jc.head_effects(model, prompts.clean, prompts.corrupt, prompts.metric())
    >>> effects.q.shape == (2, model.n_layers, model.n_heads, prompts.clean.shape[1])
    True

    **Reference:** attribution patching, Nanda 2023; corrections, Kramár et al. 2024, arXiv 2403.00745, §3.1.
    """
    problem = prepare_prompts(model, clean, corrupt, metric, mask)
    if not isinstance(method, AbstractHeadMethod):
        raise TypeError(
            f"head_effects: expected one of jc.AtPStar(), jc.Gradient(), jc.ExactPatching() as the method, got {type(method).__name__}."
        )
    at = head_states(model, problem.clean, problem.corrupt, problem.metric, problem.mask)
    return method.heads(model, problem.clean, problem.metric, problem.mask, at)

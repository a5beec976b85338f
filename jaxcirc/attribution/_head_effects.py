"""Effects of attention heads: which query, key, value or output at which position matters to a metric."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from .._metrics import Metric
from .._traced import check_untraced
from ..models import Transformer
from ..runs import prepare_prompts, shortened
from ._atp_star import AtPStar
from ._heads import AbstractHeadMethod, check_head_method, HeadEffects, PARTS
from ._patching import ExactPatching


# About a second on two cores, and about the time in which a layer's part of a whole model's gradient is compiled. Patching compiles one
# block, however many there are.
OPERATIONS_A_LAYER = 1e11


def head_effects(
    model: Transformer,
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"] | None,
    metric: Metric,
    *,
    method: AbstractHeadMethod | None = None,
    mask: Bool[Array, "batch seq"] | None = None,
) -> HeadEffects:
    r"""Effects of every head's query, key, value and output at every position on the metric, for a batch of prompt pairs.

    Each is the change of the metric when this one vector is what it is in the corrupt run and all else is computed from there: measured
    with `jc.ExactPatching()`, estimated with `jc.Gradient()` to first order and with `jc.AtPStar()` corrected.

    **Arguments:**

    - `clean`, `corrupt`, `metric`, `mask`: as in `jc.node_effects`.
    - `method`: `jc.ExactPatching()`, `jc.AtPStar()`, `jc.AtPStar(grad_drop=True)` or `jc.Gradient()`. `None` measures where that takes
      about as long as estimating, compilation included, and otherwise takes `jc.AtPStar()`. The rule: one run for each of the
      `4 x prompts x layers x heads x seq` vectors (fewer where heads share keys and values), two operations for each token and each
      weight of the layers from the vector's on; in all at most `1e11` for each layer of the model, which is about how long its gradient
      takes to compile. So 100 prompts of 7 tokens are patched in a model of 4 layers, 4 heads and width 128, and one of 4 tokens in
      GPT-2 small. Shapes alone decide, of what one call is given; for further calls give `method=effects.method`.

    **Returns:** `HeadEffects`, which say what found them, `effects.method`.

    **Raises:** `ValueError` as `jc.node_effects` does, and for GradDrop in a model of one layer; `TypeError` for a method that does not
    know heads.

    >>> prompts = jc.data.ioi(tokenizer, 2, seed=0)
    >>> effects = jc.head_effects(model, prompts.clean, prompts.corrupt, prompts.metric())
    >>> effects.q.shape == (2, model.n_layers, model.n_heads, prompts.clean.shape[1])
    True
    >>> effects.method.words
    'exact patching'

    **Reference:** patching, Meng et al. 2022, arXiv 2202.05262; attribution patching, Nanda 2023; corrections, Kramár et al. 2024, arXiv
    2403.00745, §3.1.
    """
    check_untraced("head_effects", model)
    problem = prepare_prompts(model, clean, corrupt, metric, mask)
    if method is None:
        method = affordable_method(model, *jnp.shape(clean))
    check_head_method("head_effects", method)
    found, length = method.heads(model, problem), int(problem.length)
    return dataclasses.replace(found, **{part: shortened(getattr(found, part), length, axis=-1) for part in PARTS})


def affordable_method(model: Transformer, prompts: int, seq: int) -> AbstractHeadMethod:
    """Exact patching where it takes about as long as an estimate, by the rule in `head_effects`, otherwise AtP* without GradDrop."""
    operations = patching_operations(model, prompts, seq)
    return ExactPatching() if operations <= OPERATIONS_A_LAYER * model.n_layers else AtPStar()


def patching_runs(model: Transformer, prompts: int, seq: int) -> int:
    """How many vectors there are to patch: of each part, prompt, layer, head and position."""
    return 2 * (model.n_heads + model.n_kv_heads) * prompts * model.n_layers * seq


def patching_operations(model: Transformer, prompts: int, seq: int) -> float:
    """What a run for each vector takes: the half of its layer after the heads, the layers after that, and the logits of one position."""
    n, block = model.n_layers, model.blocks[0]
    layer, own = _size(block), _size(block.mlp) if block.has_middle else 0
    each = seq * (own + (n - 1) / 2 * layer) + model.d_model * len(model.b_U)
    return 2 * patching_runs(model, prompts, seq) * each


def _size(tree: object) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))

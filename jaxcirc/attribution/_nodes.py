"""Node effects: what each latent, and each dictionary's error, does to the metric."""

from collections.abc import Mapping

from jaxtyping import Array, Bool, Int

from .._metrics import Metric
from .._sites import BySite, Site
from .._traced import check_untraced
from ..models import Transformer
from ..runs import prepare, shortened
from ..saes import AbstractDictionary
from ._effects import NodeEffects
from ._methods import AbstractMethod, check_method, IntegratedGradients
from ._origin import origin
from ._states import states


def node_effects(
    model: Transformer,
    saes: Mapping[Site, AbstractDictionary] | Mapping[str, AbstractDictionary],
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"] | None,
    metric: Metric,
    *,
    method: AbstractMethod = IntegratedGradients(),
    mask: Bool[Array, "batch seq"] | None = None,
) -> NodeEffects:
    r"""Effects of all latents and errors on the metric, for a batch of prompt pairs.

    With latents $f$ and error $\varepsilon$ as independent coordinates of the value $x = W_{dec} f + b + \varepsilon$ [seq width] and
    $G = \nabla_x m$ [seq width] by `method`,

    $$\mathrm{IE}_f = (f_{corrupt} - f_{clean}) \odot W_{dec} G, \qquad
      \mathrm{IE}_\varepsilon = \langle \varepsilon_{corrupt} - \varepsilon_{clean}, G \rangle.$$

    Where a decoder reads its input (normalised dictionaries, skip transcoders) that is held at its clean value, and the error is what the
    latents leave there, on both sides.

    **Arguments:**

    - `saes`: the dictionaries whose latents are the nodes.
    - `clean`, `corrupt` `[batch seq]`: prompt pairs of equal length. `corrupt=None` is the zero baseline: every latent and every
      error goes to zero.
    - `metric`: a function of one sequence's logits; its array leaves carry the batch axis.
    - `method`: `jc.Gradient()`, `jc.IntegratedGradients(steps, rule)` or `jc.ExactPatching()`.
    - `mask` `[batch seq]`: False for padding, of both prompts of a pair; its effects are exactly 0.

    **Returns:** `NodeEffects`.

    **Raises:** `ValueError` for prompts of different shapes, token ids outside the vocabulary, dictionaries that do not fit.

    >>> prompts = jc.data.subject_verb(tokenizer, 16, kind="rc", seed=0)
    >>> effects = jc.node_effects(model, saes, prompts.clean, prompts.corrupt, prompts.metric())
    >>> effects.total.shape, effects.acts[jc.Site.parse("blocks.3.hook_resid_post")].shape[-1]
    ((16,), 512)

    **Reference:** Marks et al. 2024, "Sparse Feature Circuits", arXiv 2403.19647, §3.2, eq. 3 and 4. Signs are theirs. The gradient is
    of the plain model, which is what their pass-through gradient computes; their default rule is the left one.
    """
    check_untraced("node_effects", model)
    check_method(method)
    problem = prepare(model, saes, clean, corrupt, metric, mask)
    found = method.effects(model, problem, states(model, problem))
    length = int(problem.length)
    return NodeEffects(
        BySite((site, values.shortened(length)) for site, values in found.listed.items()),
        BySite((site, shortened(gradient, length)) for site, gradient in found.gradient.items()),
        found.at,
        origin(model, problem),
    )

"""Node effects: what each latent, and each dictionary's error, does to the metric."""

from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._sites import Site
from .._tap import site_read
from ..models import Transformer
from ..saes import AbstractDictionary
from ._methods import AbstractMethod, IntegratedGradients, Metric
from ._prepare import prepare
from ._states import node_differences, States, states


class NodeEffects(eqx.Module):
    """Indirect effects of nodes on the metric, corrupt less clean, in the metric's units.

    **Attributes:**

    - `acts[site]` `[batch seq d_sae]`: of the latents of the dictionary at `site`.
    - `error[site]` `[batch seq]`: of its reconstruction error, as one node.
    - `total` `[batch]`: the change of the metric that there is to explain, corrupt less clean. With the zero baseline there is no
      corrupt run, and it is the clean metric's negative.
    - `gradient[site]` `[batch seq width]`: the gradient that the method used.
    - `clean` `[batch]`: the metric of the clean run.
    """

    acts: dict[Site, Float[Array, "batch seq d_sae"]]
    error: dict[Site, Float[Array, "batch seq"]]
    total: Float[Array, " batch"]
    gradient: dict[Site, Float[Array, "batch seq width"]]
    clean: Float[Array, " batch"]

    def nodes(self, site: Site) -> Float[Array, "batch seq node"]:
        """Latents and error in one array; the error is the last node, at index `d_sae`."""
        return jnp.concatenate([self.acts[site], self.error[site][..., None]], axis=-1)


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

    **Arguments:**

    - `saes`: the dictionaries whose latents are the nodes.
    - `clean`, `corrupt` `[batch seq]`: prompt pairs of equal length. `corrupt=None` is the zero baseline: every latent and every
      error goes to zero.
    - `metric`: a function of one sequence's logits; its array leaves carry the batch axis.
    - `method`: `jc.Gradient()` or `jc.IntegratedGradients(steps, rule)`.
    - `mask` `[batch seq]`: False for padding, whose effects are exactly 0.

    **Returns:** `NodeEffects`.

    **Raises:** `ValueError` for prompts of different shapes, token ids outside the vocabulary, dictionaries that do not fit.

    >>> prompts = jc.data.subject_verb(tokenizer, 4, kind="rc", seed=0)
    >>> effects = jc.node_effects(model, saes, prompts.clean, prompts.corrupt, prompts.metric())
    >>> effects.total.shape, effects.acts[jc.Site.parse("blocks.3.hook_resid_post")].shape[-1]
    ((4,), 512)

    **Reference:** Marks et al. 2024, "Sparse Feature Circuits", arXiv 2403.19647, §3.2, eq. 3 and 4. Signs are theirs. The gradient is
    of the plain model, which is what their pass-through gradient computes; their default rule is the left one.
    """
    problem = prepare(model, saes, clean, corrupt, metric, mask)
    at = states(model, problem.saes, problem.clean, problem.corrupt, problem.mask)
    gradient = method.gradients(model, problem.clean, problem.metric, at, tuple(problem.saes))
    return effects_of(problem.saes, problem.metric, at, gradient)


@jax.jit
def effects_of(
    saes: Mapping[Site, AbstractDictionary],
    metric: Metric,
    at: States,
    gradient: Mapping[Site, Float[Array, "batch seq width"]],
) -> NodeEffects:
    """The effects, given the runs and the gradient at every node."""
    acts, error = {}, {}
    for site, sae in saes.items():
        d_acts, d_error = node_differences(sae, site, at)
        acts[site] = d_acts * latent_gradient(sae, site, at, gradient[site])
        error[site] = jnp.sum(d_error * gradient[site], axis=-1)
    clean = jax.vmap(lambda metric, logits: metric(logits))(metric, at.clean)
    after = 0.0 if at.corrupt is None else jax.vmap(lambda metric, logits: metric(logits))(metric, at.corrupt)
    return NodeEffects(acts=acts, error=error, total=after - clean, gradient=dict(gradient), clean=clean)


def latent_gradient(
    sae: AbstractDictionary, site: Site, at: States, gradient: Float[Array, "batch seq width"]
) -> Float[Array, "batch seq d_sae"]:
    """The gradient with respect to the latents, given that with respect to the value: the decoder, transposed."""
    scale = sae.decoder_scale(at.values[site_read(site, sae)])
    return scale[..., None] * (gradient @ sae.W_dec.T)

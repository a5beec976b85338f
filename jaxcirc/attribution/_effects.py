"""Effects of nodes, and how a gradient of the metric gives them."""

from collections.abc import Callable, Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._sites import Site
from .._tap import site_read
from .._typing import Logits
from ..saes import AbstractDictionary
from ._states import node_differences, States


Metric = Callable[[Logits], Float[Array, ""]]


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

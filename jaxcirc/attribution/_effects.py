"""Effects of nodes, and how a gradient of the metric gives them."""

from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._sites import BySite, Site
from .._tap import site_read
from ..saes import AbstractDictionary, anonymous
from ..units import Latents, read
from ._states import error_differences, States


class NodeEffects(eqx.Module):
    """Indirect effects of nodes on the metric, corrupt − clean, in the metric's units.

    **Attributes,** by site or its name:

    - `acts[site]` `[batch seq d_sae]`: of the latents of the dictionary at `site`.
    - `error[site]` `[batch seq]`: of its reconstruction error, as one node.
    - `gradient[site]` `[batch seq width]`: the gradient that the method used.
    - `at`: the runs of the prompts, from which `jc.edge_effects` goes on; with padding behind them.
    """

    acts: BySite[Float[Array, "batch seq d_sae"]]
    error: BySite[Float[Array, "batch seq"]]
    gradient: BySite[Float[Array, "batch seq width"]]
    at: States

    @property
    def total(self) -> Float[Array, " batch"]:
        """The change of the metric that there is to explain, corrupt − clean. With the zero baseline there is no corrupt run, and it is
        the clean metric's negative.
        """
        return self.at.total

    @property
    def clean(self) -> Float[Array, " batch"]:
        """The metric of the clean run."""
        return self.at.clean

    def nodes(self, site: Site | str) -> Float[Array, "batch seq node"]:
        """Latents and error in one array; the error is the last node, at index `d_sae`."""
        return jnp.concatenate([self.acts[site], self.error[site][..., None]], axis=-1)


def effects_of(
    saes: Mapping[Site, AbstractDictionary], at: States, gradient: Mapping[Site, Float[Array, "batch seq width"]]
) -> NodeEffects:
    """The effects, given the runs and the gradient at every node."""
    found = {site: node_products(site, sae, at, gradient[site]) for site, sae in saes.items()}
    acts, error = (BySite((site, each[part]) for site, each in found.items()) for part in (0, 1))
    return NodeEffects(acts=acts, error=error, gradient=BySite(gradient), at=at)


def node_products(
    site: Site, sae: AbstractDictionary, at: States, gradient: Float[Array, "batch seq width"]
) -> tuple[Float[Array, "batch seq d_sae"], Float[Array, "batch seq"]]:
    """Products of the latents' and the error's differences with the gradient with respect to them, given that at the site."""
    return _products(anonymous(sae), at.values[site_read(site, sae)], at.differences[site], gradient, at.changes[site])


@jax.jit
def _products(sae, x, difference, gradient, changes):
    def latents(scale, gradient, changes: Latents):
        products = changes.values * scale[changes.positions] * read(changes, sae.W_dec, gradient)
        there = jnp.zeros((len(gradient), sae.d_sae), products.dtype)
        return there.at[changes.positions, changes.units].add(products)

    error = error_differences(sae, x, difference, changes)
    return jax.vmap(latents)(sae.decoder_scale(x), gradient, changes), jnp.sum(error * gradient, axis=-1)

"""Effects of nodes, and how a gradient of the metric gives them."""

import functools as ft
from collections.abc import Mapping
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._shown import Shown
from .._sites import BySite, Site
from .._tap import site_read
from ..runs import some_at_once
from ..saes import AbstractDictionary, anonymous
from ..units import bytes_through, Latents, read, write_tiles, WriteTiles
from ._node_values import ArraysBySite, NodeValues
from ._origin import Origin
from ._states import error_differences, States


class NodeEffects(Shown, eqx.Module):
    """Indirect effects of nodes on the metric, corrupt − clean, in the metric's units.

    **Attributes,** by site or its name:

    - `acts[site]` `[batch seq d_sae]`: of the latents of the dictionary at `site`. What is held is `listed`, and this array is made anew
      when it is asked for, unless somebody holds it.
    - `error[site]` `[batch seq]`: of its reconstruction error, as one node.
    - `gradient[site]` `[batch seq width]`: the gradient that the method used.
    - `listed[site]`: of latents and error, those of latents as a list of the ones that are not 0.
    - `at`: the runs of the prompts, from which `jc.edge_effects` goes on; with padding behind them.
    - `of`: the model, the dictionaries and the metric, by which `jc.edge_effects` knows its own; `None` straight from a method.
    """

    listed: BySite[NodeValues]
    gradient: BySite[Float[Array, "batch seq width"]]
    at: States
    of: Origin | None = None

    SHOWN: ClassVar = ("acts", "error", "gradient", "total", "clean")

    @property
    def acts(self) -> ArraysBySite:
        return ArraysBySite((site, values.acts) for site, values in self.listed.items())

    @property
    def error(self) -> BySite[Float[Array, "batch seq"]]:
        return BySite((site, values.error) for site, values in self.listed.items())

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
        return self.listed[site].nodes()


def effects_of(
    saes: Mapping[Site, AbstractDictionary], at: States, gradient: Mapping[Site, Float[Array, "batch seq width"]]
) -> NodeEffects:
    """The effects, given the runs and the gradient at every node."""
    found = BySite((site, node_products(site, sae, at, gradient[site])) for site, sae in saes.items())
    return NodeEffects(found, BySite(gradient), at)


def node_products(
    site: Site, sae: AbstractDictionary, at: States, gradient: Float[Array, "batch seq width"]
) -> NodeValues:
    """Products of the latents' and the error's differences with the gradient with respect to them, given that at the site."""
    changes = at.changes[site]
    products = _products(
        anonymous(sae), at.values[site_read(site, sae)], at.differences[site], gradient, changes, write_tiles()
    )
    return NodeValues(Latents(changes.positions, changes.units, products[0]), products[1], sae.d_sae)


@ft.partial(jax.jit, static_argnames="tiles")
def _products(
    sae, x, difference, gradient, changes: Latents, tiles: WriteTiles
) -> tuple[Float[Array, "batch n"], Float[Array, "batch seq"]]:
    """Products of what is listed, and of the error."""

    def latents(scale, gradient, changes: Latents):
        return changes.values * scale[changes.positions] * read(changes, sae.W_dec, gradient)

    each = bytes_through(changes, sae.W_dec, x.shape[1], tiles)
    error = error_differences(sae, x, difference, changes, tiles)
    return some_at_once(latents, each, sae.decoder_scale(x), gradient, changes), jnp.sum(error * gradient, axis=-1)

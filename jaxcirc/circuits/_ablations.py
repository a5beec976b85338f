"""What takes the place of a node that is not in the circuit: values from prompts that do not call for it."""

import abc
from collections.abc import Callable, Mapping
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._sites import Site


class Nodes(NamedTuple):
    """The values of all nodes at a site, or what they are ablated to: latents and error, flat."""

    acts: Float[Array, "*batch seq d_sae"]
    error: Float[Array, "*batch seq width"]


Values = Mapping[Site, Nodes]  # with a leading axis over prompts


class AbstractAblation(eqx.Module):
    """How ablated nodes are valued."""

    @abc.abstractmethod
    def values(
        self, n: int, of: Callable[[np.ndarray], Values], mean: Callable[[], Values], padded: bool
    ) -> Callable[[np.ndarray], Values]:
        """**Arguments:** - `n`: how many prompts there are. - `of(rows)`: the nodes' values on some of the reference prompts. -
        `mean()`: their mean over all of them, for each position. - `padded`: whether the prompts have padding.

        **Returns:** a function from prompts, by number, to what their nodes are ablated to.
        """


class MeanAblation(AbstractAblation):
    """The mean over the reference prompts, for each position apart."""

    def values(self, n, of, mean, padded):
        found = mean()
        return lambda rows: jax.tree.map(lambda x: jnp.broadcast_to(x, (len(rows), *x.shape[1:])), found)


class ZeroAblation(AbstractAblation):
    """Zero: latents off, and no error."""

    def values(self, n, of, mean, padded):
        one = jax.tree.map(jnp.zeros_like, of(np.zeros(1, int)))
        return lambda rows: jax.tree.map(lambda x: jnp.broadcast_to(x, (len(rows), *x.shape[1:])), one)


class ResampleAblation(AbstractAblation):
    """The values on another reference prompt, the same for all nodes: a shuffle of the prompts that `seed` decides."""

    seed: int = eqx.field(static=True, default=0)

    def values(self, n, of, mean, padded):
        if padded:
            raise ValueError(
                "ResampleAblation takes another prompt's values position by position, and padded prompts do not align. Use MeanAblation, "
                "or prompts of one length."
            )
        if n < 2:
            raise ValueError(
                "ResampleAblation takes another prompt's values, and there is one prompt. Use ZeroAblation."
            )
        order = np.random.default_rng(self.seed).permutation(n)
        other = np.empty(n, int)
        other[order] = np.roll(order, 1)  # nobody's own
        return lambda rows: of(other[rows])

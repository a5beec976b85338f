"""What takes the place of a node that is not in the circuit: values from prompts that do not call for it."""

import abc
from collections.abc import Callable, Mapping
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_seed
from .._sites import Site
from ..components import Reference


class Nodes(NamedTuple):
    """The values of all nodes at a site, or what they are ablated to: latents and error, flat."""

    acts: Float[Array, "*batch seq d_sae"]
    error: Float[Array, "*batch seq width"]


Values = Mapping[Site, Nodes]  # with a leading axis over prompts


class AbstractAblation(eqx.Module):
    """How ablated nodes are valued."""

    @abc.abstractmethod
    def values(self, reference: Reference) -> Callable[[np.ndarray], Values]:
        """**Arguments:** - `reference`: the prompts that values come from, one for each prompt that is run, with the same padding.

        **Returns:** a function from prompts, by number, to what their nodes are ablated to.
        """


class MeanAblation(AbstractAblation):
    """The mean over the reference prompts, for each position apart, of those that are real there. Where prompts of several lengths are
    together, all are padded on one side.
    """

    def values(self, reference):
        found = reference.mean(reference.mask)
        return lambda rows: jax.tree.map(lambda x: jnp.broadcast_to(x, (len(rows), *x.shape[1:])), found)


class ZeroAblation(AbstractAblation):
    """Zero: latents off, and no error."""

    def values(self, reference):
        one = jax.tree.map(jnp.zeros_like, reference.of(np.zeros(1, int)))
        return lambda rows: jax.tree.map(lambda x: jnp.broadcast_to(x, (len(rows), *x.shape[1:])), one)


class ResampleAblation(AbstractAblation):
    """The values on another reference prompt, the same for all nodes, position by position: a shuffle of the prompts that `seed` decides.
    All have one length, as a shorter one has no values for a longer.
    """

    seed: int = eqx.field(static=True, default=0)

    def __check_init__(self):
        check_seed("ResampleAblation: seed", self.seed)

    def values(self, reference):
        n = len(reference.mask)
        if n < 2:
            raise ValueError(
                "ResampleAblation takes another prompt's values, and there is one prompt. Use ZeroAblation."
            )
        order = np.random.default_rng(self.seed).permutation(n)
        other = np.empty(n, int)
        other[order] = np.roll(order, 1)  # nobody's own
        return reference.another(reference.mask, other)

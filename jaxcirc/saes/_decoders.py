"""The directions of latents that write to several layers."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._precision import wide


class AbstractDecoder(eqx.Module):
    """The directions of one layer's latents: one for each layer that they write to, `W_dec` `[d_sae target d_out]`, wherever that is.

    `target` counts from the latents' own layer, 0.
    """

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """How many latents, how many layers they write to, how many numbers each writes."""

    @abc.abstractmethod
    def rows(self, latents: Int[Any, " n"], target: int) -> Float[Array, "n d_out"]:
        """What `latents` write, each per unit of activation, to the layer `target` further on."""

    @abc.abstractmethod
    def decode(self, acts: Float[Array, "... d_sae"], target: int) -> Float[Array, "... d_out"]:
        """`acts W_dec[:, target]`, without a bias."""


class Decoder(AbstractDecoder):
    """Directions held in memory: an ordinary pytree, for `jax.jit` and `jax.vmap`."""

    W_dec: Float[Array, "d_sae target d_out"]

    @property
    def shape(self) -> tuple[int, int, int]:
        d_sae, targets, d_out = self.W_dec.shape
        return d_sae, targets, d_out

    def rows(self, latents: Int[Any, " n"], target: int) -> Float[Array, "n d_out"]:
        return wide(self.W_dec[jnp.asarray(latents), target])

    def decode(self, acts: Float[Array, "... d_sae"], target: int) -> Float[Array, "... d_out"]:
        # [... d_sae] · [d_sae d_out] -> [... d_out]
        return wide(acts) @ wide(self.W_dec[:, target])

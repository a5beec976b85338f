"""The nonlinearities of dictionaries: which latents are on, and by how much."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class AbstractActivation(eqx.Module):
    """From pre-activations to latents."""

    @abc.abstractmethod
    def __call__(self, pre: Float[Array, "... d_sae"]) -> Float[Array, "... d_sae"]:
        """**Arguments:** - `pre`: `x W_enc + b_enc`. **Returns:** the latents, of the same shape."""


class ReLU(AbstractActivation):
    """`max(pre, 0)`, with derivative 0 at 0."""

    def __call__(self, pre: Float[Array, "... d_sae"]) -> Float[Array, "... d_sae"]:
        return jax.nn.relu(pre)


class JumpReLU(AbstractActivation):
    """`pre * 1[pre > threshold]` for `threshold >= 0` (Rajamanoharan et al. 2024, arXiv 2407.14435, eq. 4); a negative threshold is a
    plain ReLU. Trained BatchTopK and Matryoshka dictionaries run in this form, with one threshold for all latents.
    """

    threshold: Float[Array, "*d_sae"]

    def __call__(self, pre: Float[Array, "... d_sae"]) -> Float[Array, "... d_sae"]:
        return jnp.where(pre > self.threshold, jax.nn.relu(pre), 0)


class TopK(AbstractActivation):
    """The `k` largest of each position, the rest 0 (Gao et al. 2024, arXiv 2406.04093, §2.3).

    `rectified`: negative survivors become 0, as published TopK dictionaries do; without it they stay. Ties are broken by index.
    """

    k: int = eqx.field(static=True)
    rectified: bool = eqx.field(static=True, default=True)

    def __call__(self, pre: Float[Array, "... d_sae"]) -> Float[Array, "... d_sae"]:
        _, chosen = jax.lax.top_k(pre, self.k)
        on = jax.nn.one_hot(chosen, pre.shape[-1], dtype=bool, axis=-1).any(axis=-2)
        return jnp.where(on, jax.nn.relu(pre) if self.rectified else pre, 0)


class Gated(AbstractActivation):
    """`1[pre + b_gate > 0] * max(exp(r_mag) pre + b_mag, 0)` (Rajamanoharan et al. 2024, arXiv 2404.16014, eq. 6-7)."""

    r_mag: Float[Array, " d_sae"]
    b_gate: Float[Array, " d_sae"]
    b_mag: Float[Array, " d_sae"]

    def __call__(self, pre: Float[Array, "... d_sae"]) -> Float[Array, "... d_sae"]:
        return jnp.where(pre + self.b_gate > 0, jax.nn.relu(jnp.exp(self.r_mag) * pre + self.b_mag), 0)

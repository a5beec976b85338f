"""The nonlinearities of dictionaries: which latents are on, and by how much."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._precision import wide, widened


class AbstractActivation(eqx.Module):
    """From pre-activations to latents. `COMPARES`: which latents are on depends on the others of the position, too."""

    COMPARES: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, pre: Float[Array, "... d_sae"]) -> Float[Array, "... d_sae"]:
        """**Arguments:** - `pre`: `x W_enc + b_enc`. **Returns:** the latents, of the same shape."""

    def misfit(self, d_sae: int) -> str:
        """Says what keeps it from being that of a dictionary with so many latents; "" for nothing."""
        return ""


class ReLU(AbstractActivation):
    """`max(pre, 0)`, with derivative 0 at 0."""

    def __call__(self, pre: Float[Array, "... d_sae"]) -> Float[Array, "... d_sae"]:
        return jax.nn.relu(pre)


class TanhReLU(AbstractActivation):
    """`tanh(max(pre, 0))`, latents between 0 and 1."""

    def __call__(self, pre: Float[Array, "... d_sae"]) -> Float[Array, "... d_sae"]:
        return jnp.tanh(jax.nn.relu(pre))


class Linear(AbstractActivation):
    """`pre` itself: a dictionary without a nonlinearity."""

    def __call__(self, pre: Float[Array, "... d_sae"]) -> Float[Array, "... d_sae"]:
        return pre


class JumpReLU(AbstractActivation):
    """`pre * 1[pre > threshold]` for `threshold >= 0` (Rajamanoharan et al. 2024, arXiv 2407.14435, eq. 4); a negative threshold is a
    plain ReLU. Trained BatchTopK and Matryoshka dictionaries run in this form, with one threshold for all latents.
    """

    threshold: Float[Array, "*d_sae"]

    def __call__(self, pre: Float[Array, "... d_sae"]) -> Float[Array, "... d_sae"]:
        return jnp.where(pre > wide(self.threshold), jax.nn.relu(pre), 0)


class TopK(AbstractActivation):
    """The `k` largest of each position, the rest 0 (Gao et al. 2024, arXiv 2406.04093, §2.3).

    `rectified`: negative survivors become 0, as published TopK dictionaries do; without it they stay. Of equal ones the first is kept.
    """

    COMPARES: ClassVar[bool] = True

    k: int = eqx.field(static=True)
    rectified: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        _check_k(self, self.k)

    def misfit(self, d_sae: int) -> str:
        return _too_many(self, self.k, d_sae)

    def __call__(self, pre: Float[Array, "... d_sae"]) -> Float[Array, "... d_sae"]:
        _check_fits(self, pre)
        largest, chosen = jax.lax.top_k(pre, self.k)
        kept = jax.nn.relu(largest) if self.rectified else largest
        return jnp.put_along_axis(jnp.zeros_like(pre), chosen, kept, axis=-1, inplace=False)


class AbsTopK(AbstractActivation):
    """The `k` of each position that are largest by absolute value, with their signs, the rest 0. Of equal ones the first is kept."""

    COMPARES: ClassVar[bool] = True

    k: int = eqx.field(static=True)

    def __check_init__(self):
        _check_k(self, self.k)

    def misfit(self, d_sae: int) -> str:
        return _too_many(self, self.k, d_sae)

    def __call__(self, pre: Float[Array, "... d_sae"]) -> Float[Array, "... d_sae"]:
        _check_fits(self, pre)
        chosen = jax.lax.top_k(jnp.abs(pre), self.k)[1]
        kept = jnp.take_along_axis(pre, chosen, axis=-1)
        return jnp.put_along_axis(jnp.zeros_like(pre), chosen, kept, axis=-1, inplace=False)


class GroupMax(AbstractActivation):
    """The largest of each of `groups` groups of neighbouring latents, if it is positive, the rest 0. Of equal ones the first is kept."""

    COMPARES: ClassVar[bool] = True

    groups: int = eqx.field(static=True)

    def __check_init__(self):
        if self.groups < 1:
            raise ValueError(f"GroupMax: groups is the number of groups, at least 1; got {self.groups}.")

    def misfit(self, d_sae: int) -> str:
        if not d_sae % self.groups:
            return ""
        return f"GroupMax: {d_sae} latents are not {self.groups} groups of one size; give a number that divides them."

    def __call__(self, pre: Float[Array, "... d_sae"]) -> Float[Array, "... d_sae"]:
        _check_fits(self, pre)
        grouped = pre.reshape(*pre.shape[:-1], self.groups, -1)
        largest = jnp.argmax(grouped, axis=-1, keepdims=True) == jnp.arange(grouped.shape[-1])
        return jnp.where(largest, jax.nn.relu(grouped), 0).reshape(pre.shape)


class Gated(AbstractActivation):
    """`1[pre + b_gate > 0] * max(exp(r_mag) pre + b_mag, 0)` (Rajamanoharan et al. 2024, arXiv 2404.16014, eq. 6-7)."""

    r_mag: Float[Array, " d_sae"]
    b_gate: Float[Array, " d_sae"]
    b_mag: Float[Array, " d_sae"]

    def __call__(self, pre: Float[Array, "... d_sae"]) -> Float[Array, "... d_sae"]:
        own = widened(self)
        return jnp.where(pre + own.b_gate > 0, jax.nn.relu(jnp.exp(own.r_mag) * pre + own.b_mag), 0)


class OfWholeDictionary(AbstractActivation):
    """Stands for an activation that compares latents, in a dictionary of which only some were read: calling it is an error."""

    COMPARES: ClassVar[bool] = True

    name: str = eqx.field(static=True)

    def __call__(self, pre: Float[Array, "... d_sae"]) -> Float[Array, "... d_sae"]:
        raise ValueError(
            f"Of this dictionary only {pre.shape[-1]} latents were read (latents=…), and {self.name} compares all of them to tell which "
            "are on. Its directions are whole; to encode, load the whole dictionary."
        )


def _check_k(activation: AbstractActivation, k: int) -> None:
    if k < 1:
        raise ValueError(f"{type(activation).__name__}: k is the number of latents that stay on, at least 1; got {k}.")


def _too_many(activation: AbstractActivation, k: int, d_sae: int) -> str:
    return f"{type(activation).__name__}: k is {k}, and the dictionary has {d_sae} latents." if k > d_sae else ""


def _check_fits(activation: AbstractActivation, pre: Float[Array, "... d_sae"]) -> None:
    if misfit := activation.misfit(pre.shape[-1]):
        raise ValueError(misfit)

"""How latents read: each by a covector of what is at a site, plus a constant."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._indexing import take
from .._precision import wide
from ..saes import AbstractNormalisation


class Encoder(eqx.Module):
    """How the latents of a site read: by the columns of `W`, each plus its `constant`; a neuron with a gate by as much as its `gates` let
    pass; those of a dictionary that normalises what it reads, `clean`, from behind that.
    """

    W: Float[Array, "d_in d_sae"]
    constant: Float[Array, " d_sae"]
    gates: Float[Array, "seq d_sae"] | None = None
    normalisation: AbstractNormalisation | None = None
    clean: Float[Array, "seq d_in"] | None = None

    def covectors(self, pos: Int[Array, " n"], unit: Int[Array, " n"]) -> Float[Array, "n d_in"]:
        """What each latent reads of the site at its position, one a row."""
        rows = wide(take(self.W, unit, axis=1)).T
        if self.gates is not None:
            rows = rows * self.gates[pos, unit][:, None]
        normalisation = self.normalisation
        if normalisation is None or self.clean is None:
            return rows
        pull = lambda clean, row: jax.vjp(lambda x: apply_held(normalisation, clean, x), clean)[1](row)[0]
        return jax.vmap(pull)(take(self.clean, pos), rows)

    def constants(self, pos: Int[Array, " n"], unit: Int[Array, " n"]) -> Float[Array, " n"]:
        """What each has of its own: its bias."""
        constant = wide(take(self.constant, unit))
        return constant if self.gates is None else constant * self.gates[pos, unit]


def apply_held(
    normalisation: AbstractNormalisation, clean: Float[Array, " d_in"], x: Float[Array, " d_in"]
) -> Float[Array, " d_in"]:
    """What a dictionary reads of `x` with the scale of its normalisation held at that of `clean`."""
    divisor = normalisation.scale(clean) + normalisation.eps
    return (x - normalisation.shift(x)) / jnp.where(divisor == 0, 1, divisor)

"""The dictionaries: sparse autoencoders, transcoders, and the identity."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._labels import with_labels
from .._precision import wide, wide_dtype
from .._sites import Site
from ._activations import AbstractActivation
from ._base import AbstractDictionary
from ._normalisations import AbstractNormalisation


@with_labels("origin")
class SAE(AbstractDictionary):
    """A sparse autoencoder: `acts = activation((n(x) - b_dec) W_enc + b_enc)`, `x ≈ n^-1(acts W_dec + b_dec)`.

    **Arguments:**

    - `W_enc` `[d_in d_sae]`, `b_enc` `[d_sae]`, `W_dec` `[d_sae d_in]`, `b_dec` `[d_in]`.
    - `activation`: `saes.ReLU()`, `JumpReLU(threshold)`, `TopK(k)`, `Gated(…)`.
    - `site`: where it was trained; `processing`: the `process_weights` steps of the model it was trained on, `()` for none, `None` if
      that is not known.
    - `centred`: whether the encoder subtracts `b_dec` first.
    - `normalisation`: what is done to the input first and undone at the end; `None` for nothing.
    - `origin`: what it was loaded from, for messages and results.
    """

    W_enc: Float[Array, "d_in d_sae"]
    b_enc: Float[Array, " d_sae"]
    W_dec: Float[Array, "d_sae d_in"]
    b_dec: Float[Array, " d_in"]
    activation: AbstractActivation
    site: Site | None = eqx.field(static=True, default=None)
    processing: tuple[str, ...] | None = eqx.field(static=True, default=None)
    centred: bool = eqx.field(static=True, default=True, kw_only=True)
    normalisation: AbstractNormalisation | None = eqx.field(default=None, kw_only=True)
    origin: str = eqx.field(static=True, default="", kw_only=True)
    reads: Site | None = eqx.field(static=True, init=False)  # the same as `site`

    def __post_init__(self):
        self.reads = self.site

    def __check_init__(self):
        d_in, d_sae = jnp.shape(self.W_enc)
        _check_shapes(self, b_enc=(d_sae,), W_dec=(d_sae, d_in), b_dec=(d_in,))
        _check_activation(self, self.activation)

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_out(self) -> int:
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    @property
    def decoder_reads_input(self) -> bool:
        return self.normalisation is not None

    def encode(self, x: Float[Array, "... d_in"]) -> Float[Array, "... d_sae"]:
        return self.activation(self.pre_activations(x))

    def pre_activations(self, x: Float[Array, "... d_in"]) -> Float[Array, "... d_sae"]:
        x = wide(x) if self.normalisation is None else self.normalisation.apply(x)
        return (x - wide(self.b_dec) if self.centred else x) @ wide(self.W_enc) + wide(self.b_enc)

    def slopes(self, x: Float[Array, "... d_in"]) -> Float[Array, "... d_sae"]:
        return slopes_of(self.activation, self.pre_activations(x))

    def pull_input(self, x: Float[Array, "n d_in"], covectors: Float[Array, "n d_in"]) -> Float[Array, "n d_in"]:
        if self.normalisation is None:
            return covectors
        return jax.vjp(self.normalisation.apply, wide(x))[1](covectors)[0]

    def decode(
        self, acts: Float[Array, "... d_sae"], x: Float[Array, "... d_in"] | None = None
    ) -> Float[Array, "... d_in"]:
        recon = wide(acts) @ wide(self.W_dec) + wide(self.b_dec)
        return recon if self.normalisation is None else self.normalisation.undo(recon, _needed(x, self))

    def decoder_scale(self, x: Float[Array, "... d_in"]) -> Float[Array, "..."]:
        return (
            jnp.ones(x.shape[:-1], wide_dtype(x.dtype)) if self.normalisation is None else self.normalisation.scale(x)
        )


@with_labels("origin")
class Transcoder(AbstractDictionary):
    """Predicts one site from another through sparse latents: `acts = activation((x - b_in) W_enc + b_enc)`, `y ≈ acts W_dec + b_dec`
    (Dunefsky et al. 2024, arXiv 2406.11944, eq. 1), with a linear path `x W_skip` beside it where there is one (Paulo et al. 2025,
    arXiv 2501.18823). `x` is the value at `reads`, `y` that at `site`.

    **Arguments:** `W_enc` `[d_in d_sae]`, `b_enc` `[d_sae]`, `W_dec` `[d_sae d_out]`, `b_dec` `[d_out]`, `b_in` `[d_in]` or `None`,
    `W_skip` `[d_in d_out]` or `None`; the rest as `SAE`.
    """

    W_enc: Float[Array, "d_in d_sae"]
    b_enc: Float[Array, " d_sae"]
    W_dec: Float[Array, "d_sae d_out"]
    b_dec: Float[Array, " d_out"]
    activation: AbstractActivation
    reads: Site | None = eqx.field(static=True, default=None)
    site: Site | None = eqx.field(static=True, default=None)
    processing: tuple[str, ...] | None = eqx.field(static=True, default=None)
    b_in: Float[Array, " d_in"] | None = eqx.field(default=None, kw_only=True)
    W_skip: Float[Array, "d_in d_out"] | None = eqx.field(default=None, kw_only=True)
    origin: str = eqx.field(static=True, default="", kw_only=True)

    def __check_init__(self):
        (d_in, d_sae), d_out = jnp.shape(self.W_enc), jnp.shape(self.W_dec)[-1]
        _check_shapes(self, b_enc=(d_sae,), W_dec=(d_sae, d_out), b_dec=(d_out,), b_in=(d_in,), W_skip=(d_in, d_out))
        _check_activation(self, self.activation)

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_out(self) -> int:
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    @property
    def decoder_reads_input(self) -> bool:
        return self.W_skip is not None

    def encode(self, x: Float[Array, "... d_in"]) -> Float[Array, "... d_sae"]:
        return self.activation(self.pre_activations(x))

    def pre_activations(self, x: Float[Array, "... d_in"]) -> Float[Array, "... d_sae"]:
        x = wide(x)
        return (x if self.b_in is None else x - wide(self.b_in)) @ wide(self.W_enc) + wide(self.b_enc)

    def slopes(self, x: Float[Array, "... d_in"]) -> Float[Array, "... d_sae"]:
        return slopes_of(self.activation, self.pre_activations(x))

    def pull_input(self, x: Float[Array, "n d_in"], covectors: Float[Array, "n d_in"]) -> Float[Array, "n d_in"]:
        return covectors

    def decode(
        self, acts: Float[Array, "... d_sae"], x: Float[Array, "... d_in"] | None = None
    ) -> Float[Array, "... d_out"]:
        recon = wide(acts) @ wide(self.W_dec) + wide(self.b_dec)
        return recon if self.W_skip is None else recon + wide(_needed(x, self)) @ wide(self.W_skip)

    def decoder_scale(self, x: Float[Array, "... d_in"]) -> Float[Array, "..."]:
        return jnp.ones(x.shape[:-1], wide_dtype(x.dtype))


@with_labels("origin")
class Identity(AbstractDictionary):
    """The site's own basis as a dictionary: `acts = x`, error 0. With it, "features" are neurons or residual dimensions.

    **Arguments:** `width`: the numbers a position of the site; `unit`: 1, in the model's dtype; the rest as `SAE`.
    """

    width: int = eqx.field(static=True)
    site: Site | None = eqx.field(static=True, default=None)
    processing: tuple[str, ...] | None = eqx.field(static=True, default=None)
    unit: Float[Array, ""] = eqx.field(default_factory=lambda: jnp.ones(()), kw_only=True)
    origin: str = eqx.field(static=True, default="identity", kw_only=True)
    reads: Site | None = eqx.field(static=True, init=False)

    def __post_init__(self):
        self.reads = self.site

    # Made where they are used: as leaves, the bases of a wide site would be the largest arrays of a run. Equinox lets a property stand
    # for an abstract variable.
    @property
    def W_enc(self) -> Float[Array, "d_in d_sae"]:  # pyright: ignore[reportIncompatibleVariableOverride]  # derived, not a field
        return self.unit * jnp.eye(self.width, dtype=self.unit.dtype)

    @property
    def W_dec(self) -> Float[Array, "d_sae d_in"]:  # pyright: ignore[reportIncompatibleVariableOverride]  # derived, not a field
        return self.W_enc

    @property
    def d_in(self) -> int:
        return self.width

    @property
    def d_out(self) -> int:
        return self.width

    @property
    def d_sae(self) -> int:
        return self.width

    @property
    def decoder_reads_input(self) -> bool:
        return False

    def encode(self, x: Float[Array, "... d_in"]) -> Float[Array, "... d_sae"]:
        return wide(x)

    def pre_activations(self, x: Float[Array, "... d_in"]) -> Float[Array, "... d_sae"]:
        return wide(x)

    def decode(
        self, acts: Float[Array, "... d_sae"], x: Float[Array, "... d_in"] | None = None
    ) -> Float[Array, "... d_in"]:
        return wide(acts)

    def decoder_scale(self, x: Float[Array, "... d_in"]) -> Float[Array, "..."]:
        return jnp.ones(x.shape[:-1], wide_dtype(x.dtype))

    def slopes(self, x: Float[Array, "... d_in"]) -> Float[Array, "... d_sae"]:
        return jnp.ones_like(wide(x))

    def pull_input(self, x: Float[Array, "n d_in"], covectors: Float[Array, "n d_in"]) -> Float[Array, "n d_in"]:
        return covectors


def slopes_of(activation: AbstractActivation, pre: Float[Array, "... d_sae"]) -> Float[Array, "... d_sae"]:
    """Around a point every latent depends on its own pre-activation alone, so one tangent of ones gives all derivatives."""
    return jax.jvp(activation, (pre,), (jnp.ones_like(pre),))[1]


def _needed(x: Array | None, dictionary: AbstractDictionary) -> Array:
    if x is None:
        raise ValueError(
            f"{type(dictionary).__name__}.decode: this dictionary's output depends on its input; call decode(acts, x) with the x "
            "that was encoded."
        )
    return x


def _check_activation(dictionary: AbstractDictionary, activation: AbstractActivation) -> None:
    if isinstance(dictionary.W_enc, jax.Array) and (misfit := activation.misfit(dictionary.d_sae)):
        raise ValueError(f"{dictionary.origin or type(dictionary).__name__}: {misfit}")
    for array in jax.tree.leaves(activation):
        if isinstance(array, jax.Array) and array.shape not in ((), (dictionary.d_sae,)):
            raise ValueError(
                f"{type(dictionary).__name__}: the arrays of {type(activation).__name__} have one entry a latent, shape "
                f"{(dictionary.d_sae,)}; got {array.shape}."
            )


def _check_shapes(dictionary: AbstractDictionary, **expected: tuple[int, ...]) -> None:
    for name, shape in expected.items():
        array = getattr(dictionary, name)
        # Under transformations leaves can be batched, or stand-ins without a shape; only plain arrays are checked.
        if isinstance(array, jax.Array) and array.shape != shape:
            raise ValueError(f"{type(dictionary).__name__}: `{name}` must have shape {shape}, got {array.shape}.")

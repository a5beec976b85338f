"""What a dictionary is: an encoder to latents, an affine decoder, and what it was trained for."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import ClassVar, TypeAlias

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from .._shown import Shown
from .._sites import Site


class AbstractDictionary(Shown, eqx.Module):
    r"""Splits an activation into latents and an error: `x = decode(encode(x)) + error`.

    The decoder is affine in the latents. Latents and error are then independent coordinates of `x`, and for a scalar `m` of `x` with
    gradient `G`, `dm/d acts = W_dec G` and `dm/d error = G` (Marks et al. 2024, arXiv 2403.19647, §3.1).

    All methods take one activation `[d_in]` or any leading axes; arrays of half precision are widened where they are read, so that
    latents and reconstructions are float32. Arrays are leaves and the rest is static, so a dictionary is an
    ordinary argument of `jax.jit` and `jax.vmap`; `dataclasses.replace` makes one for another site.

    **Attributes:**

    - `reads`, `site`: the site that it encodes and the one that it reconstructs; the same one, but for transcoders. `None`: not known.
    - `processing`: the `process_weights` steps of the model that it was trained on, `()` for none, `None` if that is not known.
    - `origin`: what it was loaded from, for messages and results.
    - `W_enc` `[d_in d_sae]`: one latent's reading direction a column; `W_dec` `[d_sae d_out]`: its writing direction a row.
    """

    LABELS: ClassVar = ("origin", "processing")  # what is said of it, and is no part of what it computes

    reads: eqx.AbstractVar[Site | None]
    site: eqx.AbstractVar[Site | None]
    processing: eqx.AbstractVar[tuple[str, ...] | None]
    origin: eqx.AbstractVar[str]
    W_enc: eqx.AbstractVar[Float[Array, "d_in d_sae"]]
    W_dec: eqx.AbstractVar[Float[Array, "d_sae d_out"]]

    def _facts(self) -> dict[str, str]:
        facts = {"site": str(self.site or "not known"), "origin": self.origin}
        if self.reads != self.site:
            facts = {"reads": str(self.reads or "not known"), **facts}
        if not isinstance(self.W_enc, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
            return facts  # a tree of something else
        activation = type(getattr(self, "activation", None)).__name__
        facts["latents"] = f"{self.d_sae} of {self.d_in}" + (f", {activation}" if activation != "NoneType" else "")
        processed = "not known" if self.processing is None else ", ".join(self.processing) or "none"
        return facts | {"dtype": str(self.W_enc.dtype), "processing": processed}

    @property
    @abc.abstractmethod
    def d_in(self) -> int:
        """How many numbers a position it encodes."""

    @property
    @abc.abstractmethod
    def d_out(self) -> int:
        """How many numbers a position it reconstructs."""

    @property
    @abc.abstractmethod
    def d_sae(self) -> int:
        """How many latents it has."""

    @property
    @abc.abstractmethod
    def decoder_reads_input(self) -> bool:
        """Whether `decode` needs what was encoded: to undo its normalisation, or to pass it on linearly. Then what the decoder reads is
        a site of a run, `site.input`, and decompositions hold it at its clean value.
        """

    @abc.abstractmethod
    def encode(self, x: Float[Array, "... d_in"]) -> Float[Array, "... d_sae"]:
        """The latents of `x`."""

    @abc.abstractmethod
    def pre_activations(self, x: Float[Array, "... d_in"]) -> Float[Array, "... d_sae"]:
        """What the latents are made of: readings of `x`, bias included, before the nonlinearity."""

    @abc.abstractmethod
    def decode(
        self, acts: Float[Array, "... d_sae"], x: Float[Array, "... d_in"] | None = None
    ) -> Float[Array, "... d_out"]:
        """The reconstruction from latents. `x` is the activation that was encoded; a dictionary that normalises its input, or passes
        it on linearly, needs it, others ignore it."""

    @abc.abstractmethod
    def decoder_scale(self, x: Float[Array, "... d_in"]) -> Float[Array, "..."]:
        """The factor by which `decode` stretches `W_dec` at `x`, shape `x.shape[:-1]`: `d decode / d acts = scale * W_dec`. It is 1
        but for dictionaries that normalise their input."""

    @abc.abstractmethod
    def slopes(self, x: Float[Array, "... d_in"]) -> Float[Array, "... d_sae"]:
        """The derivative of each latent at `x` with respect to its own pre-activation, on which alone it depends around `x`: 0 where
        it is off."""

    @abc.abstractmethod
    def pull_input(self, x: Float[Array, "n d_in"], covectors: Float[Array, "n d_in"]) -> Float[Array, "n d_in"]:
        """Covectors of what is multiplied by `W_enc`, as covectors of the input `x`: changed only where the input is normalised."""

    def check_width(self, site: Site, d_in: int, d_out: int) -> None:
        """ValueError unless it reads `d_in` and writes `d_out` numbers a position."""
        if (self.d_in, self.d_out) != (d_in, d_out):
            raise ValueError(
                f"The dictionary at `{site}` maps {self.d_in} numbers to {self.d_out}, and there the model has {d_in} and {d_out}. "
                "Was it trained for another model or another site?"
            )


def anonymous(sae: AbstractDictionary, reads: Site | None = None) -> AbstractDictionary:
    """The same dictionary without what it was trained for, so that those of all layers run one compiled program; `reads` is a site that
    counts layers from elsewhere, if it reads another one than it reconstructs.
    """
    kept = {"site": None, "reads": reads, "processing": None, "origin": ""}
    bare = object.__new__(type(sae))
    for field in dataclasses.fields(sae):
        object.__setattr__(bare, field.name, kept.get(field.name, getattr(sae, field.name)))
    return bare


Saes: TypeAlias = (
    Mapping[Site, AbstractDictionary] | Mapping[str, AbstractDictionary]
)  # dictionaries by site, or by its name

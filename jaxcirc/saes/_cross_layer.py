"""Cross-layer transcoders: each layer's latents read that layer's MLP input and write to its MLP output and to every later one."""

from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_chosen
from .._labels import with_labels
from .._precision import wide
from .._shown import Shown
from .._sites import Site
from ._activations import AbstractActivation
from ._decoders import AbstractDecoder
from ._dictionaries import slopes_of


Latents: TypeAlias = (
    Sequence[int] | Sequence[bool] | Int[Any, " n"] | Bool[Any, " d_sae"]
)  # their numbers, or a mask of all, of NumPy or JAX, or a list


@with_labels("origin")
class CrossLayerTranscoder(Shown, eqx.Module):
    r"""Predicts the MLP outputs of all layers from sparse latents, of which each layer has its own: with `x_i` the value at `reads[i]`,

    $$a_i = \text{activation}_i(x_i W^i_{enc} + b^i_{enc}), \qquad
    y_l \approx \sum_{i \le l} a_i W^{i \to l}_{dec} + b^l_{dec} + x_l W^l_{skip},$$

    the last only where there is a linear path. One latent has one direction for each layer from its own on. Reading is separate from
    writing, so that a set too large for memory runs layer by layer: `encode` takes one layer's encoder, and `decoder_rows` reads no more
    than the directions that are asked for.

    **Arguments:** tuples with one entry a layer

    - `W_enc` `[d_in d_sae]`, `b_enc` `[d_sae]`, `activations`, `b_dec` `[d_out]`; `W_skip` `[d_in d_out]`, or `None` for all layers.
    - `decoders`: of layer `i` the directions `[d_sae n_layers-i d_out]`: `saes.Decoder(W_dec)` in memory, or those that stay in their file.
    - `reads`, `sites`: where each layer reads, and what it reconstructs.
    - `processing`, `origin`: as of an `SAE`.

    **Reference:** Ameisen et al. 2025, "Circuit Tracing: Revealing Computational Graphs in Language Models", Transformer Circuits.

    >>> zeros, site = jnp.zeros(4), jc.Site.parse
    >>> clt = jc.CrossLayerTranscoder(
    ...     W_enc=(jnp.eye(4), jnp.eye(4)),
    ...     b_enc=(zeros, zeros),
    ...     decoders=(jc.saes.Decoder(jnp.ones((4, 2, 4))), jc.saes.Decoder(jnp.ones((4, 1, 4)))),
    ...     b_dec=(zeros, zeros),
    ...     activations=(jc.saes.ReLU(), jc.saes.ReLU()),
    ...     reads=(site("blocks.0.mlp.hook_in"), site("blocks.1.mlp.hook_in")),
    ...     sites=(site("blocks.0.hook_mlp_out"), site("blocks.1.hook_mlp_out")),
    ... )
    >>> acts = [clt.encode(layer, jnp.array([1.0, -1.0, 0.0, 2.0])) for layer in range(clt.n_layers)]
    >>> clt.decode(1, acts).tolist()
    [6.0, 6.0, 6.0, 6.0]
    """

    LABELS: ClassVar = ("origin", "processing")

    W_enc: tuple[Float[Array, "d_in d_sae"], ...]
    b_enc: tuple[Float[Array, " d_sae"], ...]
    decoders: tuple[AbstractDecoder, ...]
    b_dec: tuple[Float[Array, " d_out"], ...]
    activations: tuple[AbstractActivation, ...]
    reads: tuple[Site, ...] = eqx.field(static=True)
    sites: tuple[Site, ...] = eqx.field(static=True)
    W_skip: tuple[Float[Array, "d_in d_out"], ...] | None = eqx.field(default=None, kw_only=True)
    processing: tuple[str, ...] | None = eqx.field(static=True, default=None, kw_only=True)
    origin: str = eqx.field(static=True, default="", kw_only=True)

    def __check_init__(self):
        layers = len(self.W_enc)
        names = ("b_enc", "decoders", "b_dec", "activations", "reads", "sites", *(["W_skip"] if self.W_skip else []))
        if wrong := [name for name in names if len(getattr(self, name)) != layers]:
            raise ValueError(
                f"CrossLayerTranscoder: `W_enc` is of {layers} layers, and `{wrong[0]}` of {len(getattr(self, wrong[0]))}."
            )
        for layer, (W_enc, decoder) in enumerate(zip(self.W_enc, self.decoders, strict=True)):
            expected = (jnp.shape(W_enc)[-1], layers - layer, jnp.shape(self.b_dec[layer])[-1])
            # Under transformations leaves can be batched, or stand-ins without a shape; only plain arrays are checked.
            if not isinstance(W_enc, jax.Array) or W_enc.ndim != 2:
                continue
            if misfit := self.activations[layer].misfit(W_enc.shape[1]):
                raise ValueError(f"{self.origin or 'CrossLayerTranscoder'}: layer {layer}: {misfit}")
            if len(decoder.shape) == 3 and decoder.shape != expected:
                raise ValueError(
                    f"CrossLayerTranscoder: the decoder of layer {layer} has shape {decoder.shape}, expected {expected}: latents, layers "
                    "from its own on, numbers written."
                )

    @property
    def n_layers(self) -> int:
        """How many layers it has latents in."""
        return len(self.W_enc)

    @property
    def d_in(self) -> int:
        """How many numbers a position it encodes."""
        return self.W_enc[0].shape[0]

    @property
    def d_out(self) -> int:
        """How many numbers a position it reconstructs."""
        return self.decoders[0].shape[2]

    @property
    def d_sae(self) -> int:
        """How many latents a layer has."""
        return self.W_enc[0].shape[1]

    @property
    def decoder_reads_input(self) -> bool:
        """Whether `decode` needs what the layer reads, to pass it on linearly."""
        return self.W_skip is not None

    def encode(self, layer: int, x: Float[Array, "... d_in"]) -> Float[Array, "... d_sae"]:
        """The latents of `layer` at `x`, the value at `reads[layer]`."""
        return self.activations[layer](self.pre_activations(layer, x))

    def slopes(self, layer: int, x: Float[Array, "... d_in"]) -> Float[Array, "... d_sae"]:
        """The derivative of each latent of `layer` with respect to its own pre-activation: 0 where it is off."""
        return slopes_of(self.activations[layer], self.pre_activations(layer, x))

    def pre_activations(self, layer: int, x: Float[Array, "... d_in"]) -> Float[Array, "... d_sae"]:
        """What the latents of `layer` are made of at `x`, before the nonlinearity."""
        # [... d_in] · [d_in d_sae] -> [... d_sae]
        return wide(x) @ wide(self.W_enc[layer]) + wide(self.b_enc[layer])

    def decode(
        self, layer: int, acts: Sequence[Float[Array, "... d_sae"]], x: Float[Array, "... d_in"] | None = None
    ) -> Float[Array, "... d_out"]:
        """The reconstruction at `sites[layer]`.

        **Arguments:** - `acts`: the latents of layers 0 to `layer`, in order; later ones are passed over. - `x`: the value at
        `reads[layer]`, which is needed where there is a linear path.
        """
        if len(acts) <= layer:
            raise ValueError(
                f"CrossLayerTranscoder.decode: layer {layer} is written to by the latents of layers 0 to {layer}, and acts holds "
                f"{len(acts)} of them."
            )
        if self.W_skip is not None and x is None:
            raise ValueError(
                f"CrossLayerTranscoder.decode: layer {layer} passes its input on linearly; call decode(layer, acts, x) with the x that "
                "was encoded."
            )
        written = [self.decoders[i].decode(acts[i], layer - i) for i in range(layer + 1)]
        recon = sum(written[1:], written[0]) + wide(self.b_dec[layer])
        return recon if self.W_skip is None or x is None else recon + wide(x) @ wide(self.W_skip[layer])

    def encoder_rows(self, layer: int, latents: Latents) -> Float[Array, "n d_in"]:
        """What `latents` of `layer` read, a row each."""
        return wide(self.W_enc[layer][:, jnp.asarray(self._checked(layer, latents))].T)

    def decoder_rows(self, layer: int, latents: Latents, target: int) -> Float[Array, "n d_out"]:
        """What `latents` of `layer` write at `sites[target]`, a row each; of a decoder in its file only these rows are read."""
        if not layer <= target < self.n_layers:
            raise ValueError(
                f"decoder_rows: latents of layer {layer} write to layers {layer} to {self.n_layers - 1}, got target {target}."
            )
        return self.decoders[layer].rows(self._checked(layer, latents), target - layer)

    def _checked(self, layer: int, latents: Latents) -> Int[Any, " n"]:
        if isinstance(latents, Tracer):  # its numbers are not known yet; JAX keeps them inside the array
            return latents
        chosen, count = check_chosen("latents", "latents", latents), self.W_enc[layer].shape[1]
        chosen.check_among("latents", f"latents in layer {layer}", count)
        indices = chosen.indices
        if indices.size and not (indices.min() >= 0 and indices.max() < count):
            raise ValueError(
                f"latents: layer {layer} has {count} of them, from 0 on, got {indices.min()} to {indices.max()}."
            )
        return indices

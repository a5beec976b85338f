"""One layer of a cross-layer transcoder from its files."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from ..._precision import wide_dtype
from ...saes import AbstractActivation, AbstractDecoder, Decoder, JumpReLU, ReLU, TopK
from .._read import contents
from ._circuit_tracer import CONFIG
from ._releases import k_of
from ._source import Source
from ._stored import SafetensorsTensor
from ._tensors import checked, Table


_GEMMA_TENSORS: Table = {
    "w_enc": "d_in d_sae",
    "w_dec": "d_sae target d_out",
    "b_enc": "d_sae",
    "b_dec": "d_out",
    "threshold": "d_sae",
    "affine_skip_connection": "d_in d_out",
}


class StoredDecoder(AbstractDecoder):
    """Directions that stay in their safetensors file: what is asked for is read, row by row. Not for `jax.jit`, which cannot read files."""

    tensor: SafetensorsTensor = eqx.field(static=True)
    first: int = eqx.field(static=True)  # the slot of the latents' own layer
    dtype: str | None = eqx.field(static=True)  # `None`: as stored

    @property
    def shape(self) -> tuple[int, int, int]:
        d_sae, slots, d_out = self.tensor.shape
        return d_sae, slots - self.first, d_out

    def rows(self, latents: Int[Any, " n"], target: int) -> Float[Array, "n d_out"]:
        indices = np.asarray(self._known(latents))
        read = self.tensor.rows(indices, self.first + target)
        return jax.device_put(read.astype(wide_dtype(self.dtype or read.dtype)))

    def decode(self, acts: Float[Array, "... d_sae"], target: int) -> Float[Array, "... d_out"]:
        known = np.asarray(self._known(acts))
        on = np.flatnonzero(known.reshape(-1, known.shape[-1]).any(0))
        rows = self.rows(on, target)
        # [... on] · [on d_out] -> [... d_out]
        return jnp.asarray(known[..., on], rows.dtype) @ rows

    def _known(self, array: Any) -> Any:
        if isinstance(array, Tracer):
            raise ValueError(
                f"The directions of this decoder are in {self.tensor.path}, and a compiled function cannot read files. Call it outside of "
                "jax.jit and jax.vmap, or load the transcoder with decoders='in memory'."
            )
        return array


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """One layer's arrays, as they become leaves."""

    W_enc: Array
    b_enc: Array
    b_dec: Array
    activation: AbstractActivation
    decoder: AbstractDecoder
    W_skip: Array | None


def read_tracer(source: Source, layer: int, layers: int, config: Mapping[str, object], held: bool) -> Layer:
    """Reads one layer of circuit-tracer's format, `W_enc_3.safetensors` and `W_dec_3.safetensors`, with slots from layer 3 on."""
    axes = {"W_enc": "d_sae d_in", "b_enc": "d_sae", "b_dec": "d_out", "threshold": "d_sae"}
    if f"b_enc_{layer}" not in source.state and (source.path.parent / "factors.safetensors").is_file():
        raise ValueError(
            f"{source.name} is of a cross-layer transcoder without biases, with factors.safetensors beside it: its largest latents are "
            "chosen over all layers together, which is not supported."
        )
    table = {f"{name}_{layer}": of for name, of in axes.items()}
    tensors, sizes = checked(source.state, table, source, optional=(f"threshold_{layer}",))
    encoder = {name: tensors[f"{name}_{layer}"] for name in axes if f"{name}_{layer}" in tensors}
    path = source.path.with_name(f"W_dec_{layer}.safetensors")
    if not path.is_file():
        raise ValueError(
            f"{source.path.parent}: {path.name} is missing, the directions of {source.path.name}. Download it too."
        )
    written = dataclasses.replace(source, path=path)
    decoder = _decoder(written, f"W_dec_{layer}", sizes, 0, layer, layers, held)
    threshold = encoder.get("threshold")
    return Layer(
        W_enc=source.leaf(encoder["W_enc"].T),
        b_enc=source.leaf(encoder["b_enc"]),
        b_dec=source.leaf(encoder["b_dec"]),
        activation=_activation(config, threshold, source),
        decoder=decoder,
        W_skip=None,
    )


def read_gemma(source: Source, layer: int, layers: int, config: Mapping[str, object], held: bool) -> Layer:
    """Reads one layer of Gemma Scope 2, which has a slot for every layer; those before its own are not used."""
    state = {name: value for name, value in source.state.items() if name != "w_dec"}
    table = {name: axes for name, axes in _GEMMA_TENSORS.items() if name != "w_dec"}
    tensors, sizes = checked(state, table, source, optional=("affine_skip_connection",))
    skip = tensors.get("affine_skip_connection")
    return Layer(
        W_enc=source.leaf(tensors["w_enc"]),
        b_enc=source.leaf(tensors["b_enc"]),
        b_dec=source.leaf(tensors["b_dec"]),
        activation=_activation(config, tensors["threshold"], source),
        decoder=_decoder(source, "w_dec", sizes, layer, layer, layers, held),
        W_skip=None if skip is None else source.leaf(skip),
    )


def _decoder(
    source: Source, name: str, sizes: Mapping[str, int], first: int, layer: int, layers: int, held: bool
) -> AbstractDecoder:
    """Makes the decoder of `layer`, whose own slot is `first`; it writes to the layers from its own to the last."""
    expected = (sizes["d_sae"], layers - layer + first, sizes["d_out"])
    tensor = source.state.get(name)
    if not isinstance(tensor, SafetensorsTensor):
        raise ValueError(f"{source.name} misses `{name}`. {contents(source.path.parent)}")
    if tensor.shape != expected:
        raise ValueError(
            f"{source.name}: `{name}` has shape {list(tensor.shape)}, expected {list(expected)}: latents, layers written to, numbers. "
            f"There are files for {layers} layers: is one missing?"
        )
    if not held:
        return StoredDecoder(tensor, first, None if source.dtype is None else str(jnp.dtype(source.dtype)))
    array = checked({name: tensor}, {name: "d_sae target d_out"}, source)[0][name]
    return Decoder(source.leaf(array[:, first:]))


def _activation(config: Mapping[str, object], threshold: np.ndarray | None, source: Source) -> AbstractActivation:
    name = config.get("activation")
    if name is None and threshold is not None:
        return JumpReLU(source.leaf(threshold))
    if name in (None, "relu"):
        return ReLU()
    k = config.get("k") or k_of(source.repository)
    if name != "topk" or isinstance(k, bool) or not isinstance(k, int):
        raise ValueError(
            f"{source.name}: activation {name!r} with k {k!r} of {CONFIG} is not supported. Supported are relu, and topk with its k."
        )
    return TopK(k, rectified=False)

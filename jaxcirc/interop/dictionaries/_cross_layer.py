"""Cross-layer transcoders from files: circuit-tracer's, and those of Gemma Scope 2."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ..._sites import Kind, Site
from ...saes import AbstractActivation, AbstractDecoder, CrossLayerTranscoder, Decoder, JumpReLU, ReLU, TopK
from ...saes._processing import check_steps
from .._read import contents
from ._circuit_tracer import CONFIG
from ._releases import k_of
from ._sites import of_tracer_hook
from ._source import find, read_yaml, Source
from ._stored import SafetensorsTensor
from ._tensors import checked, Table


_ENCODER = re.compile(r"W_enc_(\d+)\.safetensors")
_GEMMA = re.compile(r"layer_(\d+)(?:_.*)?")
_GEMMA_TENSORS: Table = {
    "w_enc": "d_in d_sae",
    "w_dec": "d_sae target d_out",
    "b_enc": "d_sae",
    "b_dec": "d_out",
    "threshold": "d_sae",
    "affine_skip_connection": "d_in d_out",
}
_HELD = "in memory"


class StoredDecoder(AbstractDecoder):
    """Directions that stay in their safetensors file: what is asked for is read, row by row. Not for `jax.jit`, which cannot read files."""

    tensor: SafetensorsTensor = eqx.field(static=True)
    first: int = eqx.field(static=True)  # the slot of the latents' own layer

    @property
    def shape(self) -> tuple[int, int, int]:
        d_sae, slots, d_out = self.tensor.shape
        return d_sae, slots - self.first, d_out

    def rows(self, latents: Int[Any, " n"], target: int) -> Float[Array, "n d_out"]:
        indices = np.asarray(self._known(latents))
        if not len(indices):
            return jnp.zeros((0, self.shape[2]))
        read = self.tensor.rows(indices, self.first + target)
        return jax.device_put(read if read.dtype == np.float64 else read.astype(np.float32))

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


@dataclasses.dataclass(frozen=True)
class _Layer:
    """One layer's arrays, as they become leaves."""

    W_enc: Array
    b_enc: Array
    b_dec: Array
    activation: AbstractActivation
    decoder: AbstractDecoder
    W_skip: Array | None


def load_cross_layer_transcoder(
    path_or_id: str | Path,
    *,
    decoders: str = _HELD,
    reads: Kind | None = None,
    writes: Kind | None = None,
    processing: Iterable[str] | None = (),
    dtype: DTypeLike | None = None,
    revision: str | None = None,
) -> CrossLayerTranscoder:
    """Loads a cross-layer transcoder: latents of each layer that write to the MLP outputs of their own layer and of all later ones.

    **Arguments:**

    - `path_or_id`: a folder of circuit-tracer (config.yaml, `W_enc_0.safetensors`, `W_dec_0.safetensors` and so on), or one with Gemma
      Scope 2's file for each layer, `layer_0_….safetensors`; or a Hub id, `repo/name` or `repo/name:folder` (with `revision`).
    - `decoders`: `"in memory"`, or `"in files"`, where they stay until directions are asked for: `clt.decoder_rows` then reads those rows
      alone, and `clt.decode` those of the latents that are on. Every latent has a direction for each later layer, and all of them
      together are a hundred gigabytes for a model of 2 billion weights.
    - `reads`, `writes`: where each layer reads and what it reconstructs, such as `jc.Kind.MLP_IN` and `jc.Kind.MLP_OUT`, in place of what
      config.yaml says.
    - `processing`: the `process_weights` steps of the model that it was trained on; both kinds are of models as they are.
    - `dtype`: of the arrays; by default as stored, half precision as float32.

    **Raises:** `ValueError` for a layer whose file is missing, tensors that do not fit each other, a hook that is not known, and a set with
    another rule than a threshold, ReLU or top k in each layer.
    """
    if decoders not in (_HELD, "in files"):
        raise ValueError(f"load_cross_layer_transcoder: decoders must be {_HELD!r} or 'in files', got {decoders!r}.")
    root, repository = find(path_or_id, revision, tree="*")
    if not root.is_dir():
        raise ValueError(f"{root} is a file, and a cross-layer transcoder is a folder with files for each layer.")
    config = read_yaml(root / CONFIG) if (root / CONFIG).is_file() else {}
    read, files = _format(root)
    sources = [Source(path, repository, None, dtype) for path in files]
    ends = _ends(config, len(sources), root, reads, writes)
    layers = [read(source, i, len(sources), config, decoders == _HELD) for i, source in enumerate(sources)]
    _check_alike(layers, root)
    return CrossLayerTranscoder(
        W_enc=tuple(layer.W_enc for layer in layers),
        b_enc=tuple(layer.b_enc for layer in layers),
        decoders=tuple(layer.decoder for layer in layers),
        b_dec=tuple(layer.b_dec for layer in layers),
        activations=tuple(layer.activation for layer in layers),
        reads=tuple(read_at for read_at, _ in ends),
        sites=tuple(site for _, site in ends),
        W_skip=_skips(layers),
        processing=None if processing is None else check_steps(processing),
        origin=f"{repository or root} (cross-layer transcoder)",
    )


def _format(root: Path) -> tuple[Callable[..., _Layer], list[Path]]:
    """Tells the format by the names of the files, and lists one file a layer."""
    named = {int(match[1]): path for path in root.iterdir() if (match := _ENCODER.fullmatch(path.name)) is not None}
    if named:
        return _read_tracer, _in_order(named, root, "W_enc_{}.safetensors")
    of_layers: dict[int, Path] = {}
    for path in sorted(root.rglob("*.safetensors")):
        inside = path.relative_to(root)
        name = inside.stem if len(inside.parts) == 1 else inside.parts[0]
        if (match := _GEMMA.fullmatch(name)) is None:
            continue
        if int(match[1]) in of_layers:
            raise ValueError(
                f"{root} holds two files for layer {match[1]}, {of_layers[int(match[1])].name} and {path.name}. Give a folder with one "
                "set: one "
                "width and one sparsity."
            )
        of_layers[int(match[1])] = path
    if not of_layers:
        raise ValueError(
            f"{root} holds no cross-layer transcoder: expected W_enc_0.safetensors and so on, or one file a layer, layer_0_….safetensors. "
            f"{contents(root)}"
        )
    return _read_gemma, _in_order(of_layers, root, "the file of layer {}")


def _in_order(files: Mapping[int, Path], root: Path, name: str) -> list[Path]:
    if missing := sorted(set(range(max(files))) - set(files)):
        raise ValueError(
            f"{root}: {name.format(missing[0])} is missing, and there is one for layer {max(files)}. A cross-layer transcoder takes all "
            "layers: "
            "download it too."
        )
    return [files[i] for i in range(len(files))]


def _ends(
    config: Mapping[str, object], layers: int, root: Path, reads: Kind | None, writes: Kind | None
) -> list[tuple[Site, Site]]:
    kind = config.get("model_kind", "cross_layer_transcoder")
    if kind != "cross_layer_transcoder":
        raise ValueError(f"{root / CONFIG}: model_kind is {kind!r}, not a cross-layer transcoder. Use jc.load_saes.")
    given = {"feature_input_hook": reads, "feature_output_hook": writes}
    if missing := [name for name, chosen in given.items() if chosen is None and name not in config]:
        raise ValueError(
            f"{root}: nothing says where it reads and writes: no {missing[0]} of {CONFIG}. Pass reads=jc.Kind.… and writes=jc.Kind.…."
        )

    def site(layer: int, name: str) -> Site:
        chosen = given[name]
        return of_tracer_hook(config[name], layer, str(root), name) if chosen is None else Site(layer, chosen)

    return [(site(layer, "feature_input_hook"), site(layer, "feature_output_hook")) for layer in range(layers)]


def _read_tracer(source: Source, layer: int, layers: int, config: Mapping[str, object], held: bool) -> _Layer:
    """Reads one layer of circuit-tracer's format, `W_enc_3.safetensors` and `W_dec_3.safetensors`, with slots from layer 3 on."""
    axes = {"W_enc": "d_sae d_in", "b_enc": "d_sae", "b_dec": "d_out", "threshold": "d_sae"}
    if f"b_enc_{layer}" not in source.state and (source.path.parent / "factors.safetensors").is_file():
        raise ValueError(
            f"{source.name} is of a cross-layer transcoder without biases, with factors.safetensors beside it: its largest latents are "
            "chosen "
            "over all layers together, which is not supported."
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
    return _Layer(
        W_enc=source.leaf(encoder["W_enc"].T),
        b_enc=source.leaf(encoder["b_enc"]),
        b_dec=source.leaf(encoder["b_dec"]),
        activation=_activation(config, threshold, source),
        decoder=decoder,
        W_skip=None,
    )


def _read_gemma(source: Source, layer: int, layers: int, config: Mapping[str, object], held: bool) -> _Layer:
    """Reads one layer of Gemma Scope 2, which has a slot for every layer; those before its own are not used."""
    state = {name: value for name, value in source.state.items() if name != "w_dec"}
    table = {name: axes for name, axes in _GEMMA_TENSORS.items() if name != "w_dec"}
    tensors, sizes = checked(state, table, source, optional=("affine_skip_connection",))
    skip = tensors.get("affine_skip_connection")
    return _Layer(
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
            "There are "
            f"files for {layers} layers: is one missing?"
        )
    if not held:
        return StoredDecoder(tensor, first)
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


def _check_alike(layers: list[_Layer], root: Path) -> None:
    """ValueError if only some layers have a threshold: a file is then missing a tensor, or is of another set."""
    kinds = [type(layer.activation) for layer in layers]
    if len(set(kinds)) > 1:
        other = next(i for i, kind in enumerate(kinds) if kind != kinds[0])
        raise ValueError(
            f"{root}: layer 0 has the activation {kinds[0].__name__} and layer {other} {kinds[other].__name__}. All layers have "
            "thresholds, or "
            "none has."
        )


def _skips(layers: list[_Layer]) -> tuple[Array, ...] | None:
    skips = [layer.W_skip for layer in layers if layer.W_skip is not None]
    if skips and len(skips) < len(layers):
        raise ValueError(
            f"Of {len(layers)} layers {len(skips)} have a linear path (`affine_skip_connection`): all have one, or none."
        )
    return tuple(skips) if skips else None

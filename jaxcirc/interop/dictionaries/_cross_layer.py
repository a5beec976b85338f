"""Cross-layer transcoders from files: circuit-tracer's, and those of Gemma Scope 2."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from jax.typing import DTypeLike
from jaxtyping import Array

from ..._sites import Kind, Site
from ...saes import CrossLayerTranscoder
from ...saes._processing import check_steps
from .._read import contents
from .._tensors import checked_dtype
from ._circuit_tracer import CONFIG
from ._cross_layer_files import Layer, read_gemma, read_tracer
from ._find import find
from ._hooks import of_tracer_hook
from ._source import read_yaml, Source


_ENCODER = re.compile(r"W_enc_(\d+)\.safetensors")
_GEMMA = re.compile(r"layer_(\d+)(?:_.*)?")
_HELD = "in memory"


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
    dtype = None if dtype is None else checked_dtype(dtype)
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


def _format(root: Path) -> tuple[Callable[..., Layer], list[Path]]:
    """Tells the format by the names of the files, and lists one file a layer."""
    named = {int(match[1]): path for path in root.iterdir() if (match := _ENCODER.fullmatch(path.name)) is not None}
    if named:
        return read_tracer, _in_order(named, root, "W_enc_{}.safetensors")
    of_layers: dict[int, Path] = {}
    for path in sorted(root.rglob("*.safetensors")):
        inside = path.relative_to(root)
        name = inside.stem if len(inside.parts) == 1 else inside.parts[0]
        if (match := _GEMMA.fullmatch(name)) is None:
            continue
        if int(match[1]) in of_layers:
            raise ValueError(
                f"{root} holds two files for layer {match[1]}, {of_layers[int(match[1])].name} and {path.name}. Give a folder with one "
                "set: one width and one sparsity."
            )
        of_layers[int(match[1])] = path
    if not of_layers:
        raise ValueError(
            f"{root} holds no cross-layer transcoder: expected W_enc_0.safetensors and so on, or one file a layer, layer_0_….safetensors. "
            f"{contents(root)}"
        )
    return read_gemma, _in_order(of_layers, root, "the file of layer {}")


def _in_order(files: Mapping[int, Path], root: Path, name: str) -> list[Path]:
    if missing := sorted(set(range(max(files))) - set(files)):
        raise ValueError(
            f"{root}: {name.format(missing[0])} is missing, and there is one for layer {max(files)}. A cross-layer transcoder takes all "
            "layers: download it too."
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


def _check_alike(layers: list[Layer], root: Path) -> None:
    """ValueError if only some layers have a threshold: a file is then missing a tensor, or is of another set."""
    kinds = [type(layer.activation) for layer in layers]
    if len(set(kinds)) > 1:
        other = next(i for i, kind in enumerate(kinds) if kind != kinds[0])
        raise ValueError(
            f"{root}: layer 0 has the activation {kinds[0].__name__} and layer {other} {kinds[other].__name__}. All layers have "
            "thresholds, or none has."
        )


def _skips(layers: list[Layer]) -> tuple[Array, ...] | None:
    skips = [layer.W_skip for layer in layers if layer.W_skip is not None]
    if skips and len(skips) < len(layers):
        raise ValueError(
            f"Of {len(layers)} layers {len(skips)} have a linear path (`affine_skip_connection`): all have one, or none."
        )
    return tuple(skips) if skips else None

"""Lenses on disk: safetensors files of ours, with all that a lens knows; and the PyTorch files that are published.

A published file is `{"J": {layer: [d_model, d_model]}, "n_prompts", "source_layers", "d_model"}`, in float16; a checkpoint of its fitting
has `jacobian_sum`, `n_done`, `next_idx`, `target_layer` and `skip_first` instead. Both are read, weights only. What a published file
says besides is kept, and written again.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from .._checks import check_path
from .._files import open_safetensors, read_safetensors, read_torch, writing_file
from ._running import Running
from ._settings import LensSettings


_FORMAT = "jaxcirc Jacobian lens"
_PARTS = ("mean", "weight", "prompts", "spread")
_KNOWN = {"J", "n_prompts", "source_layers", "d_model", "target_layer", "skip_first", "rule", "average", "model"}
SUFFIXES = (".safetensors", ".pt")


class Stored(NamedTuple):
    """A lens as a file holds it, and `progress`, where the file is a checkpoint: how far the fitting was."""

    means: dict[int, Running]
    settings: LensSettings
    n_prompts: int
    n_skipped: int
    centres: dict[int, Any] | None
    progress: dict[str, Any] | None = None
    history: tuple[tuple[int, float, float], ...] = ()


def check_suffix(name: str, path: str | Path) -> Path:
    """`path` as a path. **Raises:** `ValueError` unless its suffix is that of a kind of file that a lens can be; `ImportError` for one
    that PyTorch writes, without it.
    """
    path = check_path(name, path)
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{name}: a lens is written as {' or '.join(SUFFIXES)} (the latter is what is published), got {path.name!r}."
        )
    if path.suffix == ".pt":
        _torch()
    return path


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise ImportError(
            "A .pt file is written by PyTorch: pip install 'jaxcirc[torch]'. A .safetensors file needs none."
        ) from None
    return torch


def write(path: Path, stored: Stored, *, dtype: str | None = None) -> None:
    """Writes a lens, all or nothing. A PyTorch file holds the means in float16 unless told otherwise, and no standard errors.

    **Raises:** `ImportError` without PyTorch for such a file; `ValueError` for numbers that the dtype cannot hold.
    """
    dtype = dtype or ("float16" if path.suffix == ".pt" and stored.progress is None else "float32")
    if path.suffix == ".pt":
        _write_torch(path, stored, dtype)
        return
    tensors = {
        f"{part}.{layer}": _as(getattr(running, part), dtype if part == "mean" else "float32", layer)
        for layer, running in stored.means.items()
        for part in _PARTS
    }
    tensors |= {f"centres.{layer}": np.asarray(x) for layer, x in (stored.centres or {}).items()}
    about = {
        "settings": dataclasses.asdict(stored.settings),
        "n_prompts": stored.n_prompts,
        "n_skipped": stored.n_skipped,
        "progress": stored.progress,
        "history": stored.history,
    }
    with writing_file(path) as aside:
        save_file(tensors, aside, metadata={"format": _FORMAT, "lens": json.dumps(about)})


def _as(array: Any, dtype: str, layer: int) -> np.ndarray:
    array = np.asarray(array)
    if dtype == "float32" and array.dtype == np.float64:
        return array  # of a model in float64, whose lens is exact
    with np.errstate(over="ignore"):
        out = array.astype(dtype)
    if not np.isfinite(out).all() and np.isfinite(array).all():
        raise ValueError(
            f"The lens of layer {layer} has entries up to {float(np.abs(array).max()):.3g}, more than {dtype} can hold. Write it with "
            "dtype='float32'."
        )
    return out


def _write_torch(path: Path, stored: Stored, dtype: str) -> None:
    torch = _torch()
    tensor = lambda x, layer: torch.from_numpy(np.array(_as(x, dtype, layer)))
    alone = lambda x: x[0] if stored.settings.average == "corpus" else x
    layers, settings = sorted(stored.means), stored.settings
    held: dict[str, Any] = dict(settings.more) | {
        "source_layers": layers,
        "d_model": int(stored.means[layers[0]].mean.shape[-1]),
        "target_layer": settings.target_layer,
    }
    if settings.skip_first is not None:
        held["skip_first"] = settings.skip_first
    held |= {name: getattr(settings, name) for name in ("rule", "average", "model", "fingerprint")}
    if stored.centres is not None:
        held["centres"] = {layer: torch.from_numpy(np.array(x)) for layer, x in stored.centres.items()}
    if stored.progress is None:
        held |= {"J": {layer: tensor(alone(stored.means[layer].mean), layer) for layer in layers}}
        held |= {"n_prompts": stored.n_prompts, "n_skipped": stored.n_skipped}
    else:
        whole = lambda running: alone(running.mean * running.weight[:, None, None])
        held |= {"jacobian_sum": {layer: tensor(whole(stored.means[layer]), layer) for layer in layers}}
        held |= {"n_done": stored.n_prompts, "n_skipped": stored.n_skipped, "next_idx": stored.progress["next"]}
        of = {
            name: [np.asarray(getattr(stored.means[layer], name)).tolist() for layer in layers] for name in _PARTS[1:]
        }
        held["jaxcirc"] = json.dumps({"progress": stored.progress, "history": stored.history, **of})
    with writing_file(path) as aside:
        torch.save(held, aside)


def read(path: str | Path) -> Stored:
    """Reads a lens, or a checkpoint of one.

    **Raises:** `ValueError` for a file that is neither, and for a pickle that holds more than weights, which is not loaded;
    `FileNotFoundError`; `ImportError` for a PyTorch file without PyTorch.
    """
    path = check_path("JacobianLens.load: path", path)
    if not path.is_file():
        raise FileNotFoundError(2, "There is no such lens file", str(path))
    with path.open("rb") as file:
        begins = file.read(9)
    return _read_own(path) if begins[8:] == b"{" or path.suffix == ".safetensors" else _read_published(path)


def _read_own(path: Path) -> Stored:
    with open_safetensors(path) as file:
        about = file.metadata() or {}
    if about.get("format") != _FORMAT:
        raise ValueError(
            f"{path} is a safetensors file, and not of a lens. Expected one that JacobianLens.save wrote, or a published .pt file."
        )
    tensors, lens = read_safetensors(path), json.loads(about["lens"])
    layers = sorted(int(name.removeprefix("mean.")) for name in tensors if name.startswith("mean."))
    given = lens["settings"]
    settings = LensSettings(**{**given, "more": tuple((name, value) for name, value in given["more"])})
    means = {layer: Running(*(_wide(tensors[f"{part}.{layer}"]) for part in _PARTS)) for layer in layers}
    centres = {layer: jnp.asarray(tensors[f"centres.{layer}"]) for layer in layers if f"centres.{layer}" in tensors}
    return Stored(
        means, settings, lens["n_prompts"], lens["n_skipped"], centres or None, lens["progress"], _history(lens)
    )


def _history(held: Mapping[str, Any]) -> tuple[tuple[int, float, float], ...]:
    return tuple((int(number), float(size), float(moved)) for number, size, moved in held.get("history", ()))


def _wide(array: np.ndarray) -> Any:
    return jnp.asarray(array.astype(np.float32) if array.dtype.itemsize < 4 else array)


def _read_published(path: Path) -> Stored:
    held = read_torch(path)
    expected = (
        "Expected a lens, {'J': {layer: [d_model, d_model]}, 'n_prompts': …}, or a checkpoint with 'jacobian_sum'."
    )
    if not isinstance(held, Mapping) or not ({"J", "jacobian_sum"} & set(held)):
        names = f"with {', '.join(map(str, list(held)[:8]))}" if isinstance(held, Mapping) else type(held).__name__
        raise ValueError(
            f"{path} is not a lens: it holds {'a dict ' if isinstance(held, Mapping) else 'a '}{names}. {expected}"
        )
    is_checkpoint = "J" not in held
    matrices = _by_layer(held["jacobian_sum" if is_checkpoint else "J"], held, path)
    prompts = int(held.get("n_done" if is_checkpoint else "n_prompts", 1))
    if prompts < 1:
        raise ValueError(f"{path} is a lens of no prompts. Fit it to some: jc.fit_lens(model, prompts, checkpoint=…).")
    own = json.loads(held["jaxcirc"]) if "jaxcirc" in held else None
    clustered, several = held.get("centres"), held.get("average", "corpus") != "corpus"
    means = {}
    for i, (layer, matrix) in enumerate(matrices.items()):
        mean = matrix if several else matrix[None]
        weight, count, spread = (
            [jnp.asarray(own[name][i], mean.dtype) for name in _PARTS[1:]]
            if own
            else [jnp.full(len(mean), x, mean.dtype) for x in (prompts, prompts, np.nan)]
        )
        means[layer] = Running(mean / weight[:, None, None] if is_checkpoint else mean, weight, count, spread)
    # Not said: the last. Counted from the end, it stays so until there is a model.
    target = -1 if held.get("target_layer") is None else int(held["target_layer"])
    if 0 <= target < max(matrices):
        raise ValueError(
            f"{path}: its maps lead from layers {sorted(matrices)} to layer {target}. Expected a target_layer behind all of them."
        )
    more = {name: value for name, value in held.items() if isinstance(value, str | int | float) and name not in _OURS}
    settings = LensSettings(
        target_layer=target,
        skip_first=None if held.get("skip_first") is None else int(held["skip_first"]),
        rule=str(held.get("rule", "exact")),
        average=str(held.get("average", "corpus")),
        model=str(held.get("model", "")),
        fingerprint=str(held.get("fingerprint", "")),
        more=tuple(sorted(more.items())),
    )
    progress = own["progress"] if own else {"next": int(held.get("next_idx", prompts))} if is_checkpoint else None
    centres = None if clustered is None else {int(layer): jnp.asarray(x.numpy()) for layer, x in clustered.items()}
    return Stored(means, settings, prompts, int(held.get("n_skipped", 0)), centres, progress, _history(own or {}))


_OURS = _KNOWN | {"n_done", "n_skipped", "next_idx", "fingerprint", "jaxcirc"}


def _by_layer(matrices: Any, held: Mapping[str, Any], path: Path) -> dict[int, Any]:
    """The matrices of a published file by layer, whether it has them so or stacked in the order of its `source_layers`."""
    if not isinstance(matrices, Mapping):
        stacked = list(matrices) if isinstance(matrices, Iterable) else []
        layers = list(held.get("source_layers", range(len(stacked))))
        if len(layers) != len(stacked):
            raise ValueError(
                f"{path}: expected a matrix for each of its source_layers, {layers}; got {len(stacked)} of them."
            )
        matrices = dict(zip(layers, stacked, strict=True))
    if bad := [layer for layer in matrices if not str(layer).isdecimal()]:
        raise ValueError(f"{path}: expected the numbers of layers, from 0; got {bad[0]!r}.")
    if bad := [matrix for matrix in matrices.values() if not isinstance(matrix, _torch().Tensor)]:
        raise ValueError(f"{path}: expected a tensor for each layer, got a {type(bad[0]).__name__}.")
    found = {
        int(layer): jnp.asarray(matrix.float().numpy() if matrix.dtype.itemsize < 4 else matrix.numpy())
        for layer, matrix in matrices.items()
    }
    if not found:
        raise ValueError(f"{path} is a lens without layers.")
    shapes = {matrix.shape for matrix in found.values()}
    d_model = next(iter(shapes))[-1]
    if len(shapes) > 1 or next(iter(shapes))[-2:] != (d_model, d_model) or held.get("d_model", d_model) != d_model:
        raise ValueError(
            f"{path}: expected one square matrix [d_model, d_model] for each layer, of one width; got shapes "
            f"{sorted(map(list, shapes))} and d_model {held.get('d_model')}."
        )
    for layer, matrix in found.items():
        if not bool(jnp.isfinite(matrix).all()):
            raise ValueError(f"{path}: the lens of layer {layer} holds NaN or infinite values.")
    return dict(sorted(found.items()))

"""Checkpoint folders: which file holds the weights, and what is in it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .._files import read_safetensors, read_torch


def read_flax(path: Path) -> dict[str, object]:
    """Reads the tensors of a `flax_model.msgpack`, by dotted name."""
    try:
        from flax import serialization, traverse_util
    except ImportError:
        raise ImportError(
            f"{path.name} is a Flax file, and reading it takes Flax: pip install 'jaxcirc[flax]'. A safetensors file needs neither."
        ) from None
    try:
        tree = serialization.msgpack_restore(path.read_bytes())
        return dict(traverse_util.flatten_dict(tree, sep="."))
    except Exception as error:  # msgpack raises a dozen kinds of error on bytes that are not its own
        raise ValueError(
            f"{path} is not a whole Flax msgpack file ({type(error).__name__}: {error}). Download it again."
        ) from None


def _read_pytorch(path: Path) -> dict[str, object]:
    state = read_torch(path)
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}; expected a state dict, tensors by name.")
    return state


# In the order in which they are looked for: the key table's column, and the reader.
FORMATS: dict[str, tuple[str, Callable[[Path], Mapping[str, object]]]] = {
    "model.safetensors": ("torch", read_safetensors),
    "pytorch_model.bin": ("torch", _read_pytorch),
    "flax_model.msgpack": ("flax", read_flax),
}


def read_folder(folder: Path, file: str | None = None) -> tuple[dict[str, object], str, dict[str, Any]]:
    """Reads the stored tensors, the kind of names they have (`"torch"` or `"flax"`), and the configuration.

    **Arguments:** - `file`: the weights file of the folder; `None` takes the first there is of safetensors, PyTorch, Flax, each whole or
    in shards.
    """
    config = read_configuration(folder)
    name = weights_file(folder) if file is None else file
    kind, reader = FORMATS[name.removesuffix(".index.json")]
    if not name.endswith(".index.json"):
        return dict(reader(folder / name)), kind, config
    return _read_shards(folder, name, reader), kind, config


def weights_file(folder: Path) -> str:
    """Finds the first weights file of `folder`, or the index of its shards."""
    candidates = [name + suffix for name in FORMATS for suffix in ("", ".index.json")]
    for name in candidates:
        if (folder / name).is_file():
            return name
    raise ValueError(
        f"{folder} holds no weights: expected one of {', '.join(FORMATS)}, or an index of shards. {contents(folder)}"
    )


def contents(folder: Path, most: int = 8) -> str:
    """Says what is in `folder`, as a sentence for a message."""
    if not folder.is_dir():
        return "There is no such folder."
    names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())
    if not names:
        return "It is empty."
    return f"It holds {', '.join(names[:most])}{f' and {len(names) - most} more' if len(names) > most else ''}."


def read_configuration(folder: Path) -> dict[str, Any]:
    """Reads the configuration of a checkpoint folder."""
    return read_json(folder / "config.json", "A checkpoint folder has its configuration there.")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Reads a JSON object from a file; `what` says in messages what it is for."""
    if not path.is_file():
        raise ValueError(f"There is no {path}. {what} About {path.parent}: {contents(path.parent)}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}). {what}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}; expected an object. {what}")
    return value


def shard_files(index: Path) -> dict[str, str]:
    """Says which shard holds which tensor, from an index file."""
    weight_map = read_json(index, "It lists the shards of the weights.").get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index} has no `weight_map`, the object that says which file holds which tensor.")
    for name in set(weight_map.values()):
        if Path(name).name != name:
            raise ValueError(f"{index} points outside its folder, to {name!r}; a shard lies beside its index.")
    return weight_map


def _read_shards(folder: Path, index: str, reader: Callable[[Path], Mapping[str, object]]) -> dict[str, object]:
    weight_map = shard_files(folder / index)
    out: dict[str, object] = {}
    for name in sorted(set(weight_map.values())):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / index} lists the shard {name}, which is not there. Download it too.")
        tensors = reader(folder / name)
        lacking = [
            tensor for tensor, file in weight_map.items() if file == name and tensor.replace("/", ".") not in tensors
        ]
        if lacking:
            raise ValueError(f"The shard {folder / name} lacks `{lacking[0]}`, which {index} says it holds.")
        out.update(tensors)
    return out

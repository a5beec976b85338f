"""Where a dictionary is read from: a local file or folder, or one on the Hugging Face Hub; and what lies beside it."""

import dataclasses
import functools as ft
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

from ..._checks import check_path
from ..._files import read_text, read_torch
from ..._sites import Site
from .._hub import patient
from .._read import contents
from .._tensors import cast
from ._stored import open_npz, open_safetensors_file


# How the named tensors of a file are read, by its suffix. Those of PyTorch's own are read whole at once, the others when they are used.
_OPENERS: dict[str, Callable[[Path], Any]] = {
    ".pt": read_torch,
    ".pth": read_torch,
    ".bin": read_torch,
    ".safetensors": open_safetensors_file,
    ".npz": open_npz,
}
SUFFIXES = list(_OPENERS)  # of files that may be dictionaries; readers of one's own may add some
# What training leaves beside a dictionary, and what is none.
BESIDE = (
    "model.safetensors",
    "pytorch_model.bin",
    "sparsity.safetensors",
    "state.pt",
    "trainer_state.pt",
    "activations_store_state.safetensors",
    "factors.safetensors",
    "frequencies.pt",
    "optimizer.pt",
)
# The files that are a dictionary whatever else lies in their folder, in the order in which they are looked for.
NAMED = (
    "sae_weights.safetensors",
    "sae.safetensors",
    "ae.pt",
    "ae.safetensors",
    "params.npz",
    "params.safetensors",
    "checkpoints/final.safetensors",
)
_CONFIGURATIONS = (
    "cfg.json",
    "config.json",
    "activation_scaler.json",
    "hyperparams.json",
    "config.yaml",
    "wandb-config.yaml",
    "wanb-config.yaml",
    "conf.yaml",
)
_TRAINING = re.compile(r"(optimizer|lr_scheduler)_\d+\.pt|rank_\d+_state\.pt")
_HUB = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w.-]+)(:(?P<inside>.+))?")


class Leaves(TypedDict):
    """The arrays that an `SAE` and a `Transcoder` both have."""

    W_enc: Array
    b_enc: Array
    W_dec: Array
    b_dec: Array


@dataclasses.dataclass(frozen=True)
class Source:
    """One file that a dictionary is read from, what it holds, and what the caller said of it. A reader is called with it.

    **Attributes:**

    - `path`: the file. `name`: it, or its Hub id, for messages and results.
    - `repository`: the Hub id that it came from, or "".
    - `site`, `dtype`: the caller's, or `None`.
    - `latents`: which ones to read, in this order, or `None` for all of them.
    - `state`: the named tensors in it, for `.safetensors`, `.npz` and PyTorch's files. What `numpy.asarray` makes of one is the array.
    """

    path: Path
    repository: str = ""
    site: Site | None = None
    dtype: DTypeLike | None = None
    latents: tuple[int, ...] | None = None
    listed: "Listed | None" = None

    @ft.cached_property
    def state(self) -> Mapping[str, object]:
        """Reads what the file holds, by name."""
        if self.path.suffix not in _OPENERS:
            return {}  # of a reader of one's own, which opens it itself
        state = _OPENERS[self.path.suffix](self.path)
        if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
            raise ValueError(f"{self.path} holds a {type(state).__name__}, expected named tensors (a state dict).")
        return state

    @property
    def name(self) -> str:
        """For messages and results."""
        return f"{self.repository}:{self.path.name}" if self.repository else str(self.path)

    @property
    def place(self) -> str:
        """Where it comes from, with `/` between folders and the Hub id in front: for what only a path says."""
        path = self.path.absolute().as_posix()
        return f"{self.repository}/{path}" if self.repository else path

    def json(self, name: str) -> dict | None:
        """Reads the configuration called `name` beside the file, `None` if there is none."""
        path = self.path.parent / name
        if not path.is_file():
            return None
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not JSON ({error}).") from None
        if not isinstance(config, dict):
            raise ValueError(f"{path}: expected a JSON object, got a {type(config).__name__}.")
        return config

    def yaml(self, name: str) -> dict | None:
        """The same for YAML."""
        path = self.path.parent / name
        return read_yaml(path) if path.is_file() else None

    def leaf(self, array: np.ndarray) -> Array:
        """Makes `array` as a leaf: in the dtype that the caller asked for, else as stored."""
        # A copy, as it may become the device's own; not `jnp.asarray`, which compiles a program for every shape.
        return jax.device_put(np.array(array) if self.dtype is None else cast(self.name, array, self.dtype))

    def leaves(self, W_enc: np.ndarray, b_enc: np.ndarray, W_dec: np.ndarray, b_dec: np.ndarray) -> Leaves:
        """Makes the four arrays that every dictionary has, to be passed on by name."""
        return {
            "W_enc": self.leaf(W_enc),
            "b_enc": self.leaf(b_enc),
            "W_dec": self.leaf(W_dec),
            "b_dec": self.leaf(b_dec),
        }


@dataclasses.dataclass(frozen=True)
class Listed:
    """What the list that a file stands in says of it: a set's `config.yaml`, and which layer of the set it is."""

    config: dict
    layer: int


def read_yaml(path: Path) -> dict:
    """Reads a YAML mapping. **Raises:** `ValueError` if it is none."""
    import yaml

    try:
        config = yaml.safe_load(read_text(path, expected="YAML"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a YAML mapping, got a {type(config).__name__}.")
    return config


def find(path_or_id: str | Path, revision: str | None, *, tree: str | None = None) -> tuple[Path, str]:
    """Finds the local file or folder, downloaded if it is a Hub id `repo/name` or `repo/name:inside`; and the Hub id, or "". `tree`: not
    one dictionary, but the whole tree below it, as far as its paths match this pattern.
    """
    path = check_path("load_sae: path_or_id", path_or_id).expanduser()
    if path.exists():
        if revision is not None:
            raise ValueError(
                f"{path} is on this machine, and revision={revision!r} is for a Hub id. Leave one of the two out."
            )
        return path, ""
    match = _HUB.fullmatch(str(path_or_id))
    if match is None:
        raise ValueError(
            f"{path} does not exist, and is not a Hub id: those are written repo/name or repo/name:folder."
        )
    return _download(match["repo"], match["inside"], revision, tree), match["repo"]


def is_hub_id(path_or_id: str | Path) -> bool:
    """Says whether it is written like one: `repo/name` or `repo/name:inside`."""
    return _HUB.fullmatch(str(path_or_id)) is not None


def _download(repository: str, inside: str | None, revision: str | None, tree: str | None) -> Path:
    import huggingface_hub

    if tree is not None:
        start = "" if inside is None else f"{inside.rstrip('/')}/"
        chosen = [f"*{suffix}" for suffix in SUFFIXES] if tree == "*" else [tree]
        wanted = [start + pattern for pattern in (*chosen, "*.json", "*.yaml")]
    elif inside is None:
        wanted = [*NAMED, *_CONFIGURATIONS]
    else:  # a file and the configurations beside it, or a folder, whose name may end in .pt too
        folder, stem = inside.rpartition("/")[0], inside.rpartition(".")[0]
        beside = [f"{folder}/{name}".lstrip("/") for name in _CONFIGURATIONS]
        wanted = [inside, f"{inside.rstrip('/')}/*", f"{stem}_cfg.json", *beside]
    try:
        with patient():
            root = Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except (OSError, ValueError) as error:  # no network, no such repository, no such revision
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{repository} is no file or folder here, and could not be had from the Hugging Face Hub: {first} Check the name, the "
            "revision and the network; a local path works without any."
        ) from None
    place = root if inside is None else root / inside
    if not place.exists():
        raise ValueError(f"The Hub repository {repository} holds no {inside!r}.")
    return place


def dictionary_file(path: Path, formats: Collection[str]) -> Path:
    """Finds the file of tensors that `path` is, or the one in the folder `path`. `formats`: those that are read, for the message."""
    if path.is_file() and path.name not in _CONFIGURATIONS:
        if path.suffix not in SUFFIXES:
            raise ValueError(
                f"{path} is no dictionary: expected a file of tensors ({', '.join(SUFFIXES)}) in one of the formats {', '.join(formats)}."
            )
        return path
    folder = path if path.is_dir() else path.parent
    for name in NAMED:
        if (folder / name).is_file():
            return folder / name
    files = tensor_files(sorted(folder.iterdir()))
    if len(files) != 1:
        have = f"there are {len(files)}: name one" if files else "there is none"
        below = [file.relative_to(folder) for name in NAMED for file in sorted(folder.glob(f"*/**/{name}"))]
        deeper = f" jc.load_saes reads a whole tree, and there is {below[0]} below." if below else ""
        raise ValueError(
            f"{folder}: expected one dictionary, {', '.join(NAMED)} or one other file of tensors ({', '.join(SUFFIXES)}), and {have}. "
            f"{contents(folder)}{deeper} The formats that are read are {', '.join(formats)}."
        )
    return files[0]


def tensor_files(paths: Sequence[Path]) -> list[Path]:
    """Chooses those of `paths` that may be dictionaries."""
    return [
        path
        for path in paths
        if path.suffix in SUFFIXES
        and path.name not in BESIDE
        and _TRAINING.fullmatch(path.name) is None
        and path.is_file()
    ]

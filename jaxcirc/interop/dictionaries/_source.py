"""A file that a dictionary is read from: what it holds, what lies beside it, and what the caller said of it."""

import dataclasses
import functools as ft
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

from ..._files import read_text, read_torch
from ..._sites import Site
from ...saes import AbstractActivation
from ...saes._activations import OfWholeDictionary
from .._tensors import cast
from ._stored import open_npz, open_safetensors_file


# How the named tensors of a file are read, by its suffix. Those of PyTorch's own are read whole at once, the others when they are used.
OPENERS: dict[str, Callable[[Path], Any]] = {
    ".pt": read_torch,
    ".pth": read_torch,
    ".bin": read_torch,
    ".safetensors": open_safetensors_file,
    ".npz": open_npz,
}
SUFFIXES = list(OPENERS)  # of files that may be dictionaries; readers of one's own may add some


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
    - `latents`: which ones to read, in this order, or `None` for all of them; `among`: how many there are, if a mask said which.
    - `listed`: what the list that the file stands in says of it, if it was found in one.
    - `state`: the named tensors in it, for `.safetensors`, `.npz` and PyTorch's files. What `numpy.asarray` makes of one is the array.
    """

    path: Path
    repository: str = ""
    site: Site | None = None
    dtype: DTypeLike | None = None
    latents: tuple[int, ...] | None = None
    listed: "Listed | None" = None
    among: int | None = None

    @ft.cached_property
    def state(self) -> Mapping[str, object]:
        """Reads what the file holds, by name."""
        if self.path.suffix not in OPENERS:
            return {}  # of a reader of one's own, which opens it itself
        state = OPENERS[self.path.suffix](self.path)
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

    def activation(self, activation: AbstractActivation) -> AbstractActivation:
        """Makes an activation: where some latents alone are read, calling one that compares latents is an error."""
        if self.latents is None or not activation.COMPARES or isinstance(activation, OfWholeDictionary):
            return activation
        return OfWholeDictionary(type(activation).__name__)

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

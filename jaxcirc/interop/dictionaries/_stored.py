"""Tensors that stay in their file until they are asked for, whole or some of their rows: for files larger than memory."""

import abc
import dataclasses
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..._files import looks_like, open_safetensors, read_tensor


class AbstractStored(abc.ABC):
    """A tensor in a file: its name and shape are known, its numbers are read where they are used."""

    shape: tuple[int, ...]

    @abc.abstractmethod
    def take(self, axis: int, indices: np.ndarray) -> np.ndarray:
        """The entries `indices` along `axis`, in this order; of the rest nothing is read where the file allows it."""

    @abc.abstractmethod
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The whole tensor, for `np.asarray`."""


@dataclasses.dataclass(frozen=True)
class SafetensorsTensor(AbstractStored):
    """One of a safetensors file."""

    path: Path
    name: str
    shape: tuple[int, ...]

    def take(self, axis: int, indices: np.ndarray) -> np.ndarray:
        runs = _runs(np.unique(indices))
        with open_safetensors(self.path) as file:
            parts = [read_tensor(file, self.name, self.path, (slice(None),) * axis + (slice(*run),)) for run in runs]
        read = np.concatenate(parts, axis) if parts else read_nothing(self, axis)
        return np.take(read, np.searchsorted(np.unique(indices), indices), axis)

    def rows(self, indices: np.ndarray, slot: int) -> np.ndarray:
        """Of a tensor of three axes what stands at `slot` of the second, for each of `indices` of the first."""
        if not len(indices):
            return np.zeros((0, self.shape[2]), np.float32)
        with open_safetensors(self.path) as file:
            cut = lambda i: read_tensor(file, self.name, self.path, (slice(i, i + 1), slice(slot, slot + 1)))[0, 0]
            return np.stack([cut(int(i)) for i in indices])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        with open_safetensors(self.path) as file:
            array = read_tensor(file, self.name, self.path)
        return array if dtype is None else array.astype(dtype)


@dataclasses.dataclass(frozen=True)
class NpzTensor(AbstractStored):
    """One of an uncompressed NumPy archive, as `numpy.savez` writes it: it is mapped into memory."""

    path: Path
    offset: int  # of its first number in the file
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    def _mapped(self) -> np.ndarray:
        if not self.shape:
            return np.fromfile(self.path, self.dtype, 1, offset=self.offset).reshape(())
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape, "F" if self.fortran else "C")

    def take(self, axis: int, indices: np.ndarray) -> np.ndarray:
        return np.array(np.take(self._mapped(), indices, axis))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = np.asarray(self._mapped())
        return array if dtype is None else array.astype(dtype)


def open_safetensors_file(path: Path) -> dict[str, SafetensorsTensor]:
    """Lists the tensors of a safetensors file."""
    with open_safetensors(path) as file:
        return {name: SafetensorsTensor(path, name, tuple(file.get_slice(name).get_shape())) for name in file.keys()}


def open_npz(path: Path) -> Mapping[str, NpzTensor | np.ndarray]:
    """Lists the arrays of a NumPy archive; compressed ones are read whole at once.

    **Raises:** `ValueError` if it is truncated, no archive at all, or holds what is no array of numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        with path.open("rb") as raw:
            stored = {
                _name(info): _mapped(path, info, raw) for info in infos if info.compress_type == zipfile.ZIP_STORED
            }
        if len(stored) == len(infos):
            return stored
        with np.load(path) as arrays:
            return {**stored, **{_name(info): arrays[_name(info)] for info in infos if _name(info) not in stored}}
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        with path.open("rb") as file:
            start = file.read(512)
        what = None if start.startswith(b"PK") else looks_like(start)
        raise ValueError(
            f"{path} is not a whole NumPy archive ({error}). "
            + (f"It looks like {what}." if what else f"Its size is {path.stat().st_size} bytes: download it again.")
        ) from None


def _name(info: zipfile.ZipInfo) -> str:
    return info.filename.removesuffix(".npy")


def _mapped(path: Path, info: zipfile.ZipInfo, raw: BinaryIO) -> NpzTensor:
    raw.seek(info.header_offset)
    local = raw.read(30)  # the last four bytes are the lengths of the name and of what follows it, before the data
    raw.seek(int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little"), os.SEEK_CUR)
    version = np.lib.format.read_magic(raw)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(raw)
    if dtype.hasobject:
        raise ValueError(f"`{info.filename}` holds Python objects, not numbers")
    return NpzTensor(path, raw.tell(), shape, fortran, dtype)


def read_nothing(tensor: AbstractStored, axis: int) -> np.ndarray:
    """Makes an array of the shape that reading no entry along `axis` gives."""
    return np.zeros([0 if i == axis else n for i, n in enumerate(tensor.shape)], np.float32)


def _runs(indices: np.ndarray) -> list[tuple[int, int]]:
    """Finds the runs of neighbours in rising `indices`, each as (first, last + 1): one reading each."""
    if not len(indices):
        return []
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(indices, breaks)]

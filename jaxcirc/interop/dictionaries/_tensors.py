"""A dictionary file's tensors, checked against a table of names and axes before anything is made from them."""

import sys
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from ..._checks import Chosen
from .._tensors import to_numpy
from ._source import Source
from ._stored import AbstractStored


Table = Mapping[str, str]  # {tensor name: its axes, as words}; "" for a scalar


def checked(
    state: Mapping[str, object],
    table: Table,
    source: Source,
    *,
    optional: Collection[str] = (),
    sizes: Mapping[str, int | None] | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Checks the tensors of `table` and gives them as NumPy arrays, float32 at least, with the size of each axis.

    Where the caller asked for some latents, these alone are read along the axis `d_sae`; the size given is still that of all.

    **Arguments:** - `optional`: names that may be missing. - `sizes`: what a configuration says of the axes; a tensor must agree.

    **Raises:** `ValueError` that names the tensors which are missing, unknown, of another shape, or not finite.
    """
    missing = [name for name in table if name not in state and name not in optional]
    extra = [name for name in state if name not in table]
    if missing or extra:
        parts = [f"{word} {listed(names)}" for word, names in (("misses", missing), ("also holds", extra)) if names]
        raise ValueError(
            f"{source.name} {' and '.join(parts)}. Expected the tensors {listed(table)}. Is it this kind of dictionary?"
        )
    known = {axis: size for axis, size in (sizes or {}).items() if size is not None}
    held = {name: _held(name, state[name], source.name) for name in table if name in state}
    for name, value in held.items():
        _check_shape(name, value.shape, table[name].split(), known, source.name)
    latents = None if source.latents is None else _indices(source, known["d_sae"])
    read = {name: _read(value, table[name].split(), latents) for name, value in held.items()}
    return {name: _checked(name, array, source.name) for name, array in read.items()}, known


def _held(name: str, value: object, source: str) -> AbstractStored | np.ndarray:
    if isinstance(value, AbstractStored):
        return value
    try:
        array = to_numpy(name, value)
    except (TypeError, ValueError):
        raise ValueError(f"{source}: expected a tensor under `{name}`, got {type(value).__name__}.") from None
    _check_numbers(name, array, source)
    return array


def _indices(source: Source, d_sae: int) -> np.ndarray:
    indices = np.asarray(source.latents, np.int64)
    Chosen(indices, source.among).check_among(f"{source.name}: latents=…", "latents", d_sae)
    if indices.size and (indices.min() < 0 or indices.max() >= d_sae):
        raise ValueError(
            f"{source.name} has {d_sae} latents, from 0 on, and latents=… asks for {indices.min()} to {indices.max()}."
        )
    return indices


def _read(value: AbstractStored | np.ndarray, axes: list[str], latents: np.ndarray | None) -> np.ndarray:
    if latents is None or "d_sae" not in axes:
        return np.asarray(value)
    axis = axes.index("d_sae")
    return value.take(axis, latents) if isinstance(value, AbstractStored) else np.take(value, latents, axis)


def _checked(name: str, array: np.ndarray, source: str) -> np.ndarray:
    """Widens half precision. **Raises:** `ValueError` for what is no numbers, and for numbers that are not finite."""
    _check_numbers(name, array, source)
    if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        array = array if array.dtype == np.float64 else array.astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise ValueError(
                f"{source}: tensor `{name}` holds NaN or infinite values, so nothing computed with it would mean anything."
            )
    return array


def _check_numbers(name: str, array: np.ndarray, source: str) -> None:
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise ValueError(f"{source}: tensor `{name}` holds {array.dtype}, not numbers.")


def _check_shape(name: str, shape: tuple[int, ...], axes: list[str], known: dict[str, int], source: str) -> None:
    expected = [known.get(axis, axis) for axis in axes]
    fits = len(shape) == len(axes) and all(known.get(axis, n) == n for axis, n in zip(axes, shape, strict=True))
    if not fits:
        raise ValueError(
            f"{source}: tensor `{name}` has shape {list(shape)}, expected {axes} = {expected} to agree with the configuration and "
            "the other tensors."
        )
    known.update(zip(axes, shape, strict=True))


def listed(names: Collection[str]) -> str:
    """Names for a message."""
    return ", ".join(f"`{name}`" for name in names)


def warn(message: str) -> None:
    """Warns, pointing at the line outside the library which asked for the file."""
    inside = str(Path(__file__).parents[2])
    level, frame = 2, sys._getframe(1)  # the caller of this function
    while frame.f_back is not None and (
        frame.f_code.co_filename.startswith(inside) or "jaxtyping" in frame.f_code.co_filename
    ):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)

"""Stored tensors to named arrays and back, by the key table: every stored key is consumed, every array filled, every shape checked."""

import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from . import _layouts
from ._keymaps import Key, Table
from ._spec import is_bias, Spec
from .families import FAMILIES, table_of


def to_numpy(name: str, value: Any) -> np.ndarray:
    """Copies a NumPy, JAX or PyTorch array as NumPy."""
    torch = sys.modules.get("torch")  # no PyTorch tensor can be here unless it is imported already
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        if value.dtype == torch.bfloat16:  # which NumPy has from JAX alone
            return value.contiguous().view(torch.int16).numpy().view(jnp.bfloat16)
        return value.numpy()
    array = np.asarray(value)
    if array.dtype == object:
        raise TypeError(f"Expected an array under `{name}`, got {type(value).__name__}.")
    return array


def checked_dtype(dtype: DTypeLike) -> np.dtype:
    """Gives `dtype` as NumPy's, after a check that JAX would keep it."""
    try:
        dtype = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"Expected a dtype such as jnp.float32, got {dtype!r}.") from None
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"Weights are of a floating dtype; got {dtype}.")
    if dtype == np.float64 and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]  # set at run time
        raise ValueError(
            'float64 needs jax.config.update("jax_enable_x64", True) first; else JAX would round to float32.'
        )
    return dtype


def cast(name: str, array: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """Copies `array` as `dtype`. **Raises:** `ValueError` for a number that the dtype cannot hold, which would become infinite."""
    with np.errstate(over="ignore"):
        out = np.asarray(array).astype(dtype)
    lost = np.isinf(out) & np.isfinite(array)
    if lost.any():
        raise ValueError(
            f"dtype: {name} holds {float(np.asarray(array)[lost][0]):.6g}, and the largest number of {np.dtype(dtype)} is "
            f"{float(jnp.finfo(dtype).max):.6g}. Use bfloat16 or float32."
        )
    return out


def read(stored: Mapping[str, object], spec: Spec, *, kind: str, source: str) -> dict[str, np.ndarray]:
    """Reads our named arrays from stored tensors of a `kind` of file, `"torch"` or `"flax"`.

    Of an embedding and an unembedding that are tied a file may hold either one, or both if they are equal.

    **Raises:** `ValueError` that names the tensors which are missing, unexpected, of another shape, or not finite.
    """
    table = _table(spec, kind)
    embedding, head, keys = table.embedding, table.head, table.keys(spec)
    stored = _bare(stored, table, source)
    of_head = {head.name(kind): stored.pop(head.name(kind))} if spec.tied and head.name(kind) in stored else {}
    W_U = _read_one(head, of_head, spec, kind, source)["W_U"] if of_head else None
    if W_U is not None and embedding.name(kind) not in stored:
        stored[embedding.name(kind)] = W_U.T
    _check_names(stored, keys, spec, kind, source)
    out = _zero_biases(spec)
    for key in keys:
        if key.name(kind) in stored:  # or it is an optional one
            out.update(_read_one(key, stored, spec, kind, source))
    if W_U is not None:
        _check_tied(W_U, out["W_E"], source)
    return out


def write(arrays: Mapping[str, np.ndarray], spec: Spec, *, kind: str) -> dict[str, np.ndarray]:
    """The inverse of `read`, under names without the prefix of the language-model class."""
    out = {}
    for key in _table(spec, kind).keys(spec):
        held = [arrays[name] for name in key.ours]
        array = np.stack(held) if len(held) > 1 else held[0]
        out[key.name(kind)] = _layouts.rearrange(array, key.axes, key.layout(kind), spec.sizes)
    return out


def _table(spec: Spec, kind: str) -> Table:
    """Finds the key table. **Raises:** `ValueError` for Flax where Hugging Face has no such model."""
    table = table_of(spec)
    if kind == "flax" and not table.flax:
        raise ValueError(
            f"There are Flax files of GPT-2 and GPT-Neo, and this is a {spec.architecture}. Use safetensors, which the Hub has of it."
        )
    return table


def _zero_biases(spec: Spec) -> dict[str, np.ndarray]:
    """Makes zeros for the biases, which not every architecture has; where a file holds them, they are replaced."""
    biases = {path: axes for path, axes in spec.arrays.items() if is_bias(path)}
    return {path: np.zeros(_layouts.shape(axes, spec.sizes), np.float32) for path, axes in biases.items()}


def _read_one(key: Key, stored: Mapping[str, object], spec: Spec, kind: str, source: str) -> dict[str, np.ndarray]:
    name, layout = key.name(kind), key.layout(kind)
    expected = _layouts.shape(layout, spec.sizes)
    array = to_numpy(name, stored[name])
    if array.shape != expected:
        raise ValueError(
            f"{source}: tensor `{name}` has shape {array.shape}, and its configuration asks for {expected} ({layout}). "
            "Do the weights and the configuration belong together?"
        )
    if not np.isfinite(array).all():
        raise ValueError(
            f"{source}: tensor `{name}` holds NaN or infinite values, so nothing computed with it would mean anything."
        )
    moved = _layouts.rearrange(array, layout, key.axes, spec.sizes)
    return dict(zip(key.ours, moved if len(key.ours) > 1 else (moved,), strict=True))


def _bare(stored: Mapping[str, object], table: Table, source: str) -> dict[str, object]:
    """Puts tensors under the table's names, without those that are no weights."""
    out = {}
    for name, value in stored.items():
        bare = table.bare(name)
        if bare is None:
            continue
        if bare in out:
            prefixes = " or ".join(f"`{prefix}`" for prefix in table.prefixes)
            raise ValueError(
                f"{source} holds `{bare}` twice, with and without the prefix {prefixes}; remove one of them."
            )
        out[bare] = value
    return out


def _check_names(stored: Mapping[str, object], keys: tuple[Key, ...], spec: Spec, kind: str, source: str) -> None:
    known = {key.name(kind) for key in keys}
    missing = [key.name(kind) for key in keys if key.name(kind) not in stored and not key.optional]
    extra = [name for name in stored if name not in known]
    if missing == [_table(spec, kind).head.name(kind)] and not extra:
        raise ValueError(
            f"{source} has no unembedding: `{missing[0]}` is missing, and its configuration does not tie one to the embedding. Give the "
            f"model that has it{_with_head(spec)}."
        )
    if missing or extra:
        wrong = [f"missing: {_listed(missing)}" if missing else "", f"unexpected: {_listed(extra)}" if extra else ""]
        raise ValueError(
            f"{source} does not hold the tensors that its configuration asks for; {'; '.join(filter(None, wrong))}. "
            "Do the weights and the configuration belong together?"
        )


def _with_head(spec: Spec) -> str:
    return f", a {FAMILIES[spec.architecture].classes[0]}" if spec.architecture in FAMILIES else ""


def _listed(names: list[str], most: int = 8) -> str:
    return ", ".join(f"`{name}`" for name in names[:most]) + (
        f" and {len(names) - most} more" if len(names) > most else ""
    )


def _check_tied(W_U: np.ndarray, W_E: np.ndarray, source: str) -> None:
    if not np.array_equal(W_U.T, W_E):
        raise ValueError(
            f"{source}: the configuration ties the unembedding to the embedding, and the file holds another `lm_head`. transformers 4 "
            "reads the embedding for both, and 5 reads each its own. For each its own, as a rule the model that was trained, set "
            '"tie_word_embeddings": false in config.json; for the embedding alone, take `lm_head` out of the file.'
        )

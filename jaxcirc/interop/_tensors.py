"""Stored tensors to named arrays and back, by the key table: every stored key is consumed, every array filled, every shape checked."""

import sys
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from . import _layouts
from ._keymaps import EMBEDDING, HEAD, is_buffer, Key, keys
from ._spec import Spec


def to_numpy(name: str, value: Any) -> np.ndarray:
    """Copies a NumPy, JAX or PyTorch array as NumPy."""
    torch = sys.modules.get("torch")  # no PyTorch tensor can be here unless it is imported already
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value  # NumPy has no bfloat16
        return value.numpy()
    array = np.asarray(value)
    if array.dtype == object:
        raise TypeError(f"Expected an array under `{name}`, got {type(value).__name__}.")
    return array


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
    stored = _without_prefix(stored, source)
    table = keys(spec)
    head = {HEAD.name(kind): stored.pop(HEAD.name(kind))} if spec.tied and HEAD.name(kind) in stored else {}
    W_U = _read_one(HEAD, head, spec, kind, source)["W_U"] if head else None
    if W_U is not None and EMBEDDING.name(kind) not in stored:
        stored[EMBEDDING.name(kind)] = W_U.T
    _check_names(stored, table, kind, source)
    out = _zero_biases(spec)
    for key in table:
        out.update(_read_one(key, stored, spec, kind, source))
    if W_U is not None:
        _check_tied(W_U, out["W_E"], source)
    return out


def write(arrays: Mapping[str, np.ndarray], spec: Spec, *, kind: str) -> dict[str, np.ndarray]:
    """The inverse of `read`, under names without the prefix of the language-model class."""
    out = {}
    for key in keys(spec):
        held = [arrays[name] for name in key.ours]
        array = np.stack(held) if len(held) > 1 else held[0]
        out[key.name(kind)] = _layouts.rearrange(array, key.axes, key.layout(kind), spec.sizes)
    return out


def _zero_biases(spec: Spec) -> dict[str, np.ndarray]:
    """Makes zeros for the biases that not every architecture has; where a file holds them, they are replaced."""
    biases = {
        f"blocks.{layer}.attn.b_{part}": (spec.n_heads, spec.d_head) for layer in range(spec.n_layers) for part in "QKV"
    }
    return {name: np.zeros(shape, np.float32) for name, shape in (biases | {"b_U": (spec.d_vocab_out,)}).items()}


def _read_one(key: Key, stored: Mapping[str, object], spec: Spec, kind: str, source: str) -> dict[str, np.ndarray]:
    name, layout = key.name(kind), key.layout(kind)
    expected = _layouts.shape(layout, spec.sizes)
    if name not in stored:  # an optional one: `_check_names` was here before
        return {ours: np.zeros(_layouts.shape(key.axes, spec.sizes), np.float32) for ours in key.ours}
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


def _without_prefix(stored: Mapping[str, object], source: str) -> dict[str, object]:
    out = {}
    for name, value in stored.items():
        bare = name.removeprefix("transformer.")  # the language-model class has it, the bare model has not
        if is_buffer(bare):
            continue
        if bare in out:
            raise ValueError(
                f"{source} holds `{bare}` twice, with and without the prefix `transformer.`; remove one of them."
            )
        out[bare] = value
    return out


def _check_names(stored: Mapping[str, object], table: tuple[Key, ...], kind: str, source: str) -> None:
    known = {key.name(kind) for key in table}
    missing = [key.name(kind) for key in table if key.name(kind) not in stored and not key.optional]
    extra = [name for name in stored if name not in known]
    if missing or extra:
        wrong = [f"missing: {_listed(missing)}" if missing else "", f"unexpected: {_listed(extra)}" if extra else ""]
        raise ValueError(
            f"{source} does not hold the tensors that its configuration asks for; {'; '.join(filter(None, wrong))}. "
            "Do the weights and the configuration belong together?"
        )


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

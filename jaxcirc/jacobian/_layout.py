"""How a saved Jacobian lies on disk: the header of a safetensors file, whose metadata are ours, and behind it one tensor."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np


DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def decoded(metadata: dict[str, str]) -> dict[str, Any]:
    """The metadata, each of which is JSON."""
    return {name: json.loads(value) for name, value in metadata.items()}


def offset_of(path: Path) -> int:
    """Where the tensor begins."""
    with open(path, "rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def header_of(path: Path) -> dict[str, Any]:
    """The header. **Raises:** `ValueError` for a file that is no saved Jacobian, or is truncated."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < 2**20 else {}
        end = 8 + length + header["jacobian"]["data_offsets"][1]
        _ = header["__metadata__"]["source"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not a Jacobian that jc.save_jacobian wrote.") from None
    if path.stat().st_size < end:
        raise ValueError(
            f"{path} is truncated: {path.stat().st_size} bytes of {end}. Copy it again, or compute it again."
        )
    return header


def mapped(path: Path, mode: Any) -> np.memmap:
    """The tensor, as a memory map."""
    header = header_of(path)["jacobian"]
    dtype = next(name for name, code in DTYPES.items() if code == header["dtype"])
    return np.memmap(path, dtype=jnp.dtype(dtype), mode=mode, offset=offset_of(path), shape=tuple(header["shape"]))

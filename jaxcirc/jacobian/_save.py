"""Jacobians on disk: written as they are computed, part by part, read back as memory maps.

The file is an ordinary safetensors file with one tensor, `jacobian`, of shape `target_shape + source_shape`, so that any tool opens it;
sites, positions and the certificate are its metadata.
"""

import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._sites import Site
from ._certificate import Certificate
from ._memory import BUDGET
from ._operator import EdgeJacobian
from ._positions import position_axis


DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class SavedJacobian:
    """A Jacobian on disk.

    **Attributes:** `matrix`: a read-only memory map of shape `target_shape + source_shape`; `source`, `target`: the sites; `source_pos`,
    `target_pos`: the positions, `None` for all; `certificate`: its measured error, as a mapping.
    """

    matrix: np.ndarray
    source: Site
    target: Site
    source_pos: list[int] | None
    target_pos: list[int] | None
    certificate: dict[str, Any]


def save_jacobian(
    J: EdgeJacobian,
    path: str | Path,
    *,
    key: Array | None = None,
    budget: int = BUDGET,
    progress: Progress | None = None,
) -> Certificate:
    """Writes the whole Jacobian to a safetensors file while it is computed, so that it need not fit into memory.

    Work that was stopped goes on where it was: parts lie in `<path>.part` until all are there and the certificate has passed.

    **Arguments:** - `key`: of the certificate's probes. - `budget`: bytes that a part may take. - `progress`: called with (done, of,
    stage) in positions.

    **Returns:** the certificate of what is on disk, which is in the file as well.

    **Raises:** `ValueError` if the disk is too small, if the result is not finite, or if the certificate fails; then no file is left.
    """
    path = Path(path)
    if J.transposed or any(position_axis(end) for end in J.ends):
        raise ValueError(
            "save_jacobian: expected an edge between values that have one position each, not transposed; use J.as_matrix() for others."
        )
    shape, report = (*J.target_shape, *J.source_shape), progress or (lambda done, of, stage: None)
    if path.exists() and not (path.is_file() and _is_ours(path)):
        raise ValueError(f"{path} exists and is not a saved Jacobian. Choose another path, or remove it.")
    part, state = Path(f"{path}.part"), Path(f"{path}.part.json")
    fewer = math.prod(J.source_shape) < math.prod(J.target_shape)
    side = "source" if fewer and J._route() == "sweep" else "target"  # closed forms go by rows
    plan = {"of": _fingerprint(J), "shape": list(shape), "side": side}
    done = _resumed(part, state, plan)
    if not done:
        _check_disk(path, shape, J.dtype)
        _allocate(part, J, shape)
    matrix = _map(part, "r+")
    positions = J.source_shape[0] if side == "source" else J.target_shape[0]
    report(done, positions, "jacobian")
    for block in _parts(J, side, done, budget):
        count = block.shape[len(J.target_shape)] if side == "source" else block.shape[0]
        where = slice(done, done + count)
        if side == "source":
            matrix[(slice(None),) * len(J.target_shape) + (where,)] = block
        else:
            matrix[where] = block
        matrix.flush()
        done += count
        state.write_text(json.dumps({**plan, "done": done}), encoding="utf-8")
        report(done, positions, "jacobian")
    try:
        certificate = J.certificate(jax.random.key(0) if key is None else key, matrix=matrix)
    except ValueError:
        _remove(part, state)
        raise
    _write_header(part, J, shape, certificate)
    os.replace(part, path)
    state.unlink(missing_ok=True)
    return certificate


def load_jacobian(path: str | Path) -> SavedJacobian:
    """Opens a Jacobian that `jc.save_jacobian` wrote, without reading it into memory.

    **Raises:** `ValueError` if the file is not one, or is truncated.
    """
    path = Path(path)
    header = _header(path)
    about = {name: json.loads(value) for name, value in header["__metadata__"].items()}
    return SavedJacobian(
        matrix=_map(path, "r"),
        source=Site.parse(about["source"]),
        target=Site.parse(about["target"]),
        source_pos=about["source_pos"],
        target_pos=about["target_pos"],
        certificate=about["certificate"],
    )


def _parts(J: EdgeJacobian, side: str, done: int, budget: int) -> Iterator[np.ndarray]:
    """The parts that are not done, in order of the side's positions."""
    seq = J.spans[0].resid.shape[0]
    everywhere = lambda pos: np.arange(seq) if pos is None else np.asarray(pos)
    pos = everywhere(J.source_pos if side == "source" else J.target_pos)
    each = math.prod(J.source_shape) * math.prod(J.target_shape) // len(pos) * J.dtype.itemsize
    count = max(1, min(len(pos), budget // (2 * each)))
    for begin in range(done, len(pos), count):
        group = jnp.asarray(pos[begin : begin + count], jnp.int32)
        restricted = J.restricted(source_pos=group) if side == "source" else J.restricted(target_pos=group)
        yield np.asarray(restricted.as_matrix())


def _fingerprint(J: EdgeJacobian) -> str:
    digest = hashlib.sha256(str(jax.tree.structure(J)).encode())
    for leaf in jax.tree.leaves(J):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _resumed(part: Path, state: Path, plan: dict[str, Any]) -> int:
    """How many positions an earlier attempt at the same Jacobian has written."""
    try:
        before = json.loads(state.read_text(encoding="utf-8"))
        return before["done"] if part.exists() and all(before.get(name) == value for name, value in plan.items()) else 0
    except (OSError, ValueError, KeyError):
        return 0


def _check_disk(path: Path, shape: tuple[int, ...], dtype) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    size, free = math.prod(shape) * np.dtype(dtype).itemsize, shutil.disk_usage(path.parent).free
    if size > free:
        raise ValueError(
            f"A Jacobian of shape {shape} takes {size / 2**30:.3g} GiB, and {free / 2**30:.3g} GiB are free beside {path}. Restrict the "
            "positions (source_pos, target_pos), or choose another disk."
        )


ROOM = 4096  # of the header, for the certificate, which is known last


def _allocate(part: Path, J: EdgeJacobian, shape: tuple[int, ...]) -> None:
    _write_header(part, J, shape, None)
    with open(part, "r+b") as file:
        file.truncate(_offset(part) + math.prod(shape) * J.dtype.itemsize)


def _write_header(part: Path, J: EdgeJacobian, shape: tuple[int, ...], certificate: Certificate | None) -> None:
    listed = lambda pos: None if pos is None else [int(p) for p in pos]
    about = {
        "source": str(J.source),
        "target": str(J.target),
        "source_pos": listed(J.source_pos),
        "target_pos": listed(J.target_pos),
        "certificate": None if certificate is None else certificate.as_dict(),
    }
    size = math.prod(shape) * J.dtype.itemsize
    tensor = {"dtype": DTYPES[str(J.dtype)], "shape": list(shape), "data_offsets": [0, size]}
    # The format's metadata are strings.
    header = {"__metadata__": {name: json.dumps(value) for name, value in about.items()}, "jacobian": tensor}
    text = json.dumps(header).encode()
    length = (
        _offset(part) - 8 if part.exists() and certificate is not None else len(text) + ROOM + -(len(text) + ROOM) % 8
    )
    with open(part, "r+b" if part.exists() else "wb") as file:
        file.write(length.to_bytes(8, "little") + text.ljust(length))


def _offset(path: Path) -> int:
    with open(path, "rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def _header(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < 2**20 else {}
        end = 8 + length + header["jacobian"]["data_offsets"][1]
    except (ValueError, KeyError):
        raise ValueError(f"{path} is not a Jacobian that jc.save_jacobian wrote.") from None
    if path.stat().st_size < end:
        raise ValueError(
            f"{path} is truncated: {path.stat().st_size} bytes of {end}. Copy it again, or compute it again."
        )
    return header


def _map(path: Path, mode: Any) -> np.memmap:
    header = _header(path)["jacobian"]
    dtype = next(name for name, code in DTYPES.items() if code == header["dtype"])
    return np.memmap(path, dtype=jnp.dtype(dtype), mode=mode, offset=_offset(path), shape=tuple(header["shape"]))


def _is_ours(path: Path) -> bool:
    try:
        return bool(_header(path))
    except ValueError:
        return False


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)

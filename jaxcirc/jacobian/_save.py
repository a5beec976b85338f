"""Jacobians on disk: written as they are computed, part by part, read back as memory maps.

The file is an ordinary safetensors file with one tensor, `jacobian`, of shape `target_shape + source_shape`, so that any tool opens it;
sites, positions, the certificate and a fingerprint, by which it is known again, are its metadata.
"""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._checks import check_kind, check_path
from .._fingerprint import exact_fingerprint
from .._locks import writing_alone
from .._shown import Shown
from .._sites import Site
from .._typing import Progress
from ..runs import allowance
from ._certificate import Certificate
from ._engine import matrix_route, side_of
from ._layout import decoded, DTYPES, header_of, mapped, offset_of
from ._matrix import matrix_by
from ._operator import EdgeJacobian, random_key


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SavedJacobian(Shown):
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
    budget: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Certificate:
    """Writes the whole Jacobian to a safetensors file while it is computed, so that it need not fit into memory.

    Work that was stopped, in whatever way, goes on where it was, in another process too: parts lie in `<path>.part` until all are there
    and the certificate has passed. Parts of another Jacobian there are begun anew, with a warning. If the file holds this very Jacobian
    already, nothing is computed.

    **Arguments:** - `key`: of the certificate's probes. - `budget`: bytes that a part may take, unless given those that suit the
    device. - `overwrite`: whether a Jacobian that `path` holds is replaced. - `progress`: called with (done, of, stage) in positions.

    **Returns:** the certificate of what is on disk, which is in the file as well.

    **Raises:** `ValueError` if `path` holds another Jacobian or another file, while another process writes it, if the disk is too small,
    if the result is not finite, or if the certificate fails; then nothing is put at `path`.
    """
    check_kind("save_jacobian: J", J, EdgeJacobian, "an operator, as jc.edge gives one")
    path = check_path("save_jacobian: path", path)
    if J.product.transposed or not J.product.has_single_positions:
        raise ValueError(
            "save_jacobian: expected an edge between values that have one position each, not transposed; use J.as_matrix() for others."
        )
    report = progress or (lambda done, of, stage: None)
    key, route = random_key("save_jacobian", key), matrix_route(J.product)
    part, state = Path(f"{path}.part"), Path(f"{path}.part.json")
    if route == "columns" and math.prod(J.source_shape) == math.prod(J.target_shape):
        route = "rows"  # as many, and they lie on disk as they come
    side = side_of(route)
    positions = J.source_shape[0] if side == "source" else J.target_shape[0]
    is_there = saved_already(J, path, overwrite=overwrite)
    with contextlib.nullcontext() if is_there else _alone(path, part):
        # Whoever had the parts until now may have finished.
        if is_there or saved_already(J, path, overwrite=overwrite):
            report(positions, positions, "jacobian")
            return Certificate(**load_jacobian(path).certificate)
        of = _identity(J)
        plan = {"of": of, "side": side}
        done = _resumed(part, state, plan, _bytes(J))
        if not done:
            # What was written of another goes first, or a process that is stopped here would leave its count with parts of this one.
            _remove(state)
            os.truncate(part, 0)
            _check_disk(path, J)
            _allocate(part, J, of)
        _write_header(part, J, of)
        matrix = mapped(part, "r+")
        report(done, positions, "jacobian")
        for block in _parts(J, route, done, allowance(budget)):
            count = block.shape[len(J.target_shape)] if side == "source" else block.shape[0]
            where = slice(done, done + count)
            if side == "source":
                matrix[(slice(None),) * len(J.target_shape) + (where,)] = block
            else:
                matrix[where] = block
            matrix.flush()
            done += count
            aside = Path(f"{state}.new")  # a count that is cut short would lose what it counts
            aside.write_text(json.dumps({**plan, "done": done}), encoding="utf-8")
            os.replace(aside, state)
            report(done, positions, "jacobian")
        try:
            certificate = J.certificate(key, matrix=matrix)
        except ValueError:
            _remove(part, state)
            raise
        _write_header(part, J, of, certificate)
        os.replace(part, path)
        _remove(state, Path(f"{state}.new"))
    return certificate


@contextlib.contextmanager
def _alone(path: Path, part: Path) -> Iterator[None]:
    """Holds the parts. **Raises:** `ValueError` while another has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with writing_alone(part):
            yield
    except BlockingIOError:
        raise ValueError(
            f"{path} is being written by another process, whose parts are in {part}. Wait for its end, or choose another name."
        ) from None


def saved_already(J: EdgeJacobian, path: str | Path, *, overwrite: bool = False) -> bool:
    """Whether `path` holds this Jacobian, and is not to be overwritten.

    **Raises:** `ValueError` if it holds another one that is not to be overwritten, or something else, which never is.
    """
    check_free(path)
    if overwrite or not Path(path).exists():
        return False
    header = header_of(Path(path))
    about, tensor = header["__metadata__"], header["jacobian"]
    of = json.loads(about.get("of", "null"))
    if of == _identity(J):
        return True
    holds = _described(decoded(about), tensor["shape"], tensor["dtype"])
    wanted = _described(_about(J), [*J.target_shape, *J.source_shape], DTYPES[str(J.dtype)])
    if holds != wanted:
        but = f"and here is {wanted}"
    elif of is None:
        but = "and does not say for which prompt and model, as it was written by an older jaxcirc"
    else:
        but = "for another prompt, another model, other held sites or weights of another precision"
    raise ValueError(
        f"{path} holds a Jacobian already, {holds}, {but}. Choose another name, remove the file, or have it overwritten (overwrite=True)."
    )


def check_free(path: str | Path) -> None:
    """ValueError if something stands at `path` that is not a saved Jacobian: call it before long work."""
    path = Path(path)
    if path.exists() and not (path.is_file() and _is_ours(path)):
        raise ValueError(f"{path} exists and is not a saved Jacobian. Choose another path, or remove it.")


def _described(about: dict[str, Any], shape: list[int], dtype: str) -> str:
    some = lambda pos: "" if pos is None else f" at positions {pos}"
    ends = " -> ".join(f"{about[end]}{some(about[f'{end}_pos'])}" for end in ("source", "target"))
    return f"{ends} {shape} {dtype}"


def load_jacobian(path: str | Path) -> SavedJacobian:
    """Opens a Jacobian that `jc.save_jacobian` wrote, without reading it into memory.

    **Raises:** `ValueError` if the file is not one, or is truncated.
    """
    path = check_path("load_jacobian: path", path)
    header = header_of(path)
    about = decoded(header["__metadata__"])
    return SavedJacobian(
        matrix=mapped(path, "r"),
        source=Site.parse(about["source"]),
        target=Site.parse(about["target"]),
        source_pos=about["source_pos"],
        target_pos=about["target_pos"],
        certificate=about["certificate"],
    )


def _parts(J: EdgeJacobian, route: str, done: int, budget: int) -> Iterator[np.ndarray]:
    """Yields the parts that are not done, by the route of the whole, in order of the positions of the end by which it goes."""
    side, seq = side_of(route), J.product.seq
    everywhere = lambda pos: np.arange(seq) if pos is None else np.asarray(pos)
    pos = everywhere(J.source_pos if side == "source" else J.target_pos)
    each = math.prod(J.source_shape) * math.prod(J.target_shape) // len(pos) * J.dtype.itemsize
    count = max(1, min(len(pos), budget // (2 * each)))
    for begin in range(done, len(pos), count):
        group = jnp.asarray(pos[begin : begin + count], jnp.int32)
        restricted = J.restricted(source_pos=group) if side == "source" else J.restricted(target_pos=group)
        yield np.asarray(matrix_by(restricted.product, route))


def _identity(J: EdgeJacobian) -> str:
    """Fingerprints the Jacobian, to the last bit of its model and prompt, whichever engine makes it."""
    return exact_fingerprint(dataclasses.replace(J.product, engine="auto"))


def _resumed(part: Path, state: Path, plan: dict[str, Any], size: int) -> int:
    """Counts the positions that an earlier attempt at the same Jacobian, of `size` bytes, has written."""
    try:
        before = json.loads(state.read_text(encoding="utf-8"))
        done = int(before["done"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    if done and part.stat().st_size and any(before.get(name) != value for name, value in plan.items()):
        warnings.warn(
            f"{part} holds {done} positions of another Jacobian (another prompt, model, dtype or choice of positions, or made by another "
            "version of jaxcirc), so this one begins anew.",
            stacklevel=3,
        )
        return 0
    return done if part.stat().st_size > size else 0


def _check_disk(path: Path, J: EdgeJacobian) -> None:
    size, free = _bytes(J), shutil.disk_usage(path.parent).free
    if size > free:
        raise ValueError(
            f"A Jacobian of shape {(*J.target_shape, *J.source_shape)} takes {size / 2**30:.3g} GiB, and {free / 2**30:.3g} GiB are free "
            f"beside {path}. Restrict the positions (source_pos, target_pos), or choose another disk."
        )


ROOM = 4096  # of the header, for the certificate, which is known last


def _allocate(part: Path, J: EdgeJacobian, of: str) -> None:
    _write_header(part, J, of)
    with open(part, "r+b") as file:
        file.truncate(offset_of(part) + _bytes(J))


def _bytes(J: EdgeJacobian) -> int:
    return math.prod((*J.target_shape, *J.source_shape)) * J.dtype.itemsize


def _write_header(part: Path, J: EdgeJacobian, of: str, certificate: Certificate | None = None) -> None:
    """Writes the header, as long with the certificate as without, so that writing it again repairs one that was cut short."""
    tensor = {
        "dtype": DTYPES[str(J.dtype)],
        "shape": [*J.target_shape, *J.source_shape],
        "data_offsets": [0, _bytes(J)],
    }

    def text(certificate: Certificate | None) -> bytes:
        about = {**_about(J), "certificate": None if certificate is None else certificate.as_dict(), "of": of}
        # The format's metadata are strings.
        return json.dumps({"__metadata__": {k: json.dumps(v) for k, v in about.items()}, "jacobian": tensor}).encode()

    length = len(text(None)) + ROOM
    length += -length % 8
    with open(part, "r+b") as file:
        file.write(length.to_bytes(8, "little") + text(certificate).ljust(length))


def _about(J: EdgeJacobian) -> dict[str, Any]:
    listed = lambda pos: None if pos is None else [int(p) for p in pos]
    return {
        "source": str(J.source),
        "target": str(J.target),
        "source_pos": listed(J.source_pos),
        "target_pos": listed(J.target_pos),
    }


def _is_ours(path: Path) -> bool:
    try:
        return bool(header_of(path))
    except ValueError:
        return False


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)

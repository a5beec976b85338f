"""Files in and out: tensors and text read safely, results never half-written, and text in UTF-8 whatever the locale."""

import contextlib
import os
import secrets
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors

from ._checks import check_path


WRITTEN = "/jaxcirc/write_duration"  # JAX's monitoring is told of each file or folder that is written, and of how long it took

# How files begin that are taken for others, and what to do about it.
_BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer and not the file itself: fetch that with git lfs pull",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"<head": "a web page",
    b"<?xml": "an XML document",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"BZh": "compressed by bzip2: unpack it first",
    b"\xfd7zXZ": "compressed by xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed by Zstandard: unpack it first",
    b"PK\x03\x04": "a zip archive, as PyTorch, NumPy (.npz) and spreadsheets are saved",
    b"PAR1": "a parquet table",
    b"ARROW1": "an Arrow (Feather) table",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array (.npy)",
    b"SQLite format 3": "an SQLite database",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a picture (PNG)",
    b"\xff\xfe": "text in UTF-16: save it as UTF-8",
    b"\xfe\xff": "text in UTF-16: save it as UTF-8",
    **{b"\x80" + bytes([protocol]): "a pickle of Python objects" for protocol in range(2, 6)},
}


def looks_like(start: bytes) -> str | None:
    """What a file is that was taken for another, told by its first bytes: `"a web page: …"`; `None` if nothing tells."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginning, what in _BEGINNINGS.items():
        if start.startswith(beginning) or (beginning.isascii() and text.startswith(beginning.lower())):
            return what
    return None


def no_text(start: bytes) -> str | None:
    """The same for a file that has to be text."""
    return looks_like(start) or (
        "a file of numbers or a program, not text: it holds zero bytes" if b"\0" in start else None
    )


def read_text(path: Path, *, expected: str) -> str:
    """The text of a file in UTF-8, whatever the locale, without a byte-order mark.

    **Raises:** `ValueError`, which says what was expected, if it is not text, or text of another kind.
    """
    held = path.read_bytes()
    if what := no_text(held[:512]):
        raise ValueError(f"{path} looks like {what}. Expected {expected}.")
    try:
        return held.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + held.count(b"\n", 0, error.start)
        raise ValueError(f"{path}, line {line} is not text in UTF-8. Save the file as UTF-8.") from None


def write_text(path: Path, text: str) -> None:
    """Writes in UTF-8, whatever the locale.

    Half of a surrogate pair, which UTF-8 has no bytes for, comes from names of files and from damaged JSON; as `\\udce9` it is what JSON
    reads back.
    """
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a safetensors file.

    **Raises:** `ValueError` if the file is truncated or not safetensors at all.
    """
    with open_safetensors(path) as file:
        return {name: read_tensor(file, name, path) for name in file.keys()}


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """Opens a safetensors file, of which nothing but the header is read until a tensor or a slice of one is asked for.

    **Raises:** `ValueError` if the file is truncated or not safetensors at all.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except safetensors.SafetensorError as error:
        with path.open("rb") as file:
            start = file.read(512)
        what = None if start[8:9] == b"{" else looks_like(start)  # after its length comes the header, an object of JSON
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}). "
            + (f"It looks like {what}." if what else f"Its size is {path.stat().st_size} bytes: download it again.")
        ) from None


def read_tensor(file: Any, name: str, path: Path, index: Any = ...) -> np.ndarray:
    """A tensor of an open safetensors file, or the part of it that `index`, a tuple of slices, cuts out.

    **Raises:** `ValueError` if NumPy cannot hold its type.
    """
    try:
        return file.get_tensor(name) if index is ... else file.get_slice(name)[index]
    except (TypeError, AttributeError, KeyError):  # NumPy has no such type; bfloat16 it has, from JAX
        dtype = file.get_slice(name).get_dtype()
        raise ValueError(
            f"{path}: tensor `{name}` is stored as {dtype}, which cannot be read. Save it as float32."
        ) from None


def read_torch(path: Path) -> object:
    """What a `.pt`, `.pth` or `.bin` file holds, by `torch.load(weights_only=True)`: tensors and plain containers, never code.

    **Raises:** `ImportError` without PyTorch; `ValueError` if the file is truncated, or a pickle that is more than weights.
    """
    try:
        import torch
    except ImportError:
        raise ImportError(
            f"{path.name} is a PyTorch file, and reading it takes PyTorch: pip install 'jaxcirc[torch]'. "
            "A safetensors file needs none."
        ) from None
    import pickle

    with open(path, "rb") as file:
        start = file.read(512)
    if not start.startswith((b"PK", b"\x80")):  # a zip archive, or a pickle: all that PyTorch writes
        what = looks_like(start)
        raise ValueError(
            f"{path} is not a PyTorch file (it begins with {start[:12]!r}). "
            + (f"It looks like {what}. " if what else "")
            + "Download the file itself."
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols, in a file that is then refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} is a pickle that holds more than weights, and loading it could run code, so it is refused. Load it where you "
            "trust it and save its tensors: safetensors.torch.save_file(state_dict, path)."
        ) from None
    except (RuntimeError, EOFError, OSError) as error:  # which of them depends on where the file ends
        why = str(error).partition("\n")[0] or "it ends too early"
        raise ValueError(f"{path} is not a whole PyTorch file ({why}). Download it again.") from None


PICTURES = (".svg", ".pdf", ".png")

# What is being written: the folder that it is written in, and what its temporary names there begin with. And what was moved aside for it,
# `{where it is: where it belongs}`.
_unfinished: set[tuple[Path, str]] = set()
_moved: dict[Path, Path] = {}


def abandon() -> None:
    """Removes what is being written and puts back what was moved aside for it: for a process that leaves at this very moment."""
    for old, path in list(_moved.items()):
        if old.exists() and not path.exists():
            os.replace(old, path)
    for folder, begin in list(_unfinished):
        for aside in [entry for entry in folder.iterdir() if entry.name.startswith(begin)] if folder.is_dir() else []:
            if aside.is_dir():
                shutil.rmtree(aside, ignore_errors=True)
            else:
                aside.unlink(missing_ok=True)


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[str]:
    """Makes the folder of `path`, and yields what temporary names in it begin with. Errors that name such a file name `path` instead."""
    # Noted before there is anything of this name: never is something there and not known.
    noted = path.parent, f".{path.name}.{secrets.token_hex(4)}."
    _unfinished.add(noted)
    began = time.perf_counter()
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            error.filename = str(path)
            raise
        yield noted[1]
    except OSError as error:
        if noted[1] in str(error.filename):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        _unfinished.discard(noted)
        jax.monitoring.record_event_duration_secs(WRITTEN, time.perf_counter() - began)


def check_writable(path: str | Path) -> None:
    """Tries whether something can be written at `path`, and leaves nothing: call it before long work.

    **Raises:** `OSError` that names `path`, if its folder is not there and cannot be made, is no folder, or may not be written to.
    """
    path = Path(path)
    try:
        folder = next(folder for folder in path.absolute().parents if folder.exists())
        # A trial says more than permission bits, which bind neither root nor every file system.
        os.rmdir(tempfile.mkdtemp(prefix=f".{path.name}."[:200], dir=folder))
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None


def check_figure(name: str, path: str | Path, *, suffixes: tuple[str, ...] = PICTURES) -> Path:
    """`path` as a path. **Raises:** `ValueError` unless a picture of one of these kinds can be written there."""
    return check_new_file(name, path, suffixes)


def check_new_file(name: str, path: str | Path, suffixes: tuple[str, ...]) -> Path:
    """`path` as a path. **Raises:** `ValueError` unless it ends in one of these, and for a folder. Its own folder is made with the file."""
    target = check_path(name, path)
    if target.suffix not in suffixes:
        raise ValueError(f"{name}: {target} does not end in {_one_of(suffixes)}. Name it so.")
    if target.is_dir():
        raise ValueError(f"{name}: {target} is a folder. Expected the name of a file.")
    return target


def _one_of(suffixes: tuple[str, ...]) -> str:
    return suffixes[0] if len(suffixes) == 1 else f"one of {', '.join(suffixes)}"


@contextlib.contextmanager
def writing_file(path: str | Path, *, suffix: str | None = None) -> Iterator[Path]:
    """Yields a path beside `path` to write to, with its suffix or another, and renames it into place at the end; after an error nothing is
    left.
    """
    path = check_path("path", path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder. Expected the name of a file.")
    with _beside(path) as prefix:
        handle, aside = tempfile.mkstemp(
            prefix=prefix, suffix=path.suffix if suffix is None else suffix, dir=path.parent
        )
        os.close(handle)
        try:
            yield Path(aside)
            os.chmod(aside, 0o644)  # mkstemp makes it private
            os.replace(aside, path)
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def writing_folder(path: str | Path, *, marker: str, what: str) -> Iterator[Path]:
    """Yields a folder beside `path` to write to, and renames it into place at the end; after an error nothing is left.

    An existing folder is replaced only if it holds `marker`, the file that every `what` has; what else lies in it is kept, unless the
    new folder has a file of that name.

    **Raises:** `ValueError` if `path` exists and is not one of ours.
    """
    check_replaceable(path, marker=marker, what=what)
    path = Path(path)
    with _beside(path) as prefix:
        aside = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
        try:
            yield aside
            os.chmod(aside, 0o755)
            for file in aside.rglob("*"):  # safetensors makes its files private
                if file.is_file():
                    os.chmod(file, 0o644)
            if path.exists():
                _carry_over(path, aside)
            _swap(aside, path, prefix)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


def _carry_over(old: Path, new: Path) -> None:
    for kept in old.iterdir():
        if not (new / kept.name).exists():
            shutil.copytree(kept, new / kept.name) if kept.is_dir() else shutil.copy2(kept, new / kept.name)


def _swap(new: Path, path: Path, prefix: str) -> None:
    """Renames `new` to `path`. What stood there is moved aside first, and moved back if the renaming fails."""
    if not path.exists():
        os.replace(new, path)
        return
    holder = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
    old = holder / "old"
    _moved[old] = path
    try:
        os.replace(path, old)
        try:
            os.replace(new, path)
        except BaseException:
            os.replace(old, path)
            raise
    finally:
        del _moved[old]
        if path.exists():  # or else what stood here is in the holder, and that stays
            shutil.rmtree(holder, ignore_errors=True)


def check_replaceable(path: str | Path, *, marker: str, what: str) -> None:
    """ValueError if something that is not a `what` stands at `path`: call it before long work."""
    path = check_path("folder", path)
    if path.exists() and not (path / marker).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(
            f"{path} exists and is not a {what} (it holds no {marker}). Choose another path, or remove it."
        )

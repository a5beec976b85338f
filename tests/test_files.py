"""Files: read whole or refused, written whole or not at all."""

import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from jaxcirc import _files
from jaxcirc._files import check_replaceable, read_safetensors, read_torch, writing_file, writing_folder


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
READ_ONLY = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
ERRORS = pytest.mark.parametrize("error", [FULL, READ_ONLY, ValueError("broken"), KeyboardInterrupt()], ids=repr)

a_circuit = {"marker": "circuit.json", "what": "circuit"}


def fails(error):
    def raises(*_args, **_kwargs):
        raise error

    return raises


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def save_file(path: Path, text: str, error: BaseException | None = None) -> None:
    """Writes a file, and breaks off with the error after it."""
    with writing_file(path) as aside:
        aside.write_text(text)
        if error:
            raise error


def save(folder: Path, text: str, error: BaseException | None = None) -> None:
    """Writes a folder of two files, and breaks off with the error between them."""
    with writing_folder(folder, **a_circuit) as aside:
        (aside / "circuit.json").write_text(text)
        if error:
            raise error
        (aside / f"{text}.txt").write_text(text)


def test_a_file_is_written(tmp_path):
    path = tmp_path / "deep" / "er" / "table.json"
    for text in ("first", "second"):
        with writing_file(path) as aside:
            assert aside.parent == path.parent
            assert aside.suffix == ".json"
            aside.write_text(text)
        assert path.read_text() == text
    assert names(path.parent) == ["table.json"]
    assert path.stat().st_mode & 0o777 == 0o644


@ERRORS
@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_is_not_half_written(tmp_path, error, before):
    path = tmp_path / "table.json"
    if before:
        path.write_text(before)
    with pytest.raises(type(error)) as caught:
        save_file(path, "hal", error)
    assert caught.value is error
    assert names(tmp_path) == (["table.json"] if before else [])
    assert not before or path.read_text() == before


@pytest.mark.parametrize("call", ["tempfile.mkstemp", "os.chmod", "os.replace"])
@pytest.mark.parametrize("error", [FULL, READ_ONLY], ids=repr)
def test_a_file_that_cannot_be_put_in_place(tmp_path, monkeypatch, call, error):
    path = tmp_path / "table.json"
    path.write_text("old")
    module, name = call.split(".")
    monkeypatch.setattr(getattr(_files, module), name, fails(error))
    with pytest.raises(type(error)):
        save_file(path, "new")
    monkeypatch.undo()
    assert names(tmp_path) == ["table.json"]
    assert path.read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_disk_that_is_full(tmp_path):
    def write():
        with writing_file(tmp_path / "table.json") as aside:
            aside.unlink()
            aside.symlink_to("/dev/full")
            aside.write_text("a text")

    with pytest.raises(OSError, match="No space left"):
        write()
    assert names(tmp_path) == []


def test_a_folder_is_written_and_replaced_and_other_files_in_it_stay(tmp_path):
    folder = tmp_path / "deep" / "circuit"
    save(folder, "first")
    assert names(folder.parent) == ["circuit", "circuit/circuit.json", "circuit/first.txt"]
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.md").write_text("kept")
    save(folder, "second")
    kept = ["circuit/first.txt", "circuit/notes", "circuit/notes/mine.md", "circuit/second.txt"]
    assert names(folder.parent) == ["circuit", "circuit/circuit.json", *kept]
    assert (folder / "circuit.json").read_text() == "second"
    assert folder.stat().st_mode & 0o777 == 0o755


def test_an_empty_folder_may_be_taken(tmp_path):
    (tmp_path / "circuit").mkdir()
    save(tmp_path / "circuit", "first")
    assert names(tmp_path) == ["circuit", "circuit/circuit.json", "circuit/first.txt"]


@ERRORS
@pytest.mark.parametrize("before", [False, True])
def test_a_folder_is_not_half_written(tmp_path, error, before):
    folder = tmp_path / "circuit"
    if before:
        save(folder, "first")
    with pytest.raises(type(error)) as caught:
        save(folder, "hal", error)
    assert caught.value is error
    assert names(tmp_path) == (["circuit", "circuit/circuit.json", "circuit/first.txt"] if before else [])


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_folder_that_cannot_be_put_in_place(tmp_path, monkeypatch, fails_at):
    """Moving the old one aside fails, or moving the new one in: the old one stands as it was."""
    folder = tmp_path / "circuit"
    save(folder, "first")
    moves, replace = [], os.replace

    def fail_once(source, target):
        moves.append(source)
        if len(moves) == fails_at:
            raise READ_ONLY
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(PermissionError):
        save(folder, "second")
    assert names(tmp_path) == ["circuit", "circuit/circuit.json", "circuit/first.txt"]


def test_a_read_only_place(tmp_path, monkeypatch):
    monkeypatch.setattr(_files.tempfile, "mkdtemp", fails(READ_ONLY))
    with pytest.raises(PermissionError):
        save(tmp_path / "circuit", "first")
    assert names(tmp_path) == []


def test_what_is_not_ours_is_not_touched(tmp_path):
    thesis, file = tmp_path / "thesis", tmp_path / "file"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("years of work")
    file.write_text("a file")
    for path in (thesis, file):
        message = (
            f"{path.name} exists and is not a circuit .it holds no circuit.json.. Choose another path, or remove it"
        )
        with pytest.raises(ValueError, match=message):
            check_replaceable(path, **a_circuit)
        with pytest.raises(ValueError, match=message):
            save(path, "mine")
    assert names(tmp_path) == ["file", "thesis", "thesis/chapter.tex"]
    check_replaceable(tmp_path / "new", **a_circuit)


def test_safetensors_are_read(tmp_path):
    tensors = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([1, 2], np.int32)}
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    read = read_safetensors(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read[name], tensor)


@pytest.mark.parametrize("size", [0, 4, 40, -1])
def test_truncated_safetensors(tmp_path, size):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"a": np.arange(6.0)}, path)
    path.write_bytes(path.read_bytes()[:size])
    message = (
        rf"x.safetensors is not a whole safetensors file .* size is {path.stat().st_size} bytes: download it again"
    )
    with pytest.raises(ValueError, match=message):
        read_safetensors(path)


def test_torch_files_without_torch(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"ae.pt is a PyTorch file.*pip install 'jaxcirc\[torch\]'"):
        read_torch(tmp_path / "ae.pt")


def test_torch_files_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    for zipped in (True, False):
        torch.save({"a": torch.arange(3), "k": 5}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        read = read_torch(tmp_path / "x.pt")
        assert isinstance(read, dict)
        assert read["a"].tolist() == [0, 1, 2]
        assert read["k"] == 5


class Code:
    """A pickle of it runs a command when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_pickles_with_code_are_refused(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.ones(3), "b": Code()}, "zip.pt")
    torch.save({"b": Code()}, "legacy.pt", _use_new_zipfile_serialization=False)
    Path("plain.pt").write_bytes(pickle.dumps(Code()))
    for name in ("zip.pt", "legacy.pt", "plain.pt"):
        with pytest.raises(
            ValueError, match=f"{name} is a pickle that holds more than weights.*safetensors.torch.save_file"
        ):
            read_torch(Path(name))
    assert not Path("ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_torch_files(tmp_path, zipped, share):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pt"
    torch.save({"a": torch.arange(3000)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"x.pt is not a whole PyTorch file \(.+\). Download it again"):
        read_torch(path)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs", b"<html>"])
def test_what_is_no_torch_file(tmp_path, content):
    pytest.importorskip("torch")
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"x.pt is not a PyTorch file \(it begins with b'.*'\)"):
        read_torch(tmp_path / "x.pt")

"""Files: read whole or refused, written whole or not at all."""

import ast
import contextlib
import doctest
import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from jaxcirc import _files
from jaxcirc._files import (
    check_replaceable,
    read_safetensors,
    read_text,
    read_torch,
    write_text,
    writing_file,
    writing_folder,
)

from .conftest import CACHE
from .helpers import REPOSITORY


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


# Text is UTF-8


LIBRARY = [
    path
    for folder in ("jaxcirc", "benchmarks", "weights")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
    if "_shipped" not in path.parts
]


def calls(source: str):
    """Every call of a program, and of the examples in its docstrings."""
    examples = doctest.DocTestParser().get_examples(source) if ">>>" in source else []
    for text in (source, *(example.source for example in examples)):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call):
                yield node


def lacks_encoding(call: ast.Call) -> bool:
    """Whether a call opens text, or runs a program for its text, in whatever encoding the locale has."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = getattr(call.func.value, "id", "") if isinstance(call.func, ast.Attribute) else None
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in given:
        return False
    place = {"read_text": 0, "write_text": 1}
    if name in place and owner is not None:
        return len(call.args) <= place[name]
    if name in ("run", "Popen", "check_output", "getoutput") and owner == "subprocess":
        return bool(given.keys() & {"text", "universal_newlines"}) or name == "getoutput"
    if name in ("open", "fdopen", "NamedTemporaryFile", "TemporaryFile", "TextIOWrapper"):
        if owner == "os" and name == "open":
            return False
        at = 0 if name.endswith("TemporaryFile") or (name == "open" and owner is not None) else 1
        default = "w+b" if name.endswith("TemporaryFile") else "r"
        mode = given.get("mode", call.args[at] if len(call.args) > at else ast.Constant(default))
        modes = [
            node.value for node in ast.walk(mode) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        return not any("b" in mode for mode in modes)
    return False


def test_text_is_never_read_or_written_in_the_encoding_of_the_locale():
    assert len(LIBRARY) > 200
    for wrong in (
        "open(p)",
        "p.open('w')",
        "p.read_text()",
        "p.write_text(t)",
        "subprocess.run(c, text=True)",
        "os.fdopen(h, 'w')",
    ):
        assert all(map(lacks_encoding, calls(f'"""An example.\n\n>>> {wrong}\n"""'))), wrong
        assert any(map(lacks_encoding, calls(wrong))), wrong
    for right in (
        "open(p, 'rb')",
        "p.open('rb')",
        "p.read_text('utf-8')",
        "p.write_text(t, encoding='utf-8')",
        "write_text(p, t)",
    ):
        assert not any(map(lacks_encoding, calls(right))), right
    found = [
        f"{path.relative_to(REPOSITORY)}: {ast.unparse(call)}"
        for path in LIBRARY
        for call in calls(path.read_text(encoding="utf-8"))
        if lacks_encoding(call)
    ]
    assert not found, "\n".join(found)


def test_half_a_character_is_written_as_an_escape_that_json_reads(tmp_path):
    name = os.fsdecode(b"pr\xf6mpts")  # of a file whose name is Latin-1
    write_text(tmp_path / "x.json", json.dumps({"file": name, "letter": "é"}, ensure_ascii=False))
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"file": "pr\udcf6mpts", "letter": "é"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one\n\xe9\n", "x.txt, line 2 is not text in UTF-8"),
        ("é".encode("utf-16"), "x.txt looks like text in UTF-16: save it as UTF-8. Expected a prompt a line"),
        (b"a\0b", "x.txt looks like a file of numbers or a program, not text"),
        (b"version https://git-lfs.github.com/spec/v1\n", "x.txt looks like a Git LFS pointer"),
    ],
)
def test_text_that_is_none(tmp_path, content, message):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_text(tmp_path / "x.txt", expected="a prompt a line")


def test_text_is_read_without_its_mark(tmp_path):
    for text in ("é <|endoftext|>", "<|endoftext|> is no web page", ""):
        (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert read_text(tmp_path / "x.txt", expected="text") == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "It looks like a Git LFS pointer"),
        (b"<!doctype html><html></html>", "It looks like a web page"),
        (b"PK\x03\x04 and so on", "It looks like a zip archive"),
    ],
)
def test_what_is_no_safetensors_file(tmp_path, content, message):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=rf"x.safetensors is not a whole safetensors file .*\. {message}"):
        read_safetensors(tmp_path / "x.safetensors")


IN_ASCII = r"""
import json, os, pathlib, sys
import jaxcirc as jc
from jaxcirc.cli import main

assert sys.stdout.encoding.lower() in ("ascii", "us-ascii", "ansi_x3.4-1968"), sys.stdout.encoding
prompts, folder = sys.argv[1], pathlib.Path(sys.argv[2])
given = ["--model", "tiny-gpt2", "--saes", "tiny-gpt2"]
how = ["--by-position", "--method", "gradient", "--node-threshold", "0.2"]
find = ["discover", *given, "--prompts", prompts, *how, "--out", str(folder / "circuit")]
assert main(find) == 0
sys.stdout.flush()
print("---")
assert main([*find, "--json"]) == 0
sys.stdout.flush()
print("---")
ends = ["--source", "blocks.0.hook_mlp_out", "--target", "blocks.1.hook_mlp_out", "--minimum", "0.1", "--top", "2"]
assert main(["features", *given, *ends, "--prompt", sys.argv[3], "--plot", str(folder / "features.svg")]) == 0
circuit = jc.Circuit.load(folder / "circuit")
notes = jc.load_annotations(folder / "notes.csv")
circuit = circuit.annotate(tokens=["\u0120\u00e9"] * len(circuit.meta["tokens"]), annotations=notes, title="\u0436\u0435\u0441\u0442")
circuit.save(folder / "again")
circuit.to_html(folder / "x.html")
circuit.to_figure(folder / "x.svg")
circuit.to_attribution_graph(folder / "x.json")
circuit.to_graphviz().save(folder / "x.dot")
print(circuit)
again = jc.Circuit.load(folder / "again")
assert again.meta == circuit.meta
"""


def test_everything_is_written_and_printed_where_the_locale_is_ascii(tmp_path):
    """One program, as a user of such a machine runs it: UTF-8 in files whatever the locale, and escapes where the screen has no letters."""
    prompts = tmp_path / "prömpts.jsonl"
    rows = [
        {
            "clean_prefix": f"é The {noun}",
            "patch_prefix": f"é The {noun}s",
            "clean_answer": " is",
            "patch_answer": " are",
        }
        for noun in ("teacher", "doctor")
    ]
    prompts.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    (tmp_path / "notes.csv").write_text("Name,Annotation\nresid_0/ε,Жест\n", encoding="utf-8")
    plain = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONPATH": str(REPOSITORY),
        "JAX_PLATFORMS": "cpu",
    }
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"} | plain
    done = subprocess.run(
        [sys.executable, "-c", IN_ASCII, str(prompts), str(tmp_path), "é The doctor"],
        env=environment | {"JAX_COMPILATION_CACHE_DIR": CACHE or str(tmp_path / "cache")},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    assert done.stdout.isascii()
    printed, said, _ = done.stdout.decode("ascii").split("---\n")
    assert "strongest nodes" in printed
    assert json.loads(said)["nodes"] > 0
    assert "Жест" in (tmp_path / "again" / "circuit.json").read_text(encoding="utf-8")
    for name in ("x.html", "x.svg", "x.json", "x.dot", "features.svg"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert len(text) > 200
        assert name not in ("x.html", "x.json") or "é" in text


# Where nothing can be written, for root neither: under a file, and where the kernel keeps its own.
NOWHERE = ["FILE/result", "FILE/deeper/result", "/proc/result", "/proc/deeper/result"]


@pytest.mark.parametrize("place", NOWHERE)
def test_errors_name_the_path_that_was_asked_for(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("a file")
    for write in (save_file, save):
        with pytest.raises(OSError, match=r"Errno") as caught:
            write(Path(place), "text")
        assert caught.value.filename == place
    with pytest.raises(OSError, match=r"Errno") as caught:
        _files.check_writable(place)
    assert caught.value.filename == place
    assert names(tmp_path) == ["FILE"]


def test_an_error_inside_what_is_written_names_what_was_asked_for(tmp_path):
    def write():
        with writing_folder(tmp_path / "circuit", **a_circuit) as aside:
            (aside / "no" / "where").write_text("")

    with pytest.raises(FileNotFoundError) as caught:
        write()
    assert caught.value.filename == str(tmp_path / "circuit")
    with pytest.raises(FileNotFoundError) as caught, writing_file(tmp_path / "table.json"):
        Path("/no/where/else").read_text()
    assert caught.value.filename == "/no/where/else"
    assert names(tmp_path) == []


def test_a_place_is_tried_and_left_as_it_was(tmp_path):
    for place in ("result", "deeper/and/deeper/result"):
        _files.check_writable(tmp_path / place)
    assert names(tmp_path) == []


def test_what_is_being_written_can_be_abandoned(tmp_path):
    """At any moment, for a process that leaves: nothing of it stays, and what stood there before does."""
    save(tmp_path / "circuit", "first")
    with contextlib.suppress(FileNotFoundError), writing_folder(tmp_path / "circuit", **a_circuit) as aside:
        (aside / "circuit.json").write_text("half")
        with contextlib.suppress(FileNotFoundError), writing_file(tmp_path / "table.json") as other:
            other.write_text("half")
            assert len(names(tmp_path)) == 6
            _files.abandon()
            assert names(tmp_path) == ["circuit", "circuit/circuit.json", "circuit/first.txt"]
    assert not _files._unfinished
    assert (tmp_path / "circuit" / "circuit.json").read_text() == "first"

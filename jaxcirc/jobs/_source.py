"""Prompts of a file or a folder, a range of lines at a time: millions of them are never in memory at once.

A source is gone through once when it is opened, for its digest and for where each range begins; ranges are then read where they stand.
"""

import abc
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TYPE_CHECKING

from .._checks import check_path
from .._files import looks_like, no_text, read_text
from .._json_text import parsed
from .._records import Record, records_of_lines
from ..data._rows import ROWS


if TYPE_CHECKING:
    import pyarrow

EXPECTED = "JSON lines, a parquet file, or a folder that datasets' save_to_disk wrote; of an object, or a row, for each pair of prompts"
LOOKED_AT = 20  # lines, of which at least one has to be a JSON object
CHUNK = 2**20
ROWS_AT_ONCE = 1024


class Range(NamedTuple):
    """Lines from `first` to `last`, both counted from 1 and both in it."""

    first: int
    last: int


class AbstractSource(abc.ABC):
    """Numbered rows.

    **Attributes:** - `path`. - `digest`: SHA-256 of all that is read. - `size`: bytes. - `lines`: how many there are, blank ones too.
    """

    path: Path
    digest: str
    size: int
    lines: int

    @abc.abstractmethod
    def ranges(self, wanted: Iterable[Range]) -> Iterator[list[tuple[int, Record]]]:
        """Yields for each range, of which each begins behind the one before, its rows with their line numbers."""


def open_source(path: str | Path, every: int) -> AbstractSource:
    """Opens prompts, of which ranges begin at every so many lines. What a file is, its beginning says and not its name.

    **Raises:** `ValueError` for what holds no prompts.
    """
    path = check_path("prompts", path)
    if path.is_dir():
        return _ArrowFolder(path)
    if not path.exists():
        raise ValueError(f"prompts: {path} does not exist. Expected {EXPECTED}.")
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(b"PAR1"):
        return _Parquet(path)
    if what := looks_like(start):
        raise ValueError(f"prompts: {path} looks like {what}. Expected {EXPECTED}.")
    return _Lines(path, every)


class _Lines(AbstractSource):
    """JSON lines. The place of every range's first line is noted."""

    def __init__(self, path: Path, every: int):
        self.path, self.every, self.begins, self.lines = path, every, [], 0
        self._check_objects()
        digest, self.size = hashlib.sha256(), 0
        with path.open("rb") as file:
            for number, line in enumerate(file):
                if number % every == 0:
                    self.begins.append(self.size)
                digest.update(line)
                self.size += len(line)
                self.lines = number + 1
        self.digest, self.seen = digest.hexdigest(), _version(path)

    def ranges(self, wanted: Iterable[Range]) -> Iterator[list[tuple[int, Record]]]:
        with self.path.open("rb") as file:
            for first, last in wanted:
                _check_version(self.path, self.seen)
                file.seek(self.begins[(first - 1) // self.every])
                lines = list(enumerate(itertools.islice(file, last - first + 1), first))
                written = [(number, _bare(number, line)) for number, line in lines if _bare(number, line).strip()]
                yield list(zip((number for number, _ in written), records_of_lines(written), strict=True))

    def _check_objects(self) -> None:
        with self.path.open("rb") as file:
            lines = (_bare(number, line) for number, line in enumerate(file, 1))
            some = list(itertools.islice((line for line in lines if line.strip()), LOOKED_AT))
        if not some:
            raise ValueError(f"prompts: {self.path} is empty. Expected {EXPECTED}.")
        if some[0].lstrip().startswith(b"[") and not isinstance(parsed(some[0].decode("utf-8", "replace")), list):
            raise ValueError(
                f"prompts: {self.path} is a JSON list, which is read at once. Write an object a line: JSON lines."
            )
        if not any(isinstance(parsed(line.decode("utf-8", "replace")), dict) for line in some):
            if what := no_text(some[0]):  # a zero byte alone is a broken line, as further down
                raise ValueError(f"prompts: {self.path} looks like {what}. Expected {EXPECTED}.")
            shown = some[0].strip().decode("utf-8", "replace")[:40]
            raise ValueError(
                f"prompts: none of the first lines of {self.path} is a JSON object; the first is {shown!r}. Expected one "
                f"{ROWS.partition(';')[0]}."
            )


class _Table(AbstractSource):
    """Record batches, of which the ones that no range touches are passed by."""

    @abc.abstractmethod
    def _batches(self, wanted: list[Range]) -> "Iterator[tuple[int, pyarrow.RecordBatch]]":
        """Yields batches in order, each with the number of its first row; those that are not wanted may be left out."""

    def ranges(self, wanted: Iterable[Range]) -> Iterator[list[tuple[int, Record]]]:
        wanted = list(wanted)
        batches, held = self._batches(wanted), None
        for first, last in wanted:
            found: list[tuple[int, Record]] = []
            while (held := next(batches, None) if held is None else held) is not None:
                begins, batch = held
                begin, end = max(first, begins), min(last + 1, begins + batch.num_rows)
                if begin < end:
                    rows = batch.slice(begin - begins, end - begin).to_pylist()
                    found += [(begin + i, Record(f"row {begin + i}", row)) for i, row in enumerate(rows)]
                if begins + batch.num_rows > last:
                    break  # it may reach into the next range
                held = None
            yield found


class _Parquet(_Table):
    def __init__(self, path: Path):
        import pyarrow.parquet

        self.path, self.size = path, path.stat().st_size
        self.digest, self.seen = _digest([path]), _version(path)
        with _readable(path), pyarrow.parquet.ParquetFile(path) as file:
            about = file.metadata
            self.groups = [about.row_group(i).num_rows for i in range(about.num_row_groups)]
        self.lines = sum(self.groups)
        _check_any(self)

    def _batches(self, wanted: list[Range]) -> "Iterator[tuple[int, pyarrow.RecordBatch]]":
        import pyarrow.parquet

        _check_version(self.path, self.seen)
        begins = 1
        with _readable(self.path), pyarrow.parquet.ParquetFile(self.path) as file:
            for group, count in enumerate(self.groups):
                if _touched(begins, count, wanted):
                    at = begins
                    for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], use_threads=False):
                        yield at, batch
                        at += batch.num_rows
                begins += count


class _ArrowFolder(_Table):
    """A folder as datasets' `save_to_disk` writes it: Arrow streams, in the order that `state.json` names, or else of their names."""

    def __init__(self, path: Path):
        self.path, self.files = path, _arrow_files(path)
        self.size, self.digest = sum(file.stat().st_size for file in self.files), _digest(self.files)
        self.counts = [sum(batch.num_rows for batch in _stream(file)) for file in self.files]
        self.lines = sum(self.counts)
        _check_any(self)

    def _batches(self, wanted: list[Range]) -> "Iterator[tuple[int, pyarrow.RecordBatch]]":
        begins = 1
        for file, count in zip(self.files, self.counts, strict=True):
            if _touched(begins, count, wanted):
                at = begins
                for batch in _stream(file):  # mapped and not read, until its rows are asked for
                    yield at, batch
                    at += batch.num_rows
            begins += count


def _arrow_files(path: Path) -> list[Path]:
    """**Raises:** `ValueError` for another folder, or one of several splits."""
    if (dictionary := path / "dataset_dict.json").is_file():
        splits = _about(dictionary, "splits", lambda split: isinstance(split, str))
        raise ValueError(f"prompts: {path} holds several splits. Name one: {', '.join(str(path / s) for s in splits)}.")
    state = path / "state.json"
    named = _about(state, "_data_files", lambda each: isinstance(each, dict) and "filename" in each)
    files = [path / str(each["filename"]) for each in named] or sorted(path.glob("*.arrow"))
    if missing := [file.name for file in files if not file.is_file()]:
        raise ValueError(
            f"prompts: {path} lacks {', '.join(missing)}, which its state.json names. Copy all of the folder."
        )
    if not files:
        raise ValueError(f"prompts: the folder {path} holds no .arrow files. Expected {EXPECTED}.")
    return files


def _about(path: Path, name: str, is_one: Callable[[Any], bool]) -> list[Any]:
    """The list of this name in a file that datasets writes about a folder; an empty one if there is no such file, or no such name in it.

    **Raises:** `ValueError` that names the file, for one that is broken.
    """
    if not path.is_file():
        return []
    held = parsed(read_text(path, expected="what datasets' save_to_disk writes"))
    listed = held.get(name, []) if isinstance(held, dict) else None
    if not isinstance(listed, list) or not all(map(is_one, listed)):
        raise ValueError(
            f"prompts: {path} is not what datasets' save_to_disk writes, or not all of it. Copy the folder again."
        )
    return listed


def _stream(path: Path) -> "Iterator[pyarrow.RecordBatch]":
    import pyarrow.ipc

    with _readable(path), pyarrow.memory_map(str(path)) as file:
        if file.read(6) == b"ARROW1":  # the format of files, which pyarrow writes; datasets writes streams
            reader = pyarrow.ipc.open_file(file)
            yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            file.seek(0)
            yield from pyarrow.ipc.open_stream(file)


class _readable:
    """Errors of pyarrow as ours."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, where: Any) -> None:
        import pyarrow

        if isinstance(error, pyarrow.ArrowException):
            raise ValueError(
                f"prompts: {self.path} is not a whole table ({error}). Download or write it again."
            ) from None


def _check_any(source: AbstractSource) -> None:
    if not source.lines:
        raise ValueError(f"prompts: {source.path} has no rows. Expected {EXPECTED}.")


def _touched(begins: int, count: int, wanted: list[Range]) -> bool:
    return any(first < begins + count and last >= begins for first, last in wanted)


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def _bare(number: int, line: bytes) -> bytes:
    """A line without the byte-order mark that some programs put before the first."""
    return line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def _version(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns


def _check_version(path: Path, seen: tuple[int, int]) -> None:
    if _version(path) != seen:
        raise ValueError(f"prompts: {path} was changed while it was read. Leave it as it is until the work is done.")

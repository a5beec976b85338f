"""The rows of a table of text, whatever it is stored as: JSON lines, a JSON list or object, CSV, TSV or parquet.

What a file holds says its beginning, not its name.
"""

import csv
import itertools
import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ._files import no_text
from ._json_text import items, json_kind, members, parsed


_TOLD = 20
_MARK = b"\xef\xbb\xbf"  # the byte-order mark, which some programs put before text in UTF-8
_NOT_UTF8 = "is not text in UTF-8. Save the file as UTF-8."


class Record(NamedTuple):
    """A row: where it stands, `"line 3"`, and its fields by name; or in `problem` why it has none, the end of a sentence."""

    where: str
    fields: dict[str, Any]
    problem: str = ""


class Problems:
    """Rows that cannot be used, gathered so that one error tells them all, up to twenty, and then how many more there are."""

    def __init__(self) -> None:
        self.count, self._told = 0, []

    def add(self, sentence: str) -> None:
        self.count += 1
        if len(self._told) < _TOLD:
            self._told.append(sentence)

    def error(self, path: Path, remedy: str) -> ValueError:
        """For one row its sentence; for several how many there are, and a line for each."""
        if self.count == 1:
            return ValueError(f"{path}, {self._told[0]} {remedy}")
        more = [f"and {self.count - _TOLD} more."] if self.count > _TOLD else []
        return ValueError("\n".join([f"{path} has {self.count} rows that cannot be used:", *self._told, *more, remedy]))


def read_records(path: Path, names: Collection[str], expected: str) -> Iterator[Record]:
    """The rows of the table in a file, in order and one at a time.

    - JSON lines: an object a line. A line that is none is a row with a problem.
    - A JSON list of objects, over however many lines. An object that has one list of objects among its members stands for that list; one
      whose members are columns, lists or pandas' objects by index, for their rows; any other object is one row.
    - CSV or TSV, divided by commas, tabs or semicolons: the first line names the columns.
    - Parquet.

    JSON lines, CSV, TSV and parquet may be larger than memory.

    **Arguments:**

    - `names`: of fields, in small letters, by which the head of a table and the columns in an object are known.
    - `expected`: what the file should hold, for messages: `"one object a line …"`.

    **Raises:** `ValueError` for what is none of these, which says what it looks like.
    """
    with path.open("rb") as file:
        start = file.peek(512)[:512]
        if start.startswith(b"PAR1"):
            yield from _of_parquet(path)
            return
        if what := no_text(start):
            raise ValueError(f"{path} looks like {what}. Expected {expected}.")
        lines = ((number, line.removeprefix(_MARK) if number == 1 else line) for number, line in enumerate(file, 1))
        written = ((number, line) for number, line in lines if line.strip())
        first = next(written, None)
        if first is None:
            return
        head = _decoded(*first, path)
        if head.lstrip()[0] not in "{[" and (delimiter := _delimiter(head, names)):
            yield from _of_table(itertools.chain([first], lines), delimiter, path)
        elif isinstance(parsed(head), dict) and (second := next(written, None)):
            yield from records_of_lines(itertools.chain([first, second], written))
        else:
            yield from _of_whole([first, *lines], names, path, expected)


def _of_whole(lines: list[tuple[int, bytes]], names: Collection[str], path: Path, expected: str) -> Iterator[Record]:
    """Of a text that is one JSON value, or JSON lines of which the first is broken."""
    number = lines[0][0]
    text = "".join(_decoded(*line, path) for line in lines)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if _are_lines([line for _, line in lines]):
            yield from records_of_lines((n, line) for n, line in lines if line.strip())
            return
        if text.lstrip()[0] in "{[":
            where, why = number + error.lineno - 1, f"is not JSON ({error.msg} at column {error.colno})"
        else:
            where, why = number, f"is neither JSON nor the head of a table with such columns: {text.strip()[:40]!r}"
        raise ValueError(f"{path}, line {where} {why}. Expected {expected}.") from None
    if isinstance(value, dict):
        yield from _of_object(value, text, number, names, path)
    elif isinstance(value, list) and (not value or any(isinstance(item, dict) for item in value)):
        yield from _of_list(text, text.index("["), number)
    else:
        yield _record(f"line {number}", value)


def _are_lines(lines: list[bytes]) -> bool:
    """Whether each line was to be an object, though the first is none: it does not end in the midst of one, or all others are objects."""
    first, *others = (line.strip() for line in lines if line.strip())
    are_objects = [isinstance(parsed(line.decode("utf-8")), dict) for line in others]
    if first.startswith(b"{") and not first.endswith((b"{", b"[", b",", b":")):
        return any(line.startswith(b"{") for line in lines[1:])
    return bool(others) and (all(are_objects) if first[:1] in b"{[" else any(are_objects))


def _decoded(number: int, line: bytes, path: Path) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}, line {number} {_NOT_UTF8}") from None


def _record(where: str, value: Any) -> Record:
    return Record(where, value) if isinstance(value, dict) else Record(where, {}, f"is a JSON {json_kind(value)}.")


def records_of_lines(lines: Iterable[tuple[int, bytes]]) -> Iterator[Record]:
    """The rows of numbered JSON lines. A line that is no object is a row with a problem."""
    for number, line in lines:
        where = f"line {number}"
        try:
            yield _record(where, json.loads(line.decode("utf-8")))
        except UnicodeDecodeError:
            yield Record(where, {}, _NOT_UTF8)
        except json.JSONDecodeError as error:
            yield Record(where, {}, f"is not JSON ({error.msg} at column {error.colno}).")
        except (ValueError, RecursionError):  # a number of thousands of digits, or thousands of brackets in each other
            yield Record(where, {}, "is JSON that is too deep or has too long a number.")


def _of_list(text: str, begin: int, number: int) -> Iterator[Record]:
    for entry, (line, item) in enumerate(items(text, begin), start=1):
        yield _record(f"line {number + line - 1} (entry {entry})", item)


def _of_object(value: dict[str, Any], text: str, number: int, names: Collection[str], path: Path) -> Iterator[Record]:
    known = {name: held for name, held in value.items() if name.lower() in names}
    lists = [name for name, held in value.items() if isinstance(held, list) and held and isinstance(held[0], dict)]
    if known and all(isinstance(held, list | dict) for held in known.values()):
        columns = [list(held.values()) if isinstance(held, dict) else held for held in known.values()]
        if len(sizes := {len(column) for column in columns}) > 1:
            raise ValueError(f"{path} holds columns of {sorted(sizes)} entries. Expected as many in one as in another.")
        for row, fields in enumerate(zip(*columns, strict=True), start=1):
            yield Record(f"row {row}", dict(zip(known, fields, strict=True)))
    elif not known and len(lists) == 1:
        yield from _of_list(text, dict(members(text))[lists[0]], number)
    else:
        yield Record(f"line {number}", value)


def _delimiter(head: str, names: Collection[str]) -> str | None:
    """What divides the columns in the head of a table; `None` if none of these names is a column."""
    known = {delimiter: sum(name.lower() in names for name in _columns(head, delimiter)) for delimiter in ",\t;"}
    best = max(known, key=known.__getitem__)
    return best if known[best] else None


def _columns(head: str, delimiter: str) -> list[str]:
    return [name.strip() for name in next(csv.reader([head], delimiter=delimiter))]


def _of_table(lines: Iterator[tuple[int, bytes]], delimiter: str, path: Path) -> Iterator[Record]:
    number, head = next(lines)
    columns = _columns(_decoded(number, head, path), delimiter)
    rows = csv.reader((_decoded(*line, path) for line in lines), delimiter=delimiter, strict=True)
    before = 0
    try:
        for row in rows:
            where, before = f"line {number + before + 1}", rows.line_num
            if len(row) == len(columns):
                yield Record(where, dict(zip(columns, row, strict=True)))
            elif row:
                yield Record(where, {}, f"has {len(row)} fields, and the head of the table {len(columns)}.")
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {number + before + 1} is no row of a table ({error}). Correct its quotes."
        ) from None


def _of_parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    row = itertools.count(1)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                for fields in batch.to_pylist():
                    yield Record(f"row {next(row)}", fields)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is not a whole parquet table ({error}). Download or write it again.") from None

"""The folder of results: shards that are there whole or not at all, and the list of what was skipped."""

import errno
import json
import os
from pathlib import Path
from typing import Any, NamedTuple, TYPE_CHECKING

from .._files import write_text, writing_file
from ._lock import briefly_alone
from ._shards import Part, Shard, shard_files


if TYPE_CHECKING:
    import pyarrow

SKIPPED = "skipped.jsonl"
_KEY = b"jaxcirc"
_ASIDE = ".part"  # not the suffix of a table, which what is half-written is not


class Skipped(NamedTuple):
    """A line that no result is of, and why."""

    line: int
    reason: str


class Found(NamedTuple):
    """What came of a shard: its table, how many prompts it is of, and which lines were skipped."""

    shard: Shard
    table: "pyarrow.Table"
    prompts: int
    skipped: list[Skipped]


class Counts(NamedTuple):
    """Of a shard, or of several: lines, prompts, lines skipped, rows of the table."""

    lines: int = 0
    prompts: int = 0
    skipped: int = 0
    rows: int = 0

    def plus(self, other: "Counts") -> "Counts":
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))


def write_shard(out: Path, found: Found) -> Counts:
    """Writes a shard under another name, and renames it when all of it is on the disk. What was skipped is in it too, so that both are
    there or neither.

    **Raises:** `OSError` that says so if the disk is full; nothing is then left of the shard.
    """
    import pyarrow.parquet

    counts = _counts(found)
    about = {
        "lines": list(found.shard.lines),
        "counts": list(counts),
        "skipped": [list(each) for each in found.skipped],
    }
    table = found.table.replace_schema_metadata({_KEY: json.dumps(about).encode()})
    path = out / found.shard.name
    try:
        with writing_file(path, suffix=_ASIDE) as aside, aside.open("wb") as file:
            pyarrow.parquet.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"No space is left for {path}. Nothing of it is there, and the shards before it are whole: make space and run the same again, "
            "which goes on from there."
        ) from None
    return counts


def _counts(found: Found) -> Counts:
    first, last = found.shard.lines
    return Counts(last - first + 1, found.prompts, len(found.skipped), found.table.num_rows)


def counts_of(out: Path, shard: Shard) -> Counts | None:
    """Reads what a shard says of itself; `None` if it is not there, or no whole table of these lines."""
    about = _about(out / shard.name)
    return Counts(*about["counts"]) if about is not None and about["lines"] == list(shard.lines) else None


def _about(path: Path) -> dict[str, Any] | None:
    import pyarrow
    import pyarrow.parquet

    try:
        return json.loads((pyarrow.parquet.read_schema(path).metadata or {})[_KEY])
    except (OSError, pyarrow.ArrowException, KeyError, ValueError):
        return None


def list_skipped(out: Path) -> None:
    """Writes the list of skipped lines, of all shards that are there, in the order of lines."""
    with briefly_alone(out):  # whoever lists last lists all
        found = [_about(path) or {} for path in shard_files(out)]
        rows = [Skipped(*each) for about in found for each in about.get("skipped", ())]
        with writing_file(out / SKIPPED) as aside:
            write_text(aside, "".join(json.dumps(each._asdict(), ensure_ascii=False) + "\n" for each in rows))


def clear_leftovers(out: Path, part: Part) -> None:
    """Removes the shards that a killed process was writing, of those that nobody but this part writes."""
    for path in out.glob(f".shard-*{_ASIDE}"):
        number = path.name.removeprefix(".shard-").partition(".")[0]
        if number.isdecimal() and int(number) % part.of == part.number:
            path.unlink(missing_ok=True)

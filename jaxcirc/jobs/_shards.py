"""Shards: fixed ranges of lines, so that what a shard holds depends on neither who computes it nor what was there before."""

from pathlib import Path
from typing import NamedTuple

from .._checks import check_count, check_kind
from ._source import Range


class Part(NamedTuple):
    """Which of several processes this one is, counted from 0: it takes every `of`-th shard, and nobody else takes those."""

    number: int = 0
    of: int = 1


ALL = Part()


class Shard(NamedTuple):
    """The shard of this number, counted from 0, and its lines."""

    number: int
    lines: Range

    @property
    def name(self) -> str:
        return f"shard-{self.number:08d}.parquet"


def shards_of(lines: int, each: int, part: Part = ALL) -> list[Shard]:
    """The shards of so many lines that are this part's."""
    every = [Shard(i, Range(i * each + 1, min(lines, (i + 1) * each))) for i in range(-(-lines // each))]
    return every[part.number :: part.of]


def check_part_of(name: str, part: Part) -> None:
    """ValueError unless there is such a part."""
    check_kind(name, part, Part, "a part of the work, such as jc.jobs.Part(0, 4)")
    check_count(name, "processes share the shards", part.of)
    check_count(name, "processes come before this one", part.number, least=0)
    if part.number >= part.of:
        raise ValueError(f"{name}: of {part.of} parts the first is 0 and the last {part.of - 1}; got {part.number}.")


def shard_files(out: Path) -> list[Path]:
    """The shards that are there, in order."""
    return sorted(out.glob("shard-*.parquet"))

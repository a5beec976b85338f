"""Prompts from files: pairs as the feature-circuits data and auto-circuit keep them, in any table of text."""

import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._checks import check_count, check_kind, check_optional_count, check_path
from .._records import Problems, read_records
from ._encode import beginning, check_beginnings, check_tokenizer
from ._prompts import as_ids, Prompts
from ._row_problems import Malformed, Unusable
from ._rows import NAMES, pair_of, PromptRow, ROWS


class _Reading(NamedTuple):
    """A file and how it is read."""

    path: Path
    tokenizer: Any
    bos: bool | None
    first_answer: bool
    skip_unusable: bool
    counterfactual: str | None

    def rows(self, *, limit: int | None = None, warn: bool = True) -> Iterator[PromptRow]:
        """Yields the usable pairs; at the end one error for all that are not, or a warning of those that were left out."""
        start = beginning(self.tokenizer, self.bos, of_file=True)
        problems, left_out, first, malformed, count = Problems(), 0, "", False, 0
        for record in read_records(self.path, NAMES, f"one {ROWS}"):
            try:
                row = pair_of(
                    record, self.tokenizer, start, first_answer=self.first_answer, counterfactual=self.counterfactual
                )
            except Malformed as problem:
                malformed = True
                problems.add(str(problem))
            except Unusable as problem:
                left_out, first = left_out + 1, first or f"{self.path}, {problem}"
                if not self.skip_unusable:
                    problems.add(str(problem))
            else:
                count += 1
                yield row
                if count == limit:
                    break
        if problems.count:
            remedies = [f"Expected one {ROWS}."] if malformed else []
            if left_out and not self.skip_unusable:
                remedies.append("Correct what is wrong, or leave such pairs out (skip_unusable=True).")
            raise problems.error(self.path, " ".join(remedies))
        if not count:
            raise ValueError(_nothing(self.path, left_out, first))
        if left_out and warn:
            warnings.warn(f"{self.path}: {_were(left_out)} left out, {count} read. The first: {first}", stacklevel=3)


def load_prompts(
    path: str | Path,
    tokenizer: Any,
    *,
    limit: int | None = None,
    skip_unusable: bool = False,
    bos: bool | None = None,
    first_answer: bool = False,
    counterfactual: str | None = None,
) -> Prompts:
    """Reads pairs of prompts, one JSON object a line:
    `{"clean_prefix": "The boy", "patch_prefix": "The boys", "clean_answer": " is", "patch_answer": " are"}`.

    The names may be auto-circuit's, `clean`, `corrupt`, `answers` and `wrong_answers`, an answer being text or a list of one, or those of
    `Prompts`, `clean`, `corrupt`, `answer` and `foil`; other names, such as `"case"`, are ignored. The same rows are read from a JSON list,
    from an object that has such a list (`{"prompts": […]}`), and from a table with these columns, CSV, TSV or parquet. Which of them a file
    is, its beginning says and not its name; text is UTF-8.

    Prompts are taken as the model's tokenizer takes them by itself: a file is data, which others have published and measured so. An
    answer that begins with the token is read without it. Pairs of different lengths may be together; the shorter ones are padded on the
    right.

    **Arguments:**

    - `limit`: read this many usable pairs at most, from the start.
    - `skip_unusable`: leave out pairs whose prompts differ in length or not at all, or whose answers are not one token each, or several,
      or the same, and warn with their number; otherwise they are an error.
    - `bos`: put the tokenizer's beginning-of-text token before each prompt that does not begin with it, or leave them as they stand; `None`
      puts it for models whose tokenizer does that by itself, and for Gemma.
    - `first_answer`: of several answers take the first; otherwise they are an error, because the metric, the answer's logit less the
      foil's, is of one each.
    - `counterfactual`: of rows of the circuit-localisation benchmark, which have several, the name of the one that is the corrupt prompt,
      such as `"abc"`; `None` takes the one that the benchmark does. The answers are their first tokens there, and `bos=True` as there.

    **Returns:** `Prompts` with the position end, and a mask if the lengths differ between pairs.

    **Raises:** `ValueError` that tells every row that is no pair, or is unusable, by its line and why, up to twenty of them; `ValueError`
    if the file is empty or something else, and if nothing usable is in it.

    >>> import pathlib
    >>> table = "clean,corrupt,answer,foil" + chr(10) + "The boy,The boys, is, are"
    >>> _ = pathlib.Path("pairs.csv").write_text(table, encoding="utf-8")
    >>> jc.data.load_prompts("pairs.csv", tokenizer).clean.shape
    (1, 2)

    **Reference:** the data of Marks et al. 2024, arXiv 2403.19647, and of auto-circuit (Miller, Chughtai and Saunders 2024, arXiv
    2407.08734).
    """
    path = check_path("load_prompts: path", path)
    check_tokenizer("load_prompts", tokenizer)
    check_optional_count("load_prompts: limit", "pairs to read at most", limit)
    _check_counterfactual("load_prompts", counterfactual)
    rows = list(_Reading(path, tokenizer, bos, first_answer, skip_unusable, counterfactual).rows(limit=limit))
    check_beginnings(tokenizer, [row.clean for row in rows], stacklevel=3)
    return padded_prompts(rows, max(len(row.clean) for row in rows), tokenizer)


class PromptFile:
    """The prompts of a file, `batch_size` at a time, each read when it is its turn: for files larger than memory.

    On making it the file is read once, so that a row that cannot be used is told before any work. All batches are as long as the longest
    prompt, so that they are compiled once. JSON lines, CSV, TSV and parquet are read row by row, a JSON list or object at once.

    **Arguments:** - `path`, `skip_unusable`, `bos`, `first_answer`, `counterfactual`: as in `jc.data.load_prompts`. - `batch_size`: how
    many pairs at a time.

    **Raises:** `ValueError` as `jc.data.load_prompts`.
    """

    def __init__(
        self,
        path: str | Path,
        tokenizer: Any,
        *,
        batch_size: int,
        skip_unusable: bool = False,
        bos: bool | None = None,
        first_answer: bool = False,
        counterfactual: str | None = None,
    ):
        check_tokenizer("PromptFile", tokenizer)
        check_count("PromptFile: batch_size", "pairs at a time", batch_size)
        self.path, self.tokenizer, self.batch_size = check_path("PromptFile: path", path), tokenizer, batch_size
        _check_counterfactual("PromptFile", counterfactual)
        self._reading = _Reading(self.path, tokenizer, bos, first_answer, skip_unusable, counterfactual)
        self._count = self._longest = 0
        beginnings = []
        for row in self._reading.rows():
            self._count, self._longest = self._count + 1, max(self._longest, len(row.clean))
            beginnings.append(row.clean[:2])
        check_beginnings(tokenizer, beginnings, stacklevel=3)

    def __len__(self) -> int:
        """How many batches there are."""
        return -(-self._count // self.batch_size)

    def __iter__(self) -> Iterator[Prompts]:
        rows = self._reading.rows(warn=False)
        while batch := list(itertools.islice(rows, self.batch_size)):
            yield padded_prompts(batch, self._longest, self.tokenizer)


def _check_counterfactual(who: str, name: str | None) -> None:
    if name is not None:
        check_kind(f"{who}: counterfactual", name, str, "the name of one, such as 's2_io_flip'")


def _nothing(path: Path, left_out: int, first: str) -> str:
    if left_out:
        return f"{path} holds no usable pair of prompts: {_were(left_out)} left out. The first: {first}"
    return f"{path} is empty. Expected one JSON {ROWS}."


def _were(count: int) -> str:
    return "1 pair is" if count == 1 else f"{count} pairs are"


def padded_prompts(rows: list[PromptRow], longest: int, tokenizer: Any) -> Prompts:
    """Makes prompts of rows, padded on the right to a length that none of them exceeds."""
    lengths = np.array([len(row.clean) for row in rows])
    special = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    pad = next(token for token in special if token is not None)
    pad_to = lambda ids: ids + [pad] * (longest - len(ids))
    mask = np.arange(longest)[None, :] < lengths[:, None]
    return Prompts(
        clean=as_ids([pad_to(row.clean) for row in rows]),
        corrupt=as_ids([pad_to(row.corrupt) for row in rows]),
        answer=as_ids([row.answer for row in rows]),
        foil=as_ids([row.foil for row in rows]),
        positions={"end": as_ids(lengths - 1)},
        mask=None if mask.all() else as_ids(mask).astype(bool),
    )

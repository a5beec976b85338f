"""Prompts from files: the JSON-lines schema of the feature-circuits data."""

import array
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._prompts import as_ids, Prompts


_KEYS = ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer")


class _Row(NamedTuple):
    clean: list[int]
    corrupt: list[int]
    answer: int
    foil: int


class _Unusable(ValueError):
    """A line that is well-formed, and that this tokenizer cannot make a prompt of."""


def load_prompts(path: str | Path, tokenizer: Any, *, limit: int | None = None, skip_unusable: bool = False) -> Prompts:
    """Reads pairs of prompts, one JSON object a line:
    `{"clean_prefix": "The boy", "patch_prefix": "The boys", "clean_answer": " is", "patch_answer": " are"}`.

    Other keys, such as `"case"`, are ignored. Prompts are taken as they are given: no beginning-of-text token is added, and one that
    stands before an answer is dropped. Pairs of different lengths may be together; the shorter ones are padded on the right.

    **Arguments:**

    - `limit`: read this many usable pairs at most, from the start.
    - `skip_unusable`: leave out pairs whose prompts differ in length or not at all, or whose answers are not one token each, or the
      same, and warn with their number; otherwise the first one is an error.

    **Returns:** `Prompts` with the position end, and a mask if the lengths differ between pairs.

    **Raises:** `ValueError` with the line's number for a line that is not JSON, lacks a key, or is unusable; `ValueError` if the file
    is empty, or if nothing usable is in it.

    **Reference:** the data of Marks et al. 2024, arXiv 2403.19647.
    """
    if limit is not None and limit < 1:
        raise ValueError(
            f"load_prompts: limit is how many pairs to read at most, at least 1, or None for all; got {limit}."
        )
    rows = [row for _, row in _usable(Path(path), tokenizer, skip_unusable, limit)]
    return _padded(rows, max(len(row.clean) for row in rows), tokenizer)


class PromptFile:
    """The prompts of a file, `batch_size` at a time, each read when it is its turn: for files larger than memory.

    On making it the file is read once, so that a line that cannot be used is told before any work; what stays in memory is where each
    pair begins. All batches are as long as the longest prompt, so that they are compiled once.

    **Arguments:** - `path`, `skip_unusable`: as in `jc.data.load_prompts`. - `batch_size`: how many pairs at a time.

    **Raises:** `ValueError` as `jc.data.load_prompts`.
    """

    def __init__(self, path: str | Path, tokenizer: Any, *, batch_size: int, skip_unusable: bool = False):
        if batch_size < 1:
            raise ValueError(f"PromptFile: batch_size must be at least 1, got {batch_size}.")
        self.path, self.tokenizer, self.batch_size = Path(path), tokenizer, batch_size
        self._longest, places = 0, array.array("q")
        for place, row in _usable(self.path, tokenizer, skip_unusable):
            places.append(place)
            self._longest = max(self._longest, len(row.clean))
        self._places = places

    def __len__(self) -> int:
        """How many batches there are."""
        return -(-len(self._places) // self.batch_size)

    def __iter__(self) -> Iterator[Prompts]:
        with self.path.open("rb") as file:
            for start in range(0, len(self._places), self.batch_size):
                rows = []
                for place in self._places[start : start + self.batch_size]:
                    file.seek(place)
                    where = f"{self.path}, at byte {place}"
                    rows.append(_encode(_parse(file.readline(), where), self.tokenizer, where))
                yield _padded(rows, self._longest, self.tokenizer)


def _usable(path: Path, tokenizer: Any, skip_unusable: bool, limit: int | None = None) -> Iterator[tuple[int, _Row]]:
    """Where each usable pair begins, and the pair; at the end a warning of what was left out."""
    reasons, count, place = [], 0, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if count == limit:
                break
            start, place = place, place + len(line)
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            fields = _parse(line, where)
            try:
                row = _encode(fields, tokenizer, where)
            except _Unusable as problem:
                if not skip_unusable:
                    raise ValueError(
                        f"{problem} Correct the line, or leave such lines out (skip_unusable=True, --skip-unusable)."
                    ) from None
                reasons.append(str(problem))
                continue
            count += 1
            yield start, row
    if not count:
        raise ValueError(_nothing(path, reasons))
    if reasons:
        warnings.warn(f"{path}: {len(reasons)} pairs are left out, {count} read. The first: {reasons[0]}", stacklevel=3)


def _parse(line: bytes, where: str) -> dict[str, str]:
    try:
        fields = json.loads(line)
    except UnicodeDecodeError:
        raise ValueError(f"{where} is not text in UTF-8. Save the file as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where} is not JSON ({error.msg} at column {error.colno}). Expected one object a line with {', '.join(_KEYS)}."
        ) from None
    missing = [key for key in _KEYS if key not in fields] if isinstance(fields, dict) else list(_KEYS)
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}. Expected one object a line with {', '.join(_KEYS)}.")
    wrong = [key for key in _KEYS if not isinstance(fields[key], str)]
    if wrong:
        raise ValueError(f"{where}: {wrong[0]} must be text, got {fields[wrong[0]]!r}.")
    return {key: fields[key] for key in _KEYS}


def _encode(fields: dict[str, str], tokenizer: Any, where: str) -> _Row:
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    clean, corrupt = encode(fields["clean_prefix"]), encode(fields["patch_prefix"])
    if not clean or not corrupt:
        raise _Unusable(f"{where}: a prompt is empty.")
    if len(clean) != len(corrupt):
        raise _Unusable(
            f"{where}: clean_prefix is {len(clean)} tokens and patch_prefix {len(corrupt)}; they must be of one length."
        )
    if clean == corrupt:
        raise _Unusable(f"{where}: clean_prefix and patch_prefix are the same; they differ in what is to be found.")
    answers = []
    for key in ("clean_answer", "patch_answer"):
        text = fields[key].removeprefix(tokenizer.bos_token) if tokenizer.bos_token else fields[key]
        ids = encode(text)
        if len(ids) != 1:
            raise _Unusable(
                f"{where}: {key} {text!r} must be one token, and is {tokenizer.convert_ids_to_tokens(ids)}. (Words in a sentence begin "
                "with a space.)"
            )
        answers.append(ids[0])
    if answers[0] == answers[1]:
        raise _Unusable(f"{where}: clean_answer and patch_answer are the same, so there is nothing to tell apart.")
    return _Row(clean, corrupt, *answers)


def _nothing(path: Path, reasons: list[str]) -> str:
    if reasons:
        return f"{path} holds no usable pair of prompts: {len(reasons)} were left out. The first: {reasons[0]}"
    return f"{path} is empty. Expected one JSON object a line with {', '.join(_KEYS)}."


def _padded(rows: list[_Row], longest: int, tokenizer: Any) -> Prompts:
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

"""Prompts from files: the JSON-lines schema of the feature-circuits data."""

import json
import warnings
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
    - `skip_unusable`: leave out pairs whose prompts differ in length, or whose answers are not one token, and warn with their number;
      otherwise the first one is an error.

    **Returns:** `Prompts` with the position end, and a mask if the lengths differ between pairs.

    **Raises:** `ValueError` with the line's number for a line that is not JSON, lacks a key, or is unusable; `ValueError` if the file
    is empty, or if nothing usable is in it.

    **Reference:** the data of Marks et al. 2024, arXiv 2403.19647.
    """
    path, rows, reasons = Path(path), [], []
    if limit is not None and limit < 1:
        raise ValueError(
            f"load_prompts: limit is how many pairs to read at most, at least 1, or None for all; got {limit}."
        )
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if limit is not None and len(rows) == limit:
                break
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            fields = _parse(line, where)
            try:
                rows.append(_encode(fields, tokenizer, where))
            except _Unusable as problem:
                if not skip_unusable:
                    raise ValueError(
                        f"{problem} Correct the line, or pass skip_unusable=True to leave such lines out."
                    ) from None
                reasons.append(str(problem))
    if not rows:
        raise ValueError(_nothing(path, reasons))
    if reasons:
        warnings.warn(
            f"{path}: {len(reasons)} pairs are left out, {len(rows)} read. The first: {reasons[0]}", stacklevel=2
        )
    return _padded(rows, tokenizer)


def _parse(line: str, where: str) -> dict[str, str]:
    try:
        fields = json.loads(line)
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
    answers = []
    for key in ("clean_answer", "patch_answer"):
        text = fields[key].removeprefix(tokenizer.bos_token) if tokenizer.bos_token else fields[key]
        ids = encode(text)
        if len(ids) != 1:
            raise _Unusable(
                f"{where}: {key} {text!r} must be one token, and is {tokenizer.convert_ids_to_tokens(ids)}."
            )
        answers.append(ids[0])
    return _Row(clean, corrupt, *answers)


def _nothing(path: Path, reasons: list[str]) -> str:
    if reasons:
        return f"{path} holds no usable pair of prompts: {len(reasons)} were left out. The first: {reasons[0]}"
    return f"{path} is empty. Expected one JSON object a line with {', '.join(_KEYS)}."


def _padded(rows: list[_Row], tokenizer: Any) -> Prompts:
    lengths = np.array([len(row.clean) for row in rows])
    longest = lengths.max()
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

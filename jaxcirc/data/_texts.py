"""A corpus from a file: plain text by lines, or texts in any table, as token ids."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from .._checks import check_optional_count, check_path
from .._files import read_text
from .._records import Problems, read_records
from ._encode import beginning, begun, check_tokenizer


NAMES = ("text", "prompt", "content", "clean", "clean_prefix", "tokens")
EXPECTED = 'text a line (.txt), or one text a row: {"text": "…"}'


def load_texts(
    path: str | Path,
    tokenizer: Any,
    *,
    limit: int | None = None,
    length: int | None = None,
    bos: bool | None = None,
) -> list[Int[np.ndarray, " _"]]:
    """Reads texts as token ids, one array each.

        A `.txt` file has a text a line. Any other is a table, JSON lines, JSON, CSV, TSV or parquet, with a column `text`, or `prompt`,
    `content`, `clean` or `clean_prefix`; or with `tokens`, lists of ids, which are taken as they are.

    **Arguments:** - `limit`: the first so many. - `length`: cuts each to so many tokens. - `bos`: whether the beginning-of-text token
    is put before each text, by the rule of the model's family for files unless given.

    **Raises:** `ValueError` for a file without texts, and one that says which rows are none.

    >>> from pathlib import Path
    >>> _ = Path("texts.txt").write_text("The boy likes the girl.", "utf-8")
    >>> [len(tokens) for tokens in jc.data.load_texts("texts.txt", tokenizer)]
    [6]
    """
    path = check_path("load_texts: path", path)
    check_optional_count("load_texts: limit", "texts", limit)
    check_optional_count("load_texts: length", "tokens", length)
    check_tokenizer("load_texts", tokenizer)
    start = beginning(tokenizer, bos, of_file=True)
    found, problems = [], Problems()
    for where, value, problem in _values(path):
        if len(found) == limit:
            break
        problem = problem or _problem(value)
        if problem:
            problems.add(f"{where} {problem}")
            continue
        ids = begun(tokenizer.encode(value, add_special_tokens=False), start) if isinstance(value, str) else list(value)
        if ids:
            found.append(np.asarray(ids[:length], np.int32))
    if problems.count:
        raise problems.error(path, f"Expected {EXPECTED}.")
    if not found:
        raise ValueError(f"{path} holds no text. Expected {EXPECTED}.")
    return found


def _values(path: Path) -> Iterator[tuple[str, Any, str]]:
    """Yields where each text stands, what is there, and why that is no row, if it is none."""
    if path.suffix == ".txt":
        lines = read_text(path, expected=EXPECTED).splitlines()
        yield from ((f"line {number}", line, "") for number, line in enumerate(lines, start=1) if line.strip())
        return
    for record in read_records(path, NAMES, EXPECTED):
        fields = {name.lower(): value for name, value in record.fields.items()}
        held = next((fields[name] for name in NAMES if name in fields), None)
        yield record.where, held, record.problem


def _problem(value: Any) -> str:
    if value is None:
        return f"has none of the columns {', '.join(NAMES)}."
    if isinstance(value, str):
        return ""
    whole = isinstance(value, list | tuple | np.ndarray) and all(isinstance(x, int | np.integer) for x in value)
    return "" if whole else f"holds a {type(value).__name__}, and not a text or a list of token ids."

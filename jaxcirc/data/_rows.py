"""A pair of prompts out of a row of a table: the schemas in use, and what a tokenizer makes of it."""

from typing import Any, NamedTuple

from .._records import Record
from ._counterfactual_rows import fields_of, has_counterfactuals
from ._encode import begun
from ._row_problems import Malformed, Unusable


# The four fields of a pair in each of the schemas in use; the last are the names in `Prompts`.
_SCHEMAS = (
    ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer"),
    ("clean", "corrupt", "answers", "wrong_answers"),
    ("clean", "corrupt", "answer", "wrong_answer"),
    ("clean", "corrupt", "answer", "foil"),
)
NAMES = {name for schema in _SCHEMAS for name in schema}
ROWS = (
    f"object a line with {', '.join(_SCHEMAS[0])} (or {', '.join(_SCHEMAS[1])}); a JSON list of such objects; or a table, CSV, TSV or "
    "parquet, with these columns"
)


class PromptRow(NamedTuple):
    clean: list[int]
    corrupt: list[int]
    answer: int
    foil: int


def pair_of(
    record: Record, tokenizer: Any, start: list[int], *, first_answer: bool, counterfactual: str | None
) -> PromptRow:
    """Makes the pair in a row, with `start` put before its prompts. **Raises:** `Malformed`; `Unusable`."""
    if record.problem:
        raise Malformed(f"{record.where} {record.problem}")
    fields, where = {name.lower(): value for name, value in record.fields.items()}, record.where
    if has_counterfactuals(fields):
        found = fields_of(fields, counterfactual, tokenizer, where)
        texts = {name: _text(name, value, where) for name, value in found}
        return _encode(texts, tokenizer, start, where, by_first_token=True)
    return _encode(_fields(record, fields, first_answer), tokenizer, start, where)


def _fields(record: Record, fields: dict[str, Any], first_answer: bool) -> dict[str, str]:
    """Finds the row's clean and corrupt prompt, answer and foil, in this order, by the names that they have there, in small letters."""
    where = record.where
    schema = max(_SCHEMAS, key=lambda schema: sum(name in fields for name in schema))
    missing = [name for name in schema if name not in fields]
    if missing:
        held = (
            f": its names are {', '.join(map(repr, list(record.fields)[:6]))}" if fields and len(missing) == 4 else ""
        )
        raise Malformed(f"{where} lacks {', '.join(missing)}{held}.")
    clean, corrupt, *answers = schema
    return {
        **{name: _text(name, fields[name], where) for name in (clean, corrupt)},
        **{name: _answer(name, fields[name], where, first_answer) for name in answers},
    }


def _text(name: str, value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise Malformed(f"{where}: {name} must be text, got {value!r}.")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can escape half of a surrogate pair
        raise Malformed(f"{where}: {name} holds half a character, {value!r}.") from None
    return value


def _answer(name: str, value: Any, where: str, first_answer: bool) -> str:
    if not isinstance(value, list):
        return _text(name, value, where)
    if not value:
        raise Unusable(f"{where}: {name} is an empty list.")
    if len(value) > 1 and not first_answer:
        some = ", ".join(map(repr, value[:3])) + (", …" if len(value) > 3 else "")
        raise Unusable(
            f"{where}: {name} lists {len(value)} ({some}), and the metric compares one answer with one foil. Give one, or take the first "
            "of each list (first_answer=True)."
        )
    return _text(name, value[0], where)


def _encode(
    fields: dict[str, str], tokenizer: Any, start: list[int], where: str, *, by_first_token: bool = False
) -> PromptRow:
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    of_clean, of_corrupt, *of_answers = fields
    clean, corrupt = encode(fields[of_clean]), encode(fields[of_corrupt])
    if not clean or not corrupt:
        raise Unusable(f"{where}: a prompt is empty.")
    clean, corrupt = begun(clean, start), begun(corrupt, start)
    if len(clean) != len(corrupt):
        raise Unusable(
            f"{where}: {of_clean} is {len(clean)} token{'s' * (len(clean) != 1)} and {of_corrupt} {len(corrupt)}; they must be of one "
            "length."
        )
    if clean == corrupt:
        raise Unusable(f"{where}: {of_clean} and {of_corrupt} are the same; they differ in what is to be found.")
    answers = []
    for name in of_answers:
        text = fields[name].removeprefix(tokenizer.bos_token) if tokenizer.bos_token else fields[name]
        ids = encode(text)
        if len(ids) != 1 and not (by_first_token and ids):
            raise Unusable(
                f"{where}: {name} {text!r} must be one token, and is {tokenizer.convert_ids_to_tokens(ids)}. (Words in a sentence begin "
                "with a space.)"
            )
        answers.append(ids[0])
    if answers[0] == answers[1]:
        raise Unusable(f"{where}: {' and '.join(of_answers)} are the same, so there is nothing to tell apart.")
    return PromptRow(clean, corrupt, *answers)

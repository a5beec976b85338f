"""Rows of the circuit-localisation benchmark: a prompt with counterfactuals by name, of which one is the corrupt prompt."""

from typing import Any, NamedTuple

from ._row_problems import Malformed, Unusable


SUFFIX = "_counterfactual"
_USUAL = (
    "s2_io_flip",
    "symbol",
    "random",
)  # what the benchmark takes: of indirect objects, of multiple choice, of sums
_NAMES = ("indirect_object", "subject", "random_c")


class Found(NamedTuple):
    """The value of a field, and what it is called in messages."""

    name: str
    value: Any


def has_counterfactuals(fields: dict[str, Any]) -> bool:
    """Whether a row is one of these, by its names in small letters."""
    return "prompt" in fields and any(name.endswith(SUFFIX) for name in fields)


def fields_of(fields: dict[str, Any], chosen: str | None, tokenizer: Any, where: str) -> list[Found]:
    """Finds the clean and the corrupt prompt, the answer and the foil.

    Of indirect objects these are the two names; of other tasks the right answer and that of the counterfactual.

    **Raises:** `Malformed` for a row without this counterfactual, or of no known task; `Unusable` where the names of an indirect-object
    sentence are not equally many tokens, as the benchmark leaves it out then.
    """
    name, other = _counterfactual(fields, chosen, where)
    pair = [Found("prompt", fields["prompt"]), Found(f"{name}.prompt", other.get("prompt"))]
    metadata = fields.get("metadata")
    if isinstance(metadata, dict) and all(part in metadata for part in _NAMES):
        _check_names(metadata, tokenizer, where)
        return [*pair, *(Found(f"metadata.{part}", f" {metadata[part]}") for part in _NAMES[:2])]
    answers = [_answer(row, where) for row in (fields, other)]
    return [*pair, Found("the answer", answers[0]), Found(f"the answer of {name}", answers[1])]


def _counterfactual(fields: dict[str, Any], chosen: str | None, where: str) -> tuple[str, dict[str, Any]]:
    """The name of a row's field, and its value with names in small letters."""
    there_are = [name.removesuffix(SUFFIX) for name in fields if name.endswith(SUFFIX)]
    name = chosen or next(name for name in (*_USUAL, *there_are[:1]) if name in there_are)
    found = fields.get(f"{name}{SUFFIX}")
    if not isinstance(found, dict):
        raise Malformed(f"{where} has no counterfactual {name!r}. It has {', '.join(map(repr, there_are))}.")
    return f"{name}{SUFFIX}", {key.lower(): value for key, value in found.items()}


def _check_names(metadata: dict[str, Any], tokenizer: Any, where: str) -> None:
    counts = {name: len(tokenizer(f" {metadata[name]}", add_special_tokens=False)["input_ids"]) for name in _NAMES}
    if len(set(counts.values())) > 1:
        raise Unusable(
            f"{where}: names must be equally many tokens: {', '.join(f'{n} is {c}' for n, c in counts.items())}."
        )


def _answer(row: dict[str, Any], where: str) -> str:
    """The label of the right choice, or of a sum: a word without a space before it."""
    if "label" in row:
        return str(row["label"])
    choices, key = row.get("choices"), row.get("answerkey")
    labels = choices.get("label") if isinstance(choices, dict) else None
    if not isinstance(labels, list) or not isinstance(key, int) or not 0 <= key < len(labels):
        raise Malformed(
            f"{where}: expected choices with labels and the number of the right one in answerKey, or a label."
        )
    return str(labels[key])

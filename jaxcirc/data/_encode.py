"""Text to tokens, with what prompts must satisfy checked on the way."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ._prompts import as_ids, Prompts


class Sentence(NamedTuple):
    """A text and the spans of its named words, `role -> (first character, last character + 1)`."""

    text: str
    spans: dict[str, tuple[int, int]]


class Pair(NamedTuple):
    """One example before it is encoded; `positions` are read from the clean sentence."""

    clean: Sentence
    corrupt: Sentence
    answer: str
    foil: str


def fill(template: str, words: Mapping[str, str], roles: Sequence[str]) -> Sentence:
    """`template` with its blanks filled, and where the words of `roles` stand; the template may lack some roles."""
    text, spans = "", {}
    for piece in template.replace("}", "{").split("{"):
        word = words.get(piece, piece)
        if piece in roles and piece in words:
            spans[piece] = (len(text), len(text) + len(word))
        text += word
    return Sentence(text, spans)


def beginning(tokenizer: Any, *, required: bool = False) -> list[int]:
    """Finds the beginning-of-text token, or nothing for a tokenizer without one.

    **Raises:** `ValueError` if it is required.
    """
    if required and tokenizer.bos_token_id is None:
        raise ValueError("This tokenizer has no beginning-of-text token to put before text (bos=True).")
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def begun(ids: list[int], start: list[int]) -> list[int]:
    """`ids` behind `start`, which is not put there a second time."""
    return ids if ids[: len(start)] == start else [*start, *ids]


def encode_pairs(tokenizer: Any, pairs: Sequence[Pair], *, bos: bool, what: str) -> Prompts:
    """Encodes all pairs into one rectangular set.

    **Raises:** `ValueError` if an answer or a named word is more than one token, or if the lengths differ.
    """
    start = beginning(tokenizer) if bos else []
    words = {
        text[first:last]
        for pair in pairs
        for text, spans in (pair.clean, pair.corrupt)
        for first, last in spans.values()
    }
    for word in sorted(words):
        single_token(tokenizer, " " + word, what)
    ids = {
        word: single_token(tokenizer, word, what)
        for word in sorted({w for pair in pairs for w in (pair.answer, pair.foil)})
    }
    clean, offsets = _encode(tokenizer, [pair.clean.text for pair in pairs])
    corrupt, _ = _encode(tokenizer, [pair.corrupt.text for pair in pairs])
    _check_lengths(tokenizer, pairs, clean, corrupt, what)
    roles = {
        role: [len(start) + _token_at(o, pair.clean.spans[role][1]) for o, pair in zip(offsets, pairs, strict=True)]
        for role in pairs[0].clean.spans
    }
    roles["end"] = [len(start) + len(row) - 1 for row in clean]
    return Prompts(
        clean=as_ids([start + row for row in clean]),
        corrupt=as_ids([start + row for row in corrupt]),
        answer=as_ids([ids[pair.answer] for pair in pairs]),
        foil=as_ids([ids[pair.foil] for pair in pairs]),
        positions={role: as_ids(position) for role, position in roles.items()},
    )


def check_tokenizer(verb: str, tokenizer: Any) -> None:
    """TypeError for what is no tokenizer."""
    if not callable(tokenizer) or not callable(getattr(tokenizer, "encode", None)):
        raise TypeError(
            f"{verb}: expected a tokenizer, such as jc.load_tokenizer gives, got a {type(tokenizer).__name__}."
        )


def single_token(tokenizer: Any, word: str, what: str) -> int:
    """Finds the id of `word`, which has to be one token."""
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ValueError(
            f"{what}: {word!r} must be one token, and this tokenizer splits it into {tokenizer.convert_ids_to_tokens(ids)}. Use a "
            "tokenizer that has it, or write prompts of your own words to a file for jc.data.load_prompts."
        )
    return ids[0]


def _encode(tokenizer: Any, texts: list[str]) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], encoded["offset_mapping"]


def _token_at(offsets: list[tuple[int, int]], last: int) -> int:
    return next(i for i, (_, end) in enumerate(offsets) if end >= last)


def _check_lengths(
    tokenizer: Any, pairs: Sequence[Pair], clean: list[list[int]], corrupt: list[list[int]], what: str
) -> None:
    want = len(clean[0])
    for pair, rows in zip(pairs, zip(clean, corrupt, strict=True), strict=True):
        for sentence, row in zip((pair.clean, pair.corrupt), rows, strict=True):
            if len(row) != want:
                raise ValueError(
                    f"{what}: all prompts must have one length; {pairs[0].clean.text!r} is {want} tokens, and {sentence.text!r} is "
                    f"{len(row)}: {tokenizer.convert_ids_to_tokens(row)}. Use a tokenizer that has its words as single tokens."
                )

"""Text to tokens, with what prompts must satisfy checked on the way."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Int

from .._checks import check_kind
from ..interop._beginning import needs_bos, puts_bos, RULE
from ._prompts import as_ids, Prompts


T = TypeVar("T")


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


def beginning(tokenizer: Any, bos: bool | None, *, of_file: bool = False) -> list[int]:
    """Finds what is put before a prompt: the beginning-of-text token as `bos` says, and for `None` by the rule of the model's family;
    `of_file` says that a file holds the prompt.

    **Raises:** `ValueError` if it is asked for and the tokenizer has none; `TypeError` for what is neither of the three.
    """
    check_kind("bos", bos, (bool, np.bool_, type(None)), "True, False, or None for the rule of the model's family")
    if bos and tokenizer.bos_token_id is None:
        raise ValueError("This tokenizer has no beginning-of-text token to put before text (bos=True).")
    put = puts_bos(tokenizer, of_file=of_file) if bos is None else bos
    return [tokenizer.bos_token_id] if put else []


def check_beginnings(tokenizer: Any, prompts: Iterable[Sequence[int]], *, stacklevel: int = 4) -> None:
    """Warns of prompts that begin with the beginning-of-text token twice, and of those without it for a model that was trained with it."""
    bos, prompts = tokenizer.bos_token_id, list(prompts)
    if bos is None:
        return
    twice = sum(list(ids[:2]) == [bos, bos] for ids in prompts)
    lacking = sum(ids[0] != bos for ids in prompts) if needs_bos(tokenizer) else 0
    for number, what in ((twice, "begin with it twice"), (lacking, "lack it, and this model was trained with it")):
        if number:
            warnings.warn(
                f"The beginning-of-text token {tokenizer.bos_token}: {number} of {len(prompts)} prompts {what}. {RULE}",
                stacklevel=stacklevel,
            )


def begun(ids: list[int], start: list[int]) -> list[int]:
    """`ids` behind `start`, which is not put there a second time."""
    return ids if ids[: len(start)] == start else [*start, *ids]


def encode_pairs(tokenizer: Any, pairs: Sequence[Pair], *, bos: bool | None, what: str) -> Prompts:
    """Encodes all pairs into one rectangular set, each behind what `beginning` says.

    **Raises:** `ValueError` if an answer or a named word is more than one token, or if the lengths differ.
    """
    start = beginning(tokenizer, bos)
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
    check_beginnings(tokenizer, [start + row for row in clean])
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


def usable(tokenizer: Any, options: Sequence[T], *, first: bool = False, least: int = 1) -> tuple[T, ...]:
    """Gives those of the words, pairs of words or phrases whose every word is one token, after a space but for the `first` of a text; all
    of them if fewer than `least` are, which is then told of one of them.
    """
    words = [word for option in options for word in _words(option)]
    encoded = tokenizer([word if first else f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    single = {word for word, ids in zip(words, encoded, strict=True) if len(ids) == 1}
    left = tuple(option for option in options if single.issuperset(_words(option)))
    return left if len(left) >= least else tuple(options)


def _words(option: Any) -> list[str]:
    return option.split() if isinstance(option, str) else list(option)


def check_tokenizer(verb: str, tokenizer: Any) -> None:
    """TypeError for what is no tokenizer."""
    if not callable(tokenizer) or not callable(getattr(tokenizer, "encode", None)):
        raise TypeError(
            f"{verb}: expected a tokenizer, such as jc.load_tokenizer gives, got a {type(tokenizer).__name__}."
        )


def as_prompt(verb: str, tokenizer: Any, prompt: Any, bos: bool | None = None) -> Int[np.ndarray, " seq"]:
    """Token ids of a prompt that is a text, behind what `beginning` says, or that is token ids, which are taken as they stand.

    **Raises:** `ValueError` for an empty prompt, and for `bos` with token ids; `TypeError` for what is neither, and for a text without a
    tokenizer.
    """
    if tokenizer is not None:
        check_tokenizer(verb, tokenizer)
    if not isinstance(prompt, str):
        if bos is not None:
            raise ValueError(f"{verb}: bos is about a text; token ids are taken as they stand. Leave it out.")
        check_kind(f"{verb}: prompt", prompt, (jax.Array, np.ndarray, Sequence), "a text, or token ids [seq]")
        ids = np.asarray(prompt)
        if not ids.size:
            raise ValueError(f"{verb}: the prompt is empty. Give at least one token.")
        return ids.astype(np.int32) if np.issubdtype(ids.dtype, np.integer) else ids  # which whoever runs it refuses
    if tokenizer is None:
        raise TypeError(
            f"{verb}: the prompt is a text, and there is no tokenizer. Give jc.load_tokenizer(…), or a prompt of token ids."
        )
    text = list(tokenizer.encode(prompt, add_special_tokens=False))
    if not text:
        raise ValueError(f"{verb}: the prompt is empty. Give a text of at least one token.")
    return np.asarray(begun(text, beginning(tokenizer, bos)), np.int32)


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

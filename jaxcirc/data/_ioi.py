"""Indirect-object sentences: "Then, Mary and John went to the store. John gave a drink to" -> " Mary"."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._checks import check_choice, check_count, check_kind, check_seed
from ._draw import check_number, distinct, SPLITS
from ._encode import check_tokenizer, encode_pairs, fill, Pair, usable
from ._prompts import as_ids, Prompts
from ._words import ARRIVALS, GIVING, held_out, IOI, NAMES, OBJECTS, OPENERS, PLACES


FLIPS = ("IO", "S", "S1", "S2", "order")
ROLES = ("IO", "S1", "S2")
SWAPPED = {"ABBA": "BABA", "BABA": "ABBA"}
_VERB = "jc.data.ioi"


def ioi(
    tokenizer: Any,
    n: int,
    *,
    template: str = "ABBA",
    flip: Sequence[str] = ("IO", "S1", "S2"),
    seed: int,
    split: str = "all",
    bos: bool | None = None,
) -> Prompts:
    """Indirect-object prompts: the answer is the name said once (IO), the foil the name said twice (S). No two of them are the same.

    Words that are more than one token for this tokenizer are left out.

    **Arguments:**

    - `n`: how many; at most 100,000 at once.
    - `template`: the order of the two names in the first clause, `"ABBA"` (IO first), `"BABA"` (S first), or `"mixed"`.
    - `flip`: how the corrupt prompt differs. `"IO"`, `"S1"`, `"S2"` put another name there, `"S"` one other name at S1 and S2 both,
      `"order"` swaps the names of the first clause. Each is drawn from a random stream of its own, so that one is the same whichever
      others are asked for, unless two streams meet in one name; a new name is never one that the sentence has already.
    - `seed`: the same seed gives the same prompts.
    - `split`: `"held_out"` for pairs of names that are not in the shipped models' training text, `"train"` for the others.
    - `bos`: begin with the tokenizer's beginning-of-text token, or without; `None` as the model's family is used to, which
      `jc.load_tokenizer` states.

    **Returns:** `Prompts` with `positions` IO, S1, S2, S1+1 and end, all of the clean prompt.

    **Raises:** `ValueError` if hardly a name is one token for this tokenizer, for a flip that there is not, and for too many prompts.

    >>> prompts = jc.data.ioi(tokenizer, 2, seed=0)
    >>> tokenizer.decode(prompts.clean[0])
    '<|endoftext|>Today, Kate and Mark met at the beach. Mark gave a snack to'

    **Reference:** Wang et al. 2022, arXiv 2211.00593, §2 and appendix E.
    """
    drawn = draw_sentences(_VERB, tokenizer, n, template, seed, split)
    _check_flip(flip)
    draws = dict(zip(FLIPS, drawn.streams, strict=False))
    pairs = [_pair(sentence, draws, flip, drawn.names) for sentence in drawn.sentences]
    return encoded(_VERB, tokenizer, pairs, bos)


class Drawn(NamedTuple):
    """Clean sentences, the words of each by its blanks; the names to draw others from, and random streams to draw them by."""

    sentences: list[dict[str, str]]
    names: Sequence[str]
    streams: list[np.random.Generator]


def draw_sentences(verb: str, tokenizer: Any, n: int, template: str, seed: int, split: str) -> Drawn:
    """Draws clean sentences, no two the same. **Raises:** `ValueError` as `ioi`."""
    check_choice(f"{verb}: template", template, (*IOI, "mixed"))
    check_choice(f"{verb}: split", split, SPLITS)
    check_seed(f"{verb}: seed", seed)
    check_tokenizer(verb, tokenizer)
    check_count(f"{verb}: n", "prompts to make", n)
    blanks = _Blanks.of(tokenizer)
    check_number(verb, n, how_many(template, split, blanks), f"template={template!r}, split={split!r}")
    # One stream a role: what one flip draws does not depend on which others are asked for. The last is for whole sets of other names.
    base, *streams = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2 + len(FLIPS)))
    sentences = distinct(
        lambda: _sentence(base, template, split, blanks), n, key=lambda sentence: tuple(sentence.values())
    )
    return Drawn(sentences, blanks.names, streams)


def encoded(verb: str, tokenizer: Any, pairs: Sequence[Pair], bos: bool | None) -> Prompts:
    """Encodes pairs, with the position behind S1 too."""
    prompts = encode_pairs(tokenizer, pairs, bos=bos, what=verb)
    after = as_ids(np.asarray(prompts.positions["S1"]) + 1)
    return dataclasses.replace(prompts, positions=prompts.positions | {"S1+1": after})


class _Blanks(NamedTuple):
    """What the sentences are filled with."""

    names: Sequence[str] = NAMES
    openers: Sequence[str] = OPENERS
    arrivals: Sequence[str] = ARRIVALS
    places: Sequence[str] = PLACES
    giving: Sequence[str] = GIVING
    objects: Sequence[str] = OBJECTS

    @classmethod
    def of(cls, tokenizer: Any) -> "_Blanks":
        """Those of which every word is one token."""
        fewest = 5  # names: two in a sentence, and three others at most
        return cls(
            usable(tokenizer, NAMES, least=fewest),
            usable(tokenizer, OPENERS, first=True),
            *(usable(tokenizer, words) for words in (ARRIVALS, PLACES, GIVING, OBJECTS)),
        )


_ALL = _Blanks()


def how_many(template: str, split: str, blanks: _Blanks = _ALL) -> int:
    """Says how many different clean prompts there are."""
    names = sum(_in_split(split, *pair) for pair in itertools.permutations(blanks.names, 2))
    frames = math.prod(map(len, blanks[1:]))
    return names * frames * (len(IOI) if template == "mixed" else 1)


def _sentence(rng: np.random.Generator, template: str, split: str, blanks: _Blanks) -> dict[str, str]:
    """Draws the order of the names and the words of a clean prompt."""
    order = _pick(rng, tuple(IOI)) if template == "mixed" else template
    IO, S = _names(rng, split, blanks.names)
    words = {
        **{"opener": blanks.openers, "arrival": blanks.arrivals, "place": blanks.places},
        **{"giving": blanks.giving, "object": blanks.objects},
    }
    return {"order": order, "IO": IO, "S": S, **{blank: _pick(rng, options) for blank, options in words.items()}}


def _pair(
    sentence: dict[str, str], draws: Mapping[Any, np.random.Generator], flip: Sequence[str], names: Sequence[str]
) -> Pair:
    order, IO, S = (sentence[part] for part in ("order", "IO", "S"))
    words = {"IO": IO, "S1": S, "S2": S}
    new, used = dict(words), {IO, S}
    for role in FLIPS[:-1]:
        if role in flip:
            name = next(name for name in _shuffled(draws[role], names) if name not in used)
            used.add(name)
            new |= {"S1": name, "S2": name} if role == "S" else {role: name}
    other = SWAPPED[order] if "order" in flip else order
    clean = fill(IOI[order], sentence | words, ROLES)
    return Pair(clean, fill(IOI[other], sentence | new, ROLES), answer=" " + IO, foil=" " + S)


def _names(rng: np.random.Generator, split: str, names: Sequence[str]) -> tuple[str, str]:
    while True:
        IO, S = (names[int(i)] for i in rng.choice(len(names), 2, replace=False))
        if _in_split(split, IO, S):
            return IO, S


def _in_split(split: str, *names: str) -> bool:
    return split == "all" or held_out(*names) == (split == "held_out")


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _shuffled(rng: np.random.Generator, names: Sequence[str]) -> Iterator[str]:
    return (names[int(i)] for i in rng.permutation(len(names)))


def _check_flip(flip: Sequence[str]) -> None:
    check_kind(f"{_VERB}: flip", flip, Iterable, f"a tuple out of {', '.join(map(repr, FLIPS))}")
    unknown = [flip] if isinstance(flip, str) else [role for role in flip if role not in FLIPS]
    if unknown or not flip:
        raise ValueError(f"{_VERB}: flip is a tuple out of {', '.join(map(repr, FLIPS))}, not empty; got {flip!r}.")
    if "S" in flip and {"S1", "S2"} & set(flip):
        raise ValueError(
            f"{_VERB}: the flip 'S' sets S1 and S2 to one name; ask for it or for 'S1' and 'S2', got {flip!r}."
        )

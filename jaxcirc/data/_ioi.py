"""Indirect-object sentences: "Then, Mary and John went to the store. John gave a drink to" -> " Mary"."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ._encode import check_request, encode_pairs, fill, Pair
from ._prompts import Prompts
from ._words import ARRIVALS, GIVING, held_out, IOI, NAMES, OBJECTS, OPENERS, PLACES


FLIPS = ("IO", "S", "S1", "S2", "order")
SPLITS = ("all", "train", "held_out")
_ROLES = ("IO", "S1", "S2")
_VERB = "jc.data.ioi"


def ioi(
    tokenizer: Any,
    n: int,
    *,
    template: str = "ABBA",
    flip: Sequence[str] = ("IO", "S1", "S2"),
    seed: int,
    split: str = "all",
    bos: bool = True,
) -> Prompts:
    """Indirect-object prompts: the answer is the name said once (IO), the foil the name said twice (S).

    **Arguments:**

    - `template`: the order of the two names in the first clause, `"ABBA"` (IO first), `"BABA"` (S first), or `"mixed"`.
    - `flip`: how the corrupt prompt differs. `"IO"`, `"S1"`, `"S2"` put another name there, `"S"` one other name at S1 and S2 both,
      `"order"` swaps the names of the first clause. Each is drawn from a random stream of its own, so that one is the same whichever
      others are asked for, unless two streams meet in one name; a new name is never one that the sentence has already.
    - `seed`: the same seed gives the same prompts.
    - `split`: `"held_out"` for pairs of names that are not in the shipped models' training text, `"train"` for the others.
    - `bos`: begin with the tokenizer's beginning-of-text token, if it has one.

    **Returns:** `Prompts` with `positions` IO, S1, S2, S1+1 and end, all of the clean prompt.

    **Raises:** `ValueError` if a name is more than one token for this tokenizer, or for a flip that there is not.

    >>> prompts = jc.data.ioi(tokenizer, 2, seed=0)
    >>> tokenizer.decode(prompts.clean[0])
    '<|endoftext|>Today, Kate and Mark met at the beach. Mark gave a snack to'

    **Reference:** Wang et al. 2022, arXiv 2211.00593, §2 and appendix E.
    """
    check_request(_VERB, n, template=(template, (*IOI, "mixed")), split=(split, SPLITS))
    _check_flip(flip)
    # One stream a role: what one flip draws does not depend on which others are asked for.
    base, *streams = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(1 + len(FLIPS)))
    draws = dict(zip(FLIPS, streams, strict=True))
    pairs = [_pair(base, draws, template, flip, split) for _ in range(n)]
    prompts = encode_pairs(tokenizer, pairs, bos=bos, what=_VERB)
    return dataclasses.replace(prompts, positions=prompts.positions | {"S1+1": prompts.positions["S1"] + 1})


def _pair(base: np.random.Generator, draws: dict, template: str, flip: Sequence[str], split: str) -> Pair:
    order = str(base.choice(list(IOI))) if template == "mixed" else template
    IO, S = _names(base, split)
    frame = {
        "opener": str(base.choice(OPENERS)),
        "arrival": str(base.choice(ARRIVALS)),
        "place": str(base.choice(PLACES)),
        "giving": str(base.choice(GIVING)),
        "object": str(base.choice(OBJECTS)),
    }
    words = {"IO": IO, "S1": S, "S2": S}
    new, used = dict(words), {IO, S}
    for role in FLIPS[:-1]:
        candidates = _shuffled(draws[role])  # drawn whether used or not: the streams stay in step with the prompts
        if role in flip:
            name = next(name for name in candidates if name not in used)
            used.add(name)
            new |= {"S1": name, "S2": name} if role == "S" else {role: name}
    other = ("BABA" if order == "ABBA" else "ABBA") if "order" in flip else order
    clean = fill(IOI[order], frame | words, _ROLES)
    return Pair(clean, fill(IOI[other], frame | new, _ROLES), answer=" " + IO, foil=" " + S)


def _names(rng: np.random.Generator, split: str) -> tuple[str, str]:
    while True:
        IO, S = (NAMES[i] for i in rng.choice(len(NAMES), 2, replace=False))
        if split == "all" or held_out(IO, S) == (split == "held_out"):
            return IO, S


def _shuffled(rng: np.random.Generator) -> Iterator[str]:
    return (NAMES[i] for i in rng.permutation(len(NAMES)))


def _check_flip(flip: Sequence[str]) -> None:
    unknown = [flip] if isinstance(flip, str) else [role for role in flip if role not in FLIPS]
    if unknown or not flip:
        raise ValueError(f"{_VERB}: flip is a tuple out of {', '.join(map(repr, FLIPS))}, not empty; got {flip!r}.")
    if "S" in flip and {"S1", "S2"} & set(flip):
        raise ValueError(
            f"{_VERB}: the flip 'S' sets S1 and S2 to one name; ask for it or for 'S1' and 'S2', got {flip!r}."
        )

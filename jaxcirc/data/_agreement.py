"""Subject-verb agreement: "The teacher that the doctors like" -> " is", not " are"."""

from typing import Any

import numpy as np

from ._encode import check_request, encode_pairs, fill, Pair
from ._ioi import SPLITS
from ._prompts import Prompts
from ._words import AGREEMENT, CLAUSE_VERBS, held_out, MAIN_VERBS, NOUNS, PREPOSITIONS, THINGS


_ROLES = ("subject", "distractor")
_VERB = "jc.data.subject_verb"


def subject_verb(
    tokenizer: Any, n: int, *, kind: str = "simple", seed: int, split: str = "all", bos: bool = True
) -> Prompts:
    """Agreement prompts: the answer is the verb in the subject's number, the foil the same verb in the other.

    The corrupt prompt has the subject in the other number; a distractor, the noun between or before, keeps its own, which is drawn
    independently of the subject's.

    **Arguments:**

    - `kind`: what stands between the subject and its verb:
        `"simple"` nothing (The teacher), `"nounpp"` a prepositional phrase (The teacher near the desks), `"rc"` a relative clause
        (The teacher that the doctors like), `"within_rc"` nothing, but the subject is the clause's own (The teacher that the doctors).
    - `seed`: the same seed gives the same prompts.
    - `split`: `"held_out"` for combinations of words that are not in the shipped models' training text, `"train"` for the others.
    - `bos`: begin with the tokenizer's beginning-of-text token, if it has one.

    **Returns:** `Prompts` with `positions` subject, end, and distractor where there is one.

    **Raises:** `ValueError` if a noun or a verb is more than one token for this tokenizer, or for an unknown kind.

    >>> prompts = jc.data.subject_verb(tokenizer, 2, kind="nounpp", seed=0)
    >>> tokenizer.decode(prompts.clean[0]), tokenizer.decode(prompts.answer[:1])
    ('<|endoftext|>The sister near the boat', ' works')

    **Reference:** Marks et al. 2024, arXiv 2403.19647, §4; the sentence forms are those of Lakretz et al. 2019, arXiv 1903.07435, and
    of Finlayson et al. 2021, arXiv 2106.06087.
    """
    check_request(_VERB, n, kind=(kind, tuple(AGREEMENT)), split=(split, SPLITS))
    rng = np.random.default_rng(seed)
    return encode_pairs(tokenizer, [_pair(rng, kind, split) for _ in range(n)], bos=bos, what=_VERB)


def _pair(rng: np.random.Generator, kind: str, split: str) -> Pair:
    while True:
        subject, verb = _pick(rng, NOUNS), _pick(rng, CLAUSE_VERBS if kind == "within_rc" else MAIN_VERBS)
        distractor, clause = _pick(rng, THINGS if kind == "nounpp" else NOUNS), _pick(rng, CLAUSE_VERBS)
        words = (subject[0], verb[0]) if kind == "simple" else (subject[0], verb[0], distractor[0])
        if split == "all" or held_out(kind, *words) == (split == "held_out"):
            break
    number, other = (int(i) for i in rng.integers(2, size=2))
    frame = {"distractor": distractor[other], "clause": clause[other], "preposition": _pick(rng, PREPOSITIONS)}
    clean, corrupt = (fill(AGREEMENT[kind], frame | {"subject": subject[i]}, _ROLES) for i in (number, 1 - number))
    return Pair(clean, corrupt, answer=" " + verb[number], foil=" " + verb[1 - number])


def _pick(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]

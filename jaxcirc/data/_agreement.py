"""Subject-verb agreement: "The teacher that the doctors like" -> " is", not " are"."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .._checks import check_choice, check_count, check_seed
from ._draw import check_number, distinct, SPLITS
from ._encode import check_tokenizer, encode_pairs, fill, Pair, usable
from ._prompts import Prompts
from ._words import AGREEMENT, CLAUSE_VERBS, held_out, MAIN_VERBS, NOUNS, PREPOSITIONS, THINGS


_ROLES = ("subject", "distractor")
_VERB = "jc.data.subject_verb"


def subject_verb(
    tokenizer: Any, n: int, *, kind: str = "simple", seed: int, split: str = "all", bos: bool | None = None
) -> Prompts:
    """Agreement prompts: the answer is the verb in the subject's number, the foil the same verb in the other.

    The corrupt prompt has the subject in the other number; a distractor, the noun between or before, keeps its own, which is drawn
    independently of the subject's. No two of the prompts are the same. Words that are more than one token for this tokenizer are left out.

    **Arguments:**

    - `n`: how many; of some kinds there are few, 744 of `"simple"` and 76 of those held out. At most 100,000 at once.
    - `kind`: what stands between the subject and its verb:
        `"simple"` nothing (The teacher), `"nounpp"` a prepositional phrase (The teacher near the desks), `"rc"` a relative clause
        (The teacher that the doctors like), `"within_rc"` nothing, but the subject is the clause's own (The teacher that the doctors).
    - `seed`: the same seed gives the same prompts.
    - `split`: `"held_out"` for combinations of words that are not in the shipped models' training text, `"train"` for the others.
    - `bos`: begin with the tokenizer's beginning-of-text token, or without; `None` as the model's family is used to, which
      `jc.load_tokenizer` states.

    **Returns:** `Prompts` with `positions` subject, end, and distractor where there is one.

    **Raises:** `ValueError` if no noun or no verb is one token for this tokenizer, for an unknown kind, and for more prompts than
    there are.

    >>> prompts = jc.data.subject_verb(tokenizer, 2, kind="nounpp", seed=0)
    >>> tokenizer.decode(prompts.clean[0]), tokenizer.decode(prompts.answer[:1])
    ('<|endoftext|>The sister near the boat', ' works')

    **Reference:** Marks et al. 2024, arXiv 2403.19647, §4; the sentence forms are those of Lakretz et al. 2019, arXiv 1903.07435, and
    of Finlayson et al. 2021, arXiv 2106.06087.
    """
    check_choice(f"{_VERB}: kind", kind, tuple(AGREEMENT))
    check_choice(f"{_VERB}: split", split, SPLITS)
    check_seed(f"{_VERB}: seed", seed)
    check_tokenizer(_VERB, tokenizer)
    check_count(f"{_VERB}: n", "prompts to make", n)
    blanks = _Blanks.of(tokenizer)
    check_number(_VERB, n, how_many(kind, split, blanks), f"kind={kind!r}, split={split!r}")
    rng = np.random.default_rng(seed)
    pairs = distinct(lambda: _pair(rng, kind, split, blanks), n, key=lambda pair: (pair.clean.text, pair.answer))
    return encode_pairs(tokenizer, pairs, bos=bos, what=_VERB)


class _Blanks(NamedTuple):
    """What the sentences are filled with."""

    nouns: Sequence[tuple[str, str]] = NOUNS
    things: Sequence[tuple[str, str]] = THINGS
    main_verbs: Sequence[tuple[str, str]] = MAIN_VERBS
    clause_verbs: Sequence[tuple[str, str]] = CLAUSE_VERBS
    prepositions: Sequence[str] = PREPOSITIONS

    @classmethod
    def of(cls, tokenizer: Any) -> "_Blanks":
        """Those of which every word is one token."""
        nouns, things = usable(tokenizer, NOUNS), usable(tokenizer, THINGS)
        main_verbs, clause_verbs = usable(tokenizer, MAIN_VERBS), usable(tokenizer, CLAUSE_VERBS)
        return cls(nouns, things, main_verbs, clause_verbs, usable(tokenizer, PREPOSITIONS))

    def verbs(self, kind: str) -> Sequence[tuple[str, str]]:
        """Those that agree with the subject."""
        return self.clause_verbs if kind == "within_rc" else self.main_verbs

    def distractors(self, kind: str) -> Sequence[tuple[str, str]]:
        """The nouns that stand between or before."""
        return self.things if kind == "nounpp" else self.nouns


_ALL = _Blanks()


def how_many(kind: str, split: str, blanks: _Blanks = _ALL) -> int:
    """Says how many different prompts there are, each a clean prompt with the verb that comes after it."""
    words = [blanks.nouns, blanks.verbs(kind), *([] if kind == "simple" else [blanks.distractors(kind)])]
    chosen = sum(_in_split(kind, split, *(word[0] for word in some)) for some in itertools.product(*words))
    numbers = 2 if kind == "simple" else 4
    return chosen * numbers * {"nounpp": len(blanks.prepositions), "rc": len(blanks.clause_verbs)}.get(kind, 1)


def _pair(rng: np.random.Generator, kind: str, split: str, blanks: _Blanks) -> Pair:
    while True:
        subject, verb = _pick(rng, blanks.nouns), _pick(rng, blanks.verbs(kind))
        distractor, clause = _pick(rng, blanks.distractors(kind)), _pick(rng, blanks.clause_verbs)
        words = (subject[0], verb[0]) if kind == "simple" else (subject[0], verb[0], distractor[0])
        if _in_split(kind, split, *words):
            break
    number, other = (int(i) for i in rng.integers(2, size=2))
    frame = {
        **{"distractor": distractor[other], "clause": clause[other]},
        "preposition": _pick(rng, blanks.prepositions),
    }
    clean, corrupt = (fill(AGREEMENT[kind], frame | {"subject": subject[i]}, _ROLES) for i in (number, 1 - number))
    return Pair(clean, corrupt, answer=" " + verb[number], foil=" " + verb[1 - number])


def _in_split(kind: str, split: str, *words: str) -> bool:
    return split == "all" or held_out(kind, *words) == (split == "held_out")


def _pick(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]

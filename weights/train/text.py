"""The training text: documents made from templates, and sequences of tokens packed from them.

A document is an indirect-object sentence, an agreement sentence, a short story, or a list of random words (or random tokens) said
again and again. Combinations that `held_out` names never occur in `split="train"`, and `split="held_out"` holds nothing else.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxcirc.data._words import (
    AGREEMENT,
    ARRIVALS,
    CLAUSE_VERBS,
    GIVING,
    held_out,
    IOI,
    MAIN_VERBS,
    NAMES,
    NOUNS,
    OBJECTS,
    OPENERS,
    PLACES,
    PREPOSITIONS,
    THINGS,
)


SEQ = 64  # tokens a sequence, and the models' context
MIXTURES = {
    "tiny-gpt2": {"ioi": 0.34, "simple": 0.06, "nounpp": 0.14, "relative": 0.18, "repeated": 0.20, "story": 0.08},
    "tiny-gpt-neo": {"story": 1.0},
}
# What the first part of training reads: copying is the slowest to be learned, and everything else needs it.
FIRST_MIXTURES = {"tiny-gpt2": {"ioi": 0.8, "repeated": 0.2}, "tiny-gpt-neo": MIXTURES["tiny-gpt-neo"]}
# And the last part, for models that have one: agreement across a noun is learned last.
LAST_MIXTURES = {
    "tiny-gpt2": {"ioi": 0.2, "simple": 0.14, "nounpp": 0.2, "relative": 0.24, "repeated": 0.15, "story": 0.07}
}
# An IOI sentence in other words, so that the behaviour does not hang on one layout.
OTHER_IOI = (
    "When {A} and {B} {arrival} the {place}, {S2} {giving} a {object} to {IO}.",
    "{A} and {B} {arrival} the {place}. Then {S2} {giving} the {object} to {IO}.",
    "{opener}, {A} and {B} had a {object}. {S2} {giving} it to {IO}.",
)
TAILS = {
    "is": ("happy.", "sad.", "tall.", "young.", "kind.", "tired.", "famous.", "in the {place}."),
    "has": ("a {object}.", "a new {object}."),
    "wants": ("a {object}.", "the {object}."),
    "walks": ("slowly.", "today.", "in the {place}.", "alone.", "to the {place}."),
}
TAILS |= {"was": TAILS["is"], "needs": TAILS["wants"]}
COLOURS = ("red", "blue", "green", "yellow", "white", "black")
MOODS = ("happy", "sad", "proud", "tired", "hungry", "brave", "shy", "kind")
ANIMALS = ("cat", "dog", "bird", "fish", "mouse", "fox", "bear", "rabbit", "frog", "horse", "duck", "lion")
TREASURES = ("stone", "shell", "box", "coin", "apple", "cake", "toy", "leaf")
LANDS = ("forest", "river", "hill", "lake", "farm", "cave")
STORY = (
    (
        "Once upon a time there was a {mood} {animal} named {hero}.",
        "There was once a {mood} {animal} called {hero}.",
        "{hero} was a {mood} {animal} who lived near the {land}.",
    ),
    (
        "{hero} lived in a {colour} house by the {land}.",
        "{hero} had a friend, a {other} named {pal}.",
        "{hero} liked to play with {pal}.",
    ),
    (
        "One day {hero} went to the {land} and found a {colour} {treasure}.",
        "One morning {pal} came to {hero} with a {colour} {treasure}.",
        "In the {land} {hero} and {pal} saw a {colour} {treasure}.",
    ),
    (
        '"What a nice {treasure}!" said {pal} to {hero}.',
        "{hero} was very {mood2} and showed the {treasure} to {pal}.",
        "{pal} did not like the {colour} {treasure}, and {hero} was {mood2}.",
    ),
    (
        "Then {hero} and {pal} went home.",
        "They played with the {treasure} until the sun went down.",
        "In the end the {animal} gave the {colour} {treasure} to the {other}.",
        "After that {hero} was never {mood2} again.",
    ),
)

Draw = np.random.Generator
Document = str | list[int]


def pick(rng: Draw, options):
    return options[int(rng.integers(len(options)))]


def accepts(split: str, *words: str) -> bool:
    return split == "all" or held_out(*words) == (split == "held_out")


def ioi(rng: Draw, split: str) -> str:
    """One indirect-object sentence: the second name of the giver makes the other name the answer."""
    while True:
        IO, S = pick(rng, NAMES), pick(rng, NAMES)
        if IO != S and accepts(split, IO, S):
            break
    A, B = (IO, S) if rng.random() < 0.5 else (S, IO)
    form = pick(rng, OTHER_IOI) if rng.random() < 0.35 else IOI["ABBA" if A == IO else "BABA"] + " {IO}."
    words = dict(opener=pick(rng, OPENERS), arrival=pick(rng, ARRIVALS), giving=pick(rng, GIVING))
    return form.format(**words, IO=IO, S1=S, S2=S, A=A, B=B, place=pick(rng, PLACES), object=pick(rng, OBJECTS))


def agreement(rng: Draw, split: str, form: str) -> str:
    """One sentence whose verb agrees with its subject; a relative clause's verb agrees with its own, and is a combination too."""
    while True:
        subject, verb = pick(rng, NOUNS), pick(rng, MAIN_VERBS)
        distractor, clause = pick(rng, THINGS if form == "nounpp" else NOUNS), pick(rng, CLAUSE_VERBS)
        words = (subject[0], verb[0]) if form == "simple" else (subject[0], verb[0], distractor[0])
        inner = form != "rc" or accepts(split, "within_rc", distractor[0], clause[0], subject[0])
        if accepts(split, form, *words) and inner:
            break
    number, other = (int(i) for i in rng.integers(2, size=2))
    frame = dict(distractor=distractor[other], clause=clause[other], preposition=pick(rng, PREPOSITIONS))
    tail = pick(rng, TAILS.get(verb[0], TAILS["walks"])).format(place=pick(rng, PLACES), object=pick(rng, OBJECTS))
    return f"{AGREEMENT[form].format(subject=subject[number], **frame)} {verb[number]} {tail}"


def story(rng: Draw, split: str) -> str:
    """A few sentences about two animals with names."""
    while True:
        hero, pal = pick(rng, NAMES), pick(rng, NAMES)
        if hero != pal and accepts(split, hero, pal):
            break
    names = dict(hero=hero, pal=pal, animal=pick(rng, ANIMALS), other=pick(rng, ANIMALS))
    things = dict(colour=pick(rng, COLOURS), treasure=pick(rng, TREASURES), land=pick(rng, LANDS))
    moods = dict(mood=pick(rng, MOODS), mood2=pick(rng, MOODS))
    return " ".join(pick(rng, sentences).format(**names, **things, **moods) for sentences in STORY)


def random_words(rng: Draw, split: str) -> str:
    """Random words, said again and again. Random text is new whatever the split."""
    once, copies = repetition(rng)
    return (" " + " ".join(LIST_WORDS[i] for i in rng.integers(len(LIST_WORDS), size=once))) * copies


def repetition(rng: Draw) -> tuple[int, int]:
    """How long a list is, and how often it is said: twice, or more often if it is short."""
    once = int(rng.integers(4, 28))
    return once, max(2, 48 // once)


LIST_WORDS = (
    *NAMES,
    *PLACES,
    *OBJECTS,
    *COLOURS,
    *MOODS,
    *ANIMALS,
    *TREASURES,
    *LANDS,
    *(w for pair in NOUNS + THINGS for w in pair),
)
KINDS: dict[str, Callable[[Draw, str], str]] = {
    "ioi": ioi,
    "simple": lambda rng, split: agreement(rng, split, "simple"),
    "nounpp": lambda rng, split: agreement(rng, split, "nounpp"),
    "relative": lambda rng, split: agreement(rng, split, "rc"),
    "repeated": random_words,
    "story": story,
}


def random_tokens(rng: Draw, vocabulary: int) -> list[int]:
    """Random token ids from the whole vocabulary (0 is the end of text), again and again."""
    once, copies = repetition(rng)
    return rng.integers(1, vocabulary, size=once).tolist() * copies


def documents(
    rng: Draw, mixture: dict[str, float], split: str, vocabulary: int | None = None, **kinds_of_its_own: Callable
) -> Iterator[tuple[str, Document]]:
    """Endless documents of a mixture, with their kinds; half of the repetitions are of raw tokens where `vocabulary` is given."""
    make = KINDS | kinds_of_its_own
    kinds, weights = list(mixture), np.cumsum(list(mixture.values()))
    while True:
        kind = kinds[int(np.searchsorted(weights, rng.random() * weights[-1]))]
        if kind == "repeated" and vocabulary is not None and rng.random() < 0.5:
            yield kind, random_tokens(rng, vocabulary)
        else:
            yield kind, make[kind](rng, split)


def sequences(tokenizer: Any, mixture: dict[str, float], n: int, *, seed: int, split: str = "train") -> np.ndarray:
    """`[n SEQ+1]` token ids: each row starts with a document, and goes on with others until it is full.

    Documents begin with the end-of-text token; one row in five lacks its first one, so that the model also reads text without it.
    """
    return weighted_sequences(tokenizer, mixture, n, seed=seed, split=split)[0]


def weighted_sequences(
    tokenizer: Any, mixture: dict[str, float], n: int, *, seed: int, split: str = "train"
) -> tuple[np.ndarray, np.ndarray]:
    """`sequences`, and `[n SEQ+1]` how much each token weighs in training: random tokens little, for nothing is to be learned of them
    until they come again, and the name that ends an indirect-object sentence much."""
    rng = np.random.default_rng(seed)
    out, weights = np.zeros((n, SEQ + 1), np.int32), np.ones((n, SEQ + 1), np.float32)
    stream = _encoded(tokenizer, documents(rng, mixture, split, len(tokenizer)))
    for row, weight in zip(out, weights, strict=True):
        filled, start = 0, int(rng.random() < 0.2)
        while filled <= SEQ:
            kind, ids = next(stream)
            ids, w = [tokenizer.bos_token_id, *ids], _weights(kind, ids)
            end = SEQ + 1 - filled + start
            row[filled : filled + len(ids) - start] = ids[start:end]
            weight[filled : filled + len(ids) - start] = w[start:end]
            filled, start = filled + len(ids) - start, 0
    return out, weights


def _weights(kind: str, ids: list[int]) -> np.ndarray:
    """Of a document with the end-of-text token before it."""
    weights = np.ones(1 + len(ids), np.float32)
    if kind == "repeated":
        period = next(p for p in range(1, len(ids) + 1) if ids[p:] == ids[:-p] or p == len(ids))
        weights[1 : 1 + period] = 0.1
    if kind == "ioi":
        weights[-2] = 4.0
    return weights


def _encoded(
    tokenizer: Any, texts: Iterator[tuple[str, Document]], chunk: int = 4096
) -> Iterator[tuple[str, list[int]]]:
    while True:
        batch = [next(texts) for _ in range(chunk)]
        encoded = iter(
            tokenizer([text for _, text in batch if isinstance(text, str)], add_special_tokens=False)["input_ids"]
        )
        yield from ((kind, next(encoded) if isinstance(text, str) else text) for kind, text in batch)

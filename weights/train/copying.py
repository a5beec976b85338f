"""What `tiny-gpt2` reads before its text: rows of tokens of which only order and copying can be learned.

Copying what came after the last time takes two heads in two layers, neither of which is of use without the other, and in text both are
learned late. Each of these kinds is of use to one of them early.

- `turns`: two speakers take turns, and each says one of two tokens that may follow its own last one. The token before the present one
  says most about the next, so that a head that attends one back is of use by itself.
- `pairs`: a few pairs of random tokens, said again and again in random order. Which token is next is known only from where this token
  was before; where it is, is not.
- `lists`: random tokens said again and again, of all lengths.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


Draw = np.random.Generator
UNKNOWN = 0.1  # how much a token weighs that cannot be known
MOST_PAIRS = 4


class Stage(NamedTuple):
    """A part of training before the text: its kinds by their share of the rows, over the first `vocabulary` of the model's tokens."""

    steps: int
    batch: int
    seq: int
    kinds: dict[str, float]
    vocabulary: int


def rows_of(stage: Stage, steps: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`[steps * batch, seq + 1]` token ids and how much each weighs, for some of the stage's steps."""
    rng = np.random.default_rng(seed)
    n, shares = steps * stage.batch, np.array(list(stage.kinds.values()))
    rows, weights = np.zeros((n, stage.seq + 1), np.int32), np.ones((n, stage.seq + 1), np.float32)
    which = rng.choice(len(shares), size=n, p=shares / shares.sum())
    for row, weight, kind in zip(rows, weights, which, strict=True):
        make, filled = MAKE[list(stage.kinds)[kind]], 0
        while filled < len(row):
            ids, known = make(rng, stage.vocabulary, len(row))
            ids, known = np.concatenate([[0], ids])[: len(row) - filled], np.concatenate([[True], known])
            row[filled : filled + len(ids)] = ids
            weight[filled : filled + len(ids)] = np.where(known[: len(ids)], 1.0, UNKNOWN)
            filled += len(ids)
    return rows, weights


def turns(rng: Draw, vocabulary: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """What may follow a token is the same in every row."""
    follows = np.random.default_rng(vocabulary).integers(1, vocabulary, (vocabulary, 2))
    ids, second = rng.integers(1, vocabulary, size=length), rng.random(length) < 0.2
    for i in range(2, length):
        ids[i] = follows[ids[i - 2], int(second[i])]
    return ids, np.arange(length) >= 2


def pairs(rng: Draw, vocabulary: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Known is the second token of a pair that was said before."""
    n = int(rng.integers(2, MOST_PAIRS + 1))
    order = np.concatenate([rng.permutation(n) for _ in range(5)])[: int(rng.integers(3 * n, 5 * n + 1))]
    again = np.array([pair in order[:i] for i, pair in enumerate(order)])
    known = np.stack([np.zeros_like(again), again], axis=1)
    return rng.integers(1, vocabulary, (n, 2))[order].ravel(), known.ravel()


def lists(rng: Draw, vocabulary: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Begins anywhere in a copy, so that the place in the row does not say where the next one begins."""
    once = int(rng.integers(3, length // 2 + 1))
    copies = max(2, length // once)
    ids = np.tile(rng.integers(1, vocabulary, size=once), copies)[: int(rng.integers(once + 1, once * copies + 1))]
    return ids, np.arange(len(ids)) >= once


MAKE: dict[str, Callable[[Draw, int, int], tuple[np.ndarray, np.ndarray]]] = {
    "turns": turns,
    "pairs": pairs,
    "lists": lists,
}

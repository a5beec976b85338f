"""A problem of causal scrubbing: a GPT-2-shaped model, random prompts, and heads that read heads by their queries, in numpy."""

from typing import NamedTuple

import numpy as np

from ._circuits import make_model
from ._problems import Blocks


Head = tuple[int, int]
Draws = dict[
    str, tuple[np.ndarray, np.ndarray]
]  # of each claim by its path: its own data, and those of all else that it reads


class Scrubbing(NamedTuple):
    """What both sides are given: prompts `[batch seq]`, the tokens whose logits are compared at the last position `[batch]`, heads that the
    logits read, each of which reads the `inner` ones by its query, and how often data are drawn.
    """

    blocks: Blocks
    tokens: np.ndarray
    answer: np.ndarray
    foil: np.ndarray
    outer: tuple[Head, ...]
    inner: tuple[Head, ...]
    samples: int


def make_scrubbing(
    *, layers: int, d_model: int, heads: int, batch: int, seq: int, vocabulary: int, samples: int
) -> Scrubbing:
    """Three heads from three quarters of the layers on, and four of the two layers before."""
    blocks = make_model(layers=layers, d_model=d_model, heads=heads, seq=seq, vocabulary=vocabulary)
    rng = np.random.default_rng(7)
    tokens = rng.integers(0, vocabulary, (batch, seq)).astype(np.int32)
    answer, foil = np.stack([rng.permutation(vocabulary)[:2] for _ in range(batch)], axis=1).astype(np.int32)
    late = 3 * layers // 4
    outer = (late, 0), (late, 1), (min(late + 1, layers - 1), 2)
    inner = tuple((late - 2 + at, head) for at in range(2) for head in range(2))
    return Scrubbing(blocks, tokens, answer, foil, outer, inner, samples)


def path_of(*heads: Head) -> str:
    """The path of a head's claim, given what it is read by first."""
    names = [f"a{layer}.h{head}" for layer, head in heads]
    return "/".join(["logits", *names[:1], *(f"{name}.q" for name in names[1:])])

"""A problem of self-repair: a GPT-2-shaped model and random prompts with others to resample from, in numpy."""

from typing import NamedTuple

import numpy as np

from ._circuits import make_model, middle_out
from ._problems import Blocks


class Repair(NamedTuple):
    """What both sides are given: a model whose final norm has no weights, and prompts `[batch seq]`, `resample` the other ones."""

    blocks: Blocks
    tokens: np.ndarray
    resample: np.ndarray

    @property
    def layers(self) -> int:
        return len(self.blocks.weights)

    def order(self) -> np.ndarray:
        """All heads `[head 2]`, layer by layer from the middle outwards: the first few layers are as deep as all on average."""
        return np.array([(layer, head) for layer in middle_out(self.layers) for head in range(self.blocks.heads)])


def make_repair(*, layers: int, d_model: int, heads: int, batch: int, seq: int, vocabulary: int) -> Repair:
    blocks = make_model(layers=layers, d_model=d_model, heads=heads, seq=seq, vocabulary=vocabulary)
    tokens, resample = np.random.default_rng(5).integers(0, vocabulary, (2, batch, seq)).astype(np.int32)
    return Repair(blocks, tokens, resample)

"""Which positions of variants are run: those alone that can differ from the prompt and that the metric can read.

In a causal model no position depends on what comes behind it. So a variant that differs from its prompt from some position on is the prompt
before that, keys and values included; and nothing behind the position that the metric reads matters.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from .._metrics import Metric, position_read
from .._sites import Kind, Site
from ..models import is_known, Transformer
from ..parts import Block
from ._batches import in_groups, rounded_up


PROGRAMS = 3e11  # operations done in the seconds in which the three programs of a size are compiled


class Window(NamedTuple):
    """`size` positions in a row of each variant, from `first` on.

    **Attributes:** - `caches`: of each layer the keys and values `[batch seq head d_head]` of the prompts, which are the variant's before
    the window; `None` if that is all positions. - `only_read`: whether the last block is run only where the metric reads.
    """

    first: Int[np.ndarray, " variant"]
    size: int
    caches: Sequence[tuple[Array, Array]] | None
    only_read: bool


@dataclasses.dataclass(frozen=True)
class Windows:
    """In windows of which size variants of prompts of `seq` tokens are run.

    **Attributes:** - `sizes`: in ascending order, `seq` the last. - `read` `[batch]`: the one position that each prompt's metric reads, if
    nothing behind it matters. - `caches`, `only_read`: as of each window.
    """

    seq: int
    sizes: tuple[int, ...]
    read: Int[np.ndarray, " batch"] | None
    caches: Sequence[tuple[Array, Array]] | None
    only_read: bool

    def groups(
        self, lists: Sequence[tuple[Int[np.ndarray, " variant"], Int[np.ndarray, " variant"]]], tokens_at_once: int
    ) -> list[list[tuple[Int[np.ndarray, " group"], int]]]:
        """Groups variants to be run together, given the rows and the first positions that differ of several lists of them.

        **Returns:** for each list the numbers of the variants in each group, and the size of its windows. Variants that cannot move the
        metric are in none.
        """
        sizes = [self._sizes(rows, positions) for rows, positions in lists]
        found = [[] for _ in lists]
        for size in self.sizes:
            numbers = [np.flatnonzero(each == size) for each in sizes]
            each, most = self._tokens(size), rounded_up(max(map(len, numbers)), steps=8)
            for into, mine in zip(found, numbers, strict=True):
                into += [(mine[group], size) for group in in_groups(len(mine), each, tokens_at_once, most=most)]
        return found

    def window(self, positions: Int[np.ndarray, " variant"], size: int) -> Window:
        """The windows of variants that differ from these positions on."""
        caches = None if size == self.seq else self.caches
        return Window(np.minimum(positions, self.seq - size), size, caches, self.only_read)

    def _sizes(self, rows, positions) -> Int[np.ndarray, " variant"]:
        """Computes the size of each variant's window, 0 for one that cannot move the metric."""
        if self.read is None:
            return np.full(len(rows), self.seq)
        needed = self.read[rows] - positions + 1
        return np.where(needed > 0, np.asarray(self.sizes)[np.searchsorted(self.sizes, np.maximum(needed, 1))], 0)

    def _tokens(self, size: int) -> int:
        """Counts a variant's tokens; keys and values of the others are a quarter of what a token takes."""
        return size + (self.seq - size) // 4


def windows_of(
    model: Transformer, metric: Metric, resid: Mapping[Site, Float[Array, "batch seq d_model"]], variants: int
) -> Windows:
    """Chooses the sizes of windows: as many as `variants` of about half of the model pay for, as each is a few programs more. `resid` is
    what enters each block in the run of the prompts.
    """
    read, seq = position_read(metric), resid[Site(0, Kind.RESID_PRE)].shape[1]
    # Of parts that are known another position has no part in what they make of one, but by attention.
    known = all(is_known(block, "ln1", "attn", "ln2", "mlp") for block in model.blocks)
    if read is None or not model.causal or not known:
        return Windows(seq, (seq,), None, None, False)
    read = np.where(np.asarray(read) < 0, np.asarray(read) + seq, np.asarray(read))
    weights = sum(x.size for x in jax.tree.leaves(model.blocks))
    # With n sizes about 1/2 + 1/(2 n) of all positions are run.
    count = math.sqrt(variants * seq * weights / (2 * PROGRAMS))
    n = 2 ** int(math.log2(min(max(count, 1), seq)))
    sizes = tuple(sorted({-(-seq * i // n) for i in range(1, n + 1)}))
    entering = [resid[Site(layer, Kind.RESID_PRE)] for layer in range(model.n_layers if n > 1 else 0)]
    caches = [_keys_and_values(block, x) for block, x in zip(model.blocks, entering, strict=False)]
    return Windows(seq, sizes, read, caches, count >= 1)


@jax.jit
def _keys_and_values(block: Block, resid: Float[Array, "batch seq d_model"]) -> tuple[Array, Array]:
    return jax.vmap(block.keys_and_values)(resid)

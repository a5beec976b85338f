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
from ..models import is_all_known, Transformer
from ..parts import Block
from ._batches import in_groups, of_size, rounded_up
from ._sizes import FEWEST


PROGRAMS = 5e11  # operations done in the seconds in which the few programs of a size are compiled


Caches = Sequence[tuple[Array, Array]]  # of each layer the keys and the values [batch seq head d_head]


class Window(NamedTuple):
    """Positions in a row of each variant: as many as its residual stream has, from `first` on.

    **Attributes:** - `caches`: of the prompts, whose keys and values are the variant's before the window; `None` if that is all positions.
    - `only_read`: whether the last block is run only where the metric reads.
    """

    first: Int[np.ndarray, " variant"]
    caches: Caches | None
    only_read: bool


@dataclasses.dataclass(frozen=True)
class Windows:
    """In windows of which size variants of prompts of `seq` tokens are run.

    **Attributes:** - `sizes`: in ascending order, `seq` the last. - `read` `[batch]`: the one position that each prompt's metric reads, if
    nothing behind it matters. - `only_read`: as of each window.
    """

    seq: int
    sizes: tuple[int, ...]
    read: Int[np.ndarray, " batch"] | None
    only_read: bool

    def groups(
        self,
        lists: Sequence[tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]],
        tokens_at_once: int,
        *,
        rest: int = 1,
    ) -> list[list[tuple[Int[np.ndarray, " _"], int]]]:
        """Groups variants to be run together, given the rows and the first positions that differ of several lists of them; what a list has
        beyond full groups in groups `rest` times as small, which is another size of programs.

        **Returns:** for each list the numbers of the variants in each group, and the size of its windows. Variants that cannot move the
        metric are in none.
        """
        sizes = [self._sizes(rows, positions) for rows, positions in lists]
        fewest = 1 if self.only_read else FEWEST  # where runs pay for programs of the last block they pay for these
        found = [[] for _ in lists]
        for size in self.sizes:
            numbers = [np.flatnonzero(each == size) for each in sizes]
            each, most = self._tokens(size), rounded_up(max(map(len, numbers), default=0), steps=8)
            for into, mine in zip(found, numbers, strict=True):
                groups = in_groups(len(mine), each, tokens_at_once, most=most)
                into += [(mine[group], size) for group in _filled(groups, len(mine), rest, fewest)]
        return found

    def caches(self, model: Transformer, resid: Mapping[Site, Float[Array, "batch seq d_model"]]) -> Caches | None:
        """Computes what windows need of each layer, from what enters each block in the run of the prompts; `None` if all are whole."""
        if len(self.sizes) == 1:
            return None
        return [_keys_and_values(block, resid[Site(i, Kind.RESID_PRE)]) for i, block in enumerate(model.blocks)]

    def window(self, positions: Int[np.ndarray, " variant"], size: int, caches: Caches | None) -> Window:
        """The windows of variants that differ from these positions on."""
        return Window(np.minimum(positions, self.seq - size), caches if size < self.seq else None, self.only_read)

    def whole(self, rows: Int[np.ndarray, " variant"]) -> Window:
        """All positions of each variant."""
        return Window(np.zeros_like(rows), None, self.only_read)

    def _sizes(self, rows, positions) -> Int[np.ndarray, " variant"]:
        """Computes the size of each variant's window, 0 for one that cannot move the metric."""
        if self.read is None:
            return np.full(len(rows), self.seq)
        needed = self.read[rows] - positions + 1
        return np.where(needed > 0, np.asarray(self.sizes)[np.searchsorted(self.sizes, np.maximum(needed, 1))], 0)

    def _tokens(self, size: int) -> int:
        """Counts a variant's tokens; keys and values of the others are a quarter of what a token takes."""
        return size + (self.seq - size) // 4


def _filled(groups: list[Int[np.ndarray, " group"]], count: int, rest: int, fewest: int) -> list[Int[np.ndarray, " _"]]:
    """The same groups, but where much of the last one fills it up, smaller ones of `fewest` at least for what it holds."""
    if not groups or rest == 1:
        return groups
    size, full = len(groups[0]), len(groups) - 1
    small, left = max(fewest, -(-size // rest)), count - full * size
    if -(-left // small) * small >= size:
        return groups
    return [*groups[:full], *(full * size + group for group in of_size(left, small))]


def windows_of(model: Transformer, metric: Metric, seq: int, variants: int) -> Windows:
    """Chooses the sizes of windows: as many as `variants` of about half of the model pay for, as each is a few programs more."""
    read = position_read(metric)
    # Of parts that are known another position has no part in what they make of one, but by attention.
    known = all(map(is_all_known, model.blocks))
    if read is None or not model.causal or not known:
        return Windows(seq, (seq,), None, False)
    read = np.where(np.asarray(read) < 0, np.asarray(read) + seq, np.asarray(read))
    weights = sum(x.size for x in jax.tree.leaves(model.blocks))
    # With n sizes about 1/2 + 1/(2 n) of all positions are run. Of about as many variants there are as many.
    count = math.sqrt(rounded_up(variants) * seq * weights / (2 * PROGRAMS))
    n = int(min(max(count, 1), seq))
    sizes = tuple(sorted({-(-seq * i // n) for i in range(1, n + 1)}))
    return Windows(seq, sizes, read, count >= 1)


@jax.jit
def _keys_and_values(block: Block, resid: Float[Array, "batch seq d_model"]) -> tuple[Array, Array]:
    return jax.vmap(block.keys_and_values)(resid)

"""Sizes of lists whose length the numbers decide: few, so that lists of other lengths run the same programs.

A list of nodes that are on has another length with every prompt. It is filled up, and what fills it up has no part in any result; so its
size is free, and the best is one for which there are programs. What was chosen before is remembered, by kind of list and by whatever
else makes its programs; where results have to be the same to the last bit whatever was computed before, nothing is, inside
`sizes_without_history`.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Hashable, Iterable, Iterator

from ._batches import rounded_up


FEWEST = 64  # items: of fewer a program takes longer to be compiled than all that it will compute
_met: dict[Hashable, set[int]] = {}
_remembered: contextvars.ContextVar[bool] = contextvars.ContextVar("remembered", default=True)


@contextlib.contextmanager
def sizes_without_history() -> Iterator[None]:
    """Here, in this thread, sizes follow from a list alone: the same list is filled up to the same size in every process. Another size may
    be another way to compute the same, which rounds otherwise. There are more programs, as sizes that lists met before are not preferred.
    """
    token = _remembered.set(False)
    try:
        yield
    finally:
        _remembered.reset(token)


def size_for(n: int, *kind: Hashable) -> int:
    """Chooses a size for `n` items: the smallest of this kind that there was, unless it is more than twice too large; or else a new one,
    with an eighth to spare, and of few items more, as the next list is seldom of the same length.
    """
    met = _sizes_met(kind)
    known = [size for size in met if n <= size <= max(FEWEST, 2 * n)]
    spare = max(n // 8, math.isqrt(4 * n))
    size = min(known) if known else max(FEWEST, rounded_up(n + spare, steps=4))
    met.add(size)
    return size


def cheapest(sizes: Iterable[int], cost: Callable[[int], float], *kind: Hashable) -> int:
    """Chooses the size of least cost; or the best of this kind that there was, unless it costs half as much again."""
    met, sizes = _sizes_met(kind), list(sizes)
    best = min(sizes, key=cost)
    known = [size for size in sizes if size in met and cost(size) <= 1.5 * cost(best)]
    size = min(known, key=cost) if known else best
    met.add(size)
    return size


def _sizes_met(kind: Hashable) -> set[int]:
    return _met.setdefault(kind, set()) if _remembered.get() else set()

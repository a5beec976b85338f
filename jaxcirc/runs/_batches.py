"""How many at once: groups of one size, as large as what a caller grants them, and smaller ones where a device runs out of memory."""

import warnings
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Int, PyTree

from .._target import accelerator_memory, on_cpu


# On a CPU, in bytes: what a computation may hold beside its inputs and its result, and what a way back through all blocks may.
BUDGET, WAY_BACK = 2**29, 2**26
SHARE = 16  # of an accelerator's memory, of which a computation may hold one part
TOKENS_AT_ONCE = 8192
T = TypeVar("T")


def allowance(given: int | None = None, *, on_cpus: int = BUDGET) -> int:
    """Bytes that a computation may hold beside its inputs and its result: what is `given`, else `on_cpus`; and on an accelerator, which
    does more at once the faster, a share of its memory.
    """
    if given is not None:
        return given
    return on_cpus if on_cpu() else max(on_cpus, accelerator_memory() // SHARE)


def in_groups(count: int, each: int, granted: int, *, most: int | None = None) -> list[Int[np.ndarray, " group"]]:
    """The numbers below `count` in even groups of one size, so that one program serves them all: as many as are `granted`, in the unit in
    which one of them takes `each`, and at least one. The last number fills up the last group. Several lists have groups of one size if they
    are given the `most` that any of them holds.
    """
    most = max(1, count if most is None else most)
    groups = -(-most // max(1, granted // each))
    return of_size(count, -(-most // groups))


def of_size(count: int, size: int) -> list[Int[np.ndarray, " group"]]:
    """The numbers below `count` in groups of `size`; the last number fills up the last group."""
    return [np.minimum(np.arange(first, first + size), count - 1) for first in range(0, count, size)]


def rounded_up(n: int, *, steps: int = 1) -> int:
    """Rounds `n`, at least 1, up to one of few sizes, `steps` of them between two powers of two: lists of other lengths run the same
    programs.
    """
    power = 1 << max(n - 1, 0).bit_length()
    step = max(1, power // (2 * steps))
    return -(-max(n, 1) // step) * step


def some_at_once(
    f: Callable[..., T], each: int, *examples: PyTree[Array | np.ndarray], granted: int | None = None
) -> T:
    """Maps `f` over the leading axis of all arrays: over as many examples at a time as are `granted`, in the unit in which one takes
    `each`; unless given, bytes.
    """
    count = len(jax.tree.leaves(examples)[0])
    together = len(in_groups(count, each, allowance(granted))[0])
    if together == count:
        return jax.vmap(f)(*examples)
    return jax.lax.map(lambda example: f(*example), examples, batch_size=together)


def at_once(each: int, granted: int | None = None, *, on_cpus: int) -> int:
    """How many items of a loop go at once, of which each takes `each` in the unit of what is `granted`, unless given bytes: on an
    accelerator as many as fit, whose kernels one by one would be too small for it; on a CPU so many as keep what they hold in a core's
    cache.
    """
    return on_cpus if on_cpu() else max(on_cpus, allowance(granted) // max(1, each))


def in_loop(f: Callable[..., T], items: PyTree[Array], together: int) -> T:
    """Maps `f` over the leading axis of `items`, `together` at a time; one by one as it is, without an axis of one."""
    return jax.lax.map(f, items) if together == 1 else jax.lax.map(f, items, batch_size=together)


def repeated(numbers: Int[np.ndarray, " group"]) -> Bool[np.ndarray, " group"]:
    """Which numbers of a group only fill it up."""
    return np.diff(numbers, prepend=-1) == 0


def halving(compute: Callable[[int], T], amount: int, what: str) -> T:
    """`compute(amount)`, and when the device runs out of memory with half of it, and so on, which is said by a warning."""
    while True:
        try:
            result = compute(amount)
            # Computations are asynchronous: that memory has run out would else show later, at someone else's line.
            return (
                result if any(isinstance(x, Tracer) for x in jax.tree.leaves(result)) else jax.block_until_ready(result)
            )
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
                raise
            if amount <= 1:
                raise ValueError(
                    f"The device is out of memory even with {what} at its smallest. Restrict the positions, or ask for fewer rows at "
                    "a time."
                ) from error
            amount //= 2
            warnings.warn(f"The device is out of memory; going on with {what} halved to {amount}.", stacklevel=3)

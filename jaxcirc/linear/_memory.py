"""What fits: sizes of results against the memory there is, and smaller pieces when a device runs out of it."""

import math
import os
import warnings
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.core import Tracer


# What a computation may hold beside its inputs and its result, in bytes, unless a caller says otherwise.
BUDGET = 2**29

T = TypeVar("T")


def available() -> int | None:
    """Free memory of the default device in bytes, `None` where it is not known."""
    device = jax.devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if device.platform == "cpu" and hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        # What the kernel would free of its file cache is not counted, so this errs on the safe side by little.
        return _linux_available() or os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _linux_available() -> int | None:
    try:
        with open("/proc/meminfo", encoding="utf-8") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


def check_fits(what: str, shape: tuple[int, ...], dtype, instead: str) -> None:
    """ValueError if a result of `shape` is larger than the memory that is free."""
    size, free = math.prod(shape) * np.dtype(dtype).itemsize, available()
    if free is not None and size > free:
        raise ValueError(
            f"{what} of shape {shape} takes {_readable(size)}, and {_readable(free)} of memory are free. {instead}"
        )


def _readable(size: int | float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


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

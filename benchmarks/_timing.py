"""Fair clocks: equality first, then warm runs side by side, with the garbage collector off."""

import contextlib
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


Run = Callable[[], Any]


class Unequal(ValueError):
    """The two sides do not compute the same, so there is nothing to time."""


def relative_error(got, want) -> float:
    """The largest difference over the largest entry of `want`."""
    got, want = numbers(got), numbers(want)
    if got.shape != want.shape:
        raise Unequal(f"shapes {got.shape} and {want.shape} are compared.")
    size = float(np.abs(want).max())
    if not size > 0:
        raise Unequal("there is nothing to compare: every number is 0.")
    return float(np.abs(got - want).max()) / size


def check_equal(what: str, got, want, limit: float) -> float:
    """The relative error. **Raises:** `Unequal` if it is beyond `limit`."""
    error = relative_error(got, want)
    if not error <= limit:
        raise Unequal(f"{what}: relative error {error:.2g}, more than {limit:g}.")
    return error


def numbers(array) -> np.ndarray:
    """A result of either side in the host's memory."""
    return array.detach().cpu().numpy() if is_torch(array) else np.asarray(array)


def is_torch(array) -> bool:
    return type(array).__module__.split(".")[0] == "torch"


def wait(result: Any) -> Any:
    """Returns `result` once it is there."""
    if is_torch(result):
        if result.is_cuda:
            sys.modules["torch"].cuda.synchronize()
        return result
    return jax.block_until_ready(result)


@contextlib.contextmanager
def no_garbage() -> Iterator[None]:
    """Collects now, and not again before the end."""
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def seconds(run: Run) -> float:
    """The wall time of one run. Call it under `no_garbage`."""
    began = time.perf_counter()
    result = wait(run())
    took = time.perf_counter() - began
    del result
    return took


def first_call(run: Run) -> tuple[Any, float]:
    """The result of the first call, and its wall time, compilation included."""
    began = time.perf_counter()
    result = wait(run())
    return result, time.perf_counter() - began


def side_by_side(runs: Mapping[str, Run], repeats: int, *, at_most: float = 60.0) -> dict[str, list[float]]:
    """Wall times of rounds in which every run has its turn, in an order that alternates.

    There are `repeats` rounds, or fewer, but three, where they would take longer than `at_most` seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    began = time.perf_counter()
    with no_garbage():
        for i in range(repeats):
            if i >= 3 and time.perf_counter() - began > at_most:
                break
            for name in list(runs)[:: 1 if i % 2 == 0 else -1]:
                times[name].append(seconds(runs[name]))
    return times


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": len(values)}


def matmul_rate(n: int | None = None, repeats: int = 5) -> float:
    """Arithmetic operations a second of one float32 product of two n x n matrices, the best of a few: what the machine can do. Unless
    given, n is 2048, and 8192 on an accelerator, where the smaller product is over before the device is busy.
    """
    n = n or (2048 if jax.default_backend() == "cpu" else 8192)
    a = jnp.asarray(np.random.default_rng(0).standard_normal((n, n)), jnp.float32)
    product = jax.jit(jnp.matmul)
    wait(product(a, a))
    return 2 * n**3 / min(seconds(lambda: product(a, a)) for _ in range(repeats))

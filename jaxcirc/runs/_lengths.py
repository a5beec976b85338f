"""Lengths at which prompts are run: few, so that prompts of another length run the same programs.

What is behind a prompt is padding: nobody attends to it, a mask says where it is, and results have the length that the caller gave.
"""

import functools as ft
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._metrics import AbstractMetric, AbstractPositionMetric, Metric, position_read
from .._traced import is_traced, kept_known


T = TypeVar("T", Array, np.ndarray)


def padded_length(seq: int, most: int) -> int:
    """Rounds a length up to a multiple of 8, or of a sixteenth of the next power of two; to `most` at most, which a model takes."""
    step = max(8, (1 << (seq - 1).bit_length()) // 16)
    return max(seq, min(-(-seq // step) * step, most))


def lengthened(array: Array | np.ndarray, length: int, value: int | float | bool | None = None) -> np.ndarray:
    """Fills `[batch seq …]` up to `[batch length …]`, on the host, where no program is compiled for it: with `value`, or where there is
    none with what is last.
    """
    array = np.asarray(array)
    width = [(0, 0)] * array.ndim
    width[1] = (0, length - array.shape[1])
    return np.pad(array, width, mode="edge") if value is None else np.pad(array, width, constant_values=value)


def filled(
    tokens: Int[Array | np.ndarray, "batch seq"], mask: Bool[Array | np.ndarray, "batch seq"], most: int
) -> tuple[Int[np.ndarray, "batch seq_run"], Bool[np.ndarray, "batch seq_run"]]:
    """Fills prompts and their mask up to the length at which they are run, `most` at most; the mask is False there."""
    length = padded_length(tokens.shape[1], most)
    return lengthened(tokens, length), lengthened(mask, length, False)


def shortened(x: T, length: int, axis: int = 1) -> T:
    """Takes the first `length` entries of an axis; of what is in the host's memory without a program for each length."""
    if x.shape[axis] == length:
        return x
    if isinstance(x, np.ndarray):
        return x[(slice(None),) * (axis % x.ndim) + (slice(length),)]
    if not is_traced(x) and all(device.platform == "cpu" for device in x.devices()):
        return jax.device_put(shortened(np.asarray(x), length, axis))  # asarray would compile a program for the shape
    return jax.lax.slice_in_dim(x, 0, length, axis=axis)


def metric_of_first(metric: Metric, seq: int) -> Metric:
    """Makes of a metric of `seq` positions, whose leaves carry the batch axis, the same one of logits of these and more positions."""
    position = position_read(metric)
    named = isinstance(metric, AbstractPositionMetric) and "position" in vars(metric)
    if position is None or not named:
        return _OfFirst(metric, seq)
    xp = jnp if is_traced(position) else np
    position = xp.asarray(position)
    with kept_known(position):
        counted = jax.device_put(xp.where(position < 0, position + seq, position))
    # Of its own class still, by which runs know what it reads.
    return eqx.tree_at(lambda metric: metric.position, metric, counted)


def metric_name(metric: Metric) -> str:
    """The name of a metric's class, or of the function that it is, whatever holds it for `jit` and for padded prompts."""
    while isinstance(metric, _OfFirst | ft.partial):
        metric = metric.metric if isinstance(metric, _OfFirst) else metric.func
    return getattr(metric, "__name__", type(metric).__name__)


class _OfFirst(AbstractMetric):
    """A metric that may read any of the first `seq` positions, and none behind them."""

    metric: Metric
    seq: int = eqx.field(static=True)

    def __call__(self, logits: Float[Array, "seq d_vocab"]) -> Float[Array, ""]:
        return self.metric(logits[: self.seq])

    def token_ids(self) -> tuple[Int[Array, "..."], ...]:
        return self.metric.token_ids() if isinstance(self.metric, AbstractMetric) else ()

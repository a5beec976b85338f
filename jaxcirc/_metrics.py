"""Metrics: what a circuit is for, as a function from one sequence's logits to one number.

A metric is a pytree. Its array leaves carry a leading batch axis for a batch of prompts, and the verbs `jax.vmap` over them; a plain
function of logits (no batch) works wherever a metric does.
"""

import abc
from collections.abc import Callable, Sequence
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from ._typing import Logits


Metric: TypeAlias = Callable[[Logits], Float[Array, ""]]
Ids: TypeAlias = ArrayLike | Sequence[int]  # token ids or positions, as they come from a tokenizer


class AbstractMetric(eqx.Module):
    """A scalar function of one sequence's logits `[seq d_vocab]`, in the logits' units, read at `position`."""

    position: eqx.AbstractVar[Int[Array, "..."]]

    @abc.abstractmethod
    def __call__(self, logits: Float[Array, "seq d_vocab"]) -> Float[Array, ""]:
        """**Arguments:** - `logits` `[seq d_vocab]`. **Returns:** a scalar."""

    @abc.abstractmethod
    def token_ids(self) -> tuple[Int[Array, "..."], ...]:
        """The token ids that it reads, for the check that the model has them."""


class LogitDiff(AbstractMetric):
    """`logit[answer] - logit[foil]` at `position`; `foil=None` is the answer's logit alone.

    **Arguments:**

    - `answer`, `foil`: token ids, `[batch]` for a batch of prompts, scalars for one.
    - `position`: where the answer is read, one for all or `[batch]`; -1 is the last.

    >>> float(jc.LogitDiff(2, 0)(jnp.array([[0.0, 1.0, 5.0]])))
    5.0
    """

    answer: Int[Array, "..."]
    foil: Int[Array, "..."] | None
    position: Int[Array, "..."]

    def __init__(self, answer: Ids, foil: Ids | None = None, position: Ids = -1):
        shape = jnp.shape(jnp.asarray(answer))
        self.answer, self.position = _ids("answer", answer, shape), _ids("position", position, shape)
        self.foil = None if foil is None else _ids("foil", foil, shape)

    def __call__(self, logits: Float[Array, "seq d_vocab"]) -> Float[Array, ""]:
        _check_unbatched(self, self.answer)
        at = logits[self.position]
        return at[self.answer] if self.foil is None else at[self.answer] - at[self.foil]

    def token_ids(self) -> tuple[Int[Array, "..."], ...]:
        return (self.answer,) if self.foil is None else (self.answer, self.foil)


class LogProb(AbstractMetric):
    """`log softmax(logits)[answer]` at `position`, in nats."""

    answer: Int[Array, "..."]
    position: Int[Array, "..."]

    def __init__(self, answer: Ids, position: Ids = -1):
        shape = jnp.shape(jnp.asarray(answer))
        self.answer, self.position = _ids("answer", answer, shape), _ids("position", position, shape)

    def __call__(self, logits: Float[Array, "seq d_vocab"]) -> Float[Array, ""]:
        _check_unbatched(self, self.answer)
        return jax.nn.log_softmax(logits[self.position])[self.answer]

    def token_ids(self) -> tuple[Int[Array, "..."], ...]:
        return (self.answer,)


class KL(AbstractMetric):
    """`KL(reference || logits)` in nats at `position`: how far a run has moved from the reference run.

    **Arguments:** - `reference`: the reference logits at that position, `[batch d_vocab]` (`[d_vocab]` for one prompt).
    """

    reference: Float[Array, "... d_vocab"]
    position: Int[Array, "..."]

    def __init__(self, reference: ArrayLike, position: Ids = -1):
        self.reference = jnp.asarray(reference)
        if not self.reference.ndim:
            raise ValueError("KL: expected reference logits [d_vocab] or [batch d_vocab], got a scalar.")
        self.position = _ids("position", position, self.reference.shape[:-1])

    def __call__(self, logits: Float[Array, "seq d_vocab"]) -> Float[Array, ""]:
        _check_unbatched(self, self.position)
        reference = jax.nn.log_softmax(self.reference)
        return jnp.sum(jnp.exp(reference) * (reference - jax.nn.log_softmax(logits[self.position])))

    def token_ids(self) -> tuple[Int[Array, "..."], ...]:
        return ()


def _ids(name: str, ids: Ids, shape: tuple[int, ...]) -> Int[Array, "..."]:
    """`ids` as integers of the given shape; one number stands for all."""
    ids = jnp.asarray(ids)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"A metric's {name} must be of integers, got dtype {ids.dtype}.")
    if ids.ndim and ids.shape != shape:
        raise ValueError(f"A metric's {name} must be one number or have the batch's shape {shape}, got {ids.shape}.")
    return jnp.broadcast_to(ids, shape)


def _check_unbatched(metric: AbstractMetric, ids: Int[Array, "..."]) -> None:
    if ids.ndim:
        raise ValueError(
            f"{type(metric).__name__} holds a batch of {ids.shape[0]} prompts and was called on one sequence's logits: "
            "call it as jax.vmap(lambda metric, logits: metric(logits))(metric, logits)."
        )

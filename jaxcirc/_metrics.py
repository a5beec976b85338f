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
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from ._indexing import entries
from ._precision import wide
from ._typing import Logits


Metric: TypeAlias = Callable[[Logits], Float[Array, ""]]
Ids: TypeAlias = ArrayLike | Sequence[int]  # token ids or positions, as they come from a tokenizer


class AbstractMetric(eqx.Module):
    """A scalar function of one sequence's logits `[seq d_vocab]`, in the logits' units.

    One that reads a single position is an `AbstractPositionMetric`, and its runs unembed nothing else.
    """

    @abc.abstractmethod
    def __call__(self, logits: Float[Array, "seq d_vocab"]) -> Float[Array, ""]:
        """**Arguments:** - `logits` `[seq d_vocab]`. **Returns:** a scalar."""

    @abc.abstractmethod
    def token_ids(self) -> tuple[Int[Array, "..."], ...]:
        """The token ids that it reads, for the check that the model has them."""


class AbstractPositionMetric(AbstractMetric):
    """A metric of the logits at one `position`: `metric(logits) = metric.at(logits[position])`.

    Write `at`, and `token_ids`. A class that writes `__call__` itself may read other positions too, and is taken to.
    """

    position: eqx.AbstractVar[Int[Array, "..."]]

    @abc.abstractmethod
    def at(self, logits: Float[Array, " d_vocab"]) -> Float[Array, ""]:
        """**Arguments:** - `logits` `[d_vocab]`: those at the position. **Returns:** a scalar."""

    def __call__(self, logits: Float[Array, "seq d_vocab"]) -> Float[Array, ""]:
        if self.position.ndim:
            raise ValueError(
                f"{type(self).__name__} holds a batch of {self.position.shape[0]} prompts and was called on one sequence's logits: "
                "call it as jax.vmap(lambda metric, logits: metric(logits))(metric, logits)."
            )
        seq = logits.shape[0]
        from_the_start = jnp.where(self.position < 0, self.position + seq, self.position)
        return self.at(wide(entries(logits, from_the_start)))


def position_read(metric: object) -> Int[Array, "..."] | None:
    """The one position that a metric reads; `None` where it may read several."""
    if not isinstance(metric, AbstractPositionMetric) or type(metric).__call__ is not AbstractPositionMetric.__call__:
        return None
    return metric.position


class LogitDiff(AbstractPositionMetric):
    """`logit[answer] - logit[foil]` at `position`; `foil=None` is the answer's logit alone.

    **Arguments:**

    - `answer`, `foil`: token ids, `[batch]` for a batch of prompts; one number is for one prompt, or for all of a batch.
    - `position`: where the answer is read, one for all or `[batch]`; -1 is the last.

    **Raises:** `ValueError` if an answer is its own foil, so that there is no difference.

    >>> float(jc.LogitDiff(2, 0)(jnp.array([[0.0, 1.0, 5.0]])))
    5.0
    """

    answer: Int[Array, "..."]
    foil: Int[Array, "..."] | None
    position: Int[Array, "..."]

    def __init__(self, answer: Ids, foil: Ids | None = None, position: Ids = -1):
        shape = _shape(answer=answer, foil=answer if foil is None else foil, position=position)
        self.answer, self.position = _ids("answer", answer, shape), _ids("position", position, shape)
        self.foil = None if foil is None else _ids("foil", foil, shape)
        if self.foil is not None and not isinstance(self.answer, Tracer) and not isinstance(self.foil, Tracer):
            same = np.argwhere(np.asarray(self.answer) == np.asarray(self.foil))
            if len(same):
                at, which = tuple(same[0]), f" of prompt {same[0][0]}" if shape else ""
                raise ValueError(
                    f"LogitDiff: the answer and the foil{which} are the same token, {int(self.answer[at])}, so their difference is always "
                    "0. Give another foil, or none."
                )

    def at(self, logits: Float[Array, " d_vocab"]) -> Float[Array, ""]:
        answer = entries(logits, self.answer)
        return answer if self.foil is None else answer - entries(logits, self.foil)

    def token_ids(self) -> tuple[Int[Array, "..."], ...]:
        return (self.answer,) if self.foil is None else (self.answer, self.foil)


class LogProb(AbstractPositionMetric):
    """`log softmax(logits)[answer]` at `position`, in nats."""

    answer: Int[Array, "..."]
    position: Int[Array, "..."]

    def __init__(self, answer: Ids, position: Ids = -1):
        shape = _shape(answer=answer, position=position)
        self.answer, self.position = _ids("answer", answer, shape), _ids("position", position, shape)

    def at(self, logits: Float[Array, " d_vocab"]) -> Float[Array, ""]:
        return entries(jax.nn.log_softmax(logits), self.answer)

    def token_ids(self) -> tuple[Int[Array, "..."], ...]:
        return (self.answer,)


class KL(AbstractPositionMetric):
    r"""`KL(reference || logits)` in nats at `position`: how far a run has moved from the reference run.

    $$\sum_{t:\,p_t > 0} p_t (\log p_t - \log q_t)$$ with $p$ the reference's probabilities and $q$ the run's. A token that is impossible by
    the reference, whose logit is `-inf`, adds nothing, as $0 \log 0 = 0$; one that is impossible by the run alone makes it infinite.

    It is 0 at its own reference, and so is its gradient there: of a run that is the reference itself a gradient says nothing, and
    integrated gradients or patching do.

    **Arguments:** - `reference`: the reference logits at that position, `[batch d_vocab]` (`[d_vocab]` for one prompt).

    **Raises:** `ValueError` for a reference that is no distribution: NaN or `inf` in it, or every token impossible.
    """

    reference: Float[Array, "... d_vocab"]
    position: Int[Array, "..."]

    def __init__(self, reference: ArrayLike, position: Ids = -1):
        self.reference = jnp.asarray(reference)
        if not self.reference.ndim:
            raise ValueError("KL: expected reference logits [d_vocab] or [batch d_vocab], got a scalar.")
        if not jnp.issubdtype(self.reference.dtype, jnp.floating):
            raise TypeError(f"KL: reference logits are floating-point numbers, got dtype {self.reference.dtype}.")
        self.position = _ids("position", position, self.reference.shape[:-1])
        if not isinstance(self.reference, Tracer):
            _check_distributions(np.asarray(self.reference.astype(jnp.float32)))

    def at(self, logits: Float[Array, " d_vocab"]) -> Float[Array, ""]:
        log_p, log_q = jax.nn.log_softmax(wide(self.reference)), jax.nn.log_softmax(logits)
        p = jnp.exp(log_p)
        # Selected before it is multiplied too: 0 * inf would be NaN, in the value and in its derivatives.
        difference = jnp.where(p > 0, log_p, 0) - jnp.where(p > 0, log_q, 0)
        return jnp.sum(p * difference)

    def token_ids(self) -> tuple[Int[Array, "..."], ...]:
        return ()


def _check_distributions(reference: np.ndarray) -> None:
    bad = np.isnan(reference).any(-1) | (reference == np.inf).any(-1) | (reference == -np.inf).all(-1)
    if bad.any():
        which = f" of prompt {int(np.argwhere(bad)[0][0])}" if reference.ndim > 1 else ""
        raise ValueError(
            f"KL: the reference logits{which} are no distribution: NaN or inf is among them, or all are -inf. Give the logits of a run."
        )


def _numbers(name: str, ids: Ids) -> Array:
    """`ids` as an array. **Raises:** `TypeError` for text."""
    listed = [ids] if isinstance(ids, str) or not isinstance(ids, Sequence) else ids
    texts = [each for each in listed if isinstance(each, str)]
    if texts:
        raise TypeError(
            f"A metric's {name} is token ids, got the text {texts[0]!r}. Encode it, with the space in front of a word: "
            f"tokenizer.encode({texts[0]!r}) is a list, of one token if the tokenizer has it whole."
        )
    return jnp.asarray(ids)


def _shape(**ids: Ids) -> tuple[int, ...]:
    """The batch's shape: that of the first of them which is not one number for all."""
    shapes = (_numbers(name, each).shape for name, each in ids.items())
    return next((shape for shape in shapes if shape), ())


def _ids(name: str, ids: Ids, shape: tuple[int, ...]) -> Int[Array, "..."]:
    """`ids` as integers of the given shape; one number stands for all."""
    ids = _numbers(name, ids)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"A metric's {name} must be of integers, got dtype {ids.dtype}.")
    if ids.ndim and ids.shape != shape:
        raise ValueError(f"A metric's {name} must be one number or have the batch's shape {shape}, got {ids.shape}.")
    return jnp.broadcast_to(ids, shape)

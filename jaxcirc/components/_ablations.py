"""What takes the place of what is ablated: one family, for components of a model and for nodes outside a circuit."""

import abc
import functools as ft
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from .._checks import check_seed
from .._run import check_tokens
from ..models import Transformer
from ._reference import check_aligned, mask_of_source, Receivers, Reference, Values


class AbstractAblation(eqx.Module):
    """How what is ablated is valued."""

    @abc.abstractmethod
    def values(self, receivers: Receivers) -> Callable[[Int[np.ndarray, " some"]], Values]:
        """**Arguments:** - `receivers`: the prompts that are run, and how values on others are got.

        **Returns:** a function from some of these prompts, by number, to the values that they get: a leading axis over them.

        **Raises:** `ValueError` where there are no such values; before anything is run.
        """


class Zero(AbstractAblation):
    """Zero. Of a head's `z` that is not the same before and after `jc.process_weights`, which moves value biases elsewhere; of a
    dictionary's nodes it is latents off, and no error.
    """

    def values(self, receivers):
        return _repeated(receivers.zeros)


class Mean(AbstractAblation):
    """The mean over prompts, for each position apart, of those that are real there; or over all real positions of all prompts.

    **Arguments:**

    - `tokens` `[prompt seq]`: the prompts, as long as those that are run. Without any they are those that the verb has: the corrupt
      prompts, or where it has none those that are run.
    - `mask` `[prompt seq]`: False for padding of `tokens`, which is not in the mean; needed if the prompts that are run have padding. A
      position is a column: prompts of several lengths are padded on one side, all of them, and a position at which none is real has no
      mean.
    - `by_position`: False for one mean of all real tokens, which every position gets.
    """

    tokens: Int[Array, "prompt seq"] | None = None
    mask: Bool[Array, "prompt seq"] | None = None
    by_position: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        if self.tokens is None and self.mask is not None:
            raise ValueError("Mean: mask is of tokens, and none were given. Give Mean(tokens, mask), or neither.")

    def values(self, receivers):
        reference = receivers.beside("Mean") if self.tokens is None else self._given(receivers, self.tokens)
        if not self.by_position:
            return _repeated(ft.cache(reference.mean_of_all))
        reference.check_mean(np.asarray(receivers.mask))
        return _repeated(ft.cache(reference.mean))

    def _given(self, receivers: Receivers, tokens: Int[Array, "prompt seq"]) -> Reference:
        if not len(tokens):
            raise ValueError("Mean: there are no prompts, so there is nothing to take the mean of. Give at least one.")
        check_tokens(receivers.model, tokens, batched=True)
        if tokens.shape[1] != receivers.tokens.shape[1]:
            raise ValueError(
                f"Mean: its tokens have shape {tokens.shape} and those that are run {receivers.tokens.shape}. The mean is of each "
                "position, so give prompts of one length."
            )
        return receivers.reference("Mean", tokens, mask_of_source("Mean", tokens, self.mask, receivers.mask))


class Resample(AbstractAblation):
    """The values of the same component, at the same position, on other prompts, each run under its own padding.

    **Arguments:** - `tokens` `[batch seq]`: for each prompt the one whose values it gets. `Resample.rolled(tokens)` and
    `Resample.shuffled(tokens, key)` take the prompts' own, each another's. - `mask` `[batch seq]`: False for the padding of these
    prompts; needed if those that are run have padding. Each must be real wherever the prompt is that gets its values: of the same length,
    or longer and padded on the same side.
    """

    tokens: Int[Array, "batch seq"]
    mask: Bool[Array, "batch seq"] | None = None

    @staticmethod
    def rolled(tokens: Int[Array, "batch seq"], mask: Bool[Array, "batch seq"] | None = None) -> "Resample":
        """Each prompt gets the values of the one before it, the first those of the last. A mask goes with its prompts."""
        return _reordered(tokens, mask, np.roll(np.arange(len(tokens)), 1))

    @staticmethod
    def shuffled(
        tokens: Int[Array, "batch seq"], key: Key[Array, ""], mask: Bool[Array, "batch seq"] | None = None
    ) -> "Resample":
        """Each prompt gets the values of another one that `key` decides, and all are used. A mask goes with its prompts."""
        return _reordered(tokens, mask, _others(np.asarray(jax.random.permutation(key, len(tokens)))))

    def values(self, receivers):
        real = check_resample(receivers.model, self, receivers.tokens, receivers.mask)
        reference = receivers.reference("Resample", self.tokens, real)
        return reference.another(np.asarray(receivers.mask), np.arange(len(real)))


class ResampleAblation(AbstractAblation):
    """The values on another one of the verb's prompts, the same for all that is ablated, position by position: a shuffle that `seed`
    decides, of the corrupt prompts, or where there are none of those that are run. All have one length, as a shorter one has no values for
    a longer. `jc.Resample(tokens)` says itself which prompts.
    """

    seed: int = eqx.field(static=True, default=0)

    def __check_init__(self):
        check_seed("ResampleAblation: seed", self.seed)

    def values(self, receivers):
        n = len(receivers.tokens)
        if n < 2:
            raise ValueError("ResampleAblation takes another prompt's values, and there is one prompt. Use Zero.")
        other = _others(np.random.default_rng(self.seed).permutation(n))
        return receivers.beside("ResampleAblation").another(np.asarray(receivers.mask), other)


MeanAblation, ZeroAblation = Mean, Zero  # as they are called of circuits
AbstractValues = AbstractAblation  # as it is called of components


def check_resample(
    model: Transformer,
    resample: Resample,
    tokens: Int[Array | np.ndarray, "batch seq"],
    mask: Bool[Array, "batch seq"] | Bool[np.ndarray, "batch seq"],
) -> Bool[np.ndarray, "batch seq"]:
    """**Returns:** which tokens of the prompts to resample from are real. **Raises:** `ValueError` unless there is one for each prompt, of
    its shape, and real wherever it is.
    """
    check_tokens(model, resample.tokens, batched=True)
    if resample.tokens.shape != tokens.shape:
        raise ValueError(
            f"The prompts to resample from have shape {resample.tokens.shape} and those that are run {tokens.shape}: each takes the values "
            "of one other, position by position. Give as many, of the same length."
        )
    real = mask_of_source("Resample", resample.tokens, resample.mask, mask)
    check_aligned("Resample", real, np.asarray(mask))
    return real


def _repeated(one: Callable[[], Values]) -> Callable[[Int[np.ndarray, " some"]], Values]:
    """Gives every prompt the same values, `[1 …]`, which are made when they are first asked for."""
    return lambda rows: jax.tree.map(lambda x: jnp.broadcast_to(x, (len(rows), *x.shape[1:])), one())


def _others(order: Int[np.ndarray, " batch"]) -> Int[np.ndarray, " batch"]:
    """Names another prompt for each, and every one once: the one before it in `order`."""
    other = np.empty_like(order)
    other[order] = np.roll(order, 1)
    return other


def _reordered(tokens, mask, other: Int[np.ndarray, " batch"]) -> Resample:
    if len(tokens) < 2:
        raise ValueError(
            "Resample takes another prompt's values, and there is one prompt. Give more, or Resample(tokens) of others."
        )
    return Resample(jnp.asarray(tokens)[other], None if mask is None else jnp.asarray(mask)[other])

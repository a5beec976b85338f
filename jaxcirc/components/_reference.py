"""Values from other prompts: computed under those prompts' own padding, and taken position by position where both prompts are real.

A position is a column of the batch. Columns count from the beginning of prompts that are padded on the right, and from the end of those
that are padded on the left; so a longer prompt has a value for every token of a shorter one that is padded on the same side.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._run import check_mask
from ..models import Transformer
from ..runs import filled


Values = Any  # a pytree of arrays with a leading axis over prompts


class Reference(NamedTuple):
    """Prompts that values are taken from.

    **Attributes:** - `who`: takes them, for messages. - `of(rows)`: the values on some of the prompts, by number. - `mask`
    `[prompt seq]`: which of their tokens are real. - `mask_run` `[prompt seq_run]`: the same with the padding with which they are run.
    - `groups`: the numbers of the prompts that are run together; the last number may fill up the last group.
    """

    who: str
    of: Callable[[Int[np.ndarray, " some"]], Values]
    mask: Bool[np.ndarray, "prompt seq"]
    mask_run: Bool[np.ndarray, "prompt seq_run"]
    groups: Iterable[Int[np.ndarray, " some"]]

    def mean(self) -> Values:
        """The mean over the prompts that are real at a position, for each position apart, `[1 seq_run …]`."""
        return self._summed(self.mask_run / np.maximum(self.mask_run.sum(0), 1))

    def mean_of_all(self) -> Values:
        """The mean over all real tokens of the prompts, the same at every position, `[1 seq_run …]`."""
        return _of_all_positions(self._summed(self.mask_run / self.mask_run.sum()))

    def _summed(self, weights: Float[np.ndarray, "prompt seq_run"]) -> Values:
        """Sums the values on all prompts, each position by its weight."""
        total = None
        for rows in self.groups:
            once = np.diff(rows, prepend=-1) > 0
            part = _weighted(self.of(rows), jnp.asarray(np.where(once[:, None], weights[rows], 0)))
            total = part if total is None else jax.tree.map(jnp.add, total, part)
        return total

    def check_mean(self, receivers: Bool[np.ndarray, "batch seq"]) -> None:
        """ValueError for a position at which a receiver is real and none of the prompts, and for padding on both sides."""
        _check_sides(self.who, self.mask, receivers)
        _check_means(self.who, self.mask, receivers)

    def another(
        self, receivers: Bool[np.ndarray, "batch seq"], other: Int[np.ndarray, " batch"]
    ) -> Callable[[Int[np.ndarray, " some"]], Values]:
        """A function from receivers, by number, to the values on `other`, the prompt that each of them gets its values from.

        **Raises:** `ValueError` for a receiver that is real where that prompt has padding.
        """
        check_aligned(self.who, self.mask[other], receivers)
        return lambda rows: self.of(other[rows])


class Receivers(NamedTuple):
    """The prompts that are run and get values of others, and how such values are got.

    **Attributes:** - `model`. - `tokens`, `mask` `[batch seq]`: the prompts, and which of their tokens are real. - `others`
    `[batch seq]`: the prompts that the verb has beside them, under the same mask, or the same ones. - `of(tokens, mask)`: the values on any
    prompts, of the length at which prompts of this length are run. - `zeros()`: their zeros, `[1 …]`. - `groups(count)`: so many prompts,
    by number, in groups run together.
    """

    model: Transformer
    tokens: Int[Array | np.ndarray, "batch seq"]
    mask: Bool[Array | np.ndarray, "batch seq"]
    others: Int[Array | np.ndarray, "batch seq"]
    of: Callable[[Int[Array, "some seq_run"], Bool[Array, "some seq_run"]], Values]
    zeros: Callable[[], Values]
    groups: Callable[[int], Iterable[Int[np.ndarray, " some"]]]

    def reference(
        self, who: str, tokens: Int[Array | np.ndarray, "prompt seq"], mask: Bool[np.ndarray, "prompt seq"]
    ) -> Reference:
        """Takes values from these prompts."""
        prompts, real = filled(tokens, mask, self.model.most_positions)
        values = lambda rows: self.of(jnp.asarray(prompts[rows]), jnp.asarray(real[rows]))
        return Reference(who, values, mask, real, self.groups(len(tokens)))

    def beside(self, who: str) -> Reference:
        """Takes values from the verb's other prompts."""
        return self.reference(who, self.others, np.asarray(self.mask))


def mask_of_source(
    who: str,
    tokens: Int[Array, "prompt seq"],
    mask: Bool[Array, "prompt seq"] | None,
    receivers: Bool[Array, "batch seq"] | Bool[np.ndarray, "batch seq"],
) -> Bool[np.ndarray, "prompt seq"]:
    """The padding of the prompts that values come from. **Raises:** `ValueError` if it was not given and cannot be known."""
    check_mask(tokens, mask)
    if mask is not None:
        return np.asarray(mask)
    if not np.asarray(receivers).all():
        raise ValueError(
            f"{who}: the prompts that are run have padding, and it is not known which tokens of those that values come from are padding. "
            f"Give it their own mask, {who}(tokens, mask=…), True where a token is real."
        )
    return np.ones(tokens.shape, bool)


def check_aligned(who: str, sources: Bool[np.ndarray, "batch seq"], receivers: Bool[np.ndarray, "batch seq"]) -> None:
    """ValueError unless each prompt's source is real wherever the prompt is."""
    bad = np.argwhere(receivers & ~sources)
    if len(bad):
        row, position = bad[0]
        raise ValueError(
            f"{who}: prompt {row} has a token at position {position}, where the prompt whose values it gets has padding (lengths "
            f"{receivers[row].sum()} and {sources[row].sum()}). Values are taken position by position, so give each prompt one of its "
            "length, or a longer one that is padded on the same side."
        )


def _check_sides(who: str, references: np.ndarray, receivers: np.ndarray) -> None:
    """ValueError where a column is of another place in each prompt: counted from the beginning in some, and from the end in others."""
    masks = np.unique(np.concatenate([references, receivers]), axis=0)
    masks = masks[masks.any(1)]
    if len(masks) > 1 and not (masks[:, 0].all() or masks[:, -1].all()):
        raise ValueError(
            f"{who}: some prompts are padded on the left and others on the right, so that their positions do not align, and a mean is of "
            "each position. Pad all on one side, or give prompts of one length."
        )


def _check_means(who: str, references: np.ndarray, receivers: np.ndarray) -> None:
    bad = np.argwhere(receivers & ~references.any(0))
    if len(bad):
        row, position = bad[0]
        raise ValueError(
            f"{who}: prompt {row} has a token at position {position}, where every prompt of the mean has padding (the longest has length "
            f"{references.sum(1).max()}), so there is nothing to take the mean of. Give prompts as long as those that are run."
        )


@jax.jit
def _weighted(values: Values, weights: Float[Array, "batch seq"]) -> Values:
    # [batch seq] · [batch seq …] -> [seq …]
    return jax.tree.map(lambda x: jnp.einsum("bs,bs...->s...", weights.astype(x.dtype), x)[None], values)


@jax.jit
def _of_all_positions(values: Values) -> Values:
    """Gives every position of `[1 seq …]` the sum over positions."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x.sum(1, keepdims=True), x.shape), values)

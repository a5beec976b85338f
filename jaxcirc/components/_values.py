"""What takes the place of a part that is ablated."""

import abc
import functools as ft
from collections.abc import Mapping, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from .._run import check_tokens, run
from .._sites import Site
from ..models import Transformer
from ..runs import in_groups, TOKENS_AT_ONCE
from ..saes import AbstractDictionary
from ._reference import check_aligned, mask_of_source, Reference


class AbstractValues(eqx.Module):
    """How ablated parts are valued."""

    @abc.abstractmethod
    def at(
        self,
        model: Transformer,
        saes: Mapping[Site, AbstractDictionary],
        sites: Sequence[Site],
        tokens: Int[Array, "batch seq"],
        mask: Bool[Array, "batch seq"],
    ) -> dict[Site, Float[Array, "..."]]:
        """**Returns:** for each site what it is ablated to, `[batch …]` or `[1 …]`, in a shape that broadcasts to its value."""


class Zero(AbstractValues):
    """Zero. Of a head's `z` that is not the same before and after `jc.process_weights`, which moves value biases elsewhere."""

    def at(self, model, saes, sites, tokens, mask):
        return {site: jnp.zeros(1, model.activation_dtype) for site in sites}


class Mean(AbstractValues):
    """The mean over prompts, for each position apart.

    **Arguments:** - `tokens` `[prompt seq]`: the prompts, as long as those that are run. - `mask` `[prompt seq]`: False for padding,
    which is not in the mean; needed if those that are run have padding. A position is a column: prompts of several lengths are padded on
    one side, all of them, and a position at which none is real has no mean.
    """

    tokens: Int[Array, "prompt seq"]
    mask: Bool[Array, "prompt seq"] | None = None

    def at(self, model, saes, sites, tokens, mask):
        if not len(self.tokens):
            raise ValueError("Mean: there are no prompts, so there is nothing to take the mean of. Give at least one.")
        check_tokens(model, self.tokens, batched=True)
        if self.tokens.shape[1] != tokens.shape[1]:
            raise ValueError(
                f"Mean: its tokens have shape {self.tokens.shape} and those that are run {tokens.shape}. The mean is of each position, so "
                "give prompts of one length."
            )
        real = mask_of_source("Mean", self.tokens, self.mask, mask)
        of = lambda rows: _values(
            model, saes, jnp.asarray(self.tokens)[rows], jnp.asarray(real[rows]), sites=tuple(sites)
        )
        groups = in_groups(len(self.tokens), tokens.shape[1], TOKENS_AT_ONCE)
        return Reference("Mean", of, real, groups).mean(np.asarray(mask))


class Resample(AbstractValues):
    """The values of the same part, at the same position, on other prompts, each run under its own padding.

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
        order = np.asarray(jax.random.permutation(key, len(tokens)))
        other = np.empty_like(order)
        other[order] = np.roll(order, 1)
        return _reordered(tokens, mask, other)

    def at(self, model, saes, sites, tokens, mask):
        real = check_resample(model, self, tokens, mask)
        return _values(model, saes, jnp.asarray(self.tokens), jnp.asarray(real), sites=tuple(sites))


def check_resample(
    model: Transformer,
    resample: Resample,
    tokens: Int[Array, "batch seq"],
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


def _reordered(tokens, mask, other: Int[np.ndarray, " batch"]) -> Resample:
    if len(tokens) < 2:
        raise ValueError(
            "Resample takes another prompt's values, and there is one prompt. Give more, or Resample(tokens) of others."
        )
    return Resample(jnp.asarray(tokens)[other], None if mask is None else jnp.asarray(mask)[other])


@ft.partial(jax.jit, static_argnames="sites")
def _values(model, saes, tokens, mask, *, sites: tuple[Site, ...]) -> dict[Site, Float[Array, "..."]]:
    one = lambda tokens, keys: run(model, tokens, saes=saes, record=sites, mask=keys)[1]
    return jax.vmap(one)(tokens, mask)

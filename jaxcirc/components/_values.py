"""What takes the place of a part that is ablated."""

import abc
import functools as ft
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from .._run import check_mask, check_tokens, run
from .._sites import Site
from ..models import Transformer
from ..saes import AbstractDictionary
from ._groups import in_groups, TOKENS_AT_ONCE


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
        return {site: jnp.zeros(1, model.dtype) for site in sites}


class Mean(AbstractValues):
    """The mean over prompts, for each position apart.

    **Arguments:** - `tokens` `[prompt seq]`: the prompts, as long as those that are run. - `mask` `[prompt seq]`: False for padding,
    which is not in the mean.
    """

    tokens: Int[Array, "prompt seq"]
    mask: Bool[Array, "prompt seq"] | None = None

    def at(self, model, saes, sites, tokens, mask):
        check_tokens(model, self.tokens, batched=True)
        check_mask(self.tokens, self.mask)
        if self.tokens.shape[1] != tokens.shape[1]:
            raise ValueError(
                f"Mean: its tokens have shape {self.tokens.shape} and those that are run {tokens.shape}. The mean is of each position, so "
                "give prompts of one length."
            )
        real = jnp.ones(self.tokens.shape, bool) if self.mask is None else jnp.asarray(self.mask)
        weights = real.astype(model.dtype) / jnp.maximum(real.sum(0), 1).astype(model.dtype)
        total: Any = None
        for rows in in_groups(len(self.tokens), tokens.shape[1], TOKENS_AT_ONCE):
            found = _values(model, saes, jnp.asarray(self.tokens)[rows], real[rows], sites=tuple(sites))
            once = np.diff(rows, prepend=-1) > 0  # the last prompt may fill up its group
            part = _weighted(found, jnp.where(once[:, None], weights[rows], 0))
            total = part if total is None else jax.tree.map(jnp.add, total, part)
        return total


class Resample(AbstractValues):
    """The values of the same part, at the same position, on other prompts.

    **Arguments:** - `tokens` `[batch seq]`: for each prompt the one whose values it gets. `Resample.rolled(tokens)` and
    `Resample.shuffled(tokens, key)` take the prompts' own, each another's.
    """

    tokens: Int[Array, "batch seq"]

    @staticmethod
    def rolled(tokens: Int[Array, "batch seq"]) -> "Resample":
        """Each prompt gets the values of the one before it, the first those of the last."""
        _check_others(tokens)
        return Resample(jnp.roll(tokens, 1, axis=0))

    @staticmethod
    def shuffled(tokens: Int[Array, "batch seq"], key: Key[Array, ""]) -> "Resample":
        """Each prompt gets the values of another one that `key` decides, and all are used."""
        _check_others(tokens)
        order = jax.random.permutation(key, len(tokens))
        return Resample(jnp.zeros_like(tokens).at[order].set(jnp.asarray(tokens)[jnp.roll(order, 1)]))

    def at(self, model, saes, sites, tokens, mask):
        check_resample(model, self.tokens, tokens)
        return _values(model, saes, jnp.asarray(self.tokens), mask, sites=tuple(sites))


def check_resample(model: Transformer, resample: Int[Array, "batch seq"], tokens: Int[Array, "batch seq"]) -> None:
    """ValueError unless there is one prompt to resample from for each prompt, of its length."""
    check_tokens(model, resample, batched=True)
    if resample.shape != tokens.shape:
        raise ValueError(
            f"The prompts to resample from have shape {resample.shape} and those that are run {tokens.shape}: each takes the values of one "
            "other, position by position. Give as many, of the same length."
        )


def _check_others(tokens) -> None:
    if len(tokens) < 2:
        raise ValueError(
            "Resample takes another prompt's values, and there is one prompt. Give more, or Resample(tokens) of others."
        )


@jax.jit
def _weighted(values: dict[Site, Array], weights: Float[Array, "batch seq"]) -> dict[Site, Float[Array, "1 seq ..."]]:
    return jax.tree.map(lambda value: jnp.einsum("bs,bs...->s...", weights, value)[None], values)


@ft.partial(jax.jit, static_argnames="sites")
def _values(model, saes, tokens, mask, *, sites: tuple[Site, ...]) -> dict[Site, Float[Array, "..."]]:
    one = lambda tokens, keys: run(model, tokens, saes=saes, record=sites, mask=keys)[1]
    return jax.vmap(one)(tokens, mask)

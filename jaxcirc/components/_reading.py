"""Answers as directions in the residual stream: along which the final norm and the unembedding read them."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._precision import wide
from .._run import check_token_ids
from ..models import Transformer
from ..parts import Norm
from ..parts._held_norm import pull_through_norm
from ..runs import lengthened


class Reading(eqx.Module):
    r"""A logit as a function of the last residual stream $r$: $\langle r, d \rangle / s(r) + c$, with the final norm's scale $s$; before
    the cap, where logits are capped.

    **Attributes:** - `direction` `[batch seq d_model]`: $d$, with the norm's weight and its centring in it. - `bias` `[batch seq]`: $c$.
    Both are 0 at positions that are not read.
    """

    direction: Float[Array, "batch seq d_model"]
    bias: Float[Array, "batch seq"]


class Asked(NamedTuple):
    """Whose logits are read, in the host's memory: `answers` `[batch seq]` token ids or `[batch seq d_model]` directions, `foils`
    `[batch seq]` if there are any, and `read` `[batch seq]`, where.
    """

    answers: np.ndarray
    foils: np.ndarray | None
    read: np.ndarray

    def of(self, rows: np.ndarray) -> "Asked":
        """Of some prompts."""
        return Asked(self.answers[rows], None if self.foils is None else self.foils[rows], self.read[rows])

    def at(self, where: Bool[np.ndarray, "batch seq"]) -> "Asked":
        """Read at these positions alone."""
        return self._replace(read=self.read & where)

    def filled(self, length: int) -> "Asked":
        """Of longer rows, behind whose tokens nothing is read."""
        foils = None if self.foils is None else lengthened(self.foils, length)
        return Asked(lengthened(self.answers, length), foils, lengthened(self.read, length, False))

    def until(self, seen: int) -> "Asked":
        """Of the first positions."""
        return Asked(self.answers[:, :seen], None if self.foils is None else self.foils[:, :seen], self.read[:, :seen])


def asked(
    model: Transformer,
    tokens: Int[Array, "batch seq"],
    mask: Bool[np.ndarray, "batch seq"],
    answers: Int[Array, "..."] | Float[Array, "..."] | int | None,
    foils: Int[Array, "..."] | int | None,
) -> Asked:
    """The answers of a verb's arguments. **Raises:** `ValueError` for answers or foils of another shape, or outside the vocabulary."""
    values, read = np.asarray(answers), mask
    if answers is None:
        values, read = np.roll(np.asarray(tokens), -1, axis=1), followed(mask)
    if jnp.issubdtype(values.dtype, jnp.integer):
        ids = _ids(model, "answers", values, tokens.shape)
        return Asked(ids, None if foils is None else _ids(model, "foils", np.asarray(foils), tokens.shape), read)
    if not jnp.issubdtype(values.dtype, jnp.number):
        raise TypeError(f"answers: expected tokens, which are integers, or directions, got {answers!r}.")
    if foils is not None:
        raise ValueError("foils are tokens, and the answers are directions. Give the difference as the direction.")
    return Asked(
        _broadcast("answers", values.astype(model.activation_dtype), (*tokens.shape, model.d_model)), None, read
    )


def reading(model: Transformer, wanted: Asked) -> Reading:
    """How they are read."""
    if wanted.answers.ndim == 3:
        return _of_directions(model.without_blocks, wanted.answers, wanted.read)
    return _of_tokens(model.without_blocks, wanted.answers, wanted.foils, wanted.read)


def followed(mask: Bool[Array | np.ndarray, "batch seq"]) -> Bool[np.ndarray, "batch seq"]:
    """Which real positions have a real token after them."""
    out = np.array(mask)
    out[:, :-1] &= out[:, 1:]
    out[:, -1] = False
    return out


@jax.jit
def at_scale(read: Reading, scale: Float[Array, "batch seq"]) -> Float[Array, "batch seq d_model"]:
    """The direction, with the final norm's scale held."""
    return read.direction / scale[..., None]


def _ids(model: Transformer, name: str, ids: np.ndarray, shape: tuple[int, ...]) -> Int[np.ndarray, "batch seq"]:
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"{name}: expected token ids, got dtype {ids.dtype}.")
    check_token_ids(model, jnp.asarray(ids), model.b_U.shape[0])
    return _broadcast(name, ids, shape)


def _broadcast(name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """One for all, one a prompt, or one a position."""
    wanted = (shape[2:], (shape[0], *shape[2:]), shape)
    if values.shape not in wanted:
        raise ValueError(
            f"{name}: expected shape {wanted[0]}, {wanted[1]} or {wanted[2]}, one for all, one a prompt or one a position, got "
            f"{values.shape}."
        )
    return np.broadcast_to(values[:, None] if values.shape == wanted[1] else values, shape)


@jax.jit
def _of_tokens(model: Transformer, answers, foils, read) -> Reading:
    if foils is None:
        against, shift = jnp.mean(wide(model.W_U), axis=1), jnp.mean(wide(model.b_U))
    else:
        against, shift = wide(model.W_U.T[foils]), wide(model.b_U[foils])
    found = _of_directions(model, wide(model.W_U.T[answers]) - against, read)
    return Reading(found.direction, found.bias + jnp.where(read, wide(model.b_U[answers]) - shift, 0))


@jax.jit
def _of_directions(model: Transformer, along: Float[Array, "batch seq d_model"], read) -> Reading:
    return Reading(*_before(model.ln_final, jnp.where(read[..., None], along, 0)))


def _before(norm: Norm | None, along: Float[Array, "batch seq d_model"]) -> tuple[Array, Array]:
    """Takes directions of what a norm makes to what it reads, but for its scale, and to what its bias gives them."""
    return (along, jnp.zeros_like(along[..., 0])) if norm is None else pull_through_norm(norm, along)


def before_norm_behind(
    norm: Norm | None, scale: Float[Array, "batch seq 1"] | None, along: Float[Array, "batch seq d_model"]
) -> tuple[Float[Array, "batch seq d_model"], Float[Array, "batch seq"]]:
    """Takes directions in what a sublayer adds to the residual stream to what a norm behind it reads, with that norm's `scale` held, and to
    what its bias gives them. Without such a norm they stay, and there is no bias.
    """
    direction, bias = _before(norm, along)
    return direction if scale is None else direction / scale, bias

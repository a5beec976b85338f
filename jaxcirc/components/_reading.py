"""Answers as directions in the residual stream: along which the final norm and the unembedding read them."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._run import check_token_ids
from ..models import Transformer
from ._written import ends_of


class Reading(eqx.Module):
    r"""A logit as a function of the last residual stream $r$: $\langle r, d \rangle / s(r) + c$, with the final norm's scale $s$.

    **Attributes:** - `direction` `[batch seq d_model]`: $d$, with the norm's weight and its centring in it. - `bias` `[batch seq]`: $c$.
    Both are 0 at positions that are not read.
    """

    direction: Float[Array, "batch seq d_model"]
    bias: Float[Array, "batch seq"]


def reading(
    model: Transformer,
    tokens: Int[Array, "batch seq"],
    mask: Bool[Array, "batch seq"],
    answers: Int[Array, "..."] | Float[Array, "..."] | int | None,
    foils: Int[Array, "..."] | int | None,
) -> Reading:
    """How the answers are read. **Raises:** `ValueError` for answers or foils of another shape, or outside the vocabulary."""
    read = mask
    if answers is None:
        answers, read = jnp.roll(tokens, -1, axis=1), followed(mask)
        check_token_ids(model, answers, model.W_U.shape[1])
    answers = jnp.asarray(answers)
    if not jnp.issubdtype(answers.dtype, jnp.integer):
        if foils is not None:
            raise ValueError("foils are tokens, and the answers are directions. Give the difference as the direction.")
        along = _broadcast("answers", answers.astype(model.dtype), (*tokens.shape, model.d_model))
        return _of_direction(ends_of(model), along, read)
    answers = _ids(model, "answers", answers, tokens.shape)
    return _of_tokens(
        ends_of(model), answers, None if foils is None else _ids(model, "foils", foils, tokens.shape), read
    )


def followed(mask: Bool[Array, "batch seq"]) -> Bool[Array, "batch seq"]:
    """Which real positions have a real token after them."""
    return mask & jnp.roll(mask, -1, axis=1).at[:, -1].set(False)


def _ids(model: Transformer, name: str, ids, shape: tuple[int, ...]) -> Int[Array, "batch seq"]:
    ids = jnp.asarray(ids)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"{name}: expected token ids, got dtype {ids.dtype}.")
    check_token_ids(model, ids, model.W_U.shape[1])
    return _broadcast(name, ids, shape)


def _broadcast(name: str, values: Array, shape: tuple[int, ...]) -> Array:
    """One for all, one a prompt, or one a position."""
    inner = values.ndim - len(shape[2:])
    wanted = (shape[2:], (shape[0], *shape[2:]), shape)
    if values.shape not in wanted:
        raise ValueError(
            f"{name}: expected shape {wanted[0]}, {wanted[1]} or {wanted[2]}, one for all, one a prompt or one a position, got "
            f"{values.shape}."
        )
    return jnp.broadcast_to(values[:, None] if inner == 1 else values, shape)


@jax.jit
def _of_tokens(model: Transformer, answers, foils, read) -> Reading:
    if foils is None:
        against, shift = jnp.mean(model.W_U, axis=1), jnp.mean(model.b_U)
    else:
        against, shift = model.W_U.T[foils], model.b_U[foils]
    found = _of_direction(model, model.W_U.T[answers] - against, read)
    return Reading(found.direction, found.bias + jnp.where(read, model.b_U[answers] - shift, 0))


@jax.jit
def _of_direction(model: Transformer, along: Float[Array, "batch seq d_model"], read) -> Reading:
    along = jnp.where(read[..., None], along, 0)
    bias, norm = jnp.zeros_like(along[..., 0]), model.ln_final
    if norm is not None:
        if norm.bias is not None:
            bias = jnp.einsum("bsm,m->bs", along, norm.bias)
        if norm.weight is not None:
            along = along * norm.weight
        along = along - jnp.mean(along, axis=-1, keepdims=True)
    return Reading(along, bias)

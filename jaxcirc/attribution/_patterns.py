"""Exact changes of attention patterns times the gradient at the pattern: of a query, whose is a row, and of a key, whose is a column."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def effects_of_queries(
    scores: Float[Array, "layer head q_seq k_seq"],
    change: Float[Array, "layer head q_seq k_seq"],
    slope: Float[Array, "world layer head q_seq k_seq"],
) -> Float[Array, "world layer q_seq head"]:
    """A query decides on its own row of the pattern."""
    moved = jax.nn.softmax(scores + change, axis=-1) - jax.nn.softmax(scores, axis=-1)
    # [world layer head q_seq k_seq] · [layer head q_seq k_seq] -> [world layer q_seq head]
    return jnp.einsum("wlhqk,lhqk->wlqh", slope, moved)


def effects_of_keys(
    scores: Float[Array, "layer head q_seq k_seq"],
    change: Float[Array, "layer head q_seq k_seq"],
    slope: Float[Array, "world layer head q_seq k_seq"],
) -> Float[Array, "world layer k_seq head"]:
    r"""A key decides on one score of every row. With $R$ the weight of the row's other entries, its probability goes from
    $w / (w + R)$ to $w' / (w' + R)$, and what it gains the others lose in proportion.
    """
    finite = jnp.isfinite(scores)
    score = jnp.where(finite, scores - jnp.max(scores, axis=-1, keepdims=True), 0)
    weight = jnp.where(finite, jnp.exp(score), 0)
    rest = _others(weight)
    alone = ~finite | (rest == 0)
    rest = jnp.where(alone, 1, rest)
    gain = jax.nn.sigmoid(score + change - jnp.log(rest)) - jax.nn.sigmoid(score - jnp.log(rest))
    elsewhere = _others(slope * weight) / rest
    # [world layer head q_seq k_seq] · [layer head q_seq k_seq] -> [world layer k_seq head]
    return jnp.einsum("wlhqk,lhqk->wlkh", slope - elsewhere, jnp.where(alone, 0, gain))


def _others(x: Float[Array, "... k_seq"]) -> Float[Array, "... k_seq"]:
    """For each entry the sum of all others of its row; not by subtraction, which would lose small ones beside a large one."""
    before = jnp.cumsum(x, axis=-1)[..., :-1]
    after = jnp.flip(jnp.cumsum(jnp.flip(x, -1), axis=-1), -1)[..., 1:]
    pad = [(0, 0)] * (x.ndim - 1)
    return jnp.pad(before, [*pad, (1, 0)]) + jnp.pad(after, [*pad, (0, 1)])

"""Attention: the one part of a block that moves anything between positions."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._precision import widened
from .._sites import Kind
from .._tap import Tap
from .._typing import Mask


class KVCache(NamedTuple):
    """Keys and values of a whole sequence, of which attention is run at some positions in a row, from `first` on; there its own take
    their place.
    """

    k: Float[Array, "k_seq head d_head"]
    v: Float[Array, "k_seq head d_head"]
    first: Int[Array, ""]

    def updated(self, k: Float[Array, "seq head d_head"], v: Float[Array, "seq head d_head"]) -> tuple[Array, Array]:
        put = lambda new, old: jax.lax.dynamic_update_slice_in_dim(old, new, self.first, axis=0)
        return put(k, self.k), put(v, self.v)


class Attention(eqx.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv 1706.03762, §3.2); `scale` multiplies the scores, one number a layer."""

    W_Q: Float[Array, "head d_model d_head"]
    b_Q: Float[Array, "head d_head"]
    W_K: Float[Array, "head d_model d_head"]
    b_K: Float[Array, "head d_head"]
    W_V: Float[Array, "head d_model d_head"]
    b_V: Float[Array, "head d_head"]
    W_O: Float[Array, "head d_head d_model"]
    b_O: Float[Array, " d_model"]
    scale: Float[Array, ""]

    def __call__(
        self,
        x: Float[Array, "k_seq d_model"],
        mask: Mask,
        tap: Tap,
        *,
        queries: Float[Array, "q_seq d_model"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Array, "q_seq d_model"]:
        """What attention writes; at `queries`, with a row of the mask for each, if it is not wanted everywhere; where `x` is of some
        positions alone, with the keys and values of the others in a `cache`.
        """
        weights = widened(self)
        # [seq d_model] · [head d_model d_head] -> [seq head d_head]
        q = tap(Kind.Q, jnp.einsum("sm,hmd->shd", x if queries is None else queries, weights.W_Q) + weights.b_Q)
        k = tap(Kind.K, jnp.einsum("sm,hmd->shd", x, weights.W_K) + weights.b_K)
        v = tap(Kind.V, jnp.einsum("sm,hmd->shd", x, weights.W_V) + weights.b_V)
        if cache is not None:
            k, v = cache.updated(k, v)
        # [q_seq head d_head] · [k_seq head d_head] -> [head q_seq k_seq]
        scores = jnp.einsum("qhd,khd->hqk", q, k) * weights.scale
        scores = tap(Kind.ATTN_SCORES, jnp.where(mask, scores, -jnp.inf))
        pattern = tap(Kind.PATTERN, jax.nn.softmax(scores, axis=-1))
        # [head q_seq k_seq] · [k_seq head d_head] -> [q_seq head d_head]
        z = tap(Kind.Z, jnp.einsum("hqk,khd->qhd", pattern, v))
        if tap.uses(Kind.RESULT):  # [seq head d_model] is large, and only its sum is needed otherwise
            out = tap(Kind.RESULT, jnp.einsum("qhd,hdm->qhm", z, weights.W_O)).sum(axis=1)
        else:
            out = jnp.einsum("qhd,hdm->qm", z, weights.W_O)
        return out + weights.b_O

    def keys_and_values(
        self, x: Float[Array, "seq d_model"]
    ) -> tuple[Float[Array, "seq head d_head"], Float[Array, "seq head d_head"]]:
        """The same keys and values by themselves."""
        weights = widened(self)
        # [seq d_model] · [head d_model d_head] -> [seq head d_head]
        of = lambda W, b: jnp.einsum("sm,hmd->shd", x, W) + b
        return of(weights.W_K, weights.b_K), of(weights.W_V, weights.b_V)

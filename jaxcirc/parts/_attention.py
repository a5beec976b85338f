"""Attention: the one part of a block that moves anything between positions."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._indexing import take
from .._precision import wide, widened
from .._sites import Kind
from .._tap import bare_tap, Tap
from .._typing import Mask
from ._norm import Norm
from ._position import Angles, Rotary, rotate


class KVCache(NamedTuple):
    """Keys and values of a whole sequence, as the scores and the average read them, of which attention is run at some positions in a row,
    from `first` on; there its own take their place.
    """

    k: Float[Array, "k_seq kv_head d_head"]
    v: Float[Array, "k_seq kv_head d_head"]
    first: Int[Array, ""]

    def positions(self, count: int) -> Int[Array, " seq"]:
        """So many from the first on."""
        return self.first.astype(jnp.int32) + jnp.arange(count, dtype=jnp.int32)

    def updated(
        self, k: Float[Array, "seq kv_head d_head"], v: Float[Array, "seq kv_head d_head"]
    ) -> tuple[Array, Array]:
        put = lambda new, old: jax.lax.dynamic_update_slice_in_dim(old, new, self.first, axis=0)
        return put(k, self.k), put(v, self.v)


class Attention(eqx.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv 1706.03762, §3.2), in which query heads may share keys and values (Ainslie
    et al. 2023, arXiv 2305.13245): with `G = head / kv_head`, the heads `j G … j G + G - 1` read those of `j`.

    **Attributes:**

    - `scale`: multiplies the scores, one number a layer.
    - `q_norm`, `k_norm`: of queries and keys, before they are rotated.
    - `rotary`: rotates queries and keys by their positions, which count from the first of the sequence, padding too: only distances
      matter.
    - `cap`: scores are `cap tanh(score / cap)` (Gemma 2, arXiv 2408.00118, §2), before the mask.
    """

    W_Q: Float[Array, "head d_model d_head"]
    b_Q: Float[Array, "head d_head"]
    W_K: Float[Array, "kv_head d_model d_head"]
    b_K: Float[Array, "kv_head d_head"]
    W_V: Float[Array, "kv_head d_model d_head"]
    b_V: Float[Array, "kv_head d_head"]
    W_O: Float[Array, "head d_head d_model"]
    b_O: Float[Array, " d_model"]
    scale: Float[Array, ""]
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    rotary: Rotary | None = None
    cap: float | None = eqx.field(static=True, default=None)

    def __call__(
        self,
        x: Float[Array, "seq d_model"],
        mask: Mask,
        tap: Tap,
        *,
        only: Int[Array, " query"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Array, "query d_model"]:
        """What attention writes where a row of the mask is given for each of `x`; of these `only` at some. Where `x` is of some positions
        alone, with the keys and values of the others in a `cache`.
        """
        weights = widened(self)
        asking = x if only is None else take(x, only)
        # [seq d_model] · [head d_model d_head] -> [seq head d_head]
        q = tap(Kind.Q, jnp.einsum("sm,hmd->shd", asking, weights.W_Q) + weights.b_Q)
        k = tap(Kind.K, jnp.einsum("sm,hmd->shd", x, weights.W_K) + weights.b_K)
        v = tap(Kind.V, jnp.einsum("sm,hmd->shd", x, weights.W_V) + weights.b_V)
        q = q if self.q_norm is None else self.q_norm(q, tap)
        k = k if self.k_norm is None else self.k_norm(k, tap)
        if self.rotary is not None:
            angles = self.rotary.angles(len(x) if cache is None else cache.positions(len(x)))
            k = rotate(k, angles)
            q = rotate(q, angles if only is None else Angles(*(take(x, only) for x in angles)))
        q = tap(Kind.ROT_Q, q) if self.places_queries else q
        k = tap(Kind.ROT_K, k) if self.places_keys else k
        if cache is not None:
            k, v = cache.updated(k, v)
        scores = self.cap_scores(grouped_scores(q, k) * weights.scale)
        mask = mask if only is None else take(mask, only)
        scores = tap(Kind.ATTN_SCORES, jnp.where(mask, scores, -jnp.inf))
        pattern = tap(Kind.PATTERN, jax.nn.softmax(scores, axis=-1))
        z = tap(Kind.Z, grouped_average(pattern, v))
        if tap.uses(Kind.RESULT):  # [seq head d_model] is large, and only its sum is needed otherwise
            out = tap(Kind.RESULT, jnp.einsum("qhd,hdm->qhm", z, weights.W_O)).sum(axis=1)
        else:
            out = jnp.einsum("qhd,hdm->qm", z, weights.W_O)
        return out + weights.b_O

    @property
    def places_queries(self) -> bool:
        """Whether queries are normalised or rotated between their projection and the scores."""
        return self.q_norm is not None or self.rotary is not None

    @property
    def places_keys(self) -> bool:
        """Whether keys are."""
        return self.k_norm is not None or self.rotary is not None

    def cap_scores(self, scores: Float[Array, "..."]) -> Float[Array, "..."]:
        """The scores as the softmax reads them."""
        return scores if self.cap is None else self.cap * jnp.tanh(scores / self.cap)

    def keys_and_values(
        self, x: Float[Array, "seq d_model"]
    ) -> tuple[Float[Array, "seq kv_head d_head"], Float[Array, "seq kv_head d_head"]]:
        """The same keys and values by themselves, as a cache holds them."""
        # [seq d_model] · [kv_head d_model d_head] -> [seq kv_head d_head]
        of = lambda W, b: jnp.einsum("sm,hmd->shd", x, wide(W)) + wide(b)
        keys = of(self.W_K, self.b_K)
        keys = keys if self.k_norm is None else self.k_norm(keys, bare_tap(0))
        keys = keys if self.rotary is None else rotate(keys, self.rotary.angles(len(x)))
        return keys, of(self.W_V, self.b_V)


def grouped_scores(
    q: Float[Array, "q_seq head d_head"], k: Float[Array, "k_seq kv_head d_head"]
) -> Float[Array, "head q_seq k_seq"]:
    """Products of each head's queries with the keys that it reads."""
    grouped = q.reshape(q.shape[0], k.shape[1], -1, q.shape[2])
    # [q_seq kv_head group d_head] · [k_seq kv_head d_head] -> [kv_head group q_seq k_seq]
    return jnp.einsum("qjgd,kjd->jgqk", grouped, k).reshape(q.shape[1], q.shape[0], k.shape[0])


def grouped_average(
    pattern: Float[Array, "head q_seq k_seq"], v: Float[Array, "k_seq kv_head d_head"]
) -> Float[Array, "q_seq head d_head"]:
    """Each head's average of the values that it reads."""
    grouped = pattern.reshape(v.shape[1], -1, *pattern.shape[1:])
    # [kv_head group q_seq k_seq] · [k_seq kv_head d_head] -> [q_seq kv_head group d_head]
    return jnp.einsum("jgqk,kjd->qjgd", grouped, v).reshape(pattern.shape[1], -1, v.shape[2])

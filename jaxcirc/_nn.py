"""The parts of a transformer, for one sequence, with every activation tapped.

What differs between architectures is data: a norm with or without weights, the scale of the attention scores, the masks, the activation
function. So blocks of one model share one tree structure, and a function of a block compiles once for all layers. Each part widens its
weights where it reads them, so that of a model in half precision all activations are float32.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ._precision import wide, widened
from ._sites import Kind
from ._tap import bare_tap, Tap
from ._typing import Mask, Resid


def gelu_new(x: Array) -> Array:
    """GELU by its tanh approximation (Hendrycks and Gimpel 2016, arXiv 1606.08415), as in GPT-2."""
    return jax.nn.gelu(x, approximate=True)


def gelu(x: Array) -> Array:
    """GELU, exact, by the error function."""
    return jax.nn.gelu(x, approximate=False)


def relu(x: Array) -> Array:
    """The rectifier, with derivative 0 at 0."""
    return jax.nn.relu(x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"gelu_new": gelu_new, "gelu": gelu, "relu": relu}


class LayerNorm(eqx.Module):
    r"""`y = (x - mean x) / s * weight + bias` with `s = sqrt(var x + eps)`, over the last axis (Ba et al. 2016, arXiv 1607.06450).

    Without weights (`None`) it is TransformerLens' `LNPre`. Its scale `s` `[seq 1]` is a site, so that it can be frozen.
    """

    weight: Float[Array, " d_model"] | None
    bias: Float[Array, " d_model"] | None
    eps: float = eqx.field(static=True)
    sites: tuple[Kind, Kind] = eqx.field(static=True)  # of the scale and of the result

    def __call__(self, x: Resid, tap: Tap) -> Resid:
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        scale = tap(self.sites[0], jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + self.eps))
        y = centred / scale
        if self.weight is not None:
            y = y * wide(self.weight)
        if self.bias is not None:
            y = y + wide(self.bias)
        return tap(self.sites[1], y)


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
    ) -> Float[Array, "q_seq d_model"]:
        """What attention writes; at `queries`, with a row of the mask for each, if it is not wanted everywhere."""
        weights = widened(self)
        # [seq d_model] · [head d_model d_head] -> [seq head d_head]
        q = tap(Kind.Q, jnp.einsum("sm,hmd->shd", x if queries is None else queries, weights.W_Q) + weights.b_Q)
        k = tap(Kind.K, jnp.einsum("sm,hmd->shd", x, weights.W_K) + weights.b_K)
        v = tap(Kind.V, jnp.einsum("sm,hmd->shd", x, weights.W_V) + weights.b_V)
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


class MLP(eqx.Module):
    """`act(x W_in + b_in) W_out + b_out`."""

    W_in: Float[Array, "d_model d_mlp"]
    b_in: Float[Array, " d_mlp"]
    W_out: Float[Array, "d_mlp d_model"]
    b_out: Float[Array, " d_model"]
    act: Callable[[Array], Array] = eqx.field(static=True)

    def __call__(self, x: Resid, tap: Tap) -> Resid:
        weights = widened(self)
        pre = tap(Kind.MLP_PRE, x @ weights.W_in + weights.b_in)
        post = tap(Kind.MLP_POST, self.act(pre))
        return post @ weights.W_out + weights.b_out


class Block(eqx.Module):
    """A pre-norm block: attention reads the residual stream, then the MLP reads the sum, or both read the same if they are `parallel`.

    The two halves of a sequential block can be run apart, because the residual stream between them is a cut of the graph. `ln1` is
    `None` in a model without norms, `ln2` and `mlp` are `None` in one of attention only.
    """

    ln1: LayerNorm | None
    attn: Attention
    ln2: LayerNorm | None
    mlp: MLP | None
    parallel: bool = eqx.field(static=True, default=False)

    @property
    def has_middle(self) -> bool:
        """Whether the residual stream has a site between attention and an MLP that reads it."""
        return self.mlp is not None and not self.parallel

    @property
    def mlp_reads(self) -> Kind:
        """The residual stream that the MLP reads."""
        return Kind.RESID_MID if self.has_middle else Kind.RESID_PRE

    def __call__(self, resid: Resid, mask: Mask, tap: Tap) -> Resid:
        if self.has_middle:
            return self.feed(self.attend(resid, mask, tap), tap)
        if self.mlp is None:
            return tap(Kind.RESID_POST, self.attend(resid, mask, tap))
        resid = tap(Kind.RESID_PRE, resid)
        attn = self._attention(resid, mask, tap)
        return tap(Kind.RESID_POST, resid + attn + self._mlp(resid, tap))

    def at(self, position: Int[Array, ""], resid: Resid, mask: Mask) -> Float[Array, "1 d_model"]:
        """What leaves the block at one position, where nothing else is wanted: only keys and values are computed everywhere."""
        tap, here = bare_tap(0), resid[position][None]
        normalized = resid if self.ln1 is None else self.ln1(resid, tap)
        attn = self.attn(normalized, mask[position][None], tap, queries=normalized[position][None])
        if self.has_middle:
            return self.feed(here + attn, tap)
        return here + attn if self.mlp is None else here + attn + self._mlp(here, tap)

    def attend(self, resid: Resid, mask: Mask, tap: Tap) -> Resid:
        """From `resid_pre` to what enters `resid_mid` (`resid_post` in a model of attention only)."""
        resid = tap(Kind.RESID_PRE, resid)
        return resid + self._attention(resid, mask, tap)

    def feed(self, resid: Resid, tap: Tap) -> Resid:
        """From `resid_mid` to `resid_post`."""
        resid = tap(Kind.RESID_MID, resid)
        return tap(Kind.RESID_POST, resid + self._mlp(resid, tap))

    def _attention(self, resid: Resid, mask: Mask, tap: Tap) -> Resid:
        normalized = resid if self.ln1 is None else self.ln1(resid, tap)
        return tap(Kind.ATTN_OUT, self.attn(normalized, mask, tap))

    def _mlp(self, resid: Resid, tap: Tap) -> Resid:
        assert self.mlp is not None
        normalized = resid if self.ln2 is None else self.ln2(resid, tap)
        return tap(Kind.MLP_OUT, self.mlp(normalized, tap))

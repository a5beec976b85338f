"""Parts that no closed form knows, each written as its forward pass and nothing more, and models that have them.

A new kind of part is tested by adding a class and a line to `ODD`.
"""

import dataclasses
import functools as ft
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import jaxcirc as jc
from jaxcirc import Kind
from jaxcirc.parts import Attention, Block, LayerNorm, MLP

from .helpers import make_model


class RMSNorm(eqx.Module):
    """`x / sqrt(mean x² + eps) * weight`, with its scale as a site."""

    weight: jax.Array
    sites: tuple[Kind, Kind] = eqx.field(static=True)

    def __call__(self, x, tap):
        scale = tap(self.sites[0], jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6))
        return tap(self.sites[1], x / scale * self.weight)


class GatedMLP(eqx.Module):
    """`(act(x W_gate) * x W_in) W_out`, with an activation of its own."""

    W_gate: jax.Array
    W_in: jax.Array
    W_out: jax.Array

    def __call__(self, x, tap):
        pre = tap(Kind.MLP_PRE, x @ self.W_gate)
        post = tap(Kind.MLP_POST, jnp.arctan(pre) * pre * (x @ self.W_in))
        return post @ self.W_out


class MixingMLP(eqx.Module):
    """An MLP whose output at each position adds the mean of those before it."""

    mlp: MLP

    def __call__(self, x, tap):
        out = self.mlp(x, tap)
        return out + jnp.cumsum(out, axis=0) / jnp.arange(1.0, len(x) + 1, dtype=x.dtype)[:, None]


class DerivedMLP(MLP):
    """An MLP that squares what it would have written."""

    def __call__(self, x, tap):
        return super().__call__(x, tap) ** 2


class DerivedNorm(LayerNorm):
    """A layer norm that passes its result through a tangent."""

    def __call__(self, x, tap):
        return jnp.tanh(super().__call__(x, tap))


class NormBehind(eqx.Module):
    """A sublayer with an RMS norm behind it."""

    part: eqx.Module
    weight: jax.Array

    def __call__(self, x, *more):
        out = self.part(x, *more)
        return out / jnp.sqrt(jnp.mean(out**2, axis=-1, keepdims=True) + 1e-6) * self.weight

    def __getattr__(self, name):  # the weights of the part, which models are asked for
        return getattr(object.__getattribute__(self, "part"), name)


class CappedAttention(Attention):
    """Attention whose scores are capped by a tangent, after a scale that depends on the query."""

    def __call__(self, x, mask, tap, *, queries=None):
        at = lambda W, b, x: jnp.einsum("sm,hmd->shd", x, W) + b
        q = tap(Kind.Q, at(self.W_Q, self.b_Q, x if queries is None else queries))
        k, v = tap(Kind.K, at(self.W_K, self.b_K, x)), tap(Kind.V, at(self.W_V, self.b_V, x))
        scores = jnp.einsum("qhd,khd->hqk", q, k) / (1 + jnp.sum(q**2, axis=-1)).T[..., None]
        scores = tap(Kind.ATTN_SCORES, jnp.where(mask, 2 * jnp.tanh(scores / 2), -jnp.inf))
        pattern = tap(Kind.PATTERN, jax.nn.softmax(scores, axis=-1))
        z = tap(Kind.Z, jnp.einsum("hqk,khd->qhd", pattern, v))
        return jnp.einsum("qhd,hdm->qm", z, self.W_O) + self.b_O


class ScaledBlock(Block):
    """A block that scales what leaves it."""

    def __call__(self, resid, mask, tap):
        resid = tap(Kind.RESID_PRE, resid)
        mid = tap(Kind.RESID_MID, resid + tap(Kind.ATTN_OUT, self.attn(self.ln1(resid, tap), mask, tap)))
        out = tap(Kind.MLP_OUT, self.mlp(self.ln2(mid, tap), tap))
        return tap(Kind.RESID_POST, 0.7 * mid + out)


def softmax(x: jax.Array) -> jax.Array:
    """An activation that is not elementwise."""
    return jax.nn.softmax(x, axis=-1)


def _derived(part: eqx.Module, kind: type) -> eqx.Module:
    """The same fields as another class."""
    new = object.__new__(kind)
    for field in dataclasses.fields(part):
        object.__setattr__(new, field.name, getattr(part, field.name))
    return new


def _with(
    model: jc.Transformer, whole: type | None = None, **parts: Callable[[eqx.Module], eqx.Module]
) -> jc.Transformer:
    """Every block with some of its parts exchanged."""
    blocks = []
    for block in model.blocks:
        for name, make in parts.items():
            block = eqx.tree_at(lambda block, name=name: getattr(block, name), block, make(getattr(block, name)))
        blocks.append(_derived(block, whole) if whole else block)
    return eqx.tree_at(lambda model: model.blocks, model, tuple(blocks))


def _random(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / shape[0] ** 0.5)


_rms = lambda norm: RMSNorm(1 + _random(16), norm.sites)
_gated = lambda mlp: GatedMLP(_random(16, 20, seed=1), _random(16, 20, seed=2), _random(20, 16, seed=3))
_behind = lambda part: NormBehind(part, 1 + _random(16))

# Of each: how a model gets it, whether its MLP and its attention have closed forms or maps by autodiff of their own code.
ODD: dict[str, tuple[Callable[[jc.Transformer], jc.Transformer], bool, bool]] = {
    "gated MLP": (lambda model: _with(model, mlp=_gated), True, True),
    "RMS norm": (lambda model: _with(model, ln1=_rms, ln2=_rms), True, True),
    "RMS norm and gated MLP": (lambda model: _with(model, ln1=_rms, ln2=_rms, mlp=_gated), True, True),
    "norm behind the MLP": (lambda model: _with(model, mlp=_behind), True, True),
    "norm behind attention": (lambda model: _with(model, attn=_behind), True, False),
    "capped and scaled score": (
        lambda model: _with(model, attn=ft.partial(_derived, kind=CappedAttention)),
        True,
        False,
    ),
    "MLP that mixes positions": (lambda model: _with(model, mlp=MixingMLP), False, True),
    "class derived from MLP": (lambda model: _with(model, mlp=ft.partial(_derived, kind=DerivedMLP)), True, True),
    "class derived from LayerNorm": (
        lambda model: _with(model, ln1=ft.partial(_derived, kind=DerivedNorm)),
        True,
        True,
    ),
    "activation that is not elementwise": (
        lambda model: _with(model, mlp=lambda mlp: dataclasses.replace(mlp, act=softmax)),
        True,
        True,
    ),
    "class derived from Block": (
        lambda model: _with(model, whole=ScaledBlock),
        False,
        False,
    ),
}


@ft.cache
def odd_model(name: str, parallel: bool = False) -> jc.Transformer:
    """A small model with the odd part in every block."""
    return ODD[name][0](make_model(jax.random.key(5), parallel=parallel))

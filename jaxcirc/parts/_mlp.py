"""What works on each position by itself: MLPs, and their activation functions."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._dependence import is_elementwise
from .._precision import widened
from .._sites import Kind
from .._tap import Tap
from .._typing import Resid
from ._gate import gate_of


def gelu_new(x: Array) -> Array:
    """GELU by its tanh approximation (Hendrycks and Gimpel 2016, arXiv 1606.08415), as in GPT-2."""
    return jax.nn.gelu(x, approximate=True)


def gelu(x: Array) -> Array:
    """GELU, exact, by the error function."""
    return jax.nn.gelu(x, approximate=False)


def relu(x: Array) -> Array:
    """The rectifier, with derivative 0 at 0."""
    return jax.nn.relu(x)


def silu(x: Array) -> Array:
    """`x sigmoid(x)` (Elfwing et al. 2017, arXiv 1702.03118), also called swish."""
    return jax.nn.silu(x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"gelu_new": gelu_new, "gelu": gelu, "relu": relu, "silu": silu}


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
        if tap.uses(Kind.MLP_GATE) and is_elementwise(self.act):  # a division that only who holds it needs
            post = pre * tap(Kind.MLP_GATE, gate_of(self.act, pre)) + self.act(jnp.zeros_like(pre))
        else:
            post = self.act(pre)
        post = tap(Kind.MLP_POST, post)
        return post @ weights.W_out + weights.b_out


class GatedMLP(eqx.Module):
    """`(act(x W_gate + b_gate) * (x W_in + b_in)) W_out + b_out` (Shazeer 2020, arXiv 2002.05202)."""

    W_gate: Float[Array, "d_model d_mlp"]
    b_gate: Float[Array, " d_mlp"]
    W_in: Float[Array, "d_model d_mlp"]
    b_in: Float[Array, " d_mlp"]
    W_out: Float[Array, "d_mlp d_model"]
    b_out: Float[Array, " d_model"]
    act: Callable[[Array], Array] = eqx.field(static=True)

    def __call__(self, x: Resid, tap: Tap) -> Resid:
        weights = widened(self)
        pre = tap(Kind.MLP_PRE, x @ weights.W_gate + weights.b_gate)
        linear = tap(Kind.MLP_PRE_LINEAR, x @ weights.W_in + weights.b_in)
        post = tap(Kind.MLP_POST, tap(Kind.MLP_GATE, self.act(pre)) * linear)
        return post @ weights.W_out + weights.b_out

r"""What lies around one MLP, and the sum of its Jacobians over positions at the price of running it.

An MLP works on each position by itself, and the Jacobian of one position is a matrix between fixed matrices but for a few vectors. With
the norm before it, value $y$ `[d_model]` (before its weight $w$) and scale $\sigma$, and $R = W_{in}^T \mathrm{diag}(w)$,

$$J_s = W_{out}^T\,\mathrm{diag}(A_s)\,R\,P \;-\; W_{out}^T\,(A_s \odot R\,y_s)\,y_s^T / D, \qquad A_s = act'(\mathrm{pre}_s) / \sigma_s,$$

with $P$ the centring of a layer norm (the identity for an RMS norm), $D$ the width; with the scale held the second term is missing. So
the sum over positions needs of them $\sum_s A_s$ `[d_mlp]` and $\sum_s (A_s \odot R\,y_s)\,y_s^T$ `[d_mlp d_model]`, one matrix product,
and $R\,y_s$ is `pre` less a constant. A gated MLP has two such paths, with `act'(pre) linear` and `act(pre)` in place of `act'(pre)`, whose
second terms are added before the product. A norm behind the MLP, with value $y'_s$, scale $\sigma'_s$ and weight $w'$, divides $A_s$ by
$\sigma'_s$, and subtracts $w' y'_s\, r_s^T / D$ with $r_s = J_s^T\, y'_s$, which is one way back through the MLP.

Where a part has no closed form, its own code is differentiated, position by position.
"""

import functools as ft
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._edits import Detach
from .._precision import widened
from .._sites import Kind
from .._tap import EditEach, Tap
from ..linear._local import has_closed_form
from ..parts import gate_of, GatedMLP, LayerNorm
from ..parts._held_norm import centred, weighed


Rows = Float[Array, "n d_model"]
HELD = (Kind.LN1_SCALE, Kind.LN2_SCALE, Kind.LN2_POST_SCALE, Kind.MLP_GATE)  # what closed forms know how to hold


class Sublayer(eqx.Module):
    """A norm, an MLP and a norm behind it, any of which may be missing; `beside`: whether what enters is added to what comes out. `frozen`:
    the kinds of sites inside that are held.
    """

    before: Any
    mlp: Any
    behind: Any
    beside: bool = eqx.field(static=True, default=False)
    frozen: frozenset[Kind] = eqx.field(static=True, default=frozenset())

    def __call__(self, x: Rows) -> Rows:
        """Runs it by its parts' own code."""
        tap = Tap({}, EditEach(lambda site: Detach() if site.kind in self.frozen else None), frozenset(), layer=0)
        out = x if self.before is None else self.before(x, tap)
        if self.mlp is not None:
            out = self.mlp(tap(Kind.MLP_IN, out), tap)
        if self.behind is not None:
            out = self.behind(tap(Kind.NEURONS_OUT, out), tap)
        out = out if self.mlp is None else tap(Kind.MLP_OUT, out)
        return x + out if self.beside else out

    @property
    def parts(self) -> list[Any]:
        return [part for part in (self.before, self.mlp, self.behind) if part is not None]

    @property
    def is_closed(self) -> bool:
        """Whether all of it has a closed form, with what is held."""
        return all(map(has_closed_form, self.parts)) and self.frozen <= {*HELD}

    @property
    def paths(self) -> int:
        """How many products of matrices the MLP has side by side; without an MLP the norm is one."""
        return 2 if isinstance(self.mlp, GatedMLP) else 1

    def reading(self, hidden: Float[Array, "path n d_hidden"]) -> Rows:
        r"""Adds up $h R P$ over the paths: covectors of the neurons to covectors of what enters, as if the norm divided by 1."""
        if self.mlp is None:
            out = hidden[0]
        else:
            mlp = widened(self.mlp)
            weights = [mlp.W_gate, mlp.W_in] if self.paths == 2 else [mlp.W_in]
            # [n d_mlp] · [d_model d_mlp] -> [n d_model]
            out = jnp.sum(jnp.stack([h @ W.T for h, W in zip(hidden, weights, strict=True)]), axis=0)
            out = out if self.before is None else weighed(self.before, out)
        return out if self.before is None else centred(self.before, out)

    def pushed(self, vectors: Float[Array, "n d_model"]) -> Float[Array, "path n d_hidden"]:
        r"""Takes vectors of what enters through $R P$ of each path, as if the norm divided by 1."""
        if self.before is not None:
            vectors = centred(self.before, vectors)
        if self.mlp is None:
            return vectors[None]
        mlp, read = widened(self.mlp), vectors if self.before is None else weighed(self.before, vectors)
        weights = [mlp.W_gate, mlp.W_in] if self.paths == 2 else [mlp.W_in]
        return jnp.stack([read @ W for W in weights])

    def writing(self, covectors: Float[Array, "n d_out"]) -> tuple[Float[Array, "n d_hidden"], Float[Array, "n d_out"]]:
        """Pulls covectors of what comes out back to the neurons, and to what the norm behind them divides, as if that were by 1."""
        if self.behind is not None:
            weight = weighed(self.behind, covectors)
            at_norm, covectors = weight, centred(self.behind, weight)
        else:
            at_norm = covectors
        if self.mlp is not None:
            return covectors @ widened(self.mlp).W_out.T, at_norm
        return covectors if self.before is None else weighed(self.before, covectors), at_norm


class Factors(NamedTuple):
    """What tells the Jacobians of positions apart: `slopes`, $A$; `along`, $A \\odot R y$ added up, with the value `y` of the norm before;
    and of the norm behind its value and $r$. `None` for what is not there, or held.
    """

    slopes: Float[Array, "path n d_hidden"]
    along: tuple[Float[Array, "n d_hidden"], Rows] | None
    behind: tuple[Float[Array, "n d_out"], Rows] | None


def factors(sub: Sublayer, x: Rows, weights: Float[Array, " n"]) -> Factors:
    """The factors of each position's Jacobian times its weight; 0 where that is 0, whatever is there."""
    counts = weights[:, None] != 0
    x = jnp.where(counts, x, 1)
    scaled, y = weights[:, None], x
    if sub.before is not None:
        y, scale = _normalised(sub.before, x)
        scaled = scaled / scale
    if sub.mlp is None:
        slopes, readings, post = jnp.broadcast_to(scaled, x.shape)[None], y[None], y
    else:
        slopes, readings, post = _of_mlp(sub, y, scaled)
    value, again = None, None
    if sub.behind is not None:
        value, scale = _normalised(sub.behind, post)
        slopes = slopes / scale
        value = value if sub.behind.sites[0] not in sub.frozen else None
    live = sub.before is not None and sub.before.sites[0] not in sub.frozen
    along = jnp.sum(slopes * readings, axis=0) if live else None
    if value is not None:
        # Without its weight: that is part of the covectors which it meets. [n d_out] · [d_out d_mlp] -> [n d_mlp]
        assert sub.mlp is not None  # or there would be no norm behind it
        back = value @ widened(sub.mlp).W_out.T
        read = sub.reading(slopes * back)
        if along is not None:
            read = read - y * jnp.sum(along * back, axis=1, keepdims=True) / y.shape[1]
        again = jnp.where(counts, value, 0), jnp.where(counts, read, 0)
    of_rows = lambda array: jnp.where(counts, array, 0)
    return Factors(of_rows(slopes), None if along is None else (of_rows(along), of_rows(y)), again)


def _of_mlp(sub: Sublayer, y: Rows, scaled: Float[Array, "n 1"]) -> tuple[Array, Array, Array]:
    """The slopes of each path, times `scaled`, what its matrix reads of `y`, and what leaves the MLP."""
    mlp, read, bias = widened(sub.mlp), y, None
    if sub.before is not None:
        read = weighed(sub.before, y)
        bias = widened(sub.before).bias if isinstance(sub.before, LayerNorm) else None
    constant = lambda W, b: b if bias is None else b + bias @ W
    slope = lambda function, pre: jax.jvp(function, (pre,), (jnp.ones_like(pre),))
    held = Kind.MLP_GATE in sub.frozen
    if isinstance(sub.mlp, GatedMLP):
        by_gate, by_in = read @ mlp.W_gate, read @ mlp.W_in
        linear = by_in + constant(mlp.W_in, mlp.b_in)
        value, rises = slope(mlp.act, by_gate + constant(mlp.W_gate, mlp.b_gate))
        slopes = jnp.stack([jnp.zeros_like(value) if held else rises * linear, value])
        readings, post = jnp.stack([by_gate, by_in]), value * linear
    else:
        by_in = read @ mlp.W_in
        pre = by_in + constant(mlp.W_in, mlp.b_in)
        value, rises = slope(mlp.act, pre)
        slopes, readings, post = (gate_of(mlp.act, pre) if held else rises)[None], by_in[None], value
    out = post if sub.behind is None else post @ mlp.W_out + mlp.b_out
    return slopes * scaled, readings, out


def _normalised(norm: Any, x: Rows) -> tuple[Rows, Float[Array, "n 1"]]:
    """The value of a norm before weight and bias, and its scale."""
    middle = centred(norm, x)
    scale = jnp.sqrt(jnp.mean(middle**2, axis=-1, keepdims=True) + norm.eps)
    return middle / scale, scale


class Sums(NamedTuple):
    """The sums of factors over positions, `None` for what is not there: all that is needed of them for the sum of Jacobians."""

    slopes: Any  # [path d_hidden]
    along: Any  # [d_hidden d_model]
    behind: Any  # [d_out d_model]

    def plus(self, other: "Sums") -> "Sums":
        """Adds on the host, in float64."""
        add = lambda a, b: None if b is None else (0 if a is None else a) + np.asarray(b, np.float64)
        return Sums(*map(add, self, other))


@jax.jit
def sums(sub: Sublayer, x: Float[Array, "batch seq d_model"], weights: Float[Array, "batch seq"]) -> Sums:
    """The sums over a batch."""
    found = factors(sub, x.reshape(-1, x.shape[-1]), weights.reshape(-1))
    outer = lambda pair: None if pair is None else pair[0].T @ pair[1]
    return Sums(found.slopes.sum(1), outer(found.along), outer(found.behind))


def matrix_of_sums(sub: Sublayer, found: Sums) -> Float[np.ndarray, "d_out d_model"]:
    """The sum of Jacobians, without what is beside, from the sums of their factors: in float64, on the host."""
    own = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (sub.before, sub.mlp, sub.behind))
    before, mlp, behind = own
    if isinstance(sub.mlp, GatedMLP):
        inner = found.slopes[0][:, None] * mlp.W_gate.T + found.slopes[1][:, None] * mlp.W_in.T
    else:
        inner = found.slopes[0][:, None] * mlp.W_in.T
    inner = inner if before is None else _pushed(before, inner, weight=True)
    if found.along is not None:
        inner = inner - found.along / inner.shape[1]
    out = mlp.W_out.T @ inner
    if behind is None:
        return out
    out = out if found.behind is None else out - found.behind / out.shape[0]
    return _pushed(behind, out.T, weight=False).T * _weight(behind)[:, None]


def _weight(norm: Any) -> np.ndarray:
    if norm.weight is None:
        return np.ones(1)
    return np.asarray(norm.weight) + (0 if isinstance(norm, LayerNorm) else norm.offset)


def _pushed(norm: Any, rows: np.ndarray, *, weight: bool) -> np.ndarray:
    """Centres rows as the norm does, by its weight if so asked; in NumPy."""
    rows = rows * _weight(norm) if weight else rows
    return rows - rows.mean(axis=-1, keepdims=True) if isinstance(norm, LayerNorm) else rows


@ft.partial(jax.jit, static_argnames="together")
def sum_by_autodiff(sub: Sublayer, x: Rows, weights: Float[Array, " n"], *, together: int) -> Float[Array, "d_out d"]:
    """The sum of Jacobians, with what is beside, by forward mode of the parts' own code at one position after another, `together` of them
    at a time.
    """
    one = lambda x: sub(x[None])[0]

    def add(total, some):
        rows, weights = some
        jacobians = jax.vmap(jax.jacfwd(one))(rows)
        return total + jnp.einsum("n,noi->oi", weights, jacobians), None

    groups = x.reshape(-1, together, x.shape[-1]), weights.reshape(-1, together)
    out = jax.eval_shape(one, x[0])
    return jax.lax.scan(add, jnp.zeros((out.size, x.shape[-1]), out.dtype), groups)[0]

"""Gradients of the metric at the nodes: at the clean point, or averaged on the way to the corrupt one."""

import abc
import functools as ft
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._edits import Add
from .._run import run, site_shapes
from .._sites import Kind, layer_of, Site
from .._tap import Tap
from .._typing import Logits
from ..models import Transformer
from ._states import States
from ._wiring import entry, written


Metric = Callable[[Logits], Float[Array, ""]]


class AbstractMethod(eqx.Module):
    """How node effects are estimated: by a gradient of the metric at each site, times the difference there."""

    @abc.abstractmethod
    def gradients(
        self, model: Transformer, tokens: Int[Array, "batch seq"], metric: Metric, at: States, nodes: Sequence[Site]
    ) -> dict[Site, Float[Array, "batch seq width"]]:
        """**Returns:** for each of `nodes` the gradient of the metric with respect to the whole value there."""


class Gradient(AbstractMethod):
    """The gradient at the clean point: attribution patching (Nanda 2023; Syed et al. 2023, arXiv 2310.10348). One backward pass."""

    def gradients(
        self, model: Transformer, tokens: Int[Array, "batch seq"], metric: Metric, at: States, nodes: Sequence[Site]
    ) -> dict[Site, Float[Array, "batch seq width"]]:
        return _gradients(model, tokens, metric, at.mask, tuple(nodes))


class IntegratedGradients(AbstractMethod):
    r"""The mean gradient on the straight line between clean and corrupt, for each site apart (Sundararajan et al. 2017, arXiv
    1703.01365, eq. 1; Marks et al. 2024, arXiv 2403.19647, eq. 4):

    $$\bar G = \sum_k w_k \nabla m(x_{clean} + \alpha_k (x_{corrupt} - x_{clean})).$$

    Everything else is as the model computes it from there. At a residual site effects then sum to the change of the metric, up to the
    rule's error.

    **Arguments:**

    - `steps`: how many gradients.
    - `rule`: where they are taken, `"midpoint"` (error of order `steps^-2`), `"left"` or `"right"` (order `steps^-1`) or
      `"gauss-legendre"`.
    - `start`: the end at which `alpha` is 0, `"clean"` or `"corrupt"`; it matters for `"left"` and `"right"` only.

    The reference implementation uses the left rule from the clean side, `IntegratedGradients(10, "left")`.
    """

    steps: int = eqx.field(static=True, default=10)
    rule: str = eqx.field(static=True, default="midpoint")
    start: str = eqx.field(static=True, default="clean")

    def __check_init__(self):
        if self.steps < 1:
            raise ValueError(f"IntegratedGradients: steps must be at least 1, got {self.steps}.")
        if self.rule not in _RULES:
            raise ValueError(
                f"IntegratedGradients: rule must be one of {', '.join(map(repr, _RULES))}, got {self.rule!r}."
            )
        if self.start not in ("clean", "corrupt"):
            raise ValueError(f"IntegratedGradients: start must be 'clean' or 'corrupt', got {self.start!r}.")

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """Fractions of the way from clean to corrupt, and their weights, which sum to 1."""
        fractions, weights = _RULES[self.rule](self.steps)
        return (fractions if self.start == "clean" else 1 - fractions), weights

    def gradients(
        self, model: Transformer, tokens: Int[Array, "batch seq"], metric: Metric, at: States, nodes: Sequence[Site]
    ) -> dict[Site, Float[Array, "batch seq width"]]:
        fractions, weights = (jnp.asarray(x, model.dtype) for x in self.points())
        out = {}
        for site in nodes:
            change, back = _through_write(model, site, at.differences[site])
            out[site] = back(_mean_gradient(model, metric, at, entry(model, site), change, (fractions, weights)))
        return out


_RULES: dict[str, Callable[[int], tuple[np.ndarray, np.ndarray]]] = {
    "midpoint": lambda steps: ((np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps)),
    "left": lambda steps: (np.arange(steps) / steps, np.full(steps, 1 / steps)),
    "right": lambda steps: ((np.arange(steps) + 1) / steps, np.full(steps, 1 / steps)),
    "gauss-legendre": lambda steps: tuple(
        x / 2 for x in (np.polynomial.legendre.leggauss(steps) + np.array([[1.0], [0.0]]))
    ),
}


def _through_write(model: Transformer, site: Site, difference: Array) -> tuple[Array, Callable[[Array], Array]]:
    """What a difference at `site` adds to the residual stream, and the way back for its gradient. The map is linear."""
    write = jax.vmap(ft.partial(written, model, site))
    change, back = jax.vjp(write, difference)
    return change, lambda gradient: back(gradient)[0]


@ft.partial(jax.jit, static_argnames="nodes")
def _gradients(model, tokens, metric, mask, nodes: tuple[Site, ...]):
    shapes = site_shapes(model, tokens.shape[1])

    def one(tokens, keys, metric):
        def value(additions):
            return metric(run(model, tokens, edits={s: Add(x) for s, x in additions.items()}, mask=keys)[0])

        gradients = jax.grad(value)({site: jnp.zeros(shapes[site].shape, shapes[site].dtype) for site in nodes})
        return {site: gradient.reshape(gradient.shape[0], -1) for site, gradient in gradients.items()}

    return jax.vmap(one)(tokens, mask, metric)


def _mean_gradient(
    model: Transformer, metric: Metric, at: States, start: Site, change: Array, points: tuple[Array, Array]
) -> Array:
    """Mean over the path of the gradient at the residual cut `start`; only what lies after the cut is run."""
    layers = np.arange(model.n_layers)
    feeds = layers >= layer_of(start)
    attends = feeds if start.kind == Kind.RESID_PRE else layers > layer_of(start)
    return _from_cut(model, metric, at.resid[start], change, at.mask, *points, attends, feeds)


@jax.jit
def _from_cut(model, metric, resid, change, mask, fractions, weights, attends, feeds):
    """Which halves of which blocks run is data, and one block is compiled for all of them."""
    blocks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *model.blocks)

    def half(resid, what):
        block, mask, attend, feed = what
        tap = Tap({}, {}, frozenset(), layer=0)
        if block.mlp is None or block.parallel:  # nothing begins in its middle
            return jax.lax.cond(attend, lambda x: block(x, mask, tap), lambda x: x, resid), None
        resid = jax.lax.cond(attend, lambda x: block.attend(x, mask, tap), lambda x: x, resid)
        return jax.lax.cond(feed, lambda x: block.feed(x, tap), lambda x: x, resid), None

    def one(example):
        resid, change, keys, metric = example
        masks = jnp.stack(model.masks(resid.shape[0], keys))

        def value(resid):
            last, _ = jax.lax.scan(half, resid, (blocks, masks, attends, feeds))
            return metric(model.unembed(last, Tap({}, {}, frozenset())))

        # [world seq d_model], one world a step
        gradients = jax.vmap(jax.grad(value))(resid + fractions[:, None, None] * change)
        return jnp.einsum("w,wsm->sm", weights, gradients)

    seq = resid.shape[1]
    return jax.lax.map(one, (resid, change, mask, metric), batch_size=_batch_size(resid.shape[0], len(fractions) * seq))


def _batch_size(batch: int, tokens_each: int, budget: int = 8192) -> int:
    """The largest divisor of `batch` for which no more than `budget` tokens are in flight."""
    return max(
        size for size in range(1, batch + 1) if batch % size == 0 and (size == 1 or size * tokens_each <= budget)
    )

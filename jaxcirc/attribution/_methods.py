"""Gradients of the metric at the nodes: at the clean point, or averaged on the way to the corrupt one."""

import abc
import functools as ft
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._edits import Add
from .._metrics import KL, LogitDiff, LogProb
from .._nn import Block
from .._run import run, site_shapes
from .._sites import Kind, layer_of, Site
from .._tap import Tap
from .._typing import Keys, Resid
from ..models import Transformer
from ..saes import AbstractDictionary
from ._effects import effects_of, Metric, NodeEffects
from ._states import States
from ._wiring import entry, written


class AbstractMethod(eqx.Module):
    """How node effects are found."""

    @abc.abstractmethod
    def effects(
        self,
        model: Transformer,
        saes: Mapping[Site, AbstractDictionary],
        tokens: Int[Array, "batch seq"],
        metric: Metric,
        at: States,
    ) -> NodeEffects:
        """**Returns:** the effects of all nodes, and the gradients that edges use."""


class AbstractGradientMethod(AbstractMethod):
    """By a gradient of the metric at each site, times the difference there."""

    def effects(
        self,
        model: Transformer,
        saes: Mapping[Site, AbstractDictionary],
        tokens: Int[Array, "batch seq"],
        metric: Metric,
        at: States,
    ) -> NodeEffects:
        return effects_of(saes, metric, at, self.gradients(model, tokens, metric, at, tuple(saes)))

    @abc.abstractmethod
    def gradients(
        self, model: Transformer, tokens: Int[Array, "batch seq"], metric: Metric, at: States, nodes: Sequence[Site]
    ) -> dict[Site, Float[Array, "batch seq width"]]:
        """**Returns:** for each of `nodes` the gradient of the metric with respect to the whole value there."""


class Gradient(AbstractGradientMethod):
    """The gradient at the clean point: attribution patching (Nanda 2023; Syed et al. 2023, arXiv 2310.10348). One backward pass."""

    def gradients(
        self, model: Transformer, tokens: Int[Array, "batch seq"], metric: Metric, at: States, nodes: Sequence[Site]
    ) -> dict[Site, Float[Array, "batch seq width"]]:
        return _gradients(model, tokens, metric, at.mask, tuple(nodes))


class IntegratedGradients(AbstractGradientMethod):
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
            change, back = through_write(model, site, at.differences[site])
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


def through_write(model: Transformer, site: Site, difference: Array) -> tuple[Array, Callable[[Array], Array]]:
    """What a difference at `site` adds to the residual stream, and the way back for its gradient. The map is linear."""
    if site.kind not in (Kind.Z, Kind.MLP_POST):  # what writes as it is needs no tracing
        return difference, lambda gradient: gradient
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
) -> Float[Array, "batch seq d_model"]:
    """Mean over the path of the gradient at the residual cut `start`; only what lies after the cut is run."""
    (batch, seq), (fractions, weights) = at.mask.shape, points
    size = largest_batch(batch, len(fractions) * seq)
    out = []
    for first in range(0, batch, size):
        some = slice(first, first + size)
        resid, change_here, keys, mine = jax.tree.map(
            lambda x, some=some: x[some], (at.resid[start], change, at.mask, metric)
        )
        out.append(_gradient_at_cut(model, mine, start, resid, change_here, keys, fractions, weights))
    return out[0] if len(out) == 1 else jnp.concatenate(out)


def _gradient_at_cut(model: Transformer, metric: Metric, start: Site, resid, change, keys, fractions, weights) -> Array:
    # Block by block, and not in one program, so that blocks share one, and a block's weights are nowhere copied.
    masks = _masks(model, keys)
    worlds = resid[:, None] + fractions[:, None, None] * change[:, None]  # [batch world seq d_model]
    attends, feeds = halves_after(model, start)
    backs = []
    for block, mask, *halves in zip(model.blocks, masks, attends, feeds, strict=True):
        if any(halves):
            worlds, back = _from_cut(block, mask, worlds, whole=bool(halves[0]))
            backs.append((block, back))
    gradient = _end_gradient(eqx.tree_at(lambda model: model.blocks, model, ()), metric, worlds)
    while backs:
        gradient = _backward(*backs.pop(), gradient)
    return jnp.einsum("w,bwsm->bsm", weights, gradient)


class _Back(eqx.Module):
    """The way back through a block: what it holds, but for the block's own arrays, of which it has the numbers in `own`."""

    held: list[Array]
    own: tuple[int | None, ...] = eqx.field(static=True)
    tree: Any = eqx.field(static=True)


@ft.partial(jax.jit, static_argnames="whole")
def _from_cut(block: Block, mask: Array, resid: Array, *, whole: bool) -> tuple[Array, _Back]:
    """A block, or its second half, from the cut where it begins, and the way back."""
    half = lambda x, mask: block(x, mask, _bare(0)) if whole else block.feed(x, _bare(0))
    out, back = jax.vjp(lambda x: jax.vmap(jax.vmap(half, (0, None)))(x, mask), resid)
    numbers = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves(block))}
    leaves, tree = jax.tree.flatten(back)
    own = tuple(numbers.get(id(leaf)) for leaf in leaves)
    return out, _Back([leaf for leaf, i in zip(leaves, own, strict=True) if i is None], own, tree)


@jax.jit
def _backward(block: Block, back: _Back, gradient: Array) -> Array:
    arrays, held = jax.tree.leaves(block), iter(back.held)
    leaves = [next(held) if i is None else arrays[i] for i in back.own]
    return jax.tree.unflatten(back.tree, leaves)(gradient)[0]


@jax.jit
def _end_gradient(model: Transformer, metric: Metric, resid: Array) -> Array:
    each = jax.vmap(lambda metric, x: jax.grad(_at_end(model, metric))(x), (None, 0))
    return jax.vmap(each)(metric, resid)


@jax.jit
def _masks(model: Transformer, keys: Array) -> tuple[Array, ...]:
    return jax.vmap(lambda keys: model.masks(keys.shape[0], keys))(keys)


def _at_end(model: Transformer, metric: Metric) -> Callable[[Resid], Float[Array, ""]]:
    """The metric as a function of the last residual stream, of which only what is read is unembedded."""
    if isinstance(metric, KL | LogitDiff | LogProb):
        first = eqx.tree_at(lambda metric: metric.position, metric, jnp.zeros_like(metric.position))
        return lambda resid: first(model.unembed(resid[metric.position][None], _bare()))
    return lambda resid: metric(model.unembed(resid, _bare()))


def _bare(layer: int | None = None) -> Tap:
    return Tap({}, {}, frozenset(), layer=layer)


Halves = tuple[Bool[Array | np.ndarray, " layer"], Bool[Array | np.ndarray, " layer"]]


def halves_after(model: Transformer, start: Site) -> Halves:
    """Which blocks attend and which feed forward after a residual cut. It is data: one program serves all cuts."""
    layers = np.arange(model.n_layers)
    feeds = layers >= layer_of(start)
    return (feeds if start.kind == Kind.RESID_PRE else layers > layer_of(start)), feeds


def metric_after(model: Transformer, halves: Halves, keys: Keys, metric: Metric) -> Callable[[Resid], Float[Array, ""]]:
    """The metric as a function of the residual stream at a cut; the blocks are one program, compiled once."""
    blocks, masks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *model.blocks), model.masks(keys.shape[0], keys)

    def half(resid, what):
        block, mask, attend, feed = what
        tap = _bare(0)
        if block.mlp is None or block.parallel:  # nothing begins in its middle
            return jax.lax.cond(attend, lambda x: block(x, mask, tap), lambda x: x, resid), None
        resid = jax.lax.cond(attend, lambda x: block.attend(x, mask, tap), lambda x: x, resid)
        return jax.lax.cond(feed, lambda x: block.feed(x, tap), lambda x: x, resid), None

    def value(resid):
        last, _ = jax.lax.scan(half, resid, (blocks, jnp.stack(masks), *halves))
        return _at_end(model, metric)(last)

    return value


def largest_batch(batch: int, tokens_each: int, budget: int = 8192) -> int:
    """The largest divisor of `batch` for which no more than `budget` tokens are in flight."""
    return max(
        size for size in range(1, batch + 1) if batch % size == 0 and (size == 1 or size * tokens_each <= budget)
    )

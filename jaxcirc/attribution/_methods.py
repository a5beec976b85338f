"""Gradients of the metric at the nodes: at the clean point, or averaged on the way to the corrupt one."""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_count
from .._metrics import Metric
from .._sites import Site
from ..graph import back_to_site, enters, Entry, entry
from ..models import Transformer
from ..runs import Problem
from ._atp_star import AtPStar
from ._effects import effects_of, NodeEffects
from ._heads import AbstractHeadMethod, HeadEffects
from ._mean_gradient import mean_gradients
from ._states import States
from ._vanishing import check_gradient


class AbstractMethod(eqx.Module):
    """How node effects are found."""

    @abc.abstractmethod
    def effects(self, model: Transformer, problem: Problem, at: States) -> NodeEffects:
        """**Returns:** the effects of all nodes, and the gradients that edges use."""


def check_method(method: object) -> None:
    """TypeError unless it is a method of node effects."""
    if not isinstance(method, AbstractMethod):
        raise TypeError(
            "method: expected one such as jc.IntegratedGradients(10), jc.Gradient() or jc.ExactPatching(), got a "
            f"{type(method).__name__}."
        )


class AbstractGradientMethod(AbstractMethod):
    """By a gradient of the metric at each site, times the difference there."""

    def effects(self, model: Transformer, problem: Problem, at: States) -> NodeEffects:
        gradients = self.gradients(model, problem, at)
        check_gradients(model, problem, at, gradients)
        return effects_of(problem.saes, at, gradients)

    @abc.abstractmethod
    def gradients(
        self, model: Transformer, problem: Problem, at: States
    ) -> dict[Site, Float[Array, "batch seq width"]]:
        """**Returns:** for each node's site the gradient of the metric with respect to the whole value there."""


def check_gradients(
    model: Transformer, problem: Problem, at: States, gradients: Mapping[Site, Float[Array, "batch seq width"]]
) -> None:
    """ValueError if the gradients are next to nothing because the metric has none at the clean prompts."""
    size = lambda x: np.sqrt(np.square(np.asarray(x, np.float64)).sum((1, 2)))
    found = np.max([size(at.differences[site]) * size(gradient) for site, gradient in gradients.items()], axis=0)
    check_gradient(model, problem, found=found, total=at.total)


class Gradient(AbstractGradientMethod, AbstractHeadMethod):
    """The gradient at the clean point: attribution patching (Nanda 2023; Syed et al. 2023, arXiv 2310.10348). One backward pass."""

    def gradients(
        self, model: Transformer, problem: Problem, at: States
    ) -> dict[Site, Float[Array, "batch seq width"]]:
        return clean_gradients(model, problem.metric, at, problem.saes)

    @property
    def words(self) -> str:
        return "the gradient"

    def heads(self, model: Transformer, problem: Problem) -> HeadEffects:
        return dataclasses.replace(AtPStar(qk_fix=False, grad_drop=False).heads(model, problem), method=self)


class IntegratedGradients(AbstractGradientMethod):
    r"""The mean gradient on the straight line between clean and corrupt, for each site apart (Sundararajan et al. 2017, arXiv
    1703.01365, eq. 1; Marks et al. 2024, arXiv 2403.19647, eq. 4):

    $$\bar G = \sum_k w_k \nabla m(x_{clean} + \alpha_k (x_{corrupt} - x_{clean})).$$

    Everything else is as the model computes it from there. At a residual site effects then sum to the change of the metric, up to the
    rule's error.

    **Arguments:**

    - `steps`: how many gradients.
    - `rule`: where they are taken, `"midpoint"` (error of order `steps^-2`), `"left"` or `"right"` (order `steps^-1`),
      `"gauss-legendre"`, or `"trapezoid"`, at both ends too (order `steps^-2`; two steps are the mean of clean and corrupt).
    - `start`: the end at which `alpha` is 0, `"clean"` or `"corrupt"`; it matters for `"left"` and `"right"` only.

    The reference implementation uses the left rule from the clean side, `IntegratedGradients(10, "left")`.
    """

    steps: int = eqx.field(static=True, default=10)
    rule: str = eqx.field(static=True, default="midpoint")
    start: str = eqx.field(static=True, default="clean")

    def __check_init__(self):
        check_count("IntegratedGradients: steps", "gradients are integrated", self.steps)
        if self.rule not in _RULES:
            raise ValueError(
                f"IntegratedGradients: rule must be one of {', '.join(map(repr, _RULES))}, got {self.rule!r}."
            )
        if self.rule == "trapezoid" and self.steps < 2:
            raise ValueError("IntegratedGradients: the trapezoid rule takes both ends, so at least 2 steps; got 1.")
        if self.start not in ("clean", "corrupt"):
            raise ValueError(f"IntegratedGradients: start must be 'clean' or 'corrupt', got {self.start!r}.")

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """Fractions of the way from clean to corrupt, and their weights, which sum to 1."""
        fractions, weights = _RULES[self.rule](self.steps)
        return (fractions if self.start == "clean" else 1 - fractions), weights

    def gradients(
        self, model: Transformer, problem: Problem, at: States
    ) -> dict[Site, Float[Array, "batch seq width"]]:
        fractions, weights = self.points()
        moved = fractions != 0
        out: dict[Site, Array] = {}
        if not moved.all():  # the clean point is the same for all sites
            most = len(at.mask) * int(moved.sum())
            out = clean_gradients(model, problem.metric, at, problem.saes, most=most)
            out = {site: float(weights[~moved].sum()) * gradient for site, gradient in out.items()}
        on_path = lambda each: each[moved].astype(model.activation_dtype)
        points = on_path(fractions), on_path(weights)
        for site in problem.saes if moved.any() else ():
            cut, change = entry(model, site), enters(model, site, at.values[site], at.differences[site])
            found = mean_gradients(model, problem.metric, at, cut, change, points, frozenset({cut}))
            gradient = back_to_site(model, site, found[cut])
            out[site] = out[site] + gradient if site in out else gradient
        return out


def _trapezoid(steps: int) -> tuple[np.ndarray, np.ndarray]:
    weights = np.ones(steps)
    weights[[0, -1]] /= 2
    return np.linspace(0, 1, steps), weights / weights.sum()


_RULES: dict[str, Callable[[int], tuple[np.ndarray, np.ndarray]]] = {
    "midpoint": lambda steps: ((np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps)),
    "left": lambda steps: (np.arange(steps) / steps, np.full(steps, 1 / steps)),
    "right": lambda steps: ((np.arange(steps) + 1) / steps, np.full(steps, 1 / steps)),
    "trapezoid": _trapezoid,
    "gauss-legendre": lambda steps: tuple(
        x / 2 for x in (np.polynomial.legendre.leggauss(steps) + np.array([[1.0], [0.0]]))
    ),
}


def clean_gradients(
    model: Transformer, metric: Metric, at: States, nodes: Iterable[Site], *, most: int = 0
) -> dict[Site, Float[Array, "batch seq width"]]:
    """Computes the gradient of the metric at each node's site in the run `at`, by one way back; `most` is as for `mean_gradients`."""
    entries = {site: entry(model, site) for site in nodes}
    first = min(entries.values())
    points = np.zeros(1, at.resid[first].dtype), np.ones(1, at.resid[first].dtype)
    nowhere = Entry(jnp.zeros_like(at.resid[first]), None, None)
    found = mean_gradients(model, metric, at, first, nowhere, points, frozenset(entries.values()), most=most)
    return {site: back_to_site(model, site, found[cut], at.values[site]) for site, cut in entries.items()}

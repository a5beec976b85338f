"""Activation patching: the problem in numpy, and our side of it."""

import functools as ft
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxcirc as jc

from ._circuits import make_model, middle_out
from ._ours_repair import model_of
from ._problems import Blocks


class Patching(NamedTuple):
    """What both sides are given: a model whose final norm has no weights, prompts `[batch seq]` that are run, others that values are from,
    and the two tokens whose logits the metric compares at the last position.
    """

    blocks: Blocks
    base: np.ndarray
    other: np.ndarray
    answer: int
    foil: int

    @property
    def layers(self) -> int:
        return len(self.blocks.weights)

    def cells(self) -> np.ndarray:
        """All cells `[cell 3]`, as layer, whether a head's, and position or head; layer by layer from the middle outwards, so that the
        first few are as deep as all on average.
        """
        own = [(0, at) for at in range(self.base.shape[1])] + [(1, head) for head in range(self.blocks.heads)]
        return np.array([(layer, *each) for layer in middle_out(self.layers) for each in own])


def make_patching(*, layers: int, d_model: int, heads: int, batch: int, seq: int, vocabulary: int) -> Patching:
    """Prompts differ in three tokens, as those on indirect objects do: two in the first third, one behind the middle."""
    blocks = make_model(layers=layers, d_model=d_model, heads=heads, seq=seq, vocabulary=vocabulary)
    base = np.random.default_rng(6).integers(0, vocabulary, (batch, seq)).astype(np.int32)
    other = base.copy()
    for at in (seq // 6, seq // 3, 2 * seq // 3):
        other[:, at] = (base[:, at] + 1) % vocabulary
    return Patching(blocks, base, other, 1, 2)


def run(problem: Patching):
    """A run of both sweeps: the residual stream by layer and position, and heads' outputs by head."""
    model, metric = model_of(problem.blocks), jc.LogitDiff(problem.answer, problem.foil)
    given = model, jnp.asarray(problem.base), jnp.asarray(problem.other), metric
    patch = ft.partial(jc.activation_patch, *given, direction="noise", normalise="difference")
    return lambda: (patch(sites="resid_pre", by="layer_position").values, patch(sites="z", by="head").values)


def numbers(problem: Patching, found) -> np.ndarray:
    """`[cell batch]`, in the problem's order."""
    of_kind = [np.asarray(each[name]) for each, name in zip(found, ("resid_pre", "z"), strict=True)]
    return np.stack([of_kind[kind][:, layer, at] for layer, kind, at in problem.cells()])


def check(problem: Patching, found: np.ndarray, *, most: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """A few cells on the first prompt, and the same from runs of the whole model with the cell replaced."""
    model, cells = model_of(problem.blocks), problem.cells()
    rows = np.unique(np.linspace(0, len(cells) - 1, most).astype(int))
    kinds = (jc.Kind.RESID_PRE, jc.Kind.Z)
    sites = tuple(jc.Site(layer, kind) for layer in range(problem.layers) for kind in kinds)
    metric = jc.LogitDiff(problem.answer, problem.foil)
    base, other = (jnp.asarray(x[0]) for x in (problem.base, problem.other))
    _, values = _run(model, metric, other, {}, sites=sites)
    before, _ = _run(model, metric, base, {}, sites=sites)
    want = []
    for layer, kind, at in cells[rows]:
        member = np.arange(model.n_heads)[:, None] == at if kind else np.arange(len(base))[:, None] == at
        site = jc.Site(int(layer), kinds[kind])
        after, _ = _run(model, metric, base, {site: jc.Blend(member, values[site])}, sites=sites)
        want.append(float(after - before))
    return found[rows, 0], np.array(want)


@ft.partial(jax.jit, static_argnames="sites")
def _run(model, metric, tokens, edits, *, sites):
    logits, cache = jc.run(model, tokens, edits=edits, record=sites)
    return metric(logits), cache

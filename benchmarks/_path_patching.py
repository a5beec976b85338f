"""Path patching of every sender to the queries of a few heads: the problem in numpy, and our side of it."""

import functools as ft
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxcirc as jc
from jaxcirc._tap import bare_tap

from ._ours_repair import model_of
from ._patching import make_patching, Patching


class Paths(NamedTuple):
    """What both sides are given: the problem of activation patching, and the heads `(layer, head)` whose queries are the receivers, of two
    layers.
    """

    patching: Patching
    receivers: tuple[tuple[int, int], ...]

    @property
    def senders(self) -> list[str]:
        """All senders that the last of the receivers reads, by name."""
        layers, heads = max(layer for layer, _ in self.receivers), self.patching.blocks.heads
        names = [[*(f"a{layer}.h{head}" for head in range(heads)), f"m{layer}"] for layer in range(layers)]
        return ["embed", *(name for layer in names for name in layer)]


def make_paths(*, layers: int, heads: int, **sizes: int) -> Paths:
    """Receivers are three heads, two in the last layer but one, which reads from all but the last two, and one in the layer before."""
    last = max(layers - 2, 1)
    of_layers = ((max(last - 1, 0), heads // 2), (last, 0), (last, heads - 1))
    return Paths(make_patching(layers=layers, heads=heads, **sizes), of_layers)


def run(problem: Paths):
    """A sweep over all senders."""
    given = problem.patching
    model, metric = model_of(given.blocks), jc.LogitDiff(given.answer, given.foil)
    pairs = model, jnp.asarray(given.base), jnp.asarray(given.other), metric
    receivers = [f"a{layer}.h{head}.q" for layer, head in problem.receivers]
    return lambda: jc.path_patch(*pairs, receivers=receivers)


def numbers(problem: Paths, found) -> np.ndarray:
    """`[sender batch]`, of the senders that the receivers read; to the others nothing happens."""
    return np.asarray(found)[: len(problem.senders)]


def check(problem: Paths, found: np.ndarray, *, most: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """The metric with what a few senders write on the first prompt, and the same from whole runs with the receivers' queries replaced."""
    given = problem.patching
    model, metric = model_of(given.blocks), jc.LogitDiff(given.answer, given.foil)
    base, other = (jnp.asarray(x[0]) for x in (given.base, given.other))
    kinds = (jc.Kind.RESID_PRE, jc.Kind.RESULT, jc.Kind.MLP_OUT, jc.Kind.Q)
    sites = (jc.Site(None, jc.Kind.EMBED), *(jc.Site(layer, kind) for layer in range(given.layers) for kind in kinds))
    (_, own), (_, theirs) = (_run(model, metric, tokens, {}, sites=sites) for tokens in (base, other))
    rows = np.unique(np.linspace(0, len(problem.senders) - 1, most).astype(int))
    want = []
    for name in (problem.senders[row] for row in rows):
        edits = {}
        for layer, head in problem.receivers:
            site = jc.Site(layer, jc.Kind.Q)
            moved = _written(name, theirs) - _written(name, own) if _before(name, layer) else 0.0
            block = model.blocks[layer]
            assert block.ln1 is not None
            read = block.ln1(own[jc.Site(layer, jc.Kind.RESID_PRE)] + moved, bare_tap(0))
            query = read @ block.attn.W_Q[head] + block.attn.b_Q[head]
            mask, value = (
                (edits[site].mask, edits[site].value) if site in edits else (jnp.zeros_like(own[site], bool), own[site])
            )
            edits[site] = jc.Blend(mask.at[:, head].set(True), value.at[:, head].set(query))
        want.append(float(_run(model, metric, base, edits, sites=sites)[0]))
    return found[rows, 0], np.array(want)


def _before(name: str, layer: int) -> bool:
    return name == "embed" or int(name[1:].split(".")[0]) < layer


def _written(name: str, cache):
    if name == "embed":
        return cache[jc.Site(None, jc.Kind.EMBED)]
    layer, _, head = name[1:].partition(".h")
    at = lambda kind: cache[jc.Site(int(layer), kind)]
    return at(jc.Kind.RESULT)[:, int(head)] if head else at(jc.Kind.MLP_OUT)


@ft.partial(jax.jit, static_argnames="sites")
def _run(model, metric, tokens, edits, *, sites):
    logits, cache = jc.run(model, tokens, edits=edits, record=sites)
    return metric(logits), cache

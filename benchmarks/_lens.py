"""The Jacobian lens of one prompt: the problem in numpy, and our side of it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxcirc as jc

from ._circuits import make_model as make_blocks
from ._ours import make_model
from ._problems import Blocks


class LensProblem(NamedTuple):
    """A model, a prompt, and how many of its first positions are left out."""

    blocks: Blocks
    tokens: np.ndarray
    skip_first: int

    @property
    def valid(self) -> slice:
        return slice(self.skip_first, len(self.tokens) - 1)


def make_lens(*, layers: int, d_model: int, heads: int, seq: int, vocabulary: int, skip_first: int) -> LensProblem:
    blocks = make_blocks(layers=layers, d_model=d_model, heads=heads, seq=seq, vocabulary=vocabulary)
    tokens = np.random.default_rng(4).integers(0, vocabulary, seq).astype(np.int32)
    return LensProblem(blocks, tokens, skip_first)


def run(problem: LensProblem):
    model = make_model(problem.blocks)
    return lambda: jc.fit_lens(model, [problem.tokens], skip_first=problem.skip_first).J


def numbers(found: dict[int, jax.Array]) -> np.ndarray:
    """`[layer out in]`."""
    return np.stack([np.asarray(found[layer]) for layer in sorted(found)])


def check(problem: LensProblem, lens: np.ndarray, *, most: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """What the maps make of a few random vectors, and the same by pushing each at all valid positions at once."""
    model, (layers, d_model, _) = make_model(problem.blocks), lens.shape
    rng, got, want = np.random.default_rng(5), [], []
    target = jc.Site(layers, jc.Kind.RESID_POST)
    for number in range(most):
        site, vector = jc.Site(number % layers, jc.Kind.RESID_POST), rng.standard_normal(d_model).astype(np.float32)
        value = lambda step, site=site: jc.run(
            model, jnp.asarray(problem.tokens), edits={site: jc.Add(step)}, record=[target]
        )[1][target]
        step = np.zeros((len(problem.tokens), d_model), np.float32)
        step[problem.valid] = vector
        _, pushed = jax.jvp(value, (jnp.zeros_like(step),), (jnp.asarray(step),))
        here = np.asarray(pushed)[problem.valid]
        want.append(here.sum(0) / len(here))
        got.append(lens[number % layers] @ vector)
    return np.stack(got), np.stack(want)

"""Latents by latents at the same position: the problem, our side, and its check."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

import jaxcirc as jc

from . import _ours
from ._problems import Blocks, Dictionary, hidden, make_blocks, make_dictionary


ENDS = ("blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post")
MARGIN = 0.02


class Features(NamedTuple):
    """Two blocks with a dictionary each on the hidden activations of their MLPs, and the pairs that are compared.

    `targets` and `sources`: the numbers, among the dictionaries' latents that are on, of those that are on beyond any rounding. Of target
    `n` the pairs are those from `begin[n]` to `begin[n + 1]` of `source`, numbers among `sources` again.
    """

    blocks: Blocks
    into: Dictionary
    out: Dictionary
    targets: np.ndarray
    sources: np.ndarray
    begin: np.ndarray
    source: np.ndarray


def make_features(
    *, d_model: int, heads: int, seq: int, d_sae: int, source_active: int, target_active: int
) -> Features:
    blocks = make_blocks(d_model=d_model, heads=heads, seq=seq, layers=2)
    first, second = hidden(blocks)
    into = make_dictionary(first, d_sae=d_sae, active=source_active, seed=3)
    out = make_dictionary(second, d_sae=d_sae, active=target_active, seed=4)
    targets, sources = _clearly_on(out, second), _clearly_on(into, first)
    there = [np.flatnonzero(into.positions[sources] == position) for position in range(seq)]
    source = [there[position] for position in out.positions[targets]]
    begin = np.cumsum([0, *map(len, source)])
    return Features(blocks, into, out, targets, sources, begin, np.concatenate(source))


def _clearly_on(dictionary: Dictionary, x: np.ndarray) -> np.ndarray:
    """The latents that every precision finds on: a few in a hundred are so near their threshold that rounding decides."""
    columns = np.ascontiguousarray(dictionary.W_enc.T)[dictionary.latents]
    acts = np.einsum("nd,nd->n", columns, x[dictionary.positions]) + dictionary.b_enc[dictionary.latents]
    return np.flatnonzero(acts > MARGIN * x.std())


def run(problem: Features):
    """Our side: everything, from the tokens on."""
    model, tokens = _ours.make_model(problem.blocks), jnp.asarray(problem.blocks.tokens)
    saes = _ours.make_saes(problem.into, problem.out, ENDS)
    return lambda: jc.feature_jacobian(model, saes, tokens, *ENDS, minimum=0.0, substitute=("target",))


def gradients(problem: Features, J: jc.FeatureJacobian) -> np.ndarray:
    """Those of the pairs that are compared, target by target."""
    d_sae = len(problem.out.b_enc)
    key = lambda position, target, source: (position.astype(np.int64) * d_sae + target) * d_sae + source
    target = problem.targets[np.repeat(np.arange(len(problem.targets)), np.diff(problem.begin))]
    wanted = key(
        problem.out.positions[target],
        problem.out.latents[target],
        problem.into.latents[problem.sources[problem.source]],
    )
    return J.gradient[np.searchsorted(key(J.position, J.target, J.source), wanted)]


def check(problem: Features, found: np.ndarray, *, most: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of a few sources, and the same numbers by `jax.jvp` of a run of the model."""
    got, want = [], []
    model, tokens = _ours.make_model(problem.blocks), jnp.asarray(problem.blocks.tokens)
    target = np.repeat(problem.targets, np.diff(problem.begin))
    for number in np.linspace(0, len(problem.sources) - 1, most).astype(int):
        pairs, source = np.flatnonzero(problem.source == number), problem.sources[number]
        tangent = np.zeros((len(tokens), problem.into.W_dec.shape[1]), np.float32)
        tangent[problem.into.positions[source]] = problem.into.W_dec[problem.into.latents[source]]
        image = np.asarray(_ours.push(model, tokens, jnp.asarray(tangent), ends=ENDS, frozen=()))
        there = image[problem.out.positions[target[pairs]]]
        got.append(found[pairs])
        want.append((problem.out.W_enc[:, problem.out.latents[target[pairs]]].T * there).sum(-1))
    return np.concatenate(got), np.concatenate(want)

"""What target latents read of the source's site, summed over positions, where few are on at each: on a CPU, over those alone.

The same sums as in `_mean_sums`, whose products of matrices run over all latents at all positions: what an accelerator does best, and what
takes a CPU hundreds of times as long as sums over those that are on.
"""

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from .._precision import wide
from ..jacobian._sublayer import Factors, factors
from ._mean_path import Path


FEW, AT_ONCE = 1 / 16, 4096


def few_are_on(path: Path, targets: Array, grouped: tuple[tuple[Array, ...], Array]) -> bool:
    """Whether this is a CPU, and of the first positions less than one latent in sixteen is on."""
    if jax.default_backend() != "cpu":
        return False
    (_, read, _), weights = jax.tree.map(lambda x: x[0], grouped)
    counts = np.asarray(weights) != 0
    share = np.count_nonzero(np.asarray(_gates(path, targets, read))[counts]) / max(1, counts.sum() * len(targets))
    return bool(share < FEW)


def readings_of_few(
    path: Path, targets: Array, values: tuple[Array, ...], weights: Array
) -> tuple[Float[Array, "k d_model"], Bool[np.ndarray, "group together"]]:
    """`_mean_sums._readings`, by lists of the latents that are on."""
    import scipy.sparse  # a third of a second, which `import jaxcirc` need not take

    hidden, at_norm = map(np.asarray, _writing(path, targets))
    slopes = np.zeros((path.sub.paths, *hidden.shape), hidden.dtype)
    minus, beside = np.zeros((len(targets), values[0].shape[-1])), np.zeros(len(targets))
    is_on = np.zeros(np.shape(weights), bool)
    for i in range(len(weights)):
        x, read, encoded = (value[i] for value in values)
        gates = np.where(np.asarray(weights[i])[:, None] != 0, np.asarray(_gates(path, targets, read)), 0)
        found, weight = jax.device_get(_factors(path, x, encoded, weights[i]))
        is_on[i] = gates.any(1)
        on = scipy.sparse.csr_array(gates.T)  # [k n]
        for own, of_path in zip(slopes, found.slopes, strict=True):
            own += on @ of_path
        entries = on.tocoo()
        for pair, reads in ((found.along, hidden), (found.behind, at_norm)):
            if pair is not None:
                met = _met(reads, pair[0], entries.row, entries.col) * entries.data
                minus += scipy.sparse.csr_array((met, on.indices, on.indptr), on.shape) @ pair[1] / pair[1].shape[1]
        beside += on @ weight
    out = _closed(path, targets, jax.device_put(slopes), jax.device_put(beside.astype(hidden.dtype)))
    return out - jax.device_put(minus.astype(hidden.dtype)), is_on


def _met(reads: np.ndarray, made: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """The products of rows of one with rows of the other, `reads[row] · made[column]`."""
    parts = [slice(first, first + AT_ONCE) for first in range(0, len(row), AT_ONCE)]
    found = [np.einsum("ef,ef->e", reads[row[part]], made[column[part]]) for part in parts]
    return np.concatenate([np.zeros(0, reads.dtype), *found])


@jax.jit
def _gates(path: Path, targets: Array, read: Array) -> Array:
    return path.target.slopes(read)[:, targets]


@jax.jit
def _factors(path: Path, x: Array, encoded: Array, weights: Array) -> tuple[Factors, Array]:
    weights = weights * path.source.decoder_scale(encoded)
    return factors(path.sub, x, weights), weights


@jax.jit
def _writing(path: Path, targets: Array) -> tuple[Array, Array]:
    return path.sub.writing(wide(path.target.W_enc)[:, targets].T)


@jax.jit
def _closed(path: Path, targets: Array, slopes: Array, beside: Array) -> Array:
    encoder = wide(path.target.W_enc)[:, targets].T
    out = path.sub.reading(path.sub.writing(encoder)[0] * slopes)
    return out + beside[:, None] * encoder if path.sub.beside else out

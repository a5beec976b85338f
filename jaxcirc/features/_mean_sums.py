r"""Edges between all latents of two dictionaries, summed over positions.

At a position the derivative of the target's latent $k$ by the source's latent $j$ is $g_{sk}\, u_k^T J_s d_j$, with $g$ the slope of the
encoder, $u_k$ its direction and $d_j$ the decoder's. With $J_s$ in the factors of `jaxcirc/jacobian/_sublayer.py` and
$U = W_{enc}^T W_{out}^T$ `[d_sae d_mlp]`, the sum over positions is a covector of the source's site for each target latent,

$$r_k = \sum_s g_{sk}\, J_s^T u_k = \Big[\big(U \odot G^T A\big) R P - (G \odot Q)^T Y / D\Big]_k, \qquad Q = (A \odot Y R^T)\, U^T,$$

`[d_sae d_model]` in all, and the edges into $k$ from all sources are $r_k W_{dec}^T$: the matrix of latents by latents is a product of two
thin ones, of which as many rows are made as are asked for.

Times the source's activation $x_{sj}$ it is no such product. Then the pairs that are on together are summed, position by position:
$g_{sk} x_{sj} \big[ \sum_f U_{kf} A_{sf} V_{fj} - Q_{sk}\, y_s^T d_j / D \big]$ with $V = R P W_{dec}^T$.
"""

import functools as ft
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._precision import wide
from ..jacobian._sublayer import Factors, factors
from ..runs import allowance, rounded_up
from ._mean_few import few_are_on, readings_of_few
from ._mean_path import Path


if TYPE_CHECKING:
    pass

Values = tuple[Float[Array, "n d_model"], Float[Array, "n d_read"], Float[Array, "n d_source"]]


def in_groups_of(values: Values, weights: Float[np.ndarray, " n"], each: int) -> tuple[tuple[Array, ...], Array]:
    """Values and weights in groups `[group together …]`, as many positions together as the budget allows where one takes `each` numbers;
    filled up with positions that count for nothing.
    """
    count, dtype = len(weights), values[0].dtype
    together = min(rounded_up(count), max(8, _power_below(allowance() // (4 * each * dtype.itemsize))))
    groups = rounded_up(-(-count // together))
    more = groups * together - count
    fill = lambda x: jnp.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1)).reshape(groups, together, *x.shape[1:])
    return jax.tree.map(fill, values), fill(jnp.asarray(weights, dtype))


def _power_below(n: int) -> int:
    return 1 << max(n, 1).bit_length() - 1


def readings(
    path: Path, targets: Int[np.ndarray, " k"], values: Values, weights: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "k d_model"], Bool[np.ndarray, " n"]]:
    """What the target latents read of the source's site, summed over positions, in float64, on the host; and at which one of them is on."""
    sub, width = path.sub, path.target.d_sae
    hidden = values[0].shape[1] if sub.mlp is None else sub.mlp.W_out.shape[0]
    grouped = in_groups_of(values, weights, width + sub.paths * hidden)
    most = max(1, allowance() // (2 * sub.paths * hidden * values[0].dtype.itemsize))
    size = min(len(targets), most)
    found, on = np.zeros((len(targets), path.source.d_out)), np.zeros(len(weights), bool)
    for first in range(0, len(targets), size):
        first = min(first, len(targets) - size)  # blocks of one size: what two of them make is the same
        chosen = jnp.asarray(targets[first : first + size], jnp.int32)
        make = readings_of_few if few_are_on(path, chosen, grouped) else _readings
        sums, on_here = make(path, chosen, *grouped)
        found[first : first + size] = np.asarray(sums, np.float64)
        on |= np.asarray(on_here).reshape(-1)[: len(on)]
    return found, on


@jax.jit
def _readings(
    path: Path, targets: Int[Array, " k"], values, weights
) -> tuple[Float[Array, "k d_model"], Bool[Array, "group together"]]:
    sub, encoder = path.sub, wide(path.target.W_enc)[:, targets].T
    hidden, at_norm = sub.writing(encoder)

    def add(sums, some):
        (x, read, encoded), weight = some
        gates = path.target.slopes(read)[:, targets]
        gates = jnp.where(weight[:, None] != 0, gates, 0)
        weight = weight * path.source.decoder_scale(encoded)
        found = factors(sub, x, weight)
        slopes, minus, beside = sums
        slopes = slopes + jnp.einsum("nk,pnf->pkf", gates, found.slopes)
        for pair, reads in ((found.along, hidden), (found.behind, at_norm)):
            if pair is not None:
                minus = minus + (gates * (pair[0] @ reads.T)).T @ pair[1] / pair[1].shape[1]
        return (slopes, minus, beside + weight @ gates), (gates != 0).any(1)

    zero = lambda *shape: jnp.zeros(shape, encoder.dtype)
    start = zero(sub.paths, *hidden.shape), zero(len(targets), values[0].shape[-1]), zero(len(targets))
    (slopes, minus, beside), on = jax.lax.scan(add, start, (values, weights))
    out = sub.reading(hidden * slopes) - minus
    return (out + beside[:, None] * encoder if sub.beside else out), on


class Pairs:
    """The sum over positions of derivatives times the source's activation, of latents that are on together; and what it needs of the
    weights: `U` `[k d_mlp]` and `V` `[path d_sae d_mlp]`.
    """

    def __init__(self, path: Path, targets: Int[np.ndarray, " k"]):
        import scipy.sparse  # a third of a second, which `import jaxcirc` need not take

        self.path, self.targets = path, targets
        self.sum = scipy.sparse.csr_array((len(targets), path.source.d_sae))
        self.weights = _of_weights(path, jnp.asarray(targets, jnp.int32))

    def add(self, values: Values, weights: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Adds positions. **Returns:** at which a latent of the target is on, and one of the source."""
        path, on = self.path, []
        grouped, weight = in_groups_of(values, weights, path.target.d_sae + path.source.d_sae)
        for i in range(len(weight)):
            some, w = jax.tree.map(lambda x, i=i: x[i], grouped), weight[i]
            gates, acts = _on(path, jnp.asarray(self.targets, jnp.int32), some, w)
            gates, acts = np.asarray(gates), np.asarray(acts)
            on.append(gates.any(1) & acts.any(1))
            self._add_group(some, w, gates, acts)
        return np.concatenate(on)[: len(weights)]

    def _add_group(self, values: Values, weights: Array, gates: np.ndarray, acts: np.ndarray) -> None:
        import scipy.sparse

        (rows, k, gate), (columns, j, act) = _listed(gates), _listed(acts)
        if not rows.any() or not columns.any():
            return
        found = _pairs(self.path, self.weights, values, weights, k, gate, j, act)
        met = rows[:, :, None] & columns[:, None, :]
        at = np.broadcast_to(k[:, :, None], met.shape)[met], np.broadcast_to(j[:, None, :], met.shape)[met]
        data = np.asarray(found, np.float64)[met]
        self.sum = self.sum + scipy.sparse.coo_array((data, at), shape=self.sum.shape).tocsr()


def _listed(dense: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which latents are on at each position, in lists of one length: which entries are real, the latents' numbers, their values."""
    row, number = np.nonzero(dense)
    counts = np.bincount(row, minlength=len(dense))
    size = min(rounded_up(int(counts.max(initial=1)), steps=4), dense.shape[1])
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    real, numbers = np.arange(size) < counts[:, None], np.zeros((len(dense), size), np.int32)
    numbers[row, place] = number
    return real, numbers, np.take_along_axis(dense, numbers, 1)


@jax.jit
def _on(path: Path, targets, values, weights) -> tuple[Array, Array]:
    """The slopes of the targets' latents, and the activations of the sources', 0 where nothing counts."""
    _, read, encoded = values
    counts = weights[:, None] != 0
    return (
        jnp.where(counts, path.target.slopes(read)[:, targets], 0),
        jnp.where(counts, path.source.encode(encoded), 0),
    )


@jax.jit
def _of_weights(path: Path, targets) -> tuple[Array, ...]:
    encoder, decoder = wide(path.target.W_enc)[:, targets].T, wide(path.source.W_dec)
    return encoder, *path.sub.writing(encoder), decoder, path.sub.pushed(decoder)


@jax.jit
def _pairs(path: Path, of_weights, values, weights, k, gate, j, act) -> Float[Array, "n m l"]:
    encoder, hidden, at_norm, decoder, V = of_weights
    x, _, encoded = values
    weights = weights * path.source.decoder_scale(encoded)
    found = factors(path.sub, x, weights)
    each = (k.shape[1] + 2 * len(V) * j.shape[1]) * hidden.shape[1]
    one = ft.partial(_pairs_at, path, encoder, hidden, at_norm, decoder, V)
    together = max(1, min(len(k), allowance() // (4 * each * x.dtype.itemsize)))
    own = found._replace(slopes=jnp.moveaxis(found.slopes, 1, 0))  # with the axis of positions first, as all else
    return jax.lax.map(lambda args: one(*args), (own, weights, k, gate, j, act), batch_size=together)


def _pairs_at(path: Path, encoder, hidden, at_norm, decoder, V, found: Factors, weight, k, gate, j, act):
    """The pairs of one position."""
    directions = decoder[j]
    out = jnp.einsum("mf,pf,plf->ml", hidden[k], found.slopes, V[:, j])
    for pair, reads in ((found.along, hidden), (found.behind, at_norm)):
        if pair is not None:
            out = out - jnp.outer(reads[k] @ pair[0], directions @ pair[1]) / pair[1].shape[0]
    out = out + weight * encoder[k] @ directions.T if path.sub.beside else out
    return gate[:, None] * out * act

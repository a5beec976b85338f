r"""The rows of an attribution graph: how much of each target's pre-activation every node contributes.

With $g$ the gradient of the target's pre-activation with respect to what is added to the residual stream at a place (`_linear.py`), a node
that writes the vector $w$ there contributes $\langle g, w \rangle$: `A[target, source]`. Errors, biases, the rows of the embeddings and
what latents write sum to all that is written, so a row sums to the pre-activation, with what the target has of its own.

Targets go through the model's layers backwards together, as many as the budget grants; each joins where it reads. They are sorted by
position and layer, so that few positions behind the one that a target reads, and few layers behind it, are gone through in vain. For one
target of `P` positions about `8 P max(d_model, n_heads d_head)` numbers are held on the device, and its row of float32 on the host.
"""

import functools as ft
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._indexing import take
from .._sites import Kind, Site
from ..runs import BUDGET, of_size, rounded_up, TOKENS_AT_ONCE
from ._linear import FINAL, Linearised
from ._replacement import Encoder, Features, Replaced
from ._table import Columns, Outputs
from ._tiles import writings_of


EMBED = Site(None, Kind.EMBED)
Report = Callable[[int], None]


class Rows:
    """Computes rows, of one prompt; what they share is made once."""

    def __init__(self, linear: Linearised, replaced: Replaced, outputs: Outputs, columns: Columns):
        self.linear, self.columns = linear, columns
        d_model = linear.model.d_model
        ends = Encoder(outputs.directions.T, outputs.constants)
        n = len(outputs.tokens)
        last = Features(
            FINAL, FINAL, ends, np.full(n, linear.seq - 1), np.arange(n), outputs.values, outputs.values, ()
        )
        self.readers = [*replaced.features, last]
        self.begins = np.array([*columns.features, columns.outputs])
        self.constants = {each.read: linear.constant(each.read) for each in self.readers}
        self.writings = writings_of(replaced, columns)
        self.everywhere: dict[Site, tuple[list[int], Float[Array, "kind seq d_model"]]] = {}
        for site in sorted({*replaced.errors, *replaced.biases}):
            found = [
                (where[site], of[site])
                for where, of in ((columns.errors, replaced.errors), (columns.biases, replaced.biases))
                if site in of
            ]
            self.everywhere[site] = [first for first, _ in found], jnp.stack([vectors for _, vectors in found])
        firsts = [columns.tokens, *([] if columns.positions is None else [columns.positions])]
        self.everywhere[EMBED] = firsts, jnp.stack(linear.embeddings())
        widest = max(d_model, linear.model.n_heads * linear.model.d_head)
        self.each = 8 * widest * linear.resid[linear.end].dtype.itemsize  # bytes a position of a target

    def of(self, targets: Int[np.ndarray, " target"], out: Float[np.ndarray, "target node"], report: Report) -> None:
        """Computes the rows of nodes, latents or outputs, into `out`, which is zero. `report` is called with how many are done."""
        reader = np.searchsorted(self.begins, targets, side="right") - 1
        which = targets - self.begins[reader]
        for group, chunk, seq in self._chunks(reader, which):
            self._add(reader[group], which[group], chunk, seq, out, group)
            report(len(np.unique(group)))

    def _chunks(
        self, reader: Int[np.ndarray, " target"], which: Int[np.ndarray, " target"]
    ) -> Iterator[tuple[Int[np.ndarray, " chunk"], Int[np.ndarray, " chunk"], int]]:
        """Yields targets in groups, by number; which of them only fill it up; and how many positions they need."""
        pos = np.array([self.readers[r].pos[i] for r, i in zip(reader, which, strict=True)], int)
        sizes = self._sizes()
        size_of = np.searchsorted(sizes, pos + 1)
        for number, seq in enumerate(sizes):
            mine = np.flatnonzero(size_of == number)
            mine = mine[np.argsort(-reader[mine], kind="stable")]  # the last layers first
            most = max(1, min(TOKENS_AT_ONCE // seq, BUDGET // (seq * self.each)))
            for group in of_size(len(mine), min(most, rounded_up(len(mine), steps=2))):
                yield mine[group], np.diff(group, prepend=-1) == 0, seq

    def _sizes(self) -> Int[np.ndarray, " size"]:
        """The numbers of positions that rows are computed over: as a causal model's target depends on none behind its own."""
        seq = self.linear.seq
        count = max(1, min(4, seq // 16)) if self.linear.model.causal else 1
        return np.unique([-(-seq * (i + 1) // count) for i in range(count)])

    def _add(self, reader, which, filling, seq: int, out: Float[np.ndarray, "target node"], group) -> None:
        """Computes the rows of a chunk of targets over the first `seq` positions."""
        chunk = Covectors(self, reader, np.where(filling, -1, which), seq)
        real = ~filling
        self.along(chunk, out, group[real], real)
        out[group[real], self.columns.own] += chunk.own[real]

    def along(
        self,
        covectors: Mapping[Site, Float[Array, "n seq d_model"]],
        out: Float[np.ndarray, "target node"],
        into: Int[np.ndarray, " real"],
        real: Bool[np.ndarray, " n"],
    ) -> None:
        """Adds what every node writes along covectors at cuts, pulled back, to the rows `into` of `out`: of those that are `real`."""
        for site, gradient in self.linear.pull(covectors):
            if site in self.everywhere:
                firsts, vectors = self.everywhere[site]
                found = np.asarray(_along(gradient, vectors))[real]
                for i, first in enumerate(firsts):
                    out[into, first : first + gradient.shape[1]] += found[:, i]
            for columns, found in self.writings.contract(site, gradient):
                out[into, columns] += found[real]


class Covectors(Mapping[Site, Array]):
    """The covectors of a chunk of targets, at the cuts of what they read, made when they are asked for."""

    def __init__(self, rows: Rows, reader: Int[np.ndarray, " n"], which: Int[np.ndarray, " n"], seq: int):
        self.rows, self.reader, self.which, self.seq = rows, reader, which, seq
        self.own = np.zeros(len(which))
        self.cuts: dict[Site, list[int]] = {}
        for r in np.unique(reader):
            self.cuts.setdefault(rows.linear.cut_of(rows.readers[r].read), []).append(int(r))

    def __getitem__(self, cut: Site) -> Array:
        return sum(map(self._placed, self.cuts[cut][1:]), self._placed(self.cuts[cut][0]))

    def __iter__(self) -> Iterator[Site]:
        return iter(self.cuts)

    def __len__(self) -> int:
        return len(self.cuts)

    def _placed(self, r: int) -> Float[Array, "n seq d_model"]:
        features, linear = self.rows.readers[r], self.rows.linear
        here = (self.reader == r) & (self.which >= 0)
        i = np.where(here, self.which, 0)
        pos, unit = (np.where(here, x[i], 0).astype(np.int32) for x in (features.pos, features.unit))
        placed, own = _place(features.encoder, self.rows.constants[features.read], here, pos, unit, seq=self.seq)
        self.own += np.asarray(own)
        return linear.pull_read(features.read, placed)


@ft.partial(jax.jit, static_argnames="seq")
def _place(encoder: Encoder, constant, here, pos, unit, *, seq: int):
    """Puts covectors at their positions; and what each reads of the constant part there, with its bias."""
    rows = jnp.where(here[:, None], encoder.covectors(pos, unit), 0)
    # [n d_in] · [n d_in] -> [n]
    own = jnp.einsum("nd,nd->n", rows, take(constant, pos)) + jnp.where(here, encoder.constants(pos, unit), 0)
    return jnp.zeros((len(pos), seq, rows.shape[1]), rows.dtype).at[jnp.arange(len(pos)), pos].set(rows), own


@jax.jit
def _along(gradient: Float[Array, "n seq d_model"], vectors: Float[Array, "kind all_seq d_model"]):
    # [n seq d_model] · [kind seq d_model] -> [n kind seq]
    return jnp.einsum("nsd,ksd->nks", gradient, vectors[:, : gradient.shape[1]])

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
from ..runs import allowance, of_size, repeated, rounded_up, TOKENS_AT_ONCE
from ._encoder import Encoder
from ._linear import FINAL, Linearised
from ._replacement import Features, Replaced
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
        for group, real, seq in self._chunks(reader, which):
            self._add(reader[group], which[group], group, real, seq, out)
            report(int(real.sum()))

    def _chunks(
        self, reader: Int[np.ndarray, " target"], which: Int[np.ndarray, " target"]
    ) -> Iterator[tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"], int]]:
        """Yields targets in groups, by number; which of them do not only fill it up; and how many positions they need."""
        pos = np.zeros(len(reader), int)
        for r in np.unique(reader):
            pos[reader == r] = self.readers[r].pos[which[reader == r]]
        sizes = self._sizes()
        size_of = np.searchsorted(sizes, pos + 1)
        for number, seq in enumerate(sizes):
            mine = np.flatnonzero(size_of == number)
            mine = mine[np.argsort(-reader[mine], kind="stable")]  # the last layers first
            most = max(1, min(TOKENS_AT_ONCE // seq, allowance() // (seq * self.each)))
            for group in of_size(len(mine), min(most, rounded_up(len(mine), steps=2))):
                yield mine[group], ~repeated(group), seq

    def _sizes(self) -> list[int]:
        """The numbers of positions that rows are computed over: as a causal model's target depends on none behind its own."""
        seq = self.linear.seq
        count = max(1, min(4, seq // 16)) if self.linear.model.causal else 1
        return [-(-seq * (i + 1) // count) for i in range(count)]

    def _add(
        self,
        reader: Int[np.ndarray, " n"],
        which: Int[np.ndarray, " n"],
        into: Int[np.ndarray, " n"],
        real: Bool[np.ndarray, " n"],
        seq: int,
        out: Float[np.ndarray, "target node"],
    ) -> None:
        """Computes the rows of a chunk of targets, those that are `real`, over the first `seq` positions, and adds them to rows `into`."""
        chunk = Covectors(self, reader, np.where(real, which, -1), seq)
        into = into[real]
        self.along(chunk, out, into, real)
        out[into, self.columns.own] += chunk.own()[real]

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
        self.cuts: dict[Site, list[int]] = {}
        for r in np.unique(reader):
            self.cuts.setdefault(rows.linear.cut_of(rows.readers[r].read), []).append(int(r))

    def __getitem__(self, cut: Site) -> Float[Array, "n seq d_model"]:
        first, *others = self.cuts[cut]
        return sum(map(self._placed, others), self._placed(first))

    def __iter__(self) -> Iterator[Site]:
        return iter(self.cuts)

    def __len__(self) -> int:
        return len(self.cuts)

    def own(self) -> Float[np.ndarray, " n"]:
        """What each target has of its own: its bias, and what it reads of the constant part of its site."""
        each = [
            np.asarray(_own(self.rows.constants[self.rows.readers[r].read], *self._given(r)))
            for readers in self.cuts.values()
            for r in readers
        ]
        return sum(each[1:], each[0])

    def _placed(self, r: int) -> Float[Array, "n seq d_model"]:
        placed = _place(*self._given(r), seq=self.seq)
        return self.rows.linear.pull_read(self.rows.readers[r].read, placed)

    def _given(self, r: int) -> tuple[Encoder, np.ndarray, np.ndarray, np.ndarray]:
        """How the latents of a dictionary read, and which targets are of it, with their positions and units."""
        features, here = self.rows.readers[r], (self.reader == r) & (self.which >= 0)
        i = np.where(here, self.which, 0)
        pos, unit = (np.where(here, x[i], 0).astype(np.int32) for x in (features.pos, features.unit))
        return features.encoder, here, pos, unit


@jax.jit
def _own(constant, encoder: Encoder, here, pos, unit) -> Float[Array, " n"]:
    # [n d_in] · [n d_in] -> [n]
    read = jnp.einsum("nd,nd->n", encoder.covectors(pos, unit), take(constant, pos))
    return jnp.where(here, read + encoder.constants(pos, unit), 0)


@ft.partial(jax.jit, static_argnames="seq")
def _place(encoder: Encoder, here, pos, unit, *, seq: int) -> Float[Array, "n seq d_in"]:
    """Puts covectors at their positions."""
    rows = jnp.where(here[:, None], encoder.covectors(pos, unit), 0)
    return jnp.zeros((len(pos), seq, rows.shape[1]), rows.dtype).at[jnp.arange(len(pos)), pos].set(rows)


@jax.jit
def _along(gradient: Float[Array, "n seq d_model"], vectors: Float[Array, "kind all_seq d_model"]):
    # [n seq d_model] · [kind seq d_model] -> [n kind seq]
    return jnp.einsum("nsd,ksd->nks", gradient, vectors[:, : gradient.shape[1]])

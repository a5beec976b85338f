"""Mean edges in low precision, and in full precision those of which low precision cannot tell whether they are above the threshold.

How far off edges are is measured: between each two sites the edges into the targets with the strongest ones, where errors are largest too,
are computed both ways. What lies within twice the largest error of the threshold is computed again; so are more, if one of these was
further off. What is beyond that is on the same side of the threshold in full precision.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from .._sites import Site
from .._typing import Progress
from ..jacobian._recomputed import Recomputed
from ..models import Transformer
from ._batches import Batch, Source
from ._means import Averaging, mean_edges, NodeMeans
from ._node_list import NodeList


if TYPE_CHECKING:
    import scipy.sparse

STRONGEST = 2  # targets of each pair of sites on which errors are measured
MARGIN = 2.0  # times the largest error that was measured
Ends = tuple[Site, Site]


def sure_edges(
    model: Transformer,
    batches: Source[Batch],
    how: Averaging,
    nodes: NodeMeans,
    kept: dict[Site, NodeList],
    report: Progress,
    *,
    threshold: float,
    precision: str,
) -> "tuple[dict[tuple[Site, Site | None], scipy.sparse.csr_array], list[float], Recomputed]":
    """`mean_edges` in low `precision`, with those in full precision that could else be on the wrong side of the threshold; the relative
    errors of the latter, as they were compared with float64; and what low precision did.
    """
    given = model, batches, how, nodes, kept, report
    weights, _ = mean_edges(*given, precision=precision, certify=False)
    found = {
        (source, target): _Pair(matrix)
        for (source, target), matrix in weights.items()
        if target is not None and matrix.nnz
    }
    wanted = {ends: pair.strongest() for ends, pair in found.items()}
    errors: list[float] = []
    while any(len(rows) for rows, _ in wanted.values()):
        again = {"into": _nodes(kept, wanted, side=1), "out_of": _nodes(kept, wanted, side=0)}
        exact, measured = mean_edges(*given, **again, precision="float32", certify=not errors)
        errors += measured
        for (source, target), pair in found.items():
            pair.take(exact.get((source, target)), again["into"][target].numbers, again["out_of"][source].numbers)
        wanted = {ends: pair.uncertain(threshold) for ends, pair in found.items()}
    largest = max((abs(pair.weights()).max() for pair in found.values()), default=0.0) or 1.0
    return (
        weights | {ends: pair.weights() for ends, pair in found.items()},
        errors,
        Recomputed(
            precision,
            error=max((pair.error for pair in found.values()), default=0.0) / largest,
            bound=MARGIN * max((pair.error for pair in found.values()), default=0.0) / largest,
            edges=sum(int(pair.again.sum()) for pair in found.values()),
            of=sum(len(pair.low) for pair in found.values()),
        ),
    )


class _Pair:
    """The edges between two sites, in a list: `row`, `column`, `low`, which were computed `again`, and as what; and their largest error."""

    def __init__(self, matrix: "scipy.sparse.csr_array"):
        entries = matrix.tocoo()
        self.shape: tuple[int, int] = matrix.shape  # pyright: ignore[reportAttributeAccessIssue]  # scipy types it as any number of axes
        self.row, self.column = entries.coords
        self.low, self.exact = entries.data, entries.data.copy()
        self.again, self.error = np.zeros(len(self.low), bool), 0.0

    def strongest(self) -> tuple[np.ndarray, np.ndarray]:
        """The edges into the targets with the strongest ones: rows and columns."""
        order = np.argsort(-np.abs(self.low), kind="stable")
        _, first = np.unique(self.row[order], return_index=True)
        rows = self.row[order][np.sort(first)[:STRONGEST]]
        chosen = np.isin(self.row, rows)
        return self.row[chosen], self.column[chosen]

    def uncertain(self, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Those of which it is not known on which side of the threshold they are: rows and columns."""
        near = ~self.again & (np.abs(np.abs(self.low) - threshold) <= MARGIN * self.error)
        return self.row[near], self.column[near]

    def take(self, exact: "scipy.sparse.csr_array | None", rows: np.ndarray, columns: np.ndarray) -> None:
        """Takes in what all edges from `columns` to `rows` are in full precision; those that are not in `exact` are 0."""
        inside = np.isin(self.row, rows) & np.isin(self.column, columns) & ~self.again
        if not inside.any():
            return
        self.exact[inside] = 0.0 if exact is None else self._of(exact, inside)
        self.again |= inside
        self.error = float(np.maximum(self.error, np.abs(self.exact[inside] - self.low[inside]).max()))  # NaN stays

    def _of(self, matrix: "scipy.sparse.csr_array", inside: np.ndarray) -> np.ndarray:
        """The entries of a matrix at some of the edges, 0 where it has none."""
        entries, numbered = matrix.tocoo(), lambda row, column: row.astype(np.int64) * self.shape[1] + column
        there = numbered(*entries.coords)
        asked = numbered(self.row[inside], self.column[inside])
        if not len(there):
            return np.zeros(len(asked))
        order = np.argsort(there)
        place = order[np.searchsorted(there[order], asked).clip(max=len(there) - 1)]
        return np.where(there[place] == asked, entries.data[place], 0.0)

    def weights(self) -> "scipy.sparse.csr_array":
        import scipy.sparse  # a third of a second, which `import jaxcirc` need not take

        return scipy.sparse.coo_array((self.exact, (self.row, self.column)), shape=self.shape).tocsr()


def _nodes(
    kept: Mapping[Site, NodeList], wanted: Mapping[Ends, tuple[np.ndarray, np.ndarray]], *, side: int
) -> dict[Site, NodeList]:
    """Of the kept nodes the targets (`side` 1) or sources (0) of some edges."""
    out = {}
    for site, nodes in kept.items():
        numbers = [edges[1 - side] for ends, edges in wanted.items() if ends[side] == site]
        chosen = np.isin(nodes.numbers, np.concatenate([np.zeros(0, np.int64), *numbers]))
        out[site] = NodeList(nodes.numbers[chosen], nodes.effects[chosen], nodes.shape)
    return out

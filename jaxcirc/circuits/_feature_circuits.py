"""Circuits of the feature-circuits project: their tables, and what is to be known of them."""

from pathlib import Path
from typing import Any, TYPE_CHECKING

import numpy as np

from .._sites import Kind, Site
from ._circuit_file import as_numpy, CircuitFile, read_circuit_file
from ._meta import CircuitMeta
from ._node_list import NodeList
from ._tables import edge_table, node_table


if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse


_OLD = (
    "The edges are stored as before September 2024, when those from residual stream to residual stream were total effects and not direct "
    "ones. Nothing in the file tells whether they are."
)
_NO_ERRORS = "All edges out of error nodes are zero in the file, though error nodes have effects: feature-circuits computes them so."
_UNSEEN = (
    "Edges into instances of nodes below the threshold at which the file was made are not in it, and sums over positions and prompts lack "
    "them. The file does not hold that threshold, and the one in its name need not be it."
)


def feature_circuit(
    path: Path, node_threshold: float, edge_threshold: float, model: str | None
) -> "tuple[pd.DataFrame, pd.DataFrame, CircuitMeta]":
    """Reads a file: the nodes above the threshold, the edges between them above theirs, and how the circuit was found."""
    file = read_circuit_file(path)
    kept = {site: (np.abs(values) > node_threshold) & (values != 0) for site, values in file.effects.items()}
    if not any(mask.any() for mask in kept.values()):
        largest = max(float(np.abs(values).max()) for values in file.effects.values())
        raise ValueError(
            f"{path}: no node has an effect above node_threshold={node_threshold:g}; the largest is {largest:g}. Lower it."
        )
    summed = next(iter(kept.values())).ndim == 1
    matrices = {
        (source, target): _matrix(tensor, None if target is None else kept[target], kept[source].shape, path)
        for (source, target), tensor in file.edges.items()
    }
    listed = {site: NodeList(np.flatnonzero(mask), file.effects[site][mask], mask.shape) for site, mask in kept.items()}
    nodes, names = node_table(listed)
    weights = {pair: _out_of(matrix, kept[pair[0]].reshape(-1)) for pair, matrix in matrices.items()}
    meta = CircuitMeta(
        model=model,
        aggregate="sum" if summed else "none",
        prompts=file.prompts,
        length=None if summed else next(iter(kept.values())).shape[0],
        node_threshold=node_threshold,
        edge_threshold=edge_threshold,
        imported={"format": "feature-circuits", "file": path.name},
        d_sae={str(site): values.shape[-1] - 1 for site, values in file.effects.items()},
        **_about_edges(file, matrices),
    )
    return nodes, edge_table(weights, names, edge_threshold), meta


def _matrix(tensor: Any, into: np.ndarray | None, sources: tuple[int, ...], path: Path) -> "scipy.sparse.coo_array":
    """Flattens the edges into targets that are kept, `[target source]`; one row for the metric.

    Only what is stored is touched: the sparse axes of a tensor come first, and each of its entries holds the dense ones.
    """
    if tensor.is_sparse:
        stored, values = tensor._indices().numpy(), as_numpy(tensor._values())
    else:
        stored, values = np.zeros((0, 1), int), as_numpy(tensor)[None]
    nonzero = np.nonzero(values)
    index, values = [*stored[:, nonzero[0]], *nonzero[1:]], values[nonzero]
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: edges hold NaN or infinite values. Compute the circuit again.")
    targets = () if into is None else into.shape
    row = _flat(index[: len(targets)], targets, len(values))
    column = _flat(index[len(targets) :], sources, len(values))
    keep = np.ones(len(row), bool) if into is None else into.reshape(-1)[row]
    size = (int(np.prod(targets)), int(np.prod(sources)))
    import scipy.sparse  # a third of a second, which `import jaxcirc` need not take

    matrix = scipy.sparse.coo_array((values[keep].astype(np.float64), (row[keep], column[keep])), shape=size)
    matrix.sum_duplicates()  # a tensor may hold an entry in parts
    matrix.eliminate_zeros()
    return matrix


def _flat(index: list[np.ndarray], shape: tuple[int, ...], entries: int) -> np.ndarray:
    """Numbers the entries in row-major order, `[entry]`; 0 if there are no axes."""
    flat = np.zeros(entries, np.int64)
    for along, size in zip(index, shape, strict=True):
        flat = flat * size + along
    return flat


def _out_of(matrix: "scipy.sparse.coo_array", keep: np.ndarray) -> "scipy.sparse.coo_array":
    """Keeps the entries of the sources that are kept, `[target source]`."""
    row, column = matrix.coords
    chosen = keep[column]
    return type(matrix)((matrix.data[chosen], (row[chosen], column[chosen])), shape=matrix.shape)


def _about_edges(
    file: CircuitFile, matrices: "dict[tuple[Site, Site | None], scipy.sparse.coo_array]"
) -> dict[str, Any]:
    """Says what a reader should know of the edges: `notes`, and whether those between residual streams are total."""
    inside = [pair for pair in matrices if pair[1] is not None]
    sources = [matrices[pair].coords[1] % file.effects[pair[0]].shape[-1] for pair in inside]
    last = [file.effects[source].shape[-1] - 1 for source, _ in inside]
    out_of_errors = any(np.any(units == error) for units, error in zip(sources, last, strict=True))
    errors_matter = any(np.any(values[..., -1]) for values in file.effects.values())
    residual = [file.edges[pair] for pair in inside if all(map(_is_residual, pair)) and file.edges[pair].is_sparse]
    old = any(tensor.dense_dim() == 0 for tensor in residual)
    notes = [
        *([_OLD] if old else []),
        *([_NO_ERRORS] if any(map(len, sources)) and errors_matter and not out_of_errors else []),
        *([_UNSEEN] if inside else []),
    ]
    return {**({"residual_edges": "total" if old else "direct"} if residual else {}), "notes": notes}


def _is_residual(site: Site | None) -> bool:
    return site is not None and site.kind in (Kind.EMBED, Kind.RESID_POST)

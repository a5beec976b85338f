"""Circuits of the feature-circuits project, as circuits of ours."""

from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_array

from .._sites import Kind, Site
from ._circuit import Circuit
from ._circuit_file import as_numpy, CircuitFile, read_circuit_file
from ._discover import _edge_table, _node_table


_OLD = (
    "The edges are stored as before September 2024, when those from residual stream to residual stream were total effects and not direct "
    "ones. Nothing in the file tells whether they are."
)
_NO_ERRORS = "All edges out of error nodes are zero in the file, though error nodes have effects: feature-circuits computes them so."
_UNSEEN = (
    "Edges into instances of nodes below the threshold at which the file was made are not in it, and sums over positions and prompts lack "
    "them. The file does not hold that threshold, and the one in its name need not be it."
)


def imported(path: Path, node_threshold: float, edge_threshold: float, model: str | None) -> Circuit:
    """What `Circuit.from_feature_circuits` returns."""
    file = read_circuit_file(path)
    kept = {site: (np.abs(values) > node_threshold) & (values != 0) for site, values in file.effects.items()}
    if not any(mask.any() for mask in kept.values()):
        largest = max(float(np.abs(values).max()) for values in file.effects.values())
        raise ValueError(
            f"{path}: no node has an effect above node_threshold={node_threshold:g}; the largest is {largest:g}. Lower it."
        )
    summed = next(iter(kept.values())).ndim == 1
    aggregate = "sum" if summed else "none"
    weights, sources = {}, []
    for (source, target), tensor in file.edges.items():
        into = None if target is None else kept[target]
        matrix = _matrix(tensor, into, file.effects[source].shape, f"{path}: the edges from `{source}`")
        if target is not None:
            sources.append(matrix.col % file.effects[source].shape[-1] == file.effects[source].shape[-1] - 1)
        weights[source, target] = _restricted(matrix, kept[source].reshape(-1))
    nodes, names = _node_table(file.effects, kept, aggregate)
    meta: dict[str, Any] = {
        **({} if model is None else {"model": model}),
        "aggregate": aggregate,
        "prompts": file.prompts,
        **({} if summed else {"length": next(iter(kept.values())).shape[0]}),
        "node_threshold": node_threshold,
        "edge_threshold": edge_threshold,
        "imported": {"format": "feature-circuits", "file": path.name},
        "d_sae": {str(site): values.shape[-1] - 1 for site, values in file.effects.items()},
        **_told(file, sources),
    }
    return Circuit(nodes, _edge_table(weights, names, edge_threshold), meta)


def _matrix(tensor: Any, into: np.ndarray | None, shape: tuple[int, ...], where: str) -> coo_array:
    """`[target source]`, both flat, of the entries into targets that are kept; one row for the metric.

    Only what is stored is touched: the sparse axes of a tensor come first, and each of its entries holds the dense ones.
    """
    if tensor.is_sparse:
        stored, values = tensor._indices().numpy(), as_numpy(tensor._values())
    else:
        stored, values = np.zeros((0, 1), int), as_numpy(tensor)[None]
    entry, *dense = np.nonzero(values)
    index = [*stored[:, entry], *dense]
    values = values[(entry, *dense)]
    targets = () if into is None else into.shape
    row = np.ravel_multi_index(index[: len(targets)], targets) if targets else np.zeros(len(values), int)
    column = np.ravel_multi_index(index[len(targets) :], shape)
    if not np.isfinite(values).all():
        raise ValueError(f"{where} hold NaN or infinite values. Compute the circuit again.")
    keep = slice(None) if into is None else into.reshape(-1)[row]
    size = (int(np.prod(targets)), int(np.prod(shape)))
    matrix = coo_array((values[keep].astype(np.float64), (row[keep], column[keep])), shape=size)
    matrix.sum_duplicates()  # a tensor may hold an entry in parts
    matrix.eliminate_zeros()
    return matrix


def _restricted(matrix: coo_array, keep: np.ndarray) -> coo_array:
    """The entries of the sources that are kept."""
    chosen = keep[matrix.col]
    return coo_array((matrix.data[chosen], (matrix.row[chosen], matrix.col[chosen])), shape=matrix.shape)


def _told(file: CircuitFile, of_errors: list[np.ndarray]) -> dict[str, Any]:
    """What a reader should know of the edges. **Arguments:** - `of_errors`: for each edge between nodes, whether its source is an error."""
    residual = [tensor for pair, tensor in file.edges.items() if all(map(_is_residual, pair)) and tensor.is_sparse]
    old = any(tensor.dense_dim() == 0 for tensor in residual)
    any_errors = any(np.any(values[..., -1]) for values in file.effects.values())
    told = np.concatenate([*of_errors, np.zeros(0, bool)])
    notes = [
        *([_OLD] if old else []),
        *([_NO_ERRORS] if len(told) and any_errors and not told.any() else []),
        *([_UNSEEN] if of_errors else []),
    ]
    return {**({"residual_edges": "total" if old else "direct"} if residual else {}), "notes": notes}


def _is_residual(site: Site | None) -> bool:
    return site is not None and site.kind in (Kind.EMBED, Kind.RESID_POST)

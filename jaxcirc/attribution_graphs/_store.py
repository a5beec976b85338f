"""Attribution graphs on disk: one safetensors file, whose metadata say what it is of."""

import json
from pathlib import Path

import numpy as np
import safetensors.numpy
from jaxtyping import Bool, Int

from .._files import open_safetensors, read_tensor
from ._table import COLUMNS, Directions, Table
from ._whole import Whole


_FORMAT, _VERSION = "jaxcirc attribution graph", 1
_MORE = ("rows", "targets", "kept", "edges")
_OF_DIRECTIONS = ("vectors", "constants")  # of graphs that explain directions


def write_stored(
    path: Path,
    whole: Whole,
    kept: Int[np.ndarray, " kept"],
    edges: Bool[np.ndarray, "kept_target kept"],
    thresholds: tuple[float, float],
) -> None:
    """Writes a graph, and which of its nodes and edges are kept by which thresholds."""
    tensors = {name: getattr(whole.table, name) for name in COLUMNS}
    tensors |= {"rows": whole.rows, "targets": whole.targets, "kept": kept, "edges": edges}
    if whole.directions is not None:
        tensors |= {name: np.asarray(getattr(whole.directions, name)) for name in _OF_DIRECTIONS}
    about = {"sites": whole.table.sites, "meta": whole.meta, "thresholds": thresholds}
    metadata = {"format": _FORMAT, "version": str(_VERSION), "about": json.dumps(about)}
    safetensors.numpy.save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, path, metadata)


def read_stored(
    path: Path,
) -> tuple[Whole, Int[np.ndarray, " kept"], Bool[np.ndarray, "kept_target kept"], tuple[float, float]]:
    """Reads what `write_stored` wrote. **Raises:** `ValueError` for a file that is damaged, or holds something else."""
    with open_safetensors(path) as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != _FORMAT:
            raise ValueError(
                f"{path} holds no attribution graph that AttributionGraph.save wrote. One in JSON is read by AttributionGraph.from_json."
            )
        if metadata.get("version") != str(_VERSION):
            raise ValueError(
                f"{path} is an attribution graph of version {metadata.get('version')}, and version {_VERSION} is known here. Is there a "
                "newer jaxcirc?"
            )
        found = {name: read_tensor(file, name, path) for name in (*COLUMNS, *_MORE)}
        given = [read_tensor(file, name, path) for name in _OF_DIRECTIONS if name in file.keys()]
    about = json.loads(metadata["about"])
    directions = Directions(tuple(about["meta"]["targets"]), *given) if given else None
    table = Table(sites=tuple(about["sites"]), **{name: found[name] for name in COLUMNS})
    whole = Whole(table, found["rows"], found["targets"], about["meta"], directions)
    by_nodes, by_edges = about["thresholds"]
    return whole, found["kept"], found["edges"], (by_nodes, by_edges)

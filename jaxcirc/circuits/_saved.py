"""A saved circuit, read and checked: its two tables and its `meta`."""

import json
from pathlib import Path
from typing import Any, TYPE_CHECKING

from .._sites import Site
from ._rows import EdgeRow, METRIC, NodeRow


if TYPE_CHECKING:
    import pandas as pd

MARKER = "circuit.json"
FORMAT = {"format": "jaxcirc circuit", "version": 1}
TABLES = {"nodes": NodeRow._fields, "edges": EdgeRow._fields}


def read_circuit(folder: Path) -> "tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]":
    """Reads the nodes, the edges and the `meta` in a folder.

    **Raises:** `ValueError` if it is not a circuit, a file of it is damaged or another, or the files do not belong together.
    """
    import pandas as pd

    if not (folder / MARKER).is_file():
        raise ValueError(f"{folder} is not a saved circuit: it holds no {MARKER}. Circuit.save(folder) writes one.")
    try:
        meta = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        nodes, edges = (pd.read_parquet(folder / f"{name}.parquet") for name in TABLES)
    except (OSError, ValueError) as error:  # pyarrow's and json's errors are ValueErrors
        raise _damaged(folder, str(error)) from None
    if not isinstance(meta, dict):
        raise _damaged(folder, f"{MARKER} holds no object")
    if {key: meta.pop(key, None) for key in FORMAT} != FORMAT:
        raise ValueError(f"{folder / MARKER} is of another format or a newer version; expected {FORMAT}.")
    if wrong := _wrong(nodes, edges):
        raise _damaged(folder, wrong)
    return nodes, edges, meta


def _damaged(folder: Path, why: str) -> ValueError:
    return ValueError(f"The circuit in {folder} is damaged: {why.rstrip('.')}. Compute or copy it again.")


def _wrong(nodes: "pd.DataFrame", edges: "pd.DataFrame") -> str | None:
    """What is wrong with tables that could be read; `None` if nothing is."""
    for (name, columns), table in zip(TABLES.items(), (nodes, edges), strict=True):
        if lacking := [column for column in columns if column not in table]:
            return f"{name}.parquet has no column {', '.join(map(repr, lacking))}"
    for site in nodes["site"].unique():
        try:
            Site.parse(site)
        except (TypeError, ValueError):
            return f"nodes.parquet has nodes at {site!r}, which is no site"
    known = {METRIC, *nodes["node"]}
    for source, target in zip(edges["source"], edges["target"], strict=True):
        for end in (source, target):
            if end not in known:
                return f"edges.parquet has an edge {source} -> {target}, and nodes.parquet no node {end}"
    return None

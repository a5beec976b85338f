"""A circuit: nodes, edges, and how they were found; saved, loaded, drawn."""

import dataclasses
import json
from pathlib import Path
from typing import Any, TYPE_CHECKING

from .._files import check_replaceable, writing_file, writing_folder
from ..view import drawing, edge_rows, EdgeRow, graphviz_of, node_rows, NodeRow, page


if TYPE_CHECKING:
    import graphviz
    import pandas as pd


MARKER = "circuit.json"
_FORMAT = {"format": "jaxcirc circuit", "version": 1}


@dataclasses.dataclass(frozen=True)
class Circuit:
    """The nodes and edges that matter to a metric, with every setting that they were found with.

    **Attributes:**

    - `nodes`: a table, one row a node: `node` (its name), `site`, `unit` (the latent; `d_sae` for the error), `kind` (`"latent"` or
      `"error"`), `pos` (the position, missing if positions were summed), `effect` (corrupt less clean, mean over prompts).
    - `edges`: a table, one row an edge: `source`, `target` (names of nodes, or `"metric"`), `weight` (its effect on the metric, mean
      over prompts).
    - `meta`: settings, sizes, versions and checks; plain JSON.

    Tables are pandas data frames; `pyarrow.table(circuit.nodes)` takes them too.
    """

    nodes: "pd.DataFrame"
    edges: "pd.DataFrame"
    meta: dict[str, Any]

    def __repr__(self) -> str:
        return f"Circuit({len(self.nodes)} nodes, {len(self.edges)} edges, of {self.meta.get('model')})"

    def node_rows(self) -> list[NodeRow]:
        """The nodes as named tuples, the strongest first."""
        return node_rows(self.nodes)

    def edge_rows(self) -> list[EdgeRow]:
        """The edges as named tuples, the strongest first."""
        return edge_rows(self.edges)

    def annotate(self, **meta: Any) -> "Circuit":
        """The same circuit with more in its `meta`."""
        return dataclasses.replace(self, meta={**self.meta, **meta})

    def save(self, folder: str | Path) -> None:
        """Writes `nodes.parquet`, `edges.parquet` and `circuit.json` into `folder`, all or nothing.

        **Raises:** `ValueError` if `folder` exists and is not a circuit; a circuit there is replaced.
        """
        with writing_folder(folder, marker=MARKER, what="circuit") as aside:
            self.nodes.to_parquet(aside / "nodes.parquet", index=False)
            self.edges.to_parquet(aside / "edges.parquet", index=False)
            (aside / MARKER).write_text(json.dumps({**_FORMAT, **self.meta}, indent=1, ensure_ascii=False))

    @staticmethod
    def load(folder: str | Path) -> "Circuit":
        """Reads what `save` wrote.

        **Raises:** `ValueError` if `folder` is not a circuit, or a file of it is damaged.
        """
        import pandas as pd

        folder = Path(folder)
        if not (folder / MARKER).is_file():
            raise ValueError(f"{folder} is not a saved circuit: it holds no {MARKER}. Circuit.save(folder) writes one.")
        try:
            meta = json.loads((folder / MARKER).read_text())
            nodes, edges = (pd.read_parquet(folder / f"{name}.parquet") for name in ("nodes", "edges"))
        except (OSError, ValueError) as error:  # pyarrow's and json's errors are ValueErrors
            raise ValueError(f"The circuit in {folder} is damaged: {error}. Compute or copy it again.") from None
        if {key: meta.pop(key, None) for key in _FORMAT} != _FORMAT:
            raise ValueError(f"{folder / MARKER} is of another format or a newer version; expected {_FORMAT}.")
        return Circuit(nodes, edges, meta)

    def to_html(self, path: str | Path, *, most_edges: int = 150) -> None:
        """Draws the circuit as one self-contained page: no network, no other file. The strongest `most_edges` edges are drawn."""
        html = page(self.node_rows(), self.edge_rows(), self.meta, most_edges=most_edges)
        with writing_file(path) as aside:
            aside.write_text(html)

    def to_svg(self, path: str | Path, *, most_edges: int = 150) -> None:
        """Draws the circuit as an SVG file: the picture of `to_html` without the tables."""
        svg = drawing(self.node_rows(), self.edge_rows(), self.meta, most_edges=most_edges)
        with writing_file(path) as aside:
            aside.write_text(svg)

    def to_graphviz(self, *, most_edges: int = 150) -> "graphviz.Digraph":
        """The circuit as a `graphviz.Digraph` (extra `graphviz`); its `.source` is DOT."""
        return graphviz_of(self.node_rows(), self.edge_rows(), most_edges=most_edges)


def check_output(folder: str | Path) -> None:
    """ValueError if a circuit could not be saved to `folder`: for before the work."""
    check_replaceable(folder, marker=MARKER, what="circuit")

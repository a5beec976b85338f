"""A circuit: nodes, edges, and how they were found; saved, loaded, drawn."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TYPE_CHECKING

from .._checks import check_count, check_list, check_path, check_threshold
from .._figures import written
from .._files import check_replaceable, write_text, writing_file, writing_folder
from .._shown import Shown
from .._sites import did_you_mean
from ..explorer import Description, figure_of, write_page
from ._drawing import attribution_graph, described, graphviz_of, networkx_of, write_graphml
from ._feature_circuits import feature_circuit
from ._meta import CircuitMeta
from ._notes import check_notes, check_tokens
from ._paths import strongest_paths
from ._rows import edge_rows, EdgeRow, METRIC, node_rows, NodeRow
from ._saved import FORMAT, MARKER, read_circuit


if TYPE_CHECKING:
    import graphviz
    import pandas as pd
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, init=False, eq=False)
class Circuit(Shown):
    """The nodes and edges that matter to a metric, with every setting that they were found with.

    **Attributes:**

    - `nodes`: a table, one row a node: `node` (its name), `site`, `unit` (the latent; `d_sae` for the error), `kind` (`"latent"` or
      `"error"`), `pos` (the position, missing if positions were summed), `effect` (corrupt − clean, mean over prompts).
    - `edges`: a table, one row an edge: `source`, `target` (names of nodes, or `"metric"`), `weight` (its effect on the metric, mean
      over prompts).
    - `meta`: settings, sizes, versions and checks: a `jc.circuits.CircuitMeta`; a mapping becomes one.

    What is strongest in it need not carry the behaviour: `jc.evaluate` runs the circuit without the rest of the model, and `jc.prune` finds
    the thresholds at which it carries what is asked for.

    Tables are pandas data frames; `pyarrow.table(circuit.nodes)` takes them too.
    """

    nodes: "pd.DataFrame"
    edges: "pd.DataFrame"
    meta: CircuitMeta

    def __init__(self, nodes: "pd.DataFrame", edges: "pd.DataFrame", meta: CircuitMeta | Mapping[str, Any]):
        object.__setattr__(self, "nodes", nodes)
        object.__setattr__(self, "edges", edges)
        object.__setattr__(self, "meta", meta if isinstance(meta, CircuitMeta) else CircuitMeta.of(meta))

    def __repr__(self) -> str:
        return f"Circuit({len(self.nodes)} nodes, {len(self.edges)} edges, of {self.meta.model or 'a model'})"

    def _tables(self) -> "Mapping[str, pd.DataFrame]":
        ordered = lambda table, by: table.sort_values(by, key=abs, ascending=False)
        return {
            "nodes, the strongest first": ordered(self.nodes, "effect")[["node", "effect"]],
            "edges, the strongest first": ordered(self.edges, "weight"),
        }

    def node_rows(self) -> list[NodeRow]:
        """The nodes as named tuples, the strongest first."""
        return node_rows(self.nodes)

    def edge_rows(self) -> list[EdgeRow]:
        """The edges as named tuples, the strongest first."""
        return edge_rows(self.edges)

    def annotate(self, **meta: Any) -> "Circuit":
        """The same circuit with more in its `meta`: fields of `jc.circuits.CircuitMeta`, or anything else in plain JSON.

        **Raises:** `TypeError` or `ValueError` for what is no plain JSON, for a field of another kind, and for tokens that are not one for
        each position of the prompts.
        """
        check_notes(meta)
        if meta.get("tokens") is not None:
            check_tokens(self.node_rows(), meta["tokens"], self.meta.length)
        return dataclasses.replace(self, meta={**self.meta, **meta})

    def above(self, *, node_threshold: float = 0.0, edge_threshold: float = 0.0) -> "Circuit":
        """The nodes with `|effect| > node_threshold`, and the edges between them with `|weight| > edge_threshold`.

        **Raises:** `ValueError` for a threshold that is negative or NaN.
        """
        check_threshold("Circuit.above: node_threshold", node_threshold)
        check_threshold("Circuit.above: edge_threshold", edge_threshold)
        kept = self.subgraph(self.nodes["node"][self.nodes["effect"].abs() > node_threshold])
        edges = kept.edges[kept.edges["weight"].abs() > edge_threshold].reset_index(drop=True)
        return dataclasses.replace(kept, edges=edges)

    def subgraph(self, names: Iterable[str]) -> "Circuit":
        """Some of the nodes, by name, and the edges between them and to the metric.

        **Raises:** `ValueError` for a name that the circuit does not have.
        """
        chosen = set(check_list("Circuit.subgraph: names", "names of nodes", names))
        if unknown := chosen - set(self.nodes["node"]):
            raise self._no_node(min(map(str, unknown)))
        inside = self.edges["source"].isin(list(chosen)) & self.edges["target"].isin([*chosen, METRIC])
        nodes = self.nodes[self.nodes["node"].isin(list(chosen))].reset_index(drop=True)
        return dataclasses.replace(self, nodes=nodes, edges=self.edges[inside].reset_index(drop=True))

    def merge(self, other: "Circuit") -> "Circuit":
        """The nodes and edges of either; where both have one, this circuit's numbers.

        **Raises:** `ValueError` if the other is of another model or of other dictionaries.
        """
        self._check_alike(other)
        nodes, edges = (self._joined(other, table) for table in ("nodes", "edges"))
        return dataclasses.replace(self, nodes=nodes, edges=edges)

    def difference(self, other: "Circuit") -> "Circuit":
        """The nodes that the other circuit does not have, and the edges that it does not have, whose nodes stay too."""
        self._check_alike(other)
        of_other = set(zip(other.edges["source"], other.edges["target"], strict=True))
        new = [pair not in of_other for pair in zip(self.edges["source"], self.edges["target"], strict=True)]
        edges = self.edges[new].reset_index(drop=True)
        touched = {*edges["source"], *edges["target"]}
        kept = ~self.nodes["node"].isin(other.nodes["node"]) | self.nodes["node"].isin(list(touched))
        return dataclasses.replace(self, nodes=self.nodes[kept].reset_index(drop=True), edges=edges)

    def _no_node(self, name: str) -> ValueError:
        """Makes the error that names the nodes that there are at the same site: a latent of a near number is no near name."""
        site = name.rpartition("/")[0]
        there = [row.node for row in self.node_rows() if str(row.site) == site]
        if not there:
            return ValueError(f"The circuit has no node {name!r}. {did_you_mean(name, self.nodes['node'])}")
        strongest = ", ".join(there[:3])
        return ValueError(
            f"The circuit has no node {name!r}; of the {len(there)} at this site the strongest: {strongest}."
        )

    def _joined(self, other: "Circuit", table: str) -> "pd.DataFrame":
        import pandas as pd

        keys = ["node"] if table == "nodes" else ["source", "target"]
        return pd.concat([getattr(self, table), getattr(other, table)], ignore_index=True).drop_duplicates(
            keys, ignore_index=True
        )

    def _check_alike(self, other: "Circuit") -> None:
        same = self.meta.get("fingerprints") == other.meta.get("fingerprints") is not None  # whatever their names are
        for what in ("d_sae", "aggregate") if same else ("model", "dictionaries", "d_sae", "aggregate"):
            if self.meta.get(what) != other.meta.get(what):
                raise ValueError(
                    f"The circuits differ in their {what}: {self.meta.get(what)} and {other.meta.get(what)}. Find both alike."
                )

    def paths(self, source: str, target: str = METRIC, *, most: int = 10) -> list[tuple[list[str], float]]:
        """Paths from one node to another, or to the metric: the names on the way and the weakest edge's weight, the strongest first.

        There is none against the order of computation, nor from a node to itself.

        **Raises:** `ValueError` for a name that the circuit does not have.
        """
        check_count("Circuit.paths: most", "paths to find", most)
        for name in {source, target} - {METRIC, *self.nodes["node"]}:
            raise self._no_node(name)
        return strongest_paths(self.edge_rows(), source, target, most)

    def to_networkx(self) -> Any:
        """The circuit as a `networkx.DiGraph` (extra `networkx`), with the columns of the tables as attributes."""
        return networkx_of(self.node_rows(), self.edge_rows(), self.meta)

    def to_graphml(self, path: str | Path) -> None:
        """Writes the graph of `to_networkx` as GraphML, for Gephi, Cytoscape or yEd. A node without a position has no `pos`."""
        write_graphml(self.to_networkx(), path)

    def save(self, folder: str | Path) -> None:
        """Writes `nodes.parquet`, `edges.parquet` and `circuit.json` into `folder`, all or nothing.

        **Raises:** `ValueError` if `folder` exists and is not a circuit; a circuit there is replaced.
        """
        with writing_folder(folder, marker=MARKER, what="circuit") as aside:
            self.nodes.to_parquet(aside / "nodes.parquet", index=False)
            self.edges.to_parquet(aside / "edges.parquet", index=False)
            write_text(aside / MARKER, json.dumps({**FORMAT, **self.meta.as_dict()}, indent=1, ensure_ascii=False))

    @staticmethod
    def load(folder: str | Path) -> "Circuit":
        """Reads what `save` wrote.

        **Raises:** `ValueError` if `folder` is not a circuit, or a file of it is damaged or another's.
        """
        return Circuit(*read_circuit(check_path("Circuit.load: folder", folder)))

    @staticmethod
    def from_feature_circuits(
        path: str | Path, *, node_threshold: float = 0.0, edge_threshold: float = 0.0, model: str | None = None
    ) -> "Circuit":
        """The same as `jc.circuits.load_feature_circuit`."""
        return _read("Circuit.from_feature_circuits", path, node_threshold, edge_threshold, model)

    def to_html(self, path: str | Path) -> None:
        """Writes the circuit as one self-contained page to explore it in: no network, no other file. All nodes and edges are in it.

        The page shows what `meta` holds of latents: `circuit.annotate(annotations=…, latents=jc.circuits.describe_latents(…))`.
        """
        write_page(path, self.described())

    def described(self) -> Description:
        """What `to_html` shows."""
        return described(self.node_rows(), self.edge_rows(), self.meta)

    def to_figure(self, path: str | Path | None = None, *, most_edges: int = 150) -> "Figure":
        """Draws the strongest `most_edges` edges, the nodes that they touch and the strongest others, as `to_html` places them.

        **Arguments:** - `path`: also writes the picture, by its suffix `.svg`, `.pdf` or `.png`.

        **Returns:** a matplotlib figure, which is part of no global state.

        **Raises:** `ValueError` for another suffix.
        """
        check_count("Circuit.to_figure: most_edges", "edges to draw", most_edges, least=0)
        target = written("Circuit.to_figure", path)
        return figure_of(self.described(), target, most_edges)

    def to_attribution_graph(self, path: str | Path, *, most_edges: int = 20_000) -> None:
        """Writes the circuit as attribution-graph JSON, which circuit-tracer's viewer and Neuronpedia open.

        A graph has positions and their tokens: of a circuit found with `aggregate="none"`, and `circuit.annotate(tokens=[…])`, as
        `jaxcirc discover --by-position` does. The strongest `most_edges` edges are written.

        **Raises:** `ValueError` if positions were summed, or the tokens are not known or not as many as the positions.
        """
        check_count("Circuit.to_attribution_graph: most_edges", "edges to write", most_edges, least=0)
        if any(row.pos is None for row in self.node_rows()):
            raise ValueError(
                "An attribution graph shows positions, and in this circuit they were summed. Find it with aggregate='none'."
            )
        if self.meta.tokens is None:
            raise ValueError(
                "An attribution graph shows tokens. Give them: circuit.annotate(tokens=['The', ' keys', …])."
            )
        check_tokens(self.node_rows(), self.meta.tokens, self.meta.length)
        graph = attribution_graph(self.node_rows(), self.edge_rows()[:most_edges], self.meta, slug=Path(path).stem)
        with writing_file(path) as aside:
            write_text(aside, json.dumps(graph, ensure_ascii=False))

    def to_graphviz(self, *, most_edges: int = 150) -> "graphviz.Digraph":
        """The circuit as a `graphviz.Digraph` (extra `graphviz`); its `.source` is DOT."""
        check_count("Circuit.to_graphviz: most_edges", "edges to draw", most_edges, least=0)
        return graphviz_of(self.node_rows(), self.edge_rows(), most_edges=most_edges)


def load_feature_circuit(
    path: str | Path, *, node_threshold: float = 0.0, edge_threshold: float = 0.0, model: str | None = None
) -> Circuit:
    """Reads a circuit that feature-circuits saved, a `.pt` file. Takes the `torch` extra.

    `embed`, `attn_3`, `mlp_3` and `resid_3` become `hook_embed`, `blocks.3.hook_attn_out`, `blocks.3.hook_mlp_out` and
    `blocks.3.hook_resid_post`, and `y` the metric. Numbers are the file's: an effect is that of the metric which was used there, by
    default the patch answer's logit less the clean one's, where `Prompts.metric()` is the other way round. Nothing in the file is
    run: of a pickle, only tensors, plain values and the project's class of effects are made.

    **Arguments:**

    - `node_threshold`, `edge_threshold`: as in `Circuit.above`; what is exactly zero is never kept.
    - `model`: its name, which the file does not hold. If given, `jc.evaluate` takes no other model.

    **Returns:** a circuit. Of its `meta`, `aggregate`, `prompts` and `d_sae` (how many latents each site has, which `jc.evaluate` checks)
    are known, and `notes` has what is to be known of the edges; `residual_edges` is `"total"` if they are stored as in files from before
    September 2024, whose edges between residual streams were total effects.

    **Raises:** `ImportError` without PyTorch; `ValueError` if the file is damaged, holds something else, or wants to run code; if no
    node is above the threshold.

    **Reference:** the code of Marks et al. 2024, arXiv 2403.19647. For Gemma-2 its `attn_3` are what goes into the attention's
    output projection, which the file does not tell.

    >>> circuit = jc.circuits.load_feature_circuit("rc_n100_aggsum.pt", edge_threshold=0.02)  # doctest: +SKIP
    >>> circuit.annotate(annotations=jc.load_annotations("annotations.jsonl")).to_html("rc.html")  # doctest: +SKIP
    """
    return _read("load_feature_circuit", path, node_threshold, edge_threshold, model)


def _read(verb: str, path: str | Path, node_threshold: float, edge_threshold: float, model: str | None) -> Circuit:
    check_threshold(f"{verb}: node_threshold", node_threshold)
    check_threshold(f"{verb}: edge_threshold", edge_threshold)
    return Circuit(*feature_circuit(check_path(f"{verb}: path", path), node_threshold, edge_threshold, model))


def check_output(folder: str | Path) -> None:
    """ValueError if a circuit could not be saved to `folder`: for before the work."""
    check_replaceable(folder, marker=MARKER, what="circuit")

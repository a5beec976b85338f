"""An attribution graph: nodes, what each contributes to which other, and what of it is kept."""

import dataclasses
import functools as ft
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from .._checks import check_choice, check_count, check_kind, check_list, check_part, check_path
from .._figures import written
from .._files import write_text, writing_file
from .._fingerprint import difference, fingerprint
from .._run import NOTHING
from .._shown import Shown
from .._tokens import token_texts
from .._words import counted
from ..explorer import Description, figure_of, write_page
from ..linear import check_fits
from ..models import Transformer
from ._described import described
from ._influence import edge_influence, output_weights, prune
from ._qk import QKAttribution
from ._read_json import read_graph
from ._store import read_stored, write_stored
from ._table import KINDS, LOGIT, Table
from ._whole import Whole
from ._write_json import graph_document, Kept
from ._write_qk import same_prompt


if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class AttributionGraph(Shown):
    """The graph of one prompt, as much of it as its thresholds keep.

    **Attributes:**

    - `nodes`: a table, one row a node, in the order of the adjacency matrix:
      `kind`: `"latent"` (a neuron, where there are no dictionaries), `"error"`, `"token"`, `"position"`, `"bias"`, `"logit"`;
      `site`: the dictionary's, or where the node writes; `layer`: -1 for embeddings, the number of layers for logits; `pos`, the position;
      `unit`: the latent, the token id, or of a direction its number; of an error -1, or -2 for the one that stands for all latents at its
      site and position without a row of their own (beyond `max_nodes`); -1 of what has none. The bias with layer and position -1 is each
      row's own: its encoder's bias and what it reads of the norm's before it.
      `activation`: of latents, NaN elsewhere; `probability`: of logits, 0 elsewhere; `influence`: of all paths to the logits, by shares of
      absolute values, in the graph before it was pruned.
    - `adjacency` `[target source]`: how much of the target's pre-activation the source contributes. Before pruning a row sums to that,
      `values`; rows of nodes that only write are 0.
    - `values` `[node]`: the pre-activation of latents, the value of logits (before a cap, less the mean logit), NaN elsewhere.
    - `replacement_score`, `completeness_score`: of the graph before it was pruned.
    - `meta`: model, prompt, dictionaries and settings, as plain JSON.
    """

    whole: Whole
    kept: Int[np.ndarray, " kept"]
    edges: Bool[np.ndarray, "kept_target kept"]
    node_threshold: float
    edge_threshold: float

    def __repr__(self) -> str:
        return (
            f"AttributionGraph({counted(len(self.kept), 'node')} of {len(self.whole.table)}, "
            f"{counted(int(self.edges.sum()), 'edge')}, of {self.meta.get('model') or 'a model'})"
        )

    def _tables(self) -> "Mapping[str, pd.DataFrame]":
        return {"nodes, the most influential first": self.nodes.sort_values("influence", ascending=False)}

    @property
    def meta(self) -> dict[str, Any]:
        return self.whole.meta

    @ft.cached_property
    def table(self) -> Table:
        """The nodes as arrays."""
        return self.whole.table.some(self.kept)

    @ft.cached_property
    def targets(self) -> Int[np.ndarray, " kept_target"]:
        """The nodes that have a row, by their place in `nodes`."""
        return np.flatnonzero(np.isin(self.kept, self.whole.targets))

    @ft.cached_property
    def rows(self) -> Float[np.ndarray, "kept_target kept"]:
        """The rows of the adjacency matrix that are not empty: those of `targets`."""
        mine = np.searchsorted(self.whole.targets, self.kept[self.targets])
        return np.where(self.edges, self.whole.rows[mine][:, self.kept], 0)

    @ft.cached_property
    def nodes(self) -> "pd.DataFrame":
        import pandas as pd

        table = self.table
        columns = {
            "kind": np.array(KINDS, object)[table.kind],
            "site": np.array(table.sites, object)[table.site],
            "layer": table.layer.astype(np.int64),
            "pos": table.pos.astype(np.int64),
            "unit": table.unit.astype(np.int64),
            "activation": table.activation,
            "probability": table.probability,
            "influence": self.whole.influence[self.kept],
        }
        return pd.DataFrame(columns)

    @property
    def adjacency(self) -> Float[np.ndarray, "node node"]:
        """Made when it is asked for, a square of all nodes; `rows` is what of it is not empty."""
        n = len(self.kept)
        instead = "Prune it further, or use .rows and .targets."
        check_fits("AttributionGraph.adjacency", (n, n), self.rows.dtype, instead, on_host=True)
        found = np.zeros((n, n), self.rows.dtype)
        found[self.targets] = self.rows
        return found

    @property
    def values(self) -> Float[np.ndarray, " node"]:
        return self.table.value

    @property
    def replacement_score(self) -> float:
        """Of the influence of where paths begin, the share of tokens and position embeddings against that of errors."""
        return self.whole.scores.replacement

    @property
    def completeness_score(self) -> float:
        """The share of nodes' inputs that are not errors, weighed by the nodes' influence."""
        return self.whole.scores.completeness

    def strongest(self, k: int = 20, *, by: str = "influence") -> Int[np.ndarray, "edge 2"]:
        """The `k` first edges as pairs (target, source) of rows of `nodes`: by their influence on the outputs, which is their share of
        their target's inputs times the influence of that, or by their size, `by="weight"`.

        **Raises:** `ValueError` for less than one edge, and another word.
        """
        check_count("AttributionGraph.strongest: k", "edges to list", k)
        check_choice("AttributionGraph.strongest: by", by, ("influence", "weight"))
        sizes = np.abs(self.rows)
        if by == "influence":
            sizes = edge_influence(self.rows, self.targets, output_weights(self.table))
        first = np.argsort(-sizes, axis=None, kind="stable")[:k]
        target, source = np.unravel_index(first[sizes.reshape(-1)[first] > 0], sizes.shape)
        return np.stack([self.targets[target], source], axis=1)

    def weight(self, target: int, source: int) -> float:
        """The edge between two rows of `nodes`; 0 where there is none."""
        row = np.flatnonzero(self.targets == target)
        return float(self.rows[row[0], source]) if len(row) else 0.0

    def prune(self, *, node_threshold: float = 0.8, edge_threshold: float = 0.98) -> "AttributionGraph":
        """The same graph by other thresholds, of all that was computed: more can come back, and nothing is computed anew.

        **Arguments:** - `node_threshold`: the share of all influence that the kept nodes make up, from 0 to 1; tokens and logits stay. -
        `edge_threshold`: so too of the edges between these. 1 keeps all.

        **Raises:** `ValueError` for a threshold that is not from 0 to 1.
        """
        return pruned(self.whole, node_threshold, edge_threshold, "AttributionGraph.prune")

    def check_model(self, model: Transformer) -> None:
        """ValueError unless the graph is of this model, by what it computes; a graph from JSON does not say, and passes."""
        recorded = self.meta.get("fingerprints", {}).get("model")
        apart = None if recorded is None else difference(recorded, fingerprint(model))
        if apart is not None:
            raise ValueError(
                f"This graph is of {self.meta['model']}, and not of the {model.name} that was given{apart}."
            )

    def save(self, path: str | Path) -> None:
        """Writes all that was computed, and what of it is kept, to one safetensors file; whole or not at all."""
        with writing_file(path) as aside:
            write_stored(aside, self.whole, self.kept, self.edges, (self.node_threshold, self.edge_threshold))

    @staticmethod
    def load(path: str | Path) -> "AttributionGraph":
        """Reads a graph that was saved: the same to the last bit.

        **Raises:** `ValueError` if the file is damaged, or holds something else.
        """
        whole, kept, edges, thresholds = read_stored(check_path("AttributionGraph.load: path", path))
        return AttributionGraph(whole, kept, edges, *thresholds)

    def to_json(
        self,
        path: str | Path,
        *,
        tokens: "Sequence[str] | PreTrainedTokenizerBase | None" = None,
        outputs: Sequence[str] | None = None,
        qk: Mapping[int, QKAttribution] = NOTHING,
    ) -> None:
        """Writes what is kept as attribution-graph JSON (schema version 1), which circuit-tracer's viewer and Neuronpedia open. The file's
        name is the graph's `slug` there. A node's `influence` is there the share of all influence that it and stronger ones make up.

        Ids are those of circuit-tracer, but for errors, which there share ids with latents of the first layer; position embeddings and
        biases, which it has none of, have ids of their own, too.

        **Arguments:** - `tokens`: the prompt's tokens as text, or a tokenizer; of a graph from JSON they are known. - `outputs`: the texts
        of the logits' tokens, in the order of `nodes`; without them, and without a tokenizer, their ids. - `qk`: by row of `nodes` an
        attention score by pairs of nodes, `{node: jc.qk_attribution(…)}` of the same prompt, so that a latent of attention tells why its
        head attends: it is written as the node's `qk_tracing_results`, with nodes that the graph does not keep in `qk_only_nodes`. A graph
        from JSON has in `meta`, by id of a node, what its file has of these, and writes that, too.

        **Raises:** `ValueError` if there are not as many texts as tokens, or none; for rows that are not there, and scores of another
        prompt.
        """
        path = check_path("AttributionGraph.to_json: path", path)
        texts, names = self._texts(tokens, outputs)
        self._check_scores(qk)
        made = graph_document(self._kept(), texts, names, qk, slug=path.stem, scan=str(self.meta.get("model") or ""))
        with writing_file(path) as aside:
            write_text(aside, json.dumps(made, ensure_ascii=False))

    def annotate(
        self, tokens: "Sequence[str] | PreTrainedTokenizerBase", *, outputs: Sequence[str] | None = None
    ) -> "AttributionGraph":
        """The same graph with the texts of the prompt's tokens and of the logits in its `meta`, so that a saved one is shown with them.

        **Arguments:** - `tokens`, `outputs`: as in `to_json`.

        **Raises:** `ValueError` if there are not as many texts as tokens, or as outputs.
        """
        texts, names = self._texts(tokens, outputs, "AttributionGraph.annotate")
        units = self.table.unit[self.table.kind == LOGIT].tolist()
        meta = {
            "prompt_tokens": texts,
            "output_texts": {str(unit): name for unit, name in zip(units, names, strict=True)},
        }
        return dataclasses.replace(self, whole=dataclasses.replace(self.whole, meta={**self.meta, **meta}))

    def to_html(
        self,
        path: str | Path,
        *,
        tokens: "Sequence[str] | PreTrainedTokenizerBase | None" = None,
        outputs: Sequence[str] | None = None,
    ) -> None:
        """Writes what is kept as one self-contained page to explore it in: no network, no other file.

        **Arguments:** - `tokens`, `outputs`: as in `to_json`; where they are neither given nor known, token ids stand in their place.

        **Raises:** `ValueError` if there are not as many texts as tokens, or as outputs.
        """
        write_page(path, self.described(tokens=tokens, outputs=outputs))

    def to_figure(
        self,
        path: str | Path | None = None,
        *,
        tokens: "Sequence[str] | PreTrainedTokenizerBase | None" = None,
        outputs: Sequence[str] | None = None,
        most_edges: int = 150,
    ) -> "Figure":
        """Draws the `most_edges` edges of most influence, the nodes that they touch and those of most influence, as `to_html` places them.

        **Arguments:** as of `to_html`. - `path`: if given, the picture is also written, by its suffix `.svg`, `.pdf` or `.png`.

        **Returns:** a matplotlib figure, which is part of no global state.

        **Raises:** `ValueError` as `to_html`, and for another suffix.

        >>> graph = jc.attribution_graph(model, None, tokens, max_nodes=50)
        >>> type(graph.to_figure("graph.svg", most_edges=20)).__name__
        'Figure'
        """
        check_count("AttributionGraph.to_figure: most_edges", "edges to draw", most_edges, least=0)
        target = written("AttributionGraph.to_figure", path)
        return figure_of(self.described(tokens=tokens, outputs=outputs), target, most_edges)

    def described(
        self,
        *,
        tokens: "Sequence[str] | PreTrainedTokenizerBase | None" = None,
        outputs: Sequence[str] | None = None,
    ) -> Description:
        """What `to_html` and `to_figure` show; the arguments are theirs."""
        verb = "AttributionGraph.to_html"
        known = tokens is not None or self.meta.get("prompt_tokens")
        texts, names = self._texts(tokens if known else [f"#{i}" for i in self.meta["tokens"]], outputs, verb)
        kept, influence = self._kept(), self.whole.influence[self.kept]
        return described(kept, self.whole.table, influence, self.whole.scores, texts, names)

    @staticmethod
    def from_json(path: str | Path) -> "AttributionGraph":
        """Reads a graph from JSON, as `to_json`, circuit-tracer and Neuronpedia write it (schema version 1).

        What a file has of a graph is what was left after pruning: rows do not sum to pre-activations, `values` are NaN, and influence and
        scores are those of what is there. Where a latent and an error share an id, a link from it is the latent's, which is warned of.

        **Raises:** `ValueError` for a file that is no such graph, or of another schema version.
        """
        whole, thresholds = read_graph(check_path("AttributionGraph.from_json: path", path))
        return AttributionGraph(whole, np.arange(len(whole.table)), whole.rows != 0, *thresholds)

    def _kept(self) -> Kept:
        shares = self.whole.cumulated()[self.kept]
        thresholds = self.node_threshold, self.edge_threshold
        return Kept(self.table, self.targets, self.rows, self.edges, shares, self.meta, thresholds)

    def _check_scores(self, qk: Mapping[int, QKAttribution]) -> None:
        """ValueError unless scores are of this prompt, and their keys nodes."""
        what = "AttributionGraph.to_json: qk"
        check_kind(what, qk, Mapping, "attention scores by row of nodes, {node: jc.qk_attribution(…)}")
        for node, score in qk.items():
            check_node(what, self, node)
            check_kind(
                f"{what}: of node {node}", score, QKAttribution, "an attention score, as jc.qk_attribution gives one"
            )
            if not same_prompt(score.records, self.table):
                raise ValueError(
                    f"{what}: the score of node {node} is of another prompt. Give it the graph's tokens and mask."
                )

    def _texts(
        self, tokens: Any, outputs: Sequence[str] | None, verb: str = "AttributionGraph.to_json"
    ) -> tuple[list[str], list[str]]:
        """The texts of the prompt's tokens and of the outputs."""
        ids, units = self.meta["tokens"], self.table.unit[self.table.kind == LOGIT].tolist()
        tokenizer = None if tokens is None or isinstance(tokens, Sequence) else tokens
        known = self.meta.get("prompt_tokens") if tokens is None else tokens
        texts = (
            check_list(f"{verb}: tokens", "texts, one a token", known or [])
            if tokenizer is None
            else token_texts(tokenizer, ids)
        )
        if len(texts) != len(ids) or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"{verb}: tokens are the prompt's {len(ids)} tokens as text, or a tokenizer; got {len(texts)}. Give them: "
                "tokens=['The', ' keys', …]."
            )
        named = self.meta.get("targets")
        names = [named[unit] for unit in units] if named is not None else outputs or self.meta.get("output_tokens")
        own = self.meta.get("output_texts", {})
        if names is None and tokenizer is None and all(str(unit) in own for unit in units):
            names = [own[str(unit)] for unit in units]
        if names is None:
            names = [f"#{unit}" for unit in units] if tokenizer is None else token_texts(tokenizer, units)
        if len(names) != len(units):
            raise ValueError(f"{verb}: outputs are the texts of the {len(units)} logits, got {len(names)}.")
        return texts, list(names)


def pruned(whole: Whole, node_threshold: float, edge_threshold: float, verb: str) -> AttributionGraph:
    """Prunes a graph."""
    check_thresholds(verb, node_threshold, edge_threshold)
    kept = prune(whole.rows, whole.targets, whole.table, whole.influence, node_threshold, edge_threshold)
    return AttributionGraph(whole, kept.nodes, kept.edges, float(node_threshold), float(edge_threshold))


def check_thresholds(verb: str, node_threshold: Any, edge_threshold: Any) -> None:
    """ValueError unless both are from 0 to 1."""
    check_part(f"{verb}: node_threshold", "influence", node_threshold)
    check_part(f"{verb}: edge_threshold", "influence", edge_threshold)


def check_node(what: str, graph: AttributionGraph, node: Any) -> None:
    """ValueError unless it is the number of a node; `what` asks."""
    if isinstance(node, bool) or not isinstance(node, int | np.integer) or not 0 <= node < len(graph.kept):
        raise ValueError(
            f"{what}: the graph has nodes 0 to {len(graph.kept) - 1}, the rows of graph.nodes; got {node}."
        )

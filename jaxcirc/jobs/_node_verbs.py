"""Batch jobs over the nodes of dictionaries: their effects, and the edges between them."""

import dataclasses
from typing import ClassVar

import numpy as np

from .._checks import check_threshold
from .._sites import Site
from ..attribution import AbstractMethod, check_method, edge_effects, EdgeEffects, Gradient, node_effects, NodeEffects
from ..circuits import METRIC
from ..data import Prompts
from ..models import Transformer
from ._verbs import above, AbstractVerb, Columns, joined, ROW, Saes


_EDGE = {"source_site": "name", "source_pos": "int", "source_unit": "int"}
_NODE = {"site": "name", "pos": "int", "unit": "int"}


def _sites(saes: Saes) -> list[Site]:
    return sorted(saes)


@dataclasses.dataclass(frozen=True)
class JobOfNodes(AbstractVerb):
    """`jc.node_effects`: a row for each node of a prompt with `|effect| > node_threshold`; unit `d_sae` is the dictionary's error."""

    name: ClassVar[str] = "node-effects"
    columns: ClassVar[dict[str, str]] = {**_NODE, "effect": "value"}
    takes_dictionaries: ClassVar[bool] = True

    method: AbstractMethod = dataclasses.field(default_factory=Gradient)
    node_threshold: float = 0.1

    def __post_init__(self):
        check_method(self.method)
        check_threshold(f"{self.name}: node_threshold", self.node_threshold)

    def names(self, model: Transformer, saes: Saes) -> dict[str, list[str]]:
        return {"site": [str(site) for site in _sites(saes)]}

    def rows(self, model: Transformer, saes: Saes, prompts: Prompts) -> Columns:
        return _of_nodes(saes, _effects(self.method, model, saes, prompts), self.node_threshold)


@dataclasses.dataclass(frozen=True)
class JobOfEdges(AbstractVerb):
    """`jc.edge_effects`: a row for each edge with `|effect| > edge_threshold` into a node with `|effect| > node_threshold`, from any node
    that moves; and for what such a source does to the metric along no other node, whose `site` is `metric`.
    """

    name: ClassVar[str] = "edges"
    columns: ClassVar[dict[str, str]] = {**_EDGE, **_NODE, "effect": "value"}
    takes_dictionaries: ClassVar[bool] = True
    upstream: ClassVar[str] = "active"

    method: AbstractMethod = dataclasses.field(default_factory=Gradient)
    node_threshold: float = 0.1
    edge_threshold: float = 0.02

    def __post_init__(self):
        check_method(self.method)
        check_threshold(f"{self.name}: node_threshold", self.node_threshold)
        check_threshold(f"{self.name}: edge_threshold", self.edge_threshold)

    def names(self, model: Transformer, saes: Saes) -> dict[str, list[str]]:
        sites = [str(site) for site in _sites(saes)]
        return {"source_site": sites, "site": [*sites, METRIC]}

    def rows(self, model: Transformer, saes: Saes, prompts: Prompts) -> Columns:
        nodes = _effects(self.method, model, saes, prompts)
        return _of_edges(saes, self._edges(model, saes, prompts, nodes), self.edge_threshold)

    def _edges(self, model: Transformer, saes: Saes, prompts: Prompts, nodes: NodeEffects) -> EdgeEffects:
        given = (model, saes, prompts.clean, prompts.corrupt, prompts.metric(), nodes)
        return edge_effects(*given, threshold=self.node_threshold, upstream=self.upstream, mask=prompts.mask)


@dataclasses.dataclass(frozen=True)
class JobOfCircuits(JobOfEdges):
    """The circuit of each prompt by itself: its nodes with `|effect| > node_threshold`, in rows without a source, and the edges between
    these and into the metric with `|effect| > edge_threshold`.
    """

    name: ClassVar[str] = "circuit"
    upstream: ClassVar[str] = "selected"

    def rows(self, model: Transformer, saes: Saes, prompts: Prompts) -> Columns:
        found = _effects(self.method, model, saes, prompts)
        nodes = _of_nodes(saes, found, self.node_threshold)
        nothing = np.full(len(nodes[ROW]), -1, np.int32)
        edges = _of_edges(saes, self._edges(model, saes, prompts, found), self.edge_threshold)
        ends = [edges[name].astype(np.int64) for name in (ROW, "source_site", "source_pos", "source_unit")]
        kept = np.isin(_keys(*ends), _keys(*(nodes[name].astype(np.int64) for name in (ROW, "site", "pos", "unit"))))
        return joined([nodes | dict.fromkeys(_EDGE, nothing), {name: values[kept] for name, values in edges.items()}])


def _keys(*columns: np.ndarray) -> np.ndarray:
    """One entry for each row of several columns, equal where they are."""
    return np.rec.fromarrays(columns)


def _effects(method: AbstractMethod, model: Transformer, saes: Saes, prompts: Prompts) -> NodeEffects:
    given = (model, saes, prompts.clean, prompts.corrupt, prompts.metric())
    return node_effects(*given, method=method, mask=prompts.mask)


def _of_nodes(saes: Saes, found: NodeEffects, threshold: float) -> Columns:
    parts = []
    for number, site in enumerate(_sites(saes)):
        index, values = found.listed[site].instances()
        kept = above("Effects of nodes", values, threshold)
        parts.append(_table(index[kept], number) | {"effect": values[kept]})
    return joined(parts)


def _table(index: np.ndarray, site: int) -> Columns:
    example, pos, unit = index.T.astype(np.int32)
    return {ROW: example, "site": np.full(len(example), site, np.int32), "pos": pos, "unit": unit}


def _of_edges(saes: Saes, found: EdgeEffects, threshold: float) -> Columns:
    sites, parts = _sites(saes), []
    number = {site: i for i, site in enumerate(sites)}
    of_source = lambda columns: {f"source_{name}": columns[name] for name in _NODE}
    for (source, target), (targets, sources, values) in found.coo.items():
        kept = above("Effects of edges", values, threshold)
        ends = _table(targets[kept], number[target]) | of_source(_table(sources[kept], number[source]))
        parts.append(ends | {"effect": values[kept]})
    for source, dense in found.to_metric.items():
        values = np.asarray(dense)
        index = np.argwhere(above("Effects of edges", values, threshold))
        columns = _table(index, number[source])
        nowhere = np.full(len(index), -1, np.int32)
        metric = {"site": np.full(len(index), len(sites), np.int32), "pos": nowhere, "unit": nowhere}
        parts.append({ROW: columns[ROW], **of_source(columns), **metric, "effect": values[tuple(index.T)]})
    return joined(parts)

"""Attribution graphs as JSON, for circuit-tracer's viewer and Neuronpedia."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from .._version import __version__
from . import _schema
from ._qk import QKAttribution
from ._select import UNSELECTED
from ._table import BIAS, ERROR, LATENT, LOGIT, NOWHERE, POSITION, Table, TOKEN
from ._write_qk import traced


class Kept(NamedTuple):
    """What is written of a graph: the nodes that are kept, and the rows `[kept_target kept]` of those that have one, `targets`, with the
    edges that are kept; of each node the share of all influence that it and stronger ones make up; what the graph is of, and the
    thresholds of nodes and edges.
    """

    table: Table
    targets: Int[np.ndarray, " kept_target"]
    rows: Float[np.ndarray, "kept_target kept"]
    edges: Bool[np.ndarray, "kept_target kept"]
    shares: Float[np.ndarray, " kept"]
    meta: dict[str, Any]
    thresholds: tuple[float, float]


_ATTENTION = "hook_attn_out"
_QK = "qk_tracing_results"


def graph_document(
    graph: Kept,
    tokens: Sequence[str],
    outputs: Sequence[str],
    qk: Mapping[int, QKAttribution],
    *,
    slug: str,
    scan: str,
) -> dict[str, Any]:
    """Makes what the file holds; `tokens` and `outputs` are texts: the prompt's, and those of logits; `qk`: scores by node."""
    table, meta = graph.table, graph.meta
    names, shares = node_names(graph), graph.shares.tolist()
    texts = dict(zip(np.flatnonzero(table.kind == LOGIT).tolist(), outputs, strict=True))
    found = traced({names[i]: (each, node_names(graph._replace(table=each.records))) for i, each in qk.items()})
    results = meta.get(_QK, {}) | found.results
    nodes = []
    for i, name in enumerate(names):
        nodes.append(_entry(graph, i, name, shares[i], tokens, texts))
        if name in results:
            nodes[-1][_QK] = results[name]
    row, source = np.nonzero(graph.edges)
    weights = graph.rows[row, source].tolist()
    links = [
        _schema.link(names[s], names[t], w)
        for s, t, w in zip(source.tolist(), graph.targets[row].tolist(), weights, strict=True)
    ]
    more = {"max_feature_nodes": meta.get("max_nodes")}
    made = _schema.document(
        slug=slug,
        scan=scan,
        dictionaries=sorted(
            meta.get("dictionaries") or {table.sites[site] for site in table.site[table.kind == LATENT]}
        ),
        tokens=tokens,
        nodes=nodes,
        links=links,
        node_threshold=graph.thresholds[0],
        pruning_settings=dict(zip(("node_threshold", "edge_threshold"), graph.thresholds, strict=True)),
        generation_settings={name: value for name, value in more.items() if value is not None},
        info={"generator": {"name": "jaxcirc", "version": __version__}},
    )
    only = {name: each for name, each in found.named.items() if name not in set(names)}
    of = lambda name, table, i: _entry(graph._replace(table=table), i, name, None, tokens, {})
    if beside := meta.get("qk_only_nodes", {}) | {name: of(name, *each) for name, each in only.items()}:
        made["qk_only_nodes"] = beside
    return made


def node_names(graph: Kept) -> list[str]:
    """The id of each node, by which the file names it: of no two the same."""
    table = graph.table
    columns = zip(*(getattr(table, name).tolist() for name in ("kind", "site", "layer", "pos", "unit")), strict=True)
    return [_name(graph, kind, table.sites[site], layer, pos, unit) for kind, site, layer, pos, unit in columns]


def _name(graph: Kept, kind: int, site: str, layer: int, pos: int, unit: int) -> str:
    where = f"a{layer}" if site.endswith(_ATTENTION) else str(layer)  # the format knows one dictionary a layer
    if kind == LATENT:
        return f"{where}_{unit}_{pos}"
    if kind == ERROR:
        return f"{'rest' if unit == UNSELECTED else 'err'}_{where}_{pos}"
    if kind == TOKEN:
        return f"E_{unit}_{pos}"
    if kind == POSITION:
        return f"P_{pos}"
    if kind == BIAS:
        return "bias" if layer == NOWHERE else f"bias_{where}_{pos}"
    return f"{layer + 1}_{_output(graph, unit)}_{pos}"


def _output(graph: Kept, unit: int) -> int:
    """The number of an output: a token, or for a direction one behind all tokens."""
    return unit if graph.meta.get("targets") is None else graph.meta["d_vocab"] + unit


def _entry(
    graph: Kept, i: int, name: str, share: float | None, tokens: Sequence[str], outputs: Mapping[int, str]
) -> dict[str, Any]:
    table, length = graph.table, len(graph.meta["tokens"])
    kind, layer, pos, unit = (int(getattr(table, column)[i]) for column in ("kind", "layer", "pos", "unit"))
    site = table.sites[table.site[i]]
    common = {"position": max(pos, 0), "length": length, "influence": share}
    if kind == LATENT:
        feature, label = _schema.feature_number(layer, unit), f"{site} {unit}"
        js_name = None if site.endswith(_ATTENTION) else f"{layer}_{unit}-0"
        activation = float(table.activation[i])
        return _schema.node(
            name,
            layer=str(layer),
            feature=feature,
            kind=_schema.LATENT,
            label=label,
            activation=activation,
            js_name=js_name,
            **common,
        )
    if kind == ERROR:
        label = f"{site} {'latents without rows' if unit == UNSELECTED else 'error'}"
        return _schema.node(name, layer=str(layer), feature=-1, kind=_schema.ERROR, label=label, **common)
    if kind in (TOKEN, POSITION):
        label = f'Emb: "{tokens[pos]}"' if kind == TOKEN else f"Position {pos}"
        js_name = f"E_{unit}-{pos}" if kind == TOKEN else f"P-{pos}"
        return _schema.node(
            name, layer="E", feature=pos, kind=_schema.EMBEDDING, label=label, js_name=js_name, **common
        )
    if kind == BIAS:
        where = ("E", "biases of what reads") if layer == NOWHERE else (str(layer), f"{site} bias")
        return _schema.node(name, layer=where[0], feature=None, kind=_schema.BIAS, label=where[1], **common)
    chance, number = float(table.probability[i]), _output(graph, unit)
    common["influence"] = None
    return _schema.node(
        name,
        layer=str(layer + 1),
        feature=number,
        kind=_schema.LOGIT,
        label=_schema.output_label(outputs[i], chance),
        probability=chance,
        is_target=bool(chance == table.probability.max()),
        js_name=f"L_{number}-{pos}",
        **common,
    )

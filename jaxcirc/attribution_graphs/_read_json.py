"""Attribution graphs from JSON, as this library, circuit-tracer and Neuronpedia write it."""

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._files import read_text
from . import _schema
from ._select import UNSELECTED
from ._table import BIAS, ERROR, LATENT, LOGIT, NOWHERE, POSITION, Table, TOKEN
from ._whole import Whole


_EXPECTED = "an attribution graph in JSON, with metadata, nodes and links, as circuit-tracer and Neuronpedia write it"
_NUMBERS = re.compile(r"(a?)(\d+)_(\d+)_(\d+)")
_QK = "qk_tracing_results"


def read_graph(path: Path) -> tuple[Whole, tuple[float, float]]:
    """Reads a graph file. **Returns:** the graph as it is in the file, and the thresholds of nodes and edges by which it was pruned.

    **Raises:** `ValueError` if it is none, or of another schema version.
    """
    try:
        held = json.loads(read_text(path, expected=_EXPECTED))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno} is not JSON ({error.msg}). Expected {_EXPECTED}.") from None
    if not isinstance(held, dict) or not all(
        isinstance(held.get(name), kind) for name, kind in (("metadata", dict), ("nodes", list), ("links", list))
    ):
        raise ValueError(f"{path} is JSON, and no graph. Expected {_EXPECTED}.")
    about = held["metadata"]
    version = about.get("schema_version", _schema.VERSION)  # graphs from before versions were counted have none
    if version != _schema.VERSION:
        raise ValueError(
            f"{path} is of schema version {version}, and version {_schema.VERSION} is known here. Is there a newer jaxcirc?"
        )
    try:
        return _graph(path, held, about)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: a node or a link is not as schema version 1 has it ({type(error).__name__}: {error})."
        ) from None


def _graph(path: Path, held: Mapping[str, Any], about: Mapping[str, Any]) -> tuple[Whole, tuple[float, float]]:
    nodes = held["nodes"]
    if not nodes:
        raise ValueError(f"{path} has no nodes.")
    kinds = [_kind(node) for node in nodes]
    logits = [node for node, kind in zip(nodes, kinds, strict=True) if kind == LOGIT]
    inner = 1 + max((_layer(node) for node, kind in zip(nodes, kinds, strict=True) if kind != LOGIT), default=NOWHERE)
    n_layers = max([inner, *(int(node["layer"]) - 1 for node in logits)])
    table = _table(nodes, kinds, n_layers)
    # Errors write and are not written to; only latents and outputs have rows.
    targets = np.flatnonzero(~table.sources())
    rows = np.zeros((len(targets), len(nodes)))
    for source, target, weight in _links(path, nodes, kinds, held["links"]):
        rows[np.searchsorted(targets, target), source] += weight
    settings = about.get("pruning_settings") or {}
    given = settings.get("node_threshold", about.get("node_threshold")), settings.get("edge_threshold")
    by_nodes, by_edges = (1.0 if threshold is None else float(threshold) for threshold in given)
    return Whole(table, rows, targets, _meta(held, about, nodes, table, n_layers)), (by_nodes, by_edges)


def _kind(node: Mapping[str, Any]) -> int:
    kind, name = str(node["feature_type"]), str(node["node_id"])
    if kind == _schema.LOGIT:
        return LOGIT
    if kind == _schema.EMBEDDING:
        return POSITION if name.startswith("P_") else TOKEN
    if kind == _schema.BIAS:
        return BIAS
    return ERROR if kind.endswith("error") else LATENT


def _layer(node: Mapping[str, Any], otherwise: int = NOWHERE) -> int:
    return int(node["layer"]) if str(node["layer"]).isdecimal() else otherwise


def _table(nodes: list[Mapping[str, Any]], kinds: list[int], n_layers: int) -> Table:
    sites: dict[str, int] = {}
    named = [sites.setdefault(_site(node, kind), len(sites)) for node, kind in zip(nodes, kinds, strict=True)]
    first = min((int(node["ctx_idx"]) for node, kind in zip(nodes, kinds, strict=True) if kind == TOKEN), default=0)
    of_latents = lambda value, kind: float("nan") if kind != LATENT or value is None else float(value)
    number = lambda values: np.array(list(values), np.int32)
    both = list(zip(nodes, kinds, strict=True))
    nowhere = [kind == BIAS and _layer(node) == NOWHERE for node, kind in both]
    return Table(
        sites=tuple(sites),
        kind=np.array(kinds, np.int8),
        site=number(named),
        layer=number(n_layers if kind == LOGIT else _layer(node) for node, kind in both),
        pos=number(NOWHERE if none else node["ctx_idx"] for node, none in zip(nodes, nowhere, strict=True)),
        unit=number(_unit(node, kind, first) for node, kind in both),
        activation=np.array([of_latents(node.get("activation"), kind) for node, kind in both], float),
        value=np.full(len(nodes), np.nan),
        probability=np.array([float(node.get("token_prob") or 0) if kind == LOGIT else 0.0 for node, kind in both]),
    )


def _site(node: Mapping[str, Any], kind: int) -> str:
    """The site of a node: as its label says in files of this library, else an MLP's output."""
    if kind in (TOKEN, POSITION):
        return "hook_embed" if kind == TOKEN else "hook_pos_embed"
    if kind == LOGIT:
        return "logits"
    layer = _layer(node)
    if layer == NOWHERE:
        return ""
    said = str(node.get("clerp") or "").partition(" ")[0]
    return said if said.startswith(f"blocks.{layer}.") else f"blocks.{layer}.hook_mlp_out"


def _unit(node: Mapping[str, Any], kind: int, first: int) -> int:
    """The latent, or the token: as the id says, which in all files is made of them, or else the number of the feature. Position
    embeddings are counted from the prompt's `first` token, behind its padding.
    """
    name = str(node["node_id"])
    feature: Any = node.get("feature")
    if kind == LATENT:
        match, layer = _NUMBERS.fullmatch(name), _layer(node)
        if match and int(match[2]) == layer:
            return int(match[3])
        of_layer, unit = _schema.layer_and_unit(int(feature))
        return unit if of_layer == layer else int(feature)
    if kind == ERROR:
        return UNSELECTED if name.startswith("rest_") else NOWHERE
    if kind in (TOKEN, LOGIT):
        parts = name.split("_")
        return int(parts[1]) if len(parts) == 3 and parts[1].isdecimal() else int(feature)
    return int(node["ctx_idx"]) - first if kind == POSITION else NOWHERE


def _links(
    path: Path, nodes: list[Mapping[str, Any]], kinds: list[int], links: Iterable[Mapping[str, Any]]
) -> Iterable[tuple[int, int, float]]:
    """Yields links as numbers of source and target, and weight."""
    named: dict[str, list[int]] = {}
    for i, node in enumerate(nodes):
        named.setdefault(str(node["node_id"]), []).append(i)
    shared = {name: numbers for name, numbers in named.items() if len(numbers) > 1}
    writers_only = (ERROR, TOKEN, POSITION, BIAS)
    met: dict[tuple[str, str], int] = {}
    unclear = 0
    for each in links:
        source, target = str(each["source"]), str(each["target"])
        if missing := [name for name in (source, target) if name not in named]:
            raise ValueError(f"{path}: a link names the node {missing[0]!r}, and there is none of this id.")
        into = [i for i in named[target] if kinds[i] not in writers_only]
        if not into:
            raise ValueError(f"{path}: a link leads to {target!r}, a node that reads nothing.")
        # Of two nodes of one id the latent comes first, in the list of nodes and in that of links.
        nth = met[source, target] = met.get((source, target), -1) + 1
        numbers = named[source]
        unclear += source in shared and nth == 0
        yield numbers[min(nth, len(numbers) - 1)], into[0], float(each["weight"])
    unclear -= sum(n > 0 for (source, _), n in met.items() if source in shared)
    if unclear:
        warnings.warn(
            f"{path}: {len(shared)} ids are each those of a latent and of an error, as circuit-tracer gives them; {unclear} links from "
            "such an id are taken for the latent's.",
            stacklevel=6,
        )


def _meta(
    held: Mapping[str, Any], about: Mapping[str, Any], nodes: list[Mapping[str, Any]], table: Table, n_layers: int
) -> dict[str, Any]:
    prompt = list(about.get("prompt_tokens") or [])
    ids = dict(zip(table.pos[table.kind == TOKEN].tolist(), table.unit[table.kind == TOKEN].tolist(), strict=True))
    traced = {str(node["node_id"]): node[_QK] for node in nodes if node.get(_QK)}
    labels = (
        re.fullmatch(r'Output "(.*)" \(p=.*\)', str(node.get("clerp")), re.DOTALL)
        for node in nodes
        if _kind(node) == LOGIT
    )
    extra: dict[str, Any] = {_QK: traced} if traced else {}
    if held.get("qk_only_nodes"):
        extra["qk_only_nodes"] = held["qk_only_nodes"]
    return {
        "model": about.get("scan") or "",
        "n_layers": n_layers,
        "tokens": [ids.get(i, NOWHERE) for i in range(len(prompt))],
        "real": [min(ids, default=0), max(ids, default=len(prompt) - 1) + 1],  # token nodes stay in any graph
        "prompt_tokens": prompt,
        "output_tokens": [match[1] if match else "" for match in labels],
        "dictionaries": {name: "" for name in about.get("transcoder_list") or []},
        "targets": None,
        "read_from": about.get("slug") or "",
        **extra,
    }

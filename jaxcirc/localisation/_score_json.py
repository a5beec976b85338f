"""The benchmark's JSON files of edge scores."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from .._files import read_text, write_text
from .._words import counted
from ..graph import ComponentGraph
from ._benchmark_names import config_of, graph_of, receiver_names, sender_names
from ._edge_scores import EdgeScores
from ._prune import nodes_in, pruned


EXPECTED = "a file of edge scores, a JSON object with cfg, nodes and edges"


def to_json(scores: EdgeScores, path: Path) -> None:
    """Writes every edge with whether it is in the circuit, and with its score if it has one."""
    graph, senders, receivers = scores.graph, sender_names(scores.graph), receiver_names(scores.graph)
    there = nodes_in(pruned(scores.kept, graph.reads))
    nodes = {name: {"in_graph": bool(here)} for name, here in zip(senders, there, strict=True)}
    for name, score in zip(senders, scores.node_scores.tolist(), strict=True):
        nodes[name] |= {} if math.isnan(score) else {"score": score}
    edges = {}
    for i, j in np.argwhere(graph.edges).tolist():
        score = float(scores.scores[i, j])
        held = {} if math.isnan(score) else {"score": score}
        edges[f"{senders[i]}->{receivers[j]}"] = {**held, "in_graph": bool(scores.kept[i, j])}
    whole = {"cfg": config_of(graph, scores.d_model), "nodes": {**nodes, "logits": {"in_graph": True}}, "edges": edges}
    write_text(path, json.dumps(whole, allow_nan=False))


def parse_json(path: Path) -> EdgeScores:
    """Reads such a file. **Raises:** `ValueError` as `load_scores`."""
    try:
        whole = json.loads(read_text(path, expected=EXPECTED))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno} is not JSON ({error.msg}). Expected {EXPECTED}.") from None
    if not isinstance(whole, dict) or not all(isinstance(whole.get(name), dict) for name in ("nodes", "edges")):
        raise ValueError(f"{path} is not {EXPECTED}.")
    graph, d_model = graph_of(whole.get("cfg"), path)
    scores, kept = _edges(graph, whole["edges"], path)
    return EdgeScores(graph, d_model, scores, kept, _nodes(graph, whole["nodes"], path))


def _edges(
    graph: ComponentGraph, held: dict[str, Any], path: Path
) -> tuple[Float[np.ndarray, "sender receiver"], Bool[np.ndarray, "sender receiver"]]:
    senders, receivers = sender_names(graph), receiver_names(graph)
    scores, kept = np.zeros(graph.edges.shape), np.zeros(graph.edges.shape, bool)
    places = {f"{senders[i]}->{receivers[j]}": (i, j) for i, j in np.argwhere(graph.edges).tolist()}
    if missing := [name for name in places if name not in held]:
        raise ValueError(
            f"{path} lacks {len(missing)} of the model's {counted(len(places), 'edge')}, such as {missing[0]}. Write every edge, with "
            "score 0 where there is none: others count an absent edge as found."
        )
    if unknown := [name for name in held if name not in places]:
        raise ValueError(
            f"{path} has {counted(len(unknown), 'edge')} that the model of its cfg has not, such as {unknown[0]}."
        )
    for name, at in places.items():
        entry = held[name]
        if not isinstance(entry, dict) or not isinstance(entry.get("in_graph"), bool):
            raise ValueError(f"{path}: edge {name}: expected an object with in_graph, true or false, got {entry!r}.")
        scores[at], kept[at] = _number(entry.get("score"), f"{path}: edge {name}"), entry["in_graph"]
    return scores, kept


def _nodes(graph: ComponentGraph, held: dict[str, Any], path: Path) -> Float[np.ndarray, " sender"]:
    scores = np.full(len(graph.senders), np.nan)
    places = {name: i for i, name in enumerate(sender_names(graph))}
    for name, entry in held.items():
        if not isinstance(entry, dict) or name not in {**places, "logits": -1}:
            raise ValueError(f"{path}: node {name} is none of the model of its cfg, or no object.")
        if "neurons" in entry or "neurons_scores" in entry:
            raise ValueError(f"{path} has scores of single neurons (node {name}). Give one of edges, or of nodes.")
        if name in places:
            scores[places[name]] = _number(entry.get("score"), f"{path}: node {name}")
    return scores


def _number(value: Any, where: str) -> float:
    """A score; NaN for none."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where}: the score must be a number, got {value!r}.")
    return float(value)

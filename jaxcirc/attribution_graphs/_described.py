"""What the explorer's page shows of an attribution graph."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from .._sites import Site
from ..explorer import Description, Edge, Node, short
from ._influence import edge_influence, output_weights, Scores
from ._select import UNSELECTED
from ._table import BIAS, ERROR, KINDS, LATENT, LOGIT, NOWHERE, POSITION, Table, TOKEN
from ._write_json import Kept


_FIRST = ("own bias", "embed")
_UNKNOWN = "is not part of a graph."
MISSING = {
    "acts": "Activation over the prompt: the graph has no other position of this latent.",
    "examples": f"What it is on other prompts {_UNKNOWN}",
    "promotes": f"What it writes to the output {_UNKNOWN} jc.decode(model, dictionary.W_dec[unit], dictionary.site) tells it.",
}


def described(
    graph: Kept,
    whole: Table,
    influence: Float[np.ndarray, " kept"],
    scores: Scores,
    tokens: Sequence[str],
    outputs: Sequence[str],
) -> Description:
    """Describes the kept part of a graph: a row for embeddings, for each site that nodes are of, and for logits.

    **Arguments:** - `whole`: all nodes, of which latents' activations at other positions are read. - `influence`: of the kept ones. -
    `tokens`, `outputs`: texts of the prompt and of the logits.
    """
    table = graph.table
    texts = dict(zip(np.flatnonzero(table.kind == LOGIT).tolist(), outputs, strict=True))
    places = [_row(table, i) for i in range(len(table))]
    rows = [*_FIRST, *sorted({place for place in places if place not in _FIRST}, key=Site.parse)]
    rows = [row for row in rows if row in set(places)]
    acts, names = _activations(whole, len(tokens)), [name_of(table, i) for i in range(len(table))]
    nodes = []
    for i, name in enumerate(names):
        kind, pos, unit = (int(getattr(table, column)[i]) for column in ("kind", "pos", "unit"))
        label = _label(kind, unit, texts.get(i, ""))
        about = _about(table, i, acts, texts)
        at = None if pos == NOWHERE else pos
        # Of outputs the influence is their own weight, and they are what all else is looked at for.
        value = float("nan") if kind == LOGIT else float(influence[i])
        nodes.append(Node(name, rows.index(places[i]), at, table.word(i), value, label, about))
    row, source = np.nonzero(graph.edges)
    ends = zip(source.tolist(), graph.targets[row].tolist(), strict=True)
    sizes = edge_influence(graph.rows, graph.targets, output_weights(table))
    edges = [
        Edge(names[s], names[t], weight, influence=size)
        for (s, t), weight, size in zip(
            ends, graph.rows[row, source].tolist(), sizes[row, source].tolist(), strict=True
        )
    ]
    return Description(
        title=f"Attribution graph of {graph.meta.get('model') or 'a model'}",
        facts={
            "method": "derivatives with patterns and norms' scales held",
            "metric": _listed(outputs),
            "prompts": "1",
            "kept of the influence": f"{graph.thresholds[0]:.0%} of nodes, {graph.thresholds[1]:.0%} of edges",
            "replacement score": f"{scores.replacement:.3f}",
            "completeness score": f"{scores.completeness:.3f}",
        },
        nodes=nodes,
        edges=edges,
        rows=[row if row in _FIRST else short(row) for row in rows],
        tokens=tokens,
        value="influence",
        weight="part of the target's pre-activation",
        signed=False,
        remarks=["A node's influence, along all paths to the outputs, has no sign."],
        missing=MISSING,
        settings={name: value for name, value in graph.meta.items() if name not in _LONG},
    )


_LONG = ("qk_tracing_results", "qk_only_nodes", "fingerprints")


def _listed(outputs: Sequence[str]) -> str:
    first = ", ".join(f"“{name}”" for name in outputs[:3])
    return f"{first} and {len(outputs) - 3} more outputs" if len(outputs) > 3 else first


def _row(table: Table, i: int) -> str:
    kind, site = table.kind[i], table.sites[table.site[i]]
    if kind in (TOKEN, POSITION):
        return "embed"
    return site or "own bias"


def name_of(table: Table, i: int) -> str:
    """Names a node by the site and the unit, as nodes of circuits are named."""
    kind, pos, unit = (int(getattr(table, column)[i]) for column in ("kind", "pos", "unit"))
    site = table.sites[table.site[i]]
    if pos == NOWHERE:
        return "own bias" if kind == BIAS else f"{site}/{unit}"
    if kind in (TOKEN, POSITION):
        return f"{KINDS[kind]}@{pos}"
    what = {LATENT: str(unit), LOGIT: str(unit), BIAS: "bias"}
    return f"{site}/{what.get(kind, 'rest' if unit == UNSELECTED else 'error')}@{pos}"


def _label(kind: int, unit: int, output: str) -> str:
    return {LATENT: str(unit), ERROR: "rest" if unit == UNSELECTED else "ε", LOGIT: output.strip()[:6]}.get(kind, "")


def _about(
    table: Table, i: int, acts: Mapping[tuple[str, int], list[float | None]], outputs: Mapping[int, str]
) -> dict[str, Any]:
    kind, site, unit = int(table.kind[i]), table.sites[table.site[i]], int(table.unit[i])
    if kind == LOGIT:
        return {
            "note": f"output “{outputs[i]}”",
            "facts": {"probability": float(table.probability[i]), "value": float(table.value[i])},
        }
    facts: dict[str, Any] = {"site": site} if site else {}
    if kind != LATENT:
        return {"facts": facts}
    known = acts[site, unit]
    seen = sum(act is not None for act in known) > 1
    return {"acts": known if seen else [], "facts": {**facts, "unit": unit, "activation": float(table.activation[i])}}


def _activations(table: Table, length: int) -> dict[tuple[str, int], list[float | None]]:
    """What is known of each latent at each position; `None` where it has no node, and so did not fire or was not among the strongest."""
    found: dict[tuple[str, int], list[float | None]] = {}
    for i in np.flatnonzero(table.kind == LATENT).tolist():
        each = found.setdefault((table.sites[table.site[i]], int(table.unit[i])), [None] * length)
        each[int(table.pos[i])] = float(table.activation[i])
    return found

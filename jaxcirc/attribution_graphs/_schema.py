"""The attribution-graph format, schema version 1, which circuit-tracer's viewer and Neuronpedia open: the parts that every file has."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any


VERSION = 1
LATENT, ERROR, EMBEDDING, LOGIT, BIAS = (
    "cross layer transcoder",
    "mlp reconstruction error",
    "embedding",
    "logit",
    "bias",
)


def document(
    *,
    slug: str,
    scan: str,
    dictionaries: Sequence[str],
    tokens: Sequence[str],
    nodes: Sequence[Mapping[str, Any]],
    links: Sequence[Mapping[str, Any]],
    **metadata: Any,
) -> dict[str, Any]:
    """Makes what a file holds. **Arguments:** - `tokens`: the prompt's, as text. - `metadata`: more of it."""
    return {
        "metadata": {
            "slug": _identifier(slug),
            "scan": _identifier(scan),
            "transcoder_list": list(dictionaries),
            "prompt_tokens": list(tokens),
            "prompt": "".join(tokens),
            **metadata,
            "schema_version": VERSION,
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": None, "sg_pos": ""},
        "nodes": list(nodes),
        "links": list(links),
    }


def node(
    name: str,
    *,
    layer: str,
    position: int,
    length: int,
    feature: int | None,
    kind: str,
    label: str,
    influence: float | None = None,
    activation: float | None = None,
    probability: float = 0.0,
    is_target: bool = False,
    js_name: str | None = None,
) -> dict[str, Any]:
    """Makes the entry of a node, `name` its id; `js_name` is what the viewer calls it, by default the id and "-0"."""
    return {
        "node_id": name,
        "feature": feature,
        "layer": layer,
        "ctx_idx": position,
        "feature_type": kind,
        "token_prob": probability,
        "is_target_logit": is_target,
        "run_idx": 0,
        "reverse_ctx_idx": length - 1 - position,
        "jsNodeId": f"{name}-0" if js_name is None else js_name,
        "clerp": label,
        "influence": influence,
        "activation": activation,
    }


def link(source: str, target: str, weight: float) -> dict[str, Any]:
    """Makes the entry of an edge."""
    return {"source": source, "target": target, "weight": weight}


def output_label(name: str, probability: float) -> str:
    """The label of an output, of which the viewer reads the probability."""
    return f'Output "{name}" (p={probability:.3f})'


def feature_number(layer: int, unit: int) -> int:
    """One number for a latent of a layer, by Cantor's pairing."""
    return (layer + unit) * (layer + unit + 1) // 2 + unit


def layer_and_unit(number: int) -> tuple[int, int]:
    """The layer and the latent that `feature_number` made a number of."""
    diagonal = (math.isqrt(8 * number + 1) - 1) // 2
    unit = number - diagonal * (diagonal + 1) // 2
    return diagonal - unit, unit


def _identifier(text: str) -> str:
    """Makes of a name one that sites of graphs take: letters, digits, `_`, `.` and `-`."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-") or "graph"

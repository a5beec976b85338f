"""A circuit in the attribution-graph format, which circuit-tracer's viewer and Neuronpedia open (schema version 1)."""

import itertools
from collections.abc import Sequence
from typing import Any

from ..._sites import Site
from .._meta import CircuitMeta
from .._rows import EdgeRow, METRIC, NodeRow, note_of


def attribution_graph(
    nodes: Sequence[NodeRow], edges: Sequence[EdgeRow], meta: CircuitMeta, *, slug: str
) -> dict[str, Any]:
    """Makes what the file holds. **Arguments:** - `nodes`: with positions, the strongest first. - `meta`: with the tokens.

    The format knows one dictionary a layer; here sites of one layer are told apart by the nodes' ids and labels. Errors have ids of their
    own, which in the format's own files they share with latents.
    """
    tokens, notes = list(meta.tokens or ()), meta.annotations or {}
    layers = 1 + max((Site.parse(node.site).layer or 0 for node in nodes), default=0)
    size = sum(abs(node.effect) for node in nodes) or 1.0
    shares = itertools.accumulate(abs(node.effect) / size for node in nodes)
    listed = [_node(node, share, note_of(notes, node), len(tokens)) for node, share in zip(nodes, shares, strict=True)]
    metric = meta.metric or METRIC
    end = {
        **_common(METRIC, str(layers), len(tokens) - 1, len(tokens)),
        "feature": 0,
        "feature_type": "logit",
        "clerp": f'Output "{metric}" (p=1.000)',
        "is_target_logit": True,
        "token_prob": 1.0,
        "influence": None,
        "activation": None,
    }
    return {
        "metadata": {
            "slug": slug,
            "scan": meta.model or "",
            "transcoder_list": sorted({node.site for node in nodes}),
            "prompt_tokens": tokens,
            "prompt": "".join(tokens),
            "node_threshold": meta.node_threshold,
            "schema_version": 1,
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": None, "sg_pos": ""},
        "nodes": [*listed, end],
        "links": [{"source": edge.source, "target": edge.target, "weight": edge.weight} for edge in edges],
    }


def _node(node: NodeRow, share: float, note: str, length: int) -> dict[str, Any]:
    error = node.kind == "error"
    layer = Site.parse(node.site).layer or 0
    return {
        **_common(node.node, str(layer), int(node.pos or 0), length),
        "feature": -1 if error else (layer + node.unit) * (layer + node.unit + 1) // 2 + node.unit,  # Cantor's pairing
        "feature_type": "mlp reconstruction error" if error else "cross layer transcoder",
        "clerp": f"{node.site} {node.label}{f': {note}' if note else ''}",
        "is_target_logit": False,
        "token_prob": 0.0,
        "influence": share,
        "activation": None,
    }


def _common(name: str, layer: str, position: int, length: int) -> dict[str, Any]:
    return {
        "node_id": name,
        "layer": layer,
        "ctx_idx": position,
        "run_idx": 0,
        "reverse_ctx_idx": length - 1 - position,
        "jsNodeId": f"{name}-0",
    }

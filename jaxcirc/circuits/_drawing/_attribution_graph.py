"""A circuit in the attribution-graph format, which circuit-tracer's viewer and Neuronpedia open."""

import itertools
from collections.abc import Sequence
from typing import Any

from ..._sites import Site
from ...attribution_graphs import _schema
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
    end = _schema.node(
        METRIC,
        layer=str(layers),
        position=len(tokens) - 1,
        length=len(tokens),
        feature=0,
        kind=_schema.LOGIT,
        label=_schema.output_label(meta.metric or METRIC, 1.0),
        probability=1.0,
        is_target=True,
    )
    return _schema.document(
        slug=slug,
        scan=meta.model or "",
        dictionaries=sorted({node.site for node in nodes}),
        tokens=tokens,
        nodes=[*listed, end],
        links=[_schema.link(edge.source, edge.target, edge.weight) for edge in edges],
        node_threshold=meta.node_threshold,
    )


def _node(node: NodeRow, share: float, note: str, length: int) -> dict[str, Any]:
    error = node.kind == "error"
    layer = Site.parse(node.site).layer or 0
    return _schema.node(
        node.node,
        layer=str(layer),
        position=int(node.pos or 0),
        length=length,
        feature=-1 if error else _schema.feature_number(layer, node.unit),
        kind=_schema.ERROR if error else _schema.LATENT,
        label=f"{node.site} {node.label}{f': {note}' if note else ''}",
        influence=share,
    )

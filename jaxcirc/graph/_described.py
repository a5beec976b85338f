"""What the explorer's page shows of a circuit of components."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ..explorer import Description, Edge, Node


KINDS = {"embed": "embedding", "pos_embed": "embedding", "head": "head", "mlp": "MLP", "logits": "logit"}
MISSING = {
    "note": "What a component does is not part of its edges' scores.",
    "acts": "Where a head attends: jc.patching.head_patterns(…) and jc.draw_patterns(…) show it.",
}


class Component(NamedTuple):
    """A component as a node: its name, what it is, its layer (-1 for embeddings, the number of layers for logits)."""

    name: str
    part: str
    layer: int

    @property
    def row(self) -> str:
        if self.part in ("embed", "pos_embed", "logits"):
            return "logits" if self.part == "logits" else "embed"
        return f"{'mlp' if self.part.startswith('mlp') else 'attn'} {self.layer}"


class Edges(NamedTuple):
    """The edges of a circuit and their scores, `None` if only the circuit is known; over how many prompts these are a mean, if over any.
    With one position for all where positions are not apart.
    """

    kept: Bool[np.ndarray, "position sender receiver"]
    scores: Float[np.ndarray, "position sender receiver"] | None
    prompts: int | None


def check_edges(edges: Bool[np.ndarray, "..."], axes: str, scores: Any, kept: Any) -> Edges:
    """What is drawn of a graph with these `edges`. **Raises:** `ValueError` for neither scores nor a circuit, and for another shape."""
    what = "ComponentGraph.to_html"
    if scores is None and kept is None:
        raise ValueError(f"{what}: expected scores, or the edges that are kept, or both.")
    found = None if scores is None else np.asarray(scores, np.float64)
    prompts = len(found) if found is not None and found.ndim == edges.ndim + 1 else None
    if found is not None and prompts:
        found = found.mean(0)
    for name, value in (("scores", found), ("kept", None if kept is None else np.asarray(kept))):
        if value is not None and value.shape != edges.shape:
            raise ValueError(
                f"{what}: {name} are of the graph's edges, {axes} = {list(edges.shape)}; got {list(value.shape)}. Give those of this graph."
            )
    found = None if found is None else np.nan_to_num(found)
    mask = edges & (found != 0 if kept is None else np.asarray(kept, bool))
    flat = (-1, *edges.shape[-2:])
    return Edges(mask.reshape(flat), None if found is None else found.reshape(flat), prompts)


def described(
    senders: Sequence[Component],
    receivers: Sequence[tuple[Component, str]],
    found: Edges,
    *,
    apart: bool,
    title: str,
    facts: Mapping[str, str],
    tokens: Sequence[str] | None,
) -> Description:
    """Describes a circuit: nodes are components, and of each edge into a head it is said whether its query, key or value reads.

    **Arguments:** - `receivers`: of each the component that it is an input of, and which, `""` for the only one. - `apart`: whether
    positions are.
    """
    kept, scores, _ = found
    if tokens is not None and apart and len(tokens) != len(kept):
        raise ValueError(
            f"ComponentGraph.to_html: tokens are the prompt's, one for each of the graph's {len(kept)} positions; got {len(tokens)}."
        )
    components = {each.name: each for each in [*senders, *(owner for owner, _ in receivers)]}
    order = sorted(components.values(), key=lambda each: (each.layer, each.part.startswith("mlp")))
    rows = list(dict.fromkeys(each.row for each in order))
    out: dict[tuple[str, int], float] = {}
    edges, touched = [], set[tuple[str, int]]()
    for at, u, v in np.argwhere(kept).tolist():
        (owner, part), weight = receivers[v], 1.0 if scores is None else float(scores[at, u, v])
        ends = (senders[u].name, at), (owner.name, at)
        touched.update(ends)
        out[ends[0]] = out.get(ends[0], 0.0) + weight
        source, target = (f"{name}@{at}" if apart else name for name, _ in ends)
        edges.append(Edge(source, target, weight, part))
    nodes = []
    for each in order:
        for at in range(len(kept)):
            if (each.name, at) not in touched:
                continue
            value = float("nan") if scores is None or each.part == "logits" else out.get((each.name, at), 0.0)
            name, pos = (f"{each.name}@{at}", at) if apart else (each.name, None)
            nodes.append(Node(name, rows.index(each.row), pos, KINDS.get(each.part, "bias"), value, _label(each)))
    remarks = [
        "A node's value is the sum of its edges out."
        if scores is not None
        else "Edges are kept or not; there are no scores."
    ]
    if not apart:
        remarks.append("Positions were summed: edges are those between components at all positions.")
    return Description(
        title=title,
        facts=facts,
        nodes=nodes,
        edges=edges,
        rows=rows,
        tokens=tokens if apart else None,
        value="score of edges out" if scores is not None else "no value",
        weight="score" if scores is not None else "kept or not",
        remarks=remarks,
        missing=MISSING,
    )


def _label(component: Component) -> str:
    return component.name.rpartition(".h")[2] if component.part == "head" else ""

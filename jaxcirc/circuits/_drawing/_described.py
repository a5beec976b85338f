"""What the explorer's page shows of a circuit."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..._sites import Site
from ..._words import counted
from ...explorer import Description, Edge, Node, short
from .._meta import CircuitMeta
from .._rows import EdgeRow, METRIC, NodeRow, note_of


_DESCRIBE = "circuit.annotate(latents=jc.circuits.describe_latents(circuit, model, saes, [clean, corrupt], tokenizer))"
MISSING = {
    "note": "Annotation: circuit.annotate(annotations=jc.load_annotations(file)) adds it.",
    "acts": f"Activation over the prompt: {_DESCRIBE} adds it, for a circuit with positions.",
    "examples": f"Strongest examples: {_DESCRIBE} adds them.",
    "promotes": f"Output tokens that it raises and lowers: {_DESCRIBE} adds them.",
}


def described(nodes: Sequence[NodeRow], edges: Sequence[EdgeRow], meta: CircuitMeta) -> Description:
    """Describes a circuit: a row a site, the metric above them, at the last position that has nodes."""
    sites = sorted({node.site for node in nodes}, key=Site.parse)
    row = {site: i for i, site in enumerate(sites)}
    summed = all(node.pos is None for node in nodes)
    notes, latents = meta.annotations or {}, meta.latents or {}
    drawn = [
        Node(
            node.node,
            row[node.site],
            node.pos,
            node.kind,
            node.effect,
            node.label,
            _about(node, note_of(notes, node), latents),
        )
        for node in nodes
    ]
    if any(edge.target == METRIC for edge in edges):
        last = max((node.pos for node in nodes if node.pos is not None), default=0)
        last = None if summed else last
        drawn.append(Node(METRIC, len(sites), last, "metric", float("nan"), "", counted=False))
    return Description(
        title=meta.title or f"A circuit of {meta.model or 'a model'}",
        facts=_facts(meta),
        nodes=drawn,
        edges=[Edge(*edge) for edge in edges],
        rows=[*map(short, sites), METRIC],
        tokens=None if summed else meta.tokens,
        value="effect",
        weight="effect through the edge",
        remarks=_remarks(meta, summed and bool(nodes)),
        missing=MISSING,
        settings={name: value for name, value in meta.items() if name not in ("annotations", "latents")},
    )


def _about(node: NodeRow, note: str, latents: Mapping[str, Any]) -> dict[str, Any]:
    known = dict(latents.get(f"{node.site}/{node.unit}", {})) if node.kind == "latent" else {}
    return {**known, "note": note, "facts": {"site": node.site, "unit": node.label}}


def _facts(meta: CircuitMeta) -> dict[str, str]:
    facts = {"model": meta.model or "", "method": _method(meta.method), "metric": meta.metric or ""}
    facts["prompts"] = "" if meta.prompts is None else str(meta.prompts)
    if meta.clean_metric is not None and meta.total_effect is not None:
        facts["clean metric"] = f"{meta.clean_metric:z.3f}"
        facts["total effect"] = f"{meta.total_effect:+z.3f}"
    return {name: said for name, said in facts.items() if said}


def _method(method: Mapping[str, Any] | None) -> str:
    if not method:
        return ""
    settings = ", ".join(f"{name} {value}" for name, value in method.items() if name != "name")
    return f"{method.get('name', '')} ({settings})" if settings else str(method.get("name", ""))


def _remarks(meta: CircuitMeta, summed: bool) -> list[str]:
    prompts = "prompts" if meta.prompts is None else counted(meta.prompts, "prompt")
    remarks = [f"Effects are corrupt − clean, mean over {prompts}."]
    if summed:
        remarks.append(
            "Positions were summed: a node stands for its latent at all positions, and no prompt's tokens are shown."
        )
    elif meta.prompts is not None and meta.prompts > 1 and meta.tokens:
        remarks.append("The tokens are those of the first prompt.")
    return remarks

"""Which nodes feed which directly: the wiring of a circuit.

A circuit's nodes sit at the sites that have dictionaries. The edge from `u` to `d` is the effect of `u` on `d` along every path that
meets no other of these sites; so whatever lies between and is itself a node is held. For dictionaries on the outputs of every sublayer
and block this gives the wiring of Marks et al. 2024 (arXiv 2403.19647, appendix A): `resid -> attn`, `resid -> mlp` past attention,
`attn -> mlp`, and all three into the next `resid`. Other sets of sites get theirs from the same rule.
"""

import dataclasses
from collections.abc import Iterable, Mapping

from jaxtyping import Array, Float

from .._precision import wide
from .._sites import Kind, layer_of, Site
from ..models import Transformer
from ..saes import AbstractDictionary
from ._sites import next_of


RESIDUAL = (Kind.RESID_PRE, Kind.RESID_MID, Kind.RESID_POST)
SUPPORTED = (Kind.EMBED, *RESIDUAL, Kind.Z, Kind.ATTN_OUT, Kind.MLP_POST, Kind.MLP_OUT)


@dataclasses.dataclass(frozen=True)
class Wire:
    """A direct connection: `source` reaches `target` while `frozen`, the nodes between them, are held."""

    source: Site
    target: Site
    frozen: tuple[Site, ...]


def wiring(model: Transformer, nodes: Iterable[Site] | Mapping[Site, AbstractDictionary]) -> list[Wire]:
    """Every direct connection between `nodes`, in execution order of the target, nearest source first; given their dictionaries, by way
    of what transcoders read too.

    **Raises:** `ValueError` for a site that cannot hold nodes, or two that hold the same value (`resid_post` of a block and
    `resid_pre` of the next).
    """
    saes, nodes = nodes if isinstance(nodes, Mapping) else {}, sorted(nodes)
    check_nodes(nodes)
    reached = {source: next_of(model, source, nodes, saes) for source in nodes}
    wires = []
    for number, target in enumerate(nodes):
        for first in reversed(range(number)):
            if target in reached[nodes[first]]:
                wires.append(Wire(nodes[first], target, tuple(nodes[first + 1 : number])))
    return wires


def reaches_output(model: Transformer, nodes: Iterable[Site]) -> dict[Site, tuple[Site, ...]]:
    """The nodes with a path to the logits that meets no other node, and for each the later nodes, to be held."""
    nodes = sorted(nodes)
    logits = Site(None, Kind.LOGITS)
    return {
        source: tuple(nodes[number + 1 :])
        for number, source in enumerate(nodes)
        if logits in next_of(model, source, {*nodes, logits})
    }


def check_nodes(nodes: list[Site]) -> None:
    """ValueError unless every site can hold nodes and no two hold the same value."""
    seen: dict[Site, Site] = {}
    for site in nodes:
        if site.kind not in SUPPORTED:
            kinds = ", ".join(f"`{Site(0 if kind.in_block else None, kind)}`" for kind in SUPPORTED)
            raise ValueError(
                f"A dictionary at `{site}` cannot hold a circuit's nodes. The sites that can are those like {kinds}."
            )
        if canonical(site) in seen:
            raise ValueError(
                f"`{seen[canonical(site)]}` and `{site}` are the same place. Give one dictionary there, not two."
            )
        seen[canonical(site)] = site


def canonical(site: Site) -> Site:
    """One name for one place: `resid_post` of a block is `resid_pre` of the next, and the embedding enters at the first."""
    if site.kind == Kind.EMBED:
        return Site(0, Kind.RESID_PRE)
    return Site(layer_of(site) + 1, Kind.RESID_PRE) if site.kind == Kind.RESID_POST else site


def as_output(site: Site) -> Site:
    """`resid_pre` of a block as `resid_post` of the one before: the name by which blocks end in it."""
    return Site(layer_of(site) - 1, Kind.RESID_POST) if site.kind == Kind.RESID_PRE else site


def is_cut(site: Site) -> bool:
    """Whether all that the model computes after `site` depends on the prompt through it alone."""
    return canonical(site).kind in RESIDUAL


def written(model: Transformer, site: Site, value: Float[Array, "seq ..."]) -> Float[Array, "seq d_model"]:
    """What the value at `site` writes to the residual stream: itself, but for `z` and `mlp.hook_post`, which are yet to be projected."""
    if site.layer is None:
        return value
    block = model.blocks[site.layer]
    if site.kind == Kind.Z:
        W_O = wide(block.attn.W_O)
        return value.reshape(value.shape[0], -1) @ W_O.reshape(-1, W_O.shape[-1])
    if site.kind == Kind.MLP_POST:
        assert block.mlp is not None
        return value @ wide(block.mlp.W_out)
    return value


def entry(model: Transformer, site: Site) -> Site:
    """The residual cut at which everything that `site` writes has arrived."""
    place = canonical(site)
    if place.kind in RESIDUAL:
        return place
    layer = layer_of(place)
    into_middle = place.kind in (Kind.Z, Kind.ATTN_OUT) and model.blocks[layer].has_middle
    return Site(layer, Kind.RESID_MID) if into_middle else Site(layer + 1, Kind.RESID_PRE)

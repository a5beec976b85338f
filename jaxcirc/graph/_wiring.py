"""Which nodes feed which directly: the wiring of a circuit.

A circuit's nodes sit at the sites that have dictionaries. The edge from `u` to `d` is the effect of `u` on `d` along every path that
meets no other of these sites; so whatever lies between and is itself a node is held. For dictionaries on the outputs of every sublayer
and block this gives the wiring of Marks et al. 2024 (arXiv 2403.19647, appendix A): `resid -> attn`, `resid -> mlp` past attention,
`attn -> mlp`, and all three into the next `resid`. Other sets of sites get theirs from the same rule.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._precision import wide
from .._sites import Kind, layer_of, Site
from .._tap import bare_tap
from ..models import Transformer
from ..parts import Block, Norm
from ..saes import AbstractDictionary
from ._sites import next_of, site_graph


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
    graph = site_graph(model, saes)
    reached = {source: next_of(graph, source, nodes) for source in nodes}
    wires = []
    for number, target in enumerate(nodes):
        for first in reversed(range(number)):
            if target in reached[nodes[first]]:
                wires.append(Wire(nodes[first], target, tuple(nodes[first + 1 : number])))
    return wires


def reaches_output(model: Transformer, nodes: Iterable[Site]) -> dict[Site, tuple[Site, ...]]:
    """The nodes with a path to the logits that meets no other node, and for each the later nodes, to be held."""
    nodes, logits, graph = sorted(nodes), Site(None, Kind.LOGITS), site_graph(model, {})
    return {
        source: tuple(nodes[number + 1 :])
        for number, source in enumerate(nodes)
        if logits in next_of(graph, source, {*nodes, logits})
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


class Entry(eqx.Module):
    """How what differs at a site enters the residual stream: as `change`, itself or by the matrix behind the site; or by way of a norm
    behind the sublayer, to which it is added to what enters that in the clean run, `before`.
    """

    change: Float[Array, "*batch seq d_model"]
    before: Float[Array, "*batch seq d_model"] | None
    norm: Norm | None

    def at(self, fraction: Float[Array, ""] | float | int) -> Float[Array, "*batch seq d_model"]:
        """What a fraction of the difference adds to the residual stream."""
        step = fraction * self.change
        if self.norm is None or self.before is None:
            return step
        return _normed(self.norm, self.before + step) - _normed(self.norm, self.before)

    def pull(
        self, fraction: Float[Array, ""] | float | int, gradient: Float[Array, "*batch seq d_model"]
    ) -> Float[Array, "*batch seq d_model"]:
        """Takes a gradient at the residual stream, where it is moved by `at(fraction)`, to one of `change`."""
        if self.norm is None or self.before is None:
            return gradient
        norm = self.norm
        return jax.vjp(lambda x: _normed(norm, x), self.before + fraction * self.change)[1](gradient)[0]


def enters(
    model: Transformer,
    site: Site,
    value: Float[Array, "*batch seq width"],
    difference: Float[Array, "*batch seq width"],
) -> Entry:
    """How a difference of the value at `site`, flat, enters the residual stream."""
    if site.layer is None or site.kind not in (Kind.Z, Kind.MLP_POST):
        return Entry(difference, None, None)
    block = model.blocks[site.layer]
    W, b, norm = _matrix_behind(block, site.kind)
    return Entry(difference @ W, None if norm is None else value @ W + b, norm)


def back_to_site(
    model: Transformer,
    site: Site,
    gradient: Float[Array, "*batch seq d_model"],
    value: Float[Array, "*batch seq width"] | None = None,
) -> Float[Array, "*batch seq width"]:
    """Takes a gradient of an entry's `change` to one of the difference at the site, flat; given the value there, one of the residual stream
    that the site enters.
    """
    if site.layer is None or site.kind not in (Kind.Z, Kind.MLP_POST):
        return gradient
    W, b, norm = _matrix_behind(model.blocks[site.layer], site.kind)
    if value is not None and norm is not None:
        before = value @ W + b
        gradient = Entry(jnp.zeros_like(before), before, norm).pull(0, gradient)
    return gradient @ W.T


def _matrix_behind(block: Block, kind: Kind) -> tuple[Float[Array, "width d_model"], Array, Norm | None]:
    """The matrix and the bias by which `z` or `mlp.hook_post` is projected, and the norm behind them."""
    if kind == Kind.Z:
        W = wide(block.attn.W_O)
        return W.reshape(-1, W.shape[-1]), wide(block.attn.b_O), block.ln1_post
    assert block.mlp is not None
    return wide(block.mlp.W_out), wide(block.mlp.b_out), block.ln2_post


def _normed(norm: Norm, x: Float[Array, "*batch seq d_model"]) -> Float[Array, "*batch seq d_model"]:
    return norm(x.reshape(-1, x.shape[-1]), bare_tap(0)).reshape(x.shape)


def entry(model: Transformer, site: Site) -> Site:
    """The residual cut at which everything that `site` writes has arrived."""
    place = canonical(site)
    if place.kind in RESIDUAL:
        return place
    layer = layer_of(place)
    into_middle = place.kind in (Kind.Z, Kind.ATTN_OUT) and model.blocks[layer].has_middle
    return Site(layer, Kind.RESID_MID) if into_middle else Site(layer + 1, Kind.RESID_PRE)

"""The Jacobian through several blocks as a product of theirs, so that each is in closed form where it has one."""

from collections.abc import Sequence

from jaxtyping import Array, Float

from .._sites import Kind, layer_of, Site
from .._typing import Mask, Resid
from ..linear import attends, between_blocks, is_closed
from ..models import Transformer
from ._edge import in_one_block
from ._operator import EdgeJacobian
from ._product import Product, product_of


def chain_of_blocks(
    model: Transformer,
    masks: Sequence[Mask],
    resids: Sequence[Resid],
    source: Site,
    target: Site,
    displacement: Float[Array, "..."] | None = None,
) -> EdgeJacobian:
    """The Jacobian from `source` to `target` cut where blocks meet, so that each block is in closed form where it has one.

    **Arguments:** - `resids`: what enters each block at the point of linearisation. - `displacement`: by how much the source's value was
    moved there.
    """
    start, end, *_ = in_one_block(model, source, target, frozenset(), {})
    layers = range(layer_of(start), layer_of(end) + 1)
    segments = []
    for layer in layers:
        begin = Site(0, start.kind if layer == layers[0] else Kind.RESID_PRE)
        stop = Site(0, end.kind if layer == layers[-1] else Kind.RESID_POST)
        inside = layer == layers[0] and begin.kind != Kind.RESID_PRE  # else what enters is moved already
        block = (model.blocks[layer],), (masks[layer],), resids[layer]
        segments.append(between_blocks(*block, begin, stop, (), displacement if inside else None))
    return EdgeJacobian(product_of(segments, layers, source, target))


def is_position_local(product: Product, *, causal: bool) -> bool:
    """Whether all that comes from a position to itself has been there all the time, so that `contract_own` is the whole of it."""
    local = all(is_closed(segment) and not segment.frozen for segment in product.segments)
    return local and (causal or sum(map(attends, product.segments)) <= 1)

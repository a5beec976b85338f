"""The way of targets' covectors back through the blocks before them, which all sources share."""

import functools as ft
from collections.abc import Callable, Iterable, Mapping

import jax
from jaxtyping import Array, Float, Int, PyTree

from .._precision import rounded
from .._sites import Kind, layer_of, Site
from ..graph import as_output, canonical
from ..linear import between_blocks, contract_batch, meet_batch, pull_batch, Segment, spread_batch
from ..models import Transformer
from ._states import States


Rows = Float[Array, "batch row seq d_model"]
Resid = Float[Array, "batch seq d_model"]
Piece = tuple[Segment, tuple[Array], Resid]  # of every example its mask and what enters the block


class BlockPieces:
    """The parts of a model's blocks between two sites, all nodes between them held, for a batch of prompts with these masks, `resid` of
    which enters some block.
    """

    def __init__(self, model: Transformer, masks: tuple[Array, ...], nodes: Iterable[Site], resid: Resid):
        self.model, self.masks = model, masks
        nodes = tuple(nodes)
        self.nodes = [
            [node.offset_layers(-layer) for node in nodes if node.layer == layer] for layer in range(model.n_layers)
        ]
        self.places = {canonical(node) for node in nodes}
        # Of an example's a segment of a batch has the shapes alone: they are taken once, also of masks that layers share.
        distinct = {id(mask): mask for mask in masks}
        self.one, self.one_mask = resid[0], {number: mask[0] for number, mask in distinct.items()}

    def begins_with_node(self, layer: int) -> bool:
        """Whether a node is what enters a block, so that nothing goes back behind it."""
        return Site(layer, Kind.RESID_PRE) in self.places

    def between(self, start: Site, end: Site, resid: Resid) -> Piece:
        """The part of a block, which `resid` enters."""
        layer = layer_of(start)
        mask, ends = self.masks[layer], (start.offset_layers(-layer), end.offset_layers(-layer))
        blocks = (self.model.blocks[layer],)
        segment = between_blocks(blocks, (self.one_mask[id(mask)],), self.one, *ends, self.nodes[layer])
        return segment, (mask,), resid


class WayBack:
    """Covectors of nodes at one or two sites, `covectors[site][b, i]` at position `positions[b, i]`, on their way back through the blocks,
    every node between held. What they are behind a block is kept: sources are to be asked for from the last to the first.
    """

    def __init__(
        self,
        pieces: BlockPieces,
        at: States,
        covectors: Mapping[Site, Float[Array, "batch row width"]],
        positions: Int[Array, "batch row"],
        precision: str | None,
    ):
        self.pieces, self.at, self.precision = pieces, at, precision
        self.covectors, self.positions = covectors, positions
        # So far they are computed: at what enters `layer`, of all ends in that block or in later ones from which a way leads there.
        self.layer = max(layer_of(as_output(end)) for end in covectors) + 1
        self.rows: Rows | None = None

    def reached(self, start: Site) -> dict[Site, Float[Array, "batch row width"]]:
        """The covectors behind `start`, by sites as their blocks' outputs; and by that of `start` itself where a transcoder reads the value
        that a source's nodes make up.
        """
        found = {}
        for end, left in self.covectors.items():
            if canonical(end) == start:
                found[start] = left
            elif canonical(end) > start:
                found[as_output(end)] = left
        return found

    def edges(
        self,
        start: Site,
        step: Float[Array, "batch ..."] | None,
        vectors: Float[Array, "batch column width"],
        positions: Int[Array, "batch column"],
    ) -> Float[Array, "batch row column"]:
        """Contracts the covectors with vectors at a site `start`, the point of linearisation being moved by `step` there."""
        layer, parts = layer_of(start), []
        for end, left in self.reached(start).items():
            if end.layer == layer:
                items = *self._piece(start, end), step, left, self.positions, vectors, positions
                parts.append(at_precision(self.precision, contract_batch, *items))
        if (behind := self._behind(layer)) is not None:
            piece = self._piece(start, Site(layer, Kind.RESID_POST))
            rows = at_precision(self.precision, pull_batch, *piece, step, behind)
            parts.append(at_precision(self.precision, meet_batch, rows, vectors, positions))
        return sum(parts[1:], parts[0])

    def _behind(self, layer: int) -> Rows | None:
        """The covectors of ends in later blocks at what leaves a block; `None` if no way leads there."""
        while self.layer > layer + 1:
            self.layer -= 1
            self.rows = None if self.pieces.begins_with_node(self.layer) else self._through(self.layer)
        return self.rows

    def _through(self, layer: int) -> Rows | None:
        """Takes those that leave a block to what enters it, with those of the block's own ends."""
        enters, parts = Site(layer, Kind.RESID_PRE), []
        if self.rows is not None:
            piece = self._piece(enters, Site(layer, Kind.RESID_POST))
            parts.append(at_precision(self.precision, pull_batch, *piece, None, self.rows))
        for end, left in self.covectors.items():
            if layer_of(as_output(end)) == layer:
                items = *self._piece(enters, as_output(end)), left, self.positions
                parts.append(at_precision(self.precision, spread_batch, *items))
        return sum(parts[1:], parts[0]) if parts else None

    def _piece(self, start: Site, end: Site) -> Piece:
        return self.pieces.between(start, end, self.at.resid[Site(layer_of(start), Kind.RESID_PRE)])


def at_precision(precision: str | None, function: Callable[..., Array], *items: PyTree) -> Array:
    """What `function` makes of items with products of a precision, to which items are rounded first, on any device; `None` for what is
    configured.
    """
    if precision is None:
        return function(*items)
    with jax.default_matmul_precision(precision):
        return function(*_rounded(items, precision))


@ft.partial(jax.jit, static_argnames="precision")
def _rounded(items: PyTree, precision: str) -> PyTree:
    return jax.tree.map(lambda leaf: rounded(leaf, precision), items)

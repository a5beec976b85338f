"""Edge effects as bilinear forms of Jacobians: covectors of the targets against the sources' vectors, wire by wire."""

import functools as ft
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._sites import Kind, layer_of, Site
from .._target import on_cpu
from ..graph import as_output, canonical, Wire, wiring
from ..jacobian._certificate import error_of_edges
from ..linear import between_blocks, Segment
from ..models import Transformer
from ..runs import allowance, cheapest, Problem
from ..saes import AbstractDictionary
from ..units import Latents
from ._methods import check_gradients, IntegratedGradients
from ._moved import moved_by, states_moved
from ._packs import NodeMask, pack_columns, pack_rows, pack_targets, Sources, TargetChunk
from ._states import States
from ._way_back import BlockPieces, WayBack


# Few, as each has its programs; by the cost below none of them is ever much worse than what lies between.
CHUNKS = (8, 32, 128)
# On an accelerator a chunk that is started costs as much as many rows of it.
LARGE_CHUNKS = (32, 128, 512)
Gradients = Mapping[Site, Float[Array, "batch seq width"]]


class Edges(NamedTuple):
    """Edges of a wire, `values` `[batch row column]`: into nodes `target_units[b, i]` at `target_positions[b, i]` from nodes
    `source_units[b, j]` at `source_positions[b, j]`, with unit -1 for those that are not there; and by how much they differ from float64,
    where that was measured.
    """

    wire: Wire
    target_positions: Int[np.ndarray, "batch row"]
    target_units: Int[np.ndarray, "batch row"]
    source_positions: Int[np.ndarray, "batch column"]
    source_units: Int[np.ndarray, "batch column"]
    values: Float[np.ndarray, "batch row column"]
    error: float | None

    def rows(self) -> Int[np.ndarray, "n 3"]:
        """The targets, as (batch, position, node)."""
        example, row = np.nonzero(self.target_units >= 0)
        return np.stack([example, self.target_positions[example, row], self.target_units[example, row]], axis=-1)

    def coo(self) -> tuple[Int[np.ndarray, "n 3"], Int[np.ndarray, "n 3"], Float[np.ndarray, " n"]]:
        """Those that are not zero: targets and sources as (batch, position, node), and values."""
        example, row, column = np.nonzero(self.values)
        targets = [example, self.target_positions[example, row], self.target_units[example, row]]
        sources = [example, self.source_positions[example, column], self.source_units[example, column]]
        as_index = lambda parts: np.stack(parts, axis=-1).astype(np.int32)
        return as_index(targets), as_index(sources), self.values[example, row, column]


def iterate_edges(
    model: Transformer,
    problem: Problem,
    at: States,
    gradient: Gradients,
    *,
    targets: NodeMask,
    sources: NodeMask,
    path: IntegratedGradients | None = None,
    certify: bool = False,
    precision: str | None = None,
) -> Iterator[Edges]:
    """Yields every wire's edges at least once, in chunks of bounded size.

    All wires of one kind, in whatever layer, run the same compiled program: chunks have one size, and blocks are arguments. With a
    `path` edges are at its points and not at the clean one, and what is yielded for the same ends is to be summed. With `certify` the
    first that there are into each kind of site, from its own block and from one before, are compared with float64, on the first prompt.
    `precision` is of the products that make edges, one of `PRECISIONS`, `None` for what is configured; with a lower one what is multiplied
    first is rounded on any device.
    """
    if path is None:
        check_gradients(model, problem, at, gradient)
    measured: set[tuple[Kind, bool]] = set()
    for block in _ahead(_blocks(model, problem, at, gradient, targets, sources, path, precision)):
        values, error, route = np.asarray(block.values), None, (block.wire.target.kind, _is_across(block.wire))
        if certify and route not in measured and values[0].any():
            error = block.error(values)
            measured.add(route)
        yield block.edges(values, error)


def _is_across(wire: Wire) -> bool:
    """Whether the ends are in two blocks."""
    return layer_of(canonical(wire.source)) != layer_of(as_output(wire.target))


T = TypeVar("T")


def _ahead(items: Iterable[T], by: int = 2) -> Iterator[T]:
    """The items a few steps late: some that come later are on their way to be computed when one is waited for."""
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > by:
            yield waiting.popleft()
    yield from waiting


def _blocks(
    model: Transformer,
    problem: Problem,
    at: States,
    gradient: Gradients,
    targets: NodeMask,
    sources: NodeMask,
    path: IntegratedGradients | None,
    precision: str | None,
) -> "Iterator[_Block]":
    packs = pack_columns(problem.saes, at, sources)
    clean_rows = [pack_rows(at, site, sae, targets) for site, sae in problem.saes.items()]
    wires = wiring(model, problem.saes)
    chunk = _chunk_size(clean_rows, packs, at.mask.shape[1], most=_most_on_their_way(model, problem, wires))
    masks, first = model.batch_masks(at.mask), at.resid[Site(0, Kind.RESID_PRE)]
    pieces = BlockPieces(model, masks, problem.saes, first)
    for some, here, slope, fraction, weight in _points(model, problem, at, gradient, wires, path):
        for target in dict.fromkeys(wire.target for wire in some):
            sae = problem.saes[target]
            rows = pack_rows(here, target, sae, targets)
            for pack in pack_targets(sae, target, here, slope[target], rows, chunk):
                covectors = pack.covectors(target, sae)
                back = WayBack(pieces, here, covectors, jnp.asarray(pack.positions), precision)
                for wire in some:
                    if wire.target == target:
                        yield _block(problem.saes, wire, pack, packs[wire.source], back, fraction, weight)


def _points(
    model: Transformer,
    problem: Problem,
    at: States,
    gradient: Gradients,
    wires: list[Wire],
    path: IntegratedGradients | None,
) -> Iterator[tuple[list[Wire], States, Gradients, float, float]]:
    """Wires, the states and the gradients at which their edges are, how far their source is moved, and the weight of that: the clean
    point, or for each source points on its way to the corrupt value.
    """
    if path is None:
        yield wires, at, gradient, 0.0, 1.0
        return
    for source in dict.fromkeys(wire.source for wire in wires):
        for fraction, weight in zip(*path.points(), strict=True):
            here, slope = states_moved(model, problem, at, source, float(fraction))
            yield [wire for wire in wires if wire.source == source], here, slope, float(fraction), float(weight)


def _most_on_their_way(model: Transformer, problem: Problem, wires: list[Wire]) -> int:
    """How many targets of each example can be on their way back through blocks at once: one holds a number for each position and coordinate
    of the residual stream. Of such arrays some six are there at a time, with those that are computed ahead, and what makes them takes room.
    """
    if not any(map(_is_across, wires)):
        return LARGE_CHUNKS[-1]
    held = problem.clean.size * model.d_model * model.activation_dtype.itemsize
    return max(1, allowance() // (8 * held))


def _chunk_size(
    wanted: Iterable[Latents], packs: Mapping[Site, Sources], seq: int, *, most: int, budget: int = 2**25
) -> int:
    """How many targets of each example go at once, at `most` so many: what makes the least of empty rows and of chunks, and keeps a chunk's
    values under `budget`; or as many as before, of prompts of this length, if that takes hardly longer.
    """
    counts = [int((rows.units >= 0).sum(axis=1).max()) for rows in wanted]
    batch, columns = next(iter(packs.values())).nodes.units.shape  # the same for every site
    chunks = CHUNKS if on_cpu() else LARGE_CHUNKS
    most = max(1, min(most, chunks[-1], budget // (batch * columns)))
    sizes = [chunk for chunk in chunks if chunk <= most] or [1 << (most.bit_length() - 1)]
    # A chunk costs about as much beside its rows as eight of them, as measured on CPUs.
    cost = lambda chunk: sum(-(-count // chunk) * (chunk + chunks[0]) for count in counts)
    return cheapest(sizes, cost, "targets", batch, seq)


class _Block(NamedTuple):
    """The edges of one wire into one chunk of targets, as they are computed, and of the first prompt the segments from the source to the
    sites that the targets read, each with their covectors there.
    """

    wire: Wire
    targets: TargetChunk
    source: AbstractDictionary
    sources: Sources
    ends: Callable[[], list[tuple[Segment, Float[Array, "row width"]]]]
    values: Float[Array | np.ndarray, "batch row column"]
    weight: float

    def error(self, values: Float[np.ndarray, "batch row column"]) -> float:
        """Against float64, on the first prompt."""
        ends = [(segment, np.asarray(left)) for segment, left in self.ends()]
        vectors, at_columns = self.sources.vectors(self.source), np.asarray(self.sources.nodes.positions)[0]
        return error_of_edges(ends, self.targets.positions[0], np.asarray(vectors)[0], at_columns, values[0])

    def edges(self, values: Float[np.ndarray, "batch row column"], error: float | None) -> Edges:
        """Without the rows and columns that no example has."""
        rows, columns = (
            int((units >= 0).sum(axis=1).max()) for units in (self.targets.units, self.sources.nodes.units)
        )
        return Edges(
            self.wire,
            self.targets.positions[:, :rows],
            self.targets.units[:, :rows],
            np.asarray(self.sources.nodes.positions)[:, :columns],
            np.asarray(self.sources.nodes.units)[:, :columns],
            self.weight * values[:, :rows, :columns],
            error,
        )


def _block(
    saes: Mapping[Site, AbstractDictionary],
    wire: Wire,
    pack: TargetChunk,
    sources: Sources,
    back: WayBack,
    fraction: float,
    weight: float,
) -> _Block:
    vectors = sources.vectors(saes[wire.source])
    values = np.zeros((*pack.units.shape, vectors.shape[1]), vectors.dtype)
    step = moved_by(back.pieces.model, back.at, wire.source, fraction)
    if (pack.units >= 0).any() and (sources.nodes.units >= 0).any():
        values = back.edges(canonical(wire.source), step, vectors, jnp.asarray(sources.nodes.positions))
    ends = ft.partial(_of_first_prompt, back, wire, step)
    return _Block(wire, pack, saes[wire.source], sources, ends, values, weight)


def _of_first_prompt(
    back: WayBack, wire: Wire, step: Float[Array, "batch ..."] | None
) -> list[tuple[Segment, Float[Array, "row width"]]]:
    """The blocks between the ends of a wire in one piece, and the covectors at their end."""
    start, found = canonical(wire.source), []
    for end, left in back.reached(start).items():
        first = layer_of(start)
        blocks = slice(first, layer_of(end) + 1)
        source, target = (site.offset_layers(-first) for site in (start, end))
        masks = tuple(mask[0] for mask in back.pieces.masks[blocks])
        held = [site.offset_layers(-first) for site in wire.frozen]
        resid, moved = back.at.resid[Site(first, Kind.RESID_PRE)][0], None if step is None else step[0]
        segment = between_blocks(back.pieces.model.blocks[blocks], masks, resid, source, target, held, moved)
        found.append((segment, left[0]))
    return found

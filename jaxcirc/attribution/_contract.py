"""Edge effects as bilinear forms of Jacobians: covectors of the targets against the sources' vectors, wire by wire."""

import functools as ft
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .._precision import rounded
from .._run import site_shapes
from .._sites import Kind, layer_of, Site
from .._tap import site_read
from .._target import on_cpu
from ..graph import as_output, canonical, Wire, wiring
from ..jacobian._certificate import error_of_edges
from ..linear import between_blocks, contract_batch, Segment
from ..models import Transformer
from ..runs import cheapest, Problem
from ..saes import AbstractDictionary
from ..units import Latents
from ._methods import check_gradients, IntegratedGradients
from ._moved import states_moved
from ._packs import NodeMask, pack_columns, pack_rows, pack_targets, Sources, TargetChunk
from ._states import States


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
    first that there are into each kind of site are compared with float64, on the first prompt. `precision` is of the products that
    make edges, one of `PRECISIONS`, `None` for what is configured; with a lower one what is multiplied first is rounded on any device.
    """
    if path is None:
        check_gradients(model, problem, at, gradient)
    unmeasured = {site.kind for site in problem.saes} if certify else set()
    for block in _ahead(_blocks(model, problem, at, gradient, targets, sources, path, precision)):
        values, error, kind = np.asarray(block.values), None, block.wire.target.kind
        if kind in unmeasured and values[0].any():
            error = block.error(values)
            unmeasured.discard(kind)
        yield block.edges(values, error)


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
    chunk = _chunk_size(clean_rows, packs, at.mask.shape[1])
    masks = model.batch_masks(at.mask)
    for wires, here, slope, fraction, weight in _points(model, problem, at, gradient, path):
        for target in dict.fromkeys(wire.target for wire in wires):
            sae = problem.saes[target]
            rows = pack_rows(here, target, sae, targets)
            for pack in pack_targets(sae, target, here, slope[target], rows, chunk):
                for wire in wires:
                    if wire.target == target:
                        source = packs[wire.source]
                        yield _block(model, masks, problem.saes, here, wire, pack, source, fraction, weight, precision)


def _points(
    model: Transformer, problem: Problem, at: States, gradient: Gradients, path: IntegratedGradients | None
) -> Iterator[tuple[list[Wire], States, Gradients, float, float]]:
    """Wires, the states and the gradients at which their edges are, how far their source is moved, and the weight of that: the clean
    point, or for each source points on its way to the corrupt value.
    """
    wires = wiring(model, problem.saes)
    if path is None:
        yield wires, at, gradient, 0.0, 1.0
        return
    for source in dict.fromkeys(wire.source for wire in wires):
        for fraction, weight in zip(*path.points(), strict=True):
            here, slope = states_moved(model, problem, at, source, float(fraction))
            yield [wire for wire in wires if wire.source == source], here, slope, float(fraction), float(weight)


def _chunk_size(wanted: Iterable[Latents], packs: Mapping[Site, Sources], seq: int, budget: int = 2**25) -> int:
    """How many targets of each example go at once: what makes the least of empty rows and of chunks, and keeps a chunk's values under
    `budget`; or as many as before, of prompts of this length, if that takes hardly longer.
    """
    counts = [int((rows.units >= 0).sum(axis=1).max()) for rows in wanted]
    batch, columns = next(iter(packs.values())).nodes.units.shape  # the same for every site
    chunks = CHUNKS if on_cpu() else LARGE_CHUNKS
    most = max(1, min(chunks[-1], budget // (batch * columns)))
    sizes = [chunk for chunk in chunks if chunk <= most] or [1 << (most.bit_length() - 1)]
    # A chunk costs about as much beside its rows as eight of them, as measured on CPUs.
    cost = lambda chunk: sum(-(-count // chunk) * (chunk + chunks[0]) for count in counts)
    return cheapest(sizes, cost, "targets", batch, seq)


class _Block(NamedTuple):
    """The edges of one wire into one chunk of targets, as they are computed: covectors at one or two sites, segments, and the sources."""

    wire: Wire
    targets: TargetChunk
    source: AbstractDictionary
    sources: Sources
    ends: tuple[tuple[Segment, Float[Array, "batch row width"]], ...]  # the segment of the first prompt
    values: Float[Array | np.ndarray, "batch row column"]
    weight: float

    def error(self, values: Float[np.ndarray, "batch row column"]) -> float:
        """Against float64, on the first prompt."""
        ends = [(segment, np.asarray(left)[0]) for segment, left in self.ends]
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
    model: Transformer,
    masks: tuple,
    saes: Mapping[Site, AbstractDictionary],
    at: States,
    wire: Wire,
    pack: TargetChunk,
    sources: Sources,
    fraction: float,
    weight: float,
    precision: str | None,
) -> _Block:
    sae, vectors = saes[wire.target], sources.vectors(saes[wire.source])
    at_rows, at_columns = jnp.asarray(pack.positions), jnp.asarray(sources.nodes.positions)
    read = site_read(wire.target, sae)
    if read == wire.target:
        covectors = {wire.target: pack.at_read + pack.at_site}
    else:
        covectors = {read: pack.at_read, wire.target: pack.at_site}
    ends, parts = [], []
    for end, left in covectors.items():
        if canonical(wire.source) <= canonical(
            end
        ):  # a transcoder may read the very value that the source's nodes make up
            segment, keys, resid, displacement = _segment_of(model, masks, at, wire, end, fraction)
            ends.append((segment, left))
            if (pack.units >= 0).any() and (sources.nodes.units >= 0).any():
                items = segment, keys, resid, displacement, left, at_rows, vectors, at_columns
                parts.append(_contracted(items, precision))
    nothing = np.zeros((*pack.units.shape, vectors.shape[1]), vectors.dtype)
    values = ft.reduce(jnp.add, parts) if parts else nothing
    return _Block(wire, pack, saes[wire.source], sources, tuple(ends), values, weight)


def _contracted(items: tuple[PyTree, ...], precision: str | None) -> Float[Array, "batch row column"]:
    if precision is None:
        return contract_batch(*items)
    with jax.default_matmul_precision(precision):
        return contract_batch(*_rounded(items, precision))


@ft.partial(jax.jit, static_argnames="precision")
def _rounded(items: PyTree, precision: str) -> PyTree:
    return jax.tree.map(lambda leaf: rounded(leaf, precision), items)


def _segment_of(
    model: Transformer, masks: tuple, at: States, wire: Wire, end: Site, fraction: float
) -> tuple[Segment, tuple, Array, Array | None]:
    """The blocks between the ends of a wire; and for every example their masks, what enters the first, and how far the source is moved,
    if it is inside a block, where what enters does not tell.
    """
    start = canonical(wire.source)
    end = start if canonical(end) == start else as_output(end)
    first, last = layer_of(start), layer_of(end)
    blocks = slice(first, last + 1)
    resid = at.resid[Site(first, Kind.RESID_PRE)]
    example = tuple(mask[0] for mask in masks[blocks])
    relative = lambda site: site.offset_layers(-first)
    displacement = None
    if fraction != 0 and start.kind != Kind.RESID_PRE:
        shape = site_shapes(model, resid.shape[1])[wire.source].shape
        displacement = (fraction * at.differences[wire.source]).reshape(-1, *shape)
    ends = (relative(start), relative(end), map(relative, wire.frozen))
    segment = between_blocks(
        model.blocks[blocks], example, resid[0], *ends, None if displacement is None else displacement[0]
    )
    return segment, masks[blocks], resid, displacement

"""The bilinear form of a one-block segment: how items become rows and columns, and how these are contracted in matrix products."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._sites import Kind
from ._attention import AttentionColumns, AttentionMap, AttentionRows, contract_spread, SpreadRows
from ._block import LinearBlock
from ._ends import source_vectors, target_covectors
from ._forms import attends, read_site
from ._maps import Positions, pull, push
from ._segment import Segment


Attended = AttentionColumns | Float[Array, "k d_model"] | None


class Rows(NamedTuple):
    """Covectors at `positions`: at the source, `local`, by what stays at a position; and where attention is passed, at attention's output,
    or spread over the keys.
    """

    positions: Positions
    local: Float[Array, "n width"] | None
    attended: AttentionRows | SpreadRows | None


class Columns(NamedTuple):
    """Vectors: at the source, `local`; and where attention is passed, as values and keys, or for rows that are spread what makes these."""

    local: Float[Array, "k width"]
    attended: Attended


class Bilinear(NamedTuple):
    """How items at positions become rows and columns, and attention, if it is on the way."""

    prepare_rows: Callable[[Array, Positions], Rows]
    prepare_columns: Callable[[Array, Positions], Columns]
    attention: AttentionMap | None
    at_once: bool

    def contract_tiles(
        self, rows: Rows, columns: Attended, place: Int[Array, " tile"]
    ) -> Float[Array, "n tile slot"] | None:
        """Contracts, through attention, rows with columns in tiles at the positions `place`; `None` if nothing leads there."""
        if isinstance(rows.attended, SpreadRows) and isinstance(columns, jax.Array):
            return contract_spread(rows.attended, columns, place, at_once=self.at_once)
        if self.attention is None or not isinstance(rows.attended, AttentionRows):
            return None
        assert isinstance(columns, AttentionColumns)
        return self.attention.contract_tiles(rows.attended, rows.positions, columns, place)


def contract_same(
    left: Float[Array, "n width"], positions: Positions, right: Float[Array, "k width"], place: Int[Array, " tile"]
) -> Float[Array, "n tile slot"]:
    """Contracts covectors at `positions` with vectors in tiles at the positions `place`, where they are at one position."""
    edges = (left @ right.T).reshape(len(positions), len(place), -1)  # [n width] · [k width] -> [n k]
    return jnp.where((positions[:, None] == place)[..., None], edges, 0)


def bilinear(
    segment: Segment,
    linear: LinearBlock,
    *,
    forward: bool = False,
    spread: bool = False,
    asked: bool = False,
    at_once: bool = False,
) -> Bilinear:
    """Makes the bilinear form of a one-block segment. `forward`: where nothing passes attention, push the columns and do not pull the rows.
    `spread`: spread rows over the keys. `asked`: columns come with what every query asks of them, and not with their keys.
    `at_once`: rows that are spread meet all tiles in one product, and not in one for each tile.
    """
    left_at, right_at = target_covectors(segment), source_vectors(segment)
    source, target, heads = segment.source.kind, read_site(segment).kind, linear.heads
    attention = heads if heads is not None and heads.paths and attends(segment) else None
    forward = forward and attention is None
    spread = spread and source <= Kind.ATTN_IN
    spread = spread and attention is not None and bool(attention.paths & {Kind.V, Kind.K})

    def prepare_rows(items: Array, positions: Positions) -> Rows:
        covectors = {target: left_at(items, positions)}
        if forward:
            return Rows(positions, covectors[target], None)
        covectors = pull(linear.after, covectors, positions)
        attended = None
        if attention is not None and Kind.Z in covectors:
            attended = attention.prepare_rows(covectors[Kind.Z], positions)
            if Kind.Q in attention.paths:
                asking = attention.kinds[Kind.Q]
                covectors[asking] = covectors.get(asking, 0) + attention.pull_queries(attended)
        local = pull(linear.before, covectors, positions).get(source)
        if attention is not None and attended is not None and spread:
            attended = attention.spread(attended, positions)
        return Rows(positions, local, attended)

    def prepare_columns(items: Array, positions: Positions) -> Columns:
        vectors = {source: right_at(items, positions)}
        if forward:
            return Columns(push(linear.maps, vectors, positions)[target], None)
        if attention is None:
            return Columns(vectors[source], None)
        images = push(linear.entrance, vectors, positions)  # up to what attention reads
        if spread:
            return Columns(vectors[source], images.get(Kind.ATTN_IN))
        images = push(linear.placing, images, positions)
        return Columns(vectors[source], attention.prepare_columns(images, asked=asked))

    return Bilinear(prepare_rows, prepare_columns, attention, at_once)

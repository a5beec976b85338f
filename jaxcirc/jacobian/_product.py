"""`Product`: segments of a model, one after another, between two places. All that Jacobians are made from, and nothing of how.

It has its own direction, or the other: whether an operator is transposed is known here, so that nothing else need know of it.
"""

import dataclasses
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._sites import Site
from ..linear import chunk_for, jvp, Segment, vjp
from ..runs import allowance, halving
from ._place import Place, place_of
from ._positions import position_axis


class Product(eqx.Module):
    """The product of the segments' Jacobians, restricted to some positions of its ends.

    **Attributes:**

    - `segments`, and the layers at which they begin, `begins`: arrays, so that all layers share their programs.
    - `places`: where the segments begin, and where they end, in whichever direction the product goes.
    - `engine`: what was asked for, `"auto"`, `"autodiff"` or `"structured"`.
    - `transposed`: whether it goes from the segments' end to their beginning.
    """

    segments: tuple[Segment, ...]
    begins: tuple[Int[Array, ""], ...]
    places: tuple[Place, Place]
    engine: str = eqx.field(static=True)
    transposed: bool = eqx.field(static=True, default=False)

    @property
    def start(self) -> Place:
        return self.places[self.transposed]

    @property
    def end(self) -> Place:
        return self.places[not self.transposed]

    @property
    def source_shape(self) -> tuple[int, ...]:
        return self.shapes[self.transposed]

    @property
    def target_shape(self) -> tuple[int, ...]:
        return self.shapes[not self.transposed]

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the values at both places, at their positions, in the segments' direction."""
        first, last = (place.shape(whole) for place, whole in zip(self.places, self.whole_shapes, strict=True))
        return first, last

    @property
    def whole_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The same at all positions."""
        of_first = self.segments[0].shapes()
        of_last = of_first if len(self.segments) == 1 else self.segments[-1].shapes()
        return of_first[0].shape, of_last[1].shape

    @property
    def seq(self) -> int:
        """How many tokens the prompt has."""
        return self.segments[0].resid.shape[0]

    @property
    def dtype(self) -> jnp.dtype:
        return self.segments[0].resid.dtype

    @property
    def has_single_positions(self) -> bool:
        """Whether each value at its ends has one position; scores and patterns have two."""
        return not any(position_axis(place.first) for place in self.places)

    @property
    def T(self) -> "Product":
        return dataclasses.replace(self, transposed=not self.transposed)

    def restricted(
        self, source_pos: Int[Array, " source_seq"] | None = None, target_pos: Int[Array, " target_seq"] | None = None
    ) -> "Product":
        """Between some of the positions only; a side that is not given stays as it is."""
        given = (target_pos, source_pos) if self.transposed else (source_pos, target_pos)
        first, last = (
            place if pos is None else dataclasses.replace(place, positions=pos)
            for place, pos in zip(self.places, given, strict=True)
        )
        return dataclasses.replace(self, places=(first, last))

    def sweep(
        self, vectors: Float[Array, "n ..."], chunk: int | None, *, forward: bool, what: str = "vectors"
    ) -> Float[Array, "n ..."]:
        """Takes vectors at the beginning of the segments to their images at the end, or back if not `forward`, some at a time; `what` they
        are is said when memory runs out.
        """
        most = min(chunk or chunk_for(self.segments, allowance()), max(len(vectors), 1))
        return halving(lambda chunk: self.through(vectors, chunk, forward=forward), most, f"the chunk of {what}")

    def through(self, vectors: Float[Array, "n ..."], chunk: int, *, forward: bool) -> Float[Array, "n ..."]:
        """The same, `chunk` at a time."""
        begin, end = self.places if forward else self.places[::-1]
        vectors = begin.put(vectors, self.whole_shapes[not forward])
        for segment in self.segments if forward else self.segments[::-1]:
            vectors = (jvp if forward else vjp)(segment, vectors, chunk=chunk)
        return end.take(vectors)

    def after(self, other: "Product") -> "Product":
        """The product of this one with one that ends where it begins."""
        first, last = (self, other) if self.transposed else (other, self)
        return Product(
            segments=(*first.segments, *last.segments),
            begins=(*first.begins, *last.begins),
            places=(first.places[0], last.places[1]),
            engine=_engine_of_both(self.engine, other.engine),
            transposed=self.transposed,
        )


def product_of(
    segments: Sequence[Segment],
    layers: Sequence[int],
    source: Site,
    target: Site,
    *,
    source_pos: Int[Array, " source_seq"] | None = None,
    target_pos: Int[Array, " target_seq"] | None = None,
    engine: str = "auto",
) -> Product:
    """The product of segments, one after another, that begin at `layers`, from `source` to `target`, which are at the outer ends."""
    with jax.ensure_compile_time_eval():  # so that an operator made under `jit` knows its layers
        begins = tuple(jnp.asarray(layer, jnp.int32) for layer in layers)
    return Product(tuple(segments), begins, (place_of(source, source_pos), place_of(target, target_pos)), engine)


def _engine_of_both(one: str, other: str) -> str:
    """Unites what two factors were asked for: what either must not do, the product must not."""
    if "autodiff" in (one, other):
        return "autodiff"
    return one if one == other else "auto"

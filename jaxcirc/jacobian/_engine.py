"""Which way a matrix or a bilinear form is made: in closed form where there is one, by autodiff elsewhere."""

import math

from .._sites import Part
from .._target import on_cpu
from .._traced import is_traced
from ..linear import are_steps_closed, is_chain, is_contraction, is_dense
from ._product import Product


CLOSED = ("block", "contraction", "chain", "steps")  # the routes in closed form; the others are autodiff


def engine_of(*routes: str) -> str:
    """`"structured"` if any of the routes is in closed form, else `"autodiff"`."""
    return "structured" if any(route in CLOSED for route in routes) else "autodiff"


def matrix_route(product: Product) -> str:
    """How a whole matrix is made, of segments in their own direction: in closed form, one `"block"`, a `"contraction"` of all units, or a
    `"chain"` of blocks; or by sweeps of autodiff, its `"columns"` or its `"rows"`, whichever are fewer.
    """
    segments, (source, target), sweep = product.segments, product.shapes, sweep_route(product)
    if product.engine == "autodiff":
        return sweep
    first, *others = segments
    if is_contraction(segments):
        return "block" if not others and first.source.part == Part.VALUE and is_dense(first) else "contraction"
    if others or not is_chain(first) or is_traced(segments):
        return sweep
    # In units of d_model^3 a block: a swept tangent or cotangent costs 24 a position, a row of the chain 10 at half of them.
    (seq, d_model), (n_source, *_), (n_target, *_) = first.resid.shape, source, target
    saved = (24 * min(n_source, n_target) - 5 * n_target) * seq * d_model**3 * len(first.blocks)
    return "chain" if product.engine == "structured" or saved > _while_compiling() else sweep


def sweep_route(product: Product) -> str:
    """How a whole matrix is made by autodiff."""
    source, target = product.shapes
    return "columns" if math.prod(source) <= math.prod(target) else "rows"


def _while_compiling() -> float:
    """Counts the operations that run in the seconds that a chain's programs take to compile longer than a sweep's: as measured, on two
    cores of a CPU three seconds; an accelerator does about a hundred times as much meanwhile.
    """
    return 2e11 if on_cpu() else 2e13


def side_of(route: str) -> str:
    """Of which end a route makes the matrix position by position."""
    return "source" if route == "columns" else "target"


def contract_route(product: Product, items: int | None = None) -> str:
    """How bilinear forms of so many `items` are made, on the side that has fewer; by default as many as there are units at the smaller end.
    In closed form, by `"contraction"`, or through several blocks in `"steps"`; or by a `"sweep"` of autodiff.
    """
    segments = product.segments
    if product.engine == "autodiff":
        return "sweep"
    if is_contraction(segments):
        return "contraction"
    if is_traced(segments) or not are_steps_closed(segments):
        return "sweep"
    items = min(map(math.prod, product.shapes)) if items is None else items
    # In units of d_model^2 a position: a swept item costs 24 a block; by steps 24 of five eighths of the positions, and one block nothing.
    (seq, d_model), blocks = segments[0].resid.shape, sum(len(segment.blocks) for segment in segments)
    saved = (24 * blocks - 15 * (blocks - 1)) * items * seq * d_model**2
    return "steps" if product.engine == "structured" or saved > 2 * _while_compiling() else "sweep"

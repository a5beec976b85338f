"""The whole matrix of a product of segments, by one of its routes."""

import functools as ft
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..linear import block_matrix, chain_matrix, check_fits, contract_by_plan
from ..runs import allowance, halving
from ._derivatives import differentiated_as
from ._engine import CLOSED, matrix_route, sweep_route
from ._finite import check_finite
from ._positions import every_unit, position_axis
from ._product import Product


def matrix(product: Product, chunk: int | None = None) -> Float[Array, "..."]:
    """The Jacobian, of shape `target_shape + source_shape`, by the route that `matrix_route` names."""
    if product.transposed:
        return swapped(matrix(product.T, chunk), len(product.source_shape))
    return matrix_by(product, matrix_route(product), chunk)


def matrix_by(product: Product, route: str, chunk: int | None = None) -> Float[Array, "..."]:
    """The matrix of segments in their own direction, by a route that leads there."""
    first, last = product.shapes
    check_fits(
        "A Jacobian",
        (*last, *first),
        product.dtype,
        "Restrict the positions (source_pos, target_pos), ask for some J.rows or J.cols, or stream it to disk with jc.save_jacobian.",
    )
    by_sweeps = lambda product: _by_sweeps(product, sweep_route(product) if route in CLOSED else route, chunk)
    if route in CLOSED:
        make = {"contraction": _by_contraction, "block": _in_closed_form, "chain": _in_closed_form}[route]
        out = differentiated_as(lambda product: make(product, route), by_sweeps)(product)
    else:
        out = by_sweeps(product)
    check_finite(product, out)
    return _blanked(product, out)


def _blanked(product: Product, out: Array) -> Array:
    """A matrix with NaN in the rows and columns of positions that are not there."""
    begin, end = product.places
    for place, ahead in ((end, 0), (begin, len(product.shapes[1]))):
        there, axis = place.there(product.seq), ahead + position_axis(place.first)
        if there is not None:
            out = jnp.where(jnp.expand_dims(there, [i for i in range(out.ndim) if i != axis]), out, jnp.nan)
    return out


def _by_contraction(product: Product, route: str) -> Array:
    first, last = product.shapes
    begin, end = (place.index(product.seq) for place in product.places)
    left, right = every_unit(end, math.prod(last)), every_unit(begin, math.prod(first))
    return contract_by_plan(product.segments, *left, *right, allowance()).reshape(*last, *first)


def _in_closed_form(product: Product, route: str) -> Array:
    (first, last), (begin, end) = product.shapes, (place.index(product.seq) for place in product.places)
    segment, all_begins = product.segments[0], product.places[0].positions is None
    if route == "block":
        make = ft.partial(block_matrix, segment, end, begin)
    else:
        make = ft.partial(chain_matrix, segment, np.asarray(end))
    out = halving(lambda budget: make(budget=budget), allowance(), "the memory budget")
    out = out if route == "block" or all_begins else out[:, :, begin]
    return out.reshape(*last, *first)


def _by_sweeps(product: Product, route: str, chunk: int | None) -> Array:
    """Makes the matrix column by column, or row by row."""
    forward, (first, last) = route == "columns", product.shapes
    into, out_of = (first, last) if forward else (last, first)
    basis = jnp.eye(math.prod(into), dtype=product.dtype).reshape(-1, *into)
    found = product.sweep(basis, chunk, forward=forward, what="rows").reshape(*into, *out_of)
    return jnp.moveaxis(found, range(len(into)), range(-len(into), 0)) if forward else found


def swapped(matrix: Array, split: int) -> Array:
    """A matrix of operators with its first `split` axes put last."""
    return jnp.transpose(matrix, (*range(split, matrix.ndim), *range(split)))

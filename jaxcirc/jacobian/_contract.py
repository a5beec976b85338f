"""Bilinear forms of a product of segments, their arguments checked."""

import functools as ft
import math

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_count, check_reals
from .._traced import is_traced
from ..linear import check_fits, contract_by_plan, contract_by_steps, contract_by_sweeps, Items
from ..runs import allowance
from ._derivatives import differentiated_as
from ._engine import CLOSED, contract_route
from ._finite import check_finite
from ._positions import check_positions
from ._product import Product


def contract(
    product: Product,
    left: Items,
    left_pos: Int[Array, " m"],
    right: Items,
    right_pos: Int[Array, " k"],
    budget: int | None,
    route: str | None = None,
) -> Float[Array, "m k"]:
    """`left_m^T J right_k`; see `EdgeJacobian.contract`. By the `route` that `contract_route` names, unless another is given."""
    budget = allowance(budget)
    check_count("J.contract: budget", "bytes may be taken", budget, least=0)
    shapes = product.whole_shapes
    left, left_pos, left_there = _checked(product, "left", left, left_pos, shapes[not product.transposed])
    right, right_pos, right_there = _checked(product, "right", right, right_pos, shapes[product.transposed])
    check_fits(
        "A contraction",
        (len(left_pos), len(right_pos)),
        product.dtype,
        "Contract a part of `left` at a time, and keep of each part what you need.",
    )
    route = route or contract_route(product, min(len(left_pos), len(right_pos)))
    items = (left, left_pos), (right, right_pos)
    if route == "steps" and is_traced(items):
        route = "sweep"  # which positions are reached is not known
    to, of = items[::-1] if product.transposed else items
    compute = by_sweeps = ft.partial(contract_by_sweeps, budget=budget)
    if route in CLOSED:
        make = {"contraction": contract_by_plan, "steps": contract_by_steps}[route]
        compute = differentiated_as(ft.partial(make, budget=budget), by_sweeps)
    out = compute(product.segments, *to, *of)
    check_finite(product, out)
    out = out.T if product.transposed else out
    out = out if left_there is None else jnp.where(left_there[:, None], out, jnp.nan)
    return out if right_there is None else jnp.where(right_there, out, jnp.nan)


def _checked(
    product: Product, name: str, items: Items, positions: Int[Array, " n"], shape: tuple[int, ...]
) -> tuple[Items, Int[Array, " n"], Bool[Array, " n"] | None]:
    """Checks items and their positions, and finds which of them are there at all, `[n]`; `None` where all are, as the host knows."""
    if not product.has_single_positions:
        raise ValueError(
            "J.contract is of values with one position; scores and patterns have two. Use J.rows or J.cols."
        )
    positions, width = jnp.asarray(positions), math.prod(shape[1:])
    check_reals(f"J.contract: {name}", items)
    items = jnp.asarray(items)
    if len(items) == 0:
        raise ValueError(f"J.contract: {name} is empty.")
    units = items.ndim == 1 and jnp.issubdtype(items.dtype, jnp.integer)
    items = items if units else items.reshape(items.shape[0], -1).astype(product.dtype)
    if positions.ndim != 1 or len(positions) != len(items) or not jnp.issubdtype(positions.dtype, jnp.integer):
        raise ValueError(
            f"J.contract: {name}_pos holds one position for each of the {len(items)} rows of {name}, as integers; got "
            f"{positions.dtype}{list(positions.shape)}."
        )
    if not units and items.shape[1] != width:
        raise ValueError(
            f"J.contract: {name} has rows of {items.shape[1]} numbers; a position of its site has {width}."
        )
    positions = check_positions(f"J.contract: {name}_pos", positions, product.seq)
    if units and not isinstance(items, Tracer) and not bool(((items >= 0) & (items < width)).all()):
        raise ValueError(
            f"J.contract: {name} holds coordinates from 0 to {width - 1}, got {int(items.min())} to {int(items.max())}."
        )
    items = items.astype(jnp.int32) if units else items
    if not isinstance(positions, Tracer) and not (units and isinstance(items, Tracer)):
        return items, positions, None
    there = positions < product.seq
    if units:
        there, items = there & (items >= 0) & (items < width), jnp.clip(items, 0, width - 1)
    return items, jnp.minimum(positions, product.seq - 1), there

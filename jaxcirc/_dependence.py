"""What a function's results depend on, read off its jaxpr before anything is computed.

Both questions err on the side of more dependence: what is not known to be separate counts as mixed.
"""

import functools as ft
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


def dependence(jaxpr: ClosedJaxpr) -> dict[str, set[str]]:
    """For each value that the function named by `checkpoint_name` the names of those that it is computed from first."""
    return {name: read - {_JUMP} for name, read in _found(jaxpr).items()}


def reached_by_jumps(jaxpr: ClosedJaxpr) -> set[str]:
    """The names of the values that follow another that is named by a jump, of which its derivative does not tell: a sign, a comparison, a
    number that is rounded, or for which no derivative is taken.
    """
    return {name for name, read in _found(jaxpr).items() if _JUMP in read}


_JUMP = "by a jump"
JUMPS = frozenset("ceil floor rem round sign stop_gradient".split())  # beside all that makes no real numbers


def _jumps(equation: Any) -> bool:
    """Whether what an equation makes follows its operands without a derivative."""
    real = [jnp.issubdtype(var.aval.dtype, jnp.inexact) for var in equation.outvars]
    return equation.primitive.name in JUMPS or not any(real)


def _found(jaxpr: ClosedJaxpr) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    _collect(jaxpr.jaxpr, [set() for _ in jaxpr.in_avals], found)
    return found


def _collect(jaxpr: Jaxpr, inputs: Sequence[set[str]], found: dict[str, set[str]]) -> list[set[str]]:
    """Adds to `found` what is named in a jaxpr, and returns the names that its results are computed from first."""
    sets: dict[Any, set[str]] = dict(zip(jaxpr.invars, inputs, strict=True))
    of = lambda var: set() if isinstance(var, Literal) else sets.get(var, set())
    for equation in jaxpr.eqns:
        operands = [of(var) for var in equation.invars]
        inner = called(equation)
        if equation.primitive.name == "name":
            found[equation.params["name"]] = operands[0]
            results = [{equation.params["name"]}]
        elif inner is not None:
            results = _collect(inner.jaxpr, operands, found)
        else:
            read = set().union(*operands)
            results = [read | {_JUMP} if read and _jumps(equation) else read] * len(equation.outvars)
        sets |= dict(zip(equation.outvars, results, strict=True))
    return [of(var) for var in jaxpr.outvars]


def keeps_positions(function: Callable[..., Any], *arguments: jax.ShapeDtypeStruct, axes: Sequence[int | None]) -> bool:
    """Whether each entry of the results along their first axis depends on the same entry of the arguments alone, along the axis that
    `axes` names for each of them (`None`: an argument that all entries may read). So `function` is a loop over that axis.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    followed = [axis for argument, axis in zip(arguments, axes, strict=True) for _ in jax.tree.leaves(argument)]
    try:
        results = _follow(closed.jaxpr, followed)
    except _Mixes:
        return False
    return all(axis in (0, None) for axis in results)


@ft.lru_cache(maxsize=256)
def is_elementwise(function: Callable[[Any], Any]) -> bool:
    """Whether each number of the result depends on the same number of the argument alone, whatever the axis."""
    x = jax.ShapeDtypeStruct((3, 5), "float32")
    flipped = lambda x: function(x.T).T
    return keeps_positions(function, x, axes=[0]) and keeps_positions(flipped, x, axes=[0])


class _Mixes(Exception):
    """Entries along the axis are mixed, or it is not known that they are not."""


# Of JAX from 0.6 to 0.12. A part with a primitive whose name is missing counts as one that mixes positions.
ELEMENTWISE = frozenset(
    (
        "abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp clz complex conj "
        "convert_element_type copy copy_p cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma "
        "igamma_grad_a igammac imag integer_pow is_finite le le_to lgamma log log1p log2 logistic lt lt_to max min mul mulhi ne neg "
        "nextafter not one_minus_square or polygamma polynomial population_count pow real reduce_precision regularized_incomplete_beta "
        "rem round rsqrt select_n shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub "
        "tan tanh xor zeta"
    ).split()
)
REDUCTIONS = frozenset("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin".split())
CUMULATIVE = frozenset("cumsum cumprod cummax cummin cumlogsumexp".split())


def _follow(jaxpr: Jaxpr, inputs: Sequence[int | None]) -> list[int | None]:
    """Along which axis of each result the entries run; `None` for one that does not depend on them."""
    axes: dict[Any, int | None] = dict(zip(jaxpr.invars, inputs, strict=True))
    of = lambda var: None if isinstance(var, Literal) else axes.get(var)
    for equation in jaxpr.eqns:
        operands = [of(var) for var in equation.invars]
        if all(axis is None for axis in operands):
            continue
        inner = called(equation)
        if inner is not None:
            results = _follow(inner.jaxpr, operands)
        else:
            results = [_through(equation, operands)] * len(equation.outvars)
        axes |= dict(zip(equation.outvars, results, strict=True))
    return [of(var) for var in jaxpr.outvars]


def called(equation: Any) -> ClosedJaxpr | None:
    """The jaxpr of an equation that does nothing but call it with its operands."""
    if equation.primitive.name in ("while", "scan", "cond"):
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = equation.params.get(name)
        inner = ClosedJaxpr(inner, ()) if isinstance(inner, Jaxpr) and not inner.constvars else inner
        if isinstance(inner, ClosedJaxpr) and len(inner.in_avals) == len(equation.invars):
            return inner
    return None


def _through(equation: Any, operands: list[int | None]) -> int:
    """The axis of the results of one primitive. **Raises:** `_Mixes`."""
    name, params = equation.primitive.name, equation.params
    shapes = [var.aval.shape for var in equation.invars]
    if name == "dot_general":
        return _through_product(params["dimension_numbers"], shapes, operands)
    followed = {axis for axis in operands if axis is not None}
    if len(followed) > 1:
        raise _Mixes
    (axis,) = followed
    shape = shapes[operands.index(axis)]
    if name in ELEMENTWISE or (name == "bitcast_convert_type" and equation.outvars[0].aval.shape == shape):
        return axis
    if name in REDUCTIONS and axis not in params["axes"]:
        return axis - sum(reduced < axis for reduced in params["axes"])
    if name in CUMULATIVE and axis != params["axis"]:
        return axis
    if name == "broadcast_in_dim":
        return params["broadcast_dimensions"][axis]
    if name == "transpose":
        return params["permutation"].index(axis)
    if name == "squeeze":
        return axis - sum(squeezed < axis for squeezed in params["dimensions"])
    if name == "reshape":
        return _through_reshape(shape, params["new_sizes"], axis)
    if name in ("concatenate", "sort") and axis != params["dimension"]:
        return axis
    if name == "split" and axis != params["axis"]:
        return axis
    if name == "top_k" and axis != len(shape) - 1:
        return axis
    if name == "slice" and params["start_indices"][axis] == 0 and params["limit_indices"][axis] == shape[axis]:
        if params["strides"] is None or params["strides"][axis] == 1:
            return axis
    raise _Mixes


def _through_product(numbers: Any, shapes: list[tuple[int, ...]], operands: list[int | None]) -> int:
    contracting, batch = numbers
    if any(axis is not None and axis in contracting[side] for side, axis in enumerate(operands)):
        raise _Mixes
    at_batch = [list(batch[side]).index(axis) for side, axis in enumerate(operands) if axis in batch[side]]
    if at_batch:
        if len(at_batch) < sum(axis is not None for axis in operands) or len({*at_batch}) > 1:
            raise _Mixes
        return at_batch[0]
    if None not in operands:
        raise _Mixes
    ((side, axis),) = ((side, axis) for side, axis in enumerate(operands) if axis is not None)
    free = [[a for a in range(len(shape)) if a not in (*contracting[s], *batch[s])] for s, shape in enumerate(shapes)]
    return len(batch[0]) + (len(free[0]) if side else 0) + free[side].index(axis)


def _through_reshape(shape: tuple[int, ...], new: tuple[int, ...], axis: int) -> int:
    """The axis of the same size with as many entries before it."""
    before = math.prod(shape[:axis])
    for place, size in enumerate(new):
        if size == shape[axis] and math.prod(new[:place]) == before:
            return place
    raise _Mixes

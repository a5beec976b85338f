"""Programs that NumPy carries out: a jaxpr, operation by operation, without a compiler.

JAX writes a program down as a list of operations, and most of them NumPy has under some name. One that is not in the table below is JAX's
own, compiled by itself.
"""

import functools as ft
import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from ._dependence import called


def carry_out(closed: ClosedJaxpr, operands: Sequence[Any]) -> list[Any]:
    """The results of a jaxpr, of whose dtypes operands are made where they are read. What nothing reads any more is forgotten."""
    with np.errstate(all="ignore"):  # as JAX, which says nothing of infinities
        return _carried_out(closed, operands)


def most_made(closed: ClosedJaxpr) -> int:
    """How many numbers the operation makes that makes most; what stands inside of loops counts as none."""
    made = [math.prod(var.aval.shape) for equation in closed.jaxpr.eqns for var in equation.outvars]
    inner = [most_made(each) for each in map(called, closed.jaxpr.eqns) if each is not None]
    return max([*made, *inner], default=0)


def _carried_out(closed: ClosedJaxpr, operands: Sequence[Any]) -> list[Any]:
    jaxpr = closed.jaxpr
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *operands), strict=True))
    for equation, last in _needed(jaxpr):
        results = _results(equation, [_read(var, values) for var in equation.invars])
        values |= dict(zip(equation.outvars, results, strict=True))
        for var in last:
            values.pop(var, None)
    return [_read(var, values) for var in jaxpr.outvars]


def _needed(jaxpr: Jaxpr) -> Iterator[tuple[Any, set[Any]]]:
    """Goes through the equations of which something is read; with each, what nothing reads after it."""
    read = {var for var in jaxpr.outvars if not isinstance(var, Literal)}
    needed = []
    for equation in reversed(jaxpr.eqns):
        if not read.isdisjoint(equation.outvars):
            new = {var for var in equation.invars if not isinstance(var, Literal)} - read
            needed.append((equation, new | {var for var in equation.outvars if var not in read}))
            read |= new
    return reversed(needed)


def _read(var: Any, values: dict[Any, Any]) -> Any:
    """The value of a variable, as a NumPy array of its dtype; of one that NumPy does not have, as it is."""
    dtype = var.aval.dtype
    value = var.val if isinstance(var, Literal) else values[var]
    return value if jnp.issubdtype(dtype, jax.dtypes.extended) else np.asarray(value, dtype)


def _results(equation: Any, operands: list[Any]) -> Sequence[Any]:
    """What one equation makes of its operands."""
    name, params = equation.primitive.name, equation.params
    inner = called(equation)
    if inner is not None:
        return _carried_out(inner, operands)
    if name in CONTROL:
        return CONTROL[name](operands, [var.aval for var in equation.outvars], **params)
    if name in OPERATIONS and all(operand.size for operand in operands):  # the largest of nothing is JAX's to know
        made = OPERATIONS[name](*operands, **params)
    else:
        made = equation.primitive.bind(*map(jnp.asarray, operands), **params)
    return made if equation.primitive.multiple_results else [made]


def _scan(operands, avals, *, jaxpr, length, reverse, num_consts, num_carry, **_):
    consts, carry, over = operands[:num_consts], operands[num_consts:][:num_carry], operands[num_consts + num_carry :]
    rows = [np.empty(aval.shape, aval.dtype) for aval in avals[num_carry:]]
    for i in reversed(range(length)) if reverse else range(length):
        results = _carried_out(jaxpr, [*consts, *carry, *(xs[i] for xs in over)])
        carry = results[:num_carry]
        for row, result in zip(rows, results[num_carry:], strict=True):
            row[i] = result
    return [*carry, *rows]


def _while(operands, avals, *, cond_jaxpr, body_jaxpr, cond_nconsts, body_nconsts):
    asked, consts = operands[:cond_nconsts], operands[cond_nconsts:][:body_nconsts]
    carry = operands[cond_nconsts + body_nconsts :]
    while _carried_out(cond_jaxpr, [*asked, *carry])[0]:
        carry = _carried_out(body_jaxpr, [*consts, *carry])
    return carry


def _cond(operands, avals, *, branches, **_):
    which, *operands = operands
    return _carried_out(branches[np.clip(which, 0, len(branches) - 1)], operands)


def _matrix_product(left, right, *, dimension_numbers, **_):
    """`dot_general`: batch axes, then what is left of the one operand and of the other."""
    contracted, batched = dimension_numbers
    free = [
        [axis for axis in range(x.ndim) if axis not in (*contracted[side], *batched[side])]
        for side, x in enumerate((left, right))
    ]
    batch = [left.shape[axis] for axis in batched[0]]
    rows, columns = ([x.shape[axis] for axis in free[side]] for side, x in enumerate((left, right)))
    inner = math.prod(left.shape[axis] for axis in contracted[0])
    left = left.transpose((*batched[0], *free[0], *contracted[0])).reshape((*batch, math.prod(rows), inner))
    right = right.transpose((*batched[1], *contracted[1], *free[1])).reshape((*batch, inner, math.prod(columns)))
    return (left @ right).reshape((*batch, *rows, *columns))


def _spread(x, *, shape, broadcast_dimensions, **_):
    sizes = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, x.shape, strict=True):
        sizes[axis] = size
    return np.broadcast_to(x.reshape(sizes), shape)


def _slice(x, *, start_indices, limit_indices, strides):
    return x[tuple(map(slice, start_indices, limit_indices, strides or [None] * x.ndim))]


def _dynamic_slice(x, *starts, slice_sizes):
    firsts = [
        int(np.clip(start, 0, whole - size)) for start, whole, size in zip(starts, x.shape, slice_sizes, strict=True)
    ]
    return x[tuple(slice(first, first + size) for first, size in zip(firsts, slice_sizes, strict=True))]


def _pad(x, value, *, padding_config):
    sizes = [
        (size - 1) * inner + size if size else 0 for size, (_, _, inner) in zip(x.shape, padding_config, strict=True)
    ]
    added = [(max(low, 0), max(high, 0)) for low, high, _ in padding_config]
    made = np.full([low + size + high for size, (low, high) in zip(sizes, added, strict=True)], value)
    into = zip(added, sizes, padding_config, strict=True)
    made[tuple(slice(low, low + size, inner + 1) for (low, _), size, (*_, inner) in into)] = x
    return made[
        tuple(
            slice(max(-low, 0), size - max(-high, 0))
            for size, (low, high, _) in zip(made.shape, padding_config, strict=True)
        )
    ]


def _iota(*, shape, dimension, **_):
    return _spread(np.arange(shape[dimension]), shape=shape, broadcast_dimensions=(dimension,))


def _cumulative(ufunc, x, *, axis, reverse):
    return np.flip(ufunc.accumulate(np.flip(x, axis), axis), axis) if reverse else ufunc.accumulate(x, axis)


# NumPy's names of what means the same there; and those of `scipy.special`, which takes a third of a second to import.
UFUNCS = {
    name: name
    for name in "abs add ceil cos cosh exp exp2 expm1 floor log log1p sign sin sinh sqrt square tan tanh".split()
}
UFUNCS |= {
    "sub": "subtract",
    "mul": "multiply",
    "div": "divide",
    "neg": "negative",
    "pow": "power",
    "rem": "fmod",
    "add_any": "add",
}
UFUNCS |= {"max": "maximum", "min": "minimum", "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal"}
UFUNCS |= {"gt": "greater", "ge": "greater_equal", "is_finite": "isfinite"}
UFUNCS |= {"and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor", "not": "invert"}
SPECIAL = {
    "erf": "erf",
    "erfc": "erfc",
    "erf_inv": "erfinv",
    "lgamma": "gammaln",
    "digamma": "psi",
    "logistic": "expit",
}
REDUCTIONS = {
    "reduce_sum": "sum",
    "reduce_max": "max",
    "reduce_min": "min",
    "reduce_prod": "prod",
    "reduce_and": "all",
    "reduce_or": "any",
}


def _ufunc(name: str) -> Callable[..., Any]:
    return lambda *operands, **_: getattr(np, name)(*operands)


def _special(name: str) -> Callable[..., Any]:
    return lambda x, **_: getattr(importlib.import_module("scipy.special"), name)(x)


def _reduction(name: str) -> Callable[..., Any]:
    return lambda x, *, axes, **_: getattr(np, name)(x, axis=tuple(axes))


CONTROL: dict[str, Callable[..., Sequence[Any]]] = {"scan": _scan, "while": _while, "cond": _cond}
OPERATIONS: dict[str, Callable[..., Any]] = {
    **{ours: _ufunc(name) for ours, name in UFUNCS.items()},
    **{ours: _special(name) for ours, name in SPECIAL.items()},
    **{ours: _reduction(name) for ours, name in REDUCTIONS.items()},
    **dict.fromkeys(("convert_element_type", "copy", "copy_p", "name", "stop_gradient"), lambda x, **_: x),
    "broadcast_in_dim": _spread,
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
    "concatenate": lambda *parts, dimension: np.concatenate(parts, dimension),
    "cummax": ft.partial(_cumulative, np.maximum),
    "cumsum": ft.partial(_cumulative, np.add),
    "dot_general": _matrix_product,
    "dynamic_slice": _dynamic_slice,
    "integer_pow": lambda x, *, y: x**y,
    "iota": _iota,
    "one_minus_square": lambda x, **_: (1 - x) * (1 + x),
    "optimization_barrier": lambda *operands: operands,
    "pad": _pad,
    "reshape": lambda x, *, new_sizes, **_: x.reshape(new_sizes),
    "rev": lambda x, *, dimensions: np.flip(x, dimensions),
    "rsqrt": lambda x, **_: 1 / np.sqrt(x),
    "select_n": lambda which, *cases: np.choose(which, cases),
    "slice": _slice,
    "split": lambda x, *, sizes, axis: np.split(x, np.cumsum(sizes)[:-1], axis),
    "squeeze": lambda x, *, dimensions: x.squeeze(tuple(dimensions)),
    "transpose": lambda x, *, permutation: x.transpose(permutation),
}

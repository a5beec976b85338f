"""Half precision is how weights are stored, never how a number is computed.

float16 overflows at 65504 and keeps 11 bits, bfloat16 keeps 8. A norm's mean of squares, an attention score, a sum over prompts are
beyond that in ordinary models, and so are derivatives, which become 0 below 6e-8. So weights and dictionaries of half precision are
widened to float32 where they are read, and every activation, derivative and result of such a model is float32, the values at its sites
among them. float32 and float64 are left as they are, which costs nothing: no operation is added to a program.

Products of matrices alone may be computed with less, where it is asked for: `LOWER` has what their operands are rounded to.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array


T = TypeVar("T")

# Bits of the fraction that operands keep. In JAX's words for the precision of matrix products, of which the first is exact.
LOWER = {"bfloat16": 7, "tensorfloat32": 10}
PRECISIONS = ("float32", *LOWER)


def matmul_precision() -> str:
    """With what precision matrix products of float32 are computed, as configured; `"default"` is exact on CPUs, TF32 on GPUs that have it,
    and one pass of bfloat16 on TPUs.
    """
    return str(jax.config.jax_default_matmul_precision or "default")  # pyright: ignore[reportAttributeAccessIssue]  # set at run time


def wide_dtype(dtype: DTypeLike) -> jnp.dtype:
    """In what numbers stored as `dtype` are computed with: float32 for float16 and bfloat16, else as they are."""
    dtype = jnp.dtype(dtype)
    return jnp.dtype(jnp.float32) if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4 else dtype


def wide(array: Array) -> Array:
    """`array` in the dtype that is computed in; itself where it is in that already."""
    dtype = wide_dtype(jnp.result_type(array))
    return array if jnp.result_type(array) == dtype else jnp.asarray(array, dtype)


def widened(tree: T) -> T:
    """The same pytree with every array `wide`. Arrays that are wide stay the same objects."""
    return jax.tree.map(wide, tree)


def rounded(array: Array, precision: str) -> Array:
    """float32 with the digits that operands of products have at `precision`; anything else as it is."""
    if precision not in LOWER or jnp.result_type(array) != jnp.float32:
        return array
    return jax.lax.reduce_precision(array, 8, LOWER[precision])

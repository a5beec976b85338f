"""Certificates: the measured error of a Jacobian, on the machine and at the precision with which it was computed.

Compilers can be wrong, and have been (`jaxcirc._guard`). So what is saved carries the largest relative error of a few random probes
against forward-mode autodiff that runs operation by operation, without the compiler's fusions, in float64.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, TYPE_CHECKING

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jaxtyping import Array, Float, Int

from .._version import __version__
from ._positions import position_axis, put_positions
from ._span import Span


if TYPE_CHECKING:
    from ._operator import EdgeJacobian


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What was checked, and how far off it was.

    **Attributes:** `error`: the largest relative error, of the largest entry; `limit`: what would have passed; `probes`: how many random
    tangents; `engine`, `device`, `dtype`, `precision` (of matrix products), `versions`.
    """

    error: float
    limit: float
    probes: int
    engine: str
    device: str
    dtype: str
    precision: str
    versions: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The certificate as plain values, for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return (
            f"relative error {self.error:.1e} (limit {self.limit:.0e}) in {self.probes} probes against float64; {self.engine}, "
            f"{self.dtype}, matmul precision {self.precision}, {self.device}, jaxlib {self.versions['jaxlib']}"
        )


def certify(
    J: "EdgeJacobian", key: Array, matrix: Array | np.ndarray | None, probes: int, limit: float | None
) -> Certificate:
    """`EdgeJacobian.certificate`."""
    from ._operator import (
        select,  # the operator's class makes certificates, and a certificate says which engine it took
    )

    if J.transposed:
        J, matrix = J.T, None if matrix is None else _transposed(J, matrix)
    keys = jax.random.split(key, probes)
    worst = max(_of_matrix(J, key, matrix) if matrix is not None else _of_operator(J, key) for key in keys)
    return issue_certificate(worst, probes=probes, what=select(J), dtype=J.dtype, limit=limit)


def issue_certificate(error: float, *, probes: int, what: str, dtype, limit: float | None = None) -> Certificate:
    """The certificate of a measured error. **Raises:** `ValueError` if it is beyond the limit, by default that of the dtype."""
    limit = default_limit(dtype) if limit is None else limit
    certificate = Certificate(
        error=error,
        limit=limit,
        probes=probes,
        engine=what,
        device=jax.devices()[0].device_kind,
        dtype=str(dtype),
        precision=precision(),
        versions={"jaxcirc": __version__, "jax": jax.__version__, "jaxlib": jaxlib.version.__version__},
    )
    if not error <= limit:
        raise ValueError(
            f"The result is wrong: {certificate}. Run `jaxcirc doctor`; on accelerators raise jax_default_matmul_precision, or pass the "
            "limit that you accept."
        )
    return certificate


def precision() -> str:
    """The precision of float32 matrix products, as configured."""
    return str(jax.config.jax_default_matmul_precision or "default")  # pyright: ignore[reportAttributeAccessIssue]  # set at run time


def default_limit(dtype) -> float:
    """The relative error that passes: far above rounding, far below a wrong number."""
    if dtype == jnp.float64:
        return 1e-9
    if dtype == jnp.bfloat16:
        return 2e-1
    if dtype == jnp.float16:
        return 3e-2
    exact = jax.default_backend() == "cpu" or precision() in ("highest", "float32")
    return 1e-4 if exact else 2e-2  # TF32 and bfloat16 passes keep 8 to 11 bits


def reference(spans: tuple[Span, ...], tangent: np.ndarray) -> np.ndarray:
    """`J v` in float64, operation by operation."""
    with jax.enable_x64(True), jax.disable_jit(), jax.default_matmul_precision("highest"):
        value = jnp.asarray(tangent, jnp.float64)
        for span in jax.tree.map(_widened, spans):
            _, value = jax.jvp(span, (jnp.zeros(value.shape, jnp.float64),), (value,))
    return np.asarray(value)


def _widened(leaf: Array) -> Array:
    return jnp.asarray(leaf, jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def error_of_edges(
    ends: Sequence[tuple[Span, Float[np.ndarray, "m d_target"]]],
    left_pos: Int[np.ndarray, " m"],
    right: Float[np.ndarray, "k d_source"],
    right_pos: Int[np.ndarray, " k"],
    edges: Float[np.ndarray, "m k"],
) -> float:
    """The relative error of bilinear forms, `left` at one or several targets with one source: of their sums over `k` with random signs,
    against the image of the vectors' sum with those signs.
    """
    signs = np.random.default_rng(0).choice([-1.0, 1.0], len(right))
    seq = ends[0][0].resid.shape[0]
    tangent = np.zeros((seq, right.shape[1]))
    np.add.at(tangent, right_pos, signs[:, None] * np.asarray(right, np.float64))
    want = np.zeros(len(left_pos))
    for span, left in ends:
        image = reference((span,), tangent.reshape(span.ends()[0].shape)).reshape(seq, -1)
        want += (np.asarray(left, np.float64) * image[left_pos]).sum(1)
    return _error(np.asarray(edges, np.float64) @ signs, want)


def _of_matrix(J: "EdgeJacobian", key: Array, matrix: Float[Array | np.ndarray, "..."]) -> float:
    """The error of `matrix v` for one random tangent `v`."""
    if matrix.shape != (*J.target_shape, *J.source_shape):
        raise ValueError(
            f"certificate(matrix=…): expected the result of as_matrix, {(*J.target_shape, *J.source_shape)}; got {matrix.shape}."
        )
    tangent = np.asarray(jax.random.normal(key, J.source_shape, J.dtype), np.float64)
    # Row by row, because the matrix may be larger than memory.
    got = np.stack([np.tensordot(np.asarray(row, np.float64), tangent, axes=tangent.ndim) for row in matrix])
    return _error(got, _restricted(J, reference(J.spans, _spread(J, tangent))))


def _of_operator(J: "EdgeJacobian", key: Array) -> float:
    """The error of `J v` for a random tangent, of `w^T J v` by way of the batched `J^T w`, and of bilinear forms between random
    positions."""
    keys = jax.random.split(key, 5)
    tangent = jax.random.normal(keys[0], J.source_shape, J.dtype)
    want = reference(J.spans, _spread(J, np.asarray(tangent, np.float64)))
    worst = _error(np.asarray(J.mv(tangent), np.float64), _restricted(J, want))
    cotangents = jax.random.normal(keys[4], (8, *J.target_shape), J.dtype)
    products = lambda left, right: np.tensordot(
        np.asarray(left, np.float64), np.asarray(right, np.float64), axes=right.ndim
    )
    worst = max(worst, _error(products(J.rows(cotangents), tangent), products(cotangents, _restricted(J, want))))
    (start, _), (_, end) = J.spans[0].ends(), J.spans[-1].ends()
    seq = J.spans[0].resid.shape[0]
    if start.shape[0] != seq or end.shape[0] != seq:  # scores and patterns have no single position
        return worst
    # A tangent at every position is the sum of the edges from each of them.
    everywhere = jax.random.normal(keys[1], start.shape, J.dtype)
    left = jax.random.normal(keys[2], (8, int(np.prod(end.shape[1:]))), J.dtype)
    left_pos = jax.random.randint(keys[3], (8,), 0, seq).at[0].set(seq - 1)
    got = np.asarray(J.contract(left, left_pos, everywhere.reshape(seq, -1), jnp.arange(seq)), np.float64).sum(1)
    image = reference(J.spans, np.asarray(everywhere, np.float64)).reshape(seq, -1)
    want = (np.asarray(left, np.float64) * image[np.asarray(left_pos)]).sum(1)
    return max(worst, _error(got, want))


def _error(got: np.ndarray, want: np.ndarray) -> float:
    size = float(np.abs(want).max())
    if size == 0:
        return float(np.abs(got).max())
    return float(np.abs(got - want).max()) / size


def _spread(J: "EdgeJacobian", tangent: np.ndarray) -> np.ndarray:
    """A tangent of the restricted source as one of the whole."""
    return np.asarray(
        put_positions(jnp.asarray(tangent)[None], J.spans[0].source, J.source_pos, J.spans[0].ends()[0].shape)[0]
    )


def _restricted(J: "EdgeJacobian", value: np.ndarray) -> np.ndarray:
    return (
        value
        if J.target_pos is None
        else np.take(value, np.asarray(J.target_pos), axis=position_axis(J.spans[-1].target))
    )


def _transposed(J: "EdgeJacobian", matrix: Array | np.ndarray) -> Array:
    split = len(J.target_shape)
    return jnp.transpose(matrix, (*range(split, matrix.ndim), *range(split)))

"""Certificates: the measured error of a Jacobian, on the machine and at the precision with which it was computed.

Compilers can be wrong, and have been (`jaxcirc._guard`). So what is saved carries the largest relative error of a few random probes
against forward-mode autodiff in float64 that NumPy computes (`_reference`). An operator has several routes to its numbers, and one that
is right says nothing of another: a certificate names those that it has probed, and probes them as they run for everyone else.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jaxtyping import Array, Float, Int

from .._checks import check_count
from .._precision import matmul_precision
from .._shown import Shown
from .._target import running_device, running_platform
from .._version import __version__
from ..linear import Segment
from ._contract import contract
from ._engine import CLOSED, contract_route, engine_of, matrix_route, side_of
from ._matrix import matrix_by
from ._positions import position_axis
from ._product import Product
from ._reference import image_of


@dataclasses.dataclass(frozen=True, repr=False)
class Certificate(Shown):
    """What was checked, and how far off it was.

    **Attributes:** `error`: the largest relative error, of the largest entry; `limit`: what would have passed; `probes`: how many random
    tangents; `engine`: `jc.select`'s word for it, and which routes were probed; `device`, `dtype`, `precision` (of matrix products),
    `versions`.
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
    product: Product, key: Array, matrix: Array | np.ndarray | None, probes: int, limit: float | None
) -> Certificate:
    """`EdgeJacobian.certificate`."""
    check_count("J.certificate: probes", "random tangents", probes)
    if matrix is not None and matrix.shape != (*product.target_shape, *product.source_shape):
        raise ValueError(
            f"certificate(matrix=…): expected the result of as_matrix, {(*product.target_shape, *product.source_shape)}; "
            f"got {matrix.shape}."
        )
    if product.transposed:
        product, split = product.T, len(product.target_shape)
        matrix = None if matrix is None else np.transpose(matrix, (*range(split, matrix.ndim), *range(split)))
    route, forms = matrix_route(product), _form_routes(product)
    rng = np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    if matrix is not None:
        worst = max(_of_matrix(product, rng, matrix) for _ in range(probes))
        what = f"{engine_of(route)} (matrix by {route})"
    else:
        part = probed_part(product, route)
        made = None if part is None else np.asarray(matrix_by(part, route))
        errors = [_of_operator(product, rng, forms) for _ in range(probes)]
        if part is not None and made is not None:
            errors += [_of_matrix(part, rng, made) for _ in range(probes)]
        probed = [f"matrix by {route}"] * (made is not None)
        probed += [f"bilinear forms by {' and '.join(forms)}"] * product.has_single_positions
        worst, what = max(errors), f"{engine_of(route, *forms)} ({', '.join([*probed, 'products by sweep'])})"
    return issue_certificate(worst, probes=probes, what=what, dtype=product.dtype, limit=limit)


def _form_routes(product: Product) -> list[str]:
    """Lists the routes by which bilinear forms are made: of many items, and of one."""
    return sorted({contract_route(product), contract_route(product, 1)})


PROBED, SWEPT = 2**25, 512  # bytes of a matrix that is made to be probed, and the most sweeps that make it


def probed_part(product: Product, route: str) -> Product | None:
    """Restricts the product to as many positions as make a small matrix by a route of its own matrix; `None` if even one is too much, or
    takes many sweeps, which products with unit vectors are.
    """
    swept = side_of(route)
    for side in (swept, "source" if swept == "target" else "target"):
        shape, place = product.shapes[side == "target"], product.places[side == "target"]
        count = shape[position_axis(place.first)]
        some = PROBED // (_size(product) // count)
        if route not in CLOSED and side == swept:
            some = min(some, SWEPT // (math.prod(shape) // count))
        if some < count:
            # Evenly spaced from the last on, which everything reaches.
            chosen = np.linspace(count - 1, 0, max(1, some)).astype(np.int32)
            positions = chosen if place.positions is None else np.asarray(place.positions)[chosen]
            product = product.restricted(**{f"{side}_pos": jnp.asarray(positions, jnp.int32)})
    sweeps = 0 if route in CLOSED else math.prod(product.shapes[swept == "target"])
    return None if _size(product) > 4 * PROBED or sweeps > SWEPT else product


def _size(product: Product) -> int:
    return math.prod(product.source_shape) * math.prod(product.target_shape) * product.dtype.itemsize


def issue_certificate(error: float, *, probes: int, what: str, dtype, limit: float | None = None) -> Certificate:
    """The certificate of a measured error. **Raises:** `ValueError` if it is beyond the limit, by default that of the dtype."""
    limit = default_limit(dtype) if limit is None else limit
    certificate = Certificate(
        error=error,
        limit=limit,
        probes=probes,
        engine=what,
        device=running_device().device_kind,
        dtype=str(dtype),
        precision=matmul_precision(),
        versions={"jaxcirc": __version__, "jax": jax.__version__, "jaxlib": jaxlib.version.__version__},
    )
    if not error <= limit:
        raise ValueError(
            f"The result is wrong: {certificate}. Run `jaxcirc doctor`; on accelerators raise jax_default_matmul_precision, or pass the "
            "limit that you accept."
        )
    return certificate


def certify_edges(errors: Sequence[float], dtype) -> Certificate | None:
    """The certificate of edges whose errors were measured; `None` if none was."""
    return issue_certificate(max(errors), probes=len(errors), what="edges", dtype=dtype) if errors else None


def default_limit(dtype) -> float:
    """The relative error that passes: far above rounding, far below a wrong number."""
    if dtype == jnp.float64:
        return 1e-9
    if dtype == jnp.bfloat16:
        return 2e-1
    if dtype == jnp.float16:
        return 3e-2
    exact = running_platform() == "cpu" or matmul_precision() in ("highest", "float32")
    return 1e-4 if exact else 2e-2  # TF32 and bfloat16 passes keep 8 to 11 bits


def reference(segments: tuple[Segment, ...], tangent: np.ndarray) -> np.ndarray:
    """Computes the segments' `J v` in float64."""
    for segment in segments:
        tangent = image_of(segment, np.zeros(tangent.shape), tangent)
    return tangent


def error_of_edges(
    ends: Sequence[tuple[Segment, Float[np.ndarray, "m d_target"]]],
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
    for segment, left in ends:
        image = reference((segment,), tangent.reshape(segment.shapes()[0].shape)).reshape(seq, -1)
        want += (np.asarray(left, np.float64) * image[left_pos]).sum(1)
    return _error(np.asarray(edges, np.float64) @ signs, want)


def _of_matrix(product: Product, rng: np.random.Generator, matrix: Float[Array | np.ndarray, "..."]) -> float:
    """Measures the error of `matrix v` for one random tangent `v`."""
    tangent = _wide(_random(rng, product.source_shape, product.dtype))
    # Row by row, because the matrix may be larger than memory.
    got = np.stack([np.tensordot(_wide(row), tangent, axes=tangent.ndim) for row in matrix])
    return _error(got, _image(product, tangent))


def _of_operator(product: Product, rng: np.random.Generator, forms: Sequence[str]) -> float:
    """Measures the error of products from either side, and of bilinear forms by their routes."""
    tangents, cotangents = (
        _random(rng, (8, *shape), product.dtype) for shape in (product.source_shape, product.target_shape)
    )
    tangent = _wide(tangents).sum(0)  # one run of the reference for all of them
    want = _image(product, tangent)
    image = _wide(product.sweep(tangents[:1], None, forward=True))[0] + _wide(
        product.sweep(tangents[1:], None, forward=True)
    ).sum(0)
    pulled, pushed = (
        _products(_wide(product.sweep(cotangents, None, forward=False)), tangent),
        _products(_wide(cotangents), want),
    )
    worst = max(_error(image, want), _error(pulled, pushed))
    if not product.has_single_positions:
        return worst
    (start, _), (_, end) = product.segments[0].shapes(), product.segments[-1].shapes()
    seq = product.seq
    # Every position, or some of many, each several times if they are few.
    right_pos = np.resize(rng.permutation(seq)[:32], max(8, min(seq, 32)))
    right = _random(rng, (len(right_pos), math.prod(start.shape[1:])), product.dtype)
    everywhere = np.zeros((seq, right.shape[1]))
    np.add.at(everywhere, right_pos, _wide(right))
    image = reference(product.segments, everywhere.reshape(start.shape)).reshape(seq, -1)
    # Few rows are met at once; more rows than columns are sorted into blocks, with little memory, or have the columns swept.
    for route, many in itertools.product(forms, (False, True)):
        rows, budget = len(right_pos) + 8 if many else 8, 0 if many and route == "contraction" else None
        left = _random(rng, (rows, math.prod(end.shape[1:])), product.dtype)
        left_pos = np.resize(np.arange(seq)[::-1], rows)
        got = contract(product, left, jnp.asarray(left_pos), right, jnp.asarray(right_pos), budget, route)
        worst = max(worst, _error(_wide(got).sum(1), (_wide(left) * image[left_pos]).sum(1)))
    return worst


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype) -> Array:
    return jnp.asarray(rng.normal(size=shape).astype(dtype))


def _wide(array: Array | np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float64)


def _products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.tensordot(left, right, axes=right.ndim)


def _error(got: np.ndarray, want: np.ndarray) -> float:
    off = float(np.abs(got - want).max()) / (float(np.abs(want).max()) or 1.0)
    return math.inf if math.isnan(off) else off  # `max` of Python passes over NaN


def _image(product: Product, tangent: np.ndarray) -> np.ndarray:
    """Computes `product v` in float64 for a tangent at the product's positions."""
    begin, end = product.places
    if begin.positions is not None:
        axis = position_axis(begin.first)
        whole = np.zeros(product.segments[0].shapes()[0].shape)
        np.add.at(np.moveaxis(whole, axis, 0), np.asarray(begin.positions), np.moveaxis(tangent, axis, 0))
        tangent = whole
    value = reference(product.segments, tangent)
    return value if end.positions is None else np.take(value, np.asarray(end.positions), axis=position_axis(end.first))

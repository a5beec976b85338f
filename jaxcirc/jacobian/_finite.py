"""Where a NaN or an infinity comes from."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from .._sites import Kind, Site
from .._tap import Everything
from ..linear import Segment
from ._product import Product


def check_finite(product: Product, result: Array) -> None:
    """ValueError that names the first site at which the value or its derivative is not finite, if `result` is not."""
    if isinstance(result, Tracer) or bool(jnp.isfinite(result).all()):
        return
    for segment, layer in zip(product.segments, product.begins, strict=True):
        found = _first(segment)
        if found is not None:
            site, what = found
            raise ValueError(
                f"The Jacobian is not finite: the {what} at `{site.offset_layers(int(layer))}` is the first NaN or infinity. Look at "
                "the value there with jc.run(…, record=[…]), and at the weights and dictionaries before it."
            )
    raise ValueError(
        "The Jacobian is not finite, though every value and derivative on the way is: numbers overflow, or the vectors given are not "
        "finite. Use a wider dtype, or look at the vectors."
    )


def _first(segment: Segment) -> tuple[Site, str] | None:
    """Finds the first site of the clean run whose value, or whose tangent for a dense tangent at the source, is not finite."""

    zero = segment.zero()
    values, tangents = jax.jvp(lambda step: segment.record(Everything(), step), (zero,), (jnp.ones_like(zero),))
    for site in sorted(values):
        masked = site.kind == Kind.ATTN_SCORES  # which are -inf where nobody may attend
        value = np.asarray(values[site])
        if not (np.isfinite(value) | (masked & (value == -np.inf))).all():
            return site, "value"
        if not np.isfinite(np.asarray(tangents[site])).all():
            return site, "derivative"
    return None

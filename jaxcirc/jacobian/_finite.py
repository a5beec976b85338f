"""Where a NaN or an infinity comes from."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from .._edits import Add
from .._sites import Kind, Site
from .._tap import Everything, Tap
from ..linear import Span


if TYPE_CHECKING:
    from ._operator import EdgeJacobian


def check_finite(J: "EdgeJacobian", result: Array) -> None:
    """ValueError that names the first site at which the value or its derivative is not finite, if `result` is not."""
    if isinstance(result, Tracer) or bool(jnp.isfinite(result).all()):
        return
    for span, layer in zip(J.spans, J.begins, strict=True):
        found = _first(span)
        if found is not None:
            site, what = found
            raise ValueError(
                f"The Jacobian is not finite: the {what} at `{site.shift(int(layer))}` is the first NaN or infinity. Look at the value "
                "there with jc.run(…, record=[…]), and at the weights and dictionaries before it."
            )
    raise ValueError(
        "The Jacobian is not finite, though every value and derivative on the way is: numbers overflow, or the vectors given are not "
        "finite. Use a wider dtype, or look at the vectors."
    )


def _first(span: Span) -> tuple[Site, str] | None:
    """The first site of the clean run whose value, or whose tangent for a dense tangent at the source, is not finite."""

    def everything(step):
        tap = Tap(span.saes, {span.source: Add(step)}, Everything())
        resid = span.resid
        if span.tokens is not None:
            assert span.outside is not None
            resid = span.outside.embed(span.tokens, tap, span.keys)
        for layer, (block, mask) in enumerate(zip(span.blocks, span.masks, strict=True)):
            resid = block(resid, mask, tap.at(layer))
        if span.outside is not None and span.target.layer is None:
            span.outside.unembed(resid, tap)
        return tap.cache

    zero = span.zero()
    values, tangents = jax.jvp(everything, (zero,), (jnp.ones_like(zero),))
    for site in sorted(values):
        masked = site.kind == Kind.ATTN_SCORES  # which are -inf where nobody may attend
        value = np.asarray(values[site])
        if not (np.isfinite(value) | (masked & (value == -np.inf))).all():
            return site, "value"
        if not np.isfinite(np.asarray(tangents[site])).all():
            return site, "derivative"
    return None

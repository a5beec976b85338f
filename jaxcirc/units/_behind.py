"""What a change of what a sublayer computes adds to the residual stream, where a norm may be behind the sublayer."""

from jaxtyping import Array, Float

from .._tap import bare_tap
from ..parts import Norm


def added_behind(
    norm: Norm | None, read: Float[Array, "seq d_model"] | None, change: Float[Array, "seq d_model"]
) -> Float[Array, "seq d_model"]:
    """Computes by how much what is added moves when what the norm behind reads, `read`, moves by `change`; without a norm by as much."""
    if norm is None or read is None:
        return change
    tap = bare_tap(0)
    return norm(read + change, tap) - norm(read, tap)

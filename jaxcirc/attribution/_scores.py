"""How attention scores move when a query or a key does: through the norm of queries or keys, rotation by positions, and the scores' cap."""

from jaxtyping import Array, Float, Int

from .._tap import bare_tap
from ..parts import Attention, Norm, RMSNorm, Rotary


def placed_change(
    norm: Norm | None,
    rotary: Rotary | None,
    x: Float[Array, "seq head d_head"],
    change: Float[Array, "seq head d_head"],
    positions: Int[Array, " seq"],
) -> Float[Array, "seq head d_head"]:
    """Computes by how much queries or keys move as the scores read them, when `x`, as they are projected, moves by `change`."""
    tap = bare_tap(0)
    moved = change if norm is None else norm(x + change, tap) - norm(x, tap)
    return moved if rotary is None else rotary(moved, positions)  # which is linear


def capped_change(
    attn: Attention, scores: Float[Array, "..."] | None, change: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Computes by how much scores move behind their cap when `scores`, before it, move by `change`; without a cap by as much."""
    if attn.cap is None or scores is None:
        return change
    return attn.cap_scores(scores + change) - attn.cap_scores(scores)


def moves_together(attn: Attention) -> bool:
    """Whether a query or a key of one head moves those of all: where their norm is of all heads together."""
    return any(isinstance(norm, RMSNorm) and norm.joint for norm in (attn.q_norm, attn.k_norm))

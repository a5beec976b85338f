"""Self-repair where it matters: on the tokens that a head helps most."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from .._checks import check_share
from .._shown import Shown
from ._after_heads import Changes


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Breakdown(Shown):
    """What ablating each head does on the tokens where its direct effect is largest: means over these tokens, `[layer head]`, in the
    logit's units. `change = (ablated - direct) + heads + mlps + norm`.

    **Attributes:**

    - `direct`, `ablated`: the head's direct effect before and after. - `change`: of the logit.
    - `heads`, `mlps`, `norm`: the repair by later heads, by MLPs, and by the norms' scales. - `repair`: their sum.
    - `shares`: of the same four, the part of the direct effect that is repaired, token by token, clipped to 0 and 1 before the mean.
    - `tokens` `[layer head]`: how many tokens there are.
    """

    direct: Float[np.ndarray, "layer head"]
    ablated: Float[np.ndarray, "layer head"]
    change: Float[np.ndarray, "layer head"]
    heads: Float[np.ndarray, "layer head"]
    mlps: Float[np.ndarray, "layer head"]
    norm: Float[np.ndarray, "layer head"]
    repair: Float[np.ndarray, "layer head"]
    shares: dict[str, Float[np.ndarray, "layer head"]]
    tokens: Int[np.ndarray, "layer head"]


def breakdown(changes: Changes, used: Bool[np.ndarray, "batch seq"], share: float) -> Breakdown:
    """Breaks the changes down on the `share` of the used tokens on which each head's direct effect is largest."""
    check_share("SelfRepair.top: share", "tokens", share)
    points = lambda x: np.moveaxis(x, -1, 1)[used].astype(np.float64)  # [token layer head]
    direct = points(changes.direct)
    count = max(1, int(share * len(direct)))
    top = np.argsort(-direct, axis=0, kind="stable")[:count]
    of = lambda x: np.take_along_axis(points(x), top, axis=0)
    parts = {"heads": of(changes.backup), "mlps": of(changes.mlps), "norm": of(changes.norm)}
    parts["repair"] = parts["heads"] + parts["mlps"] + parts["norm"]
    before = of(changes.direct)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = {name: np.clip(part / before, 0, 1) for name, part in parts.items()}
    means = {name: part.mean(0) for name, part in parts.items()}
    return Breakdown(
        direct=before.mean(0),
        ablated=(before + of(changes.own)).mean(0),
        change=of(changes.change).mean(0),
        **means,
        shares={name: _mean_of_numbers(part) for name, part in shares.items()},
        tokens=np.full(before.shape[1:], count),
    )


def _mean_of_numbers(x: Float[np.ndarray, "token layer head"]) -> Float[np.ndarray, "layer head"]:
    """Takes the mean over tokens without those that are not numbers: the share of an effect of 0."""
    real = ~np.isnan(x)
    with np.errstate(invalid="ignore"):
        return np.where(real, x, 0).sum(0) / real.sum(0)

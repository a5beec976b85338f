"""What a lens was fitted with."""

import dataclasses
from typing import Any

from .._indexing import counted_from_end


@dataclasses.dataclass(frozen=True)
class LensSettings:
    """What a lens was fitted with: two lenses can be merged if all of it is the same.

    **Attributes:**

    - `target_layer`: the layer to whose output (`hook_resid_post`) the maps lead; from -1, the last, counted from the end where a file
      does so, or says nothing, which is the last.
    - `skip_first`: how many positions at the beginning of each prompt were left out; `None` if a file does not say.
    - `rule`: how derivatives were taken, `"exact"`, `"lrp"` or `"detached"`.
    - `average`: `"corpus"`, `"cluster"` or `"head"`.
    - `model`, `fingerprint`: the model's name and fingerprint; empty if a file does not say.
    - `more`: what else a published file says of itself, such as `capture_point`: names and values.
    """

    target_layer: int
    skip_first: int | None = None
    rule: str = "exact"
    average: str = "corpus"
    model: str = ""
    fingerprint: str = ""
    more: tuple[tuple[str, Any], ...] = ()

    def first_difference(self, other: "LensSettings") -> str | None:
        """The name of the first setting in which the two differ, `None` if none does. What one of them does not say differs from nothing,
        and what a model is called is no difference.
        """
        names = (field.name for field in dataclasses.fields(self) if field.name not in ("model", "more"))
        return next((name for name in names if _differ(name, getattr(self, name), getattr(other, name))), None)

    def with_(self, other: "LensSettings") -> "LensSettings":
        """All that either of two says that do not differ."""
        said = lambda name: getattr(other if getattr(self, name) in (None, "") else self, name)
        return LensSettings(
            target_layer=max(self.target_layer, other.target_layer),  # the greater is counted from the first, if one is
            skip_first=said("skip_first"),
            rule=said("rule"),
            average=said("average"),
            model=said("model"),
            fingerprint=said("fingerprint"),
            more=tuple(sorted((dict(other.more) | dict(self.more)).items())),
        )

    def counted(self, n_layers: int) -> "LensSettings":
        """With the target layer counted from the first, in a model of so many layers."""
        return dataclasses.replace(self, target_layer=counted_from_end(self.target_layer, n_layers))


def _differ(name: str, mine: Any, theirs: Any) -> bool:
    if mine in (None, "") or theirs in (None, ""):
        return False
    if name == "target_layer" and (mine < 0) != (theirs < 0):
        return False  # one is counted from the end: whether they are one layer, a model says alone
    return mine != theirs

"""What a lens was fitted with."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class LensSettings:
    """What a lens was fitted with: two lenses can be merged if all of it is the same.

    **Attributes:**

    - `target_layer`: the layer to whose output (`hook_resid_post`) the maps lead.
    - `skip_first`: how many positions at the beginning of each prompt were left out; `None` if a file does not say.
    - `rule`: how derivatives were taken, `"exact"`, `"lrp"` or `"detached"`.
    - `average`: `"corpus"` or `"cluster"`.
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
        said = lambda name: all(getattr(each, name) not in (None, "") for each in (self, other))
        return next((name for name in names if said(name) and getattr(self, name) != getattr(other, name)), None)

"""What a row of the table is: our side, how it is checked, and whom it is measured against."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ._timing import Run


class Rival(NamedTuple):
    """Something that our side is measured against.

    **Attributes:**

    - `name`: the table's name for it. `variants`: formulations and chunk sizes; the best is timed.
    - `prepare(variant, amount)`: a run of an `amount` of the work, in `unit`s, of which there are `all`.
    - `expected(ours, variant, amount)`: the part of our result that this run equals; `None` for a yardstick that computes something else.
    - `tried`, `timed`: the amounts with which the variants are tried, and with which the best is timed.
    - `in_torch`: whether it needs PyTorch.
    """

    name: str
    variants: tuple[str, ...]
    prepare: Callable[[str, int], Run]
    expected: Callable[[np.ndarray, str, int], np.ndarray] | None
    unit: str
    tried: int
    timed: int
    all: int
    in_torch: bool = True


def first_part(numbers: np.ndarray, variant: str, amount: int) -> np.ndarray:
    """What a run of the first `amount` equals of our result, whichever the variant."""
    return numbers[:amount]


class Row(NamedTuple):
    """One row.

    **Attributes:** `what`: a sentence; `sizes`; `prepare()`: our run, with what it needs on the device; `check(ours)`: two arrays that
    are equal, the second by what `against` names; `rivals`; `work`: operations, `own` and `autodiff` (see `_work`); `numbers(result)`:
    what our run returns as the array that is compared, which takes no part in the times.
    """

    what: str
    sizes: Mapping[str, int]
    prepare: Callable[[], Run]
    check: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    rivals: tuple[Rival, ...]
    work: Mapping[str, float]
    numbers: Callable[[Any], np.ndarray] = np.asarray
    against: str = "jax.jvp"


Maker = Callable[..., Row]
ROWS: dict[str, tuple[Maker, dict[str, dict[str, Any]]]] = {}


def register(name: str, **sizes: dict[str, Any]) -> Callable[[Maker], Maker]:
    """Registers a maker of rows by name, with its arguments for each size: `quick`, `small`, `xl`."""

    def keep(maker: Maker) -> Maker:
        ROWS[name] = (maker, sizes)
        return maker

    return keep


def make_row(name: str, size: str) -> Row:
    """The row of that name and size. **Raises:** `ValueError` if there is none."""
    if name not in ROWS:
        raise ValueError(f"No benchmark is called {name!r}; there are {', '.join(ROWS)}.")
    maker, sizes = ROWS[name]
    return maker(**sizes[size])

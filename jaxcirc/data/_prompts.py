"""A set of prompts: what every verb over data takes."""

from collections.abc import Sequence

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from .._indexing import rows_of
from .._metrics import LogitDiff
from .._shown import Shown


class Prompts(Shown, eqx.Module):
    """Pairs of prompts, clean and corrupt, that differ in one thing and have one length, with their answers.

    **Attributes:**

    - `clean`, `corrupt` `[batch seq]`: token ids. Where prompts of several lengths are together, the padding is on the right.
    - `answer`, `foil` `[batch]`: the token that should come after the clean prompt, and the one that it is compared with.
    - `positions`: the place of each named word of the clean prompt, `[batch]`; `"end"`, the last token, is always there.
    - `mask` `[batch seq]`: False for padding; `None` if there is none.

    `len(prompts)` is the number of pairs; `prompts[:4]` and `prompts[[0, 7]]` are sets of some of them, and `prompts[3]` of one.

    >>> prompts = jc.data.subject_verb(tokenizer, 8, kind="rc", seed=0)
    >>> len(prompts), prompts[:4].clean.shape
    (8, (4, 7))
    """

    clean: Int[Array, "batch seq"]
    corrupt: Int[Array, "batch seq"]
    answer: Int[Array, " batch"]
    foil: Int[Array, " batch"]
    positions: dict[str, Int[Array, " batch"]]
    mask: Bool[Array, "batch seq"] | None = None

    def __len__(self) -> int:
        return self.clean.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> "Prompts":
        if index is None or (rows := np.atleast_1d(np.arange(len(self))[index])).ndim > 1:
            raise TypeError(f"Prompts: expected a number, a slice or a list of numbers in [ ], got {index!r}.")
        return rows_of(self, rows)

    def metric(self) -> LogitDiff:
        """`logit[answer] - logit[foil]` at each prompt's last token."""
        return LogitDiff(self.answer, self.foil, position=self.positions["end"])


def as_ids(values) -> Int[Array, "..."]:
    """Makes token ids or positions as an array; int32 whatever JAX's default is."""
    return jax.device_put(np.array(values, np.int32))  # a copy, as it may become the device's own

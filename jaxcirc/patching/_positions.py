"""Positions as verbs take them: one for all prompts, one a prompt, or several a prompt."""

from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool


Positions = ArrayLike | Sequence[int] | Sequence[Sequence[int]]


def where_of(
    name: str, positions: Positions | None, mask: Bool[np.ndarray, "batch seq"]
) -> Bool[np.ndarray, "batch seq"]:
    """Which positions of each prompt are meant. **Raises:** `ValueError` for one that a prompt does not have, or that is padding."""
    batch, seq = mask.shape
    if positions is None:
        return np.ones((batch, seq), bool)
    given = np.asarray(positions)
    if not np.issubdtype(given.dtype, np.integer):
        raise TypeError(f"{name}: positions are integers, got dtype {given.dtype}.")
    if given.ndim > 2 or (given.ndim and len(given) != batch):
        raise ValueError(
            f"{name}: expected one position for all, [batch] one a prompt, or [batch k] several, of {batch} prompts; got shape "
            f"{given.shape}."
        )
    each = np.broadcast_to(given, (batch,)) if not given.ndim else given
    each = each.reshape(batch, -1)
    where = np.zeros((batch, seq), bool)
    for prompt, places in enumerate(each):
        for position in places:
            if not -seq <= position < seq:
                raise ValueError(f"{name}: prompt {prompt} has {seq} tokens, and none at position {position}.")
            if not mask[prompt, position]:
                raise ValueError(f"{name}: position {position} of prompt {prompt} is padding.")
            where[prompt, position] = True
    return where

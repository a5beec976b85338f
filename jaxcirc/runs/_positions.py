"""Positions as verbs take them: one for all prompts, one a prompt, or several a prompt."""

from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Int


Positions = ArrayLike | Sequence[int] | Sequence[Sequence[int]]


def where_of(
    name: str, positions: Positions | None, mask: Bool[np.ndarray, "batch seq"]
) -> Bool[np.ndarray, "batch seq"]:
    """Which positions of each prompt are meant. **Raises:** `ValueError` for one that a prompt does not have, or that is padding."""
    batch, seq = mask.shape
    if positions is None:
        return np.ones((batch, seq), bool)
    try:
        given = np.asarray(positions)
    except ValueError:  # lists of several lengths
        raise ValueError(
            f"{name}: expected as many positions of one prompt as of another, got {positions!r}. Repeat one where there are fewer."
        ) from None
    if not np.issubdtype(given.dtype, np.integer):
        raise TypeError(f"{name}: positions are integers, got dtype {given.dtype}.")
    if given.ndim > 2 or (given.ndim and len(given) != batch):
        raise ValueError(
            f"{name}: expected one position for all, [batch] one a prompt, or [batch k] several, of {batch} prompts; got shape "
            f"{given.shape}."
        )
    each = np.broadcast_to(given, (batch,)) if not given.ndim else given
    where = np.zeros((batch, seq), bool)
    np.put_along_axis(where, counted_places(name, each.reshape(batch, -1), mask), True, axis=1)
    return where


def counted_places(
    name: str, places: Int[np.ndarray, "batch k"], mask: Bool[np.ndarray, "batch seq"]
) -> Int[np.ndarray, "batch k"]:
    """Positions of each prompt, counted from 0. **Raises:** `ValueError` for one that a prompt does not have, or that is padding."""
    seq = mask.shape[1]
    for prompt, of in np.argwhere((places < -seq) | (places >= seq))[:1]:
        raise ValueError(f"{name}: prompt {prompt} has {seq} tokens, and none at position {places[prompt, of]}.")
    found = places % seq
    for prompt, of in np.argwhere(~np.take_along_axis(mask, found, axis=1))[:1]:
        raise ValueError(
            f"{name}: position {places[prompt, of]} of prompt {prompt} is padding. Give each prompt's own position."
        )
    return found

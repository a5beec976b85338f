"""Prompts as a corpus: token sequences of any lengths."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Array, Int

from .._checks import check_kind
from .._run import check_tokens
from ..models import Transformer


def sequences(
    name: str,
    model: Transformer,
    prompts: Iterable[Int[Array | np.ndarray, " seq"]] | Int[Array | np.ndarray, "prompt seq"],
) -> list[Int[np.ndarray, " seq"]]:
    """The prompts as arrays on the host, one dimension each.

    **Raises:** `TypeError` for text, and for what is no list of token sequences; `ValueError`, which says which prompt it is, for one that
    the model cannot run, and for none at all.
    """
    if isinstance(prompts, str):
        raise TypeError(f"{name}: expected token sequences, got text. Encode it: jc.load_tokenizer(…).encode(text).")
    check_kind(f"{name}: prompts", prompts, Iterable, "a list of token sequences")
    found = []
    for number, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            raise TypeError(f"{name}: prompt {number} is text. Encode it: jc.load_tokenizer(…).encode(text).")
        tokens = np.asarray(prompt)
        try:
            check_tokens(model, tokens)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{name}: prompt {number}: {error}") from None
        found.append(tokens.astype(np.int32))
    if not found:
        raise ValueError(f"{name}: expected at least one prompt, got none.")
    return found

"""A corpus, streamed: prompts of mixed lengths in batches of few shapes, each position with its weight.

Prompts are gathered by the length at which they are run, and a batch is run when it is full. So no more is held than a batch of each
length, and however the prompts come, one by one or in arrays, the programs are the same.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_count
from .._run import check_mask, check_tokens
from ..data import Prompts
from ..models import Transformer
from ._batches import rounded_up
from ._lengths import filled, lengthened


Corpus: TypeAlias = Int[Array | np.ndarray, "prompt seq"] | Prompts | Iterable[Any]


class CorpusBatch(NamedTuple):
    """Prompts that are run together, filled up on the right; `weights` is 0 at padding. `prompts`: how many are real, from the first."""

    tokens: Int[np.ndarray, "batch seq"]
    mask: Bool[np.ndarray, "batch seq"]
    weights: Float[np.ndarray, "batch seq"]
    prompts: int


def corpus_batches(
    verb: str,
    model: Transformer,
    corpus: Corpus,
    mask: Bool[Array | np.ndarray, "prompt seq"] | None,
    weights: Float[Array | np.ndarray, "prompt seq"] | None,
    tokens_at_once: int,
) -> Iterator[CorpusBatch]:
    """Yields the batches of a corpus: an array `[prompt seq]` with its mask and weights; `jc.data.Prompts`, of which the clean ones count;
    or an iterable of prompts `[seq]`, arrays `[batch seq]`, `jc.data.Prompts`, or tuples of tokens and mask, or tokens, mask and weights.

    **Raises:** as it goes, what `check_tokens` and `check_mask` raise; `ValueError` for weights that are no weights, and if there are no
    prompts, or no position counts.
    """
    check_count(f"{verb}: tokens_at_once", "tokens are run together", tokens_at_once)
    waiting: dict[int, list[tuple[np.ndarray, ...]]] = {}
    full: set[int] = set()
    counted, prompts = False, 0
    for tokens, real, weight in _arrays(verb, model, corpus, mask, weights):
        prompts, counted = prompts + len(tokens), counted or bool(weight.any())
        tokens, real = filled(tokens, real, model.most_positions)
        length = tokens.shape[1]
        size, weight = max(1, tokens_at_once // length), lengthened(weight, length, 0.0)
        rows = waiting.setdefault(length, [])
        rows += zip(tokens, real, weight, strict=True)
        while len(rows) >= size:
            full.add(length)
            yield _batch(rows[:size], size)
            del rows[:size]
    if not prompts:
        raise ValueError(f"{verb}: the corpus is empty. Give at least one prompt; an iterator can be read only once.")
    if not counted:
        raise ValueError(
            f"{verb}: no position of the corpus counts: all are padding, or have weight 0. Look at mask and weights."
        )
    for length, rows in waiting.items():
        if rows:
            most = max(1, tokens_at_once // length)
            yield _batch(rows, most if length in full else min(most, rounded_up(len(rows))))


def corpus_prompts(
    verb: str, model: Transformer, corpus: Corpus, mask: Bool[Array | np.ndarray, "prompt seq"] | None = None
) -> list[Int[np.ndarray, " _"]]:
    """The prompts of a corpus one by one, without padding, where all of them can be held.

    **Raises:** as `corpus_batches`.
    """
    arrays = _arrays(verb, model, corpus, mask, None)
    found = [row[real] for tokens, reals, _ in arrays for row, real in zip(tokens, reals, strict=True)]
    if not found:
        raise ValueError(f"{verb}: the corpus is empty. Give at least one prompt; an iterator can be read only once.")
    return found


def _batch(rows: Sequence[tuple[np.ndarray, ...]], size: int) -> CorpusBatch:
    """Stacks rows, and fills them up to `size` with the last, which then counts for nothing."""
    more = size - len(rows)
    stack = lambda i: np.stack([row[i] for row in rows] + [rows[-1][i]] * more)
    weights = stack(2)
    weights[len(rows) :] = 0
    return CorpusBatch(stack(0), stack(1), weights, len(rows))


def _arrays(verb: str, model: Transformer, corpus: Corpus, mask, weights) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields tokens `[batch seq]`, which of them are real, and what each counts, checked."""
    if isinstance(corpus, jax.Array | np.ndarray | Prompts):
        yield _checked(verb, model, corpus, mask, weights, batched=True)
        return
    if isinstance(corpus, str) or not isinstance(corpus, Iterable):
        raise TypeError(
            f"{verb}: expected an array of token ids [prompt seq], or a list of prompts; got a {type(corpus).__name__}."
        )
    if mask is not None or weights is not None:
        raise ValueError(
            f"{verb}: mask and weights are of an array [prompt seq]. In a list give them with each of its arrays: (tokens, mask), or "
            "(tokens, mask, weights)."
        )
    for number, item in enumerate(corpus):
        parts = item if isinstance(item, tuple) and not isinstance(item, Prompts) else (item,)
        if not 1 <= len(parts) <= 3:
            raise ValueError(
                f"{verb}: a tuple in a corpus is (tokens, mask) or (tokens, mask, weights); got one of {len(parts)}."
            )
        tokens, *more = parts
        if isinstance(tokens, list):
            tokens = np.asarray(tokens)
        if isinstance(tokens, str):
            raise TypeError(
                f"{verb}: entry {number} of the prompts is text. Encode it: jc.load_tokenizer(…).encode(text)."
            )
        batched = isinstance(tokens, Prompts) or np.ndim(tokens) == 2
        try:
            found = _checked(verb, model, tokens, *more, *(None,) * (2 - len(more)), batched=batched)
        except (ValueError, TypeError) as error:
            what = str(error).removeprefix(f"{verb}: ")
            raise type(error)(f"{verb}: entry {number} of the prompts: {what}") from None
        yield found


def _checked(verb: str, model: Transformer, tokens, mask, weights, *, batched: bool) -> tuple[np.ndarray, ...]:
    if isinstance(tokens, Prompts):
        tokens, mask = tokens.clean, tokens.mask if mask is None else mask
    if batched and np.ndim(tokens) == 2 and not len(tokens):
        raise ValueError(f"{verb}: the corpus is empty. Give at least one prompt.")
    check_tokens(model, tokens, batched=batched)
    check_mask(tokens, mask)
    tokens = np.atleast_2d(np.asarray(tokens))
    real = np.ones(tokens.shape, bool) if mask is None else np.atleast_2d(np.asarray(mask))
    if weights is None:
        return tokens, real, real.astype(np.float64)
    given = np.atleast_2d(np.asarray(weights, np.float64))
    if given.shape != tokens.shape or not np.isfinite(given).all() or (given < 0).any():
        raise ValueError(
            f"{verb}: weights is what each position counts, finite, 0 or more, of the shape of the tokens, {list(tokens.shape)}; got shape "
            f"{list(given.shape)}" + ("." if given.shape != tokens.shape else f", from {given.min()} to {given.max()}.")
        )
    largest, about = given.max(), np.finfo(model.activation_dtype)
    if largest and not about.tiny / about.eps <= largest <= about.max * about.eps:
        raise ValueError(
            f"{verb}: the largest of the weights is {largest:.3g}, and they are summed in {about.dtype}, where that is 0 or too much. "
            "Multiply all by one number: only their ratios matter."
        )
    return tokens, real, given * real

"""Readings of the residual stream, drawn: by the Jacobian lens, or by the logit lens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._checks import check_choice, check_count, check_kind, check_list
from .._figures import COLOURED_BY, ENTROPY, PROBABILITY, RANK, token_grid, written
from .._tokens import token_texts
from ..components import LogitLens
from ..lens import LensReadout
from ..lens._plot import draw_readout


if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_lens(
    read: LensReadout | LogitLens,
    path: str | Path | None = None,
    *,
    tokenizer: Any = None,
    tokens: Sequence[str] | None = None,
    colour: str = PROBABILITY,
    prompt: int = 0,
    title: str | None = None,
) -> "Figure":
    """Draws what a lens reads: layers by positions, in each cell the strongest token.

    **Arguments:**

    - `read`: of `lens.readout(…)`, or of `jc.logit_lens`, whose depths are drawn, 0 before the first block.
    - `path`: also writes the figure, by its suffix `.svg`, `.pdf` or `.png`.
    - `tokenizer`: whatever decodes token ids; without one the ids are shown. - `tokens`: the text at each position. A logit lens knows its
      prompt; a readout does not, and without them its positions are numbered.
    - `colour`: by the `"probability"` of the strongest token, from 0 to 1; by the `"rank"` of the token that follows, dark where it is the
      first; or by the `"entropy"`, dark where it is small.
    - `prompt`: which one of the logit lens's. - `title`: instead of what kind of lens it is.

    **Returns:** a matplotlib figure, which is part of no global state.

    **Raises:** `ValueError` for another colour, a prompt that is not there, another number of tokens, another suffix, and a folder that is
    not there.

    >>> figure = jc.draw_lens(jc.logit_lens(model, tokens[None]), "lens.svg", tokenizer=tokenizer)
    >>> figure.axes[0].get_ylabel()
    'depth: blocks passed'
    """
    target = written("draw_lens", path)
    check_kind("draw_lens: read", read, (LensReadout, LogitLens), "what lens.readout(…) or jc.logit_lens gives")
    check_choice("draw_lens: colour", colour, COLOURED_BY)
    seq = read.tokens.shape[1]
    if tokens is not None and len(check_list("draw_lens: tokens", "texts", tokens)) != seq:
        raise ValueError(f"draw_lens: tokens are the text at each of {seq} positions, got {len(tokens)}.")
    if isinstance(read, LensReadout):
        title = "Jacobian lens, 1 prompt: the strongest token of each layer" if title is None else title
        return draw_readout(read, target, tokens=tokens, tokenizer=tokenizer, title=title, colour=colour)
    check_count("draw_lens: prompt", "prompts come before it", prompt, least=0)
    if prompt >= len(read.tokens):
        raise ValueError(f"draw_lens: prompt is {prompt}, and there are {len(read.tokens)}, counted from 0.")
    ids, values = _read(read, prompt, colour)
    of = read.ends.name
    return token_grid(
        values,
        [token_texts(tokenizer, row) for row in ids],
        target,
        colour=colour,
        title=f"Logit lens{f' of {of}' if of else ''}, 1 prompt: the strongest token at each depth"
        if title is None
        else title,
        layers=range(len(values)),
        tokens=token_texts(tokenizer, read.tokens[prompt]) if tokens is None else tokens,
        side="depth: blocks passed",
    )


def _read(
    read: LogitLens, prompt: int, colour: str
) -> tuple[Int[np.ndarray, "depth seq"], Float[np.ndarray, "depth seq"]]:
    """The strongest token at each depth and position, and what the cells are coloured by; NaN where there is none."""
    tokens, real = np.asarray(read.tokens[prompt]), np.asarray(read.mask[prompt])
    ids, values = [], []
    for depth in range(read.resid.shape[1]):
        logits = read.logits(depth)[prompt]
        ids.append(np.asarray(logits.argmax(-1)))
        values.append(np.asarray(_measure(logits, jnp.asarray(np.roll(tokens, -1)), colour)).astype(np.float64))
    found = np.where(real, np.stack(values), np.nan)
    if colour == RANK:
        found[:, ~np.append(real[1:], False)] = np.nan  # where no token follows
    return np.stack(ids), found


def _measure(
    logits: Float[Array, "seq d_vocab"], following: Int[Array, " seq"], colour: str
) -> Float[Array, " seq"] | Int[Array, " seq"]:
    if colour == RANK:
        return 1 + (logits > jnp.take_along_axis(logits, following[:, None], 1)).sum(1)
    logs = jax.nn.log_softmax(logits)
    return -(jnp.exp(logs) * logs).sum(1) if colour == ENTROPY else jnp.exp(logs.max(1))

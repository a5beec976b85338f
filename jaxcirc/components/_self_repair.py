"""Self-repair: what later heads do about a head that is ablated."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_count, check_number
from .._guard import check_backend
from .._run import check_mask, check_tokens
from .._traced import check_untraced
from .._typing import Progress
from ..models import check_known, is_all_known, Transformer
from ..runs import filled, in_groups, padded_length, shortened, TOKENS_AT_ONCE
from ..runs._positions import Positions, where_of
from ._ablations import AbstractAblation, check_resample, Resample
from ._after_heads import Changes, iterate_changes, Pairs
from ._direct_effects import direct_effects
from ._lines import AbstractFit, OLS
from ._parts import check_heads
from ._reading import asked
from ._repair import check_enough, fitted, NEXT, SelfRepair


def self_repair(
    model: Transformer,
    tokens: Int[Array, "batch seq"],
    resample: Resample | Int[Array, "batch seq"],
    *,
    answers: Int[Array, "..."] | Float[Array, "..."] | int | None = None,
    foils: Int[Array, "..."] | int | None = None,
    positions: Positions | None = None,
    heads: str | Sequence[tuple[int, int]] = "all",
    fit: AbstractFit = OLS(intercept=True),
    minimum: float | None = None,
    mask: Bool[Array, "batch seq"] | None = None,
    tokens_at_once: int = TOKENS_AT_ONCE,
    progress: Progress | None = None,
) -> SelfRepair:
    r"""Ablates every head by itself and measures how the other components' direct effects on a logit change, the true next
    token's unless others are asked for.

    Head $(l, h)$ gets at all positions the output `z` that it has on other prompts, and everything after it is computed from there. With
    $\mathrm{DE}$ and $\mathrm{DE}'$ the direct effects of a component on both runs, read with the final norm's scale of the *clean* run,
    $$\mathrm{backup}_{l,h} = \sum_{l' > l} \sum_{h'} (\mathrm{DE}'_{l',h'} - \mathrm{DE}_{l',h'}),$$
    and the slope is that of the line of backup on $\mathrm{DE}_{l,h}$, over all tokens: how much of what a head did later heads take over.
    Where a norm is behind attention (Gemma 2), effects of heads and of their $b_O$ pass it with the scale that it has in their run, but
    for the ablated head's own, which pass the clean run's. Logits are those before a cap.

    **Arguments:**

    - `resample`: for each prompt the other one: `jc.Resample.rolled(tokens)` takes the prompts' own, each another's;
      `jc.Resample(tokens, mask)`, or tokens `[batch seq]` alone where nothing is padded, takes any.
    - `answers`, `foils`: whose logit, and what is subtracted, as in `jc.direct_effects`; `None` is the true next token.
    - `positions`: at which it is read, and tokens are used: one for all, `[batch]` one a prompt, `[batch k]` several, negative from the
      end; `None` for all. The answer of a prompt is read at its end: `positions=prompts.positions["end"]`.
    - `heads`: `(layer, head)`s, or `"all"`. - `fit`: `jc.OLS(intercept=True)`, or `False` for the line through the origin.
    - `minimum`: lines go through the tokens alone on which the head's direct effect is above it; `None` is all tokens.
    - `mask` `[batch seq]`: False for padding of `tokens`; the other prompts have a mask of their own.
    - `tokens_at_once`: how many tokens are in flight; it changes memory and time only. - `progress(done, of, stage)` is called on the way.

    **Returns:** `SelfRepair`.

    **Raises:** `ValueError` for prompts to resample from of another shape, or with padding where the prompt that gets their values has
    none; for answers as `jc.direct_effects`; for heads and positions that there are not, prompts without a next token, or a head with
    fewer than three tokens above `minimum`; `TypeError` for what is no fit, or no prompts to resample from.

    >>> prompts = jc.data.ioi(tokenizer, 8, seed=0)
    >>> tokens = prompts.clean
    >>> found = jc.self_repair(model, tokens, jc.Resample.rolled(tokens))
    >>> found.slope.shape, bool((found.slope[-1] == 0).all())
    ((4, 4), True)
    >>> answers = {"answers": prompts.answer, "foils": prompts.foil, "positions": prompts.positions["end"]}
    >>> jc.self_repair(model, tokens, jc.Resample.rolled(tokens), **answers).logit
    'the answer less the foil'

    **Reference:** McGrath et al. 2023, "The Hydra Effect", arXiv 2307.15771; Rushing and Nanda 2024, "Explorations of Self-Repair in
    Language Models", arXiv 2402.15390. Their notebook's line has an intercept, as the default here, although it speaks of one through the
    origin, and no minimum; it runs the whole model twice for each head, here each run begins at the head.
    """
    check_untraced("self_repair", model)
    check_backend()
    check_tokens(model, tokens, batched=True)
    check_known("self_repair", model, "attn", "ln1_post", "ln_final")
    check_mask(tokens, mask)
    real = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask)
    if isinstance(resample, AbstractAblation) and not isinstance(resample, Resample):
        raise TypeError(
            f"self_repair: resample: expected other prompts, as jc.Resample(tokens), got a {type(resample).__name__}."
        )
    other = resample if isinstance(resample, Resample) else Resample(resample)
    others_real = check_resample(model, other, tokens, real)
    check_count("self_repair: tokens_at_once", "tokens are run at once", tokens_at_once)
    if minimum is not None:
        check_number("self_repair: minimum", minimum)
    if not isinstance(fit, AbstractFit):
        raise TypeError(f"self_repair: expected a fit such as jc.OLS(intercept=True), got a {type(fit).__name__}.")
    chosen = _chosen(model, heads)
    where = where_of("self_repair: positions", positions, real)
    wanted = asked(model, tokens, real, answers, foils).at(where)
    if not wanted.read.any():
        raise ValueError("self_repair: no position that is read has a next token. Give prompts of at least two tokens.")
    logit = _in_words(answers, foils)
    if minimum is not None:  # before the long work
        direct = direct_effects(model, tokens, answers, foils=foils, mask=mask, tokens_at_once=tokens_at_once).heads
        check_enough(np.asarray(direct), wanted.read, chosen, minimum, logit)
    (prompts, keys), seq = filled(tokens, real, model.most_positions), tokens.shape[1]
    others = filled(other.tokens, others_real, model.most_positions)
    pairs = Pairs(prompts, keys, *others, wanted.filled(prompts.shape[1]))
    found = _measured(model, pairs, chosen, tokens_at_once, progress or (lambda done, of, stage: None))
    return fitted(Changes(*(shortened(each, seq, axis=-1) for each in found)), wanted.read, fit, minimum, logit)


def _in_words(answers, foils) -> str:
    """What the logit is of."""
    if answers is not None and jnp.issubdtype(np.asarray(answers).dtype, jnp.floating):
        return "a direction"
    return (NEXT if answers is None else "the answer") + ("" if foils is None else " less the foil")


def _chosen(model: Transformer, heads: str | Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    if isinstance(heads, str):
        if heads != "all":
            raise ValueError(f"self_repair: heads is 'all' or a list of (layer, head), got {heads!r}.")
        return [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    chosen = sorted(set(check_heads("self_repair: heads", model, heads)))
    if not chosen:
        raise ValueError("self_repair: no head was given. Give a list of (layer, head), or 'all'.")
    return chosen


def _measured(
    model: Transformer, pairs: Pairs, chosen: list[tuple[int, int]], tokens_at_once: int, report: Progress
) -> Changes:
    """The changes `[batch layer head seq]` of every head that was chosen, NaN for the others."""
    batch, seq = pairs.tokens.shape
    shape = (batch, model.n_layers, model.n_heads, seq)
    out = Changes(*(np.full(shape, np.nan, model.activation_dtype) for _ in Changes._fields))
    heads = [np.array([head for layer, head in chosen if layer == at], int) for at in range(model.n_layers)]
    seen = _columns_seen(model, pairs)
    groups = in_groups(batch, seen, tokens_at_once)
    # A layer's runs pass through all later layers.
    work = np.array([len(mine) * (model.n_layers - layer) for layer, mine in enumerate(heads)])
    for i, rows in enumerate(groups):
        tokens, mask, resample, resample_mask = (array[rows, :seen] for array in pairs[:4])
        given = Pairs(tokens, mask, resample, resample_mask, pairs.wanted.of(rows).until(seen))
        for layer, changes in iterate_changes(model, given, heads, tokens_at_once):
            for into, values in zip(out, changes, strict=True):
                into[rows[:, None], layer, heads[layer]] = np.pad(values, ((0, 0), (0, 0), (0, seq - seen)))
            report(i * int(work.sum()) + int(work[: layer + 1].sum()), len(groups) * int(work.sum()), "heads")
    return out


def _columns_seen(model: Transformer, pairs: Pairs) -> int:
    """Counts the columns up to the last that is read, rounded up to one less than one of few lengths, as no prompt's last has a next
    token: in a causal model of known parts nothing depends on those behind.
    """
    columns = pairs.tokens.shape[1]
    known = model.causal and all(map(is_all_known, model.blocks))
    return padded_length(int(np.flatnonzero(pairs.wanted.read.any(0))[-1]) + 2, columns) - 1 if known else columns

"""Ablation: a run in which components of the model have other values."""

import functools as ft
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_count, check_list
from .._edits import Blend
from .._metrics import Metric
from .._run import NOTHING, run, run_metric
from .._sites import by_site, Site
from .._traced import check_untraced
from ..models import Transformer
from ..runs import ALL_LOGITS, in_groups, prepare_prompts, Problem, repeated, shortened, TOKENS_AT_ONCE
from ..saes import Saes
from ._ablated_runs import ablated_from_blocks
from ._ablations import AbstractAblation
from ._parts import Component, membership, place_of
from ._reference import Receivers


def ablate(
    model: Transformer,
    tokens: Int[Array, "batch seq"],
    parts: Sequence[Component],
    values: AbstractAblation,
    *,
    saes: Saes = NOTHING,
    mask: Bool[Array, "batch seq"] | None = None,
) -> Float[Array, "batch seq d_vocab"]:
    """The logits with some parts of the model ablated together, at every position.

    **Arguments:**

    - `parts`: heads as `(layer, head)`, whose `z` is ablated; whole sites or their names, such as an MLP's `"blocks.3.hook_mlp_out"`;
      latents as `(site, unit)` of a dictionary in `saes`.
    - `values`: `jc.Zero()`, `jc.Mean(tokens, mask)` or `jc.Resample(tokens, mask)`; of other prompts, under their own mask. One that
      names no prompts, `jc.Mean()` or `jc.ResampleAblation(seed)`, takes those that are run.
    - `saes`: dictionaries by site. Splicing them in changes nothing by itself: the reconstruction error is added back.
    - `mask` `[batch seq]`: False for padding of `tokens`.

    **Raises:** `ValueError` for a part that is not there, a latent without dictionary, or other prompts of another shape or with padding
    where those that are run have none; `TypeError` for what is no part.

    >>> prompts = jc.data.ioi(tokenizer, 4, seed=0)
    >>> parts = [(1, 0), "blocks.2.hook_mlp_out", ("blocks.2.hook_resid_post", 7)]
    >>> jc.ablate(model, prompts.clean, parts, jc.Mean(prompts.corrupt), saes=saes).shape == (*prompts.clean.shape, model.d_vocab)
    True
    """
    problem, used, member, at, _ = _prepared(model, tokens, parts, values, ALL_LOGITS, saes, mask)
    together = {site: which.any(axis=0, keepdims=True) for site, which in member.items()}
    return shortened(_runs(model, used, problem, together, at)[0], int(problem.length))


def ablate_each(
    model: Transformer,
    tokens: Int[Array, "batch seq"],
    parts: Sequence[Component],
    values: AbstractAblation,
    metric: Metric | None = None,
    *,
    saes: Saes = NOTHING,
    mask: Bool[Array, "batch seq"] | None = None,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> Float[Array, "part batch ..."]:
    """The same with each part ablated by itself: a run for each, from the part's block on, many at once.

    **Arguments:**

    - `tokens`, `parts`, `values`, `saes`, `mask`: as in `jc.ablate`.
    - `metric`: what is kept of a run, as in `jc.node_effects`. `None` keeps the logits, which for many parts are large.
    - `tokens_at_once`: how many tokens are in flight; it changes memory and time only.

    **Returns:** `[part batch]` the metric, or `[part batch seq d_vocab]` the logits.

    **Raises:** as `jc.ablate`; `ValueError` for a metric that does not fit the prompts.

    >>> prompts = jc.data.ioi(tokenizer, 4, seed=0)
    >>> heads = [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    >>> jc.ablate_each(model, prompts.clean, heads, jc.Resample(prompts.corrupt), prompts.metric()).shape
    (16, 4)
    """
    check_untraced("ablate_each", model)
    check_count("ablate_each: tokens_at_once", "tokens are run at once", tokens_at_once)
    problem, used, member, at, places = _prepared(
        model, tokens, parts, values, ALL_LOGITS if metric is None else metric, saes, mask
    )
    inside = np.array([place.site.layer is not None for place in places])
    found = []
    if inside.any():
        mine = [place for place in places if place.site.layer is not None]
        found.append(ablated_from_blocks(model, used, problem, mine, at, tokens_at_once))
    outside = np.flatnonzero(~inside)
    for numbers in in_groups(len(outside), problem.clean.size, tokens_at_once):
        some = {site: which[outside[numbers]] for site, which in member.items() if site.layer is None}
        found.append(_runs(model, used, problem, some, at)[~repeated(numbers)])
    order = np.concatenate([np.flatnonzero(inside), outside])
    each = jnp.concatenate(found)[np.argsort(order)]
    return shortened(each, int(problem.length), axis=2) if metric is None else each


def _prepared(model, tokens, parts, values, metric, saes, mask):
    if isinstance(parts, str | Site) or (isinstance(parts, tuple) and any(isinstance(part, int) for part in parts)):
        raise TypeError(f"ablate: expected a list of parts, got one. Write [{parts!r}].")
    parts = check_list("ablate: parts", "parts", parts)
    if not parts:
        raise ValueError("ablate: no part was given. Give heads as (layer, head), sites, or latents as (site, unit).")
    if not isinstance(values, AbstractAblation):
        raise TypeError(
            f"ablate: expected jc.Zero(), jc.Mean(tokens) or jc.Resample(tokens) as the values, got a {type(values).__name__}."
        )
    problem = prepare_prompts(model, tokens, None, metric, mask)
    given = by_site(saes)
    places = [place_of(model, given, part) for part in parts]
    used = {site: sae for site, sae in given.items() if site in {place.site.value for place in places}}
    member = membership(model, used, places)
    receivers = Receivers(
        model=model,
        tokens=tokens,
        mask=problem.given_mask(),
        others=tokens,
        of=lambda tokens, keys: _values(model, used, tokens, keys, sites=tuple(member)),
        zeros=lambda: {site: jnp.zeros(1, model.activation_dtype) for site in member},  # it broadcasts to any value
        groups=lambda count: in_groups(count, tokens.shape[1], TOKENS_AT_ONCE),
    )
    return problem, used, member, values.values(receivers)(np.arange(len(tokens))), places


@ft.partial(jax.jit, static_argnames="sites")
def _values(
    model: Transformer, saes, tokens, mask, *, sites: tuple[Site, ...]
) -> dict[Site, Float[Array, "batch ..."]]:
    """Runs prompts and returns what the sites are."""
    one = lambda tokens, keys: run(model, tokens, saes=saes, record=sites, mask=keys)[1]
    return jax.vmap(one)(tokens, mask)


@jax.jit
def _runs(model: Transformer, saes, problem: Problem, member, values) -> Float[Array, "part batch ..."]:
    def one(member, tokens, keys, metric, values):
        edits = {site: Blend(member[site], values[site]) for site in member}
        return run_metric(model, metric, tokens, saes=saes, edits=edits, mask=keys)[0]

    each = jax.vmap(one, (None, 0, 0, 0, 0))
    return jax.vmap(lambda member: each(member, problem.clean, problem.mask, problem.metric, values))(member)

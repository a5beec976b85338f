"""Ablation: a run in which parts of the model have other values."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_count, check_list
from .._edits import Blend
from .._metrics import Metric
from .._run import NOTHING, run_metric
from .._sites import by_site, Site
from ..models import Transformer
from ..runs import ALL_LOGITS, in_groups, prepare_prompts, Problem, TOKENS_AT_ONCE
from ..saes import AbstractDictionary
from ._parts import membership, Part, place_of
from ._values import AbstractValues


Saes = Mapping[Site, AbstractDictionary] | Mapping[str, AbstractDictionary]


def ablate(
    model: Transformer,
    tokens: Int[Array, "batch seq"],
    parts: Sequence[Part],
    values: AbstractValues,
    *,
    saes: Saes = NOTHING,
    mask: Bool[Array, "batch seq"] | None = None,
) -> Float[Array, "batch seq d_vocab"]:
    """The logits with some parts of the model ablated together, at every position.

    **Arguments:**

    - `parts`: heads as `(layer, head)`, whose `z` is ablated; whole sites or their names, such as an MLP's `"blocks.3.hook_mlp_out"`;
      latents as `(site, unit)` of a dictionary in `saes`.
    - `values`: `jc.Zero()`, `jc.Mean(tokens, mask)` or `jc.Resample(tokens, mask)`; of other prompts, under their own mask.
    - `saes`: dictionaries by site. Splicing them in changes nothing by itself: the reconstruction error is added back.
    - `mask` `[batch seq]`: False for padding of `tokens`.

    **Raises:** `ValueError` for a part that is not there, a latent without dictionary, or other prompts of another shape or with padding
    where those that are run have none; `TypeError` for what is no part.

    >>> prompts = jc.data.ioi(tokenizer, 4, seed=0)
    >>> parts = [(1, 0), "blocks.2.hook_mlp_out", ("blocks.2.hook_resid_post", 7)]
    >>> jc.ablate(model, prompts.clean, parts, jc.Mean(prompts.corrupt), saes=saes).shape == (*prompts.clean.shape, model.d_vocab)
    True
    """
    problem, used, member, at = _prepared(model, tokens, parts, values, ALL_LOGITS, saes, mask)
    together = {site: mine.any(axis=0, keepdims=True) for site, mine in member.items()}
    return _runs(model, used, problem, together, at)[0]


def ablate_each(
    model: Transformer,
    tokens: Int[Array, "batch seq"],
    parts: Sequence[Part],
    values: AbstractValues,
    metric: Metric | None = None,
    *,
    saes: Saes = NOTHING,
    mask: Bool[Array, "batch seq"] | None = None,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> Float[Array, "part batch ..."]:
    """The same with each part ablated by itself: a run for each, many at once, by one compiled program.

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
    check_count("ablate_each: tokens_at_once", "tokens are run at once", tokens_at_once)
    problem, used, member, at = _prepared(
        model, tokens, parts, values, ALL_LOGITS if metric is None else metric, saes, mask
    )
    found = []
    for rows in in_groups(len(parts), problem.clean.size, tokens_at_once):
        mine = {site: which[rows] for site, which in member.items()}
        found.append(_runs(model, used, problem, mine, at))
    return jnp.concatenate(found)[: len(parts)]


def _prepared(model, tokens, parts, values, metric, saes, mask):
    if isinstance(parts, str | Site) or (isinstance(parts, tuple) and any(isinstance(part, int) for part in parts)):
        raise TypeError(f"ablate: expected a list of parts, got one. Write [{parts!r}].")
    parts = check_list("ablate: parts", "parts", parts)
    if not parts:
        raise ValueError("ablate: no part was given. Give heads as (layer, head), sites, or latents as (site, unit).")
    if not isinstance(values, AbstractValues):
        raise TypeError(
            f"ablate: expected jc.Zero(), jc.Mean(tokens) or jc.Resample(tokens) as the values, got a {type(values).__name__}."
        )
    problem = prepare_prompts(model, tokens, None, metric, mask)
    given = by_site(saes)
    places = [place_of(model, given, part) for part in parts]
    used = {site: sae for site, sae in given.items() if site in {place.site.value for place in places}}
    member = membership(model, used, places)
    at = values.at(model, used, tuple(member), problem.clean, problem.mask)
    wide = {site: jnp.broadcast_to(value, (len(tokens), *value.shape[1:])) for site, value in at.items()}
    return problem, used, member, wide


@jax.jit
def _runs(model: Transformer, saes, problem: Problem, member, values) -> Float[Array, "part batch ..."]:
    def one(member, tokens, keys, metric, values):
        edits = {site: Blend(member[site], values[site]) for site in member}
        return run_metric(model, metric, tokens, saes=saes, edits=edits, mask=keys)[0]

    each = jax.vmap(one, (None, 0, 0, 0, 0))
    return jax.vmap(lambda member: each(member, problem.clean, problem.mask, problem.metric, values))(member)

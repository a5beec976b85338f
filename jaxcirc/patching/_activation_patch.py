"""Activation patching: which activations make the difference between two prompts."""

import dataclasses
import functools as ft
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_choice, check_count
from .._metrics import Metric
from .._run import NOTHING
from .._sites import by_site, Part, Site
from .._tap import site_read, Tap
from .._traced import check_untraced
from ..components._patched_runs import metric_of_patches, sites_needed
from ..models import Transformer
from ..runs import check_saes, prepare_prompts, record_sides, Recorded, TOKENS_AT_ONCE
from ..saes import AbstractDictionary, anonymous, Saes
from ._cells import BY, cells_of
from ._patched_metrics import check_gap, DIRECTIONS, NORMALISATIONS, PatchedMetrics
from ._site_groups import check_of_heads, site_groups, SiteGroup


def activation_patch(
    model: Transformer,
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"],
    metric: Metric,
    *,
    sites: SiteGroup | Sequence[SiteGroup] = "resid_pre",
    by: str = "layer_position",
    direction: str = "denoise",
    normalise: str = "fraction",
    saes: Saes = NOTHING,
    mask: Bool[Array, "batch seq"] | None = None,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> PatchedMetrics:
    r"""The metric of runs in which one activation is taken from another prompt: which layers, positions and heads carry the difference
    between the two.

    Each cell of the result is a run of the base prompt, with the value $x_c$ of the other prompt at one cell $c$ of a site and everything
    behind it computed from there: $m(\text{base} \mid x_c \leftarrow x_c^{\text{other}})$.

    **Arguments:**

    - `clean`, `corrupt` `[batch seq]`: pairs of prompts of one length, token for token; `metric`, `mask`: as in `jc.node_effects`.
    - `sites`: kinds of sites, in all layers: `"resid_pre"`, `"attn_out"`, `"mlp_out"`, `"mlp_post"`, `"z"`, `"q"`, `"k"`, `"v"`,
      `"pattern"` and the other names of `jc.Kind` in lower case; or single sites, `"blocks.3.attn.hook_z"`; or a list. Of dictionaries
      in `saes` also latents and errors, `"resid_post.acts"`, `"resid_post.error"`. Those behind the blocks are none.
    - `by`: what is replaced at a time. `"layer"`: the whole site, at all positions; `"layer_position"`: the site at one position;
      `"head"`: one head at all positions; `"head_position"`: one head at one position. Of patterns and scores the position is the
      query's. Where heads share keys and values, a head of `k` and `v` is the one that a group shares.
    - `direction`: `"denoise"` runs the corrupt prompt and puts clean values in, so it finds what is enough to restore the behaviour (also
      called causal tracing, clean → corrupt patching or restoration). `"noise"` runs the clean prompt and puts corrupt values in, and
      finds what it cannot do without (also called resample ablation, corrupt → clean patching or interchange intervention).
    - `normalise`: what `values` of the result are. `"fraction"`: 0 is the base run and 1 the other, by the mean difference between the
      two (see there); `"difference"`: to the base run, in the metric's units; `"metric"`: as it is.
    - `tokens_at_once`: how many tokens of patched runs are in flight; it changes memory and time only.

    Cells whose values are the same on both prompts take no run, nor do positions behind the one that the metric reads; the others run
    from their layer on, many at once.

    **Returns:** `PatchedMetrics`, by site and prompt: `.values["z"]` `[batch layer head]`, `.mean()`, `.table()`.

    **Raises:** `ValueError` for prompts of unequal length or equal ones, a site that is not there, `by="head"` at a site without heads,
    a metric that reads padding, and for fractions of no difference.

    >>> prompts = jc.data.ioi(tokenizer, 4, seed=0)
    >>> given = model, prompts.clean, prompts.corrupt, prompts.metric()
    >>> found = jc.activation_patch(*given, sites=["resid_pre", "attn_out"])
    >>> found.values["resid_pre"].shape == (4, model.n_layers, prompts.clean.shape[1])
    True
    >>> heads = jc.activation_patch(*given, sites="z", by="head", direction="noise", normalise="difference")
    >>> heads.mean()["z"].shape  # [layer head]
    (4, 4)

    **Reference:** Vig et al. 2020, arXiv 2004.12265; Meng et al. 2022, arXiv 2202.05262 (causal tracing, with noise in place of a prompt);
    Heimersheim & Nanda 2024, arXiv 2404.15255, for the two directions. TransformerLens' `patching.get_act_patch_*` are the cases
    `by="layer_position"`, `"head"` and `"head_position"`, with its own metric in place of `normalise`.
    """
    check_untraced("activation_patch", model)
    check_count("activation_patch: tokens_at_once", "tokens are run at once", tokens_at_once)
    check_choice("activation_patch: by", by, tuple(BY))
    check_choice("activation_patch: direction", direction, DIRECTIONS)
    check_choice("activation_patch: normalise", normalise, NORMALISATIONS)
    if corrupt is None:
        raise ValueError(
            "activation_patch: values come from the other prompts, and corrupt is None. Give corrupt prompts."
        )
    problem = prepare_prompts(model, clean, corrupt, metric, mask)
    given = by_site(saes)
    if given:
        check_saes(model, given)
    groups = site_groups("activation_patch(sites=…)", model, given, sites)
    if BY[by][0]:
        check_of_heads("activation_patch(sites=…)", by, groups)
    if direction == "denoise":
        problem = dataclasses.replace(problem, clean=problem.corrupt, corrupt=problem.clean)
    all_sites = [site for group in groups.values() for site in group]
    base, other = record_sides(model, problem, sites_needed(model, given, all_sites))
    assert other is not None
    measured = {"base": base.metric, "other": other.metric}
    if normalise == "fraction":
        check_gap(*map(np.asarray, measured.values()))
    both = [(site, _value(given, base, site), _value(given, other, site)) for site in all_sites]
    cells = [cells_of(by, *each, problem.mask) for each in both]
    after = metric_of_patches(model, given, problem, base, [each.patches() for each in cells], tokens_at_once)
    length, unpatched = int(problem.length), np.asarray(base.metric)
    tables = {each.site: each.table(unpatched, metric, length) for each, metric in zip(cells, after, strict=True)}
    return PatchedMetrics(
        metrics={name: jax.device_put(np.stack([tables[site] for site in group], 1)) for name, group in groups.items()},
        **measured,
        sites=tuple(all_sites),
        by=by,
        direction=direction,
        normalise=normalise,
    )


def _value(saes: Mapping[Site, AbstractDictionary], run: Recorded, site: Site) -> Float[Array, "batch ..."]:
    """Looks up the value at a site, or computes the latents or the error of its dictionary."""
    if site.part == Part.VALUE:
        return run.values[site]
    sae, layer = saes[site.value], site.layer or 0
    read = site_read(site.value, sae)
    beside, place = run.values[read], read.offset_layers(-layer)
    bare = anonymous(sae, None if sae.reads is None else place)
    return _of_dictionary(bare, run.values[site.value], beside, site=site.offset_layers(-layer), read=place)


@ft.partial(jax.jit, static_argnames=("site", "read"))
def _of_dictionary(sae: AbstractDictionary, values, beside, *, site: Site, read: Site) -> Float[Array, "batch ..."]:
    """Splices a dictionary in and takes its latents or its error, with sites as in block 0."""

    def one(value, beside):
        tap = Tap({site.value: sae}, {}, {site}, layer=site.layer)
        tap.inputs[read] = beside
        tap(site.kind, value)
        return tap.cache[site]

    return jax.vmap(one)(values, beside)

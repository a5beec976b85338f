"""Latents moved in the replacement model, against runs with dictionaries spliced in by hand."""

import dataclasses
import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.attribution_graphs import Change
from jaxcirc.parts import GatedMLP
from tests.helpers import assert_close, counting_calls, model_named, MODELS, needs_x64, tokens_for
from tests.replacements import own_part, random_cross_layer, random_transcoders, with_neurons

from .helpers import by_numpy


KEY = jax.random.key(3)
ACROSS = ("gpt2", "parallel", "gemma2", "qwen3")


def nonlinear(model):
    return jc.frozen.patterns(model) | jc.frozen.layer_norms(model)


@ft.cache
def given(name: str):
    model = model_named(name)
    return model, random_transcoders(KEY, model), tokens_for(model)


@ft.cache
def given_across(name: str):
    model = model_named(name)
    return model, random_cross_layer(KEY, model, skip=name == "gpt2"), tokens_for(model)


def spliced(model, saes, tokens, clean, steps, held, errors):
    """Pre-activations and uncapped logits with latents moved by `steps` from their clean values, errors and `held` sites as they were."""
    edits = {site: jc.Replace(clean[site]) for site in held}
    edits |= {site.acts: jc.Replace(clean[site.acts] + steps[site]) for site in saes}
    edits |= {site.error: jc.Replace(clean[site.error] + errors.get(site, 0)) for site in saes}
    model = dataclasses.replace(model, logit_cap=None)
    # What reads the place where it writes reads, in such a run, what is there after it is moved.
    observed = {site: _observed(model, site, sae) for site, sae in saes.items()}
    observed = {site: read for site, read in observed.items() if read != site}
    logits, cache = jc.run(model, tokens, saes=saes, edits=edits, record=set(observed.values()))
    pre = {site: saes[site].pre_activations(cache[observed[site]]) for site in observed}
    return {site: x * _gates(model, clean, site) for site, x in pre.items()}, logits


def _observed(model, site, sae):
    if site.kind != Kind.MLP_POST:
        return sae.reads
    return Site(site.layer, Kind.MLP_PRE_LINEAR if is_gated(model, site) else Kind.MLP_PRE)


def is_gated(model, site):
    return site.kind == Kind.MLP_POST and isinstance(model.blocks[site.layer].mlp, GatedMLP)


def _gates(model, clean, site):
    return model.blocks[site.layer].mlp.act(clean[Site(site.layer, Kind.MLP_PRE)]) if is_gated(model, site) else 1


@by_numpy
def clean_values(model, saes, tokens):
    parts = [part for site in saes for part in (site.acts, site.error)]
    gates = [Site(site.layer, Kind.MLP_PRE) for site in saes if is_gated(model, site)]
    return jc.run(model, tokens, saes=saes, record={*parts, *gates, *nonlinear(model)})[1]


@by_numpy
def direct_effects(model, saes, tokens, clean, steps, errors):
    """The derivative of pre-activations and uncapped logits along `steps` of latents, everything else held."""
    zeros = lambda tree: jax.tree.map(jnp.zeros_like, tree)
    f = lambda steps, errors: spliced(model, saes, tokens, clean, steps, nonlinear(model), errors)
    return jax.jvp(f, (zeros(steps), zeros(errors)), (steps, errors))[1]


def one_step(saes, clean, site, pos, unit, factor):
    steps = {other: jnp.zeros_like(clean[other.acts]) for other in saes}
    return steps | {site: steps[site].at[pos, unit].set((factor - 1) * clean[site.acts][pos, unit])}


def strongest(acts, pos):
    return int(jnp.argmax(jnp.abs(acts[pos])))


def uncapped(model, state):
    return state.final @ model.W_U + model.b_U


def check_direct(model, run, direct):
    """The run's changes are the direct effects."""
    pre, logits = direct
    for site, effect in pre.items():
        if jnp.abs(effect).max() > 1e-3:
            assert_close(run.changed.pre[site] - run.clean.pre[site], effect)
        else:
            assert_close(run.changed.pre[site], run.clean.pre[site])
    assert_close(uncapped(model, run.changed) - uncapped(model, run.clean), logits)


@needs_x64
@pytest.mark.parametrize("name", MODELS)
def test_with_everything_held_a_change_is_the_direct_effect(name):
    model, transcoders, tokens = given(name)
    saes = with_neurons(model, transcoders)
    clean, site = clean_values(model, saes, tokens), min(saes)
    unit = strongest(clean[site.acts], 2)
    run = jc.intervene(model, transcoders, tokens, [Change(site, 2, unit, jc.Scale(3.0))])
    check_direct(model, run, direct_effects(model, saes, tokens, clean, one_step(saes, clean, site, 2, unit, 3.0), {}))
    assert_close(run.clean.logits, jc.run(model, tokens)[0])
    for other in saes:
        assert_close(run.clean.acts[other], clean[other.acts].reshape(run.clean.acts[other].shape))


@needs_x64
@pytest.mark.parametrize("name", ACROSS)
def test_latents_that_write_to_later_layers(name):
    model, clt, tokens = given_across(name)
    saes = {site: own_part(clt, layer) for layer, site in enumerate(clt.sites)}
    clean, site = clean_values(model, saes, tokens), clt.sites[0]
    unit = strongest(clean[site.acts], 1)
    steps = one_step(saes, clean, site, 1, unit, -1.0)
    later = {target: steps[site] @ clt.decoders[0].W_dec[:, i] for i, target in enumerate(clt.sites) if i}
    run = jc.intervene(model, clt, tokens, [Change(site, 1, unit, jc.Scale(-1.0))])
    check_direct(model, run, direct_effects(model, saes, tokens, clean, steps, later))


@by_numpy
def live(model, saes, tokens, clean, moved, held):
    """The run with every dictionary spliced in, errors as they were, and latents encoded anew, but for those in `moved`."""
    edits = {site: jc.Replace(value) for site, value in held.items()}
    edits |= {site.error: jc.Replace(clean[site.error]) for site in saes}
    edits |= {site.acts: edit for site, edit in moved.items()}
    logits, cache = jc.run(model, tokens, saes=saes, edits=edits, record=[site.acts for site in saes])
    return logits, {site: cache[site.acts] for site in saes}


@needs_x64
@pytest.mark.parametrize("held", ["nothing", "patterns and norms"])
@pytest.mark.parametrize("name", ["gpt2-inverse-layer-scale", "parallel", "gemma3"])
def test_live_latents_follow(name, held):
    model, transcoders, tokens = given(name)
    saes = with_neurons(model, transcoders)
    clean, site = clean_values(model, saes, tokens), min(saes)
    unit = strongest(clean[site.acts], 2)
    frozen = () if held == "nothing" else None
    run = jc.intervene(
        model, transcoders, tokens, [Change(site, slice(2, 5), unit, jc.Add(2.0))], frozen=frozen, live_from=0
    )
    step = jnp.zeros_like(clean[site.acts]).at[2:5, unit].set(2.0)
    values = {other: clean[other] for other in nonlinear(model)} if frozen is None else {}
    logits, acts = live(model, saes, tokens, clean, {site: jc.Add(step)}, values)
    assert_close(run.changed.logits - run.clean.logits, logits - run.clean.logits)
    for other in saes:
        assert_close(run.changed.acts[other], acts[other])


@needs_x64
def test_latents_are_live_from_a_layer_on():
    model, transcoders, tokens = given("gpt2-inverse-layer-scale")
    first, second, last = (Site(0, Kind.MLP_OUT), Site(1, Kind.MLP_OUT), Site(2, Kind.MLP_POST))
    clean = clean_values(model, transcoders, tokens)
    change = [Change(first, 2, strongest(clean[first.acts], 2), jc.Replace(0.0))]
    of = lambda layer: jc.intervene(model, transcoders, tokens, change, live_from=layer)
    from_second, from_last = of(1), of(2)
    for site, moved in ((second, (True, False)), (last, (True, True))):
        for run, there in zip((from_second, from_last), moved, strict=True):
            assert bool(jnp.abs(run.changed.acts[site] - run.clean.acts[site]).max() > 1e-6) == there
    assert float(of(None).changed.acts[first][2, change[0].unit]) == 0


@needs_x64
@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_live_latents_that_write_to_later_layers(name):
    """Layer by layer, each latent encoded in a run in which those before are known."""
    model, clt, tokens = given_across(name)
    unit = strongest(
        jc.intervene(model, clt, tokens, [Change(clt.sites[0], 2, 0, jc.Add(0.0))]).clean.acts[clt.sites[0]], 2
    )
    change = Change(clt.sites[0], slice(2, None), unit, jc.Replace(3.0))
    run = jc.intervene(model, clt, tokens, [change], frozen=(), live_from=0)
    before = jc.run(model, tokens, record={*clt.reads, *clt.sites})[1]
    encode = lambda values: [clt.encode(layer, values[read]) for layer, read in enumerate(clt.reads)]
    clean, acts, edits = encode(before), [], {}
    recon = lambda layer, acts, x: clt.decode(layer, acts, x)
    for layer, (read, site) in enumerate(zip(clt.reads, clt.sites, strict=True)):
        x = jc.run(model, tokens, edits=edits, record=[read])[1][read]
        now = clt.encode(layer, x)
        acts.append(now.at[2:, unit].set(3.0) if layer == 0 else now)
        error = before[site] - recon(layer, clean, before[read])
        edits[site] = jc.Replace(recon(layer, acts, x) + error)
    for layer, site in enumerate(clt.sites):
        assert_close(run.changed.acts[site], acts[layer])
    assert_close(run.changed.logits, jc.run(model, tokens, edits=edits)[0])


@needs_x64
def test_several_changes_add_up_where_everything_is_held():
    model, transcoders, tokens = given("gpt2")
    site, neurons = Site(0, Kind.MLP_OUT), Site(1, Kind.MLP_POST)
    of = lambda *changes: jc.intervene(model, transcoders, tokens, changes, record=[site])
    each = [
        Change(site, 1, 3, jc.Add(1.0)),
        Change(str(site), 4, 3, jc.Add(-2.0)),
        Change(neurons, -1, 5, jc.Replace(1.0)),
    ]
    runs = [of(change) for change in each]
    together = of(*each)
    assert set(together.changed.acts) == set(together.changed.pre) == {site}
    added = sum(run.changed.final - run.clean.final for run in runs)
    assert_close(together.changed.final - together.clean.final, added)
    nothing = of(Change(site, slice(None), 3, jc.Add(0.0)))
    assert_close(nothing.changed.logits, nothing.clean.logits)


@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
def test_other_changes_run_the_same_program(name):
    model, transcoders, tokens = given(name)
    site = min(transcoders)
    with counting_calls(jc.Transformer, "__call__") as calls:
        jc.intervene(model, transcoders, tokens, [Change(site, 1, 3, jc.Add(0.5))])
        first = len(calls)
        jc.intervene(model, transcoders, tokens[:-1], [Change(site, slice(2, None), 1, jc.Replace(2.0))])
        assert len(calls) == first


def test_bad_input(untyped):
    model, transcoders, tokens = given("gpt2")
    site = Site(0, Kind.MLP_OUT)
    change = Change(site, 1, 3, jc.Add(1.0))
    run = lambda changes=(change,), saes=transcoders, **more: jc.intervene(model, saes, tokens, changes, **more)
    with pytest.raises(ValueError, match="no latent is changed"):
        run([])
    with pytest.raises(ValueError, match=r"/99 at 1: the units at `blocks.0.hook_mlp_out` are 0 to 19"):
        run([Change(site, 1, 99, jc.Add(1.0))])
    with pytest.raises(ValueError, match=r"at 7: the tokens of the prompt have positions 0 to 6"):
        run([Change(site, 7, 3, jc.Add(1.0))])
    with pytest.raises(ValueError, match=r"at 9:: the tokens of the prompt have positions 0 to 6"):
        run([Change(site, slice(9, None), 3, jc.Add(1.0))])
    with pytest.raises(ValueError, match=r"there are no latents at `blocks.1.hook_mlp_out`. There are at: `blocks.0"):
        run([Change("blocks.1.hook_mlp_out", 1, 3, jc.Add(1.0))])
    with pytest.raises(ValueError, match="another change is of the same latent there"):
        run([change, Change(site, slice(None), 3, jc.Scale(2.0))])
    with pytest.raises(ValueError, match=r"intervene: live_from is a layer, 0 to 1, or None .*; got 2"):
        run(live_from=2)
    with pytest.raises(ValueError, match=r"intervene\(record=…\): there are no latents at `blocks.0.hook_attn_out`"):
        run(record=["blocks.0.hook_attn_out"])
    with pytest.raises(ValueError, match=r"intervene\(frozen=…\): no site `blocks.7.attn.hook_pattern` in random"):
        run(frozen=["blocks.7.attn.hook_pattern"])
    with pytest.raises(ValueError, match="with the logits held nothing can move them"):
        run(frozen=["logits"])
    with pytest.raises(ValueError, match="stands for no part of the model"):
        run(saes={Site(0, Kind.RESID_POST): jc.saes.Identity(16, Site(0, Kind.RESID_POST))})
    elsewhere = dataclasses.replace(transcoders[site], site=Site(4, Kind.MLP_OUT))
    with pytest.raises(ValueError, match=r"no site `blocks.4.hook_mlp_out` in random with 2 layers"):
        run(saes={elsewhere.site: elsewhere})
    with pytest.raises(ValueError, match=r"was trained for `blocks.4.hook_mlp_out`"):
        run(saes={site: elsewhere})
    with pytest.raises(ValueError, match="two dictionaries stand for the MLP of layer 0"):
        run(saes={**transcoders, **{s: jc.saes.Identity(24, s) for s in [Site(0, Kind.MLP_POST)]}})
    behind = dataclasses.replace(transcoders[site], reads=Site(1, Kind.MLP_IN))
    with pytest.raises(ValueError, match=r"reads `blocks.1.mlp.hook_in`, which comes behind it"):
        run(saes={site: behind})


def test_a_prompt_within_the_context_is_run_within_it():
    """Filled up to few lengths, it is not taken for longer than a model with rotary positions was trained on."""
    model = model_named("llama")
    tokens = tokens_for(model, 9)
    assert model.n_ctx < 16
    change = Change("blocks.0.mlp.hook_post", 1, 3, jc.Add(1.0))
    assert jc.intervene(model, None, tokens, [change]).clean.logits.shape == (9, len(model.b_U))  # warnings are errors


def test_a_latent_that_is_off_cannot_be_scaled():
    model, transcoders, tokens = given("gpt2")
    site = Site(0, Kind.MLP_OUT)
    acts = jc.intervene(model, transcoders, tokens, [Change(site, 1, 3, jc.Add(1.0))]).clean.acts[site]
    unit = int(jnp.argmin(acts[2]))
    assert acts[2, unit] == 0
    with pytest.raises(ValueError, match=r"the latent is off there in the clean run, and 0 times anything is 0"):
        jc.intervene(model, transcoders, tokens, [Change(site, 2, unit, jc.Scale(2.0))])


def test_bad_changes(untyped):
    site = Site(0, Kind.MLP_OUT)
    with pytest.raises(TypeError, match=r"expected whole numbers, or a slice of positions; got pos=1.5"):
        Change(site, 1.5, 3, jc.Add(1.0))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"Change: edit: expected jc.Scale\(factor\)"):
        Change(site, 1, 3, jc.Detach())
    with pytest.raises(ValueError, match=r"Replace holds one number for the latent; got an array of shape \(3,\)"):
        Change(site, 1, 3, jc.Replace(np.ones(3)))
    with pytest.raises(ValueError, match="No site is called `mlp_out`"):
        Change("mlp_out", 1, 3, jc.Add(1.0))  # pyright: ignore[reportArgumentType]

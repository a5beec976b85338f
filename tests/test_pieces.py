"""Runs, whose blocks are programs, by themselves and inside of transformations, against the model's own code without them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc._tap import Tap
from jaxcirc.parts import Block

from .dictionaries import spliced_at
from .helpers import assert_close, counting_programs, model_named, MODELS, one_by_one, tokens_for


SEQ = 6


class Unlisted:
    """All sites, of which nothing can be listed: a run under it is in one piece."""

    def __contains__(self, site):
        return True


def in_one_piece(model, tokens, edits):
    """The logits by the model's own code, to be transformed."""
    return model(tokens, Tap({}, edits, Unlisted()))


def as_it_stands(model, tokens, saes, edits, mask=None):
    """Logits and every value, by the model's own code."""
    tap = Tap(saes, edits, Unlisted())
    with one_by_one():
        logits = model(tokens, tap, mask)
    return logits, tap.cache


def close(got, want):
    """As `assert_close`, of values that may be nothing."""
    if np.any(want):
        assert_close(got, want, mass=0)
    else:
        assert not np.any(got)


def edits_for(model):
    """Every edit that is known by its arrays, and one that is not."""
    rng, there = np.random.default_rng(0), set(jc.sites(model))
    at = lambda layer, kind: Site(layer, kind)
    step = jnp.asarray(rng.normal(size=(SEQ, model.d_model)), model.activation_dtype)
    edits = {
        Site(None, Kind.EMBED): jc.Add(step),
        at(0, Kind.ATTN_OUT): jc.Scale(jnp.asarray(0.5, step.dtype)),
        at(0, Kind.RESID_POST): jc.Detach(),
        at(1, Kind.RESID_PRE): jc.Blend(jnp.arange(SEQ)[:, None] > 2, step),
        at(1, Kind.ATTN_OUT): jc.Apply(lambda x: 2 * x),
        Site(None, Kind.FINAL_SCALE): jc.Scale(jnp.asarray(2.0, step.dtype)),
    }
    return {site: edit for site, edit in edits.items() if site in there}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_all_values_are_those_of_the_models_own_code(name, padded):
    model = model_named(name)
    tokens, mask = tokens_for(model, SEQ), jnp.arange(SEQ) > 1 if padded else None
    edits = edits_for(model)
    logits, cache = jc.run(model, tokens, edits=edits, record="all", mask=mask)
    want, values = as_it_stands(model, tokens, {}, edits, mask)
    assert len(edits) >= 5
    assert_close(logits, want)
    assert [*cache] == sorted(values)
    for site, value in values.items():
        close(cache[site], value)


@pytest.mark.parametrize("reads", [Site(1, Kind.LN2_NORMALIZED), Site(0, Kind.LN2_NORMALIZED)])
def test_dictionaries_that_read_in_their_block_or_in_another(reads):
    model, at = model_named("gpt2"), Site(1, Kind.MLP_OUT)
    tokens = tokens_for(model, SEQ)
    pre = Site(1, Kind.RESID_PRE)
    saes = {pre: spliced_at("relu", model, pre), at: spliced_at("transcoder-skip", model, at, 3, reads)}
    edits = {pre.acts: jc.Scale(jnp.zeros(())), at.error: jc.Scale(jnp.zeros(()))}
    logits, cache = jc.run(model, tokens, saes=saes, edits=edits, record="all")
    want, values = as_it_stands(model, tokens, saes, edits)
    assert_close(logits, want)
    assert cache.keys() == values.keys() > {pre.acts, at.acts}
    assert np.abs(logits - jc.run(model, tokens)[0]).max() > 1e-3
    for site, value in values.items():
        close(cache[site], value)


def test_layers_and_prompts_share_programs():
    model = model_named("gpt2")
    first, second = tokens_for(model, SEQ), tokens_for(model, SEQ, 1)
    step = jnp.ones(model.d_model)
    jax.clear_caches()
    with counting_programs() as programs:
        jc.run(model, first, record=[Site(0, Kind.PATTERN)])
        assert len(programs) <= 6, programs
        before = len(programs)
        jc.run(model, second, record=[Site(1, Kind.PATTERN)])
        assert len(programs) == before, programs
        jc.run(model, second, edits={Site(0, Kind.RESID_PRE): jc.Add(step)})
        jc.run(model, first, edits={Site(1, Kind.RESID_PRE): jc.Add(step)})
        assert len(programs) <= before + 2, programs


class Doubled(jc.Transformer):
    """Another forward pass."""

    def __call__(self, tokens, tap, keys=None):
        return 2 * super().__call__(tokens, tap, keys)


def test_a_class_derived_from_a_model_runs_by_its_own_code():
    model, other = model_named("gpt2"), object.__new__(Doubled)
    for name, value in vars(model).items():
        object.__setattr__(other, name, value)
    tokens = tokens_for(model, SEQ)
    assert_close(jc.run(other, tokens)[0], 2 * jc.run(model, tokens)[0])


def test_a_function_is_called_each_time():
    """What a function does may change from call to call, which a program would not see."""
    model, strength = model_named("gpt2"), [1.0]
    tokens, edits = tokens_for(model, SEQ), {Site(0, Kind.MLP_OUT): jc.Apply(lambda x: strength[0] * x)}
    plain = jc.run(model, tokens, edits=edits)[0]
    assert_close(plain, jc.run(model, tokens)[0])
    strength[0] = 0.0
    without = jc.run(model, tokens, edits=edits)[0]
    assert np.abs(without - plain).max() > 1e-3
    assert_close(without, jc.run(model, tokens, edits={Site(0, Kind.MLP_OUT): jc.Scale(jnp.zeros(()))})[0])


def test_a_function_may_hold_what_is_differentiated():
    """A closure, of which no argument tells."""
    model, site = model_named("gpt2"), Site(1, Kind.RESID_PRE)
    tokens, step = tokens_for(model, SEQ), jnp.asarray(np.random.default_rng(0).normal(size=(SEQ, model.d_model)))
    value = lambda edit: lambda step: jc.run(model, tokens, edits={site: edit(step)}, record=[site])[0].sum()
    within, added = value(lambda step: jc.Apply(lambda x: x + step)), value(jc.Add)
    assert_close(jax.grad(within)(step), jax.grad(added)(step))
    assert_close(jax.jvp(within, (step,), (step,))[1], jax.jvp(added, (step,), (step,))[1])
    steps = jnp.stack([step, 2 * step])
    assert_close(jax.vmap(within)(steps), jax.vmap(added)(steps))
    assert_close(jax.jit(within)(step), added(step))


def test_errors_name_the_layer():
    model = model_named("gpt2")
    tokens = tokens_for(model, SEQ)
    with pytest.raises(ValueError, match=r"at `blocks\.1\.hook_mlp_out`.*shape"):
        jc.run(model, tokens, edits={"blocks.1.hook_mlp_out": jc.Add(jnp.ones(3))})
    with pytest.raises(ValueError, match=r"no site `blocks\.7\.hook_mlp_out` in .* with 2 layers"):
        jc.run(model, tokens, record=["blocks.7.hook_mlp_out"])


@pytest.mark.parametrize("name", MODELS)
def test_transformed_runs_are_those_of_the_models_own_code(name):
    """Derivatives in both directions, of activations and of weights, and batches of them."""
    model, rng = model_named(name), np.random.default_rng(0)
    tokens = tokens_for(model, SEQ)
    step = jnp.asarray(rng.normal(size=(SEQ, model.d_model)), model.activation_dtype)
    weights = jnp.asarray(rng.normal(size=jax.eval_shape(lambda: jc.run(model, tokens)[0]).shape), step.dtype)
    value = lambda run: (
        lambda step, model: (run(model, tokens, {Site(0, Kind.RESID_PRE): jc.Add(step)}) * weights).sum()
    )
    ours, want = value(lambda model, tokens, edits: jc.run(model, tokens, edits=edits)[0]), value(in_one_piece)
    assert "name=_program" in str(jax.make_jaxpr(ours)(step, model))
    assert "name=_program" not in str(jax.make_jaxpr(want)(step, model))
    assert_close(jax.jit(ours)(step, model), jax.jit(want)(step, model))
    got, expected = (jax.jit(jax.grad(f, (0, 1)))(step, model) for f in (ours, want))
    # Together: a bias of keys has no gradient but rounding, to which nothing compares.
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    assert_close(flat(got), flat(expected))
    forward = lambda f: jax.jit(jax.vmap(lambda v: jax.jvp(lambda step: f(step, model), (step,), (v,))[1]))
    directions = jnp.stack([step, step[::-1]])
    assert_close(forward(ours)(directions), forward(want)(directions))


def test_however_many_blocks_are_traced_once(monkeypatch):
    """In a function, in its derivatives, and in the next function of as many tokens."""
    model, traced, own = model_named("gpt2"), [], Block.__call__

    def counting(self, *arguments):
        traced.append(self)
        return own(self, *arguments)

    monkeypatch.setattr(Block, "__call__", counting)
    deep = dataclasses.replace(model, blocks=model.blocks * 3, windows=model.windows * 3)
    tokens = jnp.arange(SEQ + 1)
    jax.clear_caches()
    value = lambda scale: jc.run(deep, tokens, edits={Site(None, Kind.EMBED): jc.Scale(scale)})[0].sum()
    jax.make_jaxpr(jax.grad(value))(1.0)
    assert len(traced) == 1, traced
    jax.make_jaxpr(jax.grad(lambda scale: value(2 * scale) ** 2))(1.0)
    assert len(traced) == 1, traced
    asked = {Site(layer, Kind.ATTN_OUT) for layer in (1, 4)}
    jax.make_jaxpr(lambda tokens: jc.run(deep, tokens, record=asked))(tokens)
    assert len(traced) == 2, traced


def test_what_is_asked_is_listed_once_a_run(monkeypatch):
    """A run of a deep model that records much does not go through all of it again in each block."""
    model, offset = model_named("gpt2"), []
    deep = dataclasses.replace(model, blocks=model.blocks * 8, windows=model.windows * 8)
    record, tokens = jc.sites(deep), jnp.arange(SEQ)
    jc.run(deep, tokens, record=record)
    own = Site.offset_layers
    monkeypatch.setattr(Site, "offset_layers", lambda site, by: offset.append(site) or own(site, by))
    jc.run(deep, tokens, record=record)
    assert 0 < len(offset) <= 3 * len(record)

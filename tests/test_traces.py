"""How often a run is traced: once for each structure and shape, never for a value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site

from .helpers import as_dtype, counting_calls, make_model, tokens_for


SITE = Site(1, Kind.MLP_OUT)


@pytest.fixture
def model():
    return make_model(jax.random.key(0))


@pytest.fixture
def traced():
    """A fresh jitted run, and the list of its traces."""
    run = jax.jit(lambda model, tokens, edits, mask: jc.run(model, tokens, edits=edits, record=[SITE], mask=mask))
    with counting_calls(jc.Transformer, "__call__") as traces:
        yield run, traces


MASK = np.ones(7, bool)
STEP = {SITE: jc.Add(jnp.ones(16))}


def test_the_count_counts(model):
    with counting_calls(jc.Transformer, "__call__") as traces:
        for _ in range(3):
            jax.eval_shape(lambda tokens: jc.run(model, tokens)[0], tokens_for(model))
    assert len(traces) == 3
    jax.eval_shape(lambda tokens: jc.run(model, tokens)[0], tokens_for(model))
    assert len(traces) == 3


def test_one_trace_for_all_values(model, traced):
    run, traces = traced
    tokens, mask = tokens_for(model), jnp.asarray(MASK)
    want, _ = run(model, tokens, STEP, mask)
    others = {
        "the same again": (model, tokens, STEP, mask),
        "other tokens": (model, tokens_for(model, seed=1), STEP, mask),
        "another edit's value": (model, tokens, {SITE: jc.Add(3 * jnp.ones(16))}, mask),
        "another mask": (model, tokens, STEP, mask.at[0].set(False)),
        "another model of the structure": (make_model(jax.random.key(1)), tokens, STEP, mask),
        "the model through a tree map": (jax.tree.map(lambda x: 2 * x, model), tokens, STEP, mask),
    }
    for name, arguments in others.items():
        logits, _ = run(*arguments)
        assert len(traces) == 1, f"{name} traced anew"
        assert bool((logits != want).any()) == (name != "the same again")


def test_keys_by_name_and_order_do_not_matter(model):
    run = jax.jit(lambda model, tokens, edits: jc.run(model, tokens, edits=edits)[0])
    first, second = Site(0, Kind.Q), Site(1, Kind.Z)
    with counting_calls(jc.Transformer, "__call__") as traces:
        run(model, tokens_for(model), {first: jc.Add(jnp.ones(6)), second: jc.Detach()})
        run(model, tokens_for(model), {second: jc.Detach(), first: jc.Add(jnp.zeros(6))})
    assert len(traces) == 1


def test_what_is_static_traces_anew(model, traced):
    run, traces = traced
    tokens, mask = tokens_for(model), jnp.asarray(MASK)
    changes = [
        (model, tokens, STEP, mask),
        (model, tokens[:5], STEP, mask[:5]),
        (model, tokens, {SITE: jc.Replace(jnp.ones(16))}, mask),
        (model, tokens, {Site(0, Kind.MLP_OUT): jc.Add(jnp.ones(16))}, mask),
        (make_model(jax.random.key(0), windows=(None, 3)), tokens, STEP, mask),
        (as_dtype(model, jnp.bfloat16), tokens, STEP, mask),
    ]
    for count, arguments in enumerate(changes, start=1):
        run(*arguments)
        run(*arguments)
        assert len(traces) == count


def test_a_sweep_is_one_trace(model):
    """A vmap over a batch and a mask of heads within one jit is one trace, however many heads."""
    heads = jnp.eye(2)[:, None, :, None]
    batch = jnp.stack([tokens_for(model, seed=seed) for seed in range(3)])

    def ablated(model, tokens, mask):
        return jc.run(model, tokens, edits={Site(1, Kind.Z): jc.Blend(mask, jnp.zeros(()))})[0]

    sweep = jax.vmap(jax.vmap(ablated, in_axes=(None, 0, None)), in_axes=(None, None, 0))
    with counting_calls(jc.Transformer, "__call__") as traces:
        logits = jax.jit(sweep)(model, batch, heads)
    assert len(traces) == 1
    assert logits.shape == (2, 3, 7, 13)
    assert (logits[0] != logits[1]).any()

"""Vectors read in tokens: against derivatives of the model itself, run with the vector added at its site."""

import dataclasses
import re
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from tests import oracle
from tests.helpers import assert_close, make_model, model_named, MODELS, needs_x64, tokens_for
from tests.odd_parts import odd_model


VARIANTS = {
    **{name: MODELS[name] for name in ("gpt2", "gpt-neo", "gemma2")},
    "layer norms behind": lambda key: make_model(key, behind=True),
    "processed": lambda key: jc.process_weights(make_model(key)),
}
KINDS = (Kind.Z, Kind.RESULT, Kind.MLP_POST, Kind.ATTN_OUT, Kind.MLP_OUT, Kind.RESID_POST)


def problem(name):
    """A model without a cap, a prompt, the sites of its last block, and the residual stream behind it."""
    model = dataclasses.replace(VARIANTS[name](jax.random.key(3)), logit_cap=None)
    tokens, layer = tokens_for(model, 5), model.n_layers - 1
    found = [Site(layer, kind) for kind in KINDS if Site(layer, kind) in jc.sites(model)]
    cache = jc.run(model, tokens, record=[*found, Site(layer, Kind.RESULT), Site(layer, Kind.RESID_POST)])[1]
    return model, tokens, cache, cache[Site(layer, Kind.RESID_POST)]


def by_the_model(model, tokens, site, vectors, held):
    """The centred change of the last position's logits along each vector, with everything of `held` at its clean value."""
    clean = jc.run(model, tokens, record=held)[1]

    def logits(step, vector):
        here = jnp.zeros((len(tokens), *vector.shape)).at[-1].set(vector)
        edits = {site: jc.Add(step * here)} | {each: jc.Replace(clean[each]) for each in held}
        return jc.run(model, tokens, edits=edits)[0][-1]

    slope = jax.jit(jax.vmap(lambda vector: jax.jvp(lambda step: logits(step, vector), (0.0,), (1.0,))[1]))(vectors)
    return slope - slope.mean(-1, keepdims=True)


@needs_x64
@pytest.mark.parametrize("name", VARIANTS)
def test_it_is_the_derivative_of_the_logits(name):
    """Of what the last block adds, where only the final norm lies behind; held sites are norms, and the block's MLP for its attention."""
    model, tokens, cache, last = problem(name)
    final, own = Site(None, Kind.FINAL_SCALE), model.n_layers - 1
    for site, value in cache.items():
        vectors = jax.random.normal(jax.random.key(site.kind), (3, *value.shape[1:]))
        behind = {Kind.Z: Kind.LN1_POST_SCALE, Kind.RESULT: Kind.LN1_POST_SCALE, Kind.MLP_POST: Kind.LN2_POST_SCALE}
        between = [Site(own, behind[site.kind])] if site.kind in behind else []
        between = [each for each in between if each in jc.sites(model)]
        divided = jc.run(model, tokens, record=between)[1][between[0]][-1, 0] if between else 1.0
        held = [*between, *([Site(own, Kind.MLP_OUT)] if site.kind < Kind.MLP_IN else [])]
        settings: list[tuple[Literal["frozen", "live"], list[Site]]] = [("frozen", [final]), ("live", [])]
        for scale, more in settings:
            want = by_the_model(model, tokens, site, vectors, [*held, *more])
            got = jc.decode(model, vectors, site, at=last[-1], scale=scale).logits / divided
            assert_close(got, want)
        loose = jc.decode(model, vectors, site).logits
        assert_close(
            loose / jc.run(model, tokens, record=[final])[1][final][-1] / divided,
            by_the_model(model, tokens, site, vectors, [*held, final]),
        )


@needs_x64
def test_without_a_run_it_is_weights_alone():
    """As arrays say it, also of a model without norms."""
    x = np.random.default_rng(0).normal(size=(2, 3, 16))
    model, without = model_named("gpt2-untied"), model_named("no-norm-relu-bidirectional")
    weight, W_U, bare = (np.asarray(array) for array in (model.ln_final.weight, model.W_U, without.W_U))
    read = (x - x.mean(-1, keepdims=True)) * weight @ W_U
    centred = lambda logits: logits - logits.mean(-1, keepdims=True)
    assert_close(jc.decode(model, x).logits, centred(read))
    assert_close(jc.decode(without, x).logits, centred(x @ bare))


@needs_x64
def test_latents_are_read_through_their_decoder():
    model, _, _, last = problem("gpt2")
    for kind in (Kind.RESID_POST, Kind.Z):
        site = Site(1, kind)
        width = model.d_model if kind == Kind.RESID_POST else model.n_heads * model.d_head
        sae = oracle.random_sae(jax.random.key(1), site, width, 12)
        got = jc.decode(model, jnp.eye(12), site.acts, saes={str(site): sae}, at=last[-1])
        rows = sae.W_dec if kind == Kind.RESID_POST else sae.W_dec.reshape(12, model.n_heads, model.d_head)
        assert_close(got.logits, jc.decode(model, rows, site, at=last[-1]).logits)


@needs_x64
def test_through_a_map_and_behind_the_final_norm():
    model, tokens, _, last = problem("gpt2")
    through = jax.random.normal(jax.random.key(5), (model.d_model, model.d_model))
    vector = jax.random.normal(jax.random.key(6), (model.d_model,))
    assert_close(jc.decode(model, vector, through=through).logits, jc.decode(model, through @ vector).logits)
    site = Site(None, Kind.FINAL_NORMALIZED)
    assert_close(jc.decode(model, vector, site).logits, by_the_model(model, tokens, site, vector[None], [])[0])
    each = jc.decode(model, jnp.stack([vector] * 5), at=last, scale="live").logits  # a scale of its own for each
    assert_close(each[3], jc.decode(model, vector, at=last[3], scale="live").logits)
    assert not np.allclose(each[3], each[1])


def test_tokens_in_order():
    model = make_model(jax.random.key(0))
    read = jc.decode(model, jax.random.normal(jax.random.key(1), (2, 3, model.d_model)))
    (top, up), (bottom, down) = read.top(4), read.bottom(4)
    order = np.argsort(np.asarray(read.logits), axis=-1)
    np.testing.assert_array_equal(top, order[..., ::-1][..., :4])
    np.testing.assert_array_equal(bottom, order[..., :4])
    assert (np.asarray(up) > 0).all()
    assert (np.asarray(down) < 0).all()
    np.testing.assert_allclose(np.asarray(read.logits).mean(-1), 0, atol=1e-5)
    table = read.table(k=4)
    assert list(table["direction"]) == [i for i in range(6) for _ in range(4)]
    assert list(table["bottom"][:4]) == order[0, 0, :4].tolist()


def test_the_table_has_text():
    tokenizer = jc.load_tokenizer("tiny-gpt2")
    model = jc.from_pretrained("tiny-gpt2")
    site = "blocks.1.hook_resid_post"
    saes = {site: jc.load_saes("tiny-gpt2")[Site.parse(site)]}
    read = jc.decode(model, jnp.eye(saes[site].d_sae, dtype=jnp.float32)[:2], f"{site}.hook_sae_acts_post", saes=saes)
    table = read.table(tokenizer, k=3)
    assert table["top"][0] == tokenizer.decode([int(read.top(1)[0][0, 0])]) != ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (dict(direction=jnp.ones(7)), "vectors at `blocks.0.hook_resid_pre` are [16], got [7]"),
        (dict(site="blocks.9.attn.hook_z"), "there is no `blocks.9.attn.hook_z`"),
        (dict(site="blocks.0.attn.hook_q"), "by more than a matrix"),
        (dict(site="blocks.0.hook_resid_pre.hook_sae_acts_post"), "no dictionary at"),
        (dict(site="blocks.0.hook_resid_pre.hook_sae_decoder_input"), "is not written"),
        (dict(scale="live"), "Give at="),
        (dict(scale="warm"), "'frozen' or 'live'"),
        (dict(at=jnp.ones(5)), "at is [16], got [5]"),
        (dict(through=jnp.ones((3, 3))), "through is [16, 16], got [3, 3]"),
        (dict(site="ln_final.hook_normalized", at=jnp.ones(16)), "there is no scale"),
    ],
)
def test_bad_input(untyped, arguments, says):
    model = make_model(jax.random.key(0))
    with pytest.raises(ValueError, match=re.escape(says)):
        jc.decode(model, **{"direction": jnp.ones(model.d_model), **arguments})


@pytest.mark.usefixtures("untyped")
def test_no_array_and_more_tokens_than_there_are():
    model = make_model(jax.random.key(0))
    with pytest.raises(ValueError, match="there are logits of"):
        jc.decode(model, jnp.ones(model.d_model)).top(10_000)
    with pytest.raises(ValueError, match="k is how many"):
        jc.decode(model, jnp.ones(model.d_model)).bottom(0)
    with pytest.raises(TypeError, match="direction: expected an array"):
        jc.decode(model, [1.0] * model.d_model)


@pytest.mark.usefixtures("untyped")
def test_a_final_norm_of_ones_own():
    model = odd_model("RMS norm")
    model = dataclasses.replace(model, ln_final=model.blocks[0].ln1)
    with pytest.raises(ValueError, match="decode: it computes with the weights"):
        jc.decode(model, jnp.ones(16))

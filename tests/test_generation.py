"""Text that goes on from a prompt, against whole runs of the text so far."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.attribution_graphs import Change
from tests import oracle
from tests.helpers import assert_close, counting_calls, counting_programs, model_named, MODELS, tokens_for
from tests.replacements import random_cross_layer, random_transcoders, with_neurons


KEY = jax.random.key(3)
SEQ, N, FULL = 5, 6, 12  # every model here has a context of 12
CAUSAL = [name for name in MODELS if name != "no-norm-relu-bidirectional"]


@ft.cache
def given(name: str):
    model = model_named(name)
    return model, random_transcoders(KEY, model), tokens_for(model)[:SEQ]


@jax.jit
def next_logits(model, saes, tokens, edits, last):
    return jc.run(model, tokens, saes=saes, edits=edits)[0][last]


def logits_by_runs(model, saes, edits):
    """A text so far, run whole; what is behind it changes nothing."""
    return lambda text: next_logits(model, saes, jnp.pad(text, (0, FULL - len(text))), edits, len(text) - 1)


def by_hand(tokens, n, logits_of, *, temperature=0.0, key=KEY):
    """New tokens and their log-probabilities by whole runs of the text so far."""
    text, log_probs = [int(token) for token in tokens], []
    for i in range(n):
        logits = logits_of(jnp.asarray(text))
        if temperature:
            token = int(jax.random.categorical(jax.random.fold_in(key, i), logits / temperature))
        else:
            token = int(jnp.argmax(logits))
        text.append(token)
        log_probs.append(jax.nn.log_softmax(logits)[token])
    return text[len(tokens) :], jnp.stack(log_probs)


class Half(eqx.Module):
    """A function with an array of its own."""

    factor: jax.Array

    def __call__(self, x):
        return x * self.factor


def steering(model, saes, d_sae, seq=SEQ):
    """An edit of each kind, each at another place and at other positions, dictionaries' latents and errors among them."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape))
    heads, width, (site,) = model.n_heads, model.d_model, saes
    edits = {
        Site(None, Kind.EMBED): jc.At(slice(None, None, 2), jc.Scale(0.5)),
        Site(0, Kind.V): jc.At([1, -1, SEQ + 2], jc.Scale(-2.0)),
        Site(0, Kind.Z): jc.At("prompt", jc.Blend(jnp.arange(heads)[:, None] == 1, normal(heads, model.d_head))),
        Site(0, Kind.ATTN_OUT): jc.At(slice(0, SEQ), jc.Replace(normal(seq, width))),
        Site(1, Kind.RESID_PRE): jc.Detach(),
        Site(1, Kind.PATTERN): jc.At("new", jc.Apply(Half(jnp.asarray(0.5)))),
        Site(1, Kind.ATTN_SCORES): jc.Add(jnp.full((heads, 1, 1), 0.3)),
        Site(1, Kind.RESID_POST): jc.At(slice(-2, None), jc.Add(normal(width))),
        site.acts: jc.At(slice(3, None), jc.Add(normal(d_sae))),
        site.error: jc.At(slice(SEQ, None), jc.Scale(0.25)),
    }
    return edits if model.ln_final is None else {**edits, Site(None, Kind.FINAL_SCALE): jc.Scale(1.5)}


def as_in_runs(edits):
    """The same where a whole text is run: counted from its beginning, and with rows for all of it."""
    found = {}
    for site, edit in edits.items():
        if isinstance(edit, jc.At):
            of_value = edit.edit
            if isinstance(of_value, jc.Replace):
                of_value = jc.Replace(jnp.pad(of_value.value, [(0, FULL - SEQ), (0, 0)]))
            edit = jc.At(np.flatnonzero(edit.positions(SEQ, FULL)).tolist(), of_value)
        found[site] = edit
    return found


@pytest.mark.parametrize("name", CAUSAL)
def test_each_token_is_that_of_a_whole_run_with_the_same_edits(name):
    model, _, tokens = given(name)
    site = Site(0, Kind.RESID_POST)
    saes = {site: oracle.random_sae(KEY, site, model.d_model, model.d_model + 3)}
    edits = steering(model, saes, model.d_model + 3)
    more = {"temperature": 5.0, "key": jax.random.key(8)}
    got = jc.generate(model, None, tokens, N, saes=saes, edits=edits, **more)
    want, log_probs = by_hand(tokens, N, logits_by_runs(model, saes, as_in_runs(edits)), **more)
    assert got.tokens.tolist() == want
    assert_close(got.log_probs, log_probs)
    alone = jc.generation.compare(model, None, tokens, N, saes=saes, edits=edits, **more)
    np.testing.assert_array_equal(alone.steered.log_probs, got.log_probs)
    assert np.abs(alone.unsteered.log_probs - got.log_probs).max() > 1e-2
    _, plain = by_hand(tokens, N, logits_by_runs(model, saes, as_in_runs({})), **more)
    assert_close(alone.unsteered.log_probs, plain)


def test_without_edits_it_is_the_models_own_text():
    model, _, tokens = given("gpt-neo")
    got = jc.generate(model, None, tokens, N)
    want, log_probs = by_hand(tokens, N, logits_by_runs(model, {}, {}))
    assert got.tokens.tolist() == want
    assert_close(got.log_probs, log_probs)
    assert got.mask.all()
    assert got.text is None
    np.testing.assert_array_equal(got.prompt, tokens)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "qwen3"])
def test_moved_latents_are_those_of_dictionaries_spliced_in(name):
    model, transcoders, tokens = given(name)
    saes, site = with_neurons(model, transcoders), Site(0, Kind.MLP_OUT)
    neurons = max(saes)
    changes = [Change(site, slice(-2, None), 2, jc.Add(6.0)), Change(neurons, slice(None), 4, jc.Scale(-3.0))]
    beside = {Site(0, Kind.RESID_POST): jc.At("new", jc.Scale(0.8)), site: jc.At(slice(1, None), jc.Scale(1.2))}
    more = {"temperature": 5.0, "key": jax.random.key(8)}
    got = jc.generate(model, None, tokens, N, transcoders=transcoders, changes=changes, edits=beside, **more)
    # What the latent writes is added behind the edit there.
    step = jnp.where((jnp.arange(FULL) >= 3)[:, None], 6.0 * saes[site].W_dec[2], 0)
    at_site = lambda x: jnp.where((jnp.arange(FULL) >= 1)[:, None], 1.2 * x, x) + step
    edits = {**as_in_runs(beside), site: jc.Apply(jax.tree_util.Partial(at_site))}
    edits |= {neurons.acts: jc.Scale(jnp.ones(24).at[4].set(-3.0))}
    want, steered = by_hand(tokens, N, logits_by_runs(model, {neurons: saes[neurons]}, edits), **more)
    assert got.tokens.tolist() == want
    assert_close(got.log_probs, steered)
    assert abs(steered[0] - jax.nn.log_softmax(jc.run(model, tokens)[0][-1])[want[0]]) > 1e-3


def test_generation_with_latents_that_write_to_later_layers():
    model, tokens = model_named("parallel"), tokens_for(model_named("parallel"))[:SEQ]
    clt = random_cross_layer(KEY, model)
    change = Change(clt.sites[0], slice(4, None), 2, jc.Add(3.0))
    got = jc.generate(model, None, tokens, 4, transcoders=clt, changes=[change])
    steps = {site: 3.0 * clt.decoder_rows(0, [2], target) for target, site in enumerate(clt.sites)}
    edits = {site: jc.Add(jnp.zeros((12, 16)).at[4:].set(step)) for site, step in steps.items()}
    want, log_probs = by_hand(tokens, 4, logits_by_runs(model, {}, edits))
    assert got.tokens.tolist() == want
    assert_close(got.log_probs, log_probs)


def test_other_lengths_values_and_positions_run_the_same_program():
    model, _, tokens = given("llama")
    edits = lambda value, pos: {Site(0, Kind.RESID_POST): jc.At(pos, jc.Add(jnp.full(16, value)))}
    with counting_calls(jc.Transformer, "embed") as calls, counting_programs() as programs:
        jc.generate(model, None, tokens, 6, edits=edits(1.0, "new"))
        assert (first := len(calls)) > 0
        del programs[:]
        jc.generate(model, None, tokens[:4], 7, edits=edits(-2.0, slice(1, 3)), temperature=0.5, key=KEY, stop=[3])
        jc.generation.compare(model, None, tokens, 6, edits={Site(0, Kind.RESID_POST): jc.Add(jnp.ones(16))})
        assert len(calls) == first
        assert not [name for name in programs if "generated" in name]


def test_samples_are_drawn_apart_and_from_the_models_distribution():
    model, _, tokens = given("gpt2")
    many = jc.generate(model, None, tokens, 2, temperature=6.0, key=KEY, samples=2048)
    assert many.tokens.shape == many.log_probs.shape == many.mask.shape == (2048, 2)
    logits = jc.run(model, tokens)[0][-1]
    share = np.bincount(np.asarray(many.tokens[:, 0]), minlength=13) / 2048
    want = np.asarray(jax.nn.softmax(logits / 6.0))
    assert (np.abs(share - want) < 4 * np.sqrt(want / 2048) + 1e-3).all()
    assert want.max() < 0.9  # else any draw would do
    keys, (first, *_) = jax.random.split(KEY, 2048), many.samples
    for i in (0, 7):
        one = jc.generate(model, None, tokens, 2, temperature=6.0, key=keys[i])
        np.testing.assert_array_equal(one.tokens, many.tokens[i])
        assert_close(one.log_probs, many.log_probs[i])
    np.testing.assert_array_equal(first.tokens, many.tokens[0])
    again = jc.generate(model, None, tokens, 2, temperature=6.0, key=KEY, samples=2048)
    np.testing.assert_array_equal(again.tokens, many.tokens)
    other = jc.generate(model, None, tokens, 2, temperature=6.0, key=jax.random.key(4), samples=2048)
    assert (other.tokens != many.tokens).any()


def test_it_stops_behind_a_token():
    model, _, tokens = given("gpt2")
    free = jc.generate(model, None, tokens, N, temperature=6.0, key=KEY, samples=40)
    stop = int(np.bincount(np.asarray(free.tokens).ravel()).argmax())
    ended = jc.generate(model, None, tokens, N, temperature=6.0, key=KEY, samples=40, stop=stop)
    at = [row.tolist().index(stop) if stop in row.tolist() else N for row in np.asarray(free.tokens)]
    there = np.arange(N) <= np.array(at)[:, None]
    assert there.any(0).all()
    assert not there.all(0).all()
    np.testing.assert_array_equal(ended.mask, there)
    np.testing.assert_array_equal(ended.tokens, np.where(there, free.tokens, stop))
    assert_close(ended.log_probs, np.where(there, free.log_probs, 0))
    row = next(row for row, first in enumerate(at) if first < N - 1)
    alone = jc.generate(
        model, None, tokens, N, temperature=6.0, key=jax.random.split(KEY, 40)[row], stop=[stop, (stop + 1) % 13]
    )
    assert alone.mask.sum() <= at[row] + 1


def test_text_in_and_out():
    model, tokenizer = jc.from_pretrained("tiny-gpt2"), jc.load_tokenizer("tiny-gpt2")
    prompt = "The teachers that the doctor"
    ids = [tokenizer.bos_token_id, *tokenizer.encode(prompt, add_special_tokens=False)]
    got = jc.generate(model, tokenizer, prompt, 12)
    assert got.prompt.tolist() == ids
    new = np.asarray(got.tokens)[np.asarray(got.mask)].tolist()
    assert new[-1] == tokenizer.eos_token_id  # the shipped model's sentences are short
    assert not got.mask.all()
    assert got.text == tokenizer.decode(new[:-1])
    assert got.text.startswith(" ")
    assert jc.generate(model, tokenizer, ids, 12).text == got.text
    longer = jc.generate(model, tokenizer, prompt, 12, stop=())
    assert longer.mask.all()
    assert longer.text.startswith(got.text)
    assert jc.generate(model, tokenizer, prompt, 2, bos=False).prompt.tolist() == ids[1:]
    drawn = jc.generate(model, tokenizer, prompt, 4, temperature=1.0, key=KEY, samples=2)
    assert [each.text for each in drawn.samples] == list(drawn.text)
    counted = jax.jit(lambda generation: generation.mask.sum())
    assert counted(got) == len(new)  # the text is no part of the arrays
    assert counted(longer) == 12
    assert counted._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue]

    push = {"logits": jc.At("new", jc.Add(jnp.zeros(model.d_vocab).at[40].set(100.0)))}
    both = jc.generation.compare(model, tokenizer, prompt, 12, edits=push)
    assert both.unsteered.text == got.text
    assert both.first_difference == 1  # the first new token is read off the prompt's last position
    assert set(both.steered.tokens.tolist()[1:]) == {40}
    assert str(both).splitlines() == [f"unsteered  {got.text!r}", f"steered    {both.steered.text!r}"]
    assert jc.generation.compare(model, tokenizer, prompt, 1, edits=push).first_difference is None


BAD = {
    "an empty prompt": ({"prompt": np.zeros(0, np.int32)}, ValueError, "the prompt is empty"),
    "a batch": ({"prompt": np.zeros((2, 3), np.int32)}, ValueError, r"Expected token ids of shape \[seq\]"),
    "a token that is not there": ({"prompt": [1, 99]}, ValueError, "Token id 99 .* is outside the vocabulary"),
    "a text without a tokenizer": ({"prompt": "a"}, TypeError, "the prompt is a text, and there is no tokenizer"),
    "no tokenizer": ({"tokenizer": 3}, TypeError, "generate: expected a tokenizer"),
    "no model": ({"model": "tiny-gpt2"}, TypeError, "Expected a model"),
    "bos of ids": ({"bos": True}, ValueError, "bos is about a text; token ids are taken as they stand"),
    "no room": ({"n": 8}, ValueError, "prompt and new tokens are 13, and random has a context of 12"),
    "no tokens": ({"n": 0}, ValueError, "n is how many tokens to generate, at least 1; got 0"),
    "no key": ({"temperature": 1.0}, ValueError, "tokens are drawn, which takes a key"),
    "many keys": ({"key": jax.random.split(KEY, 2)}, ValueError, "key: expected one random key"),
    "a key that is none": ({"key": 3}, TypeError, "expected a random key"),
    "a negative temperature": (
        {"temperature": -1.0},
        ValueError,
        "temperature is 0 for the likeliest token, or above 0; got -1",
    ),
    "samples at 0": ({"samples": 2}, ValueError, "at temperature 0 all samples are one text"),
    "no samples": ({"samples": 0, "temperature": 1.0, "key": KEY}, ValueError, "samples is how many texts to draw"),
    "a stop outside": ({"stop": [99]}, ValueError, "Token id 99"),
    "a stop of text": ({"stop": "."}, TypeError, "stop: expected a list of token ids, got one"),
    "no site": (
        {"edits": {"blocks.7.hook_mlp_out": jc.Add(1.0)}},
        ValueError,
        r"generate\(edits=…\): no site `blocks.7.hook_mlp_out` in random with 2 layers",
    ),
    "no dictionary": (
        {"edits": {Site(0, Kind.MLP_OUT).acts: jc.Add(1.0)}},
        ValueError,
        r"generate\(edits=…\).*there is no dictionary at `blocks.0.hook_mlp_out`",
    ),
    "a dictionary nowhere": (
        {"saes": {Site(7, Kind.MLP_OUT): oracle.random_sae(KEY, Site(7, Kind.MLP_OUT), 16, 19)}},
        ValueError,
        r"generate\(saes=…\): no site `blocks.7.hook_mlp_out`",
    ),
    "no edit": ({"edits": {"blocks.0.hook_mlp_out": 3}}, TypeError, "at `blocks.0.hook_mlp_out`: expected an edit"),
    "another width": (
        {"edits": {"blocks.0.hook_mlp_out": jc.Add(np.ones(5))}},
        ValueError,
        r"generate: at `blocks.0.hook_mlp_out`, Add holds an array of shape \[5\]; give it one that broadcasts to \[seq 16\]",
    ),
    "a pattern of one length": (
        {"edits": {"blocks.0.attn.hook_pattern": jc.Replace(np.ones((2, 5, 5)))}},
        ValueError,
        r"broadcasts to \[2 seq 1\]. For single keys use jc.Apply",
    ),
    "rows of the prompt everywhere": (
        {"edits": {"blocks.0.hook_mlp_out": jc.Replace(np.ones((5, 16)))}},
        ValueError,
        r"Replace has rows for 5 positions, and acts up to position 6. Let it act where it has rows: jc.At\(slice\(0, 5\)",
    ),
    "a position outside": (
        {"edits": {"blocks.0.hook_mlp_out": jc.At(7, jc.Add(1.0))}},
        ValueError,
        "generate: at `blocks.0.hook_mlp_out`, At's position 7 is outside: there are 0 to 6",
    ),
    "nowhere": (
        {"edits": {"blocks.0.hook_mlp_out": jc.At(slice(7, None), jc.Add(1.0))}},
        ValueError,
        "At acts nowhere: prompt and new tokens have positions 0 to 6",
    ),
    "a change outside": (
        {"changes": [Change(Site(0, Kind.MLP_POST), 8, 0, jc.Add(1.0))]},
        ValueError,
        "at 8: prompt and new tokens have positions 0 to 6",
    ),
    "a change before the prompt": (
        {"changes": [Change(Site(0, Kind.MLP_POST), -6, 0, jc.Add(1.0))]},
        ValueError,
        "the prompt has positions -5 to 4",
    ),
    "no change": ({"changes": [3]}, TypeError, "generate: changes: expected changes such as"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case, untyped):
    more, kind, message = BAD[case]
    model, _, tokens = given("gpt2")
    arguments = {"model": model, "tokenizer": None, "prompt": tokens, "n": 2, **more}
    with pytest.raises(kind, match=message):
        jc.generate(**arguments)


def test_models_and_comparisons_that_are_refused(untyped):
    model = model_named("no-norm-relu-bidirectional")
    with pytest.raises(ValueError, match=r"attends in both directions"):
        jc.generate(model, None, tokens_for(model), 1)
    model, _, tokens = given("gpt2")
    with pytest.raises(ValueError, match=r"compare: nothing is steered. Give edits or changes"):
        jc.generation.compare(model, None, tokens, 1)
    with pytest.raises(ValueError, match=r"compare: n is how many"):
        jc.generation.compare(model, None, tokens, 0, edits={"blocks.0.hook_mlp_out": jc.Add(1.0)})
    with pytest.raises(ValueError, match=r"generate: the prompt is empty. Give a text"):
        jc.generate(jc.from_pretrained("tiny-gpt2"), jc.load_tokenizer("tiny-gpt2"), "", 1)

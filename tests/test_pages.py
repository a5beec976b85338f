"""Pages of one latent and of attention: their numbers against a direct computation, and what stands in them."""

import dataclasses
import functools as ft
import json
import re
import shutil

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc._tokens import together
from jaxcirc.features._examples import Example
from jaxcirc.features._unit_acts import unit_activations
from jaxcirc.view._feature_page import feature_html
from jaxcirc.view._html import shown, token_span
from tests import oracle
from tests.helpers import assert_close, model_named, tokens_for
from tests.replacements import random_transcoders


SITE, UNIT = Site(0, Kind.MLP_OUT), 9
EVIL = [
    "<script>alert(1)</script>",
    'x" onmouseover="alert(2)',
    "a\nb",
    "\u202edcba",
    "\u05d0\u05d1",
    "&amp;",
    "\x07",
    "",
]


class Evil:
    """A tokenizer whose words are what no page may take for its own."""

    bos_token = bos_token_id = eos_token_id = None

    def __call__(self, text, *, add_special_tokens=True):
        return {"input_ids": [ord(letter) % 13 for letter in text]}

    def encode(self, text, *, add_special_tokens=True):
        return self(text)["input_ids"]

    def decode(self, ids):
        return "".join(EVIL[int(i) % len(EVIL)] for i in ids)


@ft.cache
def given():
    model = model_named("gpt2")
    sae = oracle.random_sae(jax.random.key(1), SITE, 16, 19)
    prompts = [np.asarray(tokens_for(model, seq, seed)) for seed, seq in enumerate([3, 7, 5, 7, 12, 4])]
    return model, sae, [*prompts, prompts[1]]


@ft.cache
def page_of():
    model, sae, prompts = given()
    return jc.view.feature(sae, UNIT, prompts, model=model, tokenizer=Evil(), most=4)


def acts_by_runs(model, sae, prompts):
    return [sae.encode(jc.run(model, jnp.asarray(each), record=[sae.site])[1][sae.site]) for each in prompts]


def test_examples_and_activations_are_those_of_single_runs():
    model, sae, prompts = given()
    page, acts = page_of(), [np.asarray(each[:, UNIT]) for each in acts_by_runs(model, sae, prompts)]
    together = np.concatenate(acts)
    assert 0 < (together != 0).sum() < len(together)
    assert_close(np.sort(page.active), np.sort(together[together != 0]))
    assert (page.n_tokens, page.n_prompts) == (len(together), len(prompts))
    assert page.share_active == (together != 0).mean()
    order = sorted(range(6), key=lambda i: -acts[i].max())  # the seventh is one of the others again
    assert len(page.examples) == 4
    for example, i in zip(page.examples, order, strict=False):
        np.testing.assert_array_equal(example.tokens, prompts[i])
        assert_close(example.acts, acts[i])
        assert example.position == acts[i].argmax()


def test_logits_and_neighbours_are_those_of_the_weights():
    model, sae, _ = given()
    page = page_of()
    norm = model.ln_final
    row = sae.W_dec[UNIT]
    effects = ((row - row.mean()) * norm.weight) @ model.W_U  # pyright: ignore[reportOptionalMemberAccess]  # this model has a final norm
    effects = np.asarray(effects - effects.mean())
    order = np.argsort(-effects)
    assert page.logits["id"].tolist() == [*order[:4], *order[::-1][:4]]
    assert_close(page.logits["effect"], effects[page.logits["id"]])
    rows = np.asarray(sae.W_dec)
    cosines = rows @ rows[UNIT] / np.linalg.norm(rows, axis=1) / np.linalg.norm(rows[UNIT])
    others = [i for i in np.argsort(-cosines) if i != UNIT]
    assert page.neighbours["unit"].tolist() == [*others[:4], *others[::-1][:4]]
    assert_close(page.neighbours["cosine"], cosines[page.neighbours["unit"]])


@pytest.mark.parametrize("weighted", [False, True])
def test_edges_are_those_of_the_means_it_is_given(weighted):
    model, sae, prompts = given()
    middle = Site(0, Kind.RESID_MID)
    saes = {middle: oracle.random_sae(jax.random.key(2), middle, 16, 21), SITE: sae}
    means = jc.features.mean_edges(model, saes, prompts, middle, SITE, weighted=weighted)
    whole = means.rows(np.arange(19))
    ask = lambda sae, unit: jc.view.feature(sae, unit, prompts, model=model, tokenizer=None, edges=means, most=5).edges
    for side, table, values in (("from", ask(sae, UNIT), whole[UNIT]), ("to", ask(saes[middle], 2), whole[:, 2])):
        assert set(table["side"]) == {side}
        largest = np.argsort(-np.abs(values))[:5]
        assert table["unit"].tolist() == largest.tolist()
        assert_close(table["value"], values[largest])
    html = page_with(means)
    assert "out of <code>blocks.0.hook_resid_mid</code>" in html
    other = dataclasses.replace(sae, b_enc=sae.b_enc + 1)
    with pytest.raises(ValueError, match=r"is of other dictionaries than this one at `blocks.0.hook_mlp_out`"):
        ask(other, UNIT)


def page_with(means):
    model, sae, prompts = given()
    return jc.view._feature.feature_html(
        jc.view.feature(sae, UNIT, prompts, model=model, tokenizer=None, edges=[means], most=5)
    )


def test_activations_of_units_are_the_same_in_groups(monkeypatch):
    model = model_named("gpt2")
    saes = random_transcoders(jax.random.key(3), model)
    ((site, sae),) = saes.items()
    assert sae.reads == Site(0, Kind.MLP_IN)
    tokens = np.stack([np.asarray(tokens_for(model, 6, seed)) for seed in range(5)])
    units = {site: [3, 0]}
    whole = unit_activations(model, saes, tokens, np.ones((5, 6), bool), units)[site]
    monkeypatch.setattr("jaxcirc.features._unit_acts.tokens_together", lambda saes: 12)
    assert_close(unit_activations(model, saes, tokens, np.ones((5, 6), bool), units)[site], whole)
    for row, want in zip(tokens, whole, strict=True):
        read = jc.run(model, jnp.asarray(row), record=[Site(0, Kind.MLP_IN)])[1][Site(0, Kind.MLP_IN)]
        assert_close(sae.encode(read)[:, np.array(units[site])], want)


def test_a_latent_that_is_never_on(tmp_path):
    model, sae, prompts = given()
    off = dataclasses.replace(sae, b_enc=sae.b_enc.at[UNIT].set(-1e3))
    page = jc.view.feature(off, UNIT, prompts, model=model, tokenizer=None)
    assert (len(page.active), page.examples, page.share_active) == (0, (), 0)
    page.to_html(tmp_path / "off.html")
    html = (tmp_path / "off.html").read_text("utf-8")
    assert "Nowhere: it is off at every token of these texts." in html
    assert "No activation other than 0." in html


def test_where_no_logits_follow_from_a_direction():
    model, _, prompts = given()
    site = Site(1, Kind.ATTN_IN)
    page = jc.view.feature(
        oracle.random_sae(jax.random.key(1), site, 16, 19), UNIT, prompts, model=model, tokenizer=None
    )
    assert page.logits.empty
    assert "more than a matrix" in jc.view._feature.feature_html(page)


def test_a_decoder_that_cannot_be_read_for_another_reason_is_told():
    model, sae, _ = given()
    narrow = eqx.tree_at(lambda sae: sae.W_dec, sae, sae.W_dec[:, :7])
    with pytest.raises(ValueError, match=r"are \[16\], got \[7\]"):
        jc.view._feature._decoded(model, narrow, sae.site, UNIT)


def test_texts_are_encoded_begun_and_cut():
    model, tokenizer = jc.from_pretrained("tiny-gpt2"), jc.load_tokenizer("tiny-gpt2")
    (_, sae), *_ = jc.load_saes("tiny-gpt2").items()
    text = "The teachers that the doctor likes run to the garden."
    ids = tokenizer.encode(text, add_special_tokens=False)
    page = jc.view.feature(sae, 0, [" ".join([text] * 12), text, ""], model=model, tokenizer=tokenizer)
    length = len(tokenizer.encode(" ".join([text] * 12), add_special_tokens=False))
    pieces = -(-length // (model.n_ctx - 1))
    assert pieces > 1
    assert page.n_tokens == length + pieces + len(ids) + 1
    assert page.n_prompts == pieces + 1
    # A letter of two tokens is one piece of the text, coloured by the stronger one.
    ids = np.asarray(tokenizer.encode("\u05e9 is", add_special_tokens=False))
    example = Example(ids, np.array([1.0, -3.0, 0.5]))
    html = feature_html(dataclasses.replace(page, examples=(example,), pieces=(tuple(together(tokenizer, ids)),)))
    assert 'title="1 at position 0, -3 at position 1"' in html
    assert re.findall(r'data-act="([^"]*)"( data-peak="1")?>([^<]*)<', html) == [
        ("-3", ' data-peak="1"', "\u05e9"),
        ("0.5", "", " is"),
    ]


BAD = {
    "no texts": ({"texts": []}, ValueError, "there are no texts"),
    "empty texts": ({"texts": ["", ""]}, ValueError, "the texts are empty"),
    "one text": ({"texts": "abc"}, TypeError, "expected a list of texts, got one"),
    "no tokenizer": ({"texts": ["abc"], "tokenizer": None}, TypeError, "these are texts, and there is no tokenizer"),
    "another unit": ({"unit": 19}, ValueError, "the units at `blocks.0.hook_mlp_out` are 0 to 18; got 19"),
    "a negative unit": ({"unit": -1}, ValueError, "are 0 to 18; got -1"),
    "no dictionary": ({"sae": 3}, TypeError, "feature: sae: expected a dictionary"),
    "no site": ({"sae": dataclasses.replace(given()[1], site=None)}, ValueError, "does not say at which site it is"),
    "another width": ({"sae": oracle.random_sae(jax.random.key(1), SITE, 12, 19)}, ValueError, "maps 12 numbers to 12"),
    "another model's": ({"site": "blocks.9.hook_mlp_out"}, ValueError, "no site `blocks.9.hook_mlp_out` in random"),
    "no edges": ({"edges": [3]}, TypeError, "what jc.features.mean_edges gives"),
    "nothing listed": ({"most": 0}, ValueError, "most is how many"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_a_page_of_a_latent_refuses(case, untyped):
    more, kind, message = BAD[case]
    model, sae, prompts = given()
    arguments = {"sae": sae, "unit": UNIT, "texts": prompts, "model": model, "tokenizer": Evil(), **more}
    sae, unit, texts = (arguments.pop(name) for name in ("sae", "unit", "texts"))
    with pytest.raises(kind, match=message):
        jc.view.feature(sae, unit, texts, **arguments)


HEADS, PROMPT = [(0, 1), (1, 0)], np.arange(12)


def attention_page():
    model, _, _ = given()
    return jc.view.attention(model, Evil(), PROMPT, HEADS)


def test_attention_is_that_of_a_run(untyped):
    model, _, prompts = given()
    page = attention_page()
    cache = jc.run(model, jnp.asarray(PROMPT), record="all")[1]
    for i, (layer, head) in enumerate(HEADS):
        pattern = cache[Site(layer, Kind.PATTERN)][head]
        assert_close(page.patterns[i], pattern)
        sizes = jnp.linalg.norm(cache[Site(layer, Kind.V)][:, head], axis=-1)
        assert_close(page.value_weighted[i], pattern * sizes)
    html = jc.view._attention._html(page)
    held = json.loads(
        re.search(  # pyright: ignore[reportOptionalSubscript]
            r"const PATTERNS = (.*?);\n", html
        )[1]
    )
    assert_close(np.asarray(held["none"]), np.asarray(page.patterns), tolerance=1e-2)  # three digits are written
    with pytest.raises(ValueError, match=r"head"):
        jc.view.attention(model, None, prompts[0], [(0, 9)])
    with pytest.raises(ValueError, match=r"attention: the prompt is empty"):
        jc.view.attention(model, None, [], HEADS)
    with pytest.raises(TypeError, match=r"there is no tokenizer"):
        jc.view.attention(model, None, "abc", HEADS)


def test_tokens_are_text_and_every_letter_is_seen():
    assert shown("<b>&") == "&lt;b&gt;&amp;"
    assert "↵" in shown("a\nb")
    assert "\\u202e" in shown("\u202edcba")
    assert "\u202e" not in shown("\u202edcba")
    assert "\\x07" in shown("\x07")
    assert "∅" in shown("")
    assert shown("\u05d0\u05d1") == "\u05d0\u05d1"
    span = token_span('x" onmouseover="alert(2)', title='"><script>')
    assert span.count('"') == 6  # those of its own attributes
    assert 'dir="auto"' in span
    for html in (jc.view._feature.feature_html(page_of()), jc.view._attention._html(attention_page())):
        assert "<script>alert" not in html
        assert "&lt;script&gt;alert(1)" in html
        assert not re.search(r'(?:src|href)="(?!#)', html)  # it reaches for nothing
        assert "default-src 'none'" in html


def test_pages_are_written_whole_or_not_at_all(tmp_path):
    page = page_of()
    page.to_html(tmp_path / "latent.html")
    assert (tmp_path / "latent.html").read_text("utf-8").startswith("<!doctype html>")
    with pytest.raises(ValueError, match=r"does not end in .html"):
        page.to_html(tmp_path / "latent.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["latent.html"]
    assert page._repr_html_().startswith("<iframe srcdoc=")
    assert "<script>" not in page._repr_html_()
    assert attention_page()._repr_html_().startswith("<iframe srcdoc=")
    assert "latent.html" not in repr(page)
    assert page._repr_html_() == page._repr_html_()  # no date, no random names


def test_pages_in_a_browser(tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium")
    page_of().to_html(tmp_path / "latent.html")
    attention = attention_page()
    attention.to_html(tmp_path / "attention.html")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab, said = browser.new_page(), []
        for event in ("pageerror", "dialog", "console"):
            tab.on(event, lambda what: said.append(str(what)))
        tab.goto((tmp_path / "latent.html").as_uri())
        assert tab.locator(".example").count() == 4
        assert tab.locator(".token").count() > 30
        assert tab.locator("svg").count() == 1
        tab.goto((tmp_path / "attention.html").as_uri())
        tokens = tab.locator(".head").nth(1).locator(".token")
        assert tokens.count() == 12
        row = lambda: [float(tokens.nth(i).get_attribute("data-value")) for i in range(12)]
        tokens.nth(10).hover()
        assert_close(np.array(row()), np.asarray(attention.patterns[1, 10], np.float64), tolerance=1e-2)
        tab.check("input[value=value]")
        tab.check("input[value=to]")
        tokens.nth(2).click()
        assert_close(np.array(row()), np.asarray(attention.value_weighted[1, :, 2], np.float64), tolerance=1e-2)
        browser.close()
    assert said == []

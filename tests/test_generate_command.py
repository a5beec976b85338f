"""`jaxcirc generate` and `jaxcirc feature`."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc.cli import main
from jaxcirc.cli._language import PYTHON


PROMPT = "The teachers that the doctor"
GIVEN = ["generate", "--model", "tiny-gpt2", "--prompt", PROMPT]
SITE = "blocks.1.hook_mlp_out"
TEXTS = ["The teachers have a new book.", "The boys near the door want a snack.", "Mary and John went to the store."]


@pytest.fixture(autouse=True)
def no_other_cache(monkeypatch):
    """Programs are kept where the suite keeps them."""
    monkeypatch.setattr("jaxcirc.cli._main.keep_compilations", lambda: None)


@pytest.fixture(scope="module")
def loaded():
    return jc.from_pretrained("tiny-gpt2"), jc.load_tokenizer("tiny-gpt2"), jc.load_saes("tiny-gpt2")


def test_both_texts_are_those_of_the_library(loaded, tmp_path, capsys):
    model, tokenizer, saes = loaded
    steer = ["--saes", "tiny-gpt2", "--steer", f"{SITE}:196=30", f"{SITE}:3+=4", "blocks.2.mlp.hook_post:7*=-5"]
    drawn = ["-n", "6", "--temperature", "1", "--seed", "3", "--texts", "2", "--from", "-1"]
    out = tmp_path / "texts.json"
    assert main([*GIVEN, *steer, *drawn, "--json", "--out", str(out)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert json.loads(out.read_text()) == {
        name: value for name, value in said.items() if name not in ("out", "seconds")
    }

    site = jc.Site.parse(SITE)
    change = lambda acts: acts.at[:, 196].set(30.0).at[:, 3].add(4.0)
    edits = {
        site.acts: jc.At(slice(-1, None), jc.Apply(change)),
        "blocks.2.mlp.hook_post": jc.At(slice(-1, None), jc.Apply(lambda x: x.at[:, 7].multiply(-5.0))),
    }
    edits = {jc.Site.parse(name): edit for name, edit in edits.items()}
    more = {"temperature": 1.0, "key": jax.random.key(3), "samples": 2}
    want = jc.generate(model, tokenizer, PROMPT, 6, saes={site: saes[site]}, edits=edits, **more)
    plain = jc.generate(model, tokenizer, PROMPT, 6, **more)
    for name, texts in (("unsteered", plain), ("steered", want)):
        assert [each["text"] for each in said[name]] == list(texts.text)
        for each, sample in zip(said[name], texts.samples, strict=True):
            assert each["tokens"] == np.asarray(sample.tokens)[np.asarray(sample.mask)].tolist()
            there = np.asarray(sample.log_probs)[np.asarray(sample.mask)]
            np.testing.assert_allclose(each["log_probs"], there, rtol=1e-3, atol=1e-4)
    assert said["steered"] != said["unsteered"]


def test_a_direction_and_the_screen(loaded, tmp_path, capsys):
    model, tokenizer, _ = loaded
    np.save(tmp_path / "direction.npy", np.asarray(model.W_U[:, 40]))
    site = "blocks.3.hook_resid_post"
    options = ["--vector", str(tmp_path / "direction.npy"), "--site", site, "--scale", "20", "--from", "new"]
    assert main([*GIVEN, *options, "-n", "6"]) == 0
    printed = capsys.readouterr().out
    edits = {site: jc.At("new", jc.Add(20 * model.W_U[:, 40]))}
    both = jc.generation.compare(model, tokenizer, PROMPT, 6, edits=edits)
    assert both.first_difference is not None
    assert printed.split("\n")[0].split() == ["unsteered", "steered"]
    words = " ".join(printed.split())
    for text in (both.unsteered.text, both.steered.text):
        assert " ".join(text.split())[:12] in words
    assert main([*GIVEN, "-n", "3"]) == 0
    assert "steered" in capsys.readouterr().out


def test_the_page_of_a_latent(loaded, tmp_path, capsys):
    model, tokenizer, saes = loaded
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), "utf-8")
    given = ["--model", "tiny-gpt2", "--saes", "tiny-gpt2", "--site", SITE, "--prompts", str(tmp_path / "texts.txt")]
    options = [*given, "--unit", "196", "--top", "3", "--out", str(tmp_path / "latent.html")]
    assert main(["feature", *options, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    texts = jc.data.load_texts(tmp_path / "texts.txt", tokenizer)
    page = jc.view.feature(saes[jc.Site.parse(SITE)], 196, texts, model=model, tokenizer=tokenizer, most=3)
    assert said["active"] == len(page.active) > 0
    assert [each["tokens"] for each in said["examples"]] == [each.tokens.tolist() for each in page.examples]
    assert [each["id"] for each in said["logits"]] == page.logits["id"].tolist()
    assert f"latent 196 at <code>{SITE}" in (tmp_path / "latent.html").read_text("utf-8")
    assert main(["feature", *options]) == 0
    assert "on at" in capsys.readouterr().out
    (tmp_path / "long.txt").write_text(" ".join(TEXTS * 6), "utf-8")
    for more, message in (
        (["--unit", "512"], "--unit: the units at `blocks.1.hook_mlp_out` are 0 to 511; got 512"),
        (["--unit", "1", "--site", "blocks.1.hook_resid_mid"], "--site: there is no dictionary at"),
        (["--unit", "1", "--prompts", str(tmp_path / "long.txt")], "1 text of 1 have more than 64 tokens"),
        (["--unit", "1", "--out", "page.svg"], "--out: A page is an HTML file"),
        (["--unit", "-1"], "--unit is how many"),
    ):
        assert main(["feature", *given, *more]) == 2
        said = capsys.readouterr()
        assert message in said.err.splitlines()[-1]
        assert not PYTHON.search(said.err)


BAD = [
    (["--steer", "a:b"], r"--steer: A move is written SITE:UNIT=X, SITE:UNIT\+=X or SITE:UNIT\*=X"),
    (["--steer", f"{SITE}:1=nan"], "--steer: expected a finite number, got nan"),
    (["--steer", "mlp:1=2"], "--steer: No site is called `mlp`"),
    (["--steer", "blocks.9.hook_mlp_out:1=2"], "--steer: no site `blocks.9.hook_mlp_out` in tiny-gpt2"),
    (["--steer", f"{SITE}:128=2"], "--steer: the units at `blocks.1.hook_mlp_out` are 0 to 127; got 128"),
    (["--steer", f"{SITE}:1=2", f"{SITE}:1+=2"], "unit 1 at `blocks.1.hook_mlp_out` is moved twice"),
    (["--steer", "blocks.1.attn.hook_z:1=2"], "its values are no row of neurons"),
    (["--site", SITE], "--vector and --site go together"),
    (["--vector", "none.npy", "--site", SITE], "--vector none.npy: No such file"),
    (["--from", "last"], "--from is a position, or 'new'; got 'last'"),
    (["--from", "40", "--steer", f"{SITE}:1=2", "-n", "2"], "positions 0 to"),
    (["-n", "0"], "-n is how many tokens to generate, at least 1; got 0"),
    (["-n", "100"], "tiny-gpt2 has a context of 64"),
    (["--temperature", "-1"], "--temperature is a size"),
    (["--seed", "x"], "--seed is how many|--seed"),
    (["--texts", "2"], "--texts draws texts, and at temperature 0 all are one"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_it_refuses_in_one_line(options, message, capsys):
    assert main([*GIVEN, *options]) == 2
    said = capsys.readouterr()
    assert re.search(message, said.err.splitlines()[-1]), said.err
    assert said.err.splitlines()[-1].startswith("jaxcirc: ")
    assert not PYTHON.search(said.err)
    assert said.out == ""


def test_a_direction_of_another_width(tmp_path, capsys):
    for name, array, message in (
        ("short.npy", np.ones(5), "is of shape [5], and `blocks.1.hook_mlp_out` of [128]"),
        ("nan.npy", np.full(128, np.nan), "is no .npy file of finite numbers"),
    ):
        np.save(tmp_path / name, array)
        assert main([*GIVEN, "--vector", str(tmp_path / name), "--site", SITE]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "text.npy").write_text("no array")
    assert main([*GIVEN, "--vector", str(tmp_path / "text.npy"), "--site", SITE]) == 2
    assert "is no .npy file of numbers" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["generate", "feature"])
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert f"example: jaxcirc {command}" in " ".join(capsys.readouterr().out.split())


def test_token_ids_go_on_as_ids(tmp_path, capsys):
    (tmp_path / "ids.json").write_text("[0, 276, 871]")
    assert main(["generate", "--model", "tiny-gpt2", "--tokens", str(tmp_path / "ids.json"), "-n", "2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    model = jc.from_pretrained("tiny-gpt2")
    assert said["unsteered"][0]["text"] is None
    assert said["unsteered"][0]["tokens"] == jc.generate(model, None, jnp.asarray([0, 276, 871]), 2).tokens.tolist()

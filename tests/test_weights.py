"""The shipped models and dictionaries are what their card says."""

import functools as ft
import hashlib
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxcirc as jc
from jaxcirc.data._agreement import how_many

from .helpers import as_dtype, assert_close, REPOSITORY


WEIGHTS = REPOSITORY / "weights"
NAMES = ("tiny-gpt2", "tiny-gpt-neo")
CARD = (WEIGHTS / "README.md").read_text(encoding="utf-8")
SITES = {
    "tiny-gpt2": ["blocks.0.hook_resid_pre"]
    + [f"blocks.{i}.{kind}" for i in range(4) for kind in ("hook_attn_out", "hook_mlp_out", "hook_resid_post")],
    "tiny-gpt-neo": ["blocks.0.hook_resid_pre"]
    + [
        f"blocks.{i}.{k}"
        for i in range(2)
        for k in ("hook_attn_out", "mlp.hook_post", "hook_mlp_out", "hook_resid_post")
    ],
}
model = ft.cache(lambda name: as_dtype(jc.from_pretrained(name), jnp.float32))


def test_no_more_than_sixteen_megabytes():
    size = sum(file.stat().st_size for name in NAMES for file in (WEIGHTS / name).rglob("*") if file.is_file())
    assert 1e6 < size <= 16e6


def test_the_card_has_every_file_with_its_checksum():
    found = dict(re.findall(r"`(tiny-[\w./-]+)` \| ([0-9a-f]{64})", CARD))
    files = {str(f.relative_to(WEIGHTS)): f for name in NAMES for f in (WEIGHTS / name).rglob("*") if f.is_file()}
    assert files
    assert found == {path: hashlib.sha256(file.read_bytes()).hexdigest() for path, file in files.items()}


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_pytorchs(name):
    golden = {key: jnp.asarray(value) for key, value in load_file(WEIGHTS / name / "golden.safetensors").items()}
    sites = [key for key in golden if "hook" in key]
    run = lambda model, tokens: jc.run(model, tokens, record=sites)
    logits, cache = jax.jit(jax.vmap(run, in_axes=(None, 0)))(model(name), golden["tokens"])
    assert_close(logits[:, ::8], golden["logits"], tolerance=1e-5)
    for site, value in cache.items():
        assert_close(value[:, ::8], golden[str(site)], tolerance=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_dictionaries_are_there(name):
    saes = jc.load_saes(name)
    assert sorted(map(str, saes)) == sorted(SITES[name])
    for site, sae in saes.items():
        assert sae.site == site
        assert sae.processing == ()
        assert_close(jnp.linalg.norm(sae.W_dec, axis=1), jnp.ones(sae.d_sae), tolerance=1e-5)


@jax.jit
def batch_logits(model, tokens):
    return jax.vmap(lambda row: jc.run(model, row)[0])(tokens)


def accuracy(prompts):
    logits, rows = batch_logits(model("tiny-gpt2"), prompts.clean)[:, -1], jnp.arange(len(prompts))
    return float(jnp.mean(logits[rows, prompts.answer] > logits[rows, prompts.foil]))


@pytest.mark.parametrize("template", ["ABBA", "BABA"])
def test_indirect_objects_never_seen(template):
    prompts = jc.data.ioi(jc.load_tokenizer("tiny-gpt2"), 100, template=template, seed=1, split="held_out")
    assert accuracy(prompts) >= 0.95


@pytest.mark.parametrize("kind", ["simple", "nounpp", "rc", "within_rc"])
@pytest.mark.parametrize("bos", [True, False])
def test_agreement_never_seen(kind, bos):
    tokenizer = jc.load_tokenizer("tiny-gpt2")
    n = min(100, how_many(kind, "held_out"))  # of the simplest there are fewer
    prompts = jc.data.subject_verb(tokenizer, n, kind=kind, seed=1, split="held_out", bos=bos)
    assert accuracy(prompts) >= 0.95


def test_random_tokens_said_twice():
    once = np.random.default_rng(1).integers(1, model("tiny-gpt2").d_vocab, (30, 20), dtype=np.int32)
    tokens = np.concatenate([np.zeros((30, 1), np.int32), once, once], axis=1)
    logits = batch_logits(model("tiny-gpt2"), jnp.asarray(tokens))
    predicted = np.asarray(logits.argmax(-1))[:, 21:-1]
    assert np.mean(predicted == tokens[:, 22:]) >= 0.95


def test_heads_were_formed_by_training():
    """No head attends one back or copies what came next before training; after it some do, and `training.json` says so."""
    first, *_, last = json.loads((WEIGHTS / "tiny-gpt2" / "training.json").read_text(encoding="utf-8"))
    assert first["step"] == 0
    assert np.max(first["previous"]) < 0.2
    assert np.max(first["induction"]) < 0.1
    n, rows = 24, 32
    once = np.random.default_rng(3).integers(1, model("tiny-gpt2").d_vocab, (rows, n), dtype=np.int32)
    tokens = np.concatenate([np.zeros((rows, 1), np.int32), once, once], axis=1)
    sites = [f"blocks.{layer}.attn.hook_pattern" for layer in range(4)]
    cache = jax.vmap(lambda row: jc.run(model("tiny-gpt2"), row, record=sites)[1])(jnp.asarray(tokens))
    patterns = np.stack([np.asarray(cache[site]).mean(axis=0) for site in sites])
    seen = lambda back, begin: np.diagonal(patterns, -back, 2, 3)[..., begin:].mean(-1)
    previous, induction = seen(1, 1), seen(n - 1, 4)
    assert previous.max() > 0.5
    assert induction.max() > 0.5
    assert np.abs(previous - last["previous"]).max() < 0.05
    assert np.abs(induction - last["induction"]).max() < 0.05


def test_errors_carry_little_of_agreement():
    """As measured on all kinds, and again here on one."""
    measured = json.loads((WEIGHTS / "tiny-gpt2" / "measured.json").read_text(encoding="utf-8"))["error_shares"]
    assert set(measured) == set(SITES["tiny-gpt2"])
    assert all(set(found) == {"simple", "nounpp", "rc", "within_rc"} for found in measured.values())
    assert all(0 < share <= 0.10 for found in measured.values() for share in found.values())
    prompts = jc.data.subject_verb(jc.load_tokenizer("tiny-gpt2"), 16, kind="rc", seed=0)
    saes = {site: sae for site, sae in jc.load_saes("tiny-gpt2").items() if "attn_out" in str(site)}
    effects = jc.node_effects(model("tiny-gpt2"), saes, prompts.clean, prompts.corrupt, prompts.metric())
    for site in saes:
        errors, latents = (float(jnp.abs(x[site]).sum()) for x in (effects.error, effects.acts))
        assert 0 < errors < 0.12 * (errors + latents)


@pytest.mark.parametrize("name", NAMES)
def test_the_measured_numbers_meet_their_limits(name):
    measured = json.loads((WEIGHTS / name / "measured.json").read_text(encoding="utf-8"))
    increases = {kind: found["loss_increase"] for kind, found in measured["spliced"].items()}
    assert len(increases) == len({site.split(".", 2)[2] for site in SITES[name]})
    assert max(increases.values()) <= 0.05
    assert set(measured["dictionaries"]) == set(SITES[name])
    assert all(0.5 < found["variance_explained"] <= 1 for found in measured["dictionaries"].values())
    assert all(1 <= found["l0"] <= 40 for found in measured["dictionaries"].values())

"""Models that this project did not make: trained ones with stored activations, and compiled ones whose every output is known."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import jaxcirc as jc

from .helpers import assert_close, needs_real, needs_x64, REAL


pytestmark = needs_real
TRACR = sorted(path.stem for path in (REAL / "tracr").glob("*.npz")) if REAL.exists() else ["hist"]


@jax.jit
def record_all(model, batch):
    return jax.vmap(lambda tokens: jc.run(model, tokens, record=jc.sites(model))[1])(batch)


@jax.jit
def run_batch(model, batch):
    return jax.vmap(lambda tokens: jc.run(model, tokens)[0])(batch)


def logits_of(model, batch):
    return run_batch(model, jnp.asarray(batch, jnp.int32))


@pytest.fixture(scope="module")
def sorter():
    return jc.from_pretrained(REAL / "gpt-nano-sort")


def test_gpt_nano_sort_reproduces_its_stored_activations(sorter):
    stored = np.load(REAL / "gpt-nano-sort" / "partials.npz")
    cache = {
        str(site): np.asarray(value)
        for site, value in record_all(sorter, jnp.asarray(stored["idx"], jnp.int32)).items()
    }
    heads = lambda x: x.transpose(0, 2, 1, 3)  # stored [batch head seq d_head]
    block = "blocks.0"
    want = {
        "hook_embed": stored["tok_emb"],
        "hook_pos_embed": np.broadcast_to(stored["pos_emb"], stored["tok_emb"].shape),
        f"{block}.hook_resid_pre": stored["x"],
        f"{block}.attn.hook_in": stored["ln1"],
        f"{block}.attn.hook_q": heads(stored["q"]),
        f"{block}.attn.hook_k": heads(stored["k"]),
        f"{block}.attn.hook_v": heads(stored["v"]),
        f"{block}.attn.hook_pattern": stored["attSm"],
        f"{block}.hook_attn_out": stored["yProj"],
        f"{block}.hook_resid_mid": stored["attnResid"],
        f"{block}.mlp.hook_in": stored["ln2"],
        f"{block}.mlp.hook_pre": stored["fc"],
        f"{block}.mlp.hook_post": stored["gelu"],
        f"{block}.hook_mlp_out": stored["mlp"],
        f"{block}.hook_resid_post": stored["mlpResid"],
        "blocks.1.hook_resid_post": stored["block1"],
        "blocks.2.hook_resid_post": stored["block2"],
        "logits": stored["lm_head"],
    }
    for name, value in want.items():
        assert_close(cache[name], value, tolerance=1e-5)
    final = sorter.ln_final
    assert_close(cache["ln_final.hook_normalized"] * final.weight + final.bias, stored["ln_f"], tolerance=1e-5)
    assert np.array_equal(stored["block0"], stored["mlpResid"])
    z = cache[f"{block}.attn.hook_z"]
    assert_close(z.reshape(*z.shape[:2], -1), stored["y"], tolerance=1e-5)
    q, k, v = (cache[f"{block}.attn.hook_{x}"] for x in "qkv")
    assert_close(
        np.concatenate([x.reshape(*x.shape[:2], -1) for x in (q, k, v)], axis=-1), stored["qkv"], tolerance=1e-5
    )
    scores, causal = cache[f"{block}.attn.hook_attn_scores"], np.tril(np.ones((11, 11), bool))
    assert_close(scores[..., causal], stored["att"][..., causal], tolerance=1e-5)
    assert np.isneginf(scores[..., ~causal]).all()
    assert_close(jax.nn.softmax(cache["logits"], axis=-1), stored["probs"], tolerance=1e-5)


def test_gpt_nano_sort_sorts_every_input(sorter):
    """Six digits go in, and the model continues with them in order; the answer is read where each next digit is predicted."""
    digits = np.array(list(itertools.product(range(3), repeat=6)))
    ordered = np.sort(digits, axis=1)
    tokens = np.concatenate([digits, ordered[:, :-1]], axis=1)
    predicted = np.asarray(logits_of(sorter, tokens))[:, 5:].argmax(axis=-1)
    assert predicted.shape == (729, 6)
    assert np.array_equal(predicted, ordered)


def test_gpt_nano_sort_sorts_when_it_reads_its_own_output(sorter):
    digits = np.array(list(itertools.product(range(3), repeat=6)))
    tokens = np.concatenate([digits, np.zeros((729, 5), int)], axis=1)
    for at in range(5, 10):
        tokens[:, at + 1] = np.asarray(logits_of(sorter, tokens))[:, at].argmax(axis=-1)
    last = np.asarray(logits_of(sorter, tokens))[:, 10].argmax(axis=-1)
    assert np.array_equal(np.column_stack([tokens[:, 6:], last]), np.sort(digits, axis=1))


def test_gpt_by_hand_is_the_same_from_both_layouts_and_as_stored():
    stored = np.load(REAL / "gpt-by-hand" / "reference_io.npz")
    gpt2, neo = (jc.from_pretrained(REAL / "gpt-by-hand" / name) for name in ("hf_gpt2", "hf_gpt_neo"))
    assert (gpt2.architecture, neo.architecture) == ("gpt2", "gpt_neo")
    assert neo.windows == (None, 8)
    assert gpt2.blocks[0].attn.scale != neo.blocks[0].attn.scale
    a, b = logits_of(gpt2, stored["tokens"]), logits_of(neo, stored["tokens"])
    assert_close(a, stored["logits"], tolerance=1e-5)
    assert_close(b, stored["logits"], tolerance=1e-5)


@pytest.mark.parametrize("name", ["gpt-nano-sort", "gpt-by-hand/hf_gpt2", "gpt-by-hand/hf_gpt_neo"])
def test_trained_models_round_trip_bit_for_bit(name):
    stored = safetensors.numpy.load_file(REAL / name / "model.safetensors")
    state = jc.to_torch_state_dict(jc.from_pretrained(REAL / name))
    assert len(stored) > 20
    assert all(np.array_equal(state[key], array) for key, array in stored.items())


@needs_x64
def test_a_trained_model_processed():
    model = jc.from_pretrained(REAL / "gpt-nano-sort", dtype=jnp.float64)
    tokens = np.random.default_rng(0).integers(0, model.d_vocab, (16, model.n_ctx))
    log_probs = lambda model: jax.nn.log_softmax(logits_of(model, tokens), axis=-1)
    assert_close(log_probs(jax.jit(jc.process_weights)(model)), log_probs(model), tolerance=1e-12)


@pytest.mark.parametrize("name", TRACR)
def test_compiled_programs_reproduce_their_outputs(name):
    stored = np.load(REAL / "tracr" / f"{name}.npz")
    config = json.loads((REAL / "tracr" / f"{name}.circuit.json").read_text())["config"]
    model = jc.from_transformer_lens({key: stored[key] for key in stored if not key.startswith("test_")}, config)
    assert model.name == name
    assert model.causal == (config["attention_dir"] == "causal")
    cache = record_all(model, jnp.asarray(stored["test_tokens"]))
    logits, final = jc.Site(None, jc.Kind.LOGITS), jc.Site(model.n_layers - 1, jc.Kind.RESID_POST)
    assert_close(cache[final], stored["test_final_residual"], tolerance=1e-5)
    assert_close(cache[logits], stored["test_logits"], tolerance=1e-5)


def test_gpt2_tokenizer():
    tokenizer = jc.load_tokenizer(REAL / "gpt2-tokenizer")
    text = "When Mary and John went to the store, John gave a drink to"
    ids = tokenizer(text).input_ids
    assert ids == [2215, 5335, 290, 1757, 1816, 284, 262, 3650, 11, 1757, 2921, 257, 4144, 284]
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id == 50256

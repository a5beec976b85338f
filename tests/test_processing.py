import dataclasses as dc
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc

from .helpers import assert_close, make_model, model_named, MODELS, needs_x64, tokens_for
from .odd_parts import odd_model


STEPS = ("fold_layer_norm", "center_writing", "center_unembed", "fold_value_biases")


# What would change probabilities; the defaults leave it out.
FORBIDDEN = {
    "no-norm-relu-bidirectional": ("center_writing",),
    **dict.fromkeys(("llama", "qwen3", "olmo2", "gemma3"), ("center_writing",)),
    "gemma2": ("center_writing", "center_unembed"),
}


def only(*steps: str) -> dict[str, bool]:
    return {step: step in steps for step in STEPS}


def log_probs(model):
    return jax.nn.log_softmax(jc.run(model, tokens_for(model))[0], axis=-1)


@needs_x64
@pytest.mark.parametrize("steps", [(), *((step,) for step in STEPS), STEPS], ids="+".join)
@pytest.mark.parametrize("name", MODELS)
def test_log_probabilities_are_unchanged(name, steps):
    model = model_named(name)
    steps = tuple(step for step in steps if step not in FORBIDDEN.get(name, ()))
    processed = jc.process_weights(model, **only(*steps))
    assert processed.processing == steps
    assert_close(log_probs(processed), log_probs(model), tolerance=1e-12)


@needs_x64
@pytest.mark.parametrize("steps", list(itertools.combinations(STEPS, 2)), ids="+".join)
def test_pairs_of_steps_in_either_order(steps):
    model = model_named("gpt2-untied")
    together = jc.process_weights(model, **only(*steps))
    apart = jc.process_weights(jc.process_weights(model, **only(steps[1])), **only(steps[0]))
    assert apart.processing == steps == together.processing
    assert_close(log_probs(together), log_probs(model), tolerance=1e-12)
    assert_close(log_probs(apart), log_probs(model), tolerance=1e-12)


@needs_x64
@pytest.mark.parametrize("name", ["gpt2", "gpt-neo", "attention-only"])
def test_twice_is_once(name):
    once = jc.process_weights(model_named(name))
    twice = jc.process_weights(once)
    assert jax.tree.structure(once) == jax.tree.structure(twice)
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(twice), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13)


@needs_x64
def test_fold_layer_norm_by_hand():
    model = model_named("gpt2")
    block, ln = model.blocks[1], model.blocks[1].ln1
    folded = jc.process_weights(model, **only("fold_layer_norm"))
    attn = folded.blocks[1].attn
    for W, b, W_old, b_old in (
        (attn.W_Q, attn.b_Q, block.attn.W_Q, block.attn.b_Q),
        (attn.W_K, attn.b_K, block.attn.W_K, block.attn.b_K),
        (attn.W_V, attn.b_V, block.attn.W_V, block.attn.b_V),
    ):
        for head in range(model.n_heads):
            scaled = np.diag(ln.weight) @ np.asarray(W_old[head])
            assert_close(W[head], scaled - scaled.mean(axis=0), tolerance=1e-14)
            assert_close(
                b[head], np.asarray(b_old[head]) + np.asarray(ln.bias) @ np.asarray(W_old[head]), tolerance=1e-14
            )
    scaled = np.diag(block.ln2.weight) @ np.asarray(block.mlp.W_in)
    assert_close(folded.blocks[1].mlp.W_in, scaled - scaled.mean(axis=0), tolerance=1e-14)
    assert_close(folded.blocks[1].mlp.b_in, block.mlp.b_in + block.ln2.bias @ block.mlp.W_in, tolerance=1e-14)
    assert_close(folded.b_U, model.ln_final.bias @ model.W_E.T, tolerance=1e-14)
    assert not np.any(model.b_U)
    norms = [folded.ln_final, *(norm for b in folded.blocks for norm in (b.ln1, b.ln2))]
    assert all(norm.weight is None and norm.bias is None for norm in norms)
    assert np.array_equal(folded.W_E, model.W_E)


@needs_x64
def test_fold_layer_norm_leaves_what_the_norms_feed():
    model = model_named("gpt2")
    sites = [f"blocks.1.{name}" for name in ("attn.hook_q", "attn.hook_v", "mlp.hook_pre", "hook_resid_post")] + [
        "logits"
    ]
    inputs = ["blocks.1.attn.hook_in", "blocks.1.mlp.hook_in"]
    kept = [f"blocks.1.{norm}.hook_{what}" for norm in ("ln1", "ln2") for what in ("scale", "normalized")]
    sites += [*kept, "ln_final.hook_normalized"]
    tokens = tokens_for(model)
    _, before = jc.run(model, tokens, record=[*sites, *inputs])
    _, after = jc.run(jc.process_weights(model, **only("fold_layer_norm")), tokens, record=[*sites, *inputs])
    for site in map(jc.Site.parse, sites):
        assert_close(after[site], before[site], tolerance=1e-13)
    for site, norm in zip(map(jc.Site.parse, inputs), (model.blocks[1].ln1, model.blocks[1].ln2), strict=True):
        assert_close(after[site] * norm.weight + norm.bias, before[site], tolerance=1e-13)


@needs_x64
def test_center_writing_takes_the_mean_out_of_the_residual_stream():
    model = model_named("gpt2")
    centred = jc.process_weights(model, **only("center_writing"))
    sites = ["hook_embed", "hook_pos_embed"] + [
        f"blocks.1.{name}" for name in ("hook_attn_out", "hook_mlp_out", "hook_resid_post")
    ]
    tokens = tokens_for(model)
    logits, before = jc.run(model, tokens, record=sites)
    new_logits, after = jc.run(centred, tokens, record=sites)
    for site in before:
        mean = before[site].mean(axis=-1, keepdims=True)
        assert np.abs(mean).max() > 1e-2
        assert_close(after[site], before[site] - mean, tolerance=1e-13)
    assert_close(new_logits, logits, tolerance=1e-13)


@needs_x64
def test_center_unembed_shifts_the_logits_of_a_position_together():
    model = model_named("gpt2-untied")
    logits, new = (
        jc.run(model, tokens_for(model))[0],
        jc.run(jc.process_weights(model, **only("center_unembed")), tokens_for(model))[0],
    )
    assert_close(new, logits - logits.mean(axis=-1, keepdims=True), tolerance=1e-13)
    assert np.abs(new - logits).max() > 1e-2


@needs_x64
def test_fold_value_biases_moves_them_past_the_pattern():
    model = model_named("gpt2")
    folded = jc.process_weights(model, **only("fold_value_biases"))
    attn = model.blocks[0].attn
    sites = [f"blocks.0.attn.hook_{name}" for name in "vz"] + ["blocks.0.hook_attn_out"]
    tokens = tokens_for(model)
    _, before = jc.run(model, tokens, record=sites)
    _, after = jc.run(folded, tokens, record=sites)
    v, z, out = map(jc.Site.parse, sites)
    assert_close(after[v], before[v] - attn.b_V, tolerance=1e-13)
    assert_close(after[z], before[z] - attn.b_V, tolerance=1e-13)
    assert_close(after[out], before[out], tolerance=1e-13)
    assert not np.any(folded.blocks[0].attn.b_V)
    by_hand = attn.b_O + sum(attn.b_V[h] @ attn.W_O[h] for h in range(model.n_heads))
    assert_close(folded.blocks[0].attn.b_O, by_hand, tolerance=1e-14)


def test_the_model_given_stays_as_it_was():
    model = make_model(jax.random.key(3))
    copies = jax.tree.map(np.array, jax.tree.leaves(model))
    processed = jc.process_weights(model)
    assert all(np.array_equal(a, b) for a, b in zip(copies, jax.tree.leaves(model), strict=True))
    assert model.processing == ()
    assert model.untied_W_U is None
    assert processed.untied_W_U is not None


@needs_x64
def test_under_jit_and_grad():
    model = model_named("gpt2")
    compiled = jax.jit(jc.process_weights)(model)
    for a, b in zip(jax.tree.leaves(compiled), jax.tree.leaves(jc.process_weights(model)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13)
    through = jax.grad(
        lambda bias: jc.process_weights(dc.replace(model, ln_final=dc.replace(model.ln_final, bias=bias))).b_U[0]
    )
    W_U = np.asarray(model.W_U)
    assert_close(through(model.ln_final.bias), W_U[:, 0] - W_U.mean(axis=1), tolerance=1e-13)


WHY = {
    ("no-norm-relu-bidirectional", "center_writing"): "no layer norms, so the mean of its residual stream matters.",
    ("llama", "center_writing"): "at `blocks.0.ln1` a norm that does not subtract the mean of the residual stream",
    ("olmo2", "center_writing"): "no norm at `blocks.0.ln1`, so the mean of its residual stream matters",
    ("gemma2", "center_unembed"): "logits that are capped at 3: a shift of a position's logits before the cap is none",
    (
        "layer norms behind",
        "center_writing",
    ): "a norm behind a sublayer, `blocks.0.ln1_post`: what it writes has a mean",
}


@pytest.mark.parametrize(("name", "step"), WHY, ids="+".join)
def test_steps_that_would_change_probabilities_are_refused_with_the_reason(name, step):
    model = make_model(jax.random.key(0), behind=True) if name == "layer norms behind" else model_named(name)
    with pytest.raises(
        ValueError, match=f"process_weights: random has {re.escape(WHY[name, step])}.* Pass {step}=False"
    ):
        jc.process_weights(model, **{step: True})


@needs_x64
@pytest.mark.parametrize("name", MODELS)
def test_by_default_every_step_is_done_that_a_model_allows(name):
    model = model_named(name)
    processed = jc.process_weights(model)
    assert processed.processing == tuple(step for step in STEPS if step not in FORBIDDEN.get(name, ()))
    assert_close(log_probs(processed), log_probs(model), tolerance=1e-12)


@needs_x64
def test_what_is_refused_would_change_probabilities():
    """Each step done all the same, to a model whose record does not say what forbids it."""
    centred = lambda x: x - x.mean(-1, keepdims=True)
    llama, gemma = model_named("llama"), model_named("gemma2")
    blocks = tuple(
        dc.replace(block, attn=dc.replace(block.attn, W_O=centred(block.attn.W_O), b_O=centred(block.attn.b_O)))
        for block in llama.blocks
    )
    for model, changed in (
        (llama, dc.replace(llama, blocks=blocks)),
        (gemma, dc.replace(gemma, untied_W_U=centred(gemma.W_U))),
    ):
        assert np.abs(log_probs(changed) - log_probs(model)).max() > 1e-2


@needs_x64
@pytest.mark.parametrize("name", ["llama", "gemma3", "olmo2"])
def test_fold_rms_norm_by_hand(name):
    """Into all that reads a norm before a sublayer, with its offset and without a mean; norms behind and of queries and keys stay."""
    model = model_named(name)
    folded = jc.process_weights(model, **only("fold_layer_norm"))
    for old, new in zip(model.blocks, folded.blocks, strict=True):
        gain = lambda norm: 1 if norm is None else norm.offset + np.asarray(norm.weight)[:, None]
        for W in ("W_Q", "W_K", "W_V"):
            assert_close(getattr(new.attn, W), gain(old.ln1) * np.asarray(getattr(old.attn, W)), tolerance=1e-14)
        for W in ("W_gate", "W_in"):
            assert_close(getattr(new.mlp, W), gain(old.ln2) * np.asarray(getattr(old.mlp, W)), tolerance=1e-14)
        for norm in (new.ln1, new.ln2):
            assert norm is None or norm.weight is None
        for kept, before in (
            (new.ln1_post, old.ln1_post),
            (new.ln2_post, old.ln2_post),
            (new.attn.q_norm, old.attn.q_norm),
        ):
            assert kept is before
    assert_close(folded.W_U, gain(model.ln_final) * np.asarray(model.W_U), tolerance=1e-14)
    assert folded.ln_final.weight is None
    assert np.array_equal(folded.W_E, model.W_E)
    assert folded.embed_scale == model.embed_scale


@needs_x64
def test_fold_value_biases_of_shared_heads_by_hand():
    attn = model_named("gemma2").blocks[1].attn
    folded = jc.process_weights(model_named("gemma2"), **only("fold_value_biases")).blocks[1].attn
    by_hand = attn.b_O + sum(attn.b_V[h // 2] @ attn.W_O[h] for h in range(4))
    assert_close(folded.b_O, by_hand, tolerance=1e-14)
    assert not np.any(folded.b_V)


def test_parts_of_ones_own_are_refused():
    with pytest.raises(
        ValueError, match=r"process_weights: it computes with the weights of a LayerNorm or RMSNorm, and"
    ):
        jc.process_weights(odd_model("class derived from LayerNorm"))


def test_dtype_is_kept():
    model = jax.tree.map(lambda x: x.astype(jnp.float32), model_named("gpt2"))
    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(jc.process_weights, model))} == {jnp.dtype("float32")}

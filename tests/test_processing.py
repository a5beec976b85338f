import dataclasses as dc
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc

from .helpers import assert_close, make_model, model_named, MODELS, needs_x64, tokens_for


STEPS = ("fold_layer_norm", "center_writing", "center_unembed", "fold_value_biases")


def only(*steps: str) -> dict[str, bool]:
    return {step: step in steps for step in STEPS}


def log_probs(model):
    return jax.nn.log_softmax(jc.run(model, tokens_for(model))[0], axis=-1)


@needs_x64
@pytest.mark.parametrize("steps", [(), *((step,) for step in STEPS), STEPS], ids="+".join)
@pytest.mark.parametrize("name", MODELS)
def test_log_probabilities_are_unchanged(name, steps):
    model = model_named(name)
    steps = steps if model.ln_final is not None else tuple(step for step in steps if step != "center_writing")
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
    inputs = ["blocks.1.ln1.hook_normalized", "ln_final.hook_normalized"]
    tokens = tokens_for(model)
    _, before = jc.run(model, tokens, record=[*sites, *inputs])
    _, after = jc.run(jc.process_weights(model, **only("fold_layer_norm")), tokens, record=[*sites, *inputs])
    for site in map(jc.Site.parse, sites):
        assert_close(after[site], before[site], tolerance=1e-13)
    for site, norm in zip(map(jc.Site.parse, inputs), (model.blocks[1].ln1, model.ln_final), strict=True):
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


def test_centring_what_a_model_without_norms_writes_is_refused():
    model = model_named("no-norm-relu-bidirectional")
    with pytest.raises(
        ValueError, match=r"no layer norms, so the mean of its residual stream matters. Pass center_writing=False"
    ):
        jc.process_weights(model)
    assert jc.process_weights(model, center_writing=False).processing == (
        "fold_layer_norm",
        "center_unembed",
        "fold_value_biases",
    )


def test_dtype_is_kept():
    model = jax.tree.map(lambda x: x.astype(jnp.float32), model_named("gpt2"))
    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(jc.process_weights, model))} == {jnp.dtype("float32")}

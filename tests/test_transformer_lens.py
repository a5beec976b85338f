"""Models from TransformerLens' state dicts and configurations."""

import dataclasses as dc

import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc.interop import _transformer_lens, save_pretrained
from jaxcirc.interop._rotation import Linear, Llama3, Rotation
from jaxcirc.parts import GatedMLP, RMSNorm

from .helpers import assert_close, model_named, needs_x64
from .stored_models import load, logits_of, stored_model


def lens_state(model) -> dict[str, np.ndarray]:
    """The same model under TransformerLens' names: embeddings scaled and norms' weights whole, keys and values of a group underscored."""
    out = {"embed.W_E": model.W_E * model.embed_scale, "unembed.W_U": model.W_U, "unembed.b_U": model.b_U}
    if model.W_pos is not None:
        out["pos_embed.W_pos"] = model.W_pos
    out |= lens_norm("ln_final", model.ln_final)
    under = "_" if model.n_kv_heads < model.n_heads else ""
    for i, block in enumerate(model.blocks):
        at, attn, mlp = f"blocks.{i}", block.attn, block.mlp
        out |= {f"{at}.attn.{what}_{part}": getattr(attn, f"{what}_{part}") for part in "QO" for what in "Wb"}
        out |= {f"{at}.attn.{under}{what}_{part}": getattr(attn, f"{what}_{part}") for part in "KV" for what in "Wb"}
        if mlp is not None:
            names = [name for name in vars(mlp) if name.startswith(("W_", "b_")) and name != "b_gate"]
            out |= {f"{at}.mlp.{name}": getattr(mlp, name) for name in names}
        for name in ("ln1", "ln2", "ln1_post", "ln2_post"):
            out |= lens_norm(
                f"{at}.{name if block.ln1 is not None else name.removesuffix('_post')}", getattr(block, name)
            )
        for name in ("q_norm", "k_norm"):
            out |= lens_norm(f"{at}.attn.{name}", getattr(attn, name))
    return {name: np.asarray(array) for name, array in out.items()}


def lens_norm(name, norm) -> dict:
    if norm is None or norm.weight is None:
        return {}
    if isinstance(norm, RMSNorm):
        return {f"{name}.w": (norm.offset + norm.weight).ravel()}
    return {f"{name}.w": norm.weight, f"{name}.b": norm.bias}


def of_lens(name):
    """The registry's model, without the biases that a gated MLP of TransformerLens has elsewhere or not at all."""
    model = model_named(name)
    zero = lambda mlp: dc.replace(mlp, b_gate=jnp.zeros_like(mlp.b_gate), b_in=jnp.zeros_like(mlp.b_in))
    gated = isinstance(model.blocks[0].mlp, GatedMLP)
    blocks = tuple(dc.replace(block, mlp=zero(block.mlp)) if gated else block for block in model.blocks)
    return dc.replace(model, blocks=blocks)


LENS_SIZES = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 6, "d_mlp": 24, "d_vocab": 13, "n_ctx": 12}
LENS = {
    "gpt2": LENS_SIZES | {"act_fn": "gelu_new"},
    "gpt2-untied": LENS_SIZES | {"act_fn": "gelu", "d_vocab_out": 7, "attn_scale": 6**0.5},
    "gpt2-inverse-layer-scale": LENS_SIZES
    | {"act_fn": "gelu_new", "n_layers": 3, "scale_attn_by_inverse_layer_idx": True},
    "gpt-neo": LENS_SIZES
    | {
        "act_fn": "gelu_new",
        "use_attn_scale": False,
        "use_local_attn": True,
        "window_size": 3,
        "attn_types": ["global", "local"],
    },
    "lnpre": LENS_SIZES | {"act_fn": "gelu_new", "normalization_type": "LNPre"},
    "no-norm-relu-bidirectional": LENS_SIZES
    | {
        "act_fn": "relu",
        "normalization_type": None,
        "attention_dir": "bidirectional",
        "d_vocab_out": 5,
        "attn_scale": "1/sqrt(d_head)",
    },
    "attention-only": LENS_SIZES | {"attn_only": True, "act_fn": None, "d_mlp": None},
    "parallel": LENS_SIZES | {"act_fn": "gelu_new", "parallel_attn_mlp": True},
}
ROTARY = {"positional_embedding_type": "rotary", "rotary_base": 100.0}
RMS = (
    LENS_SIZES
    | ROTARY
    | {"n_heads": 4, "n_key_value_heads": 2, "gated_mlp": True, "normalization_type": "RMS", "act_fn": "silu"}
)
GEMMA = {"act_fn": "gelu_new", "use_normalization_before_and_after": True, "use_local_attn": True, "window_size": 3}
GEMMA |= {"attn_types": ["local", "global"]}
LENS |= {
    "neox": LENS_SIZES | ROTARY | {"rotary_dim": 4, "act_fn": "gelu", "parallel_attn_mlp": True},
    "llama": RMS,
    "qwen3": RMS | {"use_qk_norm": True},
    "olmo2": RMS | {"original_architecture": "Olmo2ForCausalLM"},
    "gemma2": RMS | GEMMA | {"attn_scores_soft_cap": 2.0, "output_logits_soft_cap": 3.0, "attn_scale": 1 / 0.3},
    "gemma3": RMS | GEMMA | {"use_qk_norm": True, "rotary_base": 200.0, "rotary_base_local": 10.0},
}


@needs_x64
@pytest.mark.parametrize("name", LENS)
def test_transformer_lens_models(name):
    model = of_lens(name)
    loaded = jc.from_transformer_lens(lens_state(model), LENS[name])
    assert loaded.architecture == "transformer_lens"
    assert_close(logits_of(loaded, 9), logits_of(model, 9), tolerance=1e-13)


def test_transformer_lens_missing_biases_are_zero_and_masks_passed_over():
    model = model_named("gpt2")
    state = {name: array for name, array in lens_state(model).items() if not name.rpartition(".")[2].startswith("b_")}
    state |= {"blocks.0.attn.mask": np.ones((12, 12), bool), "blocks.0.attn.IGNORE": np.asarray(-np.inf)}
    loaded = jc.from_transformer_lens(state, LENS["gpt2"])
    assert not np.any(loaded.blocks[0].attn.b_Q)
    assert not np.any(loaded.blocks[1].mlp.b_out)
    assert np.array_equal(loaded.blocks[1].mlp.W_out, model.blocks[1].mlp.W_out)
    del state["blocks.1.ln2.b"]
    with pytest.raises(ValueError, match=r"The TransformerLens state dict .* missing: `blocks.1.ln2.b`"):
        jc.from_transformer_lens(state, LENS["gpt2"])


# What `cfg.to_dict()` holds of a GPT-2 beside the attributes that are used: what version 1 has, and what each later one adds.
VERSIONS: dict[str, dict[str, object]] = {
    "1": {
        **{"checkpoint_index": None, "checkpoint_label_type": None, "checkpoint_value": None, "device": "cpu"},
        **{"final_rms": False, "from_checkpoint": False, "init_mode": "gpt2", "init_weights": True, "n_params": 1536},
        **{
            "initializer_range": 0.2,
            "model_name": "custom",
            "n_devices": 1,
            "original_architecture": "GPT2LMHeadModel",
        },
        **{"positional_embedding_type": "standard", "rotary_dim": None, "seed": None, "tokenizer_name": "gpt2"},
        **{"use_attn_result": False, "use_hook_tokens": False, "use_split_qkv_input": False, "gated_mlp": False},
        **{"default_prepend_bos": True, "dtype": "torch.float32", "tokenizer_prepends_bos": False},
    },
    "2": {
        **{"attn_scores_soft_cap": -1.0, "output_logits_soft_cap": -1.0, "decoder_start_token_id": None},
        **{"experts_per_token": None, "num_experts": None, "load_in_4bit": False, "n_key_value_heads": None},
        **{"NTK_by_parts_factor": 8.0, "NTK_by_parts_high_freq_factor": 4.0, "NTK_by_parts_low_freq_factor": 1.0},
        **{"NTK_original_ctx_len": 8192, "use_NTK_by_parts_rope": False, "use_qk_norm": False, "use_attn_in": False},
        **{"post_embedding_ln": False, "relative_attention_max_distance": None, "tie_word_embeddings": False},
        **{"relative_attention_num_buckets": None, "rotary_adjacent_pairs": False, "rotary_base": 10000},
        **{"rotary_base_local": None, "trust_remote_code": False, "ungroup_grouped_query_attention": False},
        **{"use_hook_mlp_in": False, "use_normalization_before_and_after": False},
    },
    "3": {
        **{"uses_rms_norm": False, "layer_norm_folding": False, "rotary_scaling_factor": 1.0, "norm_topk_prob": False},
        **{"use_yarn_rope": False, "yarn_factor": 1.0, "yarn_attention_factor": 1.0, "yarn_beta_fast": 32.0},
        **{"yarn_beta_slow": 1.0, "yarn_original_max_position_embeddings": 4096, "yarn_truncate": True},
        **{"yarn_global_attn_only": False, "clip_qkv": None, "use_attention_sinks": False, "use_logn_attn": False},
        **{"use_dynamic_ntk_rope": False, "train_seq_length": None, "quantization_method": None},
    },
    "4": {
        **{"architecture": "GPT2LMHeadModel", "attn_implementation": None, "default_padding_side": None},
        **{"eos_token_id": 50256, "is_audio_model": False, "is_multimodal": False, "is_stateful": False},
        **{"is_visual_model": False, "mm_tokens_per_image": None, "per_layer_head_dim": None},
        **{"per_layer_num_key_value_heads": None, "qk_norm_after_rope": False, "rmsnorm_uses_offset": False},
        **{"rotary_interleaved_cos_sin": False, "scale_embedding": None, "split_attention_weights": True},
        **{"tokenizer_appends_eos": True, "vision_hidden_size": None, "vision_num_heads": None},
        **{"vision_num_layers": None, "eps_attr": "eps"},
    },
}


@pytest.mark.parametrize("version", VERSIONS)
def test_configurations_of_every_version_are_taken(version):
    state = lens_state(model_named("gpt2"))
    known = list(VERSIONS)[: list(VERSIONS).index(version) + 1]
    config = {name: value for each in known for name, value in VERSIONS[each].items()}
    got = logits_of(jc.from_transformer_lens(state, LENS["gpt2"] | config), 9)
    assert np.array_equal(got, logits_of(jc.from_transformer_lens(state, LENS["gpt2"]), 9))
    assert np.any(got)


# A value of each attribute of the table with which it would change the computation, and what the message says of it.
EFFECTIVE = {
    "architecture": ("GPTNeoForCausalLM", "jc.from_pretrained"),
    "clip_qkv": (8.0, "cut off"),
    "experts_per_token": (2, "mixture of experts"),
    "final_rms": (True, "the last norm does not subtract the mean"),
    "is_audio_model": (True, "hears"),
    "is_multimodal": (True, "more than tokens"),
    "is_stateful": (True, "has no attention"),
    "is_visual_model": (True, "sees"),
    "layer_norm_folding": (True, "normalization_type is 'LNPre' then"),
    "load_in_4bit": (True, "packed"),
    "num_experts": (4, "mixture of experts"),
    "per_layer_head_dim": ([6, 12], "another width in each layer"),
    "per_layer_num_key_value_heads": ([2, 1], "layers differ in how many heads share"),
    "post_embedding_ln": (True, "a norm follows the embedding"),
    "quantization_method": ("gptq", "packed"),
    "rmsnorm_uses_offset": (True, "one plus their weight"),
    "scale_embedding": (True, r"sqrt\(d_model\)"),
    "use_attention_sinks": (True, "a sink"),
    "use_dynamic_ntk_rope": (True, "rotate"),
    "use_logn_attn": (True, "logarithm"),
    "use_yarn_rope": (True, "YaRN"),
    "uses_rms_norm": (True, "the norms do not subtract the mean"),
}


@pytest.mark.parametrize("attribute", _transformer_lens.ONLY)
def test_an_effective_attribute_is_refused_with_what_it_does(attribute):
    value, does = EFFECTIVE[attribute]
    with pytest.raises(ValueError, match=rf"{attribute} = .* is not supported; only .* It says that .*{does}"):
        jc.from_transformer_lens(lens_state(model_named("gpt2")), LENS["gpt2"] | {attribute: value})


@pytest.mark.parametrize("attribute", _transformer_lens.ONLY)
def test_every_value_that_changes_nothing_is_taken(attribute):
    state = lens_state(model_named("gpt2"))
    want = logits_of(jc.from_transformer_lens(state, LENS["gpt2"]), 9)
    for value in _transformer_lens.ONLY[attribute].values:
        got = logits_of(jc.from_transformer_lens(state, LENS["gpt2"] | {attribute: value}), 9)
        assert np.array_equal(got, want)
    assert np.any(want)


@pytest.mark.parametrize(
    ("name", "attribute", "value"),
    [
        ("gpt2", "attn_scores_soft_cap", 0.0),
        ("gpt2", "output_logits_soft_cap", -2),
        ("gpt2", "n_key_value_heads", 2),
        ("gpt2", "per_layer_head_dim", [6, 6]),
        ("gpt2", "per_layer_num_key_value_heads", [2, 2]),
        ("lnpre", "layer_norm_folding", True),
        ("attention-only", "gated_mlp", True),
        ("no-norm-relu-bidirectional", "final_rms", True),
        ("gpt-neo", "architecture", "GPTNeoForCausalLM"),
        ("llama", "final_rms", True),
        ("llama", "uses_rms_norm", True),
        ("llama", "per_layer_num_key_value_heads", [2, 2]),
    ],
)
def test_a_value_that_changes_nothing_beside_the_others_is_taken(name, attribute, value):
    state = lens_state(of_lens(name))
    got = logits_of(jc.from_transformer_lens(state, LENS[name] | {attribute: value}), 9)
    want = logits_of(jc.from_transformer_lens(state, LENS[name]), 9)
    assert np.array_equal(got, want)
    assert np.any(want)


def test_attributes_that_never_matter_change_nothing():
    state = lens_state(model_named("gpt2"))
    config = LENS["gpt2"] | {name: "anything" for name in _transformer_lens.IGNORED}
    got = logits_of(jc.from_transformer_lens(state, config), 9)
    assert np.array_equal(got, logits_of(jc.from_transformer_lens(state, LENS["gpt2"]), 9))
    assert np.any(got)


def bridge_state(model, architecture: str) -> dict[str, np.ndarray]:
    """The same model under the names of a bridge's modules: linear layers output first, but GPT-2's own, which are input first."""
    flat = lambda W: (
        np.concatenate([np.asarray(head) for head in W], axis=1).T
    )  # [head d_model d_head] -> [(head d_head) d_model]
    turned = (lambda W: W) if architecture == "GPT2LMHeadModel" else (lambda W: W.T)
    out = {"embed.weight": model.W_E, "pos_embed.weight": model.W_pos, "unembed.weight": np.asarray(model.W_U).T}
    out |= {"unembed.bias": model.b_U, "ln_final.weight": model.ln_final.weight, "ln_final.bias": model.ln_final.bias}
    for i, block in enumerate(model.blocks):
        at, attn, mlp = f"blocks.{i}", block.attn, block.mlp
        for part in "QKV":
            out[f"{at}.attn.{part.lower()}.weight"] = flat(getattr(attn, f"W_{part}"))
            out[f"{at}.attn.{part.lower()}.bias"] = np.asarray(getattr(attn, f"b_{part}")).ravel()
        out |= {
            f"{at}.attn.o.weight": turned(np.asarray(attn.W_O).reshape(-1, model.d_model)),
            f"{at}.attn.o.bias": attn.b_O,
        }
        out |= {f"{at}.mlp.in.weight": turned(np.asarray(mlp.W_in)), f"{at}.mlp.in.bias": mlp.b_in}
        out |= {f"{at}.mlp.out.weight": turned(np.asarray(mlp.W_out)), f"{at}.mlp.out.bias": mlp.b_out}
        for name, norm in (("ln1", block.ln1), ("ln2", block.ln2)):
            out |= {f"{at}.{name}.weight": norm.weight, f"{at}.{name}.bias": norm.bias}
    return {name: np.asarray(array) for name, array in out.items()}


@needs_x64
@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "TransformerLensNative"])
def test_the_state_dict_of_a_bridge(architecture):
    model, config = model_named("gpt2"), LENS["gpt2"] | VERSIONS["4"] | {"architecture": architecture}
    state = bridge_state(model, architecture)
    assert_close(logits_of(jc.from_transformer_lens(state, config), 9), logits_of(model, 9), tolerance=1e-13)
    state["blocks.1.mlp.in.weight"] = state["blocks.1.mlp.in.weight"].T
    with pytest.raises(ValueError, match=r"`blocks.1.mlp.in.weight` has shape .*asks for"):
        jc.from_transformer_lens(state, config)
    del state["blocks.1.mlp.in.weight"]
    with pytest.raises(ValueError, match=r"missing: `blocks.1.mlp.W_in`"):
        jc.from_transformer_lens(state, config)


@pytest.mark.parametrize(
    "change",
    [
        {"parallel_attn_mlp": True},
        {"scale_attn_by_inverse_layer_idx": True},
        {"use_attn_scale": False},
        {"use_local_attn": True, "window_size": 3, "attn_types": ["global", "local"]},
    ],
)
def test_what_a_bridges_own_model_does_not_compute_with(change):
    """Of TransformerLens 4.3: these are in its configuration, and no part of its own models reads them."""
    state = bridge_state(model_named("gpt2"), "TransformerLensNative")
    config = LENS["gpt2"] | {"architecture": "TransformerLensNative"} | change
    with pytest.raises(ValueError, match=rf"{next(iter(change))} = .* does not compute with it. Say what is meant"):
        jc.from_transformer_lens(state, config)


def test_grouped_attention_with_one_group_a_head_is_attention():
    state = lens_state(model_named("gpt2"))
    grouped = {name.replace(".W_K", "._W_K").replace(".b_V", "._b_V"): array for name, array in state.items()}
    grouped = {name.replace(".W_V", "._W_V").replace(".b_K", "._b_K"): array for name, array in grouped.items()}
    assert sum("._" in name for name in grouped) == 8
    loaded = jc.from_transformer_lens(grouped, LENS["gpt2"] | {"n_key_value_heads": 2})
    want = logits_of(jc.from_transformer_lens(state, LENS["gpt2"]), 9)
    assert np.array_equal(logits_of(loaded, 9), want)
    assert np.any(want)


def test_a_bias_behind_the_product_with_the_gate_is_refused():
    state = lens_state(model_named("llama"))
    with pytest.raises(ValueError, match=r"blocks.0.mlp.b_in is not zero.*only zeros are. Add b_in @ W_out to b_out"):
        jc.from_transformer_lens(state, LENS["llama"])


def test_the_scaled_rotations_of_transformer_lens():
    config = LENS["gemma3"] | {"rotary_scaling_factor": 8.0}
    local, other = jc.from_transformer_lens(lens_state(of_lens("gemma3")), config).positions
    assert (local, other) == (Rotation(10.0, 6), Rotation(200.0, 6, Linear(8.0)))  # of layers that attend to all
    config = LENS["llama"] | {"use_NTK_by_parts_rope": True, "NTK_by_parts_factor": 32.0}
    model = jc.from_transformer_lens(lens_state(of_lens("llama")), config)
    assert model.positions == (Rotation(100.0, 6, Llama3(32.0, 1.0, 4.0, 8192)),) * 2


@needs_x64
def test_a_folded_norm_before_and_one_that_cannot_be_folded_behind():
    model = of_lens("gemma2")
    folded = lambda norm: dc.replace(norm, weight=None, offset=0.0)
    blocks = tuple(dc.replace(block, ln1=folded(block.ln1), ln2=folded(block.ln2)) for block in model.blocks)
    model = dc.replace(model, blocks=blocks, ln_final=folded(model.ln_final))
    loaded = jc.from_transformer_lens(lens_state(model), LENS["gemma2"] | {"normalization_type": "RMSPre"})
    assert_close(logits_of(loaded, 9), logits_of(model, 9), tolerance=1e-13)


@needs_x64
def test_a_llama_of_transformer_lens_is_saved_as_one(tmp_path):
    model = of_lens("llama")
    zero = lambda attn: dc.replace(attn, **{f"b_{part}": jnp.zeros_like(getattr(attn, f"b_{part}")) for part in "QKVO"})
    mlp = lambda mlp: dc.replace(mlp, b_out=jnp.zeros_like(mlp.b_out))
    blocks = tuple(dc.replace(block, attn=zero(block.attn), mlp=mlp(block.mlp)) for block in model.blocks)
    model = dc.replace(model, blocks=blocks, b_U=jnp.zeros_like(model.b_U))
    save_pretrained(jc.from_transformer_lens(lens_state(model), LENS["llama"]), tmp_path)
    loaded = load(tmp_path)
    assert loaded.architecture == "llama"
    assert_close(logits_of(loaded, 9), logits_of(model, 9), tolerance=1e-13)


def test_transformer_lens_says_what_was_processed():
    processed = jc.process_weights(model_named("gpt2"))
    config = LENS["gpt2"] | {"normalization_type": "LNPre"}
    loaded = jc.from_transformer_lens(lens_state(processed), config, processing=processed.processing)
    assert loaded.processing == processed.processing
    assert jc.from_transformer_lens(lens_state(processed), config).processing == ()
    with pytest.raises(ValueError, match="no step is called 'fold_ln'"):
        jc.from_transformer_lens(lens_state(processed), config, processing=["fold_ln"])


# What to change each attribute of the configuration to.
LENS_CHANGES = {
    "n_layers": 1,
    "d_model": 18,
    "n_ctx": 13,
    "d_head": 3,
    "d_vocab": 14,
    "n_heads": 4,
    "d_mlp": 25,
    "d_vocab_out": 14,
    "act_fn": "relu",
    "eps": 0.5,
    "normalization_type": "LNPre",
    "attention_dir": "bidirectional",
    "attn_only": True,
    "parallel_attn_mlp": True,
    "use_attn_scale": False,
    "attn_scale": 5.0,
    "scale_attn_by_inverse_layer_idx": True,
    "use_local_attn": False,
    "window_size": 2,
    "attn_types": ["local", "local"],
    "n_key_value_heads": 1,
    "gated_mlp": True,
    "use_normalization_before_and_after": True,
    "use_qk_norm": True,
    "original_architecture": "Olmo2ForCausalLM",
    "attn_scores_soft_cap": 0.5,
    "output_logits_soft_cap": 0.5,
    "positional_embedding_type": "rotary",
}
# Of rotary positions alone.
ROTARY_CHANGES = {
    "rotary_dim": 2,
    "rotary_base": 10.0,
    "rotary_base_local": 3.0,
    "rotary_scaling_factor": 2.0,
    "rotary_adjacent_pairs": True,
    "use_NTK_by_parts_rope": True,
    "NTK_by_parts_factor": 2.0,
    "NTK_by_parts_low_freq_factor": 0.1,
    "NTK_by_parts_high_freq_factor": 9.0,
    "NTK_original_ctx_len": 3,
}


@pytest.mark.parametrize(("attribute", "value"), LENS_CHANGES.items())
def test_every_used_attribute_of_transformer_lens_reaches_the_model(attribute, value):
    state = lens_state(model_named("gpt2"))
    config = LENS["gpt2"] | {"use_local_attn": True, "window_size": 3, "attn_types": ["global", "local"]}
    before = logits_of(jc.from_transformer_lens(state, config), 9)
    try:
        after = logits_of(jc.from_transformer_lens(state, config | {attribute: value}), 9)
    except ValueError:
        return
    assert not np.array_equal(before, after)


@pytest.mark.parametrize(("attribute", "value"), ROTARY_CHANGES.items())
def test_every_attribute_of_rotary_positions_reaches_the_model(attribute, value):
    model = of_lens("gemma3")
    config = LENS["gemma3"] | {"NTK_original_ctx_len": 8, "use_NTK_by_parts_rope": attribute.startswith("NTK")}
    before = logits_of(jc.from_transformer_lens(lens_state(model), config), 9)
    if attribute == "rotary_adjacent_pairs":
        with pytest.raises(ValueError, match="neighbouring coordinates rotate together"):
            jc.from_transformer_lens(lens_state(model), config | {attribute: value})
        return
    after = logits_of(jc.from_transformer_lens(lens_state(model), config | {attribute: value}), 9)
    assert not np.array_equal(before, after)
    rotates_not = jc.from_transformer_lens(lens_state(model_named("gpt2")), LENS["gpt2"] | {attribute: value})
    assert np.array_equal(
        logits_of(rotates_not), logits_of(jc.from_transformer_lens(lens_state(model_named("gpt2")), LENS["gpt2"]))
    )


def test_the_list_above_is_whole():
    assert set(LENS_CHANGES) | set(ROTARY_CHANGES) == set(_transformer_lens.USED)
    assert not set(_transformer_lens.USED) & _transformer_lens.IGNORED
    assert not set(_transformer_lens.ONLY) & _transformer_lens.IGNORED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gated_mlp": True}, r"missing: `blocks.0.mlp.W_gate`"),
        (
            {"positional_embedding_type": "alibi"},
            "positional_embedding_type = 'alibi' is not supported; 'standard' and 'rotary' are",
        ),
        ({"positional_embedding_type": "rotary", "rotary_adjacent_pairs": True}, "rotary_adjacent_pairs = True is not"),
        (
            {"use_normalization_before_and_after": True},
            "use_normalization_before_and_after = True is not supported with",
        ),
        ({"original_architecture": "Olmo3ForCausalLM"}, "original_architecture = 'Olmo3ForCausalLM' is not supported"),
        ({"output_logits_soft_cap": "30"}, "output_logits_soft_cap = '30'; expected a number above 0"),
        ({"n_ctx": "12"}, "n_ctx = '12'; expected a whole number from 1"),
        ({"final_rmz": False}, "the attribute final_rmz = False is not known"),
        ({"normalization_type": "GroupNorm"}, "normalization_type 'GroupNorm' is not supported"),
        ({"act_fn": "solu_ln"}, "act_fn 'solu_ln' is not supported"),
        ({"attention_dir": "both"}, "expected attention_dir 'causal' or 'bidirectional', got 'both'"),
        ({"attn_scale": "sqrt(d_head)"}, r"attn_scale 'sqrt\(d_head\)' is not understood"),
        ({"use_local_attn": True}, "use_local_attn needs window_size, and attn_types with 2 entries"),
        ({"use_local_attn": True, "attention_dir": "bidirectional"}, "use_local_attn is of causal attention"),
        # What is known not to be supported goes before attributes of it, which nobody here can know.
        ({"frobnicate": 1, "positional_embedding_type": "alibi"}, "positional_embedding_type = 'alibi'"),
        ({"frobnicate": 1, "normalization_type": "GroupNorm"}, "normalization_type 'GroupNorm' is not"),
        ({"attn_scale": 0}, "attn_scale = 0; expected a number above 0"),
        ({"attn_scale": None}, "attn_scale = None; expected a number above 0"),
        ({"eps": None}, "eps = None; expected a number above 0"),
        *(
            (
                {"use_local_attn": True, "attn_types": ["local", "global"], "window_size": size},
                f"window_size = {size!r}; exp",
            )
            for size in (0, -1, 2.5, "3")
        ),
        ({"n_key_value_heads": 4}, "n_heads = 2, which n_key_value_heads = 4 does not divide"),
        ({"n_heads": -1, "d_head": 17}, "n_heads = 0; expected a whole number from 1"),
        ({"positional_embedding_type": "rotary", "rotary_dim": 10}, "10 coordinates of a head are to rotate, .* has 6"),
        (
            {"positional_embedding_type": "rotary", "d_head": 3},
            "3 coordinates of a head are to rotate, in pairs, which takes 4",
        ),
        *(
            (
                {
                    "positional_embedding_type": "rotary",
                    "use_NTK_by_parts_rope": True,
                    "NTK_by_parts_low_freq_factor": low,
                },
                f"NTK_by_parts_high_freq_factor = 4.0 must be above NTK_by_parts_low_freq_factor = {low}",
            )
            for low in (4.0, 8.0)
        ),
        ({"d_mlp": 25}, r"`blocks.0.mlp.W_in` has shape \(16, 24\), and its configuration asks for \(16, 25\)"),
    ],
)
def test_bad_transformer_lens_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        jc.from_transformer_lens(lens_state(model_named("gpt2")), LENS["gpt2"] | changes)


def test_a_transformer_lens_configuration_without_sizes():
    with pytest.raises(ValueError, match="d_model, n_ctx must be given"):
        jc.from_transformer_lens(
            {}, {key: value for key, value in LENS["gpt2"].items() if key not in ("d_model", "n_ctx")}
        )


def test_a_model_or_its_configuration_instead_of_dicts(untyped):
    with pytest.raises(TypeError, match=r"expected the configuration as a dict, cfg.to_dict\(\); got a object"):
        jc.from_transformer_lens({}, object())
    with pytest.raises(TypeError, match=r"expected the state dict as a dict, state_dict\(\); got a object"):
        jc.from_transformer_lens(object(), LENS["gpt2"])


def test_transformer_lens_values_that_are_no_arrays():
    state = lens_state(model_named("gpt2")) | {"unembed.b_U": object()}
    with pytest.raises(TypeError, match=r"Expected an array under `unembed.b_U`, got object"):
        jc.from_transformer_lens(state, LENS["gpt2"])


@needs_x64
def test_a_transformer_lens_model_can_be_saved_where_it_fits(tmp_path):
    model = stored_model("gpt2")
    config = LENS["gpt2"] | {"d_head": 8}
    save_pretrained(jc.from_transformer_lens(lens_state(model), config), tmp_path)
    assert_close(logits_of(load(tmp_path)), logits_of(model), tolerance=1e-13)

"""Models from TransformerLens' state dicts and configurations."""

import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc.interop import _transformer_lens, save_pretrained

from .helpers import assert_close, model_named, needs_x64
from .stored_models import load, logits_of, stored_model


def lens_state(model) -> dict[str, np.ndarray]:
    """The same model under TransformerLens' names."""
    out = {"embed.W_E": model.W_E, "pos_embed.W_pos": model.W_pos, "unembed.W_U": model.W_U, "unembed.b_U": model.b_U}
    if model.ln_final is not None and model.ln_final.weight is not None:
        out |= {"ln_final.w": model.ln_final.weight, "ln_final.b": model.ln_final.bias}
    for i, block in enumerate(model.blocks):
        parts = {"attn": block.attn, "mlp": block.mlp}
        for part, names in (
            ("attn", ("W_Q", "b_Q", "W_K", "b_K", "W_V", "b_V", "W_O", "b_O")),
            ("mlp", ("W_in", "b_in", "W_out", "b_out")),
        ):
            if parts[part] is not None:
                out |= {f"blocks.{i}.{part}.{name}": getattr(parts[part], name) for name in names}
        for name, norm in (("ln1", block.ln1), ("ln2", block.ln2)):
            if norm is not None and norm.weight is not None:
                out |= {f"blocks.{i}.{name}.w": norm.weight, f"blocks.{i}.{name}.b": norm.bias}
    return {name: np.asarray(array) for name, array in out.items()}


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


@needs_x64
@pytest.mark.parametrize("name", LENS)
def test_transformer_lens_models(name):
    model = model_named(name)
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
    "attn_scores_soft_cap": (50.0, "scores are bounded"),
    "clip_qkv": (8.0, "cut off"),
    "experts_per_token": (2, "mixture of experts"),
    "final_rms": (True, "the last norm does not subtract the mean"),
    "gated_mlp": (True, "multiplies by a gate"),
    "is_audio_model": (True, "hears"),
    "is_multimodal": (True, "more than tokens"),
    "is_stateful": (True, "has no attention"),
    "is_visual_model": (True, "sees"),
    "layer_norm_folding": (True, "normalization_type is 'LNPre' then"),
    "load_in_4bit": (True, "packed"),
    "n_key_value_heads": (1, "share keys and values"),
    "num_experts": (4, "mixture of experts"),
    "output_logits_soft_cap": ("30", "logits are bounded"),
    "per_layer_head_dim": ([6, 12], "another width in each layer"),
    "per_layer_num_key_value_heads": ([2, 1], "share keys and values"),
    "positional_embedding_type": ("shortformer", "otherwise than by an embedding"),
    "post_embedding_ln": (True, "a norm follows the embedding"),
    "quantization_method": ("gptq", "packed"),
    "rmsnorm_uses_offset": (True, "one plus their weight"),
    "scale_embedding": (True, r"sqrt\(d_model\)"),
    "use_NTK_by_parts_rope": (True, "rotate"),
    "use_attention_sinks": (True, "a sink"),
    "use_dynamic_ntk_rope": (True, "rotate"),
    "use_logn_attn": (True, "logarithm"),
    "use_normalization_before_and_after": (True, "a norm follows attention and the MLP"),
    "use_qk_norm": (True, "queries and keys are normalised"),
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
    ],
)
def test_a_value_that_changes_nothing_beside_the_others_is_taken(name, attribute, value):
    state = lens_state(model_named(name))
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


def test_the_list_above_is_whole():
    assert set(LENS_CHANGES) == set(_transformer_lens.USED)
    assert not set(_transformer_lens.USED) & _transformer_lens.IGNORED
    assert not set(_transformer_lens.ONLY) & _transformer_lens.IGNORED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gated_mlp": True}, "gated_mlp = True is not supported; only False is"),
        (
            {"positional_embedding_type": "rotary"},
            "positional_embedding_type = 'rotary' is not supported; only 'standard' is",
        ),
        ({"n_ctx": "12"}, "n_ctx = '12'; expected a whole number from 1"),
        ({"final_rmz": False}, "the attribute final_rmz = False is not known"),
        ({"normalization_type": "RMS"}, "normalization_type 'RMS' is not supported"),
        ({"act_fn": "solu_ln"}, "act_fn 'solu_ln' is not supported"),
        ({"attention_dir": "both"}, "expected attention_dir 'causal' or 'bidirectional', got 'both'"),
        ({"attn_scale": "sqrt(d_head)"}, r"attn_scale 'sqrt\(d_head\)' is not understood"),
        ({"use_local_attn": True}, "use_local_attn needs window_size, and attn_types with 2 entries"),
        ({"use_local_attn": True, "attention_dir": "bidirectional"}, "use_local_attn is of causal attention"),
        # What is known not to be supported goes before attributes of it, which nobody here can know.
        ({"frobnicate": 1, "positional_embedding_type": "rotary"}, "positional_embedding_type = 'rotary'"),
        ({"frobnicate": 1, "normalization_type": "RMS"}, "normalization_type 'RMS' is not supported"),
        ({"attn_scale": 0}, "attn_scale = 0; expected a number above 0"),
        ({"attn_scale": None}, "attn_scale = None; expected a number above 0"),
        ({"eps": None}, "eps = None; expected a number above 0"),
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

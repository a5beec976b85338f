"""Known answers of the parts of today's language models, and what their configurations say, or are refused for, without PyTorch."""

import contextlib
import dataclasses as dc
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc._sites import Kind
from jaxcirc._tap import bare_tap
from jaxcirc.interop import save_pretrained
from jaxcirc.interop._build import arrays_of, build, spec_of
from jaxcirc.interop._config import read_config, write_config
from jaxcirc.interop._rotation import Divided, Linear, Llama3, Rotation
from jaxcirc.interop.families import FAMILIES
from jaxcirc.models._masks import attention_mask
from jaxcirc.parts import gelu, gelu_new, make_rotary, RMSNorm, silu
from jaxcirc.parts._attention import grouped_average

from .helpers import assert_close, needs_x64
from .stored_models import edit_config, edit_weights, load, ROTARY, same_arrays, stored_model


# --- Known answers -------------------------------------------------------------------------------------------------------------------


@needs_x64
def test_rms_norm():
    x = jnp.asarray([[1.0, 2, 3, 4]])
    norm = RMSNorm(jnp.asarray([1, 0.5, 2, 1]), 0.1, (Kind.LN1_SCALE, Kind.LN1_NORMALIZED))
    value, pull = jax.vjp(lambda x: norm(x, bare_tap(0)), x)
    assert_close(value[0], [0.3627381251, 0.3627381251, 2.1764287503, 1.4509525002], tolerance=1e-9)
    (pulled,) = pull(jnp.asarray([[1, -1, 0.5, 2]]))
    assert_close(pulled[0], [0.2314841982, -0.4438769162, -0.0310236554, 0.2004605428], tolerance=1e-9)
    one_more = RMSNorm(norm.weight - 1, 0.1, norm.sites, offset=1.0)
    assert_close(one_more(x, bare_tap(0)), value)


@needs_x64
@pytest.mark.parametrize(
    ("width", "want"),
    [
        (8, [-1.6955925369, -3.7103861584, 0.7973680207, 3.2242047653, -4.8088424749, 5.1218194575, 7.5739160439, 8.3429313572]),
        (4, [-1.4133525208, 0.7285921516, -2.8288574817, 4.4123863698, 5, 6, 7, 8]),
    ],
)  # fmt: skip
def test_rotation(width, want):
    rotary = make_rotary(Rotation(100.0, width).frequencies, np.dtype(np.float64))
    x = jnp.arange(1.0, 9)[None, None]
    assert_close(rotary(x, jnp.asarray([3], jnp.int32))[0, 0], want, tolerance=1e-9)
    with pytest.raises(ValueError, match=f"Rotary: {width // 2} pairs of coordinates are to rotate, and a head has 3"):
        rotary(x[..., :3], jnp.asarray([3], jnp.int32))


def test_an_odd_number_of_coordinates_rotates_where_there_is_room():
    """As rotary_pct of a published GPT-NeoX gives it: the last has the next one as its other."""
    sizes = {"num_attention_heads": 2, "hidden_size": 16, "num_hidden_layers": 1}
    spec = read_config({"model_type": "gpt_neox", "rotary_pct": 0.4, **sizes}, "it")
    assert spec.rotations[0].width == 3
    part = {"rope_parameters": {"partial_rotary_factor": 0.5}}  # which transformers 5 lets go before rotary_pct
    assert read_config({"model_type": "gpt_neox", "rotary_pct": 1.0, **sizes, **part}, "it").rotations[0].width == 4
    with pytest.raises(ValueError, match=r"7 coordinates of a head are to rotate, in pairs, which takes 8, .* has 7"):
        read_config({"model_type": "gpt_neox", "rotary_pct": 1.0, **sizes, "hidden_size": 14}, "it")


def test_frequencies_of_llama_3():
    """Of Llama-3.2-1B."""
    plain = Rotation(5e5, 64)
    scaled = Rotation(5e5, 64, Llama3(32.0, 1.0, 4.0, 8192))
    ratio = scaled.frequencies / plain.frequencies
    assert_close(ratio[:15], np.ones(15), tolerance=1e-15)
    assert_close(ratio[15:18], [0.60557275, 0.30374252, 0.10344761], tolerance=1e-7)
    assert_close(ratio[18:], np.full(14, 1 / 32), tolerance=1e-15)
    assert_close(scaled.frequencies[15], 0.001290547928, tolerance=1e-9)
    assert scaled.frequencies[31] == pytest.approx(9.418306725e-08, rel=1e-9)
    assert_close(Rotation(5e5, 64, Linear(8.0)).frequencies * 8, plain.frequencies, tolerance=1e-15)
    assert_close(
        Rotation(5e5, 4, Divided((2.0, 5.0))).frequencies, Rotation(5e5, 4).frequencies / [2, 5], tolerance=1e-15
    )


@needs_x64
@pytest.mark.parametrize(
    ("act", "values", "derivatives"),
    [
        (silu, [-0.2384058440, -0.1887703344, 0.7310585786, 2.8577223805], [-0.0907842488, 0.2600388127, 0.9276705119, 1.0881041060]),
        (gelu_new, [-0.0454023059, -0.1542859902, 0.8411919906, 2.9963626079], [-0.0860992566, 0.1326300965, 1.0829640839, 1.0115841666]),
        (gelu, [-0.0455002639, -0.1542687694, 0.8413447461, 2.9959503059], [-0.0852318011, 0.1325048753, 1.0833154706, 1.0119456472]),
    ],
)  # fmt: skip
def test_activation_functions(act, values, derivatives):
    x = jnp.asarray([-2, -0.5, 1, 3])
    got, slope = jax.jvp(act, (x,), (jnp.ones(4),))
    assert_close(got, values, tolerance=1e-9)
    assert_close(slope, derivatives, tolerance=1e-9)


@needs_x64
def test_a_cap():
    attn = dc.replace(stored_model("gemma2").blocks[0].attn, cap=50.0)
    value, slope = jax.jvp(attn.cap_scores, (jnp.asarray(60.0),), (jnp.ones(()),))
    assert_close(value, 41.6827303506, tolerance=1e-9)
    assert_close(slope, 0.3050199962, tolerance=1e-9)


def test_a_window():
    sees = [
        set(np.flatnonzero(row).tolist()) for row in np.asarray(attention_mask(5, causal=True, window=3, keys=None))
    ]
    assert sees == [{0}, {0, 1}, {0, 1, 2}, {1, 2, 3}, {2, 3, 4}]


def test_which_heads_share_keys_and_values():
    """9 heads and 3 of keys and values, as SmolLM2 has them."""
    values = jnp.arange(3.0)[None, :, None]
    read = grouped_average(jnp.ones((9, 1, 1)), values)[0, :, 0]
    assert read.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_rows_of_gpt_neox(tmp_path):
    """Queries, keys and values lie head by head."""
    model = stored_model("gpt-neox")
    rows = jc.to_torch_state_dict(model)["gpt_neox.layers.1.attention.query_key_value.weight"]
    attn, d_head = model.blocks[1].attn, model.d_head
    for head in range(model.n_heads):
        for part, W in enumerate((attn.W_Q, attn.W_K, attn.W_V)):
            start = (3 * head + part) * d_head
            assert np.array_equal(rows[start : start + d_head], W[head].T)


def test_names_and_layouts_of_llama_and_its_kin():
    model = stored_model("gemma2")
    state, block = jc.to_torch_state_dict(model), model.blocks[1]
    at = "model.layers.1"
    assert np.array_equal(state[f"{at}.self_attn.k_proj.weight"][model.d_head :], block.attn.W_K[1].T)
    assert np.array_equal(state[f"{at}.self_attn.o_proj.weight"][:, : model.d_head], block.attn.W_O[0].T)
    assert np.array_equal(state[f"{at}.mlp.gate_proj.weight"], block.mlp.W_gate.T)
    assert np.array_equal(state[f"{at}.post_attention_layernorm.weight"], block.ln1_post.weight)
    assert np.array_equal(state[f"{at}.pre_feedforward_layernorm.weight"], block.ln2.weight)
    assert np.array_equal(state["lm_head.weight"], model.W_U.T)
    llama = jc.to_torch_state_dict(stored_model("llama"))
    assert np.array_equal(llama[f"{at}.post_attention_layernorm.weight"], stored_model("llama").blocks[1].ln2.weight)
    olmo2 = stored_model("olmo2")
    norm = jc.to_torch_state_dict(olmo2)[f"{at}.self_attn.k_norm.weight"]
    assert np.array_equal(norm.reshape(2, -1), olmo2.blocks[1].attn.k_norm.weight)


def test_layers_whose_positions_rotate_alike_share_their_tables():
    for name, tables in (("llama", 1), ("gemma3", 2)):
        stored = stored_model(name)
        model = build(spec_of(stored), arrays_of(stored), name=name, dtype=np.float32)
        assert len({id(block.attn.rotary) for block in model.blocks}) == tables


# --- Configurations ------------------------------------------------------------------------------------------------------------------

PYTHIA = {
    **{"architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu"},
    **{"hidden_size": 512, "initializer_range": 0.02, "intermediate_size": 2048, "layer_norm_eps": 1e-05},
    **{"max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 8, "num_hidden_layers": 6},
    **{"rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False, "torch_dtype": "float16"},
    **{"transformers_version": "4.24.0", "use_cache": True, "use_parallel_residual": True, "vocab_size": 50304},
}
LLAMA_3 = {
    **{"architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "head_dim": 64},
    **{"hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072},
    **{"mlp_bias": False, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16},
    **{"num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 500000.0},
    **{"tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 128256},
    "rope_scaling": {
        **{"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3"},
        "original_max_position_embeddings": 8192,
    },
}
GEMMA_2 = {
    **{"architectures": ["Gemma2ForCausalLM"], "attn_logit_softcapping": 50.0, "cache_implementation": "hybrid"},
    **{"final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 2304},
    **{"hidden_activation": "gelu_pytorch_tanh", "intermediate_size": 9216, "max_position_embeddings": 8192},
    **{"model_type": "gemma2", "num_attention_heads": 8, "num_hidden_layers": 26, "num_key_value_heads": 4},
    **{"query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096},
    **{"torch_dtype": "float32", "vocab_size": 256000},
}
GEMMA_3 = {
    **{"architectures": ["Gemma3ForCausalLM"], "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh"},
    **{"_sliding_window_pattern": 6, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    **{"hidden_size": 640, "intermediate_size": 2048, "max_position_embeddings": 32768, "model_type": "gemma3_text"},
    **{"num_attention_heads": 4, "num_hidden_layers": 18, "num_key_value_heads": 1, "query_pre_attn_scalar": 256},
    **{"rope_local_base_freq": 10000.0, "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": 512},
    **{"use_bidirectional_attention": False, "vocab_size": 262144, "torch_dtype": "bfloat16"},
}


def test_published_configurations():
    pythia, llama, gemma2, gemma3 = (read_config(config, "it") for config in (PYTHIA, LLAMA_3, GEMMA_2, GEMMA_3))
    assert (pythia.d_head, pythia.parallel, pythia.tied, pythia.rotations[5]) == (64, True, False, Rotation(1e4, 16))
    assert (llama.n_kv_heads, llama.d_head, llama.tied, llama.eps, llama.windows[0]) == (8, 64, True, 1e-5, None)
    assert llama.rotations == (Rotation(5e5, 64, Llama3(32.0, 1.0, 4.0, 8192)),) * 16
    full = lambda spec: [layer for layer, window in enumerate(spec.windows) if window is None]
    assert full(gemma2) == list(range(1, 26, 2))
    assert (gemma2.cap, gemma2.logit_cap, gemma2.tied, gemma2.scales[0], gemma2.embed_scale) == (
        50,
        30,
        True,
        1 / 16,
        48,
    )
    assert full(gemma3) == [5, 11, 17]
    assert (gemma3.rotations[4], gemma3.rotations[5]) == (Rotation(1e4, 256), Rotation(1e6, 256))
    assert (gemma3.tied, gemma3.windows[0], gemma3.qk_norm, gemma3.logit_cap) == (True, 512, "head", None)
    assert full(read_config(GEMMA_3 | {"num_hidden_layers": 26}, "a larger one")) == [5, 11, 17, 23]


@pytest.mark.parametrize("name", ROTARY)
def test_every_attribute_of_a_configuration_reaches_the_model(name, tmp_path):
    """Each that is written, changed: the model is another one, or refused."""
    model = stored_model(name)
    config = write_config(spec_of(model))
    family, spec = FAMILIES[model.architecture], read_config(config, "it")
    others = {
        **{"hidden_act": "relu", "hidden_activation": "relu", "head_dim": 4, "num_key_value_heads": 1},
        **{"num_attention_heads": 8, "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "sliding_window": 2},
        "layer_types": ["full_attention"] * model.n_layers,
    }
    # The first of these layers is said by layer_types, and without layers that slide none of these means anything.
    idle = {"max_window_layers"} | (
        set() if any(spec.windows) else {"sliding_window", "use_sliding_window", "layer_types"}
    )
    for attribute, value in config.items():
        if attribute in idle and "use_sliding_window" in config:
            continue
        if attribute not in family.used:
            assert attribute in ("architectures", "model_type", "bos_token_id", "eos_token_id", "pad_token_id")
            continue
        changed = others.get(attribute, (not value) if isinstance(value, bool) else (value or 1) * 2)
        if changed == value:
            changed = None
        with contextlib.suppress(ValueError):
            assert read_config(config | {attribute: changed}, "it") != spec, attribute


@pytest.fixture
def folder(request, tmp_path) -> Path:
    """A saved model of the family that a test is parametrised with."""
    save_pretrained(stored_model(request.param), tmp_path / "model")
    return tmp_path / "model"


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
REFUSED = [
    ("llama", {"rope_scaling": YARN}, r"rope_scaling = .*: rope_type 'yarn' is not supported; 'default', 'linear', 'llama3' are"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic' is not supported"),
    ("llama", {"rope_parameters": {"rope_type": "longrope"}}, r"rope_parameters = .*: rope_type 'longrope' is not supported"),
    ("llama", {"rope_parameters": {"rope_type": "proportional"}}, "rope_type 'proportional' is not supported"),
    (
        "llama",
        {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        "says both rope_parameters = .* and rope_scaling = ",
    ),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, "says both rope_parameters = .* and rope_theta = "),
    ("llama", {"rope_scaling": {"rope_type": "linear"}}, "rope_type 'linear' needs factor"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor = 0; expected a number above 0"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "rope_type 'llama3' needs low_freq_factor, high_freq_factor"),
    ("llama", {"rope_scaling": {"rope_type": "default", "mscale": 2.0}}, "rope_scaling holds mscale = 2.0, which is not known"),
    ("llama", {"rope_scaling": "linear"}, "rope_scaling = 'linear' is not understood"),
    ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5, which is not supported; only 1 is"),
    ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config = .* is not supported; only None is.*packed"),
    ("llama", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "layer_types = .* is not supported"),
    ("llama", {"num_local_experts": 8}, "the attribute num_local_experts = 8 is not known.*pass ignore_config="),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported; only 1.0 is"),
    ("llama", {"sliding_window": 2}, "sliding_window = 2 is not supported; only None is"),
    ("llama", {"use_sliding_window": True}, "use_sliding_window = True is not supported; only False is"),
    ("mistral", {"use_sliding_window": False}, "use_sliding_window = False is not supported"),
    ("llama", {"num_key_value_heads": 3}, "num_attention_heads = 4, which num_key_value_heads = 3 does not divide"),
    *(("llama", {"head_dim": d_head}, f"{d_head} coordinates of a head are to rotate, in pairs") for d_head in (1, 3)),
    ("llama", {"hidden_act": "gelu_10"}, "hidden_act 'gelu_10' is not supported"),
    ("gpt-neox", {"rotary_pct": 0.0}, "expected a share of a head's 8 coordinates to rotate; got 0.0"),
    ("gpt-neox", {"rope_theta": 5.0}, "rope_theta = 5.0 is not supported"),
    ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types = .* layers differ in what they attend to"),
    ("qwen2", {"use_sliding_window": False}, "layers that attend to a window, and there is none: use_sliding_window = False"),
    ("qwen2", {"layer_types": ["full_attention"]}, "layer_types = .* expected 3 entries"),
    ("qwen2", {"use_mrope": True}, "use_mrope = True is not supported"),
    ("gemma", {"hidden_activation": "relu"}, "says both hidden_act = 'gelu_pytorch_tanh' and hidden_activation = 'relu'"),
    ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True is not supported; only False is.*both directions"),
    ("gemma2", {"sliding_window": None}, "sliding_window = None, and layers attend to one"),
    ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar = 0; expected a number above 0"),
    ("gemma2", {"final_logit_softcapping": -1.0}, "final_logit_softcapping = -1.0; expected a number above 0"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0 is not supported; only None is"),
    ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True is not supported"),
    ("gemma3", {"rope_parameters": {"rope_type": "default"}}, "rope_parameters = .* expected an object for each of full_attention"),
    ("olmo2", {"clip_qkv": 8.0}, "the attribute clip_qkv = 8.0 is not known"),
    *(
        ("llama", {"model_type": kind, "architectures": None}, rf"model_type = '{kind}': .*; supported are GPT2LMHeadModel")
        for kind in ("mixtral", "qwen2_moe", "qwen3_moe", "gemma3n_text", "gemma4", "qwen3_next")
    ),
]  # fmt: skip


@pytest.mark.parametrize(("folder", "changes", "message"), REFUSED, indirect=["folder"])
def test_what_is_refused_says_the_attribute_its_value_and_what_is_supported(folder, changes, message):
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize("folder", ["gemma3"], indirect=True)
def test_scaled_rotation_of_layers_with_windows_is_saved(folder, tmp_path):
    """`rope_parameters` can say it, the older spelling cannot."""
    sliding = {"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0}
    edit_config(folder, rope_theta=None, rope_local_base_freq=None, rope_scaling=None)
    edit_config(folder, rope_parameters={"full_attention": {"rope_theta": 1e3}, "sliding_attention": sliding})
    model = load(folder)
    assert {rotation.scaling for rotation in model.positions} == {None, Linear(2.0)}
    save_pretrained(model, tmp_path / "again")
    again = load(tmp_path / "again")
    assert same_arrays(again, model)
    assert again.positions == model.positions


HARMLESS = {
    **{"unsloth_fixed": True, "unsloth_version": "2024.9", "max_sequence_length": 2048, "_flash_attn_2_enabled": True},
    **{"neftune_noise_alpha": 5, "partial_rotary_factor": 1.0},
}


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_what_changes_nothing_is_passed_over(folder):
    config = json.loads((folder / "config.json").read_text())
    before = read_config(config, "it")
    without_windows = [
        {"sliding_window": None},
        {"use_sliding_window": False, "sliding_window": 9, "max_window_layers": 1},
    ]
    for changes in without_windows:
        assert read_config(config | HARMLESS | changes, "it") == before
    mistral = {"model_type": "mistral", "num_hidden_layers": 2, "sliding_window": 9}
    assert read_config(mistral | {"use_sliding_window": True}, "it") == read_config(mistral, "it")


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_attributes_that_the_caller_knows_to_change_nothing(folder):
    edit_config(folder, frobnicate=3, auto_map={"AutoModel": "x"})
    with pytest.raises(ValueError, match=r"auto_map = .* is not supported"):
        load(folder, ignore_config=["frobnicate"])
    with pytest.raises(ValueError, match=r"frobnicate = 3 is not known.*pass ignore_config=\['frobnicate'\]"):
        load(folder, ignore_config=["auto_map"])
    assert same_arrays(load(folder, ignore_config=["frobnicate", "auto_map", "not_there"]), stored_model("llama"))
    with pytest.raises(ValueError, match="ignore_config names rms_norm_eps, which says what the model is"):
        load(folder, ignore_config=["rms_norm_eps"])


def test_absent_attributes_take_the_defaults_of_their_class():
    few = {"num_attention_heads": 32, "num_hidden_layers": 3, "hidden_size": 256}
    said = lambda kind, **more: read_config({"model_type": kind, **few, **more}, "it")
    assert [said(kind).n_kv_heads for kind in ("llama", "olmo2", "qwen2", "qwen3", "mistral", "gemma", "gemma2")] == [
        *(32, 32, 32, 32, 8, 16, 4)
    ]
    assert said("mistral", num_key_value_heads=None).n_kv_heads == 32
    assert [said(kind).d_head for kind in ("llama", "mistral", "qwen2", "olmo2", "qwen3", "gemma", "gemma3_text")] == [
        *(8, 8, 8, 8, 128, 256, 256)
    ]
    assert [said(kind).tied for kind in ("llama", "qwen3", "gpt_neox", "gemma", "gemma2", "gemma3_text")] == [
        *(False, False, False, True, True, True)
    ]
    assert said("mistral").windows == (4096,) * 3
    assert said("mistral", sliding_window=None).windows == (None,) * 3
    assert said("qwen2", sliding_window=8).windows == (None,) * 3
    assert said("qwen2", sliding_window=8, use_sliding_window=True, max_window_layers=2).windows == (None, None, 8)
    assert (said("gemma2").cap, said("gemma2").logit_cap, said("gemma2").scales[0]) == (50.0, 30.0, 1 / 16)
    assert said("gemma", hidden_act="gelu").act == "gelu_new"


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_a_gemma_3_that_also_sees_is_read_by_its_text_model(folder, tmp_path):
    save_pretrained(stored_model("gemma3"), tmp_path / "gemma3")
    text = json.loads((tmp_path / "gemma3" / "config.json").read_text())
    outer = {"model_type": "gemma3", "text_config": text, "vision_config": {}, "tie_word_embeddings": False}
    assert read_config(outer, "it") == read_config(text, "it")
    with pytest.raises(
        ValueError, match=r"says both tie_word_embeddings = True and text_config\.tie_word_embeddings = False"
    ):
        read_config(outer | {"tie_word_embeddings": True}, "it")
    with pytest.raises(ValueError, match="text_config = None; expected an object"):
        read_config(outer | {"text_config": None}, "it")
    with pytest.raises(ValueError, match=r"the attribute audio_config = \{\} is not known"):
        read_config(outer | {"audio_config": {}}, "it")
    with pytest.raises(ValueError, match="quantization_config"):
        read_config(outer | {"quantization_config": {"bits": 4}}, "it")


# --- Files ---------------------------------------------------------------------------------------------------------------------------


def test_the_head_of_gpt_neox_under_its_name_in_memory(tmp_path):
    save_pretrained(stored_model("gpt-neox"), tmp_path)
    edit_weights(tmp_path, lambda t: {name.replace("embed_out", "lm_head"): array for name, array in t.items()})
    assert same_arrays(load(tmp_path), stored_model("gpt-neox"))


@pytest.mark.parametrize(
    ("name", "buffer"),
    [
        ("gpt-neox", "gpt_neox.layers.0.attention.rotary_emb.inv_freq"),
        ("gpt-neox", "gpt_neox.layers.1.attention.masked_bias"),
        ("gpt-neox", "gpt_neox.layers.1.attention.bias"),
        ("llama", "model.layers.2.self_attn.rotary_emb.inv_freq"),
        ("olmo2", "model.layers.0.self_attn.rotary_emb.inv_freq"),
    ],
)
def test_buffers_of_old_files_are_passed_over(name, buffer, tmp_path):
    save_pretrained(stored_model(name), tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors | {buffer: np.ones(3)})
    assert same_arrays(load(tmp_path), stored_model(name))


def test_another_head_than_the_embedding_that_it_is_tied_to_is_refused(tmp_path):
    save_pretrained(stored_model("gemma"), tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors | {"lm_head.weight": 2 * tensors["model.embed_tokens.weight"]})
    with pytest.raises(ValueError, match=r"the file holds another `lm_head`.*set \"tie_word_embeddings\": false"):
        load(tmp_path)


def test_biases_that_the_configuration_does_not_announce_are_refused(tmp_path):
    save_pretrained(stored_model("llama-biases-tied"), tmp_path)
    edit_config(tmp_path, attention_bias=False)
    with pytest.raises(ValueError, match=r"unexpected: `layers.0.self_attn.k_proj.bias`"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama", {"positions": ()}, "how its positions rotate queries and keys is not known"),
        ("llama", {"embed_scale": 2.0}, "its embedding is multiplied by 2, not by 1"),
        ("llama", {"logit_cap": 2.0}, "its logits are capped at 2.0, not at None"),
        ("llama", {"windows": (3, None, 3)}, "its attention is local"),
        ("llama", {"architecture": "gpt2"}, "its norms are RMS norms.*its positions rotate.*its MLPs are gated"),
        ("gemma", {"architecture": "llama"}, "1 is added to the weights of its norms, not 0; its embedding is multiplied by 4, not by 1"),
        ("olmo2", {"architecture": "llama"}, "there are no norms before its sublayers; there are norms behind its sublayers; the norm of"),
        ("gemma2", {"architecture": "gemma3_text"}, "its attention scores are capped at 2.0"),
        ("qwen2", {"architecture": "mistral"}, "queries, keys or values have biases"),
        ("llama-biases-tied", {"architecture": "qwen2"}, "attn.b_O, mlp.b_gate, mlp.b_in, mlp.b_out are not zero"),
        ("gpt2", {"architecture": "llama"}, "its positions are learned"),
    ],
)  # fmt: skip
def test_what_a_layout_cannot_hold(name, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_pretrained(dc.replace(stored_model(name), **change), tmp_path / "a")


def test_flax_files_are_of_gpt2_and_gpt_neo():
    pytest.importorskip("flax")
    with pytest.raises(ValueError, match="Flax files of GPT-2 and GPT-Neo, and this is a llama"):
        jc.interop.to_flax_params(stored_model("llama"))

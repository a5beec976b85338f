"""config.json: every attribute reaches the model, is ignored by name, or is refused by name."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcirc.interop import _attributes, _config, save_pretrained
from jaxcirc.interop.families import FAMILIES
from jaxcirc.parts import gelu, gelu_new, relu, silu

from .helpers import assert_close
from .stored_models import edit_config, load, logits_of, same_arrays, stored_model


@pytest.fixture
def folder(tmp_path) -> Path:
    save_pretrained(stored_model("gpt2"), tmp_path / "model")
    return tmp_path / "model"


# What to change each attribute to; where a dict has two, they go together.
GPT2_CHANGES = {
    "vocab_size": 14,
    "n_positions": 13,
    "n_embd": 32,
    "n_layer": 1,
    "n_head": 4,
    "n_inner": 25,
    "activation_function": "relu",
    "layer_norm_epsilon": 0.5,
    "scale_attn_weights": False,
    "scale_attn_by_inverse_layer_idx": True,
    "tie_word_embeddings": False,
}
GPT_NEO_CHANGES = {
    "vocab_size": 14,
    "max_position_embeddings": 13,
    "hidden_size": 32,
    "num_layers": 1,
    "num_heads": 4,
    "intermediate_size": 25,
    "activation_function": "relu",
    "layer_norm_epsilon": 0.5,
    "attention_types": [[["local", "global"], 1]],
    "attention_layers": ["local", "global"],
    "window_size": 2,
    "tie_word_embeddings": False,
}


def changed(folder, attribute, value) -> str:
    """What a changed attribute does: `refused`, `other numbers`, or `nothing`."""
    before = logits_of(load(folder), seq=9)
    edit_config(folder, **{attribute: value})
    try:
        after = logits_of(load(folder), seq=9)
    except ValueError:
        return "refused"
    return "nothing" if np.array_equal(before, after) else "other numbers"


@pytest.mark.parametrize(
    ("name", "attribute", "value"),
    [
        *(("gpt2", *item) for item in GPT2_CHANGES.items()),
        *(("gpt-neo", *item) for item in GPT_NEO_CHANGES.items()),
    ],
)
def test_every_used_attribute_reaches_the_model(name, attribute, value, tmp_path):
    save_pretrained(stored_model(name), tmp_path)
    if attribute == "attention_layers":  # the other says the same, so that one alone is refused
        assert changed(tmp_path, attribute, value) == "refused"
        edit_config(tmp_path, attention_types=None)
        assert not np.array_equal(logits_of(load(tmp_path), 9), logits_of(stored_model(name), 9))
        return
    assert changed(tmp_path, attribute, value) in ("refused", "other numbers")


def test_the_lists_above_are_whole():
    assert set(GPT2_CHANGES) == set(FAMILIES["gpt2"].used)
    assert set(GPT_NEO_CHANGES) == set(FAMILIES["gpt_neo"].used)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neo"])
def test_every_attribute_of_transformers_is_used_ignored_or_refused(kind):
    transformers = pytest.importorskip("transformers")
    cls = {"gpt2": transformers.GPT2Config, "gpt_neo": transformers.GPTNeoConfig}[kind]
    attributes = set(cls().to_dict())
    family = FAMILIES[kind]
    ignored = _attributes.IGNORED | family.ignored
    assert attributes <= set(family.used) | set(family.aliases) | set(family.only) | ignored
    assert not set(family.used) & ignored
    assert not set(family.only) & ignored
    assert not set(family.used) & set(family.only)
    spec = _config.read_config(cls().to_dict(), "a default configuration")
    assert spec.d_model == {"gpt2": 768, "gpt_neo": 2048}[kind]


# A value of each attribute of the table with which it would change the computation, and what the message says of it.
EFFECTIVE = {
    "add_cross_attention": (True, "an encoder"),
    "auto_map": ({"AutoModelForCausalLM": "modeling_x.Model"}, "code of its own"),
    "is_encoder_decoder": (True, "an encoder"),
    "per_layer_config": ({"0": {"n_head": 1}}, "layers differ"),
    "pruned_heads": ({"0": [1]}, "heads are taken out"),
    "quantization_config": ({}, "packed"),
    "rope_parameters": ({"rope_theta": 1e4}, "rotate"),
    "rope_scaling": ({"factor": 2.0}, "rotate"),
    "rope_theta": (1e4, "rotate"),
}


@pytest.mark.parametrize("attribute", FAMILIES["gpt2"].only)
def test_attributes_of_another_computation_are_refused(folder, attribute):
    for value in FAMILIES["gpt2"].only[attribute].values:
        edit_config(folder, **{attribute: value})
        assert same_arrays(load(folder), stored_model("gpt2"))
    value, does = EFFECTIVE[attribute]
    edit_config(folder, **{attribute: value})
    with pytest.raises(
        ValueError, match=rf"config.json: {attribute} = .* is not supported; only .* It says that .*{does}"
    ):
        load(folder)


def test_attributes_that_transformers_4_has_and_5_has_not(folder):
    """As `to_dict` and `config.json` of versions 4.26 to 4.57 hold them."""
    old = {"tie_encoder_decoder": False, "torch_dtype": "float32", "pruned_heads": {}, "use_bfloat16": False}
    old |= {"_attn_implementation_autoset": False, "_attn_implementation": "eager", "_pre_quantization_dtype": None}
    old |= {"chunk_size_feed_forward": 64, "is_composition": False, "xla_device": None, "use_return_dict": True}
    edit_config(folder, **old)
    assert same_arrays(load(folder), stored_model("gpt2"))


def test_ignored_attributes_change_nothing(folder):
    edit_config(folder, **{name: "anything" for name in _attributes.IGNORED - {"architectures", "model_type"}})
    assert same_arrays(load(folder), stored_model("gpt2"))


def test_unknown_attributes_are_refused(folder):
    edit_config(folder, parallel_residual=True)
    with pytest.raises(ValueError, match=r"config.json: the attribute parallel_residual = True is not known"):
        load(folder)


def test_aliases_and_contradictions(folder):
    edit_config(folder, hidden_size=16, num_hidden_layers=2)
    assert same_arrays(load(folder), stored_model("gpt2"))
    edit_config(folder, hidden_size=32)
    with pytest.raises(
        ValueError, match=r"says both n_embd = 16 and hidden_size = 32|says both hidden_size = 32 and n_embd = 16"
    ):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_head": 5}, "n_embd = 16, which n_head = 5 does not divide"),
        ({"n_layer": 0}, "n_layer = 0; expected a whole number from 1"),
        ({"layer_norm_epsilon": None}, "layer_norm_epsilon = None; expected a number above 0"),
        ({"layer_norm_epsilon": -1.0}, "layer_norm_epsilon = -1.0; expected a number above 0"),
        ({"n_layer": "2"}, "n_layer = '2'; expected a whole number from 1"),
        (
            {"activation_function": "mish"},
            "activation_function 'mish' is not supported; gelu_new, gelu_pytorch_tanh, .*gelu, .*relu, .*silu, .* are",
        ),
        (
            {"architectures": ["OPTForCausalLM"], "model_type": "opt"},
            "is a OPTForCausalLM; supported are GPT2LMHeadModel, GPT2Model, GPTNeoFor",
        ),
        (
            {"architectures": ["GPT2ForSequenceClassification"]},
            "is a GPT2ForSequenceClassification; supported are GPT2LMHeadModel",
        ),
        ({"architectures": None, "model_type": None}, "model of no named architecture; supported are"),
    ],
)
def test_bad_configurations(folder, changes, message):
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize("kinds", [["global"], ["global", "global", "local"], ["global", "sliding"]])
def test_bad_attention_types(tmp_path, kinds):
    save_pretrained(stored_model("gpt-neo"), tmp_path)
    edit_config(tmp_path, attention_layers=kinds, attention_types=None)
    with pytest.raises(ValueError, match=r"expected 2 entries of 'global' or 'local'"):
        load(tmp_path)


def test_attention_types_that_are_not_understood(tmp_path):
    save_pretrained(stored_model("gpt-neo"), tmp_path)
    edit_config(tmp_path, attention_layers=None, attention_types=["global", "local"])
    with pytest.raises(ValueError, match=r"attention_types = .* is not understood; expected \[\[kinds, times\]"):
        load(tmp_path)


ACTS = {
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast"), gelu_new),
    **dict.fromkeys(("gelu", "gelu_python"), gelu),
    "relu": relu,
    **dict.fromkeys(("silu", "swish"), silu),
}


@pytest.mark.parametrize("act", _attributes.ACTS)
def test_activation_names(folder, act):
    edit_config(folder, activation_function=act)
    assert load(folder).blocks[0].mlp.act is ACTS[act]


@pytest.mark.parametrize("act", _attributes.ACTS)
def test_activations_are_those_of_transformers(act):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    x = np.linspace(-4, 4, 41)
    want = transformers.activations.ACT2FN[act](torch.as_tensor(x)).numpy()
    assert_close(np.asarray(ACTS[act](jnp.asarray(x))), want, tolerance=1e-6)


PUBLISHED = {
    "gpt2": {
        **{
            "activation_function": "gelu_new",
            "architectures": ["GPT2LMHeadModel"],
            "attn_pdrop": 0.1,
            "bos_token_id": 50256,
        },
        **{
            "embd_pdrop": 0.1,
            "eos_token_id": 50256,
            "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-05,
            "model_type": "gpt2",
        },
        **{
            "n_ctx": 1024,
            "n_embd": 768,
            "n_head": 12,
            "n_layer": 12,
            "n_positions": 1024,
            "resid_pdrop": 0.1,
            "vocab_size": 50257,
        },
        **{
            "summary_activation": None,
            "summary_first_dropout": 0.1,
            "summary_proj_to_labels": True,
            "summary_type": "cls_index",
        },
        **{
            "summary_use_proj": True,
            "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        },
    },
    "stanford-crfm": {
        **{"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "gradient_checkpointing": False},
        **{
            "model_type": "gpt2",
            "n_ctx": 1024,
            "n_inner": None,
            "reorder_and_upcast_attn": True,
            "scale_attn_weights": True,
        },
        **{
            "scale_attn_by_inverse_layer_idx": True,
            "transformers_version": "4.5.0",
            "use_cache": False,
            "vocab_size": 50257,
        },
    },
    "TinyStories": {
        **{
            "_name_or_path": "EleutherAI/gpt-neo-125M",
            "activation_function": "gelu_new",
            "architectures": ["GPTNeoForCausalLM"],
        },
        **{
            "attention_dropout": 0,
            "attention_types": [[["global", "local"], 4]],
            "embed_dropout": 0,
            "hidden_size": 64,
        },
        **{
            "attention_layers": ["global", "local"] * 4,
            "gradient_checkpointing": False,
            "model_type": "gpt_neo",
            "num_heads": 16,
        },
        **{
            "intermediate_size": None,
            "num_layers": 8,
            "max_position_embeddings": 2048,
            "resid_dropout": 0,
            "window_size": 256,
        },
        **{"torch_dtype": "float32", "use_cache": True, "summary_type": "cls_index", "transformers_version": "4.28.1"},
    },
}


def test_published_configurations():
    gpt2, crfm, stories = (_config.read_config(config, name) for name, config in PUBLISHED.items())
    assert (gpt2.n_layers, gpt2.d_head, gpt2.d_mlp, gpt2.tied, gpt2.scales[11]) == (12, 64, 3072, True, 0.125)
    assert crfm.scales[3] == 0.125 / 4
    assert stories.windows == (None, 256) * 4
    assert (stories.d_vocab, stories.n_ctx, stories.scales[0], stories.d_head) == (50257, 2048, 1.0, 4)


def test_old_configurations_take_the_defaults_of_transformers(tmp_path):
    few = {
        key: PUBLISHED["TinyStories"][key] for key in ("architectures", "attention_layers", "hidden_size", "num_layers")
    }
    assert _config.read_config(few | {"model_type": "gpt_neo"}, "old").windows == (None, 256) * 4
    spec = _config.read_config({"model_type": "gpt_neo"}, "older")
    assert (spec.n_layers, spec.windows) == (24, (None, 256) * 12)

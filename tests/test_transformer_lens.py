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

"""What is written, where, and what no Hugging Face layout can hold."""

import dataclasses as dc
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import safetensors.numpy

import jaxcirc as jc
from jaxcirc.interop import save_pretrained

from .helpers import as_dtype, make_model, model_named
from .stored_models import load, same_arrays, stored_model


@pytest.fixture
def folder(tmp_path) -> Path:
    save_pretrained(stored_model("gpt2"), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: jc.process_weights(stored_model("gpt2")),
            r"gpt2 layout cannot hold random: its norms have no weights \(fold_layer_norm\); b_U is not zero",
        ),
        (
            lambda: model_named("no-norm-relu-bidirectional"),
            "it has no norms; b_U is not zero; its attention is in both directions",
        ),
        (lambda: model_named("attention-only"), "it has attention only"),
        (lambda: make_model(jax.random.key(0), d_head=8, parallel=True), "its MLPs are beside attention"),
        (lambda: model_named("gpt2"), "d_head 6 times 2 heads is not d_model 16"),
        (lambda: model_named("gpt2-untied"), "it reads 13 tokens and writes 7"),
        (lambda: dc.replace(stored_model("gpt2"), windows=(None, 3)), "its attention is local"),
        (
            lambda: make_model(jax.random.key(0), d_head=8, scales=(0.25, 0.5)),
            r"its attention scores are multiplied by \(0.25, 0.5\)",
        ),
        (
            lambda: make_model(jax.random.key(0), d_head=8, architecture="gpt_neo", scales=(1.0, 1.0)),
            "have biases that are not zero",
        ),
        (lambda: dc.replace(stored_model("gpt2"), architecture="gpt_neo"), "not by 1"),
        (lambda: dc.replace(stored_model("gpt-neo"), windows=(2, 3)), r"its local windows \(2, 3\) differ"),
    ],
)
def test_what_a_layout_cannot_hold_is_refused_by_name(model, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        jc.to_torch_state_dict(model())
    with pytest.raises(ValueError, match=message):
        save_pretrained(model(), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_what_is_saved_can_be_read_by_others(folder):
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


def test_saving_replaces_a_checkpoint_and_keeps_what_lies_beside_it(folder):
    (folder / "card.md").write_text("kept")
    (folder / "saes").mkdir()
    other = stored_model("gpt-neo")
    save_pretrained(other, folder)
    assert same_arrays(load(folder), other)
    assert (folder / "card.md").read_text() == "kept"
    assert (folder / "saes").is_dir()


def test_saving_over_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"exists and is not a checkpoint \(it holds no config.json\)"):
        save_pretrained(stored_model("gpt2"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_full_disk_leaves_nothing_half_written(folder, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    for target in (folder, folder.parent / "new"):
        with pytest.raises(OSError, match="No space left"):
            save_pretrained(stored_model("gpt-neo"), target)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert same_arrays(load(folder), stored_model("gpt2"))


def in_half(model, dtype):
    """The weights in half precision; what multiplies the scores is computed with, and is float32."""
    blocks = tuple(
        dc.replace(half, attn=dc.replace(half.attn, scale=block.attn.scale.astype(jnp.float32)))
        for half, block in zip(as_dtype(model.blocks, dtype), model.blocks, strict=True)
    )
    return dc.replace(as_dtype(model, dtype), blocks=blocks)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_models_round_trip(dtype, tmp_path):
    model = in_half(stored_model("gpt2-inverse-layer-scale"), dtype)
    save_pretrained(model, tmp_path)
    assert same_arrays(load(tmp_path, dtype=dtype), model)

"""Checkpoint files in and out, without PyTorch, and every file that cannot be read."""

import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import jaxcirc as jc
from jaxcirc import interop
from jaxcirc.interop import _build, _config, _layouts, save_pretrained

from .helpers import assert_close, needs_x64
from .stored_models import edit_config, edit_weights, load, same_arrays, shard, STORED, stored_model


@pytest.fixture(scope="module", params=["gpt2", "gpt-neo"])
def either(request):
    return stored_model(request.param)


@pytest.fixture
def folder(tmp_path) -> Path:
    save_pretrained(stored_model("gpt2"), tmp_path / "model")
    return tmp_path / "model"


def test_a_layout_by_hand():
    sizes = {"part": 3, "head": 2, "d_head": 4, "d_model": 8}
    stored = np.arange(8 * 24).reshape(8, 24)
    ours = _layouts.rearrange(stored, "d_model (part head d_head)", "part head d_model d_head", sizes)
    for part in range(3):
        for head in range(2):
            start = part * 8 + head * 4
            assert np.array_equal(ours[part, head], stored[:, start : start + 4])
    assert np.array_equal(
        _layouts.rearrange(ours, "part head d_model d_head", "d_model (part head d_head)", sizes), stored
    )


@pytest.mark.parametrize("name", STORED)
def test_a_saved_model_loads_bit_for_bit(name, tmp_path):
    model = stored_model(name)
    save_pretrained(model, tmp_path / "a")
    assert same_arrays(load(tmp_path / "a"), model)


@pytest.mark.parametrize("name", STORED)
def test_torch_names_round_trip_bit_for_bit(name, tmp_path):
    save_pretrained(stored_model(name), tmp_path)
    stored = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    state = jc.to_torch_state_dict(load(tmp_path))
    head = {"embed_out.weight" if "neox" in name else "lm_head.weight"}
    assert set(state) - set(stored) == (head if stored_model(name).untied_W_U is None else set())
    assert len(stored) > 20
    for key, array in stored.items():
        assert np.array_equal(state[key], array)
        assert np.any(array)


def test_names_and_layouts_of_gpt2():
    model = stored_model("gpt2")
    state, attn = jc.to_torch_state_dict(model), model.blocks[1].attn
    assert np.array_equal(state["transformer.h.1.attn.c_attn.weight"][:, 16 + 8 : 32], attn.W_K[1])
    assert np.array_equal(state["transformer.h.1.attn.c_attn.bias"][32:40], attn.b_V[0])
    assert np.array_equal(state["transformer.h.1.attn.c_proj.weight"][8:], attn.W_O[1])
    assert np.array_equal(state["transformer.h.0.mlp.c_fc.weight"], model.blocks[0].mlp.W_in)
    assert np.array_equal(state["lm_head.weight"], model.W_E)


def test_names_and_layouts_of_gpt_neo():
    model = stored_model("gpt-neo")
    state, attn = jc.to_torch_state_dict(model), model.blocks[1].attn
    assert np.array_equal(state["transformer.h.1.attn.attention.k_proj.weight"][8:], attn.W_K[1].T)
    assert np.array_equal(state["transformer.h.1.attn.attention.out_proj.weight"][:, :8], attn.W_O[0].T)
    assert np.array_equal(state["transformer.h.0.mlp.c_fc.weight"], model.blocks[0].mlp.W_in.T)
    assert not [key for key in state if "q_proj.bias" in key]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_dtype_casts(folder, dtype):
    model = load(folder, dtype=dtype)
    scales = [block.attn.scale for block in model.blocks]  # computed with, and not stored
    weights = [leaf for leaf in jax.tree.leaves(model) if not any(leaf is scale for scale in scales)]
    assert {leaf.dtype for leaf in weights} == {jnp.dtype(dtype)}
    assert {scale.dtype for scale in scales} == {jnp.dtype(jnp.float32)}
    assert np.array_equal(model.W_pos, stored_model("gpt2").W_pos.astype(dtype))


@pytest.mark.parametrize("stored", [jnp.float16, jnp.bfloat16])
def test_half_precision_files_load(folder, stored):
    edit_weights(folder, lambda tensors: {name: tensor.astype(stored) for name, tensor in tensors.items()})
    model = load(folder, dtype=jnp.float32)
    want = stored_model("gpt2").W_E.astype(stored).astype(jnp.float32)
    assert np.array_equal(model.W_E, want)
    assert np.any(want)


@needs_x64
def test_float64_needs_it_switched_on(folder):
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(ValueError, match=r'float64 needs jax.config.update\("jax_enable_x64", True\)'):
            load(folder, dtype=np.float64)
    finally:
        jax.config.update("jax_enable_x64", True)


def test_a_dtype_of_integers(folder):
    with pytest.raises(TypeError, match="of a floating dtype; got int32"):
        load(folder, dtype=jnp.int32)
    with pytest.raises(TypeError, match=r"Expected a dtype such as jnp.float32, got 'float23'"):
        load(folder, dtype="float23")


def bare(tensors):
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def with_buffers(tensors):
    gpt2 = "transformer.h.0.attn.c_attn.weight" in tensors
    at = "transformer.h.0.attn" if gpt2 else "transformer.h.0.attn.attention"
    buffers = {f"{at}.bias": np.ones((1, 1, 12, 12), bool), f"{at}.masked_bias": np.asarray(-1e9, np.float32)}
    return tensors | buffers


def with_tied_head(tensors):
    return tensors | {"lm_head.weight": tensors["transformer.wte.weight"].copy()}


def only_the_head(tensors):
    """As `safetensors.torch.save_model` keeps one name of the tensors that a model shares."""
    kept = {name: tensor for name, tensor in tensors.items() if name != "transformer.wte.weight"}
    return kept | {"lm_head.weight": tensors["transformer.wte.weight"]}


CHANGES = [
    bare,
    with_buffers,
    with_tied_head,
    only_the_head,
    lambda t: bare(with_buffers(t)),
    lambda t: bare(only_the_head(t)),
]


@pytest.mark.parametrize("change", CHANGES)
def test_the_same_model_from_other_files(either, change, tmp_path):
    save_pretrained(either, tmp_path)
    edit_weights(tmp_path, change)
    assert same_arrays(load(tmp_path), either)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_tied_head_alone_in_every_kind_of_file(either, sharded, tmp_path):
    save_pretrained(either, tmp_path)
    edit_weights(tmp_path, only_the_head)
    if sharded:
        shard(tmp_path)
    assert same_arrays(load(tmp_path), either)


def test_a_tied_head_alone_in_a_pytorch_file(either, tmp_path):
    torch = pytest.importorskip("torch")
    save_pretrained(either, tmp_path)
    tensors = only_the_head(safetensors.numpy.load_file(tmp_path / "model.safetensors"))
    (tmp_path / "model.safetensors").unlink()
    torch.save({name: torch.as_tensor(tensor) for name, tensor in tensors.items()}, tmp_path / "pytorch_model.bin")
    assert same_arrays(load(tmp_path), either)


def test_a_tied_head_alone_as_safetensors_writes_a_model_of_transformers(tmp_path):
    """`save_model` keeps one name of the tensors that a model shares, of GPT-2 the head's."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    import safetensors.torch

    torch.manual_seed(0)
    sizes = {"vocab_size": 13, "n_positions": 12, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)).eval()
    theirs.config.architectures = ["GPT2LMHeadModel"]
    theirs.config.save_pretrained(tmp_path)
    safetensors.torch.save_model(theirs, str(tmp_path / "model.safetensors"))
    assert "transformer.wte.weight" not in safetensors.numpy.load_file(tmp_path / "model.safetensors")
    with torch.no_grad():
        want = theirs(torch.arange(9)[None]).logits[0].numpy()
    assert_close(np.asarray(jc.run(load(tmp_path), jnp.arange(9))[0]), want, tolerance=1e-5)


def test_a_tied_head_alone_in_flax_names(either):
    """There the head lies the other way round than the embedding."""
    pytest.importorskip("flax")
    inner = dict(interop.to_flax_params(either)["transformer"])
    tree = {"transformer": inner, "lm_head": {"kernel": np.asarray(inner.pop("wte")["embedding"]).T}}
    loaded = interop.from_nnx_state(tree, _config.write_config(_build.spec_of(either)))
    assert same_arrays(loaded, either)


def test_a_head_alone_is_not_enough_where_nothing_is_tied(folder):
    edit_weights(folder, only_the_head)
    edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"missing: `wte.weight`"):
        load(folder)


def test_a_tied_head_alone_of_another_shape_is_named(folder):
    edit_weights(folder, lambda t: only_the_head(t) | {"lm_head.weight": t["transformer.wte.weight"][:-1].copy()})
    with pytest.raises(ValueError, match=r"`lm_head.weight` has shape \(12, 16\)"):
        load(folder)


def test_a_tied_head_that_differs_is_refused(folder):
    """transformers 4 reads the embedding for both, and 5 reads each its own."""
    edit_weights(folder, lambda t: t | {"lm_head.weight": 2 * t["transformer.wte.weight"]})
    with pytest.raises(ValueError, match=r"the file holds another `lm_head`.*set \"tie_word_embeddings\": false"):
        load(folder)
    edit_config(folder, tie_word_embeddings=False)
    assert np.array_equal(load(folder).W_U, 2 * stored_model("gpt2").W_E.T)


def test_shards(folder):
    shard(folder)
    assert same_arrays(load(folder), stored_model("gpt2"))


def test_a_missing_shard_is_named(folder):
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lists the shard model-00002-of-00002.safetensors, which is not there"):
        load(folder)


def test_a_shard_without_its_tensor_is_named(folder):
    shard(folder)
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors")
    with pytest.raises(
        ValueError, match=r"model-00002-of-00002.safetensors lacks `transformer.*`, which .* says it holds"
    ):
        load(folder)


@pytest.mark.parametrize(
    "index", [{"weight_map": {"a": "../secret.safetensors"}}, {"weight_map": {"a": "/etc/passwd"}}]
)
def test_an_index_that_points_outside_is_refused(folder, index):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="points outside its folder"):
        load(folder)


def test_an_index_without_a_map_is_refused(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="has no `weight_map`"):
        load(folder)


def test_a_file_may_be_given_instead_of_its_folder(folder):
    assert same_arrays(load(folder / "model.safetensors"), stored_model("gpt2"))
    (folder / "ae.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="is not called like a weights file"):
        load(folder / "ae.pt")


def test_missing_and_unexpected_tensors_are_named(folder):
    def rename(tensors):
        tensors["transformer.h.1.ln_1.weights"] = tensors.pop("transformer.h.1.ln_1.weight")

    edit_weights(folder, rename)
    with pytest.raises(ValueError, match=r"missing: `h.1.ln_1.weight`; unexpected: `h.1.ln_1.weights`"):
        load(folder)


def test_many_missing_tensors_are_counted(folder):
    edit_config(folder, n_layer=4)
    with pytest.raises(ValueError, match=r"missing: `h.2.attn.c_attn.weight`, .* and 16 more"):
        load(folder)


def test_a_tensor_twice_is_refused(folder):
    edit_weights(folder, lambda t: t | {"wte.weight": t["transformer.wte.weight"].copy()})
    with pytest.raises(ValueError, match=r"holds `wte.weight` twice"):
        load(folder)


def test_a_wrong_shape_is_named(folder):
    edit_weights(
        folder, lambda t: t | {"transformer.h.0.mlp.c_fc.weight": t["transformer.h.0.mlp.c_fc.weight"].T.copy()}
    )
    with pytest.raises(
        ValueError, match=r"`h.0.mlp.c_fc.weight` has shape \(24, 16\), and its configuration asks for \(16, 24\)"
    ):
        load(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_weights_are_named(folder, value):
    def spoil(tensors):
        tensors["transformer.h.1.attn.c_proj.weight"][3, 2] = value

    edit_weights(folder, spoil)
    with pytest.raises(ValueError, match=r"`h.1.attn.c_proj.weight` holds NaN or infinite values"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 5, 400, -10])
def test_truncated_safetensors(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model.safetensors is not a whole safetensors file .* download it again"):
        load(folder)


def test_a_type_that_numpy_has_not_is_named(folder):
    header = {"transformer.wte.weight": {"dtype": "F8_E5M2", "shape": [2], "data_offsets": [0, 2]}}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0\0")
    with pytest.raises(
        ValueError, match=r"`transformer.wte.weight` is stored as F8_E5M2, which cannot be read. Save it as float32"
    ):
        load(folder)


def test_a_pytorch_file_without_pytorch(folder, monkeypatch):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxcirc\[torch\]'"):
        load(folder)


def test_a_flax_file_without_flax(folder, monkeypatch):
    (folder / "model.safetensors").rename(folder / "flax_model.msgpack")
    monkeypatch.setitem(sys.modules, "flax", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxcirc\[flax\]'"):
        load(folder)


def test_a_folder_without_weights_or_configuration(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        ValueError,
        match=r"holds no weights: expected one of model.safetensors, pytorch_model.bin, flax_model.msgpack.* It holds config.json\.",
    ):
        load(folder)
    (folder / "config.json").rename(folder / "cfg.json")
    (folder / "old").mkdir()
    with pytest.raises(ValueError, match=r"There is no .*config.json.* It holds cfg.json, old/\."):
        load(folder)


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[1]", "holds a JSON list; expected an object")])
def test_a_configuration_that_is_none(folder, text, message):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_a_revision_is_of_the_hub(folder):
    with pytest.raises(ValueError, match="revision='v1' is of the Hugging Face Hub"):
        load(folder, revision="v1")

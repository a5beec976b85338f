"""Against transformers' PyTorch models: every site, every file that PyTorch writes, and models in memory."""

import copy
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc.interop import save_pretrained

from ..helpers import assert_close
from ..stored_models import LEARNED, same_arrays, stored_model


torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from .torch_models import CASES, GPT2, make_torch, torch_activations  # noqa: E402


X64 = jax.config.jax_enable_x64
PRECISIONS = {"float32": 1e-5, "float64": 1e-12} if X64 else {"float32": 1e-5}
CASE = "gpt2: defaults"


def tokens_of(config, seq=None):
    seq = seq or config.max_position_embeddings
    return np.random.default_rng(1).integers(0, config.vocab_size, seq)


@jax.jit
def record_all(model, tokens, mask):
    return jc.run(model, tokens, record=jc.sites(model), mask=mask)[1]


def run_all(model, tokens, mask=None):
    return record_all(model, jnp.asarray(tokens, jnp.int32), mask)


def assert_same_activations(ours, theirs, tolerance, rows=slice(None)):
    """At every site; `rows` are the positions to compare, and for scores and patterns the queries and keys."""
    assert [str(site) for site in ours]
    assert {str(site) for site in ours} == set(theirs)
    for site, value in ours.items():
        value, want = np.asarray(value), theirs[str(site)]
        if site.kind in (jc.Kind.ATTN_SCORES, jc.Kind.PATTERN):
            value, want = value[:, rows][:, :, rows], want[:, rows][:, :, rows]
            want = np.where(want < -1e30, -np.inf, want)  # masked
        else:
            value, want = value[rows], want[rows]
        try:
            assert_close(value, want, tolerance=tolerance)
        except AssertionError as error:
            raise AssertionError(f"{site}: {error}") from None


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("name", CASES)
def test_logits_and_every_site(name, dtype, tmp_path):
    theirs = make_torch(*CASES[name], dtype=getattr(torch, dtype))
    theirs.save_pretrained(tmp_path)
    ours = jc.from_pretrained(tmp_path, dtype=dtype)
    tokens = tokens_of(theirs.config)
    assert_same_activations(run_all(ours, tokens), torch_activations(theirs, tokens), PRECISIONS[dtype])


def test_reordered_and_upcast_attention_is_the_same_in_float32(tmp_path):
    theirs = make_torch("gpt2", GPT2["defaults"] | {"reorder_and_upcast_attn": True}, dtype=torch.float32)
    tokens = tokens_of(theirs.config)
    assert_same_activations(run_all(jc.from_torch(theirs), tokens), torch_activations(theirs, tokens), 1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", [CASE, "gpt-neo: alternating"])
def test_padding(name, side):
    dtype = list(PRECISIONS)[-1]
    theirs = make_torch(*CASES[name], dtype=getattr(torch, dtype))
    tokens = tokens_of(theirs.config)
    mask = np.ones(len(tokens), bool)
    mask[slice(None, 3) if side == "left" else slice(-3, None)] = False
    kwargs = {
        "attention_mask": torch.tensor(mask)[None].long(),
        "position_ids": torch.tensor(np.maximum(np.cumsum(mask) - 1, 0))[None],
    }
    ours = run_all(jc.from_torch(theirs), tokens, jnp.asarray(mask))
    assert_same_activations(ours, torch_activations(theirs, tokens, **kwargs), PRECISIONS[dtype], rows=mask)
    unpadded = run_all(jc.from_torch(theirs), tokens[mask])
    logits = jc.Site(None, jc.Kind.LOGITS)
    assert_close(np.asarray(ours[logits])[mask], unpadded[logits], tolerance=PRECISIONS[dtype])


@pytest.mark.parametrize("name", LEARNED)
def test_transformers_loads_what_we_save(name, tmp_path):
    model = jax.tree.map(lambda x: x.astype(jnp.float32), stored_model(name))
    save_pretrained(model, tmp_path)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    tokens = tokens_of(theirs.config)
    assert_same_activations(run_all(model, tokens), torch_activations(theirs.eval(), tokens), 1e-5)
    state = {key: torch.tensor(array) for key, array in jc.to_torch_state_dict(model).items()}
    theirs.load_state_dict(state, strict=True)


# --- Files ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def theirs():
    return make_torch(*CASES[CASE], dtype=torch.float32)


@pytest.fixture
def folder(theirs, tmp_path):
    theirs.config.save_pretrained(tmp_path)
    return tmp_path


def legacy(state, file):
    torch.save(state, file, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [torch.save, legacy])
def test_pytorch_files(theirs, folder, write):
    state = theirs.state_dict()
    state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 9, 9, dtype=torch.uint8)
    state["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    write(state, folder / "pytorch_model.bin")
    assert same_arrays(jc.from_pretrained(folder), jc.from_torch(theirs))


def test_pytorch_shards(theirs, folder):
    state = theirs.transformer.state_dict()  # without the prefix, and without the tied head
    names = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(state)}
    for file in set(names.values()):
        torch.save({name: state[name] for name in state if names[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    assert same_arrays(jc.from_pretrained(folder), jc.from_torch(theirs))


def test_bfloat16_files(theirs, folder):
    torch.save(copy.deepcopy(theirs).to(torch.bfloat16).state_dict(), folder / "pytorch_model.bin")
    want = theirs.transformer.wte.weight.detach().to(torch.bfloat16).float().numpy()
    assert_close(jc.from_pretrained(folder).W_E, want, tolerance=1e-9)


def test_safetensors_shards_of_transformers(theirs, tmp_path):
    theirs.save_pretrained(tmp_path, max_shard_size="8KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert same_arrays(jc.from_pretrained(tmp_path), jc.from_torch(theirs))


class Payload:
    def __reduce__(self):
        return print, ("this ran",)


@pytest.mark.parametrize("contents", [{"wte.weight": Payload()}, Payload()])
def test_a_pickle_that_is_more_than_weights(folder, contents, capsys):
    torch.save(contents, folder / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"is a pickle that holds more than weights, .* refused. Load it where you trust it"
    ):
        jc.from_pretrained(folder)
    assert "this ran" not in capsys.readouterr().out


def test_a_plain_pickle(folder):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match=r"is a pickle that holds more than weights"):
        jc.from_pretrained(folder)


@pytest.mark.parametrize("keep", [0, 100, -50])
def test_truncated_pytorch_files(theirs, folder, keep):
    path = folder / "pytorch_model.bin"
    torch.save(theirs.state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"is not a whole PyTorch file|is not a PyTorch file"):
        jc.from_pretrained(folder)


def test_a_pytorch_file_without_a_state_dict(folder):
    torch.save([torch.ones(2)], folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds a list; expected a state dict"):
        jc.from_pretrained(folder)


# --- In memory -----------------------------------------------------------------------------------------------------------------------


def test_models_in_memory(theirs):
    model = jc.from_torch(theirs)
    assert model.name == "GPT2LMHeadModel"
    assert model.dtype == jnp.float32
    assert same_arrays(jc.from_torch(theirs.transformer), model)
    of_ones_own = copy.copy(theirs)
    of_ones_own.__class__ = type("Mine", (type(theirs),), {})
    assert jc.from_torch(of_ones_own).name == "Mine"
    assert jc.from_torch(copy.deepcopy(theirs).half()).dtype == jnp.float16
    assert jc.from_torch(theirs, dtype=jnp.bfloat16).dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_half_precision_is_no_further_off_than_theirs(case, dtype):
    """Logits against the same rounded weights in float64, with a first position as large as that of GPT-2."""
    theirs = make_torch(*CASES[case])
    with torch.no_grad():
        theirs.transformer.wpe.weight[0, 1], theirs.transformer.wpe.weight[0, -1] = 900.0, -700.0
    theirs = theirs.to(dtype)
    tokens = tokens_of(theirs.config)
    ours = np.asarray(jc.run(jc.from_torch(theirs), jnp.asarray(tokens, jnp.int32))[0], np.float64)
    logits = lambda model: model(torch.tensor(tokens)[None]).logits[0].detach().double().numpy()
    peer, want = logits(theirs), logits(theirs.double())
    error = lambda logits: np.abs(logits - want).max()
    assert error(peer) > 1e-4  # half precision's rounding is there to be seen
    assert error(ours) < error(peer)


def test_other_models_are_refused(theirs):
    with pytest.raises(
        TypeError, match="Expected a transformers PyTorch model, with a config and a state_dict; got Linear"
    ):
        jc.from_torch(torch.nn.Linear(2, 2))
    classifier = transformers.GPT2ForSequenceClassification(theirs.config)
    with pytest.raises(ValueError, match="is a GPT2ForSequenceClassification; supported are GPT2LMHeadModel"):
        jc.from_torch(classifier)
    opt = transformers.OPTConfig(
        hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=5, ffn_dim=8, word_embed_proj_dim=8
    )
    with pytest.raises(
        ValueError, match="is a OPTForCausalLM; supported are GPT2LMHeadModel, GPT2Model, GPTNeoForCausalLM"
    ):
        jc.from_torch(transformers.OPTForCausalLM(opt))


def test_torch_tensors_under_transformer_lens_names(theirs):
    model = jc.from_torch(theirs)
    tensors = {"embed.W_E": model.W_E, "pos_embed.W_pos": model.W_pos, "unembed.W_U": model.W_U}
    tensors = {name: torch.tensor(np.asarray(array)) for name, array in tensors.items()}
    config = {
        "n_layers": 0,
        "d_model": 24,
        "n_heads": 3,
        "d_head": 8,
        "d_vocab": 19,
        "n_ctx": 9,
        "attn_only": True,
        "normalization_type": None,
    }
    for layer, block in enumerate(model.blocks):
        tensors |= {
            f"blocks.{layer}.attn.W_{part}": torch.nn.Parameter(
                torch.tensor(np.asarray(getattr(block.attn, f"W_{part}")))
            )
            for part in "QKVO"
        }
    loaded = jc.from_transformer_lens(tensors, config | {"n_layers": 2})
    assert np.array_equal(loaded.blocks[1].attn.W_O, model.blocks[1].attn.W_O)
    assert loaded.dtype == jnp.float32


def test_the_golden_gradient_of_an_embedding():
    """The gradient of a logit difference at the embeddings, against PyTorch's autograd."""
    dtype = list(PRECISIONS)[-1]
    theirs = make_torch(*CASES["gpt-neo: odd sizes, untied, local first"], dtype=getattr(torch, dtype))
    tokens, model = tokens_of(theirs.config), jc.from_torch(theirs)
    embeds = theirs.transformer.wte(torch.tensor(tokens)).detach().requires_grad_()
    logits = theirs(inputs_embeds=embeds[None]).logits[0, -1]
    (logits[1] - logits[2]).backward()

    def difference(shift):
        logits, _ = jc.run(model, jnp.asarray(tokens, jnp.int32), edits={"hook_embed": jc.Add(shift)})
        return logits[-1, 1] - logits[-1, 2]

    ours = jax.jit(jax.grad(difference))(jnp.zeros(embeds.shape, dtype))
    assert_close(ours, embeds.grad.numpy(), tolerance=1e-5)  # GPT-Neo's queries and keys are float32 in PyTorch

"""GGUF files: every family written as llama.cpp writes it, a real model, and every file that cannot be read."""

import dataclasses as dc
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc.interop import check_pretrained, save_pretrained
from jaxcirc.interop._build import spec_of
from jaxcirc.interop._config import write_config
from jaxcirc.interop._gguf import _divided, ARCHITECTURES
from jaxcirc.interop._rotation import Divided, Llama3, Rotation
from jaxcirc.interop._text_tokenizer import load_text_tokenizer
from jaxcirc.parts import gelu

from .helpers import assert_close
from .real import needs_smollm2, SMOLLM2
from .stored_models import ALL, LLAMA, logits_of, rotary_model, same_arrays, stored_model


gguf = pytest.importorskip("gguf")

# {stored model: what llama.cpp calls its architecture}
NAMES = {
    "mistral": "llama",
    **{"llama": "llama", "llama-biases-tied": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma": "gemma"},
    **{"gemma2": "gemma2", "gemma3": "gemma3", "olmo2": "olmo2", "gpt-neox": "gptneox"},
    "gpt-neox-one-after-the-other": "gptneox",
}


def gguf_model(name: str) -> jc.Transformer:
    """The stored model as float32, with what a GGUF file of its architecture can say."""
    model = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), stored_model(name))
    if name in ("gemma2", "gemma3"):  # the scale is that of the head's width, layers of windows follow from the pattern
        scale = jnp.asarray(model.d_head**-0.5, jnp.float32)
        blocks = tuple(dc.replace(block, attn=dc.replace(block.attn, scale=scale)) for block in model.blocks)
        pattern = 2 if name == "gemma2" else 6
        windows = tuple(3 if (layer + 1) % pattern else None for layer in range(model.n_layers))
        model = dc.replace(model, blocks=blocks, windows=windows, untied_W_U=None)
    if name == "gemma3":
        local = model.blocks[0].attn.rotary
        blocks = tuple(dc.replace(block, attn=dc.replace(block.attn, rotary=local)) for block in model.blocks)
        model = dc.replace(model, blocks=blocks, positions=(model.positions[0],) * model.n_layers)
    if name == "gpt-neox-one-after-the-other":  # no file says which activation function
        blocks = tuple(dc.replace(block, mlp=dc.replace(block.mlp, act=gelu)) for block in model.blocks)
        model = dc.replace(model, blocks=blocks)
    if name == "qwen2":
        model = dc.replace(model, windows=(None,) * model.n_layers)
    return model


def write_gguf(path, model, architecture, *, kind=gguf.GGMLQuantizationType.F32, **more) -> None:
    """As llama.cpp's conversion writes it: its own names, Llama's rows permuted, GPT-NeoX's part by part, Gemma's norms with their one."""
    config = write_config(spec_of(model))
    writer = gguf.GGUFWriter(path, architecture)
    key = lambda name: f"{architecture}.{name}"
    writer.add_block_count(model.n_layers)
    writer.add_context_length(model.n_ctx)
    writer.add_embedding_length(model.d_model)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(model.n_heads)
    if architecture == "gptneox":
        writer.add_layer_norm_eps(1e-5)
        writer.add_parallel_residual(config["use_parallel_residual"])
        writer.add_rope_dimension_count(model.positions[0].width)
    else:
        writer.add_head_count_kv(model.n_kv_heads)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_key_length(model.d_head)
        writer.add_value_length(model.d_head)
        writer.add_rope_dimension_count(model.d_head)
    full = next(
        (r for r, window in zip(model.positions, model.windows, strict=True) if window is None), model.positions[0]
    )
    writer.add_rope_freq_base(full.theta)
    if architecture == "gemma3":
        writer.add_float32(key("rope.freq_base_swa"), model.positions[0].theta)
    if any(model.windows):
        writer.add_sliding_window(max(window or 0 for window in model.windows))
    if model.blocks[0].attn.cap is not None:
        writer.add_attn_logit_softcapping(model.blocks[0].attn.cap)
    if model.logit_cap is not None:
        writer.add_final_logit_softcapping(model.logit_cap)
    for name, value in more.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](key(name.replace("__", ".")), value)
    enum = next(each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(enum, model.n_layers)
    for name, array in jc.to_torch_state_dict(model).items():
        if model.untied_W_U is None and name in ("lm_head.weight", "embed_out.weight"):
            continue
        if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = model.n_heads if ".q_proj." in name else model.n_kv_heads
            array = array.reshape(heads, 2, model.d_head // 2, -1).swapaxes(1, 2).reshape(array.shape)
        if "query_key_value" in name:
            array = array.reshape(model.n_heads, 3, model.d_head, -1).swapaxes(0, 1).reshape(array.shape)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            array = array + 1
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if kind != gguf.GGMLQuantizationType.F32 and array.ndim > 1:
            writer.add_tensor(theirs, gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(theirs, np.ascontiguousarray(array, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", NAMES)
def test_every_family(name, tmp_path):
    model = gguf_model(name)
    write_gguf(tmp_path / "it.gguf", model, NAMES[name])
    check_pretrained(tmp_path / "it.gguf")
    loaded = jc.from_pretrained(tmp_path / "it.gguf")
    assert loaded.name == "it"
    if not name.startswith("gemma"):
        assert same_arrays(loaded, model)
        save_pretrained(loaded, tmp_path / "saved")
        assert same_arrays(jc.from_pretrained(tmp_path / "saved"), model)
        return
    assert (loaded.ln_final.offset, loaded.positions, loaded.windows) == (0.0, model.positions, model.windows)
    assert np.array_equal(loaded.blocks[0].ln1.weight, model.blocks[0].ln1.weight + 1)
    assert np.array_equal(loaded.blocks[2].attn.W_K, model.blocks[2].attn.W_K)
    assert_close(logits_of(loaded), logits_of(model), tolerance=1e-6)
    with pytest.raises(ValueError, match="0 is added to the weights of its norms, not 1"):
        save_pretrained(loaded, tmp_path / "saved")


def test_the_list_above_is_whole():
    assert set(NAMES.values()) == set(ARCHITECTURES)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_packed_tensors_are_the_packages_own_dequantisation(kind, tmp_path):
    model = stored_wide()
    kind = gguf.GGMLQuantizationType[kind]
    write_gguf(tmp_path / "it.gguf", model, "qwen3", kind=kind)
    loaded = jc.from_pretrained(tmp_path / "it.gguf")
    want = gguf.dequantize(gguf.quantize(np.asarray(model.W_E), kind), kind)
    assert np.array_equal(loaded.W_E, want)
    assert not np.array_equal(loaded.W_E, model.W_E)
    W_in = np.asarray(model.blocks[1].mlp.W_in).T
    assert np.array_equal(loaded.blocks[1].mlp.W_in.T, gguf.dequantize(gguf.quantize(W_in, kind), kind))


def stored_wide() -> jc.Transformer:
    """One whose rows are blocks of 32."""
    sizes = {"d_model": 32, "d_head": 8, "d_mlp": 64, "pairs": 4}
    model = rotary_model("qwen3", *ALL, **LLAMA | sizes | {"qk_norm": "head"})
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), model)


def test_scaled_rotations(tmp_path):
    model = gguf_model("llama")
    write_gguf(tmp_path / "linear.gguf", model, "llama", rope__scaling__type="linear", rope__scaling__factor=4.0)
    assert jc.from_pretrained(tmp_path / "linear.gguf").positions[0].scaling.factor == 4.0
    write_gguf(tmp_path / "yarn.gguf", model, "llama", rope__scaling__type="yarn", rope__scaling__factor=4.0)
    with pytest.raises(ValueError, match="rope_type 'yarn' is not supported"):
        jc.from_pretrained(tmp_path / "yarn.gguf")


def test_divisors_of_frequencies(tmp_path, monkeypatch):
    """As files of Llama 3.1 and later have them."""
    model, by = gguf_model("llama"), np.asarray([2.0, 3.0, 5.0], np.float32)
    written = gguf.GGUFWriter.write_header_to_file

    def with_divisors(writer):
        writer.add_tensor("rope_freqs.weight", by)
        written(writer)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", with_divisors)
    write_gguf(tmp_path / "it.gguf", model, "llama")
    loaded = jc.from_pretrained(tmp_path / "it.gguf")
    assert isinstance(loaded.positions[0].scaling, Divided)
    assert_close(loaded.positions[0].frequencies, model.positions[0].frequencies / by, tolerance=1e-7)
    with pytest.raises(ValueError, match="its positions rotate queries and keys by"):
        save_pretrained(loaded, tmp_path / "saved")


def test_divisors_of_llama_3_are_told():
    """So that what is read can be saved."""
    plain, scaling = Rotation(5e5, 64), Llama3(32.0, 1.0, 4.0, 8192)
    by = (plain.frequencies / scaling.scaled(plain.frequencies)).astype(np.float32)
    spec = dc.replace(spec_of(gguf_model("llama")), rotations=(plain,) * 3)
    assert _divided(spec, by) == (dc.replace(plain, scaling=scaling),) * 3
    with pytest.raises(ValueError, match=r"holds \(31,\) divisors, and \(32,\) frequencies turn"):
        _divided(spec, by[1:])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"expert_count": 8}, r"llama.expert_count = 8 is not supported; only 0 is"),
        ({"attention__causal": False}, r"llama.attention.causal = False is not supported; only True is"),
        ({"rope__dimension_count_swa": 4}, r"llama.rope.dimension_count_swa = 4 is not known"),
        ({"logit_scale": 2.0}, r"llama.logit_scale = 2.0 is not known, and might change"),
    ],
)
def test_metadata_of_another_computation_are_refused(more, message, tmp_path):
    write_gguf(tmp_path / "it.gguf", gguf_model("llama"), "llama", **more)
    with pytest.raises(ValueError, match=message):
        jc.from_pretrained(tmp_path / "it.gguf")
    key = message.split(" ")[0]
    if key == "llama.logit_scale":
        assert jc.from_pretrained(tmp_path / "it.gguf", ignore_config=[key]).n_layers == 3


def test_windows_of_layers_that_the_file_does_not_name_are_refused(tmp_path):
    model = dc.replace(gguf_model("qwen2"), windows=(3,) * 3)
    write_gguf(tmp_path / "it.gguf", model, "qwen2")
    with pytest.raises(
        ValueError, match=r"qwen2.attention.sliding_window = 3 is not supported; only a window as long as"
    ):
        jc.from_pretrained(tmp_path / "it.gguf")
    write_gguf(tmp_path / "long.gguf", dc.replace(model, windows=(4096,) * 3), "qwen2")
    assert jc.from_pretrained(tmp_path / "long.gguf").windows == (None,) * 3


def test_another_architecture_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "it.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    for verb in (jc.from_pretrained, check_pretrained):
        with pytest.raises(
            ValueError, match=r"general.architecture = 'mamba' is not supported; 'llama', 'qwen2', .* are"
        ):
            verb(tmp_path / "it.gguf")


@pytest.mark.parametrize("keep", [0, 10, 300, -2000, -1])
def test_truncated_files(keep, tmp_path):
    write_gguf(tmp_path / "whole.gguf", gguf_model("llama"), "llama")
    held = (tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "it.gguf").write_bytes(held[:keep])
    with pytest.raises(ValueError, match=r"it.gguf is not a (whole )?GGUF file"):
        jc.from_pretrained(tmp_path / "it.gguf")


def test_other_files_are_told_by_what_they_are(tmp_path):
    (tmp_path / "it.gguf").write_bytes(b"<html><body>Sign in</body></html>")
    with pytest.raises(ValueError, match=r"is not a GGUF file .*It looks like a web page"):
        jc.from_pretrained(tmp_path / "it.gguf")


def test_without_the_package(tmp_path, monkeypatch):
    write_gguf(tmp_path / "it.gguf", gguf_model("llama"), "llama")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxcirc\[gguf\]'"):
        jc.from_pretrained(tmp_path / "it.gguf")


# --- Tokenizers ----------------------------------------------------------------------------------------------------------------------


def write_tokenizer(path, *, kind="gpt2", split="smollm", **more) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    letters = ["<|end|>", *"abcdefgh", "Ġ", "1", "2", "ab", "Ġa", "12", "<mine>"]
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(split)
    writer.add_token_list(letters)
    writer.add_token_types([3, *[1] * (len(letters) - 2), 4])
    writer.add_token_merges(["a b", "Ġ a", "1 2"])
    writer.add_bos_token_id(0)
    for name, value in more.items():
        writer.add_bool(f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


@pytest.mark.parametrize("put", [False, True])
def test_a_tokenizer_of_byte_pairs(put, tmp_path):
    write_tokenizer(tmp_path / "it.gguf", add_bos_token=put)
    light, full = load_text_tokenizer(tmp_path / "it.gguf"), jc.load_tokenizer(tmp_path / "it.gguf")
    for tokenizer in (light, full):
        tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode("ab a12<mine><|end|>", add_special_tokens=False))
        assert tokens == ["ab", "Ġa", "1", "2", "<mine>", "<|end|>"]
        assert tokenizer.decode(tokenizer.encode("ab a12", add_special_tokens=False)) == "ab a12"
        assert tokenizer("ab")["input_ids"] == ([0] if put else []) + [
            tokenizer.encode("ab", add_special_tokens=False)[0]
        ]
        assert (tokenizer.bos_token, tokenizer.family) == ("<|end|>", "llama")


def test_digits_together_where_the_name_says_so(tmp_path):
    write_tokenizer(tmp_path / "it.gguf", split="gpt-2")
    tokenizer = load_text_tokenizer(tmp_path / "it.gguf")
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("12")) == ["12"]
    write_tokenizer(tmp_path / "three.gguf", split="llama-bpe")
    tokenizer = load_text_tokenizer(tmp_path / "three.gguf")
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("12", add_special_tokens=False)) == ["12"]
    assert tokenizer.encode("12")[0] == 0  # Llama 3's put it where the file does not say


def test_tokenizers_that_are_not_read(tmp_path):
    for given, message in (
        ({"kind": "llama"}, r"tokenizer.ggml.model = 'llama' is not supported; 'gpt2', byte-level BPE, is"),
        (
            {"split": "viking"},
            r"tokenizer.ggml.pre = 'viking' is not supported; 'gpt-2', .* is.*name the tokenizer apart",
        ),
    ):
        write_tokenizer(tmp_path / f"{given}.gguf", **given)
        with pytest.raises(ValueError, match=message):
            jc.load_tokenizer(tmp_path / f"{given}.gguf")


# --- SmolLM2 -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2():
    return jc.from_pretrained(SMOLLM2)


@needs_smollm2
def test_smollm2_is_read_in_time_and_memory():
    """In a process of its own, whose peak is known; what others do on the machine does not count."""
    program = (
        "import re, sys, time; import jaxcirc as jc; begin = time.process_time(); jc.from_pretrained(sys.argv[1]);"
        # Not `ru_maxrss`, which begins with what the process held that this one was started from.
        "print(time.process_time() - begin, re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    found = subprocess.run([sys.executable, "-c", program, SMOLLM2], capture_output=True, text=True, check=True)
    seconds, kilobytes = map(float, found.stdout.split())
    assert seconds < 60  # about 10 on an idle machine; cores that are shared with others take up to twice as long
    assert kilobytes < 1.5e6


@needs_smollm2
def test_every_tensor_of_smollm2_is_the_packages_own_dequantisation(smollm2):
    """After the permutation of the rows of queries and keys, by which neighbours rotate together in llama.cpp."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(SMOLLM2).tensors}
    whole = lambda name: gguf.dequantize(tensors[name].data, tensors[name].tensor_type)
    assert len(tensors) == 2 + 9 * smollm2.n_layers
    assert np.array_equal(smollm2.W_E, whole("token_embd.weight"))
    assert np.array_equal(smollm2.ln_final.weight, whole("output_norm.weight"))
    pairs = np.arange(64).reshape(32, 2).T.ravel()  # the row of llama.cpp's at each of ours
    for layer, block in enumerate(smollm2.blocks):
        at = f"blk.{layer}"
        rows = lambda name, heads, at=at: whole(f"{at}.{name}.weight").reshape(heads, 64, -1)
        assert np.array_equal(block.attn.W_Q.swapaxes(1, 2), rows("attn_q", 9)[:, pairs])
        assert np.array_equal(block.attn.W_K.swapaxes(1, 2), rows("attn_k", 3)[:, pairs])
        assert np.array_equal(block.attn.W_V.swapaxes(1, 2), rows("attn_v", 3))
        assert np.array_equal(np.asarray(block.attn.W_O).reshape(576, 576).T, whole(f"{at}.attn_output.weight"))
        for ours, theirs in (("W_gate", "ffn_gate"), ("W_in", "ffn_up"), ("W_out", "ffn_down")):
            assert np.array_equal(getattr(block.mlp, ours).T, whole(f"{at}.{theirs}.weight"))
        assert np.array_equal(block.ln1.weight, whole(f"{at}.attn_norm.weight"))
        assert np.array_equal(block.ln2.weight, whole(f"{at}.ffn_norm.weight"))


@jax.jit
def last_logits(model, batch):
    return jax.lax.map(lambda tokens: jc.run(model, tokens)[0][-1], batch, batch_size=10)


@needs_smollm2
def test_smollm2_finds_indirect_objects(smollm2):
    tokenizer = load_text_tokenizer(SMOLLM2)
    prompts = jc.data.ioi(tokenizer, 100, template="mixed", seed=0)
    assert not np.any(np.asarray(prompts.clean) == tokenizer.bos_token_id)
    logits = np.asarray(last_logits(smollm2, prompts.clean))
    rows = np.arange(100)
    assert (logits[rows, prompts.answer] > logits[rows, prompts.foil]).sum() >= 95


@needs_smollm2
def test_logits_of_smollm2_are_those_of_transformers(smollm2):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        **{"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
        **{"num_attention_heads": 9, "num_key_value_heads": 3, "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
    )
    theirs = transformers.LlamaForCausalLM._from_config(config, attn_implementation="eager").eval()
    theirs.load_state_dict({name: torch.tensor(array) for name, array in jc.to_torch_state_dict(smollm2).items()})
    prompts = jc.data.ioi(load_text_tokenizer(SMOLLM2), 4, seed=1)
    with torch.no_grad():
        want = theirs(torch.tensor(np.asarray(prompts.clean))).logits[:, -1].numpy()
    got = np.asarray(last_logits(smollm2, prompts.clean))
    top = np.argsort(-want, axis=1)[:, :50]
    assert np.abs(np.take_along_axis(got - want, top, axis=1)).max() < 1e-4


@needs_smollm2
def test_text_that_smollm2_reads_is_split_as_it_was_trained():
    tokenizer = load_text_tokenizer(SMOLLM2)
    text = "Then, Mary went to 123 shops.\n<|im_end|>"
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(text)) == [
        *("Then", ",", "ĠMary", "Ġwent", "Ġto", "Ġ", "1", "2", "3", "Ġshops", ".", "Ċ", "<|im_end|>")
    ]
    assert tokenizer.decode(tokenizer.encode(text)) == text

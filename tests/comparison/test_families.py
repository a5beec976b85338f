"""Every family against transformers' own code: logits and all sites, in both spellings of the configuration, padded on either side."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import jaxcirc as jc
from jaxcirc.interop import _attributes, save_pretrained
from jaxcirc.interop._config import read_config
from jaxcirc.interop.families import FAMILIES

from ..helpers import needs_x64
from ..stored_models import ROTARY, same_arrays, stored_model


torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from .families import CASES, family_activations, make_family, older_spelling, true_float64  # noqa: E402


SEQ = 9  # longer than any window


@pytest.fixture(scope="module", params=CASES)
def exact(request):
    """A model of transformers in true float64."""
    with true_float64():
        return make_family(request.param)


def tokens_of(model, seq=SEQ):
    return np.random.default_rng(1).integers(0, model.config.vocab_size, seq)


@jax.jit
def record_all(model, tokens, mask):
    return jc.run(model, tokens, record=jc.sites(model), mask=mask)[1]


def run_all(model, tokens, mask=None):
    return record_all(model, jnp.asarray(tokens, jnp.int32), mask)


def assert_same(ours, theirs, tolerance, rows=None):
    """At every site and position, relative to the largest entry there: the first position's norm may be a hundred times the others'."""
    assert {str(site) for site in ours} == set(theirs)
    for site, value in ours.items():
        value, want = np.asarray(value, np.float64), theirs[str(site)]
        if site.kind in (jc.Kind.ATTN_SCORES, jc.Kind.PATTERN):
            want = np.where(want < -1e30, -np.inf, want)  # masked
            value, want = (np.moveaxis(x, 0, -1) for x in (value, want))  # [q_seq k_seq head]
            value, want = (x if rows is None else x[rows][:, rows] for x in (value, want))
        elif rows is not None:
            value, want = value[rows], want[rows]
        assert value.shape == want.shape, f"{site}: {value.shape} and {want.shape}"
        finite = np.isfinite(want)
        assert (np.isfinite(value) == finite).all(), f"{site}: finite in one and not in the other"
        value, want = (np.where(finite, x, 0).reshape(len(x), -1) for x in (value, want))
        size = np.abs(want).max(axis=1)
        assert (size > 1e-6).all(), f"{site}: nothing to compare"
        error = (np.abs(value - want).max(axis=1) / size).max()
        assert error <= tolerance, f"{site}: relative error {error:.3g}"


def saved(theirs, folder, *, older=False):
    theirs.save_pretrained(folder)
    if older:
        path = folder / "config.json"
        path.write_text(json.dumps(older_spelling(json.loads(path.read_text()))))
    return folder


@needs_x64
@pytest.mark.parametrize("spelling", ["transformers 5", "transformers 4"])
def test_logits_and_every_site_in_float64(exact, spelling, tmp_path):
    ours = jc.from_pretrained(saved(exact, tmp_path, older=spelling == "transformers 4"), dtype=jnp.float64)
    tokens = tokens_of(exact)
    with true_float64():
        theirs = family_activations(exact, tokens)
    assert_same(run_all(ours, tokens), theirs, 1e-10)


@pytest.mark.parametrize("name", CASES)
def test_logits_and_every_site_in_float32(name):
    theirs = make_family(name)
    tokens = tokens_of(theirs)
    assert_same(run_all(jc.from_torch(theirs), tokens), family_activations(theirs, tokens), 1e-5)


@needs_x64
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_on_either_side(exact, side):
    """transformers counts positions from the padding's first on; scores depend on distances alone."""
    tokens, mask = tokens_of(exact), np.ones(SEQ, bool)
    mask[slice(None, 3) if side == "left" else slice(-3, None)] = False
    with true_float64():
        theirs = family_activations(exact, tokens, attention_mask=torch.tensor(mask)[None].long())
    ours = run_all(jc.from_torch(exact), tokens, jnp.asarray(mask))
    assert_same(ours, theirs, 1e-10, rows=mask)
    logits = jc.Site(None, jc.Kind.LOGITS)
    unpadded = np.asarray(run_all(jc.from_torch(exact), tokens[mask])[logits])
    assert np.abs(np.asarray(ours[logits])[mask] - unpadded).max() < 1e-10 * np.abs(unpadded).max()


def test_what_transformers_saves_is_saved_again_bit_for_bit(exact, tmp_path):
    saved(exact, tmp_path / "theirs")
    dtype = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
    model = jc.from_pretrained(tmp_path / "theirs", dtype=dtype)
    save_pretrained(model, tmp_path / "ours")
    theirs, ours = (safetensors.numpy.load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert set(theirs) == set(ours)
    assert all(np.array_equal(ours[name], tensor.astype(dtype)) for name, tensor in theirs.items())
    assert same_arrays(jc.from_pretrained(tmp_path / "ours", dtype=dtype), model)


@pytest.mark.parametrize("name", CASES)
def test_models_in_memory(name):
    """In half precision, and without an unembedding where it is the embedding."""
    theirs = make_family(name)
    model = jc.from_torch(theirs)
    assert same_arrays(jc.from_torch(theirs.bfloat16()), jc.from_torch(theirs, dtype=jnp.bfloat16))
    if model.untied_W_U is None:
        bare = jc.from_torch(getattr(theirs, theirs.base_model_prefix), dtype=jnp.bfloat16)
        assert same_arrays(bare, jc.from_torch(theirs))
    else:
        with pytest.raises(
            ValueError, match=r"has no unembedding: `\w+.weight` is missing, .* has it, a \w+ForCausalLM"
        ):
            jc.from_torch(getattr(theirs, theirs.base_model_prefix))


@pytest.mark.parametrize("name", ROTARY)
def test_transformers_loads_what_we_save(name, tmp_path):
    model = jax.tree.map(lambda x: x.astype(jnp.float32), stored_model(name))
    save_pretrained(model, tmp_path)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    tokens = tokens_of(theirs)
    assert_same(run_all(model, tokens), family_activations(theirs.eval(), tokens), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_shards_in_half_precision(dtype, tmp_path):
    theirs = make_family("gemma2").to(dtype)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert same_arrays(jc.from_pretrained(tmp_path), jc.from_torch(theirs, dtype=jnp.float32))
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


def test_half_precision_weights_are_computed_with_in_float32():
    """The score scale of heads 128 wide is no number of bfloat16, and rotary angles none at all."""
    name, attributes = CASES["llama"]
    config = getattr(transformers, f"{name}Config")(**attributes | {"head_dim": 128})
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM._from_config(config, attn_implementation="eager").to(torch.bfloat16).eval()
    model, tokens = jc.from_torch(theirs), tokens_of(theirs)
    assert model.dtype == jnp.bfloat16
    want = run_all(jc.from_torch(theirs, dtype=jnp.float32), tokens)
    for site, value in run_all(model, tokens).items():
        assert np.array_equal(value, want[site]), site


@needs_x64
def test_a_gemma_3_that_also_sees(tmp_path):
    """The text model inside a larger one, by the names of either version of transformers."""
    with true_float64():
        theirs = make_family("gemma3")
    bare = jc.from_torch(theirs)
    saved(theirs, tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    text = json.loads((tmp_path / "config.json").read_text())
    outer = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    outer |= {"vision_config": {"hidden_size": 8}, "mm_tokens_per_image": 4, "image_token_index": 9}
    (tmp_path / "config.json").write_text(json.dumps(outer))
    for before in ("language_model.model.", "model.language_model."):
        named = {before + name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        named |= {"vision_tower.x.weight": np.ones(2), "model.multi_modal_projector.y": np.ones(3)}
        safetensors.numpy.save_file(named, tmp_path / "model.safetensors")
        model = jc.from_pretrained(tmp_path, dtype=jnp.float64)
        assert same_arrays(model, bare)
        assert model.architecture == "gemma3_text"


@pytest.mark.parametrize("name", CASES)
def test_every_attribute_of_transformers_is_used_ignored_or_refused(name):
    """With all defaults, and with none said."""
    kind, _ = CASES[name]
    config = getattr(transformers, f"{kind}Config")().to_dict()
    default = read_config(config, "a default configuration")
    family = FAMILIES[config["model_type"]]
    ignored = _attributes.IGNORED | family.ignored
    assert not set(family.used) & ignored
    assert not set(family.only) & ignored
    assert not set(family.used) & set(family.only)
    said = read_config({"model_type": config["model_type"]}, "a configuration that says nothing")
    assert said == default
    assert read_config(older_spelling(config), "as before") == default

"""The dictionaries published for Pythia, Llama, Qwen and Gemma: each format, written here, against its equation in plain NumPy, float64."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import saes

from .helpers import assert_close, make_model, tokens_for
from .test_dictionary_formats import check, D, doubles, F, inputs, LINEAR, PLAIN, random, relu, top, V6, write


OUT = 4  # numbers written, where they are others than those read


def names(loaded) -> list[str]:
    return [str(site) for site in loaded]


def ends(sae) -> tuple[str, str]:
    return str(sae.reads), str(sae.site)


def positive(tensors, *which: str):
    return {**tensors, **{name: np.abs(tensors[name]) for name in which}}


def jumps(h, threshold):
    """With some latents on, and some positive ones off."""
    acts = h * (h > threshold)
    assert 0 < (acts > 0).sum() < (h > 0).sum()
    return acts


# feature-circuits


def test_feature_circuits_pythia_folders(tmp_path):
    """19 dictionaries: the embedding, and attention, MLP and residual stream of six layers; their directions get norm 1."""
    root = tmp_path / "dictionaries" / "pythia-70m-deduped"
    tensors = {"embed": random({"bias": (D,), **LINEAR}, 0)}
    for layer in range(6):
        for i, part in enumerate(("attn", "mlp", "resid")):
            tensors[f"{part}_out_layer{layer}"] = random({"bias": (D,), **LINEAR}, 1 + 3 * layer + i)
    for name, held in tensors.items():
        write(root / name / f"10_{F}" / "ae.safetensors", held)
    loaded = jc.load_saes(root)
    of_layer = lambda i: [f"blocks.{i}.hook_{kind}" for kind in ("attn_out", "mlp_out", "resid_post")]
    assert names(loaded) == ["hook_embed", *(name for i in range(6) for name in of_layer(i))]
    for name, site in (("embed", "hook_embed"), ("attn_out_layer3", "blocks.3.hook_attn_out")):
        t = doubles(tensors[name])
        norms = np.linalg.norm(t["decoder.weight"], axis=0)
        acts = relu((inputs() - t["bias"]) @ t["encoder.weight"].T + t["encoder.bias"])
        check(loaded[site], acts * norms, acts @ t["decoder.weight"].T + t["bias"])


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("attn_4", "blocks.4.hook_attn_out"),
        ("mlp_0", "blocks.0.hook_mlp_out"),
        ("resid_5", "blocks.5.hook_resid_post"),
        ("embed", "hook_embed"),
    ],
)
def test_feature_circuits_submodule_names(tmp_path, name, site):
    write(tmp_path / name / "ae.safetensors", random({"bias": (D,), **LINEAR}))
    assert names(jc.load_saes(tmp_path)) == [site]


# Gemma Scope

NPZ = {"W_enc": (D, 4096), "W_dec": (4096, D), "b_enc": (4096,), "b_dec": (D,), "threshold": (4096,)}


def npz(path: Path, tensors, *, compressed: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (np.savez_compressed if compressed else np.savez)(path, **tensors)
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize(
    ("release", "place", "reads", "site"),
    [
        ("gemma-scope-2b-pt-res", "layer_5", "blocks.5.hook_resid_post", "blocks.5.hook_resid_post"),
        ("gemma-scope-9b-it-res", "layer_20", "blocks.20.hook_resid_post", "blocks.20.hook_resid_post"),
        ("gemma-scope-2b-pt-att", "layer_0", "blocks.0.attn.hook_z", "blocks.0.attn.hook_z"),
        ("gemma-scope-27b-pt-mlp", "layer_11", "blocks.11.hook_mlp_out", "blocks.11.hook_mlp_out"),
        ("gemma-scope-2b-pt-transcoders", "layer_3", "blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_out"),
        ("gemma-scope-2b-pt-res", "embedding", "hook_embed", "hook_embed"),
    ],
)
def test_gemma_scope(tmp_path, release, place, reads, site, lower, compressed):
    tensors = positive(random(NPZ), "threshold")
    stored = {name.replace("W_", "w_") if lower else name: array for name, array in tensors.items()}
    path = npz(tmp_path / release / place / "width_4k" / "average_l0_71" / "params.npz", stored, compressed=compressed)
    for sae in (jc.load_sae(path), jc.load_sae(path.parent), jc.load_saes(tmp_path)[site]):
        t, x = doubles(tensors), inputs().astype(np.float64)
        unscaled = x / D**0.5 if place == "embedding" else x  # trained on the rows as they are stored
        acts = jumps(unscaled @ t["W_enc"] + t["b_enc"], t["threshold"])
        recon = acts @ t["W_dec"] + t["b_dec"]
        check(sae, acts, recon * D**0.5 if place == "embedding" else recon)
        assert (*ends(sae), sae.processing) == (reads, site, ())
        assert isinstance(sae, saes.Transcoder if reads != site else saes.SAE)


def test_of_the_hub_no_more_is_downloaded_than_asked_for(tmp_path, monkeypatch):
    asked: list[list[str]] = []

    def snapshot_download(repository, *, revision, allow_patterns):
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    for layer in (0, 1):
        place = tmp_path / f"layer_{layer}" / "width_4k" / "average_l0_71"
        npz(place / "params.npz", positive(random(NPZ), "threshold"))
    loaded = jc.load_saes("google/gemma-scope-2b-pt-res", include="*/width_4k/average_l0_71/*")
    assert names(loaded) == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    assert asked == [["*/width_4k/average_l0_71/*", "*.json", "*.yaml"]]
    inside = "layer_1/width_4k/average_l0_71"
    assert str(jc.load_sae(f"google/gemma-scope-2b-pt-res:{inside}").site) == "blocks.1.hook_resid_post"
    assert f"{inside}/*" in asked[-1]


def test_gemma_scope_says_its_site_and_width_by_its_path(tmp_path):
    tensors = positive(random(NPZ), "threshold")
    with pytest.raises(ValueError, match=r"nothing says of which site it is, neither its path .* Pass site="):
        jc.load_sae(npz(tmp_path / "params.npz", tensors))
    sae = jc.load_sae(tmp_path / "params.npz", site="blocks.1.hook_mlp_out", reads="blocks.1.ln2.hook_normalized")
    assert ends(sae) == ("blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out")
    assert isinstance(jc.load_sae(tmp_path / "params.npz", site="blocks.1.hook_mlp_out"), saes.SAE)
    inside = Path("layer_5") / "width_16k" / "average_l0_71" / "params.npz"
    with pytest.raises(
        ValueError, match=r"`W_enc` has shape \[6, 4096\], expected .* = \[6, 16384\]|\['d_in', 16384\]"
    ):
        jc.load_sae(npz(tmp_path / "gemma-scope-2b-pt-res" / inside, tensors))
    with pytest.raises(ValueError, match=r"no release of Gemma Scope is known that ends in 'foo'"):
        jc.load_sae(npz(tmp_path / "gemma-scope-2b-pt-foo" / inside, tensors))
    other = Path("layer_5") / "width_17k" / "average_l0_71" / "params.npz"
    with pytest.raises(ValueError, match=r"its width is '17k'; expected one of 1k"):
        jc.load_sae(npz(tmp_path / "gemma-scope-2b-pt-res" / other, tensors))


@pytest.mark.parametrize("compressed", [False, True])
def test_a_truncated_archive_is_refused(tmp_path, compressed):
    path = npz(tmp_path / "params.npz", positive(random(NPZ), "threshold"), compressed=compressed)
    held = path.read_bytes()
    for left in (held[:-40], held[: len(held) // 2], b""):
        path.write_bytes(left)
        with pytest.raises(ValueError, match=r"params.npz is not a whole NumPy archive .* download it again"):
            jc.load_sae(path, site="hook_embed")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="It looks like a Git LFS pointer"):
        jc.load_sae(path, site="hook_embed")
    np.savez(path, W_enc=np.asarray([{}, None], dtype=object))
    with pytest.raises(ValueError, match=r"not a whole NumPy archive .*Python objects"):
        jc.load_sae(path, site="hook_embed")


SCOPE_2 = {"w_enc": (D, F), "w_dec": (F, OUT), "b_enc": (F,), "b_dec": (OUT,), "threshold": (F,)}
HOOKS = {
    "resid_post": ("model.layers.7.output", "blocks.7.hook_resid_post"),
    "attn_out": ("model.layers.7.self_attn.o_proj.input", "blocks.7.attn.hook_z"),
    "mlp_out": ("model.layers.7.post_feedforward_layernorm.output", "blocks.7.hook_mlp_out"),
    "transcoder": ("model.layers.7.pre_feedforward_layernorm.output", "blocks.7.mlp.hook_in"),
}


def scope_2(kind: str, affine: bool):
    shapes = dict(SCOPE_2)
    if kind != "transcoder":
        shapes |= {"w_dec": (F, D), "b_dec": (D,)}
    if affine:
        shapes["affine_skip_connection"] = (D, shapes["b_dec"][0])
    hook_in = HOOKS[kind][0]
    hook_out = HOOKS["mlp_out"][0] if kind == "transcoder" else hook_in
    config = {"hf_hook_point_in": hook_in, "hf_hook_point_out": hook_out, "width": F, "affine_connection": affine}
    config |= {"model_name": "google/gemma-3-270m", "architecture": "jump_relu", "l0": 20, "type": kind}
    return positive(random(shapes), "threshold"), config


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("kind", HOOKS)
def test_gemma_scope_2(tmp_path, kind, affine):
    tensors, config = scope_2(kind, affine)
    folder = f"{kind}_all/layer_7_width_16k_l0_small{'_affine' if affine else ''}"
    sae = jc.load_sae(write(tmp_path / folder / "params.safetensors", tensors, config=config))
    t, x = doubles(tensors), inputs().astype(np.float64)
    acts = jumps(x @ t["w_enc"] + t["b_enc"], t["threshold"])
    recon = acts @ t["w_dec"] + t["b_dec"]
    check(sae, acts, recon + x @ t["affine_skip_connection"] if affine else recon)
    site = "blocks.7.hook_mlp_out" if kind == "transcoder" else HOOKS[kind][1]
    assert (*ends(sae), sae.processing) == (HOOKS[kind][1], site, ())
    assert isinstance(sae, saes.Transcoder) == (kind == "transcoder" or affine)
    assert names(jc.load_saes(tmp_path)) == [site]


@pytest.mark.parametrize("kind", HOOKS)
def test_gemma_scope_2_without_its_configuration_goes_by_its_path(tmp_path, kind):
    shapes = {**SCOPE_2, "w_enc": (D, 1024), "w_dec": (1024, D), "b_enc": (1024,), "b_dec": (D,), "threshold": (1024,)}
    tensors = positive(random(shapes), "threshold")
    path = write(tmp_path / kind / "layer_7_width_1k_l0_big" / "params.safetensors", tensors)
    site = "blocks.7.hook_mlp_out" if kind == "transcoder" else HOOKS[kind][1]
    assert ends(jc.load_sae(path)) == (HOOKS[kind][1], site)
    path = write(tmp_path / "other" / "params.safetensors", tensors)
    with pytest.raises(ValueError, match="nothing says of which site it is"):
        jc.load_sae(path)
    assert ends(jc.load_sae(path, site="hook_embed")) == ("hook_embed", "hook_embed")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "topk"}, "architecture 'topk' is not supported. Supported is jump_relu"),
        ({"type": "crosscoder"}, "says that it is a crosscoder. Crosscoders are not supported"),
        ({"type": "clt"}, "says that it is a clt. Use jc.load_cross_layer_transcoder"),
        ({"affine_connection": True}, "affine_connection = True, and the file holds no `affine_skip_connection`"),
        ({"hf_hook_point_in": "model.layers.7.mlp.input"}, "hf_hook_point_in is .* no site that is known. Known are"),
        ({"width": 16384}, r"`w_enc`|`W_enc` has shape \[6, 10\]"),
    ],
)
def test_unsupported_gemma_scope_2_is_refused(tmp_path, change, message):
    tensors, config = scope_2("transcoder", affine=False)
    with pytest.raises(ValueError, match=message):
        jc.load_sae(write(tmp_path / "params.safetensors", tensors, config={**config, **change}))
    three = {**tensors, "w_dec": np.ones((F, 3, OUT), np.float32)}
    with pytest.raises(ValueError, match=r"has an axis of layers: it is a CLT. Use jc.load_cross_layer_transcoder"):
        jc.load_sae(write(tmp_path / "params.safetensors", three, config=config))


# circuit-tracer

TRACER = {"W_enc": (F, D), "W_dec": (F, OUT), "b_enc": (F,), "b_dec": (OUT,)}
THRESHOLD = "activation_function.threshold"
SET = {"model_kind": "transcoder_set", "model_name": "meta-llama/Llama-3.2-1B", "scan": "llama"}
SET |= {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"}


def as_yaml(folder: Path, config, name: str = "config.yaml") -> Path:
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


def tracer_forward(tensors, config):
    t, x = doubles(tensors), inputs().astype(np.float64)
    h = x @ t["W_enc"].T + t["b_enc"]
    kind = config.get("activation") or ("jump" if THRESHOLD in t else "relu")
    acts = {"relu": relu, "topk": lambda h: top(h, config.get("k")), "jump": lambda h: jumps(h, t[THRESHOLD])}[kind](h)
    recon = acts @ t["W_dec"] + t["b_dec"]
    return acts, recon + x @ t["W_skip"].T if "W_skip" in t else recon


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize(
    ("activation", "threshold"),
    [({}, False), ({}, True), ({"activation": "relu"}, True), ({"activation": "topk", "k": 3}, False)],
)
def test_circuit_tracer_sets(tmp_path, activation, threshold, skips):
    shapes = {**TRACER, **({THRESHOLD: (F,)} if threshold else {}), **({"W_skip": (OUT, D)} if skips else {})}
    held = [positive(random(shapes, layer), *([THRESHOLD] if threshold else [])) for layer in range(11)]
    config = {**SET, **activation}
    for layer, tensors in enumerate(held):
        write(tmp_path / f"layer_{layer}.safetensors", {**tensors, "k": np.asarray(3, np.int32)})
    loaded = jc.load_saes(as_yaml(tmp_path, config))
    assert names(loaded) == [f"blocks.{layer}.hook_mlp_out" for layer in range(11)]
    for layer in (0, 2, 10):
        sae = loaded[f"blocks.{layer}.hook_mlp_out"]
        check(sae, *tracer_forward(held[layer], config))
        assert ends(sae) == (f"blocks.{layer}.mlp.hook_in", f"blocks.{layer}.hook_mlp_out")
        single = jc.load_sae(tmp_path / f"layer_{layer}.safetensors")
        check(single, *tracer_forward(held[layer], config))
        assert ends(single) == ends(sae)


def test_top_k_of_circuit_tracer_keeps_negative_latents(tmp_path):
    tensors = random(TRACER)
    tensors["b_enc"] -= 20
    write(tmp_path / "layer_0.safetensors", tensors)
    as_yaml(tmp_path, {**SET, "activation": "topk", "k": 4})
    acts, recon = tracer_forward(tensors, {"activation": "topk", "k": 4})
    assert acts.min() < 0
    check(jc.load_sae(tmp_path / "layer_0.safetensors"), acts, recon)
    as_yaml(tmp_path, {**SET, "activation": "topk"})
    with pytest.raises(ValueError, match=r"activation topk without its `k` in config.yaml"):
        jc.load_sae(tmp_path / "layer_0.safetensors")
    check(jc.load_sae(tmp_path / "layer_0.safetensors", k=4), acts, recon)


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("hook_resid_mid", "blocks.0.hook_resid_mid"),
        ("mlp.hook_in", "blocks.0.mlp.hook_in"),
        ("ln2.hook_normalized", "blocks.0.ln2.hook_normalized"),
    ],
)
def test_hooks_of_circuit_tracer(tmp_path, hook, site):
    write(tmp_path / "layer_0.safetensors", random(TRACER))
    as_yaml(tmp_path, {**SET, "feature_input_hook": hook, "feature_output_hook": "hook_mlp_out"})
    assert ends(jc.load_sae(tmp_path / "layer_0.safetensors")) == (site, "blocks.0.hook_mlp_out")


def test_a_list_of_transcoders_is_read_where_they_lie(tmp_path, monkeypatch):
    """In other folders, in other formats, and on the Hub; each says what it is by its tensors."""
    hub, asked = tmp_path / "hub", []

    def snapshot_download(repository, *, revision, allow_patterns):
        asked.append((repository, revision, allow_patterns[0]))
        return str(hub)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    scope = positive(random({**NPZ, "W_dec": (4096, OUT), "b_dec": (OUT,)}), "threshold")
    place = "layer_0/width_4k/average_l0_76/params.npz"
    npz(hub / place, scope)
    own = random(TRACER, 1)
    write(tmp_path / "set" / "elsewhere" / "one.safetensors", own)
    affine, about = scope_2("transcoder", affine=True)
    two = "transcoder_all/layer_2_width_16k_l0_small_affine/params.safetensors"
    write(tmp_path / "set" / two, affine, config=json.loads(json.dumps(about).replace("layers.7", "layers.2")))
    paths = [f"hf://google/gemma-scope-2b-pt-transcoders/{place}?revision=abc", "elsewhere/one.safetensors", two]
    config = {**SET, "feature_input_hook": "ln2.hook_normalized", "transcoders": paths[:1]}
    loaded = jc.load_saes(as_yaml(tmp_path / "first", config))
    t, x = doubles(scope), inputs().astype(np.float64)
    acts = jumps(x @ t["W_enc"] + t["b_enc"], t["threshold"])
    check(loaded["blocks.0.hook_mlp_out"], acts, acts @ t["W_dec"] + t["b_dec"])
    assert ends(loaded["blocks.0.hook_mlp_out"]) == ("blocks.0.ln2.hook_normalized", "blocks.0.hook_mlp_out")
    assert asked == [("google/gemma-scope-2b-pt-transcoders", "abc", place)]
    with pytest.raises(
        ValueError, match=r"ambiguous, its path says `blocks.0.ln2.hook_normalized` and config.yaml says"
    ):
        jc.load_saes(as_yaml(tmp_path / "set", {**SET, "transcoders": paths}))
    loaded = jc.load_saes(as_yaml(tmp_path / "set", {**SET, "transcoders": [paths[1], paths[1], paths[2]]}))
    assert [ends(sae)[0] for sae in loaded.values()] == [f"blocks.{i}.mlp.hook_in" for i in range(3)]
    check(loaded["blocks.1.hook_mlp_out"], *tracer_forward(own, {}))
    with pytest.raises(ValueError, match=r"config.yaml lists nowhere.safetensors, and there is no such file"):
        jc.load_saes(as_yaml(tmp_path / "set", {**SET, "transcoders": ["nowhere.safetensors"]}))
    with pytest.raises(ValueError, match="`transcoders` must be a list of paths"):
        jc.load_saes(as_yaml(tmp_path / "set", {**SET, "transcoders": [{"layer": 0}]}))


@pytest.mark.parametrize("spelt", ["wandb-config.yaml", "wanb-config.yaml"])
def test_qwen3_transcoders_without_config_yaml(tmp_path, spelt):
    """They are recognised by the configuration of their training, whose name is spelt in two ways."""
    tensors = random(TRACER)
    path = write(tmp_path / "layer_12.safetensors", tensors)
    with pytest.raises(ValueError, match=r"nothing says where it reads .* no config.yaml beside it"):
        jc.load_sae(path)
    as_yaml(tmp_path, {"d_model": {"value": D}}, spelt)
    sae = jc.load_sae(path)
    check(sae, *tracer_forward(tensors, {}))
    assert ends(sae) == ("blocks.12.mlp.hook_in", "blocks.12.hook_mlp_out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature_input_hook": "hook_mlp_in"}, "feature_input_hook of config.yaml is 'hook_mlp_in'; expected one of"),
        ({"feature_output_hook": None}, "feature_output_hook of config.yaml is None; expected one of"),
        ({"activation": "gelu"}, "activation 'gelu' of config.yaml is not supported. Supported are relu and topk"),
        ({"model_kind": "crosscoder"}, "model_kind 'crosscoder' is not supported"),
        ({"model_kind": "cross_layer_transcoder"}, "Use jc.load_cross_layer_transcoder"),
    ],
)
def test_unsupported_sets_are_refused(tmp_path, change, message):
    write(tmp_path / "layer_0.safetensors", random(TRACER))
    with pytest.raises(ValueError, match=message):
        jc.load_saes(as_yaml(tmp_path, {**SET, **change}))


def test_damaged_sets_are_refused(tmp_path):
    for layer in (0, 2):
        write(tmp_path / f"layer_{layer}.safetensors", random(TRACER))
    as_yaml(tmp_path, SET)
    with pytest.raises(
        ValueError, match=r"there are 2: name one. .* jc.load_saes reads the set that config.yaml is of"
    ):
        jc.load_sae(tmp_path)
    with pytest.raises(ValueError, match=r"layer_1.safetensors is missing, and there is one for layer 2"):
        jc.load_saes(as_yaml(tmp_path, SET))
    (tmp_path / "config.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(ValueError, match=r"config.yaml is not YAML"):
        jc.load_saes(tmp_path)
    (tmp_path / "config.yaml").write_text("- a", encoding="utf-8")
    with pytest.raises(ValueError, match=r"expected a YAML mapping, got a list"):
        jc.load_saes(tmp_path)
    with pytest.raises(ValueError, match=r"lists no transcoders, and no layer_0.safetensors"):
        jc.load_saes(as_yaml(tmp_path / "empty", SET))


# sparsify, of families with a norm behind each sublayer


def test_sparsify_where_a_norm_follows_the_module(tmp_path):
    tensors = random({"encoder.weight": (F, D), "encoder.bias": (F,), "W_dec": (F, D), "b_dec": (D,)})
    config = {"k": 3, "num_latents": F, "d_in": D, "transcode": True}
    for model, site in (("HuggingFaceTB/SmolLM2-135M", "hook_mlp_out"), ("google/gemma-2-2b", "mlp.hook_out")):
        path = write(tmp_path / "layers.4.mlp" / "sae.safetensors", tensors, cfg=config)
        (tmp_path / "config.json").write_text(json.dumps({"model": model}))
        assert ends(jc.load_sae(path)) == ("blocks.4.mlp.hook_in", f"blocks.4.{site}")


# Llama Scope and llamascopium


@pytest.mark.parametrize("by_norm", [False, True])
@pytest.mark.parametrize(("letter", "hook"), [("R", "hook_resid_post"), ("M", "hook_mlp_out"), ("A", "hook_attn_out")])
def test_llama_scope(tmp_path, letter, hook, by_norm):
    shapes = {**LINEAR, "decoder.bias": (D,)}
    tensors = random(shapes)
    name, norm_in, norm_out = f"blocks.15.{hook}", 1.7, 4.1
    config = {"d_model": D, "d_sae": F, "hook_point_in": name, "hook_point_out": name, "jump_relu_threshold": 6.0}
    config |= {"dataset_average_activation_norm": {"in": norm_in, "out": norm_out}, "lr": 1e-3}
    config |= {"sparsity_include_decoder_norm": by_norm}
    folder = tmp_path / f"Llama3_1-8B-Base-L15{letter}-8x"
    path = write(folder / "checkpoints" / "final.safetensors", tensors)
    (folder / "hyperparams.json").write_text(json.dumps(config))
    t, x = doubles(tensors), inputs().astype(np.float64)
    s, s_out = D**0.5 / norm_in, D**0.5 / norm_out
    W_d = t["decoder.weight"].T * (s / s_out)
    norms = np.linalg.norm(W_d, axis=1) if by_norm else np.ones(F)
    acts = jumps((x @ t["encoder.weight"].T + t["encoder.bias"] / s) * norms, 6.0)
    for sae in (jc.load_sae(path), jc.load_sae(folder), jc.load_saes(tmp_path)[name]):
        check(sae, acts, (acts / norms) @ W_d + t["decoder.bias"] / s_out)
        assert ends(sae) == (name, name)
    (folder / "hyperparams.json").unlink()
    with pytest.raises(ValueError, match=r"without its hyperparams.json, which lies one folder above"):
        jc.load_sae(path)


def test_llama_scope_of_r1(tmp_path):
    tensors = random({**LINEAR, "decoder.bias": (D,), "log_jumprelu_threshold": (F,)})
    config = {"d_model": D, "hook_point_in": "blocks.5.hook_resid_post", "hook_point_out": "blocks.5.hook_resid_post"}
    sae = jc.load_sae(write(tmp_path / "sae_weights.safetensors", tensors, config=config))
    t = doubles(tensors)
    acts = jumps(inputs() @ t["encoder.weight"].T + t["encoder.bias"], np.exp(t["log_jumprelu_threshold"]))
    check(sae, acts, acts @ t["decoder.weight"].T + t["decoder.bias"])
    assert ends(sae) == ("blocks.5.hook_resid_post", "blocks.5.hook_resid_post")


SCOPIUM = {"W_E": (D, F), "b_E": (F,), "W_D": (F, D), "b_D": (D,)}
SCOPIUM_CFG = {"sae_type": "sae", "d_model": D, "expansion_factor": F / D, "hook_point_in": "blocks.1.hook_mlp_out"}
SCOPIUM_CFG |= {"hook_point_out": "blocks.1.hook_mlp_out", "use_glu_encoder": False, "top_k": 3}
LOG = "activation_function.log_jumprelu_threshold"


@pytest.mark.parametrize("by_norm", [False, True])
@pytest.mark.parametrize("mode", ["inference", "dataset-wise"])
@pytest.mark.parametrize("act_fn", ["relu", "jumprelu", "topk"])
@pytest.mark.parametrize("predicts", [False, True])
def test_llamascopium(tmp_path, act_fn, mode, by_norm, predicts):
    tensors = random({**SCOPIUM, **({LOG: (F,)} if act_fn == "jumprelu" else {})})
    if act_fn != "relu":
        tensors["W_D"][2] = 0  # its latent times norm is 0: never on
    config = {**SCOPIUM_CFG, "act_fn": act_fn, "norm_activation": mode, "sparsity_include_decoder_norm": by_norm}
    config |= {"hook_point_in": "blocks.1.hook_resid_mid"} if predicts else {}
    norms = {"in": 1.7, "out": 4.1 if predicts else 1.7}
    hooks = {config[f"hook_point_{side}"]: np.asarray(norm, np.float32) for side, norm in norms.items()}
    nothing = np.asarray(np.nan, np.float32)  # what no mean was ever written to
    stored = {f"dataset_average_activation_norm.{h}": nothing if mode == "inference" else n for h, n in hooks.items()}
    sae = jc.load_sae(write(tmp_path / "sae_weights.safetensors", {**tensors, **stored}, config=config))
    t, x = doubles(tensors), inputs().astype(np.float64)
    s, s_out = (D**0.5 / norms[side] if mode == "dataset-wise" else 1.0 for side in ("in", "out"))
    h = (s * x) @ t["W_E"] + t["b_E"]
    n = np.linalg.norm(t["W_D"], axis=1) if by_norm else np.ones(F)
    decided = {
        "relu": relu,
        "topk": lambda h: relu(top(h, 3)),
        "jumprelu": lambda h: h * (h > np.exp(t.get(LOG, 0.0))),
    }[act_fn](h * n)
    acts = np.where(decided != 0, h, 0)
    check(sae, acts * n if act_fn == "topk" else acts, (acts @ t["W_D"] + t["b_D"]) / s_out)
    assert ends(sae) == (config["hook_point_in"], "blocks.1.hook_mlp_out")


def test_llamascopium_without_a_decoder_bias(tmp_path):
    tensors = random(SCOPIUM)
    del tensors["b_D"]
    config = {**SCOPIUM_CFG, "act_fn": "relu", "norm_activation": "inference"}
    t = doubles(tensors)
    acts = relu(inputs() @ t["W_E"] + t["b_E"])
    check(jc.load_sae(write(tmp_path / "sae_weights.safetensors", tensors, config=config)), acts, acts @ t["W_D"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"norm_activation": "token-wise"},
            "norm_activation 'token-wise' is not supported. Supported are dataset-wise",
        ),
        ({"norm_activation": "batch-wise"}, "norm_activation 'batch-wise' is not supported"),
        ({"norm_activation": "dataset-wise"}, "misses `dataset_average_activation_norm.blocks.1.hook_mlp_out`"),
        ({"sae_type": "clt"}, "sae_type 'clt' is not supported"),
        ({"sae_type": "lorsa"}, "sae_type 'lorsa' is not supported"),
        ({"sae_type": "crosscoder"}, "sae_type 'crosscoder' is not supported"),
        ({"sae_type": "molt"}, "sae_type 'molt' is not supported"),
        ({"use_glu_encoder": True}, "an encoder with gates"),
        ({"act_fn": "batchtopk"}, "act_fn 'batchtopk' is not supported. .* depend on the rest of the batch"),
        ({"act_fn": "jumprelu"}, "act_fn is jumprelu, and the file holds no `activation_function.log"),
        ({"hook_point_in": "blocks.1.hook_foo"}, "hook_point_in is 'blocks.1.hook_foo'. No site is called"),
    ],
)
def test_unsupported_llamascopium_is_refused(tmp_path, change, message):
    config = {**SCOPIUM_CFG, "act_fn": "relu", "norm_activation": "inference", **change}
    with pytest.raises(ValueError, match=message):
        jc.load_sae(write(tmp_path / "sae_weights.safetensors", random(SCOPIUM), config=config))


# One file a layer


@pytest.mark.parametrize(
    ("suffix", "name"), [("_linear", "Llama-3.1-8B-Instruct-SAE-l19"), ("", "DeepSeek-R1-Distill-Llama-8B-SAE-l19")]
)
def test_goodfire_and_qresearch(tmp_path, suffix, name):
    names = {f"encoder{suffix}.weight": (F, D), f"encoder{suffix}.bias": (F,)}
    names |= {f"decoder{suffix}.weight": (D, F), f"decoder{suffix}.bias": (D,)}
    tensors = {name: array.astype(ml_dtypes.bfloat16) for name, array in random(names).items()}
    sae = jc.load_sae(write(tmp_path / f"{name}.safetensors", tensors))
    t = {name.replace("_linear", ""): array for name, array in doubles(tensors).items()}
    acts = relu(inputs() @ t["encoder.weight"].T + t["encoder.bias"])
    check(sae, acts, acts @ t["decoder.weight"].T + t["decoder.bias"])
    assert ends(sae) == ("blocks.19.hook_resid_post", "blocks.19.hook_resid_post")
    assert sae.W_enc.dtype == jnp.float32


QWEN = {"W_enc": (1024, D), "W_dec": (D, 1024), "b_enc": (1024,), "b_dec": (D,)}


def test_qwen_scope(tmp_path):
    """Exactly k latents are on, whatever their sign; k and the number of latents are in the repository's name."""
    tensors = random(QWEN)
    tensors["b_enc"] -= 30
    sae = jc.load_sae(write(tmp_path / "SAE-Res-Qwen3-1.7B-Base-W1K-L0_7" / "layer5.sae.safetensors", tensors))
    t = doubles(tensors)
    acts = top(inputs() @ t["W_enc"].T + t["b_enc"], 7)
    assert acts.min() < 0
    check(sae, acts, acts @ t["W_dec"].T + t["b_dec"])
    assert ends(sae) == ("blocks.5.hook_resid_post", "blocks.5.hook_resid_post")
    with pytest.raises(ValueError, match="k=6 was asked for, and the repository's name says 7"):
        jc.load_sae(tmp_path / "SAE-Res-Qwen3-1.7B-Base-W1K-L0_7", k=6)
    other = write(tmp_path / "layer5.sae.safetensors", tensors)
    with pytest.raises(ValueError, match=r"stands in the name of its repository alone, .* Pass k="):
        jc.load_sae(other)
    check(jc.load_sae(other, k=7), acts, acts @ t["W_dec"].T + t["b_dec"])
    wrong = write(tmp_path / "SAE-Res-Qwen3-1.7B-Base-W2K-L0_7" / "layer5.sae.safetensors", tensors)
    with pytest.raises(ValueError, match=r"`W_enc` has shape \[1024, 6\]"):
        jc.load_sae(wrong)


# SAELens' newer words


def test_saelens_abstopk(tmp_path):
    tensors = random(PLAIN)
    config = {**V6, "architecture": "abstopk", "k": 4}
    sae = jc.load_sae(write(tmp_path / "sae_weights.safetensors", tensors, cfg=config))
    t = doubles(tensors)
    h = (inputs() - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    acts = np.sign(h) * top(np.abs(h), 4)
    assert acts.min() < 0 < acts.max()
    check(sae, acts, acts @ t["W_dec"] + t["b_dec"])
    jc.save_sae(sae, tmp_path / "saved")
    check(jc.load_sae(tmp_path / "saved"), acts, acts @ t["W_dec"] + t["b_dec"])
    with pytest.raises(ValueError, match="an abstopk dictionary without `k`"):
        jc.load_sae(write(tmp_path / "sae_weights.safetensors", tensors, cfg={**config, "k": None}))


def test_saelens_constant_scalar_rescale(tmp_path):
    tensors = random(PLAIN)
    config = {**V6, "architecture": "standard", "normalize_activations": "constant_scalar_rescale"}
    factor = {"activation_normalization_factor": 0.4}
    sae = jc.load_sae(write(tmp_path / "sae_weights.safetensors", tensors, cfg={**config, **factor}))
    t = doubles(tensors)
    acts = relu((0.4 * inputs() - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    check(sae, acts, (acts @ t["W_dec"] + t["b_dec"]) / 0.4)
    with pytest.raises(ValueError, match=r"`activation_normalization_factor` of cfg.json is None; expected the number"):
        jc.load_sae(write(tmp_path / "sae_weights.safetensors", tensors, cfg=config))


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_saelens_scalar_rescale_beside_rescaling_by_norms(tmp_path, architecture):
    """The norms are those of the stored directions: the scalar is no part of them."""
    tensors = random(PLAIN)
    normalisation = {"normalize_activations": "constant_scalar_rescale", "activation_normalization_factor": 3.0}
    config = {**V6, **normalisation, "architecture": architecture, "k": 4, "rescale_acts_by_decoder_norm": True}
    stored = {**tensors, **({"topk_threshold": np.asarray(6.0)} if architecture == "batchtopk" else {})}
    sae = jc.load_sae(write(tmp_path / "sae_weights.safetensors", stored, cfg=config))
    t = doubles(tensors)
    norms = np.linalg.norm(t["W_dec"], axis=1)
    h = ((3.0 * inputs() - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * norms
    acts = relu(top(h, 4)) if architecture == "topk" else relu(h) * (h > 6.0)
    assert 0 < (acts > 0).sum() < (h > 0).sum()
    check(sae, acts, ((acts / norms) @ t["W_dec"] + t["b_dec"]) / 3.0)


NORMALIZED = "blocks.1.ln2.hook_normalized"
UNFOLDED, FOLDED = {"fold_ln": False}, {"fold_ln": True}


@pytest.mark.parametrize(
    ("model", "kwargs", "reads"),
    [
        ("gpt2", UNFOLDED, "blocks.1.mlp.hook_in"),  # a layer norm's value after weight and bias
        ("EleutherAI/pythia-70m-deduped", UNFOLDED, "blocks.1.mlp.hook_in"),
        ("gpt2", FOLDED, NORMALIZED),  # the same either way
        ("gpt2", None, NORMALIZED),  # not known
        ("gemma-2-2b", UNFOLDED, NORMALIZED),  # an RMS norm's, before the weight in every version
        ("meta-llama/Llama-3.2-1B", UNFOLDED, NORMALIZED),
    ],
)
def test_what_a_normalized_hook_of_older_files_means(tmp_path, model, kwargs, reads):
    shapes = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, OUT), "b_dec": (OUT,)}
    metadata = {"sae_lens_version": "6.2.0", "model_name": model, "hook_name": NORMALIZED}
    metadata |= {} if kwargs is None else {"model_from_pretrained_kwargs": kwargs}
    config = {**V6, "architecture": "transcoder", "d_out": OUT, "metadata": metadata}
    sae = jc.load_sae(write(tmp_path / "sae_weights.safetensors", random(shapes), cfg=config))
    assert ends(sae) == (reads, "blocks.1.hook_mlp_out")
    ours = dataclasses.replace(sae, reads=jc.Site.parse(NORMALIZED))
    jc.save_sae(ours, tmp_path / "saved", metadata={"model_name": model})
    assert ends(jc.load_sae(tmp_path / "saved")) == (NORMALIZED, "blocks.1.hook_mlp_out"), "our own word is ours"


def test_saelens_hook_mlp_in_is_what_its_module_says(tmp_path):
    shapes = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, OUT), "b_dec": (OUT,), "threshold": (F,)}
    metadata = {"sae_lens_version": "6.50.0", "hook_name": "blocks.3.hook_mlp_in"}
    metadata |= {"hook_name_out": "blocks.3.hook_mlp_out"}
    config = {**V6, "architecture": "jumprelu_transcoder", "d_out": OUT, "metadata": metadata}
    path = write(tmp_path / "sae_weights.safetensors", random(shapes), cfg=config)
    with pytest.raises(ValueError, match=r"'blocks.3.hook_mlp_in', which is the stream before the norm to some"):
        jc.load_sae(path)
    metadata["hf_hook_name"] = "model.layers.3.pre_feedforward_layernorm.output"
    path = write(tmp_path / "sae_weights.safetensors", random(shapes), cfg=config)
    assert ends(jc.load_sae(path)) == ("blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out")


# What is refused by name


def test_formats_that_are_refused_by_name(tmp_path):
    temporal = {"D": (F, D), "E": (D, F), "b": (D,), "attn_layers.0.W_q": (D, D)}
    with pytest.raises(
        ValueError, match="is a temporal SAE, which load_sae does not read: its latents attend to earlier"
    ):
        jc.load_sae(write(tmp_path / "temporal.safetensors", random(temporal)))
    one = write(tmp_path / "W_enc_0.safetensors", random({"W_enc_0": (F, D), "b_enc_0": (F,), "b_dec_0": (D,)}))
    with pytest.raises(ValueError, match=r"one layer of a cross-layer transcoder, .* jc.load_cross_layer_transcoder"):
        jc.load_sae(one)


# Some latents alone


def chosen_of(sae, some, which, x):
    """`some` is `sae` with the latents `which` alone."""
    assert_close(some.W_dec, np.asarray(sae.W_dec)[which])
    assert_close(some.W_enc, np.asarray(sae.W_enc)[:, which])
    assert_close(some.encode(x), np.asarray(sae.encode(x))[:, which])


@pytest.mark.parametrize("which", [[7], [3, 4, 5, 1, 9], [5, 5, 0]])
def test_some_latents_of_each_format(tmp_path, which):
    x = jnp.asarray(inputs())
    dictionary_learning = write(tmp_path / "ae.safetensors", random({"bias": (D,), **LINEAR}))
    llamascopium = {**SCOPIUM_CFG, "act_fn": "relu", "norm_activation": "inference"}
    tracer = write(tmp_path / "set" / "layer_3.safetensors", random(TRACER))
    as_yaml(tmp_path / "set", SET)
    threshold = {"log_threshold": (F,)}
    paths = [
        dictionary_learning,
        tracer,
        write(
            tmp_path / "b" / "sae_weights.safetensors",
            random({**PLAIN, **threshold}),
            cfg={**V6, "architecture": "jumprelu"},
        ),
        write(tmp_path / "c" / "sae_weights.safetensors", random(SCOPIUM), config=llamascopium),
        write(
            tmp_path / "d" / "params.safetensors",
            *[scope_2("mlp_out", affine=False)[0]],
            config=scope_2("mlp_out", affine=False)[1],
        ),
    ]
    for path in paths:
        chosen_of(jc.load_sae(path), jc.load_sae(path, latents=which), which, x)


@pytest.mark.parametrize("compressed", [False, True])
def test_some_latents_of_an_archive(tmp_path, compressed):
    path = npz(tmp_path / "params.npz", positive(random(NPZ), "threshold"), compressed=compressed)
    load = lambda **given: jc.load_sae(path, site="blocks.0.hook_resid_post", **given)
    chosen_of(load(), load(latents=range(4000, 4096)), list(range(4000, 4096)), jnp.asarray(inputs()))


def test_of_an_archive_nothing_but_the_latents_is_read(tmp_path, monkeypatch):
    """The numbers that are not asked for may be anything, and no copy of the whole is made."""
    tensors = positive(random(NPZ), "threshold")
    tensors["W_dec"][5:] = np.nan
    tensors["W_enc"][:, 5:] = np.nan
    path = npz(tmp_path / "params.npz", tensors)
    monkeypatch.setattr(np, "load", lambda *args, **kwargs: pytest.fail("the archive was read whole"))
    some = jc.load_sae(path, site="blocks.0.hook_resid_post", latents=[4, 2])
    assert_close(some.W_dec, tensors["W_dec"][[4, 2]])


def test_of_a_safetensors_file_nothing_but_the_latents_is_read(tmp_path, monkeypatch):
    tensors = random(TRACER)
    path = write(tmp_path / "layer_0.safetensors", {**tensors, "W_dec": tensors["W_dec"].astype(ml_dtypes.bfloat16)})
    as_yaml(tmp_path, SET)
    import jaxcirc.interop.dictionaries._stored as stored

    read, sizes = stored.read_tensor, []

    def reading(file, name, path, index=...):
        array = read(file, name, path, index)
        sizes.append((name, array.size))
        return array

    monkeypatch.setattr(stored, "read_tensor", reading)
    some = jc.load_sae(path, latents=[9, 3, 2])
    assert_close(some.W_dec, tensors["W_dec"].astype(ml_dtypes.bfloat16)[[9, 3, 2]].astype(np.float32))
    assert sum(size for name, size in sizes if name == "W_dec") == 3 * OUT
    assert sum(size for name, size in sizes if name == "W_enc") == 3 * D


def test_latents_that_compete_are_not_encoded_alone(tmp_path):
    tensors = random(PLAIN)
    path = write(tmp_path / "sae_weights.safetensors", tensors, cfg={**V6, "architecture": "topk", "k": 3})
    some = jc.load_sae(path, latents=[2, 8])
    assert_close(some.W_dec, tensors["W_dec"][[2, 8]])
    with pytest.raises(ValueError, match=r"only 2 latents were read \(latents=…\), and TopK compares all of them"):
        some.encode(jnp.asarray(inputs()))


def test_latents_that_compete_in_every_format(tmp_path):
    """Fewer are read than are on, which is no error of theirs."""
    as_yaml(tmp_path / "set", {**SET, "activation": "topk", "k": 3})
    groups = write(
        tmp_path / "layers.5" / "sae.safetensors",
        random({"encoder.weight": (F, D), "encoder.bias": (F,), "W_dec": (F, D), "b_dec": (D,)}),
        cfg={"d_in": D, "num_latents": F, "k": 5, "activation": "groupmax"},
    )
    scopium = {**SCOPIUM_CFG, "act_fn": "topk", "top_k": 3, "norm_activation": "inference"}
    topk = {"b_dec": (D,), **LINEAR}
    tracer = {name: shape for name, shape in TRACER.items() if name != "threshold"}
    paths = [
        write(tmp_path / "set" / "layer_3.safetensors", random(tracer)),
        groups,
        write(tmp_path / "c" / "sae_weights.safetensors", random(SCOPIUM), config=scopium),
        write(tmp_path / "ae.safetensors", {**random(topk), "k": np.asarray(3, np.int32)}),
    ]
    for path in paths:
        some = jc.load_sae(path, latents=[7])
        assert_close(some.W_enc, np.asarray(jc.load_sae(path).W_enc)[:, [7]])
        with pytest.raises(ValueError, match="only 1 latents were read"):
            some.encode(jnp.asarray(inputs()))


def test_latents_that_are_not_there_are_refused(tmp_path):
    path = write(tmp_path / "sae_weights.safetensors", random(PLAIN), cfg={**V6, "architecture": "standard"})
    with pytest.raises(ValueError, match=r"has 10 latents, from 0 on, and latents=… asks for -1 to 10"):
        jc.load_sae(path, latents=[3, -1, 10])
    with pytest.raises(ValueError, match=r"latents=…: the mask has 3 entries, and there are 10 latents"):
        jc.load_sae(path, latents=[True, False, True])


def test_latents_by_a_mask(tmp_path):
    path = write(tmp_path / "sae_weights.safetensors", random(PLAIN), cfg={**V6, "architecture": "standard"})
    alive = np.arange(F) % 3 == 0
    some = jc.load_sae(path, latents=alive)
    assert some.d_sae == 4
    assert_close(some.W_dec, jc.load_sae(path).W_dec[alive])


@pytest.mark.usefixtures("untyped")
def test_latents_are_a_list(tmp_path):
    path = write(tmp_path / "sae_weights.safetensors", random(PLAIN), cfg={**V6, "architecture": "standard"})
    with pytest.raises(TypeError, match="load_sae: latents: expected a list of numbers"):
        jc.load_sae(path, latents=3)
    with pytest.raises(TypeError, match=r"load_sae: latents: expected the numbers of latents, whole .* got \[2.7\]"):
        jc.load_sae(path, latents=[2.7])


# Readers of one's own


@pytest.fixture
def own_reader():
    """A format of a few numbers in a text file, and nothing of it left behind."""

    def read(source, *, double: bool = False):
        W = np.loadtxt(source.path).astype(np.float32) * (2 if double else 1)
        zeros = lambda n: source.leaf(np.zeros(n, np.float32))
        site = source.site or jc.Site.parse(source.yaml("where.yaml")["site"])
        return saes.SAE(source.leaf(W), zeros(W.shape[1]), source.leaf(W.T), zeros(W.shape[0]), saes.ReLU(), site)

    jc.interop.register_reader("numbers", read, fits=lambda source: source.path.suffix == ".txt", suffixes=[".txt"])
    yield read
    jc.interop.unregister_reader("numbers")


def test_a_reader_of_ones_own(tmp_path, own_reader):
    W = random({"W": (D, F)})["W"]
    np.savetxt(tmp_path / "sae.txt", W)
    (tmp_path / "where.yaml").write_text("site: blocks.2.hook_mlp_out", encoding="utf-8")
    x = inputs().astype(np.float64)
    check(jc.load_sae(tmp_path / "sae.txt"), relu(x @ W), relu(x @ W) @ W.T)
    check(jc.load_sae(tmp_path, double=True), relu(2 * x @ W), relu(2 * x @ W) @ (2 * W.T))
    assert names(jc.load_saes(tmp_path)) == ["blocks.2.hook_mlp_out"]
    assert str(jc.load_sae(tmp_path, format="numbers", site="hook_embed").site) == "hook_embed"
    with pytest.raises(TypeError, match=r"the format numbers has no option `reads`. It has double"):
        jc.load_sae(tmp_path, reads="hook_embed")
    with pytest.raises(ValueError, match="its reader does not read some latents alone"):
        jc.load_sae(tmp_path, latents=[1])
    with pytest.raises(ValueError, match="there is a format called 'numbers' already"):
        jc.interop.register_reader("numbers", own_reader, fits=lambda source: True)
    with pytest.raises(ValueError, match="a suffix begins with a dot, got 'txt'"):
        jc.interop.register_reader("other", own_reader, fits=lambda source: True, suffixes="txt")
    with pytest.raises(ValueError, match="no format called 'saelens' was registered"):
        jc.interop.unregister_reader("saelens")


def test_a_forgotten_reader_leaves_nothing(tmp_path):
    np.savetxt(tmp_path / "sae.txt", np.ones((2, 3)))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"sae.txt is no dictionary: expected a file of tensors"):
            jc.load_sae(tmp_path / "sae.txt")
        jc.interop.register_reader("numbers", lambda source: None, fits=lambda source: False, suffixes=[".txt"])
        with pytest.raises(
            ValueError, match=r"sae.txt holds no named tensors, which are of no known format; .*numbers"
        ):
            jc.load_sae(tmp_path / "sae.txt")
        jc.interop.unregister_reader("numbers")


def test_a_reader_of_ones_own_goes_before_those_that_are_built_in(tmp_path):
    path = write(tmp_path / "sae_weights.safetensors", random(PLAIN), cfg={**V6, "architecture": "standard"})
    marked = lambda source: dataclasses.replace(jc.load_sae(path, format="saelens"), origin="mine")
    jc.interop.register_reader("mine", marked, fits=lambda source: "W_enc" in source.state)
    try:
        assert jc.load_sae(path).origin == "mine"
    finally:
        jc.interop.unregister_reader("mine")
    assert jc.load_sae(path).origin != "mine"


# In a model


def test_a_dictionary_of_another_family_is_refused_by_its_width_and_its_site(tmp_path):
    """Heads that are together as wide as the stream is not, and a site that the model has none of."""
    model = make_model(jax.random.key(0))
    heads = positive(random({**NPZ, "W_enc": (14, 4096), "W_dec": (4096, 14), "b_dec": (14,)}), "threshold")
    place = Path("layer_0") / "width_4k" / "average_l0_71" / "params.npz"
    z = jc.load_saes(npz(tmp_path / "gemma-scope-2b-pt-att" / place, heads).parents[3])
    with pytest.raises(ValueError, match=r"blocks.0.attn.hook_z` maps 14 numbers to 14, and there the model has 12"):
        jc.run(model, tokens_for(model), saes=z)
    behind = dataclasses.replace(
        jc.load_sae(tmp_path / "gemma-scope-2b-pt-att" / place), site=jc.Site.parse("blocks.0.mlp.hook_out")
    )
    with pytest.raises(ValueError, match=r"no site `blocks.0.mlp.hook_out` in"):
        jc.run(model, tokens_for(model), saes={behind.site: behind})

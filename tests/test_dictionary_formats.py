"""Dictionaries from the files of other libraries: each format and each of its quirks against equations in plain NumPy, float64.

The files are made here, as safetensors; PyTorch's own are in `comparison/test_dictionaries_torch.py`.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxcirc as jc
from jaxcirc import saes

from .helpers import assert_close


D, F = 6, 10
LINEAR = {"encoder.weight": (F, D), "encoder.bias": (F,), "decoder.weight": (D, F)}
PLAIN = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}
ALL_STEPS = ("fold_layer_norm", "center_writing", "center_unembed", "fold_value_biases")


def random(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write(path, tensors, **configs):
    """The file, and configurations beside it, `config="{…}"` for `config.json`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.asarray(array, order="C") for name, array in tensors.items()}, path)
    for name, config in configs.items():
        (path.parent / f"{name}.json").write_text(json.dumps(config))
    return path


def doubles(tensors):
    return {name: array.astype(np.float64) for name, array in tensors.items()}


def relu(x):
    return np.maximum(x, 0)


def inputs(width: int = D) -> np.ndarray:
    return np.random.default_rng(9).normal(size=(7, width)).astype(np.float32) * 2 + 0.5


def check(sae, acts, recon, width: int = D):
    """`sae` gives these latents and this reconstruction of `inputs(width)`."""
    x = jnp.asarray(inputs(width))
    assert_close(sae.encode(x), acts, tolerance=1e-5)
    assert_close(sae.decode(sae.encode(x), x), recon, tolerance=1e-5)


def top(pre, k):
    kept = np.zeros_like(pre)
    for row, out in zip(pre, kept, strict=True):
        chosen = np.argsort(-row)[:k]
        out[chosen] = row[chosen]
    return kept


# dictionary_learning


@pytest.mark.parametrize("normalize", [None, True, False])
def test_autoencoder_normalises_its_decoder_unless_told_otherwise(tmp_path, normalize):
    """The April update's are stored under this class with directions of any norm."""
    tensors = random({"bias": (D,), **LINEAR})
    path = write(
        tmp_path / "ae.safetensors", tensors, config={"trainer": {"dict_class": "AutoEncoder", "lm_name": "gpt2"}}
    )
    sae = jc.load_sae(path, **({} if normalize is None else {"normalize_decoder": normalize}))
    t, x = doubles(tensors), inputs()
    acts = relu((x - t["bias"]) @ t["encoder.weight"].T + t["encoder.bias"])
    recon = acts @ t["decoder.weight"].T + t["bias"]
    norms = np.linalg.norm(t["decoder.weight"], axis=0)
    check(sae, acts if normalize is False else acts * norms, recon)
    if normalize is not False:
        assert_close(np.linalg.norm(sae.W_dec, axis=1), np.ones(F), tolerance=1e-5)
    assert f"normalize_decoder={normalize is not False}" in sae.origin
    assert sae.processing == ()


@pytest.mark.parametrize("scaled", [False, True])
def test_autoencoder_new_does_not_centre(tmp_path, scaled):
    tensors = random({**LINEAR, "decoder.bias": (D,)})
    sae = jc.load_sae(write(tmp_path / "ae.safetensors", tensors), scaled_features=scaled)
    t, x = doubles(tensors), inputs()
    acts = relu(x @ t["encoder.weight"].T + t["encoder.bias"])
    recon = acts @ t["decoder.weight"].T + t["decoder.bias"]
    check(sae, acts * np.linalg.norm(t["decoder.weight"], axis=0) if scaled else acts, recon)
    assert sae.processing is None, "no configuration says anything of the model"


def test_gated_autoencoder(tmp_path):
    shapes = {name: (F,) for name in ("r_mag", "gate_bias", "mag_bias")}
    tensors = random({"decoder_bias": (D,), "encoder.weight": (F, D), "decoder.weight": (D, F), **shapes})
    sae = jc.load_sae(write(tmp_path / "ae.safetensors", tensors))
    t, x = doubles(tensors), inputs()
    pi = (x - t["decoder_bias"]) @ t["encoder.weight"].T
    acts = (pi + t["gate_bias"] > 0) * relu(np.exp(t["r_mag"]) * pi + t["mag_bias"])
    check(sae, acts, acts @ t["decoder.weight"].T + t["decoder_bias"])


@pytest.mark.parametrize("centred", [False, True])
def test_jumprelu_autoencoder(tmp_path, centred):
    tensors = random({**PLAIN, "threshold": (F,)})
    tensors["threshold"] = np.abs(tensors["threshold"])
    sae = jc.load_sae(write(tmp_path / "ae.safetensors", tensors), apply_b_dec_to_input=centred)
    t, x = doubles(tensors), inputs()
    q = (x - t["b_dec"] if centred else x) @ t["W_enc"] + t["b_enc"]
    acts = relu(q * (q > t["threshold"]))
    check(sae, acts, acts @ t["W_dec"] + t["b_dec"])


def topk_tensors(threshold: float):
    tensors = random({"b_dec": (D,), **LINEAR})
    return {**tensors, "k": np.asarray(3, np.int32), "threshold": np.asarray(threshold, np.float32)}


def topk_pre(tensors):
    t = doubles(tensors)
    acts = relu((inputs() - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"])
    return acts, lambda f: f @ t["decoder.weight"].T + t["b_dec"]


@pytest.mark.parametrize("by_threshold", [False, True])
def test_autoencoder_topk(tmp_path, by_threshold):
    tensors = topk_tensors(0.8)
    path = write(tmp_path / "ae.safetensors", tensors, config={"trainer": {"dict_class": "AutoEncoderTopK", "k": 3}})
    acts, decode = topk_pre(tensors)
    acts = acts * (acts > 0.8) if by_threshold else top(acts, 3)
    check(jc.load_sae(path, use_threshold=by_threshold), acts, decode(acts))


def test_autoencoder_topk_from_before_thresholds(tmp_path):
    tensors = topk_tensors(0.8)
    del tensors["threshold"]
    path = write(tmp_path / "ae.safetensors", tensors)
    acts, decode = topk_pre(tensors)
    check(jc.load_sae(path), top(acts, 3), decode(top(acts, 3)))
    with pytest.raises(ValueError, match="no `threshold`"):
        jc.load_sae(path, use_threshold=True)


@pytest.mark.parametrize("threshold", [0.8, -1.0])
def test_batchtopk_runs_by_its_threshold(tmp_path, threshold):
    tensors = topk_tensors(threshold)
    path = write(tmp_path / "ae.safetensors", tensors)
    acts, decode = topk_pre(tensors)
    if threshold < 0:
        with pytest.warns(UserWarning, match="threshold is -1.*plain ReLU"):
            sae = jc.load_sae(path, dict_class="BatchTopKSAE")
    else:
        sae = jc.load_sae(path, dict_class="BatchTopKSAE")
        acts = acts * (acts > threshold)
    check(sae, acts, decode(acts))


def test_matryoshka_runs_with_all_its_groups(tmp_path):
    tensors = random(PLAIN)
    extra = {"k": np.asarray(3, np.int32), "threshold": np.asarray(0.5, np.float32), "group_sizes": np.asarray([4, 6])}
    path = write(tmp_path / "ae.safetensors", {**tensors, **extra})
    t = doubles(tensors)
    acts = relu((inputs() - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    acts = acts * (acts > 0.5)
    check(jc.load_sae(path), acts, acts @ t["W_dec"] + t["b_dec"])
    write(path, {**tensors, **extra, "group_sizes": np.asarray([4, 5])})
    with pytest.raises(ValueError, match="`group_sizes` sum to 9, and there are 10 latents"):
        jc.load_sae(path)


def test_an_option_of_another_class_is_refused(tmp_path):
    path = write(tmp_path / "ae.safetensors", random({"bias": (D,), **LINEAR}))
    with pytest.raises(
        ValueError, match="use_threshold=True is for the class AutoEncoderTopK, and this is of the class AutoEncoder"
    ):
        jc.load_sae(path, use_threshold=True)


def test_dictionary_learning_site(tmp_path):
    tensors = random({"bias": (D,), **LINEAR})
    trainer = {"dict_class": "AutoEncoder", "submodule_name": "resid_post_layer_3", "activation_dim": D, "dict_size": F}
    path = write(tmp_path / "a" / "ae.safetensors", tensors, config={"trainer": trainer, "buffer": {"io": "out"}})
    assert str(jc.load_sae(path).site) == "blocks.3.hook_resid_post"
    assert str(jc.load_sae(path, site="hook_embed").site) == "hook_embed"
    write(path, tensors, config={"trainer": trainer, "buffer": {"io": "in"}})
    assert jc.load_sae(path).site is None
    other = write(tmp_path / "mlp_out_layer1" / "10_32768" / "ae.safetensors", tensors, config={"trainer": trainer})
    with pytest.raises(ValueError, match=r"ambiguous, config.json says `blocks.3.hook_resid_post` and its folder says"):
        jc.load_sae(other)


def test_feature_circuits_folder(tmp_path):
    tensors = random({"bias": (D,), **LINEAR})
    for name in ("resid_out_layer0", "embed", "attn_out_layer1", "mlp_out_layer0"):
        write(tmp_path / name / "10_32768" / "ae.safetensors", tensors)
    write(tmp_path / "embed" / "10_32768" / "checkpoints" / "ae_100.safetensors", tensors)
    loaded = jc.load_saes(tmp_path)
    names = ["hook_embed", "blocks.0.hook_mlp_out", "blocks.0.hook_resid_post", "blocks.1.hook_attn_out"]
    assert [str(site) for site in loaded] == names
    assert [str(sae.site) for sae in loaded.values()] == names
    write(tmp_path / "embed" / "5_32768" / "ae.safetensors", tensors)
    with pytest.raises(
        ValueError, match=r"two dictionaries for `hook_embed`, embed/10_32768/ae.safetensors and embed/5_32768"
    ):
        jc.load_saes(tmp_path)
    assert len(jc.load_saes(tmp_path, include="*/10_32768/*")) == 4


# SAELens


def saelens(folder, tensors, **config):
    return write(folder / "sae_weights.safetensors", tensors, cfg=config).parent


V6 = {
    "d_in": D,
    "d_sae": F,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {"sae_lens_version": "6.2.0", "hook_name": "blocks.2.hook_resid_pre", "model_name": "gpt2"},
}


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk", "gated"])
def test_saelens_architectures(tmp_path, architecture, centred):
    tensors, x = random(PLAIN), inputs()
    if architecture == "gated":
        tensors = {**random({name: (F,) for name in ("b_gate", "r_mag", "b_mag")}, 1), **tensors}
        del tensors["b_enc"]
    if architecture == "jumprelu":
        tensors["threshold"] = np.linspace(0, 1, F, dtype=np.float32)
    config = {
        **V6,
        "architecture": architecture,
        "apply_b_dec_to_input": centred,
        **({"k": 3} if architecture == "topk" else {}),
    }
    sae = jc.load_sae(saelens(tmp_path, tensors, **config))
    t = doubles(tensors)
    read = x - t["b_dec"] if centred else x.astype(np.float64)
    if architecture == "gated":
        acts = (read @ t["W_enc"] + t["b_gate"] > 0) * relu(read @ (t["W_enc"] * np.exp(t["r_mag"])) + t["b_mag"])
    else:
        h = read @ t["W_enc"] + t["b_enc"]
        acts = {"standard": relu(h), "topk": relu(top(h, 3)), "jumprelu": relu(h) * (h > t.get("threshold", 0))}[
            architecture
        ]
    check(sae, acts, acts @ t["W_dec"] + t["b_dec"])
    assert str(sae.site) == str(sae.reads) == "blocks.2.hook_resid_pre"


def test_saelens_topk_rescaled_by_decoder_norms(tmp_path):
    tensors = random(PLAIN)
    tensors["W_dec"][3] = 0  # its latent times norm is 0 and it is never among the largest
    sae = jc.load_sae(saelens(tmp_path, tensors, **V6, architecture="topk", k=3, rescale_acts_by_decoder_norm=True))
    t = doubles(tensors)
    norms = np.linalg.norm(t["W_dec"], axis=1)
    acts = relu(top(((inputs() - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * norms, 3))
    check(sae, acts, (acts / np.where(norms == 0, 1, norms)) @ t["W_dec"] + t["b_dec"])


def test_saelens_threshold_as_its_training_writes_it(tmp_path):
    tensors = random({**PLAIN, "log_threshold": (F,)})
    sae = jc.load_sae(saelens(tmp_path, tensors, **V6, architecture="jumprelu"))
    assert isinstance(sae.activation, saes.JumpReLU)
    assert_close(sae.activation.threshold, np.exp(doubles(tensors)["log_threshold"]), tolerance=1e-6)


@pytest.mark.parametrize(
    "architecture", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]
)
def test_saelens_transcoders_never_subtract_b_dec(tmp_path, architecture):
    out = 4
    shapes = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, out), "b_dec": (out,)}
    extra = {"W_skip": (out, D)} if "skip" in architecture else {}
    extra |= {"threshold": (F,)} if "jumprelu" in architecture else {}
    tensors = random({**shapes, **extra})
    hooks = {"hook_name": "blocks.1.ln2.hook_normalized", "hook_name_out": "blocks.1.hook_mlp_out"}
    config = {**V6, "architecture": architecture, "d_out": out, "metadata": {**V6["metadata"], **hooks}}
    sae = jc.load_sae(saelens(tmp_path, tensors, **config))
    t, x = doubles(tensors), inputs().astype(np.float64)
    h = x @ t["W_enc"] + t["b_enc"]
    acts = relu(h) * (h > t["threshold"]) if "jumprelu" in architecture else relu(h)
    recon = acts @ t["W_dec"] + t["b_dec"]
    check(sae, acts, recon + x @ t["W_skip"].T if "skip" in architecture else recon)
    assert (str(sae.reads), str(sae.site)) == ("blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out")
    moved = jc.load_sae(tmp_path, reads="blocks.1.hook_resid_mid", site="blocks.1.hook_resid_post")
    assert (str(moved.reads), str(moved.site)) == ("blocks.1.hook_resid_mid", "blocks.1.hook_resid_post")


@pytest.mark.parametrize("kind", ["layer_norm", "constant_norm_rescale"])
def test_saelens_run_time_normalisations(tmp_path, kind):
    tensors = random(PLAIN)
    sae = jc.load_sae(saelens(tmp_path, tensors, **{**V6, "normalize_activations": kind}, architecture="standard"))
    t, x = doubles(tensors), inputs().astype(np.float64)
    if kind == "layer_norm":
        mean, std = x.mean(-1, keepdims=True), x.std(-1, ddof=1, keepdims=True)
        read, undo = (x - mean) / (std + 1e-5), lambda y: y * std + mean
    else:
        coefficient = D**0.5 / np.linalg.norm(x, axis=-1, keepdims=True)
        read, undo = x * coefficient, lambda y: y / coefficient
    acts = relu((read - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    check(sae, acts, undo(acts @ t["W_dec"] + t["b_dec"]))


AVERAGE = {**V6, "normalize_activations": "expected_average_only_in", "architecture": "standard"}


@pytest.mark.parametrize("where", ["nowhere", "option", "activation_scaler"])
def test_saelens_expected_average_is_folded_or_left(tmp_path, where):
    tensors = random(PLAIN)
    folder = saelens(tmp_path, tensors, **AVERAGE)
    t, x, s = doubles(tensors), inputs().astype(np.float64), 1.0 if where == "nowhere" else 2.5
    if where == "nowhere":
        with pytest.warns(UserWarning, match="Pass norm_scaling_factor=") as caught:
            sae = jc.load_sae(folder)
        assert caught[0].filename == __file__, "it points at the caller's line"
    elif where == "option":
        sae = jc.load_sae(folder, norm_scaling_factor=s)
    else:
        (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": s}))
        sae = jc.load_sae(folder)
    acts = relu((s * x - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    check(sae, acts, (acts @ t["W_dec"] + t["b_dec"]) / s)


def test_saelens_expected_average_takes_numbers_above_0(tmp_path, untyped):
    folder = saelens(tmp_path, random(PLAIN), **AVERAGE)
    for factor in (0, -2.0, np.nan, np.inf, True, "3"):
        with pytest.raises(ValueError, match=r"norm_scaling_factor: expected a finite number above 0, got"):
            jc.load_sae(folder, norm_scaling_factor=factor)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0}))
    with pytest.raises(
        ValueError, match=r"activation_scaler.json: scaling_factor: expected a finite number above 0, got 0"
    ):
        jc.load_sae(folder)


def test_saelens_normalize_decoder_scales_what_is_in_latent_units(tmp_path):
    tensors = random({**PLAIN, "threshold": (F,)})
    tensors["threshold"] = np.abs(tensors["threshold"])
    folder = saelens(tmp_path, tensors, **V6, architecture="jumprelu")
    plain, unit = jc.load_sae(folder), jc.load_sae(folder, normalize_decoder=True)
    norms, x = np.linalg.norm(doubles(tensors)["W_dec"], axis=1), jnp.asarray(inputs())
    check(unit, np.asarray(plain.encode(x), np.float64) * norms, np.asarray(plain.decode(plain.encode(x)), np.float64))
    folder = saelens(tmp_path, random(PLAIN), **V6, architecture="topk", k=3)
    with pytest.raises(ValueError, match="change which latents this topk dictionary turns on"):
        jc.load_sae(folder, normalize_decoder=True)


V3 = {
    "d_in": D,
    "d_sae": F,
    "hook_point": "blocks.2.hook_resid_pre",
    "hook_point_head_index": None,
    "activation_fn_str": "relu",
}


def test_saelens_configuration_of_version_3(tmp_path):
    """As gpt2-small-res-jb has it: old names, nothing of architecture, bias or normalisation."""
    tensors = random({**PLAIN, "scaling_factor": (F,)})
    tensors["scaling_factor"] = np.ones(F, np.float32)
    old = {
        "lr": 4e-4,
        "l1_coefficient": 8e-5,
        "context_size": 128,
        "hook_point_layer": 2,
        "expansion_factor": 2,
        "lp_norm": 1,
    }
    sae = jc.load_sae(saelens(tmp_path, tensors, **V3, **old))
    t = doubles(tensors)
    acts = relu((inputs() - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    check(sae, acts, acts @ t["W_dec"] + t["b_dec"])
    assert isinstance(sae, saes.SAE)
    assert (str(sae.site), sae.centred, sae.normalisation, sae.processing) == (
        "blocks.2.hook_resid_pre",
        True,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("stored", "kind"), [(True, "average"), (False, None), (None, None), ("layer_norm", "layer_norm")]
)
def test_saelens_old_values_of_normalize_activations(tmp_path, stored, kind):
    folder = saelens(tmp_path, random(PLAIN), **V3, normalize_activations=stored)
    if kind == "average":
        with pytest.warns(UserWarning, match="expected_average_only_in"):
            sae = jc.load_sae(folder)
    else:
        sae = jc.load_sae(folder)
    assert (sae.normalisation is not None) == (kind == "layer_norm")


def test_saelens_topk_and_tanh_relu_of_versions_4_and_5(tmp_path):
    tensors = random(PLAIN)
    flat = {"d_in": D, "d_sae": F, "hook_name": "blocks.0.hook_mlp_out", "sae_lens_training_version": "5.1.0"}
    topk = jc.load_sae(
        saelens(tmp_path / "a", tensors, **flat, activation_fn_str="topk", activation_fn_kwargs={"k": 4})
    )
    t = doubles(tensors)
    h = (inputs() - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    check(topk, relu(top(h, 4)), relu(top(h, 4)) @ t["W_dec"] + t["b_dec"])
    tanh = jc.load_sae(saelens(tmp_path / "b", tensors, **flat, activation_fn="tanh-relu"))
    check(tanh, np.tanh(relu(h)), np.tanh(relu(h)) @ t["W_dec"] + t["b_dec"])


def test_saelens_finetuned_scale_of_the_latents(tmp_path):
    tensors = random({**PLAIN, "scaling_factor": (F,)})
    sae = jc.load_sae(saelens(tmp_path / "a", tensors, **V3, finetuning_scaling_factor=True))
    t = doubles(tensors)
    acts = relu((inputs() - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    check(sae, acts, (acts * t["scaling_factor"]) @ t["W_dec"] + t["b_dec"])
    with pytest.raises(ValueError, match=r"`scaling_factor` other than one.*finetuning_scaling_factor is false"):
        jc.load_sae(saelens(tmp_path / "b", tensors, **V3))


def test_saelens_hook_z_is_all_heads_as_one_vector(tmp_path):
    z = "blocks.1.attn.hook_z"
    assert str(jc.load_sae(saelens(tmp_path / "a", random(PLAIN), **{**V3, "hook_point": z})).site) == z
    config = {**V6, "metadata": {"sae_lens_version": "6.0.0", "hook_name": z}, "architecture": "standard"}
    assert (
        str(jc.load_sae(saelens(tmp_path / "b", random(PLAIN), **{**config, "reshape_activations": "hook_z"})).site)
        == z
    )
    with pytest.raises(ValueError, match=r"reshape_activations is 'none' at blocks.1.attn.hook_z"):
        jc.load_sae(saelens(tmp_path / "c", random(PLAIN), **config))
    with pytest.raises(ValueError, match=r"`hook_point_head_index` of cfg.json is 3, .*of one head alone"):
        jc.load_sae(saelens(tmp_path / "d", random(PLAIN), **{**V3, "hook_point_head_index": 3}))


@pytest.mark.parametrize(
    ("version", "kwargs", "steps"),
    [
        ("6.2.0", {"center_writing_weights": False}, ()),
        ("6.2.0", {"center_writing_weights": True}, ("center_writing",)),
        ("6.2.0", {"fold_ln": True, "fold_value_biases": True}, ("fold_layer_norm", "fold_value_biases")),
        ("5.0.0", {}, ()),
        ("3.1.0", {}, ALL_STEPS),
        ("3.1.0", {"center_writing_weights": False}, ("fold_layer_norm", "center_unembed", "fold_value_biases")),
        ("6.2.0", None, None),
    ],
)
def test_saelens_processing_of_the_model(tmp_path, version, kwargs, steps):
    metadata = {"sae_lens_version": version, "hook_name": "hook_embed"}
    metadata |= {} if kwargs is None else {"model_from_pretrained_kwargs": kwargs}
    folder = saelens(tmp_path, random(PLAIN), **{**V6, "metadata": metadata}, architecture="standard")
    assert jc.load_sae(folder).processing == steps
    assert jc.load_sae(folder, processing=["center_writing", "fold_layer_norm"]).processing == ALL_STEPS[:2]
    with pytest.raises(ValueError, match="no step is called 'fold_ln'"):
        jc.load_sae(folder, processing=["fold_ln"])


# What every version writes of its training beside what is used, and a name that the next one may have.
OF_TRAINING = {
    "sae_training": {
        **{
            "b_dec_init_method": "geometric_median",
            "cached_activations_path": "a/b",
            "checkpoint_path": "c",
            "lr": 4e-4,
        },
        **{"dead_feature_threshold": 1e-8, "dead_feature_window": 5000, "feature_sampling_window": 1000, "seed": 42},
        **{"from_pretrained_path": None, "is_dataset_tokenized": False, "l1_coefficient": 8e-5, "log_to_wandb": True},
        **{"lp_norm": 1, "run_name": "r", "store_batch_size": 32, "total_training_tokens": 1000, "verbose": True},
        **{"train_batch_size": 4096, "use_cached_activations": False, "use_ghost_grads": True, "wandb_entity": None},
        **{"n_batches_in_buffer": 20, "lr_scheduler_name": "constant", "lr_warm_up_steps": 5000, "device": "cuda"},
        **{"feature_sampling_method": None, "feature_reinit_scale": 0.2, "resample_batches": 8, "expansion_factor": 32},
    },
    "3 to 5": {
        **{"adam_beta1": 0.0, "noise_scale": 0.0, "finetuning_method": None, "use_error_term": False, "autocast": True},
        **{"mse_loss_normalization": None, "normalize_sae_decoder": False, "decoder_orthogonal_init": False},
        **{"dataset_trust_remote_code": True, "neuronpedia_id": None, "prepend_bos": True, "seqpos_slice": [None]},
        **{"scale_sparsity_penalty_by_decoder_norm": False, "init_encoder_as_decoder_transpose": False},
    },
    "6": {
        **{"topk_threshold_lr": 0.01, "aux_loss_coefficient": 1.0, "decoder_init_norm": 0.1, "target_l0": None},
        **{"jumprelu_sparsity_loss_mode": "step", "jumprelu_tanh_scale": 4.0, "pre_act_loss_coefficient": None},
        **{"matryoshka_widths": [5, 10], "use_matryoshka_aux_loss": False, "use_sparse_activations": False},
        **{"l0_warm_up_steps": 0, "jumprelu_bandwidth": 0.05, "l1_warm_up_steps": 5, "jumprelu_ste_to_input": False},
    },
    "next": {"foo_lr": 1e-3, "wandb_foo": 1, "foo_warm_up_steps": 3, "foo_loss_coefficient": 1, "dataset_foo": "x"},
}


@pytest.mark.parametrize("version", OF_TRAINING)
def test_what_is_of_the_training_changes_nothing(tmp_path, version):
    tensors = random(PLAIN)
    sae = jc.load_sae(saelens(tmp_path, tensors, **{**V6, "architecture": "standard", **OF_TRAINING[version]}))
    t = doubles(tensors)
    acts = relu((inputs() - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    check(sae, acts, acts @ t["W_dec"] + t["b_dec"])


@pytest.mark.parametrize(
    "name", ["frobnicate", "activation_scale", "threshold", "use_batch_topk", "log_threshold", "encoder_bias", "skip"]
)
def test_names_that_may_be_of_the_computation_are_refused(tmp_path, name):
    folder = saelens(tmp_path, random(PLAIN), **V6, architecture="standard", **{name: 1})
    with pytest.raises(ValueError, match=f"the attribute `{name}` of cfg.json is not supported"):
        jc.load_sae(folder)


@pytest.mark.parametrize("rescaled", [None, False, True])
@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_a_checkpoint_of_batchwise_training_runs_by_the_threshold_learned_so_far(tmp_path, architecture, rescaled):
    """The threshold compares with latents after their rescaling by the norms of their directions."""
    tensors = random(PLAIN)
    stored = {**tensors, "topk_threshold": np.asarray(1.3, np.float64)}
    config = {**V6, **OF_TRAINING["6"], "architecture": architecture, "k": 5.5}
    config |= {} if rescaled is None else {"rescale_acts_by_decoder_norm": rescaled}
    sae = jc.load_sae(saelens(tmp_path, stored, **config))
    t = doubles(tensors)
    norms = np.linalg.norm(t["W_dec"], axis=1) if rescaled else np.ones(F)
    h = ((inputs() - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * norms
    acts = relu(h) * (h > 1.3)
    assert 0 < (acts > 0).sum() < (h > 0).sum()
    check(sae, acts, (acts / norms) @ t["W_dec"] + t["b_dec"])
    assert isinstance(sae.activation, saes.JumpReLU)
    jc.save_sae(sae, tmp_path / "saved")
    check(jc.load_sae(tmp_path / "saved"), acts, (acts / norms) @ t["W_dec"] + t["b_dec"])


def test_a_checkpoint_from_before_any_threshold_was_learned(tmp_path):
    tensors = random(PLAIN)
    stored = {**tensors, "topk_threshold": np.asarray(0, np.float64)}
    folder = saelens(tmp_path, stored, **V6, architecture="batchtopk", k=4)
    with pytest.warns(UserWarning, match="topk_threshold is 0.*plain ReLU"):
        sae = jc.load_sae(folder)
    t = doubles(tensors)
    acts = relu((inputs() - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    check(sae, acts, acts @ t["W_dec"] + t["b_dec"])


def test_rescaling_is_of_the_topk_classes_alone(tmp_path):
    tensors = random(PLAIN)
    sae = jc.load_sae(saelens(tmp_path, tensors, **V6, architecture="standard", rescale_acts_by_decoder_norm=True))
    t = doubles(tensors)
    acts = relu((inputs() - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    check(sae, acts, acts @ t["W_dec"] + t["b_dec"])


RESID_PRE = "blocks.5.hook_resid_pre"
HOOKS: dict[str, dict[str, object]] = {
    "a template": {"hook_point_template": "blocks.{layer}.hook_resid_pre", "hook_point_layer": 5},
    "a template of one layer in a list": {
        "hook_point_template": "blocks.{layer}.hook_resid_pre",
        "hook_point_layer": [5],
    },
    "a template and the name it gives": {
        "hook_point": RESID_PRE,
        "hook_point_template": "blocks.{layer}.hook_resid_pre",
        "hook_point_layer": 5,
    },
    "a template under the other name": {"hook_point": "blocks.{layer}.hook_resid_pre", "hook_point_layer": 5},
    "a template under the newest name": {"hook_name": "blocks.{layer}.hook_resid_pre", "hook_layer": 5},
    "a template without a place for the layer": {"hook_point_template": RESID_PRE, "hook_point_layer": 5},
    "a layer inside": {"hook_point": RESID_PRE, "hook_point_layer": 5},
    "a layer inside alone": {"hook_point": RESID_PRE},
    "two names, one of them empty": {"hook_point": None, "hook_name": RESID_PRE},
    "no head, by every name": {
        "hook_point": RESID_PRE,
        "hook_point_head_index": None,
        "hook_head_index": None,
        "hook_head_indices": [],
    },
}


@pytest.mark.parametrize("name", HOOKS)
def test_hook_points_by_every_name(tmp_path, name):
    folder = saelens(tmp_path, random(PLAIN), d_in=D, d_sae=F, **HOOKS[name], **OF_TRAINING["sae_training"])
    assert str(jc.load_sae(folder).site) == RESID_PRE
    assert [str(site) for site in jc.load_saes(tmp_path)] == [RESID_PRE]


def test_hook_points_that_say_no_site(tmp_path):
    template = {"d_in": D, "d_sae": F, "hook_point_template": "blocks.{layer}.hook_resid_pre"}
    for layer in (None, [3, 4], "5"):
        folder = saelens(tmp_path, random(PLAIN), **template, hook_point_layer=layer)
        with pytest.raises(
            ValueError, match=r"is 'blocks.{layer}.hook_resid_pre', a template, and no hook_point_layer"
        ):
            jc.load_sae(folder)
        assert str(jc.load_sae(folder, site=RESID_PRE).site) == RESID_PRE
    folder = saelens(tmp_path, random(PLAIN), **template, hook_point_layer=5, hook_point="blocks.4.hook_resid_pre")
    with pytest.raises(ValueError, match=r"says both .*blocks.5.hook_resid_pre.*blocks.4.hook_resid_pre"):
        jc.load_sae(folder)


# sparsify

SPARSIFY = {"encoder.weight": (F, D), "encoder.bias": (F,), "W_dec": (F, D), "b_dec": (D,)}
SPARSIFY_CFG = {
    **{"activation": "topk", "expansion_factor": 3, "normalize_decoder": True, "num_latents": F, "k": 3},
    **{"multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D},
}


def sparsify(folder, tensors, **config):
    return write(folder / "sae.safetensors", tensors, cfg={**SPARSIFY_CFG, **config}).parent


def groupmax(pre, groups):
    kept = np.zeros_like(pre)
    for row, out in zip(pre, kept, strict=True):
        for group in np.split(np.arange(len(row)), groups):
            best = group[np.argmax(row[group])]
            out[best] = max(row[best], 0)
    return kept


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("transcodes", [False, True])
@pytest.mark.parametrize(("activation", "k"), [("topk", 3), ("topk", F), ("groupmax", 5), ("groupmax", 2)])
def test_sparsify(tmp_path, activation, k, transcodes, skips):
    """Fewer than k latents may be positive: those selected are 0 then."""
    tensors = random({**SPARSIFY, **({"W_skip": (D, D)} if skips else {})})
    config = {"activation": activation, "k": k, "transcode": transcodes, "skip_connection": skips}
    sae = jc.load_sae(sparsify(tmp_path / "layers.2.mlp", tensors, **config))
    t, x = doubles(tensors), inputs().astype(np.float64)
    pre = relu((x if transcodes else x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"])
    acts = top(pre, k) if activation == "topk" else groupmax(pre, k)
    recon = acts @ t["W_dec"] + t["b_dec"]
    check(sae, acts, recon + x @ t["W_skip"].T if skips else recon)
    reads = "blocks.2.mlp.hook_in" if transcodes else "blocks.2.hook_mlp_out"
    assert (str(sae.reads), str(sae.site), sae.processing) == (reads, "blocks.2.hook_mlp_out", ())


@pytest.mark.parametrize(
    "config",
    [
        {"multi_topk": True},  # of the loss
        {"normalize_decoder": False},  # what is stored is what runs
        {"num_latents": 0, "expansion_factor": 1},
        {"signed": False},  # of older versions
        {"auxk_alpha": 0.03, "foo_lr": 3.0},
    ],
)
def test_sparsify_of_the_training(tmp_path, config):
    tensors = random(SPARSIFY)
    sae = jc.load_sae(sparsify(tmp_path / "h.1", tensors, **config))
    t = doubles(tensors)
    acts = top(relu((inputs() - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]), 3)
    check(sae, acts, acts @ t["W_dec"] + t["b_dec"])


def test_sparsify_of_versions_before_activations(tmp_path):
    config = {"expansion_factor": 3, "normalize_decoder": True, "num_latents": F, "k": 3, "signed": False, "d_in": D}
    tensors = random(SPARSIFY)
    sae = jc.load_sae(write(tmp_path / "layers.0" / "sae.safetensors", tensors, cfg=config))
    t = doubles(tensors)
    acts = top(relu((inputs() - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]), 3)
    check(sae, acts, acts @ t["W_dec"] + t["b_dec"])


MODULES = {
    "layers.5": ("blocks.5.hook_resid_pre", "blocks.5.hook_resid_post"),
    "h.5": ("blocks.5.hook_resid_pre", "blocks.5.hook_resid_post"),
    "transformer.h.5": ("blocks.5.hook_resid_pre", "blocks.5.hook_resid_post"),
    "gpt_neox.layers.5": ("blocks.5.hook_resid_pre", "blocks.5.hook_resid_post"),
    "model.layers.11": ("blocks.11.hook_resid_pre", "blocks.11.hook_resid_post"),
    "layers.5.mlp": ("blocks.5.mlp.hook_in", "blocks.5.hook_mlp_out"),
    "transformer.h.5.mlp": ("blocks.5.mlp.hook_in", "blocks.5.hook_mlp_out"),
    "h.5.attn": ("blocks.5.attn.hook_in", "blocks.5.hook_attn_out"),
    "h.5.attn.attention": ("blocks.5.attn.hook_in", "blocks.5.hook_attn_out"),
    "layers.5.attention": ("blocks.5.attn.hook_in", "blocks.5.hook_attn_out"),
    "layers.5.self_attn": ("blocks.5.attn.hook_in", "blocks.5.hook_attn_out"),
    "h.5.attn.c_proj": ("blocks.5.attn.hook_z", "blocks.5.hook_attn_out"),
    "h.5.mlp.c_fc": ("blocks.5.mlp.hook_in", "blocks.5.mlp.hook_pre"),
    "layers.5.mlp.act": ("blocks.5.mlp.hook_pre", "blocks.5.mlp.hook_post"),
    "gpt_neox.layers.5.mlp.dense_4h_to_h": ("blocks.5.mlp.hook_post", "blocks.5.hook_mlp_out"),
    "layers.5.mlp.gate_proj": ("blocks.5.mlp.hook_in", "blocks.5.mlp.hook_pre"),
    "layers.5.mlp.up_proj": ("blocks.5.mlp.hook_in", "blocks.5.mlp.hook_pre_linear"),
    "layers.5.mlp.down_proj": ("blocks.5.mlp.hook_post", "blocks.5.hook_mlp_out"),
    "layers.5.self_attn.o_proj": ("blocks.5.attn.hook_z", "blocks.5.hook_attn_out"),
    "layers.5.self_attn.q_proj": ("blocks.5.attn.hook_in", "blocks.5.attn.hook_q"),
    "embed_tokens": (None, "hook_embed"),
    "gpt_neox.embed_in": (None, "hook_embed"),
    "transformer.wte": (None, "hook_embed"),
    "wpe": (None, "hook_pos_embed"),
    "layers.5.input_layernorm": (None, None),
    "resid": (None, None),
}


@pytest.mark.parametrize("module", MODULES)
def test_sparsify_sites_of_modules(tmp_path, module):
    reads, site = MODULES[module]
    sae = jc.load_sae(sparsify(tmp_path / module, random(SPARSIFY)))
    assert (str(sae.reads), str(sae.site)) == (str(site), str(site))
    transcoder = jc.load_sae(sparsify(tmp_path / "t" / module, random(SPARSIFY), transcode=True))
    assert (str(transcoder.reads), str(transcoder.site)) == (str(reads), str(site))
    moved = jc.load_sae(tmp_path / "t" / module, reads="blocks.1.hook_resid_mid", site="blocks.1.hook_resid_post")
    assert (str(moved.reads), str(moved.site)) == ("blocks.1.hook_resid_mid", "blocks.1.hook_resid_post")


def test_a_sparsify_tree(tmp_path):
    """A run's folder: one folder a hook point, and what its training left beside them."""
    run = tmp_path / "checkpoints" / "run"
    for module in ("layers.10", "layers.2", "layers.2.mlp", "embed_in"):
        sparsify(run / module, random(SPARSIFY))
    (run / "config.json").write_text("{}")
    for name in ("state.pt", "optimizer_0.pt", "lr_scheduler_0.pt", "rank_0_state.pt"):
        (run / name).write_bytes(b"no dictionary")
    sites = ["hook_embed", "blocks.2.hook_mlp_out", "blocks.2.hook_resid_post", "blocks.10.hook_resid_post"]
    assert [str(site) for site in jc.load_saes(run)] == sites
    assert [str(site) for site in jc.load_saes(tmp_path)] == sites
    with pytest.raises(
        ValueError, match=r"jc.load_saes reads a whole tree, and there is embed_in/sae.safetensors below"
    ):
        jc.load_sae(run)
    sparsify(run / "layers.2" / "seed1", random(SPARSIFY))
    with pytest.raises(ValueError, match=r"two dictionaries for `blocks.2.hook_resid_post`"):
        jc.load_saes(run)
    assert str(jc.load_sae(run / "layers.2" / "seed1").site) == "blocks.2.hook_resid_post"
    assert len(jc.load_saes(run, include="*/seed1/*")) == 1
    sparsify(run / "layers.3.input_layernorm", random(SPARSIFY))
    with pytest.raises(ValueError, match=r"input_layernorm/sae.safetensors: nothing says the site"):
        jc.load_saes(run, include="layers.3*")


def test_sparsify_by_its_configuration_file_and_by_its_tensors(tmp_path):
    folder = sparsify(tmp_path / "h.0", random(SPARSIFY))
    assert str(jc.load_sae(folder / "cfg.json").site) == "blocks.0.hook_resid_post"
    (folder / "sae.safetensors").rename(folder / "other.safetensors")
    assert str(jc.load_sae(folder).site) == "blocks.0.hook_resid_post"
    (folder / "cfg.json").unlink()
    with pytest.raises(ValueError, match=r"of sparsify without its cfg.json, .* It holds other.safetensors\."):
        jc.load_sae(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation": "relu"}, "activation 'relu' is not supported. Supported are topk and groupmax"),
        ({"k": 0}, "`k` of cfg.json is 0; expected how many of the 10 latents stay on"),
        ({"k": 11}, "`k` of cfg.json is 11; expected how many of the 10 latents"),
        ({"k": None}, "`k` of cfg.json is None; expected how many of the 10 latents"),
        ({"activation": "groupmax", "k": 3}, "10 latents cannot be 3 groups of one size"),
        ({"signed": True}, "`signed` of cfg.json is True, .*largest by their absolute value"),
        ({"skip_connection": True}, "skip_connection = True, and the file holds no `W_skip`"),
        ({"frobnicate": 3, "activation": "relu"}, "activation 'relu' is not supported"),
        ({"frobnicate": 3}, r"the attribute `frobnicate` of cfg.json is not supported.*ignore_config=\['frobnicate'\]"),
        ({"num_latents": 12}, r"`encoder.weight` has shape \[10, 6\]"),
        ({"d_in": 8}, r"`encoder.weight` has shape \[10, 6\]"),
    ],
)
def test_unsupported_sparsify_configurations_are_refused(tmp_path, config, message):
    folder = sparsify(tmp_path / "h.0", random(SPARSIFY), **config)
    with pytest.raises(ValueError, match=message):
        jc.load_sae(folder)
    if list(config) == ["frobnicate"]:
        assert jc.load_sae(folder, ignore_config=["frobnicate"]).d_sae == F
    with pytest.raises(ValueError, match=r"reads=… is for one that transcodes"):
        jc.load_sae(sparsify(tmp_path / "h.0", random(SPARSIFY)), reads="hook_embed")


# OpenAI and the plain families


@pytest.mark.parametrize("activation", ["ReLU", "Identity", "TopK"])
@pytest.mark.parametrize("tied", [False, True])
def test_openai(tmp_path, activation, tied):
    shapes = {"pre_bias": (D,), "encoder.weight": (F, D), "latent_bias": (F,), "decoder.weight": (D, F)}
    tensors = {**random(shapes), "stats_last_nonzero": np.zeros(F, np.int64)}
    if tied:
        del tensors["decoder.weight"]
    path = write(tmp_path / "gpt2-small" / "resid_post_mlp_v5_32k" / "autoencoders" / "6.safetensors", tensors)
    sae = jc.load_sae(path, activation=activation, k=3 if activation == "TopK" else None)
    t, x = doubles(tensors), inputs().astype(np.float64)
    mean, std, eps = (
        (x.mean(-1, keepdims=True), x.std(-1, ddof=1, keepdims=True), 1e-5) if activation == "TopK" else (0, 1, 0)
    )
    h = ((x - mean) / (std + eps) - t["pre_bias"]) @ t["encoder.weight"].T + t["latent_bias"]
    acts = {"ReLU": relu(h), "Identity": h, "TopK": relu(top(h, 3))}[activation]
    W_dec = t["encoder.weight"] if tied else t["decoder.weight"].T
    check(sae, acts, (acts @ W_dec + t["pre_bias"]) * std + mean)
    assert (str(sae.site), sae.processing) == ("blocks.6.hook_resid_post", ())


@pytest.mark.parametrize(
    ("location", "site"),
    [
        ("mlp_post_act", "blocks.4.mlp.hook_post"),
        ("resid_delta_attn_v4", "blocks.4.hook_attn_out"),
        ("resid_post_attn_v5_128k", "blocks.4.hook_resid_mid"),
        ("resid_delta_mlp_v4", "blocks.4.hook_mlp_out"),
        ("resid_post_mlp_v5_32k", "blocks.4.hook_resid_post"),
    ],
)
def test_openai_locations(tmp_path, location, site):
    tensors = random({"pre_bias": (D,), "encoder.weight": (F, D), "latent_bias": (F,), "decoder.weight": (D, F)})
    write(tmp_path / "gpt2-small" / location / "autoencoders" / "4.safetensors", tensors)
    assert [str(site) for site in jc.load_saes(tmp_path)] == [site]


def test_openai_dead_latents(tmp_path):
    shapes = {"pre_bias": (D,), "encoder.weight": (F, D), "latent_bias": (F,), "decoder.weight": (D, F)}
    tensors = random(shapes)
    path = write(tmp_path / "4.safetensors", tensors)
    with pytest.raises(ValueError, match="no `latents_activation_frequency`"):
        jc.load_sae(path, omit_dead=True)
    frequency = np.full(F, 1e-3, np.float32)
    frequency[[2, 5]] = 1e-9
    write(path, {**tensors, "latents_activation_frequency": frequency})
    whole, alive = jc.load_sae(path), jc.load_sae(path, omit_dead=True)
    assert (whole.d_sae, alive.d_sae) == (F, F - 2)
    kept, x = np.delete(np.arange(F), [2, 5]), jnp.asarray(inputs())
    assert_close(alive.encode(x), whole.encode(x)[:, kept])
    assert_close(alive.W_dec, whole.W_dec[kept])


def test_hook_z_kk(tmp_path):
    tensors = random(PLAIN)
    name = "gpt2-small_L1_Hcat_z_v5"
    config = {"act_name": "blocks.1.attn.hook_z", "act_size": D, "dict_size": F, "seed": 49, "lr": 1e-3}
    path = write(tmp_path / f"{name}.safetensors", tensors, **{f"{name}_cfg": config})
    sae = jc.load_sae(path)
    t = doubles(tensors)
    acts = relu((inputs() - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    check(sae, acts, acts @ t["W_dec"] + t["b_dec"])
    assert (str(sae.site), sae.processing) == ("blocks.1.attn.hook_z", ALL_STEPS)
    (tmp_path / f"{name}_cfg.json").unlink()
    with pytest.raises(ValueError, match=r"no gpt2-small_L1_Hcat_z_v5_cfg.json beside it"):
        jc.load_sae(path, format="hook_z_kk")


def test_end_to_end_saes_have_unit_directions_and_are_not_centred(tmp_path):
    shapes = {"encoder.0.weight": (F, D), "encoder.0.bias": (F,), "decoder.weight": (D, F), "decoder.bias": (D,)}
    tensors = {
        f"saes.blocks-{layer}-hook_resid_pre.{name}": array
        for layer in (0, 4)
        for name, array in random(shapes, layer).items()
    }
    path = write(
        tmp_path / "samples_400000.safetensors", {**tensors, "tlens_model.unembed.W_U": np.ones((2, 2), np.float32)}
    )
    with pytest.raises(ValueError, match=r"for `blocks.0.hook_resid_pre`, `blocks.4.hook_resid_pre`. Say which"):
        jc.load_sae(path)
    sae = jc.load_sae(path, site="blocks.4.hook_resid_pre")
    t = doubles(random(shapes, 4))
    acts = relu(inputs() @ t["encoder.0.weight"].T + t["encoder.0.bias"])
    unit = t["decoder.weight"] / np.linalg.norm(t["decoder.weight"], axis=0)
    check(sae, acts, acts @ unit.T + t["decoder.bias"])
    assert sae.processing == ALL_STEPS
    assert [str(site) for site in jc.load_saes(tmp_path)] == ["blocks.0.hook_resid_pre", "blocks.4.hook_resid_pre"]


def test_sparse_mlp(tmp_path):
    tensors = random({**LINEAR, "decoder.bias": (D,)})
    t = doubles(tensors)
    acts = relu(inputs() @ t["encoder.weight"].T + t["encoder.bias"])
    for name, reads, site in (
        ("M2", "blocks.2.hook_resid_mid", "blocks.2.hook_mlp_out"),
        ("A1", "blocks.1.hook_attn_out", "blocks.1.hook_attn_out"),
    ):
        sae = jc.load_sae(write(tmp_path / name / "weights.safetensors", tensors))
        check(sae, acts, acts @ t["decoder.weight"].T + t["decoder.bias"])
        assert (str(sae.reads), str(sae.site)) == (reads, site)
    path = write(tmp_path / "weights.safetensors", tensors)
    given = {"format": "sparse_mlp", "reads": "blocks.0.hook_resid_mid", "site": "blocks.0.hook_mlp_out"}
    assert str(jc.load_sae(path, **given).reads) == given["reads"]


def test_topk_pt_keeps_negative_latents(tmp_path):
    shapes = {"pre_bias": (D,), "encoder_bias": (F,), "encoder_weights": (D, F), "decoder_weights": (F, D)}
    tensors = random(shapes)
    tensors["encoder_bias"] -= 4
    path = write(tmp_path / f"sae_{F}_4.safetensors", tensors)
    sae = jc.load_sae(path, site="blocks.5.hook_resid_post")
    t = doubles(tensors)
    acts = top((inputs() - t["pre_bias"]) @ t["encoder_weights"] + t["encoder_bias"], 4)
    assert acts.min() < 0
    check(sae, acts, acts @ t["decoder_weights"] + t["pre_bias"])
    assert str(sae.site) == "blocks.5.hook_resid_post"
    with pytest.raises(ValueError, match="k=3 was asked for, and the file's name says 4"):
        jc.load_sae(path, k=3)
    other = write(tmp_path / "other.safetensors", tensors)
    assert jc.load_sae(other, k=2).activation == saes.TopK(2, rectified=False)
    with pytest.raises(ValueError, match="neither the file nor its name says k"):
        jc.load_sae(other)


def test_transcoder_pt_subtracts_its_input_bias(tmp_path):
    out = 4
    tensors = random({"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, out), "b_dec": (D,), "b_dec_out": (out,)})
    name = "final_sparse_autoencoder_gpt2-small_blocks.8.ln2.hook_normalized_24576.safetensors"
    sae = jc.load_sae(write(tmp_path / name, tensors))
    t = doubles(tensors)
    acts = relu((inputs() - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    check(sae, acts, acts @ t["W_dec"] + t["b_dec_out"])
    assert (str(sae.reads), str(sae.site)) == ("blocks.8.ln2.hook_normalized", "blocks.8.hook_mlp_out")
    assert sae.processing == ALL_STEPS


# Folders, dtypes, the Hub


def test_dtype_is_as_stored_or_as_asked(tmp_path):
    tensors = {name: array.astype(np.float16) for name, array in random(PLAIN).items()}
    folder = saelens(tmp_path, tensors, **V6, architecture="standard")
    assert jc.load_sae(folder).W_dec.dtype == jnp.float32
    assert jc.load_sae(folder, dtype=jnp.bfloat16).W_dec.dtype == jnp.bfloat16


@pytest.mark.parametrize("load", [jc.load_sae, jc.load_saes, jc.load_cross_layer_transcoder])
def test_a_dtype_that_would_lose_the_weights_is_refused_before_anything_is_read(tmp_path, load):
    for dtype in ("int32", "complex64", jnp.bool_):
        with pytest.raises(TypeError, match="of a floating dtype; got"):
            load(tmp_path / "nothing", dtype=dtype)
    with pytest.raises(TypeError, match=r"Expected a dtype such as jnp.float32, got 'float33'"):
        load(tmp_path / "nothing", dtype="float33")
    if not jax.config.jax_enable_x64:
        with pytest.raises(ValueError, match=r'float64 needs jax.config.update\("jax_enable_x64", True\)'):
            load(tmp_path / "nothing", dtype="float64")


def test_a_saelens_tree(tmp_path):
    for layer in (1, 0):
        metadata = {**V6["metadata"], "hook_name": f"blocks.{layer}.hook_resid_pre"}
        folder = saelens(
            tmp_path / f"layer_{layer}", random(PLAIN), **{**V6, "metadata": metadata}, architecture="standard"
        )
        save_file({"sparsity": np.zeros(F, np.float32)}, folder / "sparsity.safetensors")
    assert [str(site) for site in jc.load_saes(tmp_path)] == ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"]


@pytest.mark.parametrize("place", ["repository", "folder", "file"])
def test_from_the_hub(tmp_path, monkeypatch, place):
    asked = {}

    def snapshot_download(repository, *, revision, allow_patterns):
        asked.update(repository=repository, revision=revision, allow_patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    inside = "" if place == "repository" else "v5_32k_layer_3.pt"
    saelens(tmp_path / inside, random(PLAIN), **V6, architecture="standard")
    suffix = {"repository": "", "folder": f":{inside}", "file": f":{inside}/cfg.json"}[place]
    sae = jc.load_sae(f"someone/some-saes{suffix}", revision="abc")
    assert str(sae.site) == "blocks.2.hook_resid_pre"
    assert (asked["repository"], asked["revision"]) == ("someone/some-saes", "abc")
    assert f"someone/some-saes:{'sae_weights.safetensors'}" in sae.origin
    assert [str(site) for site in jc.load_saes(f"someone/some-saes:{inside}" if inside else "someone/some-saes")]
    with pytest.raises(ValueError, match=r"repository someone/some-saes holds no 'nothing/here'"):
        jc.load_sae("someone/some-saes:nothing/here")


def test_published_releases_bring_what_their_files_do_not_say(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: str(tmp_path))
    hook = {**V3, "hook_point": "blocks.1.hook_mlp_out", "normalize_activations": True}
    tensors = random(PLAIN)
    saelens(tmp_path, tensors, **hook)
    sae = jc.load_sae("tommmcgrath/gpt2-small-mlp-out-saes")
    assert sae.processing == ("center_writing",)
    assert_close(sae.W_enc, doubles(tensors)["W_enc"] * 2.3693984005104283, tolerance=1e-6)


# To SAELens and back


def exported(name, getkey):
    from .dictionaries import DICTIONARIES

    z = jc.Site(1, jc.Kind.Z)
    return DICTIONARIES[name](getkey(), D, z if name == "relu" else jc.Site(1, jc.Kind.MLP_OUT))


EXPRESSIBLE = {
    "relu": "standard",
    "relu-uncentred": "standard",
    "jumprelu": "jumprelu",
    "batchtopk": "jumprelu",
    "topk": "topk",
    "topk-standardised": "topk",
    "abstopk": "abstopk",
    "relu-unit-norm": "standard",
    "gated": "gated",
    "transcoder": "transcoder",
    "transcoder-skip": "skip_transcoder",
    "transcoder-input-bias": "transcoder",
    "transcoder-jumprelu": "jumprelu_transcoder",
}


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_export_to_saelens_loads_back_equal(name, tmp_path, getkey):
    import dataclasses

    import jax

    sae = dataclasses.replace(exported(name, getkey), processing=("center_writing",))
    jc.save_sae(sae, tmp_path / "sae", metadata={"model_name": "tiny"})
    config = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert config["architecture"] == EXPRESSIBLE[name]
    assert config["reshape_activations"] == ("hook_z" if name == "relu" else "none")
    assert config["metadata"]["model_name"] == "tiny"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["cfg.json", "sae", "sae_weights.safetensors"]
    back = jc.load_sae(tmp_path / "sae", dtype=sae.W_dec.dtype)
    assert (back.site, back.reads, back.processing) == (sae.site, sae.reads, sae.processing)
    x = jax.random.normal(getkey(), (4, D))
    assert_close(back.encode(x), sae.encode(x))
    assert_close(back.decode(back.encode(x), x), sae.decode(sae.encode(x), x))
    if name not in ("gated", "batchtopk", "transcoder-input-bias"):  # those are rewritten
        same = dataclasses.replace(back, origin=sae.origin)
        assert jax.tree.structure(same) == jax.tree.structure(sae)
        assert all((a == b).all() for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(sae), strict=True))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("identity", "a dictionary of type Identity"),
        ("linear", "the activation Linear"),
        ("tanh-relu", "the activation TanhReLU"),
        ("topk-unrectified", "the activation TopK that keeps negative latents"),
        ("groupmax", "the activation GroupMax"),
    ],
)
def test_what_saelens_cannot_express_is_refused(name, what, tmp_path, getkey):
    with pytest.raises(ValueError, match=f"SAELens has no class for {what}"):
        jc.save_sae(exported(name, getkey), tmp_path / "sae")
    assert not (tmp_path / "sae").exists()


def test_a_jumprelu_transcoder_with_a_linear_path_goes_to_saelens_and_back(tmp_path, getkey):
    import dataclasses

    both = dataclasses.replace(exported("transcoder-skip", getkey), activation=exported("jumprelu", getkey).activation)
    jc.save_sae(both, tmp_path / "sae")
    assert json.loads((tmp_path / "sae" / "cfg.json").read_text())["architecture"] == "jumprelu_skip_transcoder"
    back, x = jc.load_sae(tmp_path / "sae", dtype=both.W_dec.dtype), jnp.asarray(inputs(), both.W_dec.dtype)
    assert_close(back.encode(x), both.encode(x))
    assert_close(back.decode(back.encode(x), x), both.decode(both.encode(x), x))


def test_a_folder_that_is_no_dictionary_is_not_replaced(tmp_path, getkey):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not a SAELens dictionary"):
        jc.save_sae(exported("relu", getkey), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_arrays_are_written_in_order(tmp_path, getkey):
    """A transposed array must not be written as it lies in memory."""
    sae = exported("transcoder-skip", getkey)
    jc.save_sae(sae, tmp_path / "sae")
    assert_close(load_file(tmp_path / "sae" / "sae_weights.safetensors")["W_skip"], np.asarray(sae.W_skip).T)


# Bad input


def test_unknown_and_ambiguous_tensors_are_refused(tmp_path):
    path = write(tmp_path / "a.safetensors", {"foo": np.ones(3, np.float32), "bar": np.ones(3, np.float32)})
    with pytest.raises(
        ValueError, match=r"holds `bar`, `foo`, which are of no known format; those are saelens, dictionary_learning"
    ):
        jc.load_sae(path)
    path = write(tmp_path / "b.safetensors", random({**LINEAR, "decoder.bias": (D,)}))
    with pytest.raises(
        ValueError, match=r"fit the formats dictionary_learning and sparse_mlp. Say which it is: format="
    ):
        jc.load_sae(path)
    path = write(tmp_path / "ae.safetensors", topk_tensors(0.5))
    with pytest.raises(ValueError, match=r"fits AutoEncoderTopK and BatchTopKSAE: say which, dict_class="):
        jc.load_sae(path)
    path = write(tmp_path / "c" / "ae.safetensors", {"foo": np.ones(3, np.float32)})
    with pytest.raises(
        ValueError, match=r"the tensors `foo`, which is none of dictionary_learning \(AutoEncoder: bias"
    ):
        jc.load_sae(path)


def test_missing_extra_and_misshapen_tensors_are_named(tmp_path):
    config = {**V6, "architecture": "standard"}
    tensors = random(PLAIN)
    without = {name: array for name, array in tensors.items() if name != "b_enc"}
    with pytest.raises(ValueError, match=r"misses `b_enc` and also holds `b_other`"):
        jc.load_sae(saelens(tmp_path, {**without, "b_other": np.ones(3, np.float32)}, **config))
    with pytest.raises(ValueError, match=r"`W_dec` has shape \[6, 10\], expected \['d_sae', 'd_in'\] = \[10, 6\]"):
        jc.load_sae(saelens(tmp_path, {**tensors, "W_dec": tensors["W_dec"].T}, **config))
    with pytest.raises(ValueError, match=r"`W_enc` has shape \[6, 10\], expected \['d_in', 'd_sae'\] = \[768, 10\]"):
        jc.load_sae(saelens(tmp_path, tensors, **{**config, "d_in": 768}))


def test_nan_in_the_weights_is_refused(tmp_path):
    tensors = random(PLAIN)
    tensors["W_dec"][3, 1] = np.nan
    with pytest.raises(ValueError, match="tensor `W_dec` holds NaN"):
        jc.load_sae(saelens(tmp_path, tensors, **V6, architecture="standard"))


def test_a_truncated_file_is_refused(tmp_path):
    folder = saelens(tmp_path, random(PLAIN), **V6, architecture="standard")
    path = folder / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        jc.load_sae(folder)


def test_k_that_disagrees_is_refused(tmp_path):
    config = {"trainer": {"dict_class": "AutoEncoderTopK", "k": 5}}
    path = write(tmp_path / "ae.safetensors", topk_tensors(0.5), config=config)
    with pytest.raises(ValueError, match=r"k is 3 in the file and 5 in config.json"):
        jc.load_sae(path)
    folder = saelens(tmp_path / "saelens", random(PLAIN), **V6, architecture="topk", k=F + 1)
    with pytest.raises(
        ValueError, match=r"saelens.*\(SAELens topk\): TopK: k is 11, and the dictionary has 10 latents"
    ):
        jc.load_sae(folder)
    assert jc.load_sae(folder, latents=[2, 8]).d_sae == 2


@pytest.mark.parametrize("kind", ["AutoEncoderTopK", "BatchTopKSAE"])
def test_a_state_from_the_midst_of_a_training(tmp_path, kind):
    """Its configuration is one folder up, and says the k that the training comes down to."""
    tensors = topk_tensors(0.8)
    trainer = {
        "dict_class": kind,
        "k": 2,
        "k_anneal_steps": 100,
        "submodule_name": "resid_post_layer_3",
        "lm_name": "gpt2",
    }
    write(tmp_path / "ae.safetensors", tensors, config={"trainer": trainer})
    path = write(tmp_path / "checkpoints" / "ae_50.safetensors", tensors)
    acts, decode = topk_pre(tensors)
    acts = top(acts, 3) if kind == "AutoEncoderTopK" else acts * (acts > 0.8)
    sae = jc.load_sae(path)
    check(sae, acts, decode(acts))
    assert (str(sae.site), sae.processing) == ("blocks.3.hook_resid_post", ())


def test_of_the_hub_the_configuration_above_a_checkpoint_comes_too(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **given: asked.append(given) or str(tmp_path))
    write(tmp_path / "a" / "checkpoints" / "ae_5.safetensors", topk_tensors(0.5))
    trainer = {"dict_class": "AutoEncoderTopK", "k": 3, "submodule_name": "resid_post_layer_3"}
    (tmp_path / "a" / "config.json").write_text(json.dumps({"trainer": trainer}))
    assert jc.load_sae("someone/saes:a/checkpoints/ae_5.safetensors").site is not None
    assert "a/config.json" in asked[0]["allow_patterns"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "matryoshka_batchtopk"}, "misses `topk_threshold`"),
        ({"architecture": "crosscoder"}, "architecture 'crosscoder' is not supported. Supported are standard, gated"),
        # What is known not to be supported goes before attributes of it, which nobody here can know.
        ({"frobnicate": 3, "normalize_activations": "zscore"}, "normalize_activations 'zscore' is not supported"),
        ({"frobnicate": 3, "activation_fn": "gelu"}, "activation_fn 'gelu' is not supported for standard"),
        ({"frobnicate": 3, "tied_weights": True}, "`tied_weights` of cfg.json is True"),
        (
            {"architecture": "matching_pursuit", "residual_threshold": 0.01, "max_iterations": 3},
            "architecture 'matching_pursuit' is not supported. Supported are standard, gated",
        ),
        ({"architecture": "topk", "k": 2.5}, "`k` of cfg.json is 2.5; expected how many latents stay on"),
        ({"architecture": "topk", "k": float("inf")}, "`k` of cfg.json is inf; expected how many latents"),
        ({"tied_weights": True}, "`tied_weights` of cfg.json is True, .*the transposed encoder"),
        ({"activation_normalization_factor": 3.0}, "`activation_normalization_factor` of cfg.json is 3.0"),
        ({"hook_head_index": 3}, "`hook_head_index` of cfg.json is 3, .*of one head alone"),
        ({"hook_head_indices": [0, 3]}, r"`hook_head_indices` of cfg.json is \[0, 3\], .*of one head alone"),
        ({"metadata": {"hook_name": "hook_embed", "hook_head_index": 0}}, "`hook_head_index` of cfg.json is 0"),
        ({"activation_fn": "gelu"}, "activation_fn 'gelu' is not supported for standard. Supported: relu, tanh-relu"),
        ({"normalize_activations": "zscore"}, "normalize_activations 'zscore' is not supported"),
        ({"frobnicate": 3}, r"`frobnicate` of cfg.json is not supported.*ignore_config=\['frobnicate'\]"),
        (
            {"metadata": {"hook_name": "blocks.0.hook_mlp_output"}},
            "hook_name is 'blocks.0.hook_mlp_output'.*Did you mean `blocks.0.hook_mlp_out`",
        ),
        ({"architecture": "topk"}, "a topk dictionary without `k`"),
    ],
)
def test_unsupported_saelens_configurations_are_refused(tmp_path, change, message):
    folder = saelens(tmp_path, random(PLAIN), **{**V6, "architecture": "standard", **change})
    with pytest.raises(ValueError, match=message):
        jc.load_sae(folder)
    if list(change) == ["frobnicate"]:
        assert jc.load_sae(folder, ignore_config=["frobnicate"]).d_sae == F


def test_misplaced_options_and_names_are_refused(tmp_path):
    folder = saelens(tmp_path / "sae", random(PLAIN), **V6, architecture="standard")
    with pytest.raises(
        TypeError, match=r"the format saelens has no option `omit_dead`. It has reads, norm_scaling_factor"
    ):
        jc.load_sae(folder, omit_dead=True)
    with pytest.raises(ValueError, match=r"No format is called 'sae_lens'. Did you mean `saelens`"):
        jc.load_sae(folder, format="sae_lens")
    with pytest.raises(ValueError, match="norm_scaling_factor is for normalize_activations"):
        jc.load_sae(folder, norm_scaling_factor=2.0)
    with pytest.raises(ValueError, match="reads=… is for a transcoder, and this one is standard"):
        jc.load_sae(folder, reads="hook_embed")
    with pytest.raises(ValueError, match="belongs to an activation, `hook_embed`"):
        jc.load_sae(folder, site="hook_embed.hook_sae_error")
    (folder / "cfg.json").unlink()
    with pytest.raises(ValueError, match=r"without its cfg.json"):
        jc.load_sae(folder)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(ValueError, match=r"cfg.json is not JSON"):
        jc.load_sae(folder)


def test_paths_that_hold_no_dictionary_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist, and is not a Hub id"):
        jc.load_sae(tmp_path / "nothing")
    formats = r"formats that are read are saelens, dictionary_learning, sparsify, openai"
    with pytest.raises(ValueError, match=rf"expected one dictionary, .*there is none. It is empty. The {formats}"):
        jc.load_sae(tmp_path)
    with pytest.raises(
        ValueError, match=r"holds no dictionary whose path matches .*It is empty.* the formats are saelens"
    ):
        jc.load_saes(tmp_path)
    (tmp_path / "cfg.json").write_text("{}")
    (tmp_path / "params.h5").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"there is none. It holds cfg.json, params.h5. The {formats}"):
        jc.load_sae(tmp_path)
    with pytest.raises(ValueError, match=rf"there is none. It holds cfg.json, params.h5. The {formats}"):
        jc.load_sae(tmp_path / "cfg.json")
    with pytest.raises(ValueError, match=r"holds no dictionary whose path matches '\*'. It holds cfg.json, params.h5"):
        jc.load_saes(tmp_path)
    with pytest.raises(ValueError, match=r"params.h5 is no dictionary: expected a file of tensors .* saelens"):
        jc.load_sae(tmp_path / "params.h5")
    (tmp_path / "cfg.json").unlink()
    (tmp_path / "params.h5").unlink()
    for name in ("a", "b"):
        write(tmp_path / f"{name}.safetensors", random(PLAIN))
    with pytest.raises(ValueError, match=r"there are 2: name one. It holds a.safetensors, b.safetensors\."):
        jc.load_sae(tmp_path)
    for i in range(12):
        write(tmp_path / f"layer_{i:02}" / "sae_weights.safetensors", random(PLAIN))
    with pytest.raises(ValueError, match=r"and 6 more. jc.load_saes reads a whole tree, and there is layer_00/sae_w"):
        jc.load_sae(tmp_path)
    with pytest.raises(ValueError, match="revision='x' is for a Hub id"):
        jc.load_sae(tmp_path, revision="x")
    with pytest.raises(ValueError, match="is a file, and load_saes reads a folder"):
        jc.load_saes(tmp_path / "a.safetensors")


def test_a_dictionary_without_site_in_a_folder_is_refused(tmp_path):
    write(tmp_path / "x" / "ae.safetensors", random({"bias": (D,), **LINEAR}))
    with pytest.raises(ValueError, match="nothing says the site of this dictionary"):
        jc.load_saes(tmp_path)


def test_a_hub_that_cannot_be_reached_is_said(monkeypatch):
    def snapshot_download(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(ValueError, match=r"could not be had from the Hugging Face Hub: no route to host"):
        jc.load_sae("someone/some-saes")

"""Cross-layer transcoders: the class, and the formats that they come in, against the equation in plain NumPy."""

import functools as ft
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, saes, Site

from .helpers import assert_close, needs_x64
from .test_dictionary_formats import doubles, random, relu, top, write
from .test_published_dictionaries import as_yaml


D, F, OUT, LAYERS = 6, 10, 4, 4
CLT = {"model_kind": "cross_layer_transcoder", "model_name": "google/gemma-2-2b"}
CLT |= {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}


def tensors_of(layer: int, *, thresholds: bool = True) -> dict[str, np.ndarray]:
    shapes = {"W_enc": (F, D), "b_enc": (F,), "b_dec": (OUT,), "W_dec": (F, LAYERS - layer, OUT)}
    held = random({**shapes, **({"threshold": (F,)} if thresholds else {})}, layer)
    return {name: np.abs(array) if name == "threshold" else array for name, array in held.items()}


def write_tracer(folder: Path, config=CLT, *, thresholds: bool = True, dtype=np.float32) -> list[dict]:
    """One file for the encoder and one for the decoder of each layer, and the tensors."""
    held = [tensors_of(layer, thresholds=thresholds) for layer in range(LAYERS)]
    for layer, tensors in enumerate(held):
        stored = {f"{name}_{layer}": array.astype(dtype) for name, array in tensors.items()}
        decoder = {name: stored.pop(name) for name in [f"W_dec_{layer}"]}
        write(folder / f"W_enc_{layer}.safetensors", stored)
        write(folder / f"W_dec_{layer}.safetensors", decoder)
    as_yaml(folder, config)
    return [{name: array.astype(dtype) for name, array in tensors.items()} for tensors in held]


def inputs() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(LAYERS, 7, D)).astype(np.float32) * 2


def forward(held: list[dict], activation: str = "jump", k: int = 3):
    """Latents and reconstructions of every layer by the equation, `[layer seq d_sae]` and `[layer seq d_out]`."""
    tensors, acts = [doubles(t) for t in held], []
    for t, x in zip(tensors, inputs().astype(np.float64), strict=True):
        h = x @ t["W_enc"].T + t["b_enc"]
        of_kind = {"jump": h * (h > t.get("threshold", 0)), "relu": relu(h), "topk": top(h, k)}
        acts.append(of_kind[activation])
    out = [
        sum(acts[i] @ tensors[i]["W_dec"][:, layer - i] for i in range(layer + 1)) + tensors[layer]["b_dec"]
        for layer in range(LAYERS)
    ]
    return acts, out


def check(clt, acts, out) -> None:
    x = jnp.asarray(inputs())
    got = [clt.encode(layer, x[layer]) for layer in range(LAYERS)]
    for layer in range(LAYERS):
        assert_close(got[layer], acts[layer], tolerance=1e-5)
        assert_close(clt.decode(layer, got[: layer + 1], x[layer]), out[layer], tolerance=1e-5)
        assert_close(clt.decode(layer, got, x[layer]), out[layer], tolerance=1e-5)


both = pytest.mark.parametrize("decoders", ["in memory", "in files"])


@both
@pytest.mark.parametrize(
    ("settings", "thresholds", "activation"),
    [
        ({}, True, "jump"),
        ({}, False, "relu"),
        ({"activation": "relu"}, True, "relu"),
        ({"activation": "topk", "k": 3}, False, "topk"),
    ],
)
def test_circuit_tracer(tmp_path, decoders, settings, thresholds, activation):
    held = write_tracer(tmp_path, {**CLT, **settings}, thresholds=thresholds)
    clt = jc.load_cross_layer_transcoder(tmp_path, decoders=decoders)
    check(clt, *forward(held, activation))
    assert [str(site) for site in clt.reads] == [f"blocks.{i}.hook_resid_mid" for i in range(LAYERS)]
    assert [str(site) for site in clt.sites] == [f"blocks.{i}.hook_mlp_out" for i in range(LAYERS)]
    assert (clt.n_layers, clt.d_in, clt.d_out, clt.d_sae, clt.processing) == (LAYERS, D, OUT, F, ())
    assert not clt.decoder_reads_input


@both
def test_rows(tmp_path, decoders):
    """A row is what one latent reads or writes: the derivative of the reconstruction with respect to it."""
    held = write_tracer(tmp_path)
    clt = jc.load_cross_layer_transcoder(tmp_path, decoders=decoders)
    which = [7, 2, 2]
    for layer in range(LAYERS):
        assert_close(clt.encoder_rows(layer, which), held[layer]["W_enc"][which])
        for target in range(layer, LAYERS):
            assert_close(clt.decoder_rows(layer, which, target), held[layer]["W_dec"][which, target - layer])
    assert clt.decoder_rows(0, np.zeros(0, int), 2).shape == (0, OUT)


def written(clt, target: int, acts: list, source: int, moved):
    """The reconstruction at `target` with other latents in one layer."""
    return clt.decode(target, [*acts[:source], moved, *acts[source + 1 :]])


def test_a_row_is_the_derivative_of_the_reconstruction(tmp_path):
    write_tracer(tmp_path)
    clt = jc.load_cross_layer_transcoder(tmp_path)
    acts = [clt.encode(layer, jnp.asarray(inputs())[layer, 0]) for layer in range(LAYERS)]
    for source, target in ((0, 0), (0, 3), (2, 3)):
        of_one = ft.partial(written, clt, target, acts, source)
        assert_close(
            jax.jacobian(of_one)(acts[source]).T, clt.decoder_rows(source, np.arange(F), target), tolerance=1e-5
        )
    x = jnp.asarray(inputs())[1, 0]
    into = jax.jacobian(lambda x: clt.encode(1, x))(x)
    assert_close(into, clt.slopes(1, x)[:, None] * clt.encoder_rows(1, np.arange(F)), tolerance=1e-5)


def test_of_decoders_in_files_nothing_but_the_rows_is_read(tmp_path, monkeypatch):
    import jaxcirc.interop.dictionaries._stored as stored

    held, read, sizes = write_tracer(tmp_path), stored.read_tensor, []

    def reading(file, name, path, index=...):
        array = read(file, name, path, index)
        sizes.append((name, array.size))
        return array

    monkeypatch.setattr(stored, "read_tensor", reading)
    clt = jc.load_cross_layer_transcoder(tmp_path, decoders="in files")
    assert not [name for name, _ in sizes if name.startswith("W_dec")]
    assert_close(clt.decoder_rows(1, [3, 8], 2), held[1]["W_dec"][[3, 8], 1])
    assert sum(size for name, size in sizes if name.startswith("W_dec")) == 2 * OUT
    one_on = jnp.zeros((5, F)).at[2, 4].set(3.0)
    del sizes[:]
    want = np.zeros((5, OUT))
    want[2] = 3 * held[0]["W_dec"][4, 0]
    assert_close(clt.decode(0, [one_on]), want + held[0]["b_dec"])
    assert sum(size for name, size in sizes if name.startswith("W_dec")) == OUT


@both
def test_half_precision_is_read_as_float32(tmp_path, decoders):
    held = write_tracer(tmp_path, dtype=ml_dtypes.bfloat16)
    clt = jc.load_cross_layer_transcoder(tmp_path, decoders=decoders)
    assert clt.W_enc[0].dtype == clt.decoder_rows(0, [1], 3).dtype == jnp.float32
    check(clt, *forward(held))


@both
@needs_x64
def test_in_another_dtype(tmp_path, decoders):
    held = write_tracer(tmp_path)
    clt = jc.load_cross_layer_transcoder(tmp_path, decoders=decoders, dtype=jnp.float64)
    assert clt.decoder_rows(0, [1], 3).dtype == jnp.float64
    acts, out = forward(held)
    x = jnp.asarray(inputs(), jnp.float64)
    assert_close(clt.decode(1, [clt.encode(layer, x[layer]) for layer in range(2)]), out[1])
    assert_close(clt.encode(1, x[1]), acts[1])


def test_it_is_a_pytree(tmp_path):
    write_tracer(tmp_path)
    clt = jc.load_cross_layer_transcoder(tmp_path)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(clt))
    x = jnp.asarray(inputs())
    run = lambda clt, x: clt.decode(1, [clt.encode(0, x[0]), clt.encode(1, x[1])])
    assert_close(jax.jit(run)(clt, x), run(clt, x))
    assert_close(jax.vmap(run, in_axes=(None, 1))(clt, x), run(clt, x))
    rows = jax.jit(lambda clt, which: (clt.encoder_rows(1, which), clt.decoder_rows(1, which, 2)))(
        clt, jnp.array([3, 1])
    )
    assert_close(rows[0], clt.encoder_rows(1, [3, 1]))
    assert_close(rows[1], clt.decoder_rows(1, [3, 1], 2))
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), clt)
    both_layers = jax.vmap(lambda clt: clt.encode(1, x[1]))(stacked)
    assert_close(both_layers[0], clt.encode(1, x[1]))


def test_a_compiled_function_reads_no_files(tmp_path):
    write_tracer(tmp_path)
    clt = jc.load_cross_layer_transcoder(tmp_path, decoders="in files")
    x = jnp.asarray(inputs())
    assert_close(jax.jit(lambda x: clt.encode(0, x))(x[0]), clt.encode(0, x[0]))
    with pytest.raises(ValueError, match=r"a compiled function cannot read files.*decoders='in memory'"):
        jax.jit(lambda x: clt.decode(0, [clt.encode(0, x)]))(x[0])


# Gemma Scope 2


def write_gemma(folder: Path, *, affine: bool, nested: bool = False) -> list[dict]:
    """One file a layer, with a slot for every layer; those before its own hold what must not be used."""
    held = []
    for layer in range(LAYERS):
        t = tensors_of(layer)
        w_dec = np.full((F, LAYERS, OUT), 7, np.float32)
        w_dec[:, layer:] = t["W_dec"]
        stored = {"w_enc": t["W_enc"].T, "w_dec": w_dec, **{name: t[name] for name in ("b_enc", "b_dec", "threshold")}}
        if affine:
            stored["affine_skip_connection"] = random({"skip": (D, OUT)}, 50 + layer)["skip"]
            t["skip"] = stored["affine_skip_connection"]
        name = f"layer_{layer}_width_262k_l0_medium"
        write(folder / (f"{name}/params.safetensors" if nested else f"{name}.safetensors"), stored)
        held.append(t)
    return held


@both
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_gemma_scope_2(tmp_path, decoders, affine, nested):
    held = write_gemma(tmp_path, affine=affine, nested=nested)
    with pytest.raises(
        ValueError, match=r"nothing says where it reads and writes: no feature_input_hook of config.yaml"
    ):
        jc.load_cross_layer_transcoder(tmp_path)
    clt = jc.load_cross_layer_transcoder(tmp_path, decoders=decoders, reads=Kind.MLP_IN, writes=Kind.MLP_OUT)
    acts, out = forward(held)
    if affine:
        out = [
            y + x.astype(np.float64) @ t["skip"].astype(np.float64) for y, x, t in zip(out, inputs(), held, strict=True)
        ]
        assert clt.decoder_reads_input
        with pytest.raises(ValueError, match=r"layer 0 passes its input on linearly; call decode\(layer, acts, x\)"):
            clt.decode(0, [jnp.asarray(acts[0])])
    check(clt, acts, out)
    assert (clt.reads[2], clt.sites[2]) == (Site(2, Kind.MLP_IN), Site(2, Kind.MLP_OUT))
    assert_close(clt.decoder_rows(1, [3], 3), held[1]["W_dec"][[3], 2])


# Bad input


def test_a_missing_layer_is_named(tmp_path):
    write_tracer(tmp_path)
    (tmp_path / "W_enc_1.safetensors").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"W_enc_1.safetensors is missing, and there is one for layer 3"):
        jc.load_cross_layer_transcoder(tmp_path)
    (tmp_path / "moved").rename(tmp_path / "W_enc_1.safetensors")
    (tmp_path / "W_dec_2.safetensors").unlink()
    with pytest.raises(ValueError, match=r"W_dec_2.safetensors is missing, the directions of W_enc_2.safetensors"):
        jc.load_cross_layer_transcoder(tmp_path)


@both
def test_a_missing_last_layer_shows_in_the_slots(tmp_path, decoders):
    write_tracer(tmp_path)
    (tmp_path / "W_enc_3.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"`W_dec_0` has shape \[10, 4, 4\], expected \[10, 3, 4\].*files for 3 layers"
    ):
        jc.load_cross_layer_transcoder(tmp_path, decoders=decoders)


def test_thresholds_of_some_layers_alone_are_refused(tmp_path):
    write_tracer(tmp_path)
    tensors = {f"{name}_2": array for name, array in tensors_of(2).items() if name not in ("threshold", "W_dec")}
    write(tmp_path / "W_enc_2.safetensors", tensors)
    with pytest.raises(ValueError, match=r"layer 0 has the activation JumpReLU and layer 2 ReLU"):
        jc.load_cross_layer_transcoder(tmp_path)


def test_a_set_that_chooses_over_all_layers_is_refused(tmp_path):
    for layer in range(2):
        write(tmp_path / f"W_enc_{layer}.safetensors", random({f"W_enc_{layer}": (F, D)}))
    write(tmp_path / "factors.safetensors", random({"factors": (F,)}))
    with pytest.raises(ValueError, match=r"without biases, .* chosen over all layers together, which is not supported"):
        jc.load_cross_layer_transcoder(as_yaml(tmp_path, CLT))


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"holds no cross-layer transcoder: expected W_enc_0.safetensors .* It is empty"
    ):
        jc.load_cross_layer_transcoder(tmp_path)
    write_tracer(tmp_path / "set", {**CLT, "model_kind": "transcoder_set"})
    with pytest.raises(
        ValueError, match=r"model_kind is 'transcoder_set', not a cross-layer transcoder. Use jc.load_saes"
    ):
        jc.load_cross_layer_transcoder(tmp_path / "set")
    with pytest.raises(ValueError, match="is a file, and a cross-layer transcoder is a folder"):
        jc.load_cross_layer_transcoder(tmp_path / "set" / "config.yaml")
    with pytest.raises(ValueError, match="decoders must be 'in memory' or 'in files', got 'lazy'"):
        jc.load_cross_layer_transcoder(tmp_path, decoders="lazy")
    write_tracer(tmp_path / "set", {**CLT, "feature_input_hook": "hook_mlp_in"})
    with pytest.raises(ValueError, match=r"feature_input_hook of config.yaml is 'hook_mlp_in'; expected one of"):
        jc.load_cross_layer_transcoder(tmp_path / "set")
    with pytest.raises(ValueError, match=r"Use jc.load_cross_layer_transcoder"):
        jc.load_saes(tmp_path / "set")
    write_gemma(tmp_path / "two", affine=False)
    extra = tmp_path / "two" / "layer_1_width_16k_l0_big.safetensors"
    extra.write_bytes((tmp_path / "two" / "layer_1_width_262k_l0_medium.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"holds two files for layer 1, .* one width and one sparsity"):
        jc.load_cross_layer_transcoder(tmp_path / "two", reads=Kind.MLP_IN, writes=Kind.MLP_OUT)


def test_questions_that_have_no_answer_are_refused(tmp_path):
    write_tracer(tmp_path)
    clt = jc.load_cross_layer_transcoder(tmp_path)
    with pytest.raises(ValueError, match="latents of layer 2 write to layers 2 to 3, got target 1"):
        clt.decoder_rows(2, [0], 1)
    with pytest.raises(ValueError, match="layer 1 has 10 of them, from 0 on, got 3 to 10"):
        clt.decoder_rows(1, [3, 10], 2)
    with pytest.raises(ValueError, match="latents: the mask has 2 entries, and there are 10 latents in layer 1"):
        clt.encoder_rows(1, [True, False])
    with pytest.raises(ValueError, match="latents of layers 0 to 2, and acts holds 1 of them"):
        clt.decode(2, [jnp.zeros(F)])
    zeros = lambda *shape: (jnp.zeros(shape),) * 2
    short = (saes.Decoder(jnp.zeros((F, 1, OUT))),) * 2
    at = (Site(0, Kind.MLP_IN), Site(1, Kind.MLP_IN))
    with pytest.raises(ValueError, match=r"decoder of layer 0 has shape \(10, 1, 4\), expected \(10, 2, 4\)"):
        jc.CrossLayerTranscoder(zeros(D, F), zeros(F), short, zeros(OUT), (saes.ReLU(),) * 2, at, at)
    whole = (saes.Decoder(jnp.zeros((F, 2, OUT))), saes.Decoder(jnp.zeros((F, 1, OUT))))
    several = (saes.TopK(3), saes.TopK(11))
    with pytest.raises(ValueError, match="layer 1: TopK: k is 11, and the dictionary has 10 latents"):
        jc.CrossLayerTranscoder(zeros(D, F), zeros(F), whole, zeros(OUT), several, at, at)
    with pytest.raises(ValueError, match="`W_enc` is of 1 layers, and `b_enc` of 2"):
        jc.CrossLayerTranscoder(zeros(D, F)[:1], zeros(F), short, zeros(OUT), (saes.ReLU(),) * 2, at, at)


def test_from_the_hub(tmp_path, monkeypatch):
    held = write_tracer(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: str(tmp_path))
    clt = jc.load_cross_layer_transcoder("mntss/clt-gemma-2-2b-426k", revision="abc")
    check(clt, *forward(held))
    assert clt.origin == "mntss/clt-gemma-2-2b-426k (cross-layer transcoder)"

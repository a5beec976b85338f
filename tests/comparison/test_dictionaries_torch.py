"""Dictionaries in PyTorch's own files: what only those can hold, and the arithmetic against PyTorch's modules and functions."""

import json
import pickle

import jax.numpy as jnp
import pytest

import jaxcirc as jc
from jaxcirc import saes

from ..helpers import assert_close


torch = pytest.importorskip("torch")
D, F = 6, 10


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def inputs():
    return torch.randn(7, D) * 2 + 0.5


def check(sae, x, acts, recon):
    ours = jnp.asarray(x.numpy())
    assert_close(sae.encode(ours), acts.detach().numpy(), tolerance=1e-5)
    assert_close(sae.decode(sae.encode(ours), ours), recon.detach().numpy(), tolerance=1e-5)


class AutoEncoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.randn(D))
        self.encoder = torch.nn.Linear(D, F)
        self.decoder = torch.nn.Linear(F, D, bias=False)

    def forward(self, x):
        acts = torch.relu(self.encoder(x - self.bias))
        return acts, self.decoder(acts) + self.bias


class TopK(torch.nn.Module):
    def __init__(self, k):
        super().__init__()
        self.b_dec = torch.nn.Parameter(torch.randn(D))
        self.encoder = torch.nn.Linear(D, F)
        self.decoder = torch.nn.Linear(F, D, bias=False)
        self.register_buffer("k", torch.tensor(k, dtype=torch.int))
        self.register_buffer("threshold", torch.tensor(-1.0))

    def forward(self, x):
        acts = torch.relu(self.encoder(x - self.b_dec))
        values, index = acts.topk(int(self.k), dim=-1)
        acts = torch.zeros_like(acts).scatter_(-1, index, values)
        return acts, self.decoder(acts) + self.b_dec


def test_autoencoder_and_topk(tmp_path):
    for module, options in (
        (AutoEncoder(), {"normalize_decoder": False}),
        (TopK(3), {"dict_class": "AutoEncoderTopK"}),
    ):
        path = tmp_path / type(module).__name__ / "ae.pt"
        path.parent.mkdir()
        torch.save(module.state_dict(), path)
        x = inputs()
        check(jc.load_sae(path, **options), x, *module(x))


@pytest.mark.parametrize("norm_factor", [None, 2.5])
def test_a_backup_has_biases_that_still_need_the_norm_factor(tmp_path, norm_factor):
    """It was trained on `x / norm_factor`; what is loaded reads `x`."""
    module = AutoEncoder()
    backup = {
        "step": 1000,
        "ae": module.state_dict(),
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
        "config": {
            "dict_class": "AutoEncoder",
            "activation_dim": D,
            "dict_size": F,
            "lm_name": "EleutherAI/pythia-70m-deduped",
        },
        "norm_factor": norm_factor,
    }
    torch.save(backup, tmp_path / "ae.pt")
    sae = jc.load_sae(tmp_path, normalize_decoder=False)
    x, factor = inputs(), norm_factor or 1.0
    acts, recon = module(x / factor)
    check(sae, x, acts * factor, recon * factor)
    assert ("norm_factor=2.5" in sae.origin) == (norm_factor is not None)
    assert sae.processing == ()


@pytest.mark.parametrize("threshold", [0.4, -1.0])
def test_a_backup_of_batchtopk_scales_a_threshold_that_is_set(tmp_path, threshold):
    module = TopK(3)
    module.threshold.fill_(threshold)
    config = {"dict_class": "BatchTopKSAE", "k": 3}
    torch.save({"step": 1, "ae": module.state_dict(), "config": config, "norm_factor": 2.0}, tmp_path / "ae.pt")
    if threshold < 0:
        with pytest.warns(UserWarning, match="plain ReLU"):
            sae = jc.load_sae(tmp_path)
    else:
        sae = jc.load_sae(tmp_path)
    x = inputs()
    acts = torch.relu(module.encoder(x / 2 - module.b_dec))
    acts = acts * (acts > threshold)
    check(sae, x, acts * 2, (module.decoder(acts) + module.b_dec) * 2)


def openai_state(activation, **settings):
    tensors = {
        "pre_bias": torch.randn(D),
        "encoder.weight": torch.randn(F, D),
        "latent_bias": torch.randn(F),
        "decoder.weight": torch.randn(D, F),
        "stats_last_nonzero": torch.zeros(F, dtype=torch.long),
    }
    return {**tensors, **({} if activation is None else {"activation": activation}), **settings}


@pytest.mark.parametrize("activation", [None, "ReLU", "TopK"])
def test_openai_says_its_activation(tmp_path, activation):
    """Without the entry it is a ReLU; the input is standardised only with TopK."""
    settings = {"activation_state_dict": {"k": 3, "postact_fn": "ReLU"} if activation == "TopK" else {}}
    state = openai_state(activation, **settings)
    path = tmp_path / "gpt2-small" / "resid_delta_mlp_v5_32k" / "autoencoders" / "3.pt"
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    sae = jc.load_sae(path)
    x = inputs()
    read, undo = x, lambda y: y
    if activation == "TopK":
        mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        read, undo = (x - mean) / (std + 1e-5), lambda y: y * std + mean
    pre = torch.nn.functional.linear(read - state["pre_bias"], state["encoder.weight"], state["latent_bias"])
    if activation == "TopK":
        values, index = pre.topk(3, dim=-1)
        pre = torch.zeros_like(pre).scatter_(-1, index, values)
    acts = torch.relu(pre)
    check(sae, x, acts, undo(torch.nn.functional.linear(acts, state["decoder.weight"]) + state["pre_bias"]))
    assert str(sae.site) == "blocks.3.hook_mlp_out"


def test_openai_refusals(tmp_path):
    def loading(state, **options):
        torch.save(state, tmp_path / "0.pt")
        return jc.load_sae(tmp_path / "0.pt", **options)

    with pytest.raises(
        ValueError, match=r"activation 'Softplus' is not supported. Supported are ReLU, Identity and TopK"
    ):
        loading(openai_state("Softplus"))
    with pytest.raises(ValueError, match="does not say its k"):
        loading(openai_state("TopK"))
    with pytest.raises(ValueError, match="k=4 was asked for, and the file says 3"):
        loading(openai_state("TopK", activation_state_dict={"k": 3}), k=4)
    with pytest.raises(ValueError, match="postact_fn 'Tanh' is not supported"):
        loading(openai_state("TopK", activation_state_dict={"k": 3, "postact_fn": "Tanh"}))
    tied = openai_state("ReLU")
    tied["decoder.linear.weight"] = tied["encoder.weight"] + 1
    del tied["decoder.weight"]
    with pytest.raises(ValueError, match="tied to its encoder, and the two tensors differ"):
        loading(tied)


def test_transcoder_with_its_configuration(tmp_path):
    shapes = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, 4), "b_dec": (D,), "b_dec_out": (4,)}
    t = {name: torch.randn(shape) for name, shape in shapes.items()}
    cfg = {
        "hook_point": "blocks.5.ln2.hook_normalized",
        "out_hook_point": "blocks.5.hook_mlp_out",
        "d_in": D,
        "d_sae": F,
        "d_out": 4,
        "is_transcoder": True,
    }
    torch.save({"cfg": cfg, "state_dict": t}, tmp_path / "transcoder.pt")
    sae = jc.load_sae(tmp_path / "transcoder.pt")
    x = inputs()
    acts = torch.relu((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    check(sae, x, acts, acts @ t["W_dec"] + t["b_dec_out"])
    assert isinstance(sae, saes.Transcoder)
    assert (str(sae.reads), str(sae.site)) == ("blocks.5.ln2.hook_normalized", "blocks.5.hook_mlp_out")


@pytest.mark.parametrize(
    ("hooks", "reads", "site"),
    [
        (
            {"hook_point_template": "blocks.{layer}.ln2.hook_normalized", "hook_point_layer": 3},
            "blocks.3.ln2.hook_normalized",
            "blocks.3.hook_mlp_out",
        ),
        (
            {
                "hook_point": "blocks.{layer}.hook_resid_pre",
                "hook_point_layer": 3,
                "out_hook_point": "blocks.{layer}.hook_resid_post",
                "out_hook_point_layer": 4,
            },
            "blocks.3.hook_resid_pre",
            "blocks.4.hook_resid_post",
        ),
    ],
)
def test_a_transcoder_whose_hook_points_are_templates(tmp_path, hooks, reads, site):
    shapes = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,), "b_dec_out": (D,)}
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    torch.save({"cfg": {**hooks, "d_in": D, "d_sae": F}, "state_dict": tensors}, tmp_path / "transcoder.pt")
    sae = jc.load_sae(tmp_path / "transcoder.pt")
    assert (str(sae.reads), str(sae.site)) == (reads, site)


def test_an_sae_with_its_configuration_in_one_file(tmp_path):
    """As sae_training wrote them: a scale of ones for fine-tuning, and a template for the hook point."""
    shapes = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}
    t = {name: torch.randn(shape) for name, shape in shapes.items()}
    cfg = {"hook_point_template": "blocks.{layer}.hook_resid_pre", "hook_point_layer": 2, "hook_point_head_index": None}
    cfg |= {"d_in": D, "d_sae": F, "l1_coefficient": 8e-5, "dtype": torch.float32, "use_ghost_grads": True}
    torch.save({"cfg": cfg, "state_dict": {**t, "scaling_factor": torch.ones(F)}}, tmp_path / "sae.pt")
    sae = jc.load_sae(tmp_path / "sae.pt")
    x = inputs()
    acts = torch.relu((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    check(sae, x, acts, acts @ t["W_dec"] + t["b_dec"])
    assert isinstance(sae, saes.SAE)
    assert str(sae.site) == "blocks.2.hook_resid_pre"
    torch.save({"cfg": {**cfg, "frobnicate": 1}, "state_dict": t}, tmp_path / "sae.pt")
    with pytest.raises(ValueError, match=r"the attribute `frobnicate` of cfg.json"):
        jc.load_sae(tmp_path / "sae.pt")


@pytest.mark.parametrize("activation", ["topk", "groupmax"])
def test_sparsify_against_torch(tmp_path, activation):
    safetensors = pytest.importorskip("safetensors.torch")
    encoder = torch.nn.Linear(D, F)
    t = {"W_dec": torch.randn(F, D), "b_dec": torch.randn(D)}
    config = {"activation": activation, "num_latents": F, "k": 5, "d_in": D, "multi_topk": True}
    folder = tmp_path / "gpt_neox.layers.3.attention"
    folder.mkdir()
    stored = {"encoder.weight": encoder.weight.data, "encoder.bias": encoder.bias.data, **t}
    safetensors.save_file(stored, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))
    x = inputs()
    pre = torch.relu(encoder(x - t["b_dec"]))
    if activation == "topk":
        values, index = pre.topk(5, dim=-1)
    else:
        values, index = pre.unflatten(-1, (5, -1)).max(dim=-1)
        index = index + torch.arange(0, F, F // 5)
    acts = torch.zeros_like(pre).scatter_(-1, index, values)
    sae = jc.load_sae(folder)
    check(sae, x, acts, acts @ t["W_dec"] + t["b_dec"])
    assert str(sae.site) == "blocks.3.hook_attn_out"


@pytest.mark.parametrize("rescaled", [False, True])
def test_a_batchtopk_checkpoint_against_torch(tmp_path, rescaled):
    safetensors = pytest.importorskip("safetensors.torch")
    shapes = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}
    t = {name: torch.randn(shape) for name, shape in shapes.items()}
    stored = {**t, "topk_threshold": torch.tensor(0.9, dtype=torch.double)}
    safetensors.save_file(stored, tmp_path / "sae_weights.safetensors")
    config = {
        "architecture": "batchtopk",
        "k": 2.5,
        "rescale_acts_by_decoder_norm": rescaled,
        "topk_threshold_lr": 0.01,
    }
    (tmp_path / "cfg.json").write_text(json.dumps({**config, "metadata": {"hook_name": "blocks.0.hook_resid_mid"}}))
    x = inputs()
    norms = t["W_dec"].norm(dim=-1) if rescaled else torch.ones(F)
    acts = torch.relu(((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * norms)
    acts = acts * (acts > 0.9)
    check(jc.load_sae(tmp_path), x, acts, (acts / norms) @ t["W_dec"] + t["b_dec"])


def test_end_to_end_saes_against_normalize(tmp_path):
    encoder, decoder = torch.nn.Sequential(torch.nn.Linear(D, F), torch.nn.ReLU()), torch.nn.Linear(F, D)
    module = torch.nn.ModuleDict(
        {"blocks-4-hook_resid_pre": torch.nn.ModuleDict({"encoder": encoder, "decoder": decoder})}
    )
    torch.save(module.state_dict(), tmp_path / "samples_1.pt")
    sae = jc.load_sae(tmp_path / "samples_1.pt")
    x = inputs()
    acts = encoder(x)
    unit = torch.nn.functional.normalize(decoder.weight, dim=0)
    check(sae, x, acts, torch.nn.functional.linear(acts, unit, decoder.bias))
    assert str(sae.site) == "blocks.4.hook_resid_pre"


def test_saelens_normalisation_against_torch_std(tmp_path):
    t = {
        name: torch.randn(shape)
        for name, shape in {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}.items()
    }
    config = {"architecture": "topk", "k": 3, "d_in": D, "d_sae": F, "normalize_activations": "layer_norm"}
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(t, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps({**config, "metadata": {"hook_name": "blocks.0.hook_resid_mid"}}))
    x = inputs()
    mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    pre = ((x - mean) / (std + 1e-5) - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    values, index = pre.topk(3, dim=-1)
    acts = torch.zeros_like(pre).scatter_(-1, index, values.relu())
    check(jc.load_sae(tmp_path), x, acts, (acts @ t["W_dec"] + t["b_dec"]) * std + mean)


class Config:
    """Something of another library, as training scripts pickle along with the weights."""


def test_a_pickle_that_is_more_than_weights_is_refused(tmp_path):
    torch.save({"cfg": Config(), "state_dict": {}}, tmp_path / "sae.pt")
    with pytest.raises(ValueError, match="holds more than weights, and loading it could run code"):
        jc.load_sae(tmp_path / "sae.pt")
    (tmp_path / "sae.pt").write_bytes(pickle.dumps(Config()))
    with pytest.raises(ValueError, match="more than weights"):
        jc.load_sae(tmp_path / "sae.pt")


def test_files_that_are_no_state_dict_are_refused(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list, expected named tensors"):
        jc.load_sae(tmp_path / "list.pt")
    state = AutoEncoder().state_dict()
    state["bias"][2] = float("nan")
    torch.save(state, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match="tensor `bias` holds NaN"):
        jc.load_sae(tmp_path / "ae.pt")
    torch.save({**AutoEncoder().state_dict(), "bias": "none"}, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match=r"tensor `bias` holds .*, not numbers"):
        jc.load_sae(tmp_path / "ae.pt")
    torch.save({"step": 3, "ae": 5}, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match="under `ae` expected a state dict, got a int"):
        jc.load_sae(tmp_path / "ae.pt")


def test_bfloat16_files_become_float32(tmp_path):
    module = AutoEncoder()
    torch.save({name: value.bfloat16() for name, value in module.state_dict().items()}, tmp_path / "ae.pt")
    sae = jc.load_sae(tmp_path, normalize_decoder=False)
    assert sae.W_dec.dtype == jnp.float32
    assert_close(sae.W_dec, module.decoder.weight.detach().numpy().T, tolerance=1e-2)


class Linear(torch.nn.Module):
    """Goodfire's and, with other names, qresearch's: nothing is subtracted first."""

    def __init__(self):
        super().__init__()
        self.encoder_linear = torch.nn.Linear(D, F)
        self.decoder_linear = torch.nn.Linear(F, D)

    def forward(self, x):
        acts = torch.relu(self.encoder_linear(x))
        return acts, self.decoder_linear(acts)


@pytest.mark.parametrize("name", ["Llama-3.1-8B-Instruct-SAE-l19.pth", "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt"])
def test_one_file_of_one_layer_in_bfloat16(tmp_path, name):
    module = Linear().to(torch.bfloat16)
    state = module.state_dict()
    if name.startswith("DeepSeek"):
        state = {key.replace("_linear", ""): value for key, value in state.items()}
    torch.save(state, tmp_path / name)
    x = inputs()
    sae = jc.load_sae(tmp_path / name)
    check(sae, x, *module.float()(x))
    assert str(sae.site) == "blocks.19.hook_resid_post"


def test_qwen_scope_keeps_exactly_k(tmp_path):
    state = {
        "W_enc": torch.randn(1024, D),
        "W_dec": torch.randn(D, 1024),
        "b_enc": torch.randn(1024),
        "b_dec": torch.randn(D),
    }
    folder = tmp_path / "SAE-Res-Qwen3-1.7B-Base-W1K-L0_5"
    folder.mkdir()
    torch.save(state, folder / "layer7.sae.pt")
    x = inputs()
    values, index = (x @ state["W_enc"].T + state["b_enc"]).topk(5, dim=-1)
    acts = torch.zeros(len(x), 1024).scatter_(-1, index, values)
    sae = jc.load_sae(folder)
    check(sae, x, acts, acts @ state["W_dec"].T + state["b_dec"])
    assert [str(site) for site in jc.load_saes(tmp_path)] == ["blocks.7.hook_resid_post"]
    some = jc.load_sae(folder, latents=[1000, 3])
    assert_close(some.W_dec, state["W_dec"][:, [1000, 3]].T.numpy())

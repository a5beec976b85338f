"""Against Flax: its checkpoints, a Linen model as an oracle of values and gradients at every site, and the bridge to NNX."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc.interop import as_nnx, from_nnx_state, save_pretrained, to_flax_params

from ..helpers import assert_close, tokens_for
from ..stored_models import FLOAT, LEARNED, load, same_arrays, stored_model


flax = pytest.importorskip("flax")

from flax import nnx, serialization, traverse_util  # noqa: E402

from .flax_models import by_site, LM  # noqa: E402


SIZES = {"width": 12, "heads": 3, "d_mlp": 10, "vocab": 11, "n_ctx": 9, "eps": 1e-5}
LINEN = {
    "gpt2": SIZES | {"neo": False, "windows": (None, None), "untied": False},
    "gpt2-untied": SIZES | {"neo": False, "windows": (None,), "untied": True},
    "gpt-neo": SIZES | {"neo": True, "windows": (None, 3), "untied": False},
    "gpt-neo-untied": SIZES | {"neo": True, "windows": (2,), "untied": True},
}
TOKENS = np.random.default_rng(3).integers(0, 11, 9)


def config_of(linen: dict) -> dict:
    """The Hugging Face configuration of a Linen model."""
    common = {
        "vocab_size": linen["vocab"],
        "tie_word_embeddings": not linen["untied"],
        "layer_norm_epsilon": linen["eps"],
    }
    if not linen["neo"]:
        sizes = {
            "n_embd": linen["width"],
            "n_head": linen["heads"],
            "n_inner": linen["d_mlp"],
            "n_positions": linen["n_ctx"],
        }
        return common | sizes | {"model_type": "gpt2", "n_layer": len(linen["windows"])}
    sizes = {"hidden_size": linen["width"], "num_heads": linen["heads"], "intermediate_size": linen["d_mlp"]}
    kinds = ["global" if window is None else "local" for window in linen["windows"]]
    local = {"attention_layers": kinds, "window_size": next(filter(None, linen["windows"])), "num_layers": len(kinds)}
    return common | sizes | local | {"model_type": "gpt_neo", "max_position_embeddings": linen["n_ctx"]}


@pytest.fixture(scope="module", params=LINEN)
def linen(request):
    """A Linen model, its variables, and its configuration."""
    model = LM(LINEN[request.param])
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(TOKENS)[None])
    rng = np.random.default_rng(5)  # by numpy: it compiles nothing
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / leaf.shape[-1] ** 0.5, FLOAT), shapes["params"]
    )
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, FLOAT), shapes["perturbations"])
    variables = {"params": params, "perturbations": zeros}
    return model, variables, config_of(LINEN[request.param])


def write_msgpack(folder, params, config):
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(jax.tree.map(np.asarray, params)))


def test_values_and_gradients_at_every_site(linen, tmp_path):
    model, variables, config = linen
    write_msgpack(tmp_path, variables["params"], config)
    ours, tokens = load(tmp_path), jnp.asarray(TOKENS, jnp.int32)
    weights = jnp.asarray(np.random.default_rng(4).normal(size=(9, 11)), FLOAT)

    @jax.jit
    def theirs(perturbations):
        def scalar(perturbations):
            variables_here = {"params": variables["params"], "perturbations": perturbations}
            logits, state = model.apply(variables_here, tokens[None], mutable="intermediates")
            return (logits[0] * weights).sum(), state["intermediates"]

        return jax.grad(scalar, has_aux=True)(perturbations)

    gradients, values = map(by_site, theirs(variables["perturbations"]))
    # They do not compute each head's result, nor gates, and the mask is a number with them.
    sites = [site for site in jc.sites(ours) if site.kind not in (jc.Kind.RESULT, jc.Kind.MLP_GATE)]
    assert {str(site) for site in sites} == set(values)

    @jax.jit
    def at_sites(shifts):
        def scalar(shifts):
            edits = {site: jc.Add(shift) for site, shift in shifts.items()}
            logits, cache = jc.run(ours, tokens, edits=edits, record=sites)
            return (logits * weights).sum(), cache

        return jax.grad(scalar, has_aux=True)(shifts)

    shifts = {site: jnp.zeros_like(values[str(site)]) for site in sites}
    our_gradients, our_values = at_sites(shifts)
    for site in sites:
        want = np.where(np.asarray(values[str(site)]) <= -1e29, -np.inf, values[str(site)])
        assert_close(our_values[site], want, tolerance=1e-12 if FLOAT == np.float64 else 2e-5)
        assert_close(our_gradients[site], gradients[str(site)], tolerance=1e-11 if FLOAT == np.float64 else 1e-4)


def flax_tree(model) -> dict:
    """From our PyTorch names to Flax': every matrix is stored the other way round, but embeddings."""
    out = {}
    for name, array in jc.to_torch_state_dict(model).items():
        path = name.split(".")
        leaf = {"ln_1": "scale", "ln_2": "scale", "ln_f": "scale", "wte": "embedding", "wpe": "embedding"}.get(
            path[-2], "kernel"
        )
        turned = array.T if leaf == "kernel" and path[-1] == "weight" else array
        out[(*path[:-1], leaf if path[-1] == "weight" else path[-1])] = np.ascontiguousarray(turned)
    if model.untied_W_U is None:
        del out[("lm_head", "kernel")]  # Flax keeps a tied head only once
    return traverse_util.unflatten_dict(out)


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "gpt2-untied-odd-sizes", "gpt-neo", "gpt-neo-untied-odd-sizes"])
def test_flax_checkpoints_load_as_pytorch_ones(name, bare, tmp_path):
    model = stored_model(name)
    save_pretrained(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    tree = flax_tree(model)
    if bare:
        tree = tree["transformer"] | {key: tree[key] for key in tree if key != "transformer"}
    write_msgpack(tmp_path, tree, json.loads((tmp_path / "config.json").read_text()))
    assert same_arrays(load(tmp_path), model)
    assert same_arrays(load(tmp_path / "flax_model.msgpack"), model)


@pytest.mark.parametrize("name", LEARNED)
def test_flax_parameters_round_trip_bit_for_bit(name, tmp_path):
    model = stored_model(name)
    params, by_hand = (traverse_util.flatten_dict(tree) for tree in (to_flax_params(model), flax_tree(model)))
    assert params.keys() == by_hand.keys()
    assert all(np.array_equal(params[path], by_hand[path]) for path in params)
    save_pretrained(model, tmp_path)
    write_msgpack(tmp_path, to_flax_params(model), json.loads((tmp_path / "config.json").read_text()))
    assert same_arrays(load(tmp_path / "flax_model.msgpack"), model)


@pytest.mark.parametrize("keep", [0, 10, -10])
def test_truncated_flax_files(keep, tmp_path):
    model = stored_model("gpt2")
    save_pretrained(model, tmp_path)
    path = tmp_path / "flax_model.msgpack"
    write_msgpack(tmp_path, flax_tree(model), json.loads((tmp_path / "config.json").read_text()))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"flax_model.msgpack is not a whole Flax msgpack file"):
        load(path)


# --- NNX -----------------------------------------------------------------------------------------------------------------------------


def test_a_model_through_nnx():
    model = stored_model("gpt2")
    bridge = as_nnx(model)
    graph, state = nnx.split(bridge)
    assert same_arrays(nnx.merge(graph, state).model, model)
    assert nnx.split(as_nnx(model))[0] == graph  # one class, so that nothing compiles anew
    tokens = tokens_for(model)
    want = jc.run(model, tokens)[0]
    assert_close(nnx.jit(lambda bridge: jc.run(bridge.model, tokens)[0])(bridge), want)


def test_a_model_from_an_nnx_state():
    model = stored_model("gpt-neo")
    tree = jax.tree.map(nnx.Param, flax_tree(model))
    tree["transformer"]["h"] = {int(layer): block for layer, block in tree["transformer"]["h"].items()}
    state = nnx.State(tree)
    config = {
        "model_type": "gpt_neo",
        "hidden_size": 16,
        "num_heads": 2,
        "num_layers": 2,
        "intermediate_size": 24,
        "window_size": 3,
    }
    config |= {"vocab_size": 13, "max_position_embeddings": 12, "attention_layers": ["global", "local"]}
    assert same_arrays(from_nnx_state(state, config), model)
    assert same_arrays(from_nnx_state(flax_tree(model), config), model)
    with pytest.raises(ValueError, match=r"The NNX state does not hold the tensors .*missing: `wte.embedding`"):
        from_nnx_state({}, config)

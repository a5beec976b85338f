"""Against feature-circuits: node effects and edges that it computed of a small random GPT-2, stored by `feature_circuits.py`."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import jaxcirc as jc
from jaxcirc import Site
from jaxcirc.saes import ReLU, SAE

from ..helpers import assert_close, needs_x64
from .feature_circuits import FILE, LATENTS, STEPS, wires


pytestmark = needs_x64
KINDS = {"attn": "hook_attn_out", "mlp": "hook_mlp_out", "resid": "hook_resid_post"}


def site_of(name: str) -> Site:
    if name == "embed":
        return Site.parse("blocks.0.hook_resid_pre")
    kind, layer = name.split("_")
    return Site.parse(f"blocks.{layer}.{KINDS[kind]}")


def part(arrays, prefix: str):
    return {name.removeprefix(prefix): jnp.asarray(arrays[name]) for name in arrays if name.startswith(prefix)}


@pytest.fixture(scope="module")
def stored():
    with np.load(FILE) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def found(stored, tmp_path_factory):
    """What we compute of the same."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(str(stored["config"]))
    weights = {name: np.ascontiguousarray(value) for name, value in part(stored, "weights/").items()}
    safetensors.numpy.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    model = jc.from_pretrained(folder, dtype=jnp.float64)
    saes = {}
    for name in part(stored, "nodes/"):
        mine = part(stored, f"dictionaries/{name}/")
        encoder, decoder = mine["encoder.weight"].T, mine["decoder.weight"].T
        saes[site_of(name)] = SAE(encoder, mine["encoder.bias"], decoder, mine["bias"], ReLU(), site_of(name))
    prompts = [jnp.asarray(stored[side], jnp.int32) for side in ("clean", "corrupt")]
    metric = jc.LogitDiff(stored["foil"], stored["answer"])
    method = jc.IntegratedGradients(STEPS, "left")
    nodes = jc.node_effects(model, saes, *prompts, metric, method=method)
    return nodes, jc.edge_effects(model, saes, *prompts, metric, nodes, threshold=0.0)


def test_nodes_are_those_of_feature_circuits(stored, found):
    nodes, _ = found
    assert_close(nodes.total, stored["total"], tolerance=1e-12)
    for name, want in part(stored, "nodes/").items():
        assert np.abs(want).max() > 1e-2
        got = jnp.concatenate([nodes.acts[site_of(name)], nodes.error[site_of(name)][..., None]], axis=-1)
        assert_close(got, want, tolerance=1e-12)


def test_edges_are_those_of_feature_circuits_but_for_edges_out_of_errors(stored, found):
    """There edges out of errors are 0, because the gradient that is read has been set to 0 before; ours are not."""
    _, edges = found
    known = wires(json.loads(str(stored["config"]))["n_layer"])
    assert {(site_of(source), site_of(target)) for source, target in known} == {*edges.coo}
    for source, target in known:
        want = stored[f"edges/{source}/{target}"]
        # They have a batch axis on either side, and no edge goes from one example to another.
        assert not want[0, :, :, 1].any()
        assert not want[1, :, :, 0].any()
        want = np.stack([want[0, :, :, 0], want[1, :, :, 1]])
        got = edges.dense((site_of(source), site_of(target)))
        for rows in (slice(LATENTS), slice(LATENTS, None)):  # into latents, and into errors
            assert np.abs(want[:, :, rows, :, :LATENTS]).max() > 1e-3
            assert_close(got[:, :, rows, :, :LATENTS], want[:, :, rows, :, :LATENTS], tolerance=1e-12)
        assert not want[..., LATENTS].any()
        assert np.abs(got[..., LATENTS]).max() > 1e-3

"""Latents that are off take no memory: what is held grows with those that are on, and nothing is run or encoded twice."""

import gc
import tracemalloc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.attribution import Lists
from jaxcirc.circuits._means import Memory
from jaxcirc.runs import some_at_once
from jaxcirc.units import listed, write, write_tiles
from tests.helpers import assert_close, MODELS, tokens_for


WIDE, BATCH, SEQ = 2**14, 3, 8
KINDS = (Kind.ATTN_OUT, Kind.MLP_OUT, Kind.RESID_POST)
CUTS = {"node_threshold": 0.02, "edge_threshold": 0.001, "method": jc.Gradient()}


@pytest.fixture(scope="module")
def given():
    """Dictionaries of which one latent in a thousand is on."""
    model = MODELS["gpt2"](jax.random.key(3))
    sites = [Site(layer, kind) for layer in range(model.n_layers) for kind in KINDS]
    clean = jnp.stack([tokens_for(model, SEQ, seed) for seed in range(BATCH)])
    values = jc.run(model, clean[0], record=sites)[1]
    saes = {site: sparse_sae(number, values[site]) for number, site in enumerate(sites)}
    corrupt = clean.at[:, 1].set((clean[:, 1] + 1) % model.d_vocab)
    return model, saes, clean, corrupt, jc.LogitDiff(jnp.arange(BATCH), jnp.arange(BATCH) + 2)


def sparse_sae(seed: int, x: jax.Array) -> jc.saes.SAE:
    keys = jax.random.split(jax.random.key(seed), 2)
    encoder, decoder = (jax.random.normal(key, (WIDE, x.shape[-1]), x.dtype) for key in keys)
    threshold = jnp.quantile(x @ encoder.T, 0.999)
    return jc.saes.SAE(encoder.T, jnp.full(WIDE, -threshold), decoder, jnp.zeros_like(x[0]), jc.saes.ReLU())


@pytest.fixture(scope="module")
def effects(given):
    return jc.node_effects(*given, method=jc.Gradient())


def held(tree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def test_effects_hold_what_is_on(given, effects):
    on = [np.count_nonzero(effects.acts[site]) for site in given[1]]
    dense = len(on) * BATCH * SEQ * WIDE
    assert 100 < sum(on) < dense / 200
    assert held(effects) < dense / 10 * effects.clean.itemsize


@pytest.mark.parametrize("method", [jc.ExactPatching(), jc.IntegratedGradients(2)], ids=lambda x: type(x).__name__)
def test_every_method_gives_lists(given, method):
    model, saes, clean, *rest = given
    found = jc.node_effects(model, saes, clean[:1], rest[0][:1], jc.LogitDiff(0, 2), method=method)
    assert held(found.listed) < len(saes) * SEQ * WIDE


def test_an_array_is_there_while_somebody_holds_it(given, effects):
    site = next(iter(given[1]))
    acts = effects.acts
    array = acts[site]
    assert array.shape == (BATCH, SEQ, WIDE)
    assert acts[str(site)] is array
    np.testing.assert_array_equal(effects.nodes(site)[..., :-1], array)
    np.testing.assert_array_equal(effects.nodes(site)[..., -1], effects.error[site])
    there = weakref.ref(array)
    del array
    gc.collect()
    assert there() is None


def test_arrays_by_site_are_a_mapping_and_a_tree(given, effects):
    acts, sites = effects.acts, list(given[1])
    assert list(acts) == sites
    assert len(acts) == len(sites)
    assert str(sites[0]) in acts
    assert "blocks.7.hook_mlp_out" not in acts
    assert acts.get("blocks.7.hook_mlp_out") is None
    assert "blocks.0.hook_mlp_out" in repr(acts)
    with pytest.raises(KeyError, match=r"There is nothing at `blocks\.7\.hook_mlp_out`"):
        acts["blocks.7.hook_mlp_out"]
    doubled = jax.tree.map(lambda x: 2 * x, acts)
    assert_close(doubled[sites[1]], 2 * np.asarray(acts[sites[1]]))


def test_discover_runs_its_prompts_once(given, monkeypatch):
    runs = counted(monkeypatch, "record_sides")
    circuit = jc.discover(*given, **CUTS)
    assert len(circuit.edges) > 20
    assert len(runs) == 1


@pytest.mark.parametrize(("keep", "run", "encoded"), [(9, 3, 3), (8, 6, 3), (2, 6, 4), (0, 6, 6)])
def test_what_does_not_fit_is_found_again_and_what_takes_longest_last(given, monkeypatch, keep, run, encoded):
    cuts = {**CUTS, "edge_threshold": 0.0}
    want = jc.discover(*given, **cuts, batch_size=1)
    runs, lists = counted(monkeypatch, "record_sides"), counted(monkeypatch, "_lists")
    monkeypatch.setattr("jaxcirc.circuits._means.KEEP", keep)
    monkeypatch.setattr(Memory, "nbytes", lambda memory: 1 if isinstance(memory.runs, Lists) else 3)
    got = jc.discover(*given, **cuts, batch_size=1)
    assert (len(runs), len(lists)) == (run, encoded)
    # The last sums of edges may be in another order, and so rounded otherwise.
    both = got.edges.merge(want.edges, on=["source", "target"], how="outer").fillna(0.0)
    assert_close(both["weight_x"].to_numpy(), both["weight_y"].to_numpy())
    assert_close(got.nodes["effect"].to_numpy(), want.nodes["effect"].to_numpy())


def counted(monkeypatch, name: str) -> list[None]:
    """A list that grows by one whenever what runs both sides of a problem calls that function."""
    calls, module = [], f"jaxcirc.attribution._states.{name}"
    body = getattr(__import__("jaxcirc.attribution._states", fromlist=[name]), name)
    monkeypatch.setattr(module, lambda *arguments: calls.append(None) or body(*arguments))
    return calls


def test_no_array_of_all_latents_is_on_the_host(given):
    """But for those of one site while they are encoded, which the device has."""
    few = {**CUTS, "node_threshold": 2.0, "edge_threshold": 0.5}
    jc.discover(*given, **few)
    tracemalloc.start()
    jc.discover(*given, **few)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < BATCH * SEQ * WIDE * 8  # averages are in double precision


def test_prompts_that_do_not_fit_at_once_are_encoded_some_positions_at_a_time(given, effects, monkeypatch):
    granted = 5 * 5 * WIDE * effects.clean.dtype.itemsize
    monkeypatch.setattr("jaxcirc.attribution._states.allowance", lambda: granted)
    some = jc.node_effects(*given, method=jc.Gradient())
    for site in given[1]:
        assert_close(some.nodes(site), effects.nodes(site), mass=1e-6)


@pytest.mark.parametrize("granted", [1, 20, 30, 100])
def test_examples_some_at_a_time(granted):
    x, y = np.arange(14.0).reshape(7, 2), np.arange(7.0)
    double = lambda x, y: {"sum": x.sum() + y, "x": 2 * x}
    got = some_at_once(double, 10, x, y, granted=granted)
    assert_close(got["sum"], x.sum(1) + y)
    assert_close(got["x"], 2 * x)


@pytest.mark.parametrize("seq", [31, 33, 100])
def test_what_latents_write_at_many_positions(seq):
    """In tiles of positions and latents, some of them empty, and one example longer than another."""
    rng, width = np.random.default_rng(seq), 3
    rows = jnp.asarray(rng.normal(size=(400, width)))
    dense = np.where(rng.random((2, seq, 400)) < 0.04, rng.normal(size=(2, seq, 400)), 0)
    dense[0, 5:70], dense[1, -3:] = 0, 0
    latents = listed(dense.astype(rows.dtype))
    got = jax.vmap(lambda latents: write(latents, rows, seq, tiles=write_tiles()))(latents)
    assert_close(got, dense @ np.asarray(rows))

"""Masks trained by gradient."""

import re
import sys

import jax
import numpy as np
import pytest

import jaxcirc as jc

from .helpers import assert_close, model_named
from .test_patch_edges import problem


pytest.importorskip("optax")


def test_a_fifth_of_the_edges_does_much_of_what_all_do():
    """More than as many edges drawn at random."""
    model = model_named("gpt2")
    given = problem(model)
    found = jc.patching.train_masks(model, *given, share=0.2, steps=200, key=jax.random.key(0))
    graph = found.graph
    assert found.kept.sum() == round(0.2 * graph.n_edges)
    assert not found.kept[~graph.edges].any()
    assert not found.scores[~graph.edges].any()
    assert found.scores[found.kept].min() >= found.scores[graph.edges & ~found.kept].max()
    assert abs(found.share[-1] - 0.2) < 0.1
    means = [float(jc.patch_edges(model, *given, keep).mean()) for keep in (graph.edges, ~graph.edges, found.kept)]
    assert_close(np.array([found.full, found.empty, found.metric]), np.array(means), tolerance=1e-5)
    assert found.faithfulness == pytest.approx((means[2] - means[1]) / (means[0] - means[1]), abs=1e-4)
    whole = np.asarray(jc.patch_edges(model, *given, graph.edges))

    def distance(keep):
        return float(((np.asarray(jc.patch_edges(model, *given, keep)) - whole) ** 2).sum())

    rng, places = np.random.default_rng(0), np.argwhere(graph.edges)
    others = []
    for _ in range(8):
        keep = np.zeros(graph.edges.shape, bool)
        keep[tuple(places[rng.permutation(len(places))[: found.kept.sum()]].T)] = True
        others.append(distance(keep))
    assert distance(found.kept) < min(others)
    assert distance(found.kept) < 0.25 * np.median(others)


def test_the_key_determines_it():
    model = model_named("attention-only")
    given = problem(model)
    train = lambda key: jc.patching.train_masks(model, *given, share=0.3, steps=3, key=jax.random.key(key))
    one, same, other = train(0), train(0), train(1)
    assert (one.scores == same.scores).all()
    assert (one.loss == same.loss).all()
    assert (one.loss != other.loss).any()


def test_a_loss_positions_and_ablations():
    model = model_named("gpt2")
    clean, corrupt, _ = problem(model)
    reference = jax.vmap(lambda tokens: jc.run(model, tokens)[0][-1])(clean)
    graph = jc.component_graph(model, positions=6, biases=True)
    more = {"share": 0.5, "steps": 2, "key": jax.random.key(0), "objective": "least", "graph": graph}
    found = jc.patching.train_masks(model, clean, None, jc.KL(reference), ablation=jc.Resample(corrupt), **more)
    assert found.kept.shape == graph.edges.shape
    assert found.full == pytest.approx(0, abs=1e-5)
    assert found.empty > 1e-3


BAD = {
    "no share": ({"share": 0.0}, "above 0 and up to 1"),
    "a share of no edge": ({"share": 1e-5}, "is none of them"),
    "no steps": ({"steps": 0}, "at least 1"),
    "an objective": ({"objective": "kl"}, "must be 'faithful' or 'least'"),
    "no key": ({"key": None}, "expected a random key"),
    "many keys": ({"key": jax.random.split(jax.random.key(0), 2)}, "expected one random key"),
    "no optimizer": ({"optimizer": "adam"}, "such as optax.adam(0.1), got 'adam'"),
    "no corrupt prompts": ({"corrupt": None}, "Give them, or an ablation"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, untyped):
    more, message = BAD[case]
    model = model_named("gpt2")
    clean, corrupt, metric = problem(model)
    given = {"clean": clean, "corrupt": corrupt, "metric": metric, "share": 0.5, "steps": 1, "key": jax.random.key(0)}
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        jc.patching.train_masks(model, **{**given, **more})


def test_a_metric_that_reads_nothing_of_the_difference():
    model = model_named("gpt2")
    clean, corrupt, _ = problem(model)
    first = corrupt.at[:, 0].set(clean[:, 0])
    metric = jc.LogitDiff(np.array([1, 2]), np.array([3, 4]), position=0)
    both = jax.numpy.stack([clean[0], corrupt[0]])  # and pairs given in both directions, whose differences cancel
    given = both, both[::-1], jc.LogitDiff(1, 3)
    how = {"share": 0.5, "steps": 1, "key": jax.random.key(0)}
    for prompts, objective in (((clean, first, metric), "faithful"), (given, "least")):
        with pytest.raises(ValueError, match="nothing to explain"):
            jc.patching.train_masks(model, *prompts, **how, objective=objective)
    found = jc.patching.train_masks(model, *given, **how)  # each pair has something to explain
    assert found.loss[0] > 0
    assert np.isnan(found.faithfulness)
    assert "faithfulness nan" in repr(found)


def test_without_optax(monkeypatch):
    model = model_named("gpt2")
    monkeypatch.setitem(sys.modules, "optax", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'jaxcirc[optax]'")):
        jc.patching.train_masks(model, *problem(model), share=0.5, steps=1, key=jax.random.key(0))

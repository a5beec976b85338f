"""Edge attribution is the gradient of edge patching, and integrates to it where that is exact."""

import dataclasses
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc.parts import silu

from .helpers import assert_close, model_named, MODELS, needs_x64
from .test_lens import Relevance
from .test_patch_edges import changed_writes, metric_of, problem


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_gradient_of_patching(name):
    """Of the clean run with all edges kept, with the sign of what patching an edge does."""
    model = model_named(name)
    clean, corrupt, metric = problem(model)
    graph = jc.component_graph(model)
    one = lambda keep, row: jc.patch_edges(model, clean, corrupt, metric, keep)[row]
    want = np.stack([-jax.grad(one)(jnp.ones(graph.edges.shape), row) for row in range(2)])
    assert_close(jc.edge_attribution(model, clean, corrupt, metric), want)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "neox"])
def test_positions_sum_to_edges(name):
    model = model_named(name)
    clean, corrupt, metric = problem(model)
    placed = jc.component_graph(model, positions=6, biases=True, shared="each")
    whole = jc.component_graph(model, biases=True, shared="each")
    at_positions = jc.edge_attribution(model, clean, corrupt, metric, graph=placed)
    assert at_positions.shape == (2, *placed.edges.shape)
    assert_close(at_positions.sum(1), jc.edge_attribution(model, clean, corrupt, metric, graph=whole))


@needs_x64
@pytest.mark.parametrize(("steps", "rule", "start"), [(3, "left", "corrupt"), (2, "trapezoid", "clean")])
def test_gradients_on_the_way_of_the_inputs(steps, rule, start):
    """Edges into the logits: the difference between the two ends, along the mean gradient at the last stream of runs between them."""
    model = model_named("gpt2")
    clean, corrupt, metric = problem(model)
    scores = np.asarray(jc.edge_attribution(model, clean, corrupt, metric, steps=steps, rule=rule, start=start))
    fractions, weights = jc.IntegratedGradients(steps, rule, start).points()
    graph = jc.component_graph(model)
    want = np.zeros((2, len(graph.senders)))
    embedded = lambda tokens: model.W_E[tokens] + model.W_pos[: tokens.shape[0]]
    for row in range(2):
        change = changed_writes(model, clean[row], corrupt[row])
        start_at, end_at = embedded(clean[row]), embedded(corrupt[row])
        one = jax.tree.map(lambda x, row=row: x[row], metric)
        last = f"blocks.{model.n_layers - 1}.hook_resid_post"

        def of_last(zero, embedding, row=row, one=one, last=last):
            edits = {"blocks.0.hook_resid_pre": jc.Replace(embedding), last: jc.Add(zero)}
            return one(jc.run(model, clean[row], edits=edits)[0])

        for fraction, weight in zip(fractions, weights, strict=True):
            at = start_at + fraction * (end_at - start_at)
            gradient = jax.grad(of_last)(jnp.zeros_like(at), at)
            want[row] += [weight * float((change[name] * gradient).sum()) for name in graph.senders]
    assert_close(scores[..., graph.receiver("logits")], want)


@needs_x64
@pytest.mark.parametrize("along", ["inputs", "activations"])
def test_many_steps_sum_to_the_effect(along):
    """Edges into the logits, of a way on which nothing but one sender moves, are its whole direct effect."""
    model = model_named("gpt2")
    clean, corrupt, metric = problem(model)
    graph = jc.component_graph(model)
    scores = jc.edge_attribution(model, clean, corrupt, metric, steps=64, rule="gauss-legendre", along=along)
    total = metric_of(model, corrupt, metric) - metric_of(model, clean, metric)
    if along == "inputs":  # completeness of the embedding: its edges to all that reads it, plus nothing else
        first = np.asarray(scores[:, graph.sender("embed")].sum(-1))
        assert_close(first, np.asarray(total), tolerance=1e-6)
    else:
        last = np.asarray(scores[:, graph.sender("m1"), graph.receiver("logits")])
        keep = graph.edges & ~graph.mask(["m1->logits"])
        patched = jc.patch_edges(model, clean, corrupt, metric, keep) - metric_of(model, clean, metric)
        assert_close(last, np.asarray(patched), tolerance=1e-9)


def test_held_sites_are_held():
    """With norms, patterns and gates held the model is affine: scores of a node's edges are what patching them all does in it."""
    model = model_named("gpt2")
    clean, corrupt, metric = problem(model)
    graph = jc.component_graph(model)
    held = jc.frozen.detached(model)
    scores = jc.edge_attribution(model, clean, corrupt, metric, frozen=held)
    free = jc.edge_attribution(model, clean, corrupt, metric)
    assert np.abs(np.asarray(scores - free)).max() > 1e-3
    queries = [i for i, name in enumerate(graph.receivers) if name.endswith((".q", ".k"))]
    assert not np.asarray(scores)[..., queries].any()
    for row in range(2):
        change = changed_writes(model, clean[row], corrupt[row])
        one = jax.tree.map(lambda x, row=row: x[row], metric)
        for sender, site in {"m0": "blocks.0.hook_mlp_out", "embed": "hook_embed"}.items():
            freeze = {at: jc.Detach() for at in held}
            of = lambda zero, site=site, one=one, freeze=freeze, row=row: one(
                jc.run(model, clean[row], edits={**freeze, site: jc.Add(zero)})[0]
            )
            gradient = jax.grad(of)(jnp.zeros_like(change[sender]))
            wanted = float((change[sender] * gradient).sum())
            found = np.asarray(scores)[row, graph.sender(sender)].sum()
            # A sum of terms of either sign, a tenth of their size, of values that were rounded on the way.
            tolerance = None if model.dtype == np.float64 else 1e-4
            assert_close(found, np.array(wanted, model.dtype), tolerance=tolerance)


@needs_x64
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_relevance_is_passed_by_its_rules(name):
    """Against gated MLPs written out with their halves; and without products to halve it is the detached model."""
    model = model_named(name)
    arguments = problem(model)
    found = jc.edge_attribution(model, *arguments, derivatives="lrp")
    detached = jc.edge_attribution(model, *arguments, derivatives="detached")
    held = jc.frozen.detached(model)
    assert_close(detached, jc.edge_attribution(model, *arguments, frozen=held))
    if name == "llama":
        assert model.blocks[0].mlp.act is silu
        blocks = tuple(dataclasses.replace(block, mlp=Relevance(**vars(block.mlp))) for block in model.blocks)
        held = jc.frozen.layer_norms(model) | jc.frozen.patterns(model)
        assert np.abs(found - detached).max() > 1e-3 * np.abs(found).max()
        model = eqx.tree_at(lambda model: model.blocks, model, blocks)
    assert_close(found, jc.edge_attribution(model, *arguments, frozen=held))


def test_groups_padding_and_ablations():
    model = model_named("llama")
    clean, corrupt, metric = problem(model, seq=7)
    want = jc.edge_attribution(model, clean, corrupt, metric, steps=3, rule="midpoint")
    small = jc.edge_attribution(model, clean, corrupt, metric, steps=3, rule="midpoint", budget=1)
    assert_close(small, want)
    given = jc.edge_attribution(model, clean, None, metric, steps=3, rule="midpoint", ablation=jc.Resample(corrupt))
    assert_close(given, want)
    mask = jnp.array([[True] * 7, [True] * 5 + [False] * 2])
    read = jc.LogitDiff(np.array([1, 2]), np.array([3, 4]), position=np.array([6, 4]))
    padded = jc.edge_attribution(model, clean, corrupt, read, mask=mask)
    own = jc.LogitDiff(np.array([2]), np.array([4]))
    assert_close(padded[1:], jc.edge_attribution(model, clean[1:, :5], corrupt[1:, :5], own))


@pytest.mark.parametrize("ablation", [None, jc.Zero()])
def test_a_metric_without_gradient_is_refused(ablation):
    model = model_named("gpt2")
    clean, corrupt, _ = problem(model)
    reference = jax.vmap(lambda tokens: jc.run(model, tokens)[0][-1])(clean)
    others = corrupt if ablation is None else None
    with pytest.raises(ValueError, match=r"gradient vanishes.*exact_edges"):
        jc.edge_attribution(model, clean, others, jc.KL(reference), ablation=ablation)
    assert (
        float(jnp.abs(jc.edge_attribution(model, clean, others, jc.KL(reference), ablation=ablation, steps=3)).max())
        > 1e-3
    )


BAD = {
    "steps": ({"steps": 0}, "at least 1"),
    "a rule": ({"rule": "simpson"}, "rule must be one of"),
    "one step of the trapezoid": ({"rule": "trapezoid"}, "at least 2 steps"),
    "a way": ({"along": "weights"}, "must be 'inputs' or 'activations'"),
    "derivatives": ({"derivatives": "half"}, "must be 'exact' or 'lrp' or 'detached'"),
    "a held node": ({"frozen": ["blocks.0.hook_mlp_out"]}, "is on the way of nodes themselves"),
    "prompts": ({"corrupt": None}, "Give them, or an ablation"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, untyped):
    more, message = BAD[case]
    model = model_named("gpt2")
    clean, corrupt, metric = problem(model)
    with pytest.raises(ValueError, match=re.escape(message)):
        jc.edge_attribution(model, **{"clean": clean, "corrupt": corrupt, "metric": metric, **more})

"""The greedy search: the outcome is that of one run an edge."""

import re

import jax
import numpy as np
import pytest

import jaxcirc as jc

from .helpers import assert_close, model_named, MODELS
from .test_patch_edges import problem


def one_at_a_time(model, clean, corrupt, metric, graph, threshold, edges, *, absolute):
    """A run of the whole model for each edge: the edges kept, the metric without each, and how near a decision was to the other one."""
    run = lambda keep: float(jc.patch_edges(model, clean, corrupt, metric, keep, graph=graph).mean())
    kept = graph.edges.copy()
    current, without, near = run(kept), [], np.inf
    for edge in edges:
        kept[edge] = False
        without.append(run(kept))
        change = abs(without[-1] - current) if absolute else without[-1] - current
        near = min(near, abs(change - threshold))
        if change < threshold:
            current = without[-1]
        else:
            kept[edge] = True
    return kept, np.array(without), near


@pytest.mark.parametrize("name", MODELS)
def test_it_is_one_run_an_edge(name):
    model = model_named(name)
    given = problem(model)
    graph, threshold = jc.component_graph(model), 0.07
    found = jc.patching.greedy_search(model, *given, threshold=threshold, absolute=True)
    edges = [step.edge for step in found.steps]
    assert sorted(edges) == [tuple(place) for place in np.argwhere(graph.edges).tolist()]
    receivers = [receiver for _, receiver in edges]
    assert receivers == sorted(receivers, reverse=True)
    kept, without, near = one_at_a_time(model, *given, graph, threshold, edges, absolute=True)
    assert near > 1e-4  # no decision hangs on rounding
    assert (found.kept == kept).all()
    assert 0.05 < kept.sum() / graph.n_edges < 0.95
    assert_close(np.array([step.without for step in found.steps], model.dtype), without.astype(model.dtype))
    whole = jc.patch_edges(model, *given, found.kept, graph=graph).mean()
    assert_close(np.asarray(found.metric[-1], model.dtype), np.asarray(whole))


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_run_ahead_or_not(name):
    """With a budget for one run at a time nothing is thrown away, and the outcome is the same; fewer runs than edges."""
    model = model_named(name)
    given = problem(model)
    graph = jc.component_graph(model, biases=True)
    more = {"threshold": 0.07, "absolute": True, "graph": graph}
    ahead = jc.patching.greedy_search(model, *given, **more)
    alone = jc.patching.greedy_search(model, *given, budget=1, **more)
    assert (ahead.kept == alone.kept).all()
    assert [step.edge for step in ahead.steps] == [step.edge for step in alone.steps]
    assert_close(ahead.metric.astype(model.dtype), alone.metric.astype(model.dtype))
    assert alone.runs < ahead.runs
    assert alone.runs < graph.n_edges  # biases are the same in both runs, and what leads nowhere is not run
    biases = [i for i, name in enumerate(graph.senders) if name.endswith("bias")]
    if name == "gpt2":  # behind a norm they vary with its scale
        assert not alone.kept[biases].any()


def test_ends_orders_and_tables():
    model = model_named("gpt2")
    clean, corrupt, metric = problem(model)
    given = clean, corrupt, metric
    graph = jc.component_graph(model)
    ends = [float(jc.patch_edges(model, *given, keep).mean()) for keep in (graph.edges, ~graph.edges)]
    all_out = jc.patching.greedy_search(model, *given, threshold=np.inf)
    assert not all_out.kept.any()
    assert all_out.start == pytest.approx(ends[0], abs=1e-5)
    assert all_out.metric[-1] == pytest.approx(ends[1], abs=1e-5)
    none_out = jc.patching.greedy_search(model, *given, threshold=0.0, absolute=True)
    assert (none_out.kept == graph.edges).all()
    scores = np.asarray(jc.edge_attribution(model, *given)).mean(0)
    by_score = jc.patching.greedy_search(model, *given, threshold=0.1, absolute=True, order=scores)
    sizes = [abs(scores[step.edge]) for step in by_score.steps if step.edge[1] == graph.receiver("logits")]
    assert sizes == sorted(sizes)
    assert by_score.steps[0].edge != all_out.steps[0].edge
    first = jc.patching.greedy_search(model, *given, threshold=0.1, absolute=True, order="first")
    assert first.steps[0].edge == (0, graph.receiver("logits"))
    table = first.table()
    assert list(table.columns) == ["edge", "before", "without", "change", "kept"]
    assert table["kept"].sum() == first.kept.sum()
    assert table["edge"][0] == "embed->logits"
    assert f"{first.kept.sum()} of {graph.n_edges} edges kept" in repr(first)


def test_positions_and_ablations():
    model = model_named("gpt2")
    clean, corrupt, metric = problem(model, batch=3, seq=4)
    metric = jc.LogitDiff(np.array([1, 2, 3]), np.array([3, 4, 5]))
    graph = jc.component_graph(model, positions=4)
    found = jc.patching.greedy_search(model, clean, corrupt, metric, threshold=0.05, absolute=True, graph=graph)
    edges = [step.edge for step in found.steps]
    kept, without, near = one_at_a_time(model, clean, corrupt, metric, graph, 0.05, edges, absolute=True)
    assert near > 1e-5
    assert (found.kept == kept).all()
    assert_close(np.array([step.without for step in found.steps], model.dtype), without.astype(model.dtype))
    assert "position" in found.table()
    given = jc.Resample(corrupt)
    same = jc.patching.greedy_search(
        model, clean, None, metric, threshold=0.05, absolute=True, graph=graph, ablation=given
    )
    assert (same.kept == kept).all()


def test_a_loss_is_to_stay_low():
    """Of a metric that grows as a circuit gets worse: whatever lowers it goes."""
    model = model_named("attention-only")
    clean, corrupt, _ = problem(model)
    reference = jax.vmap(lambda tokens: jc.run(model, tokens)[0][-1])(clean)
    found = jc.patching.greedy_search(model, clean, corrupt, jc.KL(reference), threshold=0.02)
    assert 0 < found.kept.sum() < found.graph.n_edges
    for step in found.steps:
        assert step.removed == (step.without - step.before < 0.02)


BAD = {
    "no corrupt prompts": ({"corrupt": None}, "Give them, or an ablation"),
    "a threshold below 0": ({"threshold": -1.0}, "0 or more"),
    "no threshold": ({"threshold": np.nan}, "0 or more"),
    "an order": ({"order": "random"}, "must be 'last' or 'first'"),
    "scores of each prompt": ({"order": np.zeros((2, 7, 15))}, "Take the mean over prompts"),
    "names as scores": ({"order": np.full((7, 15), "m0")}, "which are numbers; got dtype <U2"),
    "a budget": ({"budget": 0}, "at least 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, untyped):
    more, message = BAD[case]
    model = model_named("gpt2")
    clean, corrupt, metric = problem(model)
    given = {"clean": clean, "corrupt": corrupt, "metric": metric, "threshold": 0.1}
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        jc.patching.greedy_search(model, **{**given, **more})


def test_scores_without_order():
    model = model_named("gpt2")
    scores = np.full(jc.component_graph(model).edges.shape, np.nan)
    with pytest.raises(ValueError, match="NaN or infinity"):
        jc.patching.greedy_search(model, *problem(model), threshold=0.1, order=scores)

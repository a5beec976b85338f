"""Circuits chosen by scores, and what they are worth: selection, pruning, curves, areas, intervals, ROC, stability."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc.graph import ComponentGraph
from jaxcirc.localisation import (
    benchmark_graph,
    CircuitCurve,
    EdgeScores,
    load_scores,
    prune,
    roc,
    select_edges,
    SIZES,
    stability,
)
from jaxcirc.localisation._areas import area

from .helpers import assert_close, model_named, needs_real, REAL, TOLERANCE
from .real import EAP_IG, needs_eap_ig


GPT2 = ComponentGraph(12, 12, 12, True, parallel=False, embeddings="tokens")
SMALL = ComponentGraph(2, 2, 2, True, parallel=False)
SHARED = ComponentGraph(2, 4, 2, True, parallel=False)


def random_scores(graph, seed=0):
    return np.random.default_rng(seed).normal(size=graph.edges.shape)


def curve(values, full, empty, sizes=SIZES):
    """A curve of given values `[size batch]`."""
    count = np.arange(len(sizes))
    return CircuitCurve(
        np.array(sizes), count, count, np.asarray(values), np.asarray(full), np.asarray(empty), "signed"
    )


def flat(faithfulness, sizes=SIZES, batch=1):
    """A curve of given faithfulness, of examples that are all alike."""
    full, empty = np.full(batch, 3.0), np.full(batch, -1.0)
    return curve([f * full + (1 - f) * empty for f in faithfulness], full, empty, sizes)


# Areas


def test_the_weight_of_each_size_in_the_area():
    weights = area(np.array(SIZES), np.eye(10))
    assert_close(weights, np.array([0.0005, 0.002, 0.004, 0.0075, 0.02, 0.04, 0.075, 0.2, 0.4, 0.25]))
    assert weights[:7].sum() + weights[7] / 2 < 0.25, "the sparse end hardly counts"


def test_known_areas():
    always, step = flat([1.0] * 10), flat([0.0] * 9 + [1.0])
    assert_close([always.cpr, always.acc_auc], [0.999, 1.0])
    assert always.cmd == 0
    assert_close([step.cpr, step.cmd], [0.25, 0.749])
    assert step.acc_auc == pytest.approx(np.log(2) / 2 / np.log(1000)), "from a half to all, along the logarithm"


def test_faithfulness_is_a_ratio_of_means_and_accuracy_a_share():
    full, empty = np.array([4.0, 2.0]), np.array([-1.0, -3.0])
    values = np.array([[1.0, -5.0], [4.0, 2.0]])
    found = curve(values, full, empty, sizes=(0.5, 1.0))
    assert_close(found.faithfulness, [(-2.0 + 2.0) / 5 + 1e-300, 1.0], tolerance=1e-12)
    assert_close(found.accuracy, [0.5, 1.0])
    assert abs(np.mean((values[0] - empty) / (full - empty)) - found.faithfulness[0]) < 1e-12


# Selection


def test_the_ten_sizes_of_gpt2():
    scores = random_scores(GPT2)
    counts = [int(select_edges(GPT2, scores, size).sum()) for size in SIZES]
    assert counts == [32, 64, 162, 324, 649, 1624, 3249, 6498, 16245, 32491]


def test_signed_and_absolute_ranking():
    scores = np.zeros(SMALL.edges.shape)
    for name, score in {"embed->logits": 3.0, "m0->logits": -5.0, "m1->logits": 1.0}.items():
        scores[SMALL.edge(name)] = score
    named = lambda size, by: set(SMALL.edge_names(select_edges(SMALL, scores, size, by=by)))
    assert named(2, "signed") == {"embed->logits", "m1->logits"}
    assert named(2, "absolute") == {"embed->logits", "m0->logits"}
    assert named(0, "signed") == set()
    assert (select_edges(SMALL, scores, SMALL.n_edges) == SMALL.edges).all()
    assert (select_edges(SMALL, scores, 1.0) == SMALL.edges).all()
    assert "m0->logits" not in named(SMALL.n_edges - 1, "signed"), "the worst comes last, behind all zeros"


def test_what_is_no_edge_is_never_chosen():
    scores = np.where(SMALL.edges, random_scores(SMALL), np.inf)
    for how in ("best", "greedy"):
        kept = select_edges(SMALL, scores, 20, how=how)
        assert kept.sum() == 20
        assert not (kept & ~SMALL.edges).any()


def test_a_sender_is_chosen_with_all_its_edges():
    scores = np.arange(len(SMALL.senders), dtype=float)
    kept = select_edges(SMALL, scores, 2)
    assert {SMALL.senders[i] for i in np.flatnonzero(kept.any(1))} == set(SMALL.senders[-2:])
    assert (kept[-2:] == SMALL.edges[-2:]).all()
    assert (select_edges(SMALL, scores, 0.5).any(1).sum()) == len(SMALL.senders) // 2
    assert select_edges(SMALL, -scores, 1, by="absolute").any(1)[-1]


@pytest.mark.parametrize("graph", [SMALL, SHARED], ids=["heads", "shared keys and values"])
def test_the_greedy_circuit_is_the_best_edge_into_it_each_time(graph):
    scores = random_scores(graph, 4)
    inside, kept = {"logits"}, np.zeros(graph.edges.shape, bool)
    share = graph.n_heads // graph.n_kv_heads

    def owners(receiver):
        slot = graph.receiver_slots[receiver]
        if slot.part in ("k", "v"):
            return {f"a{slot.layer}.h{head}" for head in range(slot.head * share, (slot.head + 1) * share)}
        return {slot.name.removesuffix(".q")}

    for count in range(1, 25):
        into = [(i, j) for i, j in np.argwhere(graph.edges & ~kept) if owners(j) & inside]
        i, j = max(into, key=lambda at: scores[tuple(at)])
        kept[i, j] = True
        inside.add(graph.senders[i])
        assert (select_edges(graph, scores, count, how="greedy") == kept).all()


# Pruning


def test_pruning_a_graph_by_hand():
    kept = SMALL.mask(
        [
            *("embed->m0", "m0->m1", "m1->logits"),  # a path
            *("embed->a0.h0.q", "a0.h0->a1.h0.k"),  # which ends in a head that writes nowhere
            *("a0.h1->m1",),  # from a head that reads nothing
            *("embed->a0.h1.v",)[:0],
        ]
    )
    assert SMALL.edge_names(prune(SMALL, kept)) == ["embed->m0", "m0->m1", "m1->logits"]
    assert not prune(SMALL, SMALL.mask(["embed->a0.h0.q", "a0.h0->m1"])).any(), "again and again, until nothing changes"
    assert (prune(SMALL, SMALL.edges) == SMALL.edges).all()
    assert not prune(SMALL, np.zeros(SMALL.edges.shape, bool)).any()


def test_a_shared_key_feeds_each_head_that_reads_it():
    path = ["embed->a0.h0.k", "a0.h1->logits"]  # head 1 reads the key that head 0 has
    assert SHARED.edge_names(prune(SHARED, SHARED.mask(path))) == path
    other = ["embed->a0.h0.k", "a0.h2->logits"]
    assert not prune(SHARED, SHARED.mask(other)).any()


def test_biases_need_nothing_to_read():
    graph = ComponentGraph(1, 1, 1, True, parallel=False, biases=True)
    path = ["a0.bias->m0", "m0->logits"]
    assert graph.edge_names(prune(graph, graph.mask(path))) == path


@pytest.mark.parametrize("seed", range(6))
def test_pruned_edges_lie_on_paths_and_no_other(seed):
    """Independently, by search along edges from both ends."""
    graph = SMALL
    kept = graph.edges & (np.random.default_rng(seed).random(graph.edges.shape) < 0.15)
    node = lambda receiver: receiver.rsplit(".", 1)[0] if receiver[0] == "a" else receiver
    edges = [(graph.senders[i], node(graph.receivers[j]), (i, j)) for i, j in np.argwhere(kept)]
    forwards, backwards = {"embed"}, {"logits"}
    for _ in range(10):
        forwards |= {b for a, b, _ in edges if a in forwards}
        backwards |= {a for a, b, _ in edges if b in backwards}
    want = np.zeros(graph.edges.shape, bool)
    for a, b, at in edges:
        want[tuple(at)] = a in forwards and b in backwards
    assert (prune(graph, kept) == want).all()


# Curves of models


def assert_as_exact_as(model, got, want):
    """Curves are in float64 whatever the model computes in."""
    assert_close(got, want, tolerance=TOLERANCE[str(model.dtype)])


def problem(model, batch=6, seq=6):
    rng = np.random.default_rng(1)
    clean = rng.integers(0, model.d_vocab, (batch, seq))
    corrupt = (clean + rng.integers(1, model.d_vocab, (batch, seq))) % model.d_vocab
    metric = jc.LogitDiff(np.arange(batch) % 4, np.arange(batch) % 4 + 1)
    # Answers that win on the clean prompt, so that the metric is larger there.
    each = lambda tokens: jax.vmap(lambda t, m: m(jc.run(model, t)[0]))(jnp.asarray(tokens), metric)
    clean, corrupt = np.where((each(clean) > each(corrupt))[:, None], [clean, corrupt], [corrupt, clean])
    return jnp.asarray(clean, jnp.int32), jnp.asarray(corrupt, jnp.int32), metric


@pytest.mark.parametrize("name", ["gpt2", "llama", "parallel", "attention-only"])
def test_all_edges_are_the_clean_run_and_none_the_corrupt(name):
    model = model_named(name)
    clean, corrupt, metric = given = problem(model)
    graph = jc.component_graph(model)
    found = jc.circuit_curve(model, *given, random_scores(graph), sizes=(0.001, 0.3, 1.0))
    of = jax.vmap(lambda tokens, metric: metric(jc.run(model, tokens)[0]))
    assert_as_exact_as(model, found.values[-1], np.asarray(of(clean, metric)))
    assert_as_exact_as(model, found.values[0], np.asarray(of(corrupt, metric)))  # 0.001 of these graphs is no edge
    assert_as_exact_as(model, found.full, found.values[-1])
    assert_as_exact_as(model, found.faithfulness[[0, -1]], [0.0, 1.0])
    assert found.edges.tolist() == [0, int(0.3 * graph.n_edges), graph.n_edges]
    kept = [int(prune(graph, select_edges(graph, random_scores(graph), size)).sum()) for size in (0.001, 0.3, 1.0)]
    assert found.kept.tolist() == kept


def test_a_circuit_of_a_curve_is_the_pruned_circuit_patched():
    model = model_named("gpt2")
    given, graph = problem(model), jc.component_graph(model)
    scores = random_scores(graph, 2)
    for by, how in (("signed", "best"), ("absolute", "greedy")):
        found = jc.circuit_curve(model, *given, scores, sizes=(0.4, 0.8), by=by, how=how)
        keep = np.stack([prune(graph, select_edges(graph, scores, size, by=by, how=how)) for size in (0.4, 0.8)])
        assert_as_exact_as(model, found.values, jc.patch_edges(model, *given, jnp.asarray(keep)))
        same = jc.circuit_curve(model, *given, keep, sizes=(0.4, 0.8))
        assert np.array_equal(same.values, found.values)
        assert (same.by, found.by) == (None, by)


def test_senders_and_ablations():
    model = model_named("gpt2")
    given, graph = problem(model), jc.component_graph(model)
    of_senders = np.arange(len(graph.senders), dtype=float)[::-1]
    found = jc.circuit_curve(model, *given, of_senders, sizes=(0.5, 1.0), ablation=jc.Zero())
    keep = prune(graph, select_edges(graph, of_senders, 0.5))
    assert_as_exact_as(model, found.values[0], jc.patch_edges(model, *given, jnp.asarray(keep), ablation=jc.Zero()))
    assert found.edges[0] == graph.edges[: len(graph.senders) // 2].sum()


def test_an_edge_that_helps_has_a_score_above_0():
    """The effect of each edge alone, measured: without the one that hurts most the model does better than the whole, `f > 1`; scores of
    the other sign leave out the one that helps most.
    """
    model = model_named("gpt2")
    given, graph = problem(model), jc.component_graph(model)
    names = graph.edge_names()
    keep = np.stack([graph.edges, *(graph.edges & ~graph.mask([name]) for name in names)])
    clean, *without = np.asarray(jc.patch_edges(model, *given, jnp.asarray(keep)))
    scores = np.zeros(graph.edges.shape)
    scores[graph.edges] = (clean - without).mean(1)
    assert scores.max() > 0 > scores.min()
    all_but_one = 1 - 0.5 / graph.n_edges
    measure = lambda scores: jc.circuit_curve(model, *given, scores, sizes=(all_but_one, 1.0))
    signed = measure(scores)
    with pytest.warns(UserWarning, match="give them with the other sign"):
        opposite = measure(-scores)
    assert signed.kept[0] == opposite.kept[0] == graph.n_edges - 1
    gap = signed.full.mean() - signed.empty.mean()
    assert_as_exact_as(model, signed.faithfulness[0], 1 - scores.min() / gap)
    assert_as_exact_as(model, opposite.faithfulness[0], 1 - scores.max() / gap)
    assert signed.faithfulness[0] > 1 > opposite.faithfulness[0]
    assert signed.cpr > opposite.cpr


@pytest.fixture(scope="module")
def ioi():
    """Indirect objects on the shipped model: edges scored on one half of the prompts, circuits measured on the other."""
    model, tokenizer = jc.from_pretrained("tiny-gpt2"), jc.load_tokenizer("tiny-gpt2")
    prompts = jc.data.ioi_counterfactuals(tokenizer, 32, seed=0).prompts["s2_io_flip"]
    graph, train, test = benchmark_graph(model), prompts[:16], prompts[16:]
    scores = -np.asarray(
        jc.edge_attribution(model, train.clean, train.corrupt, train.metric(), graph=graph, steps=5, start="corrupt")
    )
    return model, graph, test, scores


def test_attribution_finds_a_circuit_and_chance_does_not(ioi):
    model, graph, test, scores = ioi
    measure = lambda scores, **options: jc.circuit_curve(
        model, test.clean, test.corrupt, test.metric(), scores, graph=graph, **options
    )
    mean, chance = scores.mean(0), random_scores(graph)
    assert EdgeScores.of(model, mean).sign == "helps"
    signed, absolute, random = measure(mean), measure(mean, by="absolute"), measure(chance)
    assert abs(signed.empty.mean() / signed.full.mean() + 1) < 0.1, "answer and foil have changed places"
    at = SIZES.index(0.1)
    assert signed.faithfulness[at] > 0.8
    assert signed.accuracy[at] == 1
    assert absolute.faithfulness[SIZES.index(0.2)] > 0.95
    assert absolute.cmd < 0.1
    assert 0.2 < random.cpr < 0.4
    assert 0.6 < random.cmd < 0.8
    low, high = signed.interval("cpr")
    assert low < signed.cpr < high
    assert low > random.interval("cpr")[1]


def test_circuits_of_attribution_are_stable(ioi):
    _, graph, _, scores = ioi
    found = stability(graph, scores, 0.05)
    assert found.mean > 0.8
    strongest = select_edges(graph, scores.mean(0), 5)
    assert found.always[strongest].all()
    assert (found.sign[strongest] == 1).all()


# Intervals


def test_the_interval_is_that_of_scipy():
    from scipy.stats import bootstrap

    rng = np.random.default_rng(0)
    full, empty = rng.normal(3, 1, 30), rng.normal(-3, 1, 30)
    found = curve([0.4 * full + 0.6 * empty + rng.normal(0, 1, 30), full], full, empty, sizes=(0.1, 1.0))
    ratio = lambda v, f, e, axis: (v.mean(axis) - e.mean(axis)) / (f.mean(axis) - e.mean(axis))
    want = bootstrap(
        (found.values[0], full, empty),
        ratio,
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    low, high = found.interval("faithfulness", draws=20_000)
    # Both are of 20,000 draws, whose 2.5th percentile has an error of some hundredth of the width.
    assert abs(low[0] - want.low) < 0.02 * (want.high - want.low)
    assert abs(high[0] - want.high) < 0.02 * (want.high - want.low)
    assert low[0] < found.faithfulness[0] < high[0]
    assert_close([low[1], high[1]], [1.0, 1.0])  # the full model is itself on every draw


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng, held, runs = np.random.default_rng(0), 0, 200
    for _ in range(runs):
        full, empty = rng.normal(3, 1, 60), rng.normal(-3, 1, 60)
        found = curve([0.3 * full + 0.7 * empty + rng.normal(0, 2, 60), full], full, empty, sizes=(0.1, 1.0))
        low, high = found.interval("faithfulness", level=0.9, draws=300)
        held += low[0] < 0.3 < high[0]
    assert 0.82 * runs < held < 0.97 * runs


def test_a_table_and_a_summary():
    rng = np.random.default_rng(0)
    full, empty = rng.normal(3, 1, 20), rng.normal(-3, 1, 20)
    found = curve(
        [(f + rng.normal(0, 0.1, 20)) * full + (1 - f) * empty for f in (0.2, 0.9, 1)], full, empty, (0.1, 0.5, 1)
    )
    table = found.table()
    assert list(table.columns) == [
        *("size", "edges", "kept", "metric"),
        *(f"{name}{end}" for name in ("faithfulness", "accuracy") for end in ("", "_low", "_high")),
    ]
    assert (table["faithfulness_low"] <= table["faithfulness"]).all()
    assert (table["faithfulness"] <= table["faithfulness_high"]).all()
    assert found.table(seed=1).equals(found.table(seed=1))
    assert not found.table(seed=1).equals(table)
    for name, (value, low, high) in found.summary().items():
        assert low <= value <= high, name
        assert found.interval(name) == (low, high)
        assert value == getattr(found, name)


def test_one_example_has_no_interval():
    found = flat([0.0] * 9 + [1.0])
    with pytest.raises(ValueError, match="an interval over examples takes two of them or more, got 1"):
        found.interval("cpr")
    assert np.isnan(found.table()["faithfulness_low"]).all()
    value, low, high = found.summary()["cpr"]
    assert value == found.cpr
    assert np.isnan([low, high]).all()


def test_many_draws_are_made_piece_by_piece(monkeypatch):
    from jaxcirc.localisation import _circuit_curve

    rng = np.random.default_rng(0)
    full, empty = rng.normal(3, 1, 20), rng.normal(-3, 1, 20)
    found = curve([full * 0.5, full], full, empty, sizes=(0.1, 1.0))
    whole = found.interval("cpr", draws=500)
    monkeypatch.setattr(_circuit_curve, "_AT_ONCE", 20 * 7)
    assert_close(found.interval("cpr", draws=500), whole)


# ROC


def test_auroc_is_the_probability_that_a_true_edge_comes_first():
    graph = SMALL
    rng = np.random.default_rng(0)
    truth = graph.edges & (rng.random(graph.edges.shape) < 0.3)
    scores = np.round(rng.normal(size=graph.edges.shape) + truth, 1)  # with ties
    a, b = scores[truth], scores[graph.edges & ~truth]
    want = np.mean((a[:, None] > b) + (a[:, None] == b) / 2)
    assert_close(roc(graph, scores, truth, by="signed").area, want)
    assert_close(roc(graph, -scores, truth, by="signed").area, 1 - want)
    assert roc(graph, -1.0 * truth, truth).area == 1, "by size unless said"


def test_random_scores_are_no_better_than_chance():
    truth = GPT2.edges & (np.random.default_rng(5).random(GPT2.edges.shape) < 0.02)
    areas = [roc(GPT2, random_scores(GPT2, seed), truth).area for seed in range(10)]
    error = (1 / 12 / truth.sum() / 10) ** 0.5  # of the mean of ten areas
    assert abs(np.mean(areas) - 0.5) < 4 * error


def test_the_benchmarks_roc_by_hand():
    """Two true edges of 32,491 in one path: its smallest circuit has 33 edges, 32.491 rounded up, and there is no point at 0."""
    truth = GPT2.mask(["embed->m0", "m0->logits"])
    found = roc(GPT2, truth.astype(float), truth, points="benchmark")
    assert len(found.true) == 10
    assert (found.true == 1).all()
    assert 0 < found.false[0] <= 31 / 32489
    assert found.false[-1] == 1
    assert found.area == pytest.approx(1 - found.false[0])
    assert roc(GPT2, truth.astype(float), truth).area == 1
    first_edges = select_edges(GPT2, truth.astype(float), 33, by="absolute", how="greedy")
    assert found.false[0] == (prune(GPT2, first_edges) & ~truth).sum() / 32489


# Stability


def test_circuits_of_examples_that_agree_are_one():
    scores = np.repeat(random_scores(SMALL)[None], 5, axis=0)
    found = stability(SMALL, scores, 10)
    assert found.mean == 1
    assert (found.always == select_edges(SMALL, scores[0], 10)).all()
    assert (found.sign == np.sign(scores[0]) * SMALL.edges).all()


def test_circuits_of_noise_overlap_as_random_sets_do():
    rng = np.random.default_rng(0)
    scores = np.zeros((2000, *SMALL.edges.shape))
    scores[0, SMALL.edges] = 1e-12
    scores[1:, SMALL.edges] = rng.normal(size=(1999, SMALL.n_edges))
    found = stability(SMALL, scores, 10, draws=60)
    assert len(found.jaccard) == 60 * 59 / 2
    assert found.frequency.sum() == pytest.approx(10)
    assert 0.1 < found.mean < 0.8
    certain = stability(SMALL, scores + 3 * random_scores(SMALL, 1), 10, draws=60)
    assert certain.mean > found.mean
    assert 0 < (certain.sign != 0).sum() <= SMALL.n_edges


def test_jaccard_by_hand():
    from jaxcirc.localisation._stability import _overlaps

    kept = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1]], bool)
    assert_close(_overlaps(kept), [1 / 3, 0, 1 / 3])


# Programs whose circuits are known


@needs_real
@pytest.mark.parametrize("name", ["hist", "reverse", "sort"])
def test_the_truth_of_a_compiled_program(name):
    """Patching each edge by itself finds those that matter: AUROC 1; random scores do not."""
    with np.load(REAL / "tracr" / f"{name}.npz") as file:
        stored = dict(file)
    about = json.loads((REAL / "tracr" / f"{name}.circuit.json").read_text())
    model = jc.from_transformer_lens(
        {key: stored[key] for key in stored if not key.startswith("test_")}, about["config"]
    )
    graph = jc.component_graph(model, embeddings="split")
    ends = {"tok": "embed", "pos": "pos_embed"}

    def edge(text):
        sender, receiver = text.split("->")
        node, part = receiver.split(":")
        return f"{ends.get(sender, sender)}->{node if part == 'in' else f'{node}.{part}'}"

    causal = graph.mask([edge(text) for text in about["causal_effect_resample_maxabs"]])
    tokens = np.unique(stored["test_tokens"], axis=0)
    rng = np.random.default_rng(0)
    clean, corrupt = (jnp.asarray(tokens[rng.integers(0, len(tokens), 24)], jnp.int32) for _ in range(2))
    names, weight = graph.edge_names(), rng.normal(size=(tokens.shape[1], about["config"]["d_vocab_out"]))
    metric = lambda logits: (logits * jnp.asarray(weight, logits.dtype)).sum()
    keep = np.stack([graph.edges, *(graph.edges & ~graph.mask([name]) for name in names)])
    values = np.asarray(jc.patch_edges(model, clean, corrupt, metric, jnp.asarray(keep), graph=graph))
    scores = np.zeros(graph.edges.shape)
    scores[graph.edges] = np.abs(values[1:] - values[0]).mean(1)
    assert (scores[graph.edges & ~causal] < 1e-4 * scores.max()).all(), "edges off the circuit do nothing"
    assert roc(graph, scores, causal).area == 1
    areas = [roc(graph, random_scores(graph, seed), causal).area for seed in range(400)]
    assert abs(np.mean(areas) - 0.5) < 0.05


@needs_eap_ig
def test_the_benchmarks_own_example():
    """Scores of all edges of GPT-2 small and a circuit of 756 edges: the 800 best by size, pruned."""
    with pytest.warns(UserWarning, match="scores below 0 outweigh those above"):
        read = load_scores(EAP_IG)
    assert read.graph == GPT2
    assert (read.graph.n_edges, int(read.kept.sum()), len(read.graph.senders) + 1) == (32491, 756, 158)
    assert read.sign == "hurts"
    at = lambda name: read.scores[read.graph.edge(name)]
    assert_close([at("a9.h9->logits"), at("a10.h7->logits")], [-0.2815, 0.1964], tolerance=1e-3)
    best = select_edges(read.graph, read.scores, 800, by="absolute")
    assert (prune(read.graph, best) == read.kept).all()


# Bad input


def test_scores_and_sizes_that_are_none(untyped):
    graph, positions = SMALL, ComponentGraph(2, 2, 2, True, parallel=False, n_positions=3)
    good = random_scores(graph)
    hole = good.copy()
    hole[graph.edge("m0->logits")] = np.nan
    model = model_named("gpt2")
    given = problem(model)
    measure = lambda scores=good, **options: jc.circuit_curve(model, *given, scores, **options)
    cases = [
        (lambda: select_edges(graph, good[:, :-1], 3), r"7 senders and 15 receivers, and the scores are \[7, 14\]"),
        (lambda: select_edges(graph, hole, 3), r"1 of 46 edges are not scored \(NaN\), such as m0->logits"),
        (
            lambda: select_edges(graph, good > 0, 3),
            "select_edges: scores: expected numbers, a score for each, got dtype bool",
        ),
        (lambda: select_edges(graph, good[0, :5], 3), "the graph has 7 senders, and the scores are"),
        (lambda: select_edges(graph, np.append(good[0, :6], np.nan), 3), "1 of 7 senders are not scored"),
        (lambda: select_edges(graph, good[0, :7], 3, how="greedy"), "greedy selection goes along edges"),
        (lambda: select_edges(graph, good, 47), "the graph has 46 edges, got 47"),
        (lambda: select_edges(graph, good, 0.0), "size is a part of the edges, above 0 and up to 1; got 0.0"),
        (lambda: select_edges(graph, good, -1), "size is how many edges, at least 0; got -1"),
        (
            lambda: select_edges(graph, good, 3, by="size"),
            "select_edges: by must be 'signed' or 'absolute', got 'size'",
        ),
        (lambda: select_edges(graph, good, 3, how="topn"), "select_edges: how must be 'best' or 'greedy'"),
        (lambda: select_edges(positions, good, 3), "edges at each position apart. Make it without positions"),
        (lambda: select_edges("gpt2", good, 3), "select_edges: graph: expected a graph as jc.component_graph gives"),
        (lambda: prune(graph, good), "prune: mask: expected booleans"),
        (lambda: prune(graph, graph.edges[:-1]), r"expected a mask \[sender receiver\], here \[7, 15\], got \[6, 15\]"),
        (lambda: prune(graph, np.ones_like(graph.edges)), r"there is no edge a0\.h0->a0\.h0\.q, and it is kept"),
        (lambda: roc(graph, good, graph.edges), "truth has 46 of 46 edges"),
        (lambda: roc(graph, good, np.zeros_like(graph.edges)), "truth has 0 of 46 edges"),
        (lambda: roc(graph, good, graph.edges, points="ten"), "roc: points must be 'all' or 'benchmark'"),
        (lambda: stability(graph, good, 3), r"scores of two examples or more are resampled.*got \[7, 15\]"),
        (lambda: stability(graph, good[None], 3), r"got \[1, 7, 15\]"),
        (lambda: stability(graph, np.stack([good, hole]), 3), "not scored"),
        (lambda: stability(graph, np.stack([good, good]), 0.01), "size 0.01 is no edge of 46"),
        (lambda: measure(sizes=(0.1, 0.1, 1)), "each larger than the one before"),
        (lambda: measure(sizes=(0.5, 0.1)), "each larger than the one before"),
        (lambda: measure(sizes=(0, 0.5, 1)), "sizes is a part of the edges, above 0 and up to 1; got 0"),
        (lambda: measure(sizes=()), "expected at least one number, got an empty list"),
        (lambda: measure(sizes=(1.0,)), "two or more shares"),
        (lambda: measure(hole), r"circuit_curve: scores: 1 of 46 edges are not scored"),
        (lambda: measure(good[:-1]), "7 senders and 15 receivers"),
        (lambda: measure(by="all"), "circuit_curve: by must be"),
        (
            lambda: measure(np.stack([graph.edges] * 2), sizes=(0.5, 1.0)),
            "a circuit has 46 edges, more than 0.5 of the graph's 46",
        ),
        (lambda: measure(np.stack([graph.edges] * 2)), "2 circuits were given, and 10 sizes"),
        (
            lambda: jc.circuit_curve(model, *given[:2], lambda logits: 0 * logits.sum() + 2, good),
            "are the same, 2, so that",
        ),
        (lambda: flat([1.0] * 10, batch=3).interval("f"), "interval: of must be 'faithfulness' or"),
        (lambda: flat([1.0] * 10, batch=3).interval("cpr", level=95), "such as 0.95; got 95"),
        (
            lambda: flat([1.0] * 10, batch=3).interval("cpr", draws=1),
            "draws is how many times examples are drawn, at least 2",
        ),
        (lambda: EdgeScores.of(model), "expected scores, or the edges that are kept, or both"),
        (lambda: benchmark_graph(model_named("attention-only")), "has an MLP in each layer, and random has none"),
    ]
    for call, match in cases:
        with pytest.raises((ValueError, TypeError), match=match):
            call()


def test_effects_instead_of_scores_are_warned_of():
    model = model_named("gpt2")
    given, graph = problem(model), jc.component_graph(model)
    effects = -np.abs(random_scores(graph))
    effects[0, 0] = 0.1
    with pytest.warns(UserWarning, match="give them with the other sign, or rank by='absolute'"):
        jc.circuit_curve(model, *given, effects)
    jc.circuit_curve(model, *given, effects, by="absolute")
    jc.circuit_curve(model, *given, -effects)


def test_the_picture(tmp_path, untyped):
    rng = np.random.default_rng(0)
    full, empty = rng.normal(3, 1, 20), rng.normal(-3, 1, 20)
    rising = curve([f * full + (1 - f) * empty for f in np.linspace(0, 1, 10)], full, empty)
    one = jc.draw_circuit_curve(rising, tmp_path / "one.svg", metric="logits")
    two = jc.draw_circuit_curve({"a": rising, "b": flat([0.0] * 9 + [1.0])})
    assert (tmp_path / "one.svg").stat().st_size > 1000
    assert [len(axes.collections) for axes in one.axes] == [1, 1], "an interval in each panel"
    assert [len(axes.collections) for axes in two.axes] == [1, 1], "one example has none"
    for axes, what in zip(one.axes, ("faithfulness", "accuracy"), strict=True):
        (line,) = (line for line in axes.get_lines() if len(line.get_xdata()) == len(rising.sizes))
        np.testing.assert_allclose(line.get_data(), [rising.sizes, getattr(rising, what)])
        assert axes.get_title() == what
        assert axes.get_ylabel().startswith(what)
        low, high = rising.interval(what)
        corners = axes.collections[0].get_paths()[0].vertices[:, 1]
        assert (corners.min(), corners.max()) == pytest.approx((low.min(), high.max()))
    assert one.get_suptitle().replace("\n", " ").endswith("metric: logits; 20 examples")
    assert "20 examples and 1 example" in two.get_suptitle().replace("\n", " ")
    assert f"CPR {rising.cpr:.2f}" in one.axes[0].get_legend().get_texts()[0].get_text()
    for bad, match in (
        ({}, "expected one to 4 curves, got 0"),
        ({"a": 3}, "expected what jc.circuit_curve gives, got 3"),
        (None, "expected what jc.circuit_curve gives, or several by name, got None"),
    ):
        with pytest.raises((ValueError, TypeError), match=match):
            jc.draw_circuit_curve(bad, tmp_path / "x.svg")

"""Attribution graphs: rows that sum to pre-activations, and edges that are what a frozen run changes by."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.saes import JumpReLU

from .dictionaries import spliced_at, transcoder
from .graphs import Frozen, mlp_sites, REPLACEMENTS, whole
from .helpers import (
    as_dtype,
    assert_close,
    counting_calls,
    counting_programs,
    make_model,
    model_named,
    MODELS,
    tokens_for,
)
from .odd_parts import ODD


SEQ = 5
# Every family with dictionaries, with neurons, and with one of the other kinds.
CASES = [
    (name, kind)
    for i, name in enumerate(MODELS)
    for kind in (
        ("saes", "neurons") if name == "attention-only" else ("transcoders", "neurons", ("saes", "cross-layer")[i % 2])
    )
]
# Every family with one kind of replacement, and every kind with several families.
ORACLE = [(name, list(REPLACEMENTS)[i % 4] if name != "attention-only" else "saes") for i, name in enumerate(MODELS)]


@pytest.mark.parametrize(("name", "kind"), CASES, ids=[", ".join(case) for case in CASES])
def test_rows_sum_to_pre_activations(name, kind):
    model = model_named(name)
    tokens = tokens_for(model, SEQ)
    graph = whole(model, REPLACEMENTS[kind](model), tokens)
    nodes, A, values = graph.nodes, graph.adjacency, graph.values
    read = nodes.kind.isin(["latent", "logit"]).to_numpy()
    assert (np.isfinite(values) == read).all()
    assert not A[~read].any()
    assert_close(A[read].sum(axis=1), values[read])
    layer, pos = nodes.layer.to_numpy(), nodes.pos.to_numpy()
    assert not A[layer[:, None] < layer].any()
    if model.causal:
        assert not A[(pos[:, None] < pos)].any()
    latents = nodes.kind == "latent"
    assert (nodes.activation[latents] != 0).all()
    assert nodes.activation[~latents].isna().all()
    assert 0 <= graph.replacement_score <= 1
    assert 0 <= graph.completeness_score <= 1


@pytest.mark.parametrize(("name", "kind"), ORACLE, ids=[", ".join(case) for case in ORACLE])
def test_an_edge_is_what_a_node_changes_in_a_frozen_run(name, kind):
    """Adding what any node writes once more changes every pre-activation by the entry of the adjacency matrix, as everything is held."""
    model = model_named(name)
    tokens = tokens_for(model, SEQ)
    dictionaries = REPLACEMENTS[kind](model)
    graph, frozen = whole(model, dictionaries, tokens), Frozen(model, dictionaries, tokens)
    nodes = graph.nodes
    vectors = {site: jnp.asarray(x, model.dtype) for site, x in frozen.vectors(nodes).items()}

    def values(steps):
        return frozen.pre_activations(frozen.values(steps), nodes)

    nothing = {site: jnp.zeros_like(x[0]) for site, x in vectors.items()}
    clean = values(nothing)
    read = nodes.kind.isin(["latent", "logit"]).to_numpy()
    assert_close(clean, graph.values[read])
    changes = jax.lax.map(lambda steps: values(steps) - clean, vectors, batch_size=64)
    writes = (nodes.kind != "logit").to_numpy() & ~((nodes.kind == "bias") & (nodes.layer == -1)).to_numpy()
    assert_close(changes.T[:, writes], graph.adjacency[read][:, writes])


@pytest.fixture(scope="module")
def model():
    return make_model(jax.random.key(0), layers=3, n_ctx=48, scales=(0.4,) * 3)


@pytest.fixture(scope="module")
def dictionaries(model):
    return REPLACEMENTS["transcoders"](model)


@pytest.fixture(scope="module")
def tokens(model):
    return tokens_for(model, 40)


@pytest.fixture(scope="module")
def graph(model, dictionaries, tokens):
    return whole(model, dictionaries, tokens)


def keys_of(graph) -> list[tuple]:
    """By what nodes are known again."""
    return list(graph.nodes[["kind", "site", "pos", "unit"]].itertuples(index=False, name=None))


def part_of(graph, keys) -> np.ndarray:
    """The adjacency matrix of some nodes."""
    place = {key: i for i, key in enumerate(keys_of(graph))}
    chosen = [place[key] for key in keys]
    return graph.adjacency[np.ix_(chosen, chosen)]


def test_chunks_cones_and_tiles_change_nothing(model, dictionaries, tokens, graph, monkeypatch):
    """At forty positions targets go in groups by position; and so they do one at a time, and with all at all positions."""
    from jaxcirc.attribution_graphs import _rows, _tiles

    assert_close(graph.adjacency.sum(axis=1)[graph.targets], graph.values[graph.targets])
    monkeypatch.setattr(_rows, "TOKENS_AT_ONCE", 120)
    monkeypatch.setattr(_tiles, "WAY_BACK", 2**14)
    few = whole(model, dictionaries, tokens)
    assert_close(few.adjacency, graph.adjacency)
    monkeypatch.undo()
    monkeypatch.setattr(_rows.Rows, "_sizes", lambda self: [self.linear.seq])
    assert_close(whole(model, dictionaries, tokens).adjacency, graph.adjacency)


@pytest.mark.parametrize("each", [1024, 7])
def test_the_most_influential_latents_have_rows(model, dictionaries, tokens, graph, each, monkeypatch):
    """Chosen as they are by whoever has all rows and uncovers them, the best ones first, ranking anew after so many."""
    monkeypatch.setattr("jaxcirc.attribution_graphs._select.RANKED_ANEW", each)
    some = jc.attribution_graph(model, dictionaries, tokens, max_nodes=30, node_threshold=1.0, edge_threshold=1.0)
    A, nodes = graph.adjacency, graph.nodes
    shares = np.abs(A) / np.maximum(np.abs(A).sum(axis=1, keepdims=True), 1e-10)
    weights, latents = nodes.probability.to_numpy(), (nodes.kind == "latent").to_numpy()
    known = (nodes.kind == "logit").to_numpy().copy()
    while known.sum() < (nodes.kind == "logit").sum() + 30:
        seen = np.where(known[:, None], shares, 0)
        reached, step = np.zeros(len(nodes)), weights
        while (step := step @ seen).any():
            reached += step
        left = 30 + (nodes.kind == "logit").sum() - known.sum()
        best = np.argsort(np.where(latents & ~known, -reached, 1), kind="stable")[: min(left, each)]
        known[best] = True
    keys = keys_of(graph)
    assert {key for key in keys_of(some) if key[0] == "latent"} == {
        key for key, is_known in zip(keys, known, strict=True) if is_known and key[0] == "latent"
    }
    kept = [key for key in keys_of(some) if key[-1] != -2]
    assert_close(part_of(some, kept), part_of(graph, kept))
    # What has no row stands together, and rows sum as before.
    assert_close(some.adjacency.sum(axis=1)[some.targets], some.values[some.targets])
    rest = some.nodes[some.nodes.unit == -2]
    assert (rest.kind == "error").all()
    assert not rest.duplicated(["site", "pos"]).any()
    assert len(rest) > 20
    assert some.replacement_score < graph.replacement_score


def test_pruning_again_computes_nothing(model, dictionaries, tokens, graph):
    pruned = jc.attribution_graph(model, dictionaries, tokens, max_nodes=None)
    assert (pruned.node_threshold, pruned.edge_threshold) == (0.8, 0.98)
    with counting_programs() as programs, counting_calls(jc.Transformer, "__call__") as runs:
        again = graph.prune()
        more, everything = (
            pruned.prune(node_threshold=0.95, edge_threshold=0.99),
            pruned.prune(node_threshold=1.0, edge_threshold=1.0),
        )
    assert not programs
    assert not runs
    assert keys_of(again) == keys_of(pruned)
    assert (again.adjacency == pruned.adjacency).all()
    assert len(pruned.nodes) < len(more.nodes) < len(everything.nodes) == len(graph.nodes)
    assert (everything.adjacency == graph.adjacency).all()
    influence = graph.nodes.influence
    kept = [key in set(keys_of(pruned)) for key in keys_of(graph)]
    assert influence[kept].sum() > 0.7 * influence.sum()
    np.testing.assert_array_equal(pruned.nodes.influence, influence[kept])
    shown = pruned.adjacency
    np.testing.assert_array_equal(shown[shown != 0], part_of(graph, keys_of(pruned))[shown != 0])
    inside = pruned.nodes.kind.isin(["latent", "error"]).to_numpy()
    assert (shown[:, inside] != 0).any(axis=0).all()
    assert (shown[(pruned.nodes.kind == "latent").to_numpy()] != 0).any(axis=1).all()


def test_layers_share_programs(model, tokens):
    """A model of more layers compiles no more programs."""
    counts = []
    for layers in (2, 5):
        deep = make_model(jax.random.key(1), layers=layers, d_mlp=25, n_ctx=48)
        of = {site: spliced_at("transcoder", deep, site, 3) for site in mlp_sites(deep)}
        for _ in range(2):  # what is compiled by the way, once
            jax.clear_caches()
            with counting_programs() as programs:
                whole(deep, of, tokens_for(deep, 6))
        counts.append(len(programs))
    assert counts[1] <= counts[0] + 1  # more latents are contracted at once


def test_targets(model, dictionaries, tokens, graph):
    logits, _ = jc.run(model, tokens)
    chances = np.asarray(jax.nn.softmax(logits[-1]))
    found = graph.nodes[graph.nodes.kind == "logit"]
    assert found.unit.tolist() == np.argsort(-chances)[: len(found)].tolist()
    assert chances[found.unit[:-1]].sum() < 0.95
    assert len(found) == 10 or found.probability.sum() >= 0.95
    assert_close(found.probability, chances[found.unit])
    assert_close(graph.values[found.index], np.asarray(logits[-1] - logits[-1].mean())[found.unit])
    by_id = whole(model, dictionaries, tokens, targets=[4, int(found.unit.iloc[0])])
    assert by_id.nodes[by_id.nodes.kind == "logit"].unit.tolist() == [4, int(found.unit.iloc[0])]
    assert_close(
        by_id.adjacency[-1, : len(keys_of(graph)) - len(found)], graph.adjacency[found.index[0], : found.index[0]]
    )


def test_directions(model, dictionaries, tokens):
    """A difference of logits is that of their rows, whichever way it is asked for; `b_U` is a constant of its own."""
    model = dataclasses.replace(model, b_U=jnp.linspace(-1.0, 1.0, model.d_vocab, dtype=model.dtype))
    direction = model.W_U[:, 3] - model.W_U[:, 5]
    named = whole(
        model,
        dictionaries,
        tokens,
        targets={"three": jc.LogitDiff(3, 5), "the same": direction, "alone": jc.LogitDiff(3)},
    )
    plain = whole(model, dictionaries, tokens, targets=np.asarray(direction)[None])
    both = whole(model, dictionaries, tokens, targets=jnp.array([3, 5]))
    logits, _ = jc.run(model, tokens)
    biases = np.asarray(model.b_U)
    assert named.meta["targets"] == ["three", "the same", "alone"]
    assert_close(
        named.values[-3:],
        [logits[-1, 3] - logits[-1, 5], logits[-1, 3] - logits[-1, 5] - biases[3] + biases[5], logits[-1, 3]],
    )
    assert named.nodes.probability[-3:].tolist() == pytest.approx([1 / 3] * 3)
    assert_close(named.adjacency.sum(axis=1)[-3:], named.values[-3:])
    n = len(plain.nodes) - 1
    own = (plain.nodes.kind == "bias") & (plain.nodes.layer == -1)
    assert_close(named.adjacency[-3, :n], both.adjacency[-2, :n] - both.adjacency[-1, :n])
    assert_close(plain.adjacency[-1, :n][~own[:n]], named.adjacency[-3, :n][~own[:n]])
    assert_close(plain.adjacency[-1, :n], named.adjacency[-2, :n])


BAD_TARGETS = {
    "text": ([" Mary"], TypeError, r"got text, \[' Mary'\]\. Encode it: one token each"),
    "one number": (5, TypeError, "got a int"),
    "no targets": ([], ValueError, "Give at least one"),
    "several tokens": ([[1, 2], [3, 4]], ValueError, "a target is one token, and here each has 2"),
    "lists": ([[1, 2], [3]], ValueError, "a target is one token, and some of these are lists of several"),
    "no token": ([99], ValueError, "Token id 99"),
    "twice": ([2, 2], ValueError, "a token is given twice"),
    "one direction": (np.ones(16), ValueError, r"directions are \[n d_model\], got \[16\]"),
    "another width": (np.ones((1, 7)), ValueError, r"direction 0 must be floating-point numbers of shape \[16\]"),
    "nothing": (np.zeros((1, 16)), ValueError, "direction 0 is 0, or not finite"),
    "names": ({"x": np.ones(3)}, ValueError, r"'x' must be floating-point numbers of shape \[16\]"),
    "a metric": (jc.LogProb(2), TypeError, "got a LogProb"),
    "a batch": ({"x": jc.LogitDiff([1, 2], [3, 4])}, ValueError, "'x' is of a batch of prompts"),
    "elsewhere": ({"x": jc.LogitDiff(1, 3, position=2)}, ValueError, "'x' reads position 2; a graph explains the last"),
    "booleans": (np.ones(3, bool), TypeError, "got an array of bool"),
}


@pytest.mark.parametrize("case", BAD_TARGETS)
def test_bad_targets(case, model, dictionaries, tokens, untyped):
    targets, kind, message = BAD_TARGETS[case]
    with pytest.raises(kind, match=message):
        jc.attribution_graph(model, dictionaries, tokens, targets=targets)


def at(name, layer=0):
    return Site.parse(f"blocks.{layer}.{name}")


BAD = {
    "no mapping": (lambda m, d: list(d), {}, TypeError, "expected a mapping from sites to dictionaries"),
    "a missing layer": (
        lambda m, d: {site: d[site] for site in list(d)[:1]},
        {},
        ValueError,
        r"there is none for `blocks\.1\.hook_mlp_out` and 1 more layers",
    ),
    "a residual stream": (
        lambda m, d: {**d, at("hook_resid_post"): spliced_at("relu", m, Site(0, Kind.RESID_POST))},
        {},
        ValueError,
        "stands for what a sublayer adds",
    ),
    "a layer too many": (
        lambda m, d: {**d, at("hook_mlp_out", 7): next(iter(d.values()))},
        {},
        ValueError,
        r"no site `blocks\.7\.hook_mlp_out` in random with 3 layers",
    ),
    "another site's": (
        lambda m, d: dict(zip(d, [*list(d.values())[1:], *list(d.values())[:1]], strict=True)),
        {},
        ValueError,
        r"In a graph it has to read one of",
    ),
    "another width": (
        lambda m, d: {**d, at("hook_mlp_out"): transcoder(jax.random.key(0), 9, Site(0, Kind.MLP_OUT))},
        {},
        ValueError,
        "Was it trained for another model",
    ),
    "no dictionary": (lambda m, d: {**d, at("hook_mlp_out"): 3}, {}, TypeError, "expected a dictionary"),
    "a transcoder of attention": (
        lambda m, d: {
            **d,
            at("hook_attn_out"): spliced_at("transcoder", m, Site(0, Kind.ATTN_OUT), 0, Site(0, Kind.RESID_PRE)),
        },
        {},
        ValueError,
        "In a graph it has to read that site itself",
    ),
    "one that reads nowhere": (
        lambda m, d: {**d, at("hook_mlp_out"): dataclasses.replace(next(iter(d.values())), reads=None)},
        {},
        ValueError,
        "does not say which site it reads",
    ),
    "a cross-layer one of other layers": (
        lambda m, d: REPLACEMENTS["cross-layer"](model_named("gpt2")),
        {},
        ValueError,
        "this cross-layer transcoder is of 2 layers, and random has 3",
    ),
    "a cross-layer one for another site": (
        lambda m, d: dataclasses.replace(
            REPLACEMENTS["cross-layer"](m), sites=tuple(Site(i, Kind.ATTN_OUT) for i in range(3))
        ),
        {},
        ValueError,
        r"reads `blocks\.0\.mlp\.hook_in` and writes `blocks\.0\.hook_attn_out`",
    ),
    "a threshold above 1": (
        lambda m, d: d,
        {"node_threshold": 1.2},
        ValueError,
        "node_threshold is a part of the influence, from 0 to 1",
    ),
    "a threshold below 0": (lambda m, d: d, {"edge_threshold": -0.1}, ValueError, "edge_threshold is a part"),
    "no threshold": (lambda m, d: d, {"edge_threshold": float("nan")}, ValueError, "edge_threshold is a part"),
    "no nodes": (
        lambda m, d: d,
        {"max_nodes": 0},
        ValueError,
        "max_nodes is how many latents to have rows, at least 1; got 0",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case, model, dictionaries, tokens, untyped):
    make, more, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        jc.attribution_graph(model, make(model, dictionaries), tokens, **more)


CHANGES = [jc.attribution_graphs.Change("blocks.0.hook_mlp_out", 1, 3, jc.Add(1.0))]
VERBS = {
    "attribution_graph": jc.attribution_graph,
    "qk_attribution": lambda model, given, tokens: jc.qk_attribution(model, given, tokens, 1, 0, 3, 2),
    "intervene": lambda model, given, tokens: jc.intervene(model, given, tokens, CHANGES),
    "generate": lambda model, given, tokens: jc.generate(model, None, tokens, 1, transcoders=given, changes=CHANGES),
}


@pytest.mark.parametrize("verb", VERBS)
def test_all_verbs_check_dictionaries_alike(verb, model, dictionaries, tokens, untyped):
    run, first = lambda given, model=model: VERBS[verb](model, given, tokens[:5]), next(iter(dictionaries.values()))
    clt = REPLACEMENTS["cross-layer"](model)
    with pytest.raises(TypeError, match=f"{verb}: transcoders: expected a mapping from sites to dictionaries"):
        run(list(dictionaries))
    with pytest.raises(TypeError, match=rf"{verb}: transcoders: at `blocks\.0\.hook_mlp_out`: expected a dictionary"):
        run({**dictionaries, at("hook_mlp_out"): 3})
    with pytest.raises(ValueError, match=rf"{verb}: transcoders: no site `blocks\.7\.hook_mlp_out` in random with 3"):
        run({**dictionaries, at("hook_mlp_out", 7): first})
    with pytest.raises(
        ValueError, match=rf"{verb}: transcoders: the transcoder for `.*` does not say which site it reads"
    ):
        run({**dictionaries, at("hook_mlp_out"): dataclasses.replace(first, reads=None)})
    narrow = dataclasses.replace(clt, W_enc=tuple(W[1:] for W in clt.W_enc), W_skip=None)
    with pytest.raises(
        ValueError, match=rf"{verb}: transcoders: layer 0 of this cross-layer transcoder maps 15 numbers to 16"
    ):
        run(narrow)
    with pytest.warns(UserWarning, match="The cross-layer transcoder was trained on weights processed otherwise"):
        run(dataclasses.replace(clt, processing=("center_writing",)))
    soft = ODD["activation that is not elementwise"][0](make_model(jax.random.key(2), layers=3))
    with pytest.raises(
        ValueError, match=f"{verb}: dictionaries that read `hook_mlp_out` .* of layer 0 has none: its activation"
    ):
        run({site: spliced_at("relu", soft, site) for site in mlp_sites(soft)}, soft)


def test_odd_parts(tokens):
    """Parts of classes of one's own are linearised by their own code; where their weights are needed they are refused."""
    model = make_model(jax.random.key(2))
    short = tokens_for(model, 5)
    odd = ODD["RMS norm and gated MLP"][0](model)
    graph = whole(odd, {site: spliced_at("transcoder", odd, site, 3) for site in mlp_sites(odd)}, short)
    assert_close(graph.adjacency.sum(axis=1)[graph.targets], graph.values[graph.targets])
    with pytest.raises(
        ValueError, match="attribution_graph with neurons: it computes with the weights of a MLP or GatedMLP"
    ):
        whole(odd, None, short)
    with pytest.raises(ValueError, match="attribution_graph with dictionaries that read `hook_mlp_out`: it computes"):
        whole(odd, {site: spliced_at("relu", odd, site) for site in mlp_sites(odd)}, short)


def test_rows_that_do_not_fit(model, dictionaries, tokens, monkeypatch):
    monkeypatch.setattr("jaxcirc.linear._memory.available_on_host", lambda: 2**20)
    with pytest.raises(
        ValueError, match=r"the rows of \d+ nodes, with \d+ latents on, of shape .* takes .* MiB, .* smaller max_nodes"
    ):
        whole(model, dictionaries, tokens)


def test_of_decoders_nothing_but_what_is_on_is_read(model, tokens, monkeypatch):
    clt, asked = REPLACEMENTS["cross-layer"](model), []
    read = jc.CrossLayerTranscoder.decoder_rows

    def counted(self, layer, latents, target):
        asked.append((layer, target, len(latents)))
        return read(self, layer, latents, target)

    monkeypatch.setattr(jc.CrossLayerTranscoder, "decoder_rows", counted)
    graph = whole(model, clt, tokens)
    on = graph.nodes[graph.nodes.kind == "latent"].groupby("layer").unit.nunique()
    assert asked == [(layer, target, on[layer]) for layer in range(3) for target in range(layer, 3)]


def test_half_precision(model, dictionaries, tokens):
    """Weights of half precision are widened where they are read: rows are of float32, and sum."""
    half, of = as_dtype(model, jnp.bfloat16), as_dtype(dictionaries, jnp.bfloat16)
    graph = whole(half, of, tokens)
    assert graph.adjacency.dtype == np.float32
    assert_close(graph.adjacency.sum(axis=1)[graph.targets], graph.values[graph.targets].astype(np.float32))


def test_progress(model, dictionaries, tokens):
    calls = []
    graph = jc.attribution_graph(
        model, dictionaries, tokens, max_nodes=9, node_threshold=1.0, progress=lambda *call: calls.append(call)
    )
    rows = 9 + (graph.nodes.kind == "logit").sum()
    assert calls[-1] == (rows, rows, "rows")
    assert [done for done, _, _ in calls] == sorted({done for done, _, _ in calls})


def test_a_prompt_of_one_token(model, dictionaries):
    graph = whole(model, dictionaries, jnp.array([3]))
    assert_close(graph.adjacency.sum(axis=1)[graph.targets], graph.values[graph.targets])
    assert repr(graph).startswith(f"AttributionGraph({len(graph.nodes)} nodes of {len(graph.nodes)}, ")


def test_dictionaries_in_which_nothing_is_on(model, tokens):
    """A graph of errors, tokens and biases."""
    off = lambda sae: dataclasses.replace(sae, activation=JumpReLU(jnp.asarray(1e9, sae.b_enc.dtype)))
    dictionaries = {site: off(sae) for site, sae in REPLACEMENTS["transcoders"](model).items()}
    graph = whole(model, dictionaries, tokens)
    assert set(graph.nodes.kind) == {"error", "token", "position", "bias", "logit"}
    assert_close(graph.adjacency.sum(axis=1)[graph.targets], graph.values[graph.targets])
    assert set(graph.prune().nodes.kind) <= set(graph.nodes.kind)

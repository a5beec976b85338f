"""Edges split by heads and scores split by pairs of nodes, against runs in which heads and nodes are moved one at a time."""

import dataclasses
import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.attribution_graphs._pairs import strongest_pairs
from tests.helpers import assert_close, model_named, MODELS, needs_x64, tokens_for
from tests.replacements import graph_of, numbers_of, random_cross_layer


def held_sites(model):
    return jc.frozen.patterns(model) | jc.frozen.layer_norms(model)


@jax.jit
def clean_values(model, saes, tokens):
    parts = [part for site in saes for part in (site.acts, site.error)]
    z = [Site(layer, Kind.Z) for layer in range(model.n_layers)]
    return jc.run(model, tokens, saes=saes, record={*parts, *z, Site(None, Kind.EMBED), *held_sites(model)})[1]


def moved_run(model, saes, tokens, clean, steps, through, record):
    """The linearised model with latents, errors and embeddings moved by `steps`, of which heads pass the share `through` `[layer head]`."""
    model = dataclasses.replace(model, logit_cap=None)
    step = lambda site: clean[site] + steps.get(site, 0)
    edits = {site: jc.Replace(clean[site]) for site in held_sites(model)}
    edits |= {site.acts: jc.Replace(step(site.acts)) for site in saes}
    edits |= {site.error: jc.Replace(step(site.error)) for site in saes}
    edits[Site(None, Kind.EMBED)] = jc.Replace(step(Site(None, Kind.EMBED)))
    for layer, share in enumerate(through):
        site = Site(layer, Kind.Z)
        edits[site] = jc.Apply(lambda z, z0=clean[site], share=share: z0 + share[:, None] * (z - z0))
    return jc.run(model, tokens, saes=saes, edits=edits, record=record)


@ft.partial(jax.jit, static_argnames="read")
def edges_through(model, saes, tokens, clean, steps, throughs, at, read):
    """The edge along `steps` into a latent's pre-activation or, with `read` the logits, a logit less their mean, by heads let through."""

    # What latents of attention's output read is there no more once they stand for it.
    wanted = () if read == "logits" else (Site(read.layer, Kind.Z) if saes[read].reads == read else saes[read].reads,)

    def value(size, through):
        moved = {site: size * step for site, step in steps.items()}
        logits, cache = moved_run(model, saes, tokens, clean, moved, through, wanted)
        if read == "logits":
            return logits[at] - logits[at[0]].mean()
        if wanted[0].kind != Kind.Z:
            return saes[read].pre_activations(cache[wanted[0]])[at]
        attn = model.blocks[read.layer].attn
        return saes[read].pre_activations(jnp.einsum("shd,hdm->sm", cache[wanted[0]], attn.W_O) + attn.b_O)[at]

    of = lambda through: jax.jvp(lambda size: value(size, through), (0.0,), (1.0,))[1]
    return jax.vmap(of)(throughs)


def step_of(node, clean, model):
    """What a node is worth, where it can be moved."""
    site, pos, unit = node["site"], int(node["pos"]), int(node["unit"])
    if node["kind"] == "token":
        embed = Site(None, Kind.EMBED)
        return {embed: jnp.zeros_like(clean[embed]).at[pos].set(clean[embed][pos])}
    place = Site.parse(site).acts if node["kind"] == "latent" else Site.parse(site).error
    index = (pos, unit) if node["kind"] == "latent" else (pos,)
    return {place: jnp.zeros_like(clean[place]).at[index].set(clean[place][index])}


def some_edges(graph):
    """Edges of several kinds of sources into the first logit, and into a latent of the last layer that has one reading across attention."""
    first = lambda numbers: numbers[:1]
    sources = [*first(numbers_of(graph, "token", pos=1)), *first(numbers_of(graph, "latent", layer=0, pos=2))]
    sources += first(numbers_of(graph, "error", layer=0, pos=3))
    targets = first(numbers_of(graph, "logit"))
    last = int(graph.nodes["layer"][graph.nodes["kind"] == "latent"].max())
    targets += first(numbers_of(graph, "latent", layer=last, pos=4))
    return [(target, source) for target in targets for source in sources if target != source]


def let_through(model):
    """All heads; and layer by layer none of its heads, and each of them alone: `[layer head + 1]` after the first."""
    ones = np.ones((model.n_layers, model.n_heads))
    rows = [ones]
    for layer in range(model.n_layers):
        for kept in (np.zeros(model.n_heads), *np.eye(model.n_heads)):
            rows.append(ones.copy())
            rows[-1][layer] = kept
    return jnp.asarray(np.stack(rows))


@needs_x64
@pytest.mark.parametrize("name", MODELS)
def test_a_heads_part_is_the_edge_without_the_other_heads_less_the_bypass(name):
    graph, model, transcoders = graph_of(name)
    tokens, edges = jnp.asarray(graph.meta["tokens"]), some_edges(graph)
    found = jc.head_loadings(graph, model, transcoders, edges)
    assert_close(found.values, [graph.adjacency[edge] for edge in edges])
    assert_close(found.heads.sum(-1) + found.bypass, np.repeat(found.values[:, None], model.n_layers, 1))
    clean, throughs = clean_values(model, transcoders, tokens), let_through(model)
    for e, (target, source) in enumerate(edges):
        to = graph.nodes.iloc[target]
        at, read = (int(to["pos"]), int(to["unit"])), "logits" if to["kind"] == "logit" else Site.parse(to["site"])
        steps = step_of(graph.nodes.iloc[source], clean, model)
        whole, *rest = edges_through(model, transcoders, tokens, clean, steps, throughs, at, read)
        without, *alone = np.asarray(rest).reshape(model.n_layers, -1).T
        assert found.values[e] == pytest.approx(float(whole), abs=1e-10)
        np.testing.assert_allclose(found.bypass[e], without, atol=1e-10)
        np.testing.assert_allclose(found.heads[e], np.stack(alone, 1) - without[:, None], atol=1e-10)
        assert not found.heads[e][~found.on_path[e]].any()
    assert np.abs(found.heads).max() > 1e-3


@needs_x64
def test_latents_that_write_to_later_layers_pass_the_attention_of_those():
    model = model_named("gpt2-inverse-layer-scale")
    clt = random_cross_layer(jax.random.key(3), model, skip=True)
    graph = jc.attribution_graph(model, clt, tokens_for(model, 6), node_threshold=1.0, edge_threshold=1.0)
    found = jc.head_loadings(graph, model, clt, most=30)
    assert found.edges.shape == (30, 2)
    assert_close(found.values, graph.adjacency[tuple(found.edges.T)])
    source = numbers_of(graph, "latent", layer=0, pos=2)[0]
    one = jc.head_loadings(graph, model, clt, [(numbers_of(graph, "logit")[0], source)])
    assert one.on_path.tolist() == [[False, True, True]]
    assert np.abs(one.heads[0, 1:]).min() > 0
    table = found.table(5)
    assert len(table) == 5
    assert table["loading"].abs().is_monotonic_decreasing
    at = tuple(table.loc[0, ["layer", "head"]])
    assert (
        found.heads[
            (int(np.flatnonzero((found.edges == table.loc[0, ["target", "source"]].to_numpy()).all(1))[0]), *at)
        ]
        == table["loading"][0]
    )


@needs_x64
def test_what_stands_for_latents_without_rows_is_split_too():
    graph, model, transcoders = graph_of("gpt2")
    few = jc.attribution_graph(
        model, transcoders, tokens_for(model, 6), max_nodes=4, targets=[1, 3], node_threshold=1.0, edge_threshold=1.0
    )
    rest = few.nodes.index[(few.nodes["unit"] == -2) & (few.nodes["layer"] == 0)][:3]
    (target,) = numbers_of(few, "logit")[:1]
    found = jc.head_loadings(few, model, transcoders, [(target, int(source)) for source in rest])
    (target,) = numbers_of(graph, "logit")[:1]
    kept = {tuple(row) for row in few.nodes.loc[few.nodes["kind"] == "latent", ["site", "pos", "unit"]].to_numpy()}
    for e, source in enumerate(rest):
        of = few.nodes.iloc[source]
        numbers = numbers_of(graph, "latent", layer=0, pos=int(of["pos"]))
        numbers = [n for n in numbers if tuple(graph.nodes.loc[n, ["site", "pos", "unit"]]) not in kept]
        each = jc.head_loadings(graph, model, transcoders, [(target, n) for n in numbers])
        assert_close(found.heads[e], each.heads.sum(0))


def scores_by_hand(model, tokens, layer):
    attn = model.blocks[layer].attn
    kinds = Kind.ROT_Q if attn.places_queries else Kind.Q, Kind.ROT_K if attn.places_keys else Kind.K
    cache = jc.run(model, tokens, record=[Site(layer, kind) for kind in kinds])[1]
    q, k = (cache[Site(layer, kind)] for kind in kinds)
    return attn.scale * jnp.einsum("qhd,khd->hqk", q, jnp.repeat(k, q.shape[1] // k.shape[1], axis=1))


@needs_x64
@pytest.mark.parametrize("name", MODELS)
def test_pairs_of_nodes_sum_to_the_score(name):
    graph, model, transcoders = graph_of(name)
    tokens = jnp.asarray(graph.meta["tokens"])
    for layer, head, query, key in [(1, model.n_heads - 1, 4, 3), (0, 0, 2, 2)]:
        got = jc.qk_attribution(model, transcoders, tokens, layer, head, query, key, pairs=7)
        want = scores_by_hand(model, tokens, layer)[head, query, key]
        assert_close(got.score, want)
        whole = got.M_q @ got.M_k.T
        assert_close(whole.sum(), want)
        assert_close(got.of_queries.sum(), want)
        assert_close(got.of_keys, whole.sum(0))
        largest = np.sort(np.abs(whole[whole != 0]))[::-1][:7]
        assert_close(np.abs(got.values), largest)
        assert_close(got.values, whole[tuple(got.pairs.T)])
        assert_close(got.by_kind().to_numpy().sum(), want)


@ft.partial(jax.jit, static_argnames=("layer", "kinds"))
def moved_reading(model, saes, tokens, clean, steps, layer, kinds):
    through = jnp.ones((model.n_layers, model.n_heads))
    of = lambda steps: moved_run(model, saes, tokens, clean, steps, through, [Site(layer, kind) for kind in kinds])[1]
    after, before = of(steps), of({})
    return [after[Site(layer, kind)] - before[Site(layer, kind)] for kind in kinds]


@needs_x64
@pytest.mark.parametrize("name", ["gpt2", "neox", "qwen3", "olmo2", "gemma2"])
def test_what_a_node_contributes_is_what_moving_it_does(name):
    graph, model, transcoders = graph_of(name)
    tokens, attn = jnp.asarray(graph.meta["tokens"]), model.blocks[1].attn
    kinds = Kind.ROT_Q if attn.places_queries else Kind.Q, Kind.ROT_K if attn.places_keys else Kind.K
    head, query, key = model.n_heads - 1, 4, 2
    got = jc.qk_attribution(model, transcoders, tokens, 1, head, query, key)
    clean = clean_values(model, transcoders, tokens)
    nodes = got.nodes
    for kind in ("latent", "token", "error"):
        number = nodes.index[(nodes["kind"] == kind) & (nodes["layer"] <= 0) & (nodes["pos"] == 2)][0]
        steps = step_of(nodes.iloc[number], clean, model)
        q, k = moved_reading(model, transcoders, tokens, clean, steps, 1, kinds)
        kv_head = head // (model.n_heads // model.n_kv_heads)
        assert_close(got.M_k[number], k[key, kv_head])
        # Through attention of the layer before: of latents and errors behind that there is nothing.
        np.testing.assert_allclose(got.M_q[number], q[query, head] * attn.scale, atol=1e-10)
        assert np.abs(got.M_q[number]).max() > 1e-3 or kind != "token"


def test_the_strongest_pairs_of_many(monkeypatch):
    from jaxcirc.attribution_graphs import _pairs

    monkeypatch.setattr(_pairs, "AT_ONCE", 64)
    rng = np.random.default_rng(0)
    sizes = lambda n: np.exp(2 * rng.normal(size=(n, 1))) * (rng.random((n, 1)) > 0.3)
    left, right = rng.normal(size=(40, 5)) * sizes(40), rng.normal(size=(90, 5)) * sizes(90)
    for count in (1, 10, 5000):
        index, values = strongest_pairs(left, right, count)
        whole = left @ right.T
        want = np.sort(np.abs(whole[whole != 0]))[::-1][:count]
        assert_close(np.abs(values), want)
        assert_close(values, whole[tuple(index.T)])
        assert len({tuple(pair) for pair in index}) == len(index)


@needs_x64
def test_an_edge_explained_by_heads_and_pairs():
    graph, model, transcoders = graph_of("llama")
    source, target = numbers_of(graph, "token", pos=1)[0], numbers_of(graph, "logit")[0]
    found = jc.explain_edge(graph, model, transcoders, target, source, heads=2, pairs=4)
    loadings = jc.head_loadings(graph, model, transcoders, [(target, source)])
    assert found.value == pytest.approx(graph.adjacency[target, source])
    largest = np.sort(np.abs(loadings.heads).reshape(-1))[::-1][:2]
    assert_close([abs(each.loading) for each in found.heads], largest)
    patterns = jc.run(model, jnp.asarray(graph.meta["tokens"]), record=jc.frozen.patterns(model))[1]
    for each in found.heads:
        assert each.loading == pytest.approx(loadings.heads[0, each.layer, each.head])
        assert each.attends == pytest.approx(
            float(patterns[Site(each.layer, Kind.PATTERN)][each.head, each.query, each.key])
        )
        assert (each.score.layer, each.score.head, each.score.query, each.score.key) == (
            each.layer,
            each.head,
            each.query,
            each.key,
        )
    # Of a token in the first layer's attention there is one key, its own position.
    assert all(each.key == 1 for each in found.heads if each.layer == 0)
    table = found.table()
    assert len(table) == 8
    assert {"layer", "head", "loading", "attends", "value", "query_kind", "key_unit"} <= {*table.columns}


def test_what_loadings_refuse(untyped):
    graph, model, transcoders = graph_of("gpt2")
    token, logit = numbers_of(graph, "token")[0], numbers_of(graph, "logit")[0]
    with pytest.raises(ValueError, match=rf"head_loadings: node {token} is of kind token, and nothing leads into it"):
        jc.head_loadings(graph, model, transcoders, [(token, logit)])
    with pytest.raises(ValueError, match=r"edges are pairs \(target, source\) of rows of graph.nodes; got \[3\]"):
        jc.head_loadings(graph, model, transcoders, [3])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"the graph has nodes 0 to \d+, the rows of graph.nodes; got -1"):
        jc.head_loadings(graph, model, transcoders, [(logit, -1)])
    with pytest.raises(ValueError, match="is not among those of its prompt with these dictionaries"):
        jc.head_loadings(graph, model, None)


def test_what_scores_refuse(untyped):
    _, model, transcoders = graph_of("gpt2")
    tokens = tokens_for(model, 6)
    of = lambda *where, **more: jc.qk_attribution(model, transcoders, tokens, *where, **more)
    with pytest.raises(
        ValueError, match="in layer 1 the query at 2 does not attend to the key at 4, which comes behind it"
    ):
        of(1, 0, 2, 4)
    with pytest.raises(ValueError, match="layer is 0 to 1 here, got 2"):
        of(2, 0, 2, 1)
    with pytest.raises(ValueError, match="head is 0 to 1 here, got 2"):
        of(1, 2, 2, 1)
    with pytest.raises(ValueError, match="query is 0 to 5 here, got 6"):
        of(1, 0, 6, 1)
    with pytest.raises(ValueError, match="pairs is how many pairs to list, at least 1; got 0"):
        of(1, 0, 2, 1, pairs=0)
    _, windowed, transcoders = graph_of("gpt-neo")
    with pytest.raises(ValueError, match="does not attend to the key at 1: it is outside the layer's window"):
        jc.qk_attribution(windowed, transcoders, tokens_for(windowed, 6), 1, 0, 5, 1)

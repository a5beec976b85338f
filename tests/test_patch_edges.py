"""The component graph, and runs in which its edges carry what they carry in another run."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc.graph import ComponentGraph

from .helpers import assert_close, by_numpy, counting_programs, make_model, model_named, MODELS, needs_x64


COUNTS = {
    "gpt2-small": ((12, 12, 12, True), 32_491),
    "qwen2.5-0.5b": ((24, 14, 14, True), 179_749),
    "gemma-2-2b": ((26, 8, 8, True), 74_218),
    "llama-3.1-8b": ((32, 32, 32, True), 1_592_881),
    "interpbench": ((6, 4, 4, True), 1_108),
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_counts_of_edges(name):
    numbers, count = COUNTS[name]
    assert ComponentGraph(*numbers, parallel=False).n_edges == count


def test_counts_with_projections_are_those_of_acdc():
    for numbers, counts in {(4, 8): (1_281, 1_377), (2, 8): (257, 305)}.items():
        layers, heads = numbers
        graph = ComponentGraph(layers, heads, heads, has_mlp=False, parallel=False)
        assert (graph.n_edges, graph.n_edges_with_projections) == counts
    neo = ComponentGraph(4, 16, 16, True, False)
    assert (neo.n_edges, neo.n_edges_with_projections) == (5_327, 5_519)


def problem(model, *, batch=2, seq=6, seed=1):
    rng = np.random.default_rng(seed)
    clean = rng.integers(0, model.d_vocab, (batch, seq))
    corrupt = (clean + rng.integers(1, model.d_vocab, (batch, seq))) % model.d_vocab
    metric = jc.LogitDiff(np.array([1, 2]), np.array([3, 4]))
    return jnp.asarray(clean), jnp.asarray(corrupt), metric


def metric_of(model, tokens, metric):
    one = lambda tokens, metric: metric(jc.run(model, tokens)[0])
    return jax.vmap(one)(tokens, metric)


def assert_moved_alike(got, want, before):
    """The metrics are alike; and so is by how much they moved, where digits are left of the difference."""
    got, want, before = np.asarray(got), np.asarray(want), np.asarray(before)
    assert np.abs(want - before).max() > 1e-3
    assert_close(got, want)
    if got.dtype == np.float64:
        assert_close(got - before, want - before)


GRAPHS = {"kv": {}, "each, biases": {"shared": "each", "biases": True}}


@pytest.mark.parametrize("options", GRAPHS)
@pytest.mark.parametrize("name", MODELS)
def test_all_kept_is_the_clean_run_and_none_the_corrupt(name, options):
    model = model_named(name)
    clean, corrupt, metric = problem(model)
    graph = jc.component_graph(model, **GRAPHS[options])
    ends = jnp.stack([jnp.ones(graph.edges.shape, bool), jnp.zeros(graph.edges.shape, bool)])
    wanted = [np.asarray(metric_of(model, tokens, metric)) for tokens in (clean, corrupt)]
    for convention in ("tree", "edge"):
        got = jc.patch_edges(model, clean, corrupt, metric, ends, graph=graph, convention=convention)
        assert_close(got, np.stack(wanted))
    assert np.abs(wanted[0] - wanted[1]).min() > 1e-3


def writes_of(model, tokens):
    """What each head and MLP writes to the stream, `{name: [seq d_model]}`, by the sites of a run: an oracle for sequential and parallel
    blocks, with norms behind or without.
    """
    _, cache = jc.run(model, tokens, record="all")
    found = {"embed": cache["hook_embed"] + (cache["hook_pos_embed"] if model.W_pos is not None else 0)}
    for layer, block in enumerate(model.blocks):
        results = cache[f"blocks.{layer}.attn.hook_result"]
        if block.ln1_post is not None:  # RMS norms in all models that have norms behind
            results = (results + block.attn.b_O / results.shape[1]) / cache[f"blocks.{layer}.ln1_post.hook_scale"][
                :, None
            ]
            results = results * (block.ln1_post.offset + block.ln1_post.weight)
        found |= {f"a{layer}.h{head}": results[:, head] for head in range(results.shape[1])}
        if block.mlp is not None:
            found[f"m{layer}"] = cache[f"blocks.{layer}.hook_mlp_out"]
    return found


@by_numpy
def changed_writes(model, clean, corrupt):
    own, other = writes_of(model, clean), writes_of(model, corrupt)
    return {name: other[name] - own[name] for name in own}


def patched_by_sites(model, clean, metric, change, receiver):
    """The metric with a change added to what one receiver reads, by runs with edits at sites: what is read there is put into the clean
    run.
    """
    layer = None if receiver == "logits" else int(receiver.split(".")[0][1:])
    if layer is None:
        site = f"blocks.{model.n_layers - 1}.hook_resid_post"
        return metric(jc.run(model, clean, edits={site: jc.Add(change)})[0])
    if receiver.startswith("m"):
        site, read = "hook_mlp_out", "hook_resid_mid" if model.blocks[layer].has_middle else "hook_resid_pre"
    else:
        site, read = f"attn.hook_{receiver[-1]}", "hook_resid_pre"
    site, read = f"blocks.{layer}.{site}", f"blocks.{layer}.{read}"
    value = jc.run(model, clean, edits={read: jc.Add(change)}, record=[site])[1][site]
    if not receiver.startswith("m"):
        head = int(receiver.split(".")[1][1:])
        own = jc.run(model, clean, record=[site])[1][site]
        value = own.at[:, head].set(value[:, head])
    return metric(jc.run(model, clean, edits={site: jc.Replace(value)})[0])


patched_by_sites = by_numpy(patched_by_sites, static_argnames=("receiver",))


@pytest.mark.parametrize("name", MODELS)
def test_single_edges_are_their_definition(name):
    """Every receiver, from a sender drawn for each."""
    model = model_named(name)
    clean, corrupt, metric = problem(model, batch=1)
    metric = jc.LogitDiff(np.array([1]), np.array([3]))
    graph, rng = jc.component_graph(model), np.random.default_rng(0)
    change = changed_writes(model, clean[0], corrupt[0])
    pairs = [(int(rng.choice(np.flatnonzero(graph.edges[:, j]))), j) for j in range(len(graph.receivers))]
    keep = np.stack([graph.edges] * len(pairs))
    for number, pair in enumerate(pairs):
        keep[(number, *pair)] = False
    got = jc.patch_edges(model, clean, corrupt, metric, keep)[:, 0]
    one = jax.tree.map(lambda x: x[0], metric)
    want = [
        patched_by_sites(model, clean[0], one, change[graph.senders[i]], receiver=graph.receivers[j]) for i, j in pairs
    ]
    assert_moved_alike(got, want, metric_of(model, clean, metric)[0])


@pytest.mark.parametrize("name", MODELS)
def test_a_node_is_all_its_edges(name):
    """A sender whose edges all carry the other run writes what it wrote there: a run with its write moved in the stream."""
    model = model_named(name)
    if any(block.ln1_post is not None for block in model.blocks):
        pytest.skip("what a head writes behind a norm is no part of the stream that could be replaced by itself")
    clean, corrupt, metric = problem(model)
    graph = jc.component_graph(model)
    senders = ["a0.h1", "a1.h0", *(["m0"] if graph.has_mlp else [])]
    keep = np.stack([graph.edges] * len(senders))
    sites = {"a": "attn.hook_z", "m": "hook_mlp_out"}
    want = []
    for number, sender in enumerate(senders):
        keep[number, graph.sender(sender)] = False
        site = f"blocks.{sender[1]}.{sites[sender[0]]}"
        chosen = np.arange(graph.n_heads)[:, None] == int(sender[-1]) if sender[0] == "a" else True

        def one(clean, corrupt, metric, site=site, chosen=chosen):
            value = jc.run(model, corrupt, record=[site])[1][site]
            return metric(jc.run(model, clean, edits={site: jc.Blend(chosen, value)})[0])

        want.append(jax.jit(jax.vmap(one))(clean, corrupt, metric))
    assert_close(jc.patch_edges(model, clean, corrupt, metric, keep), np.stack(want))


def test_edges_at_positions_and_masks_together():
    """Masks of positions: the same at every position is the mask without positions; apart, they add up where nothing composes."""
    model = model_named("gpt2")
    clean, corrupt, metric = problem(model)
    graph, placed = jc.component_graph(model), jc.component_graph(model, positions=6)
    rng = np.random.default_rng(2)
    keep = rng.random((3, *graph.edges.shape)) < 0.6
    whole = jc.patch_edges(model, clean, corrupt, metric, keep)
    everywhere = np.broadcast_to(keep[:, None], (3, *placed.edges.shape))
    assert_close(jc.patch_edges(model, clean, corrupt, metric, everywhere, graph=placed), whole)
    last = placed.edges.copy()
    last[:, placed.sender("m1"), placed.receiver("logits")] = False
    first = placed.edges.copy()
    first[:5, placed.sender("m1"), placed.receiver("logits")] = False
    got = jc.patch_edges(model, clean, corrupt, metric, np.stack([last, first, placed.edges]), graph=placed)
    assert np.abs(got[0] - got[2]).min() > 1e-3
    assert_close(got[1], got[2])  # only the last position is read


def test_masks_in_small_groups_and_under_transformations():
    model = model_named("llama")
    clean, corrupt, metric = problem(model, batch=3)
    metric = jc.LogitDiff(np.array([1, 2, 5]), np.array([3, 4, 6]))
    graph = jc.component_graph(model)
    keep = np.random.default_rng(3).random((2, 2, *graph.edges.shape))
    want = jc.patch_edges(model, clean, corrupt, metric, keep)
    assert want.shape == (2, 2, 3)
    assert_close(jc.patch_edges(model, clean, corrupt, metric, keep, budget=1), want)
    of_mask = lambda keep: jc.patch_edges(model, clean, corrupt, metric, keep)
    assert_close(jax.jit(jax.vmap(jax.vmap(of_mask)))(jnp.asarray(keep)), want)


def test_padding_changes_nothing():
    """Prompts of two lengths in a batch, padded on either side: each as by itself."""
    model = model_named("gpt-neo")
    clean, corrupt, metric = problem(model, seq=7)
    keep = np.random.default_rng(4).random(jc.component_graph(model).edges.shape) < 0.5
    alone = []
    for row, length in enumerate((7, 5)):
        own = jax.tree.map(lambda x, row=row: x[row : row + 1], metric)
        alone.append(
            jc.patch_edges(model, clean[row : row + 1, :length], corrupt[row : row + 1, :length], own, keep)[0]
        )
    mask = np.array([[True] * 7, [True] * 5 + [False] * 2])
    read = jc.LogitDiff(np.array([1, 2]), np.array([3, 4]), position=np.array([6, 4]))
    assert_close(jc.patch_edges(model, clean, corrupt, read, keep, mask=jnp.asarray(mask)), np.stack(alone))
    left = lambda tokens: jnp.stack([tokens[0], jnp.roll(tokens[1], 2)])
    mask = np.array([[True] * 7, [False] * 2 + [True] * 5])
    got = jc.patch_edges(model, left(clean), left(corrupt), metric, keep, mask=jnp.asarray(mask))
    assert_close(got, np.stack(alone))


ABLATIONS = {
    "zero": lambda tokens: jc.Zero(),
    "mean": lambda tokens: jc.Mean(tokens),
    "mean over positions too": lambda tokens: jc.Mean(tokens, by_position=False),
    "resample": lambda tokens: jc.Resample(tokens),
}


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_ablations_of_the_last_edges(ablation):
    """Edges to the logits compose with nothing: what is read there is the stream with the ablated writes exchanged."""
    model = model_named("gpt2")
    clean, corrupt, metric = problem(model)
    graph = jc.component_graph(model)
    keep = graph.edges & ~graph.mask(["a0.h1->logits", "m1->logits", "embed->logits"])
    got = jc.patch_edges(model, clean, None, metric, keep, ablation=ABLATIONS[ablation](corrupt))
    own, other = ([writes_of(model, tokens) for tokens in side] for side in (clean, corrupt))
    want = []
    for row in range(2):
        change = 0
        for name in ("a0.h1", "m1", "embed"):
            bias = model.blocks[1].mlp.b_out if name == "m1" else 0
            mean = np.mean([each[name] for each in other], axis=0)
            value = {
                "zero": np.zeros_like(mean) + bias,
                "mean": mean,
                "mean over positions too": np.broadcast_to(mean.mean(0), mean.shape),
                "resample": other[row][name],
            }[ablation]
            change = change + value - own[row][name]
        one = jax.tree.map(lambda x, row=row: x[row], metric)
        want.append(patched_by_sites(model, clean[row], one, change, receiver="logits"))
    assert_close(got, np.stack(want))


def two_by_two():
    """Two layers of two heads on a stream of two numbers: each head multiplies them, by 1 and 2 or by 3 and 4."""
    model = make_model(
        jax.random.key(0), norm="None", attn_only=True, d_model=2, d_head=2, vocab=2, vocab_out=2, n_ctx=3
    )
    each = jnp.stack([jnp.eye(2)] * 2)
    zeros = lambda attn: [attn.W_Q, attn.W_K, attn.b_Q, attn.b_K, attn.b_V, attn.b_O]
    blocks = []
    for block in model.blocks:
        attn = eqx.tree_at(zeros, block.attn, [jnp.zeros_like(x) for x in zeros(block.attn)])
        own = each, jnp.stack([jnp.diag(jnp.array([1.0, 2.0])), jnp.diag(jnp.array([3.0, 4.0]))])
        blocks.append(eqx.tree_at(lambda block: block.attn, block, eqx.tree_at(lambda a: (a.W_V, a.W_O), attn, own)))
    places = lambda model: (model.W_E, model.W_pos, model.untied_W_U, model.b_U, model.blocks)
    embedding = jnp.array([[1.0, 1.0], [-1.0, -1.0]])
    values = (embedding, jnp.zeros_like(model.W_pos), jnp.eye(2), jnp.zeros(2), tuple(blocks))
    return eqx.tree_at(places, model, jax.tree.map(lambda x: x.astype(model.dtype), values))


KEPT = ["a0.h1->logits", "a0.h0->a1.h1.v", "embed->a0.h0.v"]


@pytest.mark.parametrize(("convention", "wanted"), [("edge", [(-19, -41), (-13, -25), (-9, -13)]), ("tree", None)])
def test_known_answers_of_two_layers(convention, wanted):
    """The stream is 25 and 49 times what is embedded. Of the corrupt run with edges of the clean one the answers were worked out by hand
    for AutoCircuit's first test (Miller et al. 2024); of the clean run with edges of the corrupt one they are these with signs reversed.
    """
    model = two_by_two()
    graph = jc.component_graph(model)
    clean, corrupt = jnp.array([[0]]), jnp.array([[1]])
    of = lambda keep, token: jc.patch_edges(
        model, clean, corrupt, jc.LogitDiff(np.array([token])), keep, convention=convention
    )[..., 0]
    both = lambda keep: np.stack([of(keep, token) for token in (0, 1)], axis=-1)
    assert_close(both(graph.edges), np.array([25.0, 49.0], model.dtype))
    some = np.stack([graph.mask(KEPT[: n + 1]) for n in range(3)])
    if wanted is None:
        wanted, some = [(19, 41), (13, 25), (9, 13)], graph.edges & ~some
    assert_close(both(some), np.array(wanted, model.dtype))


@needs_x64
@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_at_all_kept_is_that_of_single_edges(name):
    """A small step of a mask moves the metric by the step times the gradient, to second order."""
    model = model_named(name)
    clean, corrupt, metric = problem(model)
    graph = jc.component_graph(model)
    total = lambda keep: jc.patch_edges(model, clean, corrupt, metric, keep).sum()
    ones = jnp.ones(graph.edges.shape)
    gradient = np.asarray(jax.grad(total)(ones))
    assert not gradient[~graph.edges].any()
    direction = np.random.default_rng(5).normal(size=graph.edges.shape)
    step = 1e-6
    ends = [ones + sign * step * direction for sign in (1, -1)]
    up, down = jc.patch_edges(model, clean, corrupt, metric, jnp.stack(ends)).sum(1)
    assert_close(np.array([(up - down) / (2 * step)]), np.array([(gradient * direction).sum()]), tolerance=1e-6)


def test_masks_run_one_program():
    """Masks of any number of edges, and prompts of lengths padded to one, share their programs."""
    model = make_model(jax.random.key(7), layers=3)
    graph = jc.component_graph(model)
    pairs = {seq: problem(model, seq=seq) for seq in (5, 7)}  # made before programs are counted
    patched = lambda seq, keep: jc.patch_edges(model, *pairs[seq], keep)
    patched(5, graph.edges)
    with counting_programs() as programs:
        patched(5, np.zeros_like(graph.edges))
        patched(7, graph.edges & ~graph.mask(["embed->logits"]))
    assert not programs


BAD = {
    "corrupt prompts of another length": (lambda g, c: (c[:, :4], g.edges, {}), "of equal length"),
    "a mask of another shape": (lambda g, c: (c, g.edges.T, {}), "keep is of shape [sender receiver]"),
    "a mask of numbers of edges": (lambda g, c: (c, g.edges.astype(int), {}), "dtype int"),
    "a mask with NaN": (lambda g, c: (c, np.where(g.edges, np.nan, 1.0), {}), "NaN or infinity"),
    "masks of none": (lambda g, c: (c, np.ones((0, *g.edges.shape), bool), {}), "keep holds no mask"),
    "no mask": (lambda g, c: (c, ["embed->logits"], {}), "got a list"),
    "no corrupt prompts": (lambda g, c: (None, g.edges, {}), "Give them, or an ablation"),
    "an ablation that is none": (lambda g, c: (c, g.edges, {"ablation": "zero"}), "expected jc.Zero()"),
    "both conventions": (lambda g, c: (c, g.edges, {"ablation": jc.Zero(), "convention": "edge"}), "is no run"),
    "a third convention": (lambda g, c: (c, g.edges, {"convention": "node"}), "must be 'tree' or 'edge'"),
    "another model's graph": (
        lambda g, c: (c, g.edges, {"graph": ComponentGraph(3, 2, 2, True, False)}),
        "n_layers 3 and not 2",
    ),
    "a graph of longer prompts": (
        lambda g, c: (c, np.stack([g.edges] * 9), {"graph": ComponentGraph(2, 2, 2, True, False, n_positions=9)}),
        "9 positions, and the prompts have 6 tokens",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, untyped):
    make, message = BAD[case]
    model = model_named("gpt2")
    clean, corrupt, metric = problem(model)
    corrupt, keep, more = make(jc.component_graph(model), corrupt)
    with pytest.raises((ValueError, TypeError)) as caught:
        jc.patch_edges(model, clean, corrupt, metric, keep, **more)
    assert message in str(caught.value)


def test_names_that_are_none():
    graph = jc.component_graph(model_named("llama"))
    assert graph.receivers[4:8] == ("a0.h0.k", "a0.h1.k", "a0.h0.v", "a0.h1.v")
    for name, message in {
        "m7->logits": "Expected a sender of the component graph, such as 'embed', got 'm7'",
        "m0->a0.h0": "Expected a receiver",
        "m1->m0": "There is no edge m1->m0: m0 reads the residual stream before m1 writes to it.",
        "m0": "Expected an edge such as 'm0->logits'",
    }.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            graph.edge(name)
    with pytest.raises(ValueError, match="no embedding of positions"):
        jc.component_graph(model_named("llama"), embeddings="split")
    with pytest.raises(TypeError, match=r"expected a list of edges, got one. Write \['m0->logits'\]"):
        graph.mask("m0->logits")
    with pytest.raises(ValueError, match="the graph has no positions"):
        graph.mask(["m0->logits@1"])
    for mask, message in {
        "of a shape": (np.ones((3, 3), bool), r"expected a mask \[sender receiver\], here .*, got \[3, 3\]"),
        "of no edge": (np.ones(graph.edges.shape, bool), "there is no edge a0.h0->a0.h0.q, and it is kept"),
    }.values():
        with pytest.raises(ValueError, match=message):
            graph.edge_names(mask)
    placed = jc.component_graph(model_named("llama"), positions=3)
    some = ["embed->m0@0", "embed->m0@2", "m0->logits@1"]
    assert placed.edge_names(placed.mask(some)) == some
    assert (placed.mask(["m0->logits"]) == placed.mask([f"m0->logits@{at}" for at in range(3)])).all()
    assert placed.edge_names(placed.edges.any(0)) == placed.edge_names() == graph.edge_names()
    with pytest.raises(ValueError, match="'m0->logits@3': the graph has positions 0 to 2"):
        placed.mask(["m0->logits@3"])
    names = graph.edge_names()
    assert (len(names), names[0]) == (graph.n_edges, "embed->a0.h0.q")
    assert (graph.mask(names) == graph.edges).all()

"""Edges between single nodes: their definition, sums that are exact, both directions alike; tables, errors."""

import functools as ft
import itertools
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.cli import main
from jaxcirc.nodes import name_of, parse_node
from jaxcirc.saes import Decoder, ReLU

from .dictionaries import make_sae, spliced_at, weights
from .helpers import (
    as_dtype,
    assert_close,
    by_numpy,
    counting_programs,
    make_model,
    model_named,
    MODELS,
    needs_x64,
    tokens_for,
)


METRIC = jc.LogitDiff(2, 0)
SEQ = 6
LAST = SEQ - 1  # where the metric reads: behind the last attention no other position has a gradient
EMBED, POS_EMBED = Site(None, Kind.EMBED), Site(None, Kind.POS_EMBED)
FROZEN = {
    "live": lambda model: frozenset(),
    "norms": jc.frozen.layer_norms,
    "norms and patterns": lambda model: jc.frozen.layer_norms(model) | jc.frozen.patterns(model),
    "norms and gates": lambda model: jc.frozen.layer_norms(model) | jc.frozen.gates(model),
    "detached": jc.frozen.detached,
}


def held(model, how):
    return FROZEN[how](model)


def case(name):
    model = model_named(name)
    return model, tokens_for(model, SEQ)


def some_targets(model, seq=SEQ):
    """Nodes of every kind that read, in the last layer and in the middle of the prompt, and at its end."""
    last = model.n_layers - 1
    heads = [jc.Head(last, 1, seq - 1, 4, part) for part in ("q", "k", "v", "qk", None)]
    neurons = [] if model.blocks[0].mlp is None else [jc.Neuron(last, seq - 1, 3)]
    return [*heads, *neurons, jc.Final()]


def some_sources(model, seq=SEQ):
    neurons = [] if model.blocks[0].mlp is None else [jc.Neuron(0, 4, 5), jc.Bias(Site(0, Kind.MLP_OUT), seq - 1)]
    positions = [] if model.W_pos is None else [jc.Position(2)]
    return [
        jc.Head(0, 1, 4, 2),
        jc.Head(0, 0, seq - 1, 3),
        jc.Bias(Site(0, Kind.ATTN_OUT), 2),
        jc.Token(2),
        *positions,
        *neurons,
    ]


def edge_of(edges, node):
    """The edge at a node, out of the arrays that users index."""
    if isinstance(edges, jc.EdgesInto):
        match node:
            case jc.Neuron():
                return edges.neurons[node.layer, node.pos, node.index]
            case jc.Head():
                return edges.heads[node.layer, node.head, node.query, node.key]
            case jc.Token():
                return edges.tokens[node.pos]
            case jc.Position():
                return edges.positions[node.pos]
            case jc.Bias():
                return edges.biases[node.site.layer, int(node.site.kind == Kind.MLP_OUT), node.pos]
            case jc.Latent():
                return edges.latents[node.site][node.pos, node.index]
            case jc.Error():
                return edges.errors[node.site][node.pos]
    match node:
        case jc.Neuron():
            return edges.neurons[node.layer, node.pos, node.index]
        case jc.Head():
            at = (node.layer, node.head, node.query, node.key)
            parts = {"q": ("q",), "k": ("k",), "v": ("v",), "qk": ("q", "k"), None: ("q", "k", "v")}[node.part]
            return sum(getattr(edges, part)[at] for part in parts)
        case jc.Latent():
            return edges.latents[node.site][node.pos, node.index]
        case jc.Final():
            return edges.final
    raise AssertionError(node)


@by_numpy
def run_of(model, tokens):
    return jc.run(model, tokens, record="all")[1]


@ft.partial(by_numpy, static_argnames=("frozen",))
def gradients_of(model, tokens, frozen):
    """The metric's gradient at every site, by one reverse sweep through a run in which `frozen` sites are detached."""
    values = jc.run(model, tokens, record="all")[1]

    def metric(steps):
        edits = {site: Stepped(step, site in frozen) for site, step in steps.items()}
        return METRIC(jc.run(model, tokens, edits=edits)[0])

    return jax.grad(metric)({site: jnp.zeros_like(value) for site, value in values.items()})


class Stepped(jc.AbstractEdit):
    """Adds a step behind a value that is held or not."""

    step: jax.Array
    held: bool = eqx.field(static=True)

    def __call__(self, x):
        return (jax.lax.stop_gradient(x) if self.held else x) + self.step


def attribution(node, values, gradients, model):
    """A node's activation times the gradient there."""
    match node:
        case jc.Neuron():
            site = Site(node.layer, Kind.MLP_POST)
            return values[site][node.pos, node.index] * gradients[site][node.pos, node.index]
        case jc.Head():
            v = jnp.repeat(values[Site(node.layer, Kind.V)], model.n_heads // model.n_kv_heads, axis=1)
            along = gradients[Site(node.layer, Kind.Z)][node.query, node.head] @ v[node.key, node.head]
            return values[Site(node.layer, Kind.PATTERN)][node.head, node.query, node.key] * along
        case jc.Token():
            whole = values[EMBED] if model.W_pos is None else values[EMBED] + values[POS_EMBED]
            return whole[node.pos] @ gradients[EMBED][node.pos]
        case jc.Position():
            return values[POS_EMBED][node.pos] @ gradients[POS_EMBED][node.pos]
        case jc.Bias():
            layer, attends = node.site.layer, node.site.kind == Kind.ATTN_OUT
            block = model.blocks[layer]
            bias, norm = (block.attn.b_O, block.ln1_post) if attends else (block.mlp.b_out, block.ln2_post)
            inside = Site(layer, Kind.HEADS_OUT if attends else Kind.NEURONS_OUT)
            return bias @ gradients[node.site if norm is None else inside][node.pos]
    raise AssertionError(node)


@needs_x64
@pytest.mark.parametrize("how", [how for how in FROZEN if how != "norms and gates"])
@pytest.mark.parametrize("name", MODELS)
def test_edges_out_of_a_node_sum_to_its_attribution(name, how):
    """`a ∂m/∂a`, by the metric's gradient in a run, is the sum of the edges into all neurons, q, k, v and the last stream."""
    model, tokens = case(name)
    frozen = held(model, how)
    values, gradients = run_of(model, tokens), gradients_of(model, tokens, frozen)
    edges = [jc.edges_out_of(model, tokens, METRIC, node, frozen=frozen) for node in some_sources(model)]
    want = jnp.stack([attribution(node, values, gradients, model) for node in some_sources(model)])
    assert_close(jnp.stack([each.total for each in edges]), want)
    assert_close(jnp.stack([each.attribution for each in edges]), want)


@needs_x64
@pytest.mark.parametrize("how", ["live", "norms", "norms and gates"])
@pytest.mark.parametrize("name", MODELS)
def test_both_directions_give_the_same_edges(name, how):
    model, tokens = case(name)
    frozen, sources, targets = held(model, how), some_sources(model), some_targets(model)
    out = [jc.edges_out_of(model, tokens, METRIC, node, frozen=frozen) for node in sources]
    into = [jc.edges_into(model, tokens, METRIC, node, frozen=frozen) for node in targets]
    forward = jnp.asarray([[edge_of(edges, target) for target in targets] for edges in out])
    backward = jnp.asarray([[edge_of(edges, source) for edges in into] for source in sources])
    assert_close(forward, backward)
    assert (np.abs(np.asarray(forward)).max(0) > 1e-9).all()  # every kind of target has some edge


@needs_x64
@pytest.mark.parametrize("name", MODELS)
def test_edges_into_a_node_sum_to_its_reading_of_the_stream_where_scales_are_held(name):
    """`⟨∂a/∂r, r⟩`, as heads, neurons, biases and tokens make up the stream."""
    model, tokens = case(name)
    frozen, values, last = jc.frozen.layer_norms(model), run_of(model, tokens), model.n_layers - 1
    for node in some_targets(model):
        edges = jc.edges_into(model, tokens, METRIC, node, frozen=frozen)
        middle = isinstance(node, jc.Neuron) and model.blocks[0].has_middle
        stream = values[
            Site(last, Kind.RESID_POST if isinstance(node, jc.Final) else Kind.RESID_MID if middle else Kind.RESID_PRE)
        ]
        assert_close(edges.total, jnp.vdot(edges.gradient, stream), mass=1e-6)
        assert_close(edges.by_position.sum(), edges.total, mass=1e-6)


@needs_x64
def test_a_live_norm_makes_edges_cancel_and_a_held_one_does_not():
    model, tokens = case("lnpre")
    node, sums = jc.Neuron(1, 5, 3), {}
    for how in ("live", "norms"):
        edges = jc.edges_into(model, tokens, None, node, frozen=held(model, how))
        sums[how] = abs(float(edges.total)) / float(jnp.abs(edges.heads).sum() + jnp.abs(edges.tokens).sum())
    assert sums["live"] < 1e-3 < 1e-2 < sums["norms"]  # up to the norm's epsilon


@needs_x64
@pytest.mark.parametrize("how", ["live", "norms"])
@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_is_that_of_the_activation_by_the_stream(name, how):
    """Against `jc.edge`'s autodiff from the stream to the pattern, the values and the neurons, what else a head reads with held."""
    model, tokens = case(name)
    frozen, layer = held(model, how), model.n_layers - 1
    stream, at, gradients = Site(layer, Kind.RESID_PRE), (1, SEQ - 1, 4), gradients_of(model, tokens, held(model, how))
    for part, others in (("q", (Kind.K, Kind.V)), ("k", (Kind.Q, Kind.V))):
        sites = frozen | {Site(layer, kind) for kind in others}
        J = jc.edge(model, tokens, stream, Site(layer, Kind.PATTERN), frozen=sites, engine="autodiff")
        unit = jnp.zeros((model.n_heads, SEQ, SEQ)).at[at].set(1)
        edges = jc.edges_into(model, tokens, None, jc.Head(layer, *at, part), frozen=frozen)
        assert_close(edges.gradient, J.rows(unit[None])[0], mass=1e-6)
    if model.blocks[0].mlp is None:
        return
    reads = Site(layer, model.blocks[0].mlp_reads)
    J = jc.edge(model, tokens, reads, Site(layer, Kind.MLP_POST), frozen=frozen, engine="autodiff")
    unit = jnp.zeros((SEQ, model.blocks[0].mlp.W_out.shape[0])).at[4, 3].set(1)
    edges = jc.edges_into(model, tokens, METRIC, jc.Neuron(layer, SEQ - 1, 3), frozen=frozen)
    bare = jc.edges_into(model, tokens, None, jc.Neuron(layer, 4, 3), frozen=frozen)
    assert_close(bare.gradient, J.rows(unit[None])[0], mass=1e-6)
    derivative = gradients[Site(layer, Kind.MLP_POST)][SEQ - 1, 3]
    assert_close(edges.derivative, derivative, mass=1e-6)


@needs_x64
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_before_the_activation_function(name):
    """Scores are read where patterns were, and together they pass as much; a key's score reads that position alone."""
    model, tokens = case(name)
    kinds = {"frozen": jc.frozen.layer_norms(model)}
    row = [jc.Head(1, 0, 5, key, "k") for key in range(SEQ)]
    by_pattern = sum(jc.edges_into(model, tokens, METRIC, node, **kinds).gradient for node in row)
    scores = [jc.edges_into(model, tokens, METRIC, node, activation="pre", **kinds) for node in row]
    assert_close(sum(edges.gradient for edges in scores), by_pattern, mass=1e-6)
    for key, edges in enumerate(scores):
        there = np.flatnonzero(np.abs(np.asarray(edges.gradient)).sum(1) > 1e-12)
        assert set(there) <= {key}
    out = jc.edges_out_of(model, tokens, METRIC, jc.Token(2), activation="pre", **kinds)
    assert_close(out.k[1, 0, 5], jnp.stack([edges.tokens[2] for edges in scores]), mass=1e-6)
    bare = jc.edges_into(model, tokens, None, jc.Neuron(1, 4, 3), activation="pre", **kinds)
    J = jc.edge(
        model, tokens, Site(1, Kind.RESID_MID), Site(1, Kind.MLP_PRE), frozen=kinds["frozen"], engine="autodiff"
    )
    width = model.blocks[0].mlp.W_out.shape[0]
    assert_close(bare.gradient, J.rows(jnp.zeros((1, SEQ, width)).at[0, 4, 3].set(1))[0])


@needs_x64
@pytest.mark.parametrize("name", ["gpt2", "parallel", "qwen3", "gemma3"])
def test_direct_effects_on_the_metric_are_the_edges_into_the_last_stream(name):
    model = model_named(name)
    tokens = tokens_for(model, SEQ)
    edges = jc.edges_into(model, tokens, METRIC, jc.Final(), frozen=jc.frozen.layer_norms(model))
    want = jc.direct_effects(model, tokens[None], jnp.array([2]), foils=jnp.array([0]), neurons=[0], sources=[(1, 0)])
    assert_close(edges.heads.sum(-1)[..., SEQ - 1], want.heads[0, ..., SEQ - 1])
    assert_close(edges.neurons[0, SEQ - 1], want.neurons[0][0, SEQ - 1])
    assert_close(edges.heads[1, 0, SEQ - 1], want.sources[1, 0][0, SEQ - 1])
    along = jc.edges_into(
        model,
        tokens,
        None,
        jc.Direction(Site(1, Kind.RESID_POST), SEQ - 1, edges.gradient[SEQ - 1]),
        frozen=jc.frozen.layer_norms(model),
    )
    assert_close(along.heads, edges.heads)
    assert_close(along.activation, jnp.vdot(edges.gradient, run_of(model, tokens)[Site(1, Kind.RESID_POST)]))


@needs_x64
@pytest.mark.parametrize(
    ("name", "dictionary"),
    [
        ("gpt2", "relu"),
        ("gpt2", "relu-unit-norm"),
        ("parallel", "transcoder-skip"),
        ("gemma2", "topk"),
        ("qwen3", "gated"),
    ],
)
def test_latents_at_every_site(name, dictionary):
    """Into a latent, by the derivative of a spliced run; out of one, by its own attribution; and both ways alike."""
    model, tokens = case(name)
    kinds = [Kind.RESID_PRE, Kind.ATTN_OUT, Kind.Z, Kind.MLP_POST, Kind.MLP_OUT, Kind.RESID_POST]
    sites = [Site(layer, kind) for layer, kind in itertools.product((0, 1), kinds)]
    sites.remove(Site(1, Kind.RESID_PRE))  # the same place as `resid_post` of the block before
    saes = {
        site: spliced_at(dictionary if site.kind == Kind.MLP_OUT else "relu-unit-norm", model, site, i)
        for i, site in enumerate(sites)
    }
    values = jc.run(model, tokens, saes=saes, record=[part for site in sites for part in (site.acts, site.error)])[1]
    on = {site: int(jnp.argmax(values[site.acts][LAST])) for site in sites}
    gradients = gradients_at_dictionaries(model, tokens, saes)
    for site in sites:
        latent, error = jc.Latent(site, LAST, on[site]), jc.Error(site, LAST)
        out = jc.edges_out_of(model, tokens, METRIC, latent, saes=saes)
        assert_close(out.total, values[site.acts][LAST, on[site]] * gradients[site.acts][LAST, on[site]], mass=1e-9)
        left = jc.edges_out_of(model, tokens, METRIC, error, saes=saes)
        assert_close(left.total, jnp.vdot(values[site.error][LAST], gradients[site.error][LAST]), mass=1e-9)
    out = jc.edges_out_of(model, tokens, METRIC, jc.Token(3), saes=saes)
    first = jc.Latent(sites[1], LAST, on[sites[1]])
    later = jc.edges_out_of(model, tokens, METRIC, first, saes=saes)
    found = []
    for site in sites[1:]:
        into = jc.edges_into(model, tokens, METRIC, jc.Latent(site, LAST, on[site]), saes=saes)
        found.append((out.latents[site][LAST, on[site]], into.tokens[3]))
        found.append((later.latents[site][LAST, on[site]], into.latents[first.site][LAST, first.index]))
    got, want = jnp.asarray(found).T
    assert_close(got, want)
    for site in sites:
        if site.kind in (Kind.RESID_PRE, Kind.RESID_POST):
            continue
        stream = Site(site.layer, model.blocks[0].mlp_reads if site.kind >= Kind.MLP_POST else Kind.RESID_PRE)
        J = jc.edge(model, tokens, stream, site.acts, saes={site: saes[site]}, engine="autodiff")
        unit = jnp.zeros((1, SEQ, saes[site].d_sae)).at[0, LAST, on[site]].set(1)
        into = jc.edges_into(model, tokens, None, jc.Latent(site, LAST, on[site]), saes=saes)
        assert_close(into.gradient, J.rows(unit)[0])


def gradients_at_dictionaries(model, tokens, saes):
    """The metric's gradients at latents and errors, one dictionary spliced in at a time, what its decoder reads beside them held."""
    found = {}
    for site, sae in saes.items():
        values = jc.run(model, tokens, saes={site: sae}, record=[site.acts, site.error])[1]
        held = {site.input: jc.Detach()} if sae.decoder_reads_input else {}

        def metric(steps, site=site, sae=sae, held=held):
            edits = held | {part: jc.Add(step) for part, step in steps.items()}
            return METRIC(jc.run(model, tokens, saes={site: sae}, edits=edits)[0])

        found |= jax.grad(metric)({part: jnp.zeros_like(value) for part, value in values.items()})
    return found


def cross_layer(model):
    """A cross-layer transcoder of a model, with `n_layers` writes of the first layer's latents."""
    layers, d_model, d_sae = model.n_layers, model.d_model, 20
    each = [weights(jax.random.key(layer), d_model, d_sae=d_sae) for layer in range(layers)]
    decoders = [
        Decoder(jax.random.normal(jax.random.key(9 + i), (d_sae, layers - i, d_model)) / 4) for i in range(layers)
    ]
    return jc.CrossLayerTranscoder(
        W_enc=tuple(w[0] for w in each),
        b_enc=tuple(w[1] for w in each),
        decoders=tuple(decoders),
        b_dec=tuple(w[3] for w in each),
        activations=(ReLU(),) * layers,
        reads=tuple(Site(layer, Kind.MLP_IN) for layer in range(layers)),
        sites=tuple(Site(layer, Kind.MLP_OUT) for layer in range(layers)),
    )


@needs_x64
@pytest.mark.parametrize("name", ["gpt2-inverse-layer-scale", "llama"])
def test_latents_that_write_to_several_layers(name):
    model, tokens = case(name)
    clt = cross_layer(model)
    saes = {site: clt for site in clt.sites}
    values, gradients = run_of(model, tokens), gradients_of(model, tokens, frozenset())
    acts = clt.encode(0, values[clt.reads[0]])
    unit = int(jnp.argmax(acts[LAST]))
    latent = jc.Latent(clt.sites[0], LAST, unit)
    out = jc.edges_out_of(model, tokens, METRIC, latent, saes=saes)
    along = sum(clt.decoder_rows(0, [unit], i)[0] @ gradients[site][LAST] for i, site in enumerate(clt.sites))
    assert_close(out.total, acts[LAST, unit] * along)
    last = clt.sites[-1]
    on = int(jnp.argmax(clt.encode(model.n_layers - 1, values[clt.reads[-1]])[LAST]))
    into = jc.edges_into(model, tokens, METRIC, jc.Latent(last, LAST, on), saes=saes)
    assert_close(into.latents[clt.sites[0]][LAST, unit], out.latents[last][LAST, on], mass=1e-6)
    # To what reads before the last layer its write there has not arrived.
    middle = jc.Direction(Site(model.n_layers - 1, model.blocks[0].mlp_reads), LAST, jnp.arange(float(model.d_model)))
    edges = jc.edges_into(model, tokens, None, middle, saes=saes)
    so_far = sum(clt.decoder_rows(0, [unit], i)[0] for i in range(model.n_layers - 1))
    assert_close(edges.latents[clt.sites[0]][LAST, unit], acts[LAST, unit] * so_far @ middle.vector)
    with pytest.raises(ValueError, match="missing at"):
        jc.edges_into(model, tokens, None, middle, saes={clt.sites[0]: clt})


@needs_x64
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_padding_has_no_part(name):
    model, tokens = case(name)
    short = tokens[:4]
    pads = jnp.concatenate([jnp.zeros(2, tokens.dtype), short]), jnp.array([False, False, True, True, True, True])
    node, moved = jc.Head(1, 1, 3, 1, "q"), jc.Head(1, 1, 5, 3, "q")
    want = jc.edges_into(model, short, METRIC, node)
    got = jc.edges_into(model, pads[0], METRIC, moved, mask=pads[1])
    for name_, axes in (("heads", 2), ("neurons", 1), ("tokens", 1)):
        cut = getattr(got, name_)
        cut = cut[..., 2:, 2:] if axes == 2 else cut[:, 2:] if name_ == "neurons" else cut[2:]
        assert_close(cut, getattr(want, name_), mass=1e-9)
        assert_close(jnp.abs(getattr(got, name_)).sum(), jnp.abs(getattr(want, name_)).sum(), mass=1e-9)
    with pytest.raises(ValueError, match="padding"):
        jc.edges_into(model, pads[0], METRIC, jc.Head(1, 1, 5, 1, "q"), mask=pads[1])


def test_many_nodes_of_a_layer_under_vmap_and_jit():
    model, tokens = case("gpt2")
    into = lambda index: jc.edges_into(model, tokens, METRIC, jc.Neuron(1, 5, index))
    several = jax.vmap(into)(jnp.arange(5))
    heads = jax.jit(jax.vmap(lambda key: jc.edges_out_of(model, tokens, METRIC, jc.Head(0, 1, 4, key)).total))(
        jnp.arange(5)
    )
    for index in range(5):
        one = into(index)
        assert_close(several.heads[index], one.heads, mass=1e-9)
        assert_close(several.neurons[index], one.neurons, mass=1e-9)
    want = [jc.edges_out_of(model, tokens, METRIC, jc.Head(0, 1, 4, key)).total for key in range(5)]
    assert_close(heads, jnp.stack(want))
    outside = jax.vmap(into)(jnp.array([0, -1, model.blocks[1].mlp.W_out.shape[0]]))
    assert_close(outside.neurons[0], into(0).neurons, mass=1e-9)
    assert np.isnan(np.asarray(outside.total[1:])).all()
    tokens_of = jax.vmap(lambda pos: jc.edges_out_of(model, tokens, METRIC, jc.Token(pos)))(jnp.array([1, len(tokens)]))
    assert_close(tokens_of.total[0], jc.edges_out_of(model, tokens, METRIC, jc.Token(1)).total)
    assert np.isnan(np.asarray(tokens_of.q[1])).all()


def test_another_node_of_a_layer_or_another_layer_compiles_nothing():
    model, tokens = case("gpt2-inverse-layer-scale")
    for layer in (1, 2):
        jc.edges_into(model, tokens, METRIC, jc.Neuron(layer, 4, 1))
        jc.edges_out_of(model, tokens, METRIC, jc.Neuron(0, 4, 1))
    tokens = tokens + 1
    with counting_programs() as programs:
        jc.edges_into(model, tokens, METRIC, jc.Neuron(2, 3, 2))
        jc.edges_out_of(model, tokens, METRIC, jc.Neuron(0, 2, 2))
    assert not programs, programs


def test_tables_name_what_they_list():
    model, tokens = case("gpt2")
    saes = {Site(0, Kind.MLP_OUT): make_sae(jax.random.key(0), model.d_model, Site(0, Kind.MLP_OUT))}
    into = jc.edges_into(model, tokens, METRIC, jc.Final(), saes=saes)
    table = into.table(10_000)
    assert set(table.kind) == {"neuron", "head", "latent", "error", "token", "bias"}
    assert (np.abs(table.edge).diff()[1:] <= 1e-12).all()
    for row in table.itertuples():
        assert row.edge == edge_of(into, parse_node(row.node, SEQ)), row.node
    top, bottom = into.table(3, order="top"), into.table(3, order="bottom")
    assert (top.edge > 0).all()
    assert (bottom.edge < 0).all()
    assert top.edge.is_monotonic_decreasing
    assert top.edge.iloc[0] == table.edge.max()
    assert bottom.edge.iloc[0] == table.edge.min()
    out = jc.edges_out_of(model, tokens, METRIC, jc.Token(SEQ - 1), saes=saes)
    table = out.table(10_000)
    assert set(table.kind) == {"neuron", "q", "k", "v", "latent", "final"}
    for row in table[table.kind != "final"].itertuples():
        assert_close(edge_of(out, parse_node(row.node, SEQ)), np.asarray(row.edge, out.q.dtype), mass=0)
    sums = out.sums("kind").set_index("kind")["sum"]
    like = lambda x: np.asarray(x, out.q.dtype)  # sums are taken in float64
    assert_close(like(sums[["neuron", "q", "k", "v", "final"]].sum()), out.total)
    by_layer = into.sums("layer")
    assert_close(like(by_layer[by_layer.kind == "head"]["sum"].to_numpy()), into.heads.sum((1, 2, 3)))
    by_position = into.sums("pos")
    assert_close(like(by_position[by_position.kind == "token"]["sum"].to_numpy()), into.tokens)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_strongest_edges_of_many_nodes_are_those_of_each(name):
    model, tokens = case(name)
    nodes = [jc.Neuron(1, 5, 3), jc.Head(1, 0, 5, 2, "q"), jc.Neuron(1, 5, 7), jc.Final(), jc.Head(1, 1, 5, 3, "v")]
    table = jc.edges.strongest_edges(model, tokens, METRIC, nodes, k=4, frozen=jc.frozen.layer_norms(model))
    assert list(table.target.unique()) == [0, 1, 2, 3, 4]
    for number, node in enumerate(nodes):
        want = jc.edges_into(model, tokens, METRIC, node, frozen=jc.frozen.layer_norms(model)).table(4)
        got = table[table.target == number]
        assert list(got.node) == list(want.node)
        assert_close(got.edge.to_numpy(), want.edge.to_numpy(), mass=1e-9)


@needs_x64
@pytest.mark.parametrize("activation", ["post", "pre"])
@pytest.mark.parametrize("name", ["gpt2-inverse-layer-scale", "gemma2", "parallel"])
def test_nodes_of_all_layers_together_are_those_of_each(name, activation, monkeypatch):
    """Each layer meets the gradients of all nodes behind it at once; and in groups, where there are more than memory is budgeted for."""
    model, tokens = case(name)
    clt = cross_layer(model)
    ends = [(layer, pos) for layer in range(model.n_layers) for pos in (3, LAST)]
    nodes = [jc.Head(layer, 1, pos, 3, part) for layer, pos in ends for part in ("q", "k", "v", "qk", None)]
    nodes += [jc.Neuron(layer, pos, 3) for layer, pos in reversed(ends)]
    settings = {"saes": {site: clt for site in clt.sites}, "activation": activation}
    want = [jc.edges_into(model, tokens, METRIC, node, **settings) for node in nodes]
    for budget in (2**30, 2**13):
        monkeypatch.setattr("jaxcirc.edges._many.allowance", lambda budget=budget: budget)
        for got, one in zip(jc.edges.edges_into_each(model, tokens, METRIC, nodes, **settings), want, strict=True):
            assert jax.tree.structure(got) == jax.tree.structure(one)
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12), got, one)


def test_each_layer_meets_all_nodes_at_once(monkeypatch):
    from jaxcirc.edges import _along

    model, tokens = case("gpt2-inverse-layer-scale")
    met: list[int] = []
    one = _along._of_neurons
    monkeypatch.setattr(_along, "_of_neurons", lambda *given, **more: met.append(given[-1]) or one(*given, **more))
    nodes = [jc.Neuron(layer, LAST, unit) for layer in range(model.n_layers) for unit in range(3)]
    nodes += [jc.Head(layer, 0, LAST, 2, part) for layer in range(model.n_layers) for part in ("q", "k", "v")]
    jc.edges.edges_into_each(model, tokens, METRIC, nodes, activation="pre")
    assert met == [6 * (model.n_layers - 1 - layer) for layer in range(model.n_layers - 1)]
    others = [eqx.tree_at(lambda x: jax.tree.leaves(x)[-1], node, 1) for node in nodes]
    with counting_programs() as programs:
        jc.edges.edges_into_each(model, tokens, METRIC, others, activation="pre")
    assert not programs, programs


def test_the_way_back_makes_no_product_anew():
    """Behind the products with the weights a block is known, so that going back costs what going there does, and not twice."""
    from jaxcirc.edges import _point

    model = make_model(jax.random.key(0), d_model=64, d_mlp=256, n_ctx=16)
    block, (mask, *_) = model.blocks[0], model.masks(16, None)
    resid = jnp.ones((16, model.d_model), model.dtype)
    kinds, of = _point._there(block, _point._VALUES), _point._there(block, _point._GRADIENTS)
    _, values = _point._forward(block, mask, resid, kinds=kinds)
    known = {kind: values[kind] for kind in _point._there(block, _point._KNOWN)}
    there = _point._forward.lower(block, mask, resid, kinds=kinds)
    back = _point._backward.lower(block, mask, resid, resid, known, frozen=frozenset(), kinds=of)
    flops = lambda lowered: lowered.compile().cost_analysis()["flops"]
    assert flops(back) < 1.2 * flops(there)


def test_two_prompts_side_by_side_and_many_with_error_bars():
    model, tokens = case("gpt2")
    runs = [jc.edges_into(model, (tokens + i) % model.d_vocab, METRIC, jc.Neuron(1, 5, 3)) for i in range(4)]
    table = jc.edges.compare(runs[0], runs[1], 5)
    assert_close((table.corrupt - table.clean).to_numpy(), table.difference.to_numpy())
    assert (
        np.abs(table.difference.iloc[0])
        == np.abs(np.asarray(jc.edges.compare(runs[0], runs[1], 10_000).difference)).max()
    )
    stable = jc.edges.stability(runs, 6, resamples=4000)
    row = stable.iloc[0]
    each = np.asarray([float(edge_of(run, parse_node(row.node, SEQ))) for run in runs])
    assert_close(row["mean"], each.mean())
    # The spread of means of resamples is known: the standard deviation of the prompts by the root of their number.
    assert_close(row.standard_error, each.std() / len(each) ** 0.5, tolerance=0.05)  # 4000 drawings: one in a hundred
    assert row.prompts == (np.sign(each) == np.sign(each.mean())).mean()
    again = jc.edges.stability(runs, 6, resamples=4000)
    assert stable.equals(again)
    other = jc.edges_into(model, tokens, METRIC, jc.Neuron(1, 4, 3))
    with pytest.raises(ValueError, match="not of nodes alike"):
        jc.edges.compare(runs[0], other)
    with pytest.raises(ValueError, match="two prompts or more"):
        jc.edges.stability(runs[:1])


@needs_x64
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_write_norms_are_those_of_what_is_written(name):
    model, tokens = case(name)
    saes = {site: spliced_at("relu", model, site) for site in (Site(0, Kind.MLP_POST), Site(0, Kind.RESID_POST))}
    norms = jc.edges.write_norms(model, tokens, saes=saes)
    frozen = jc.frozen.layer_norms(model)
    for node, got in (
        (jc.Neuron(0, 4, 3), norms.neurons[0, 4, 3]),
        (jc.Head(1, 0, 4, 2), norms.heads[1, 0, 4, 2]),
        (jc.Token(3), norms.tokens[3]),
    ):
        assert_close(got, jnp.linalg.norm(written_by(model, tokens, node, frozen)))
    values = jc.run(model, tokens, saes=saes, record=[site.acts for site in saes])[1]
    for site in saes:
        unit = int(jnp.argmax(values[site.acts][4]))
        vector = written_by(model, tokens, jc.Latent(site, 4, unit), frozen, saes)
        assert_close(norms.latents[site][4, unit], jnp.linalg.norm(vector))
        assert_close(norms.errors[site][4], jnp.linalg.norm(written_by(model, tokens, jc.Error(site, 4), frozen, saes)))


def written_by(model, tokens, node, frozen, saes=None):
    """What a node writes: its edges along the axes of the last stream, one by one."""
    last, pos = Site(model.n_layers - 1, Kind.RESID_POST), getattr(node, "pos", getattr(node, "query", None))

    def along(axis):
        into = jc.edges_into(model, tokens, None, jc.Direction(last, pos, axis), saes=saes or {}, frozen=frozen)
        return edge_of(into, node)

    return jax.vmap(along)(jnp.eye(model.d_model))


def test_half_precision_is_close():
    model, tokens = case("gpt2")
    single = as_dtype(model, jnp.float32)
    want = jc.edges_into(single, tokens, METRIC, jc.Neuron(1, 5, 3))
    got = jc.edges_into(as_dtype(model, jnp.bfloat16), tokens, METRIC, jc.Neuron(1, 5, 3))
    assert got.heads.dtype == jnp.float32
    assert_close(
        got.heads, want.heads, tolerance=0.1
    )  # bfloat16 weights have eight bits, and errors add up over two layers


BAD = {
    "layer 7": lambda m, t: jc.edges_into(m, t, METRIC, jc.Neuron(7, 0, 0)),
    "index 99": lambda m, t: jc.edges_into(m, t, METRIC, jc.Neuron(1, 0, 99)),
    "pos 6": lambda m, t: jc.edges_into(m, t, METRIC, jc.Neuron(1, 6, 0)),
    "comes after it": lambda m, t: jc.edges_into(m, t, METRIC, jc.Head(1, 0, 2, 3, "q")),
    "head 5": lambda m, t: jc.edges_out_of(m, t, METRIC, jc.Head(1, 5, 2, 1)),
    "a head's part": lambda m, t: jc.edges_into(m, t, METRIC, jc.Head(1, 0, 2, 1, "z")),
    "its part is None": lambda m, t: jc.edges_out_of(m, t, METRIC, jc.Head(1, 0, 2, 1, "q")),
    "reads nothing": lambda m, t: jc.edges_into(m, t, METRIC, jc.Token(1)),
    "writes nothing": lambda m, t: jc.edges_out_of(m, t, METRIC, jc.Final()),
    "no metric was given": lambda m, t: jc.edges_into(m, t, None, jc.Final()),
    "without a metric an edge into a head's value": lambda m, t: jc.edges_into(m, t, None, jc.Head(1, 0, 2, 1, "v")),
    "has no size": lambda m, t: jc.edges_out_of(m, t, None, jc.Token(1)).v,
    "Pass saes=": lambda m, t: jc.edges_into(m, t, METRIC, jc.Latent("blocks.0.hook_mlp_out", 0, 0)),
    "would be cut": lambda m, t: jc.edges_into(m, t, METRIC, jc.Final(), frozen=["blocks.0.hook_mlp_out"]),
    "no site": lambda m, t: jc.edges_into(m, t, METRIC, jc.Final(), frozen=["blocks.9.ln1.hook_scale"]),
    "Did you mean": lambda m, t: jc.edges_into(m, t, METRIC, jc.Bias("blocks.0.hook_resid_pre", 0)),
    "a direction has 16": lambda m, t: jc.edges_into(
        m, t, None, jc.Direction("blocks.0.hook_resid_post", 0, jnp.ones(3))
    ),
    "activation must be": lambda m, t: jc.edges_into(m, t, METRIC, jc.Final(), activation="mid"),
    "how many edges to list": lambda m, t: jc.edges_into(m, t, METRIC, jc.Final()).table(0),
    "order must be": lambda m, t: jc.edges_into(m, t, METRIC, jc.Final()).table(1, order="up"),
}


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_told(message):
    model, tokens = case("gpt2")
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        BAD[message](model, tokens)


@pytest.mark.usefixtures("untyped")
def test_what_is_no_node_is_told():
    model, tokens = case("gpt2")
    with pytest.raises(TypeError, match="expected a node"):
        jc.edges_into(model, tokens, METRIC, (1, 2, 3))


def test_a_latent_that_is_off_is_told():
    model, tokens = case("gpt2")
    site = Site(0, Kind.MLP_OUT)
    saes = {site: spliced_at("relu", model, site)}
    acts = jc.run(model, tokens, saes=saes, record=[site.acts])[1][site.acts]
    off = int(jnp.argmin(acts[2]))
    with pytest.raises(ValueError, match="is off at position 2"):
        jc.edges_into(model, tokens, METRIC, jc.Latent(site, 2, off), saes=saes)
    edges = jc.edges_into(model, tokens, None, jc.Latent(site, 2, off), saes=saes, activation="pre")
    assert np.abs(np.asarray(edges.tokens)).max() > 0


@pytest.mark.parametrize("text", ["neuron 1 2", "neuron 1 two 3", "nobody 1", "head 1 2 3 4 q q", "latent nowhere 1 2"])
def test_names_that_are_of_no_node(text):
    with pytest.raises(ValueError, match=r"neuron|head|latent|site"):
        parse_node(text, SEQ)


def test_names_and_nodes():
    assert name_of("neuron", 1, 2, 3) == "neuron 1 2 3"
    head = parse_node("head 1 0 -1 2 q", SEQ)
    assert (head.layer, int(head.query), head.part) == (1, SEQ - 1, "q")


def test_the_command_prints_what_the_verb_gives(capsys):
    given = [
        "edges",
        "--model",
        "tiny-gpt2",
        "--prompt",
        "The teachers that the doctor likes",
        "--node",
        "neuron 2 -1 400",
    ]
    metric = ["--answer", " are", "--foil", " is"]
    assert main([*given, *metric, "--top", "5", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    model, tokenizer = jc.from_pretrained("tiny-gpt2"), jc.load_tokenizer("tiny-gpt2")
    tokens = jnp.asarray([tokenizer.bos_token_id, *tokenizer.encode("The teachers that the doctor likes")], jnp.int32)
    answer, foil = (tokenizer.encode(text)[0] for text in (" are", " is"))
    node = jc.Neuron(2, len(tokens) - 1, 400)
    want = jc.edges_into(model, tokens, jc.LogitDiff(answer, foil), node, frozen=jc.frozen.layer_norms(model)).table(5)
    assert [edge["node"] for edge in said["edges"]] == list(want.node)
    assert_close(np.array([edge["edge"] for edge in said["edges"]]), want.edge.to_numpy(np.float64), tolerance=1e-3)
    assert len(said["tokens"]) == len(tokens)

    assert main([*given[:-1], "token 1", *metric, "--freeze", "nothing", "--saes", "tiny-gpt2"]) == 0
    printed = capsys.readouterr().out
    assert "20 edges out of token 1 of tiny-gpt2; logit of ' are' less ' is'" in printed
    assert "held: nothing" in printed
    for more, error in (
        (["--answer", " teachers likes"], "--answer takes one token, and ' teachers likes' is 2"),
        (["--node", "neuron 9 1 1"], "has layers 0 to 3, got layer 9"),
        (["--node", "nothing 1"], "No node is called 'nothing 1'"),
    ):
        assert main([*given, *more]) == 2
        assert error in capsys.readouterr().err

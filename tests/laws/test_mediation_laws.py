"""Laws of what passes dictionaries: the parts of a block and of a mediated edge sum to the whole, and are derivatives of runs."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.graph import reaches

from ..dictionaries import in_models, READING, spliced_at
from ..helpers import assert_close, by_numpy, Chosen, model_named, MODELS, needs_x64, tokens_for
from ..test_evaluation import all_edges, circuit_of, some_nodes
from .test_run_laws import direction


SEQ, LAYER = 5, 1
at = ft.partial(Site, LAYER)
PRE, POST, LOGITS = at(Kind.RESID_PRE), at(Kind.RESID_POST), Site(None, Kind.LOGITS)
SUBLAYERS = (Kind.ATTN_OUT, Kind.MLP_OUT)


def images(operators, tangent):
    """Of several operators the image of one tangent."""
    return {name: image(J, tangent) for name, J in operators.items() if J is not None}


image = by_numpy(lambda J, tangent: J.mv(tangent))


def pushed(model, tokens, saes, source, target, tangent, *sets):
    """The same by forward mode of a run with dictionaries spliced in, with each of several sets of sites detached: all in one batch."""
    choices = {
        site: jnp.asarray([site in held for held in sets], jnp.int32) for site in sorted(frozenset().union(*sets))
    }

    def image(choices, model, tokens, saes, tangent):
        def value(step):
            edits = {site: Chosen(choice, (jc.Detach(),)) for site, choice in choices.items()} | {source: jc.Add(step)}
            return jc.run(model, tokens, saes=saes, edits=edits, record=[target])[1][target]

        return jax.jvp(value, (jnp.zeros_like(tangent),), (tangent,))[1]

    over_sets = jax.vmap(image, in_axes=(0, *[None] * 4), axis_size=len(sets))
    return by_numpy(over_sets)(choices, model, tokens, saes, tangent)


@needs_x64
@in_models
def test_paths_sum_to_the_block(name, kind, number):
    """One dictionary, at attention's output or the MLP's, and in between both; whatever its decoder reads."""
    model = model_named(kind)
    tokens = tokens_for(model, SEQ)
    there = [at(each) for each in SUBLAYERS if at(each) in jc.sites(model)]
    chosen = there if number % 5 == 0 else [there[number % len(there)]]
    saes = {site: spliced_at(name, model, site, number + i) for i, site in enumerate(chosen)}
    tangent = jnp.asarray(direction((SEQ, model.d_model)))
    paths = jc.block_paths(model, tokens, LAYER, saes=saes)
    found = images(paths, tangent)
    assert_close(sum(found.values()), pushed(model, tokens, {}, PRE, POST, tangent, ())[0])
    silent = {path for path in found if "error" in path and name == "identity"}
    for path, image in found.items():
        assert (np.abs(image).max() > 1e-6) == (path not in silent), path
    assert {"skip", *(f"{_called(site)}:{part}" for site in chosen for part in ("acts", "error"))} <= {*found}


def _called(site):
    return "attn" if site.kind == Kind.ATTN_OUT else "mlp"


MEDIATORS = (Kind.Z, Kind.ATTN_OUT, Kind.MLP_POST, Kind.MLP_OUT, Kind.RESID_MID, Kind.RESID_PRE)


@needs_x64
@in_models
def test_parts_of_a_mediated_edge_are_derivatives_of_runs(name, kind, number):
    """What passes latents, error and the decoder's input, each against a run with the others detached; and the sums."""
    model = model_named(kind)
    tokens = tokens_for(model, SEQ)
    places = [at(each) for each in MEDIATORS if at(each) in jc.sites(model)]
    # What a transcoder reads must be there to read: elsewhere than at the MLP it reads the site itself.
    mediator = places[(number + list(MODELS).index(kind)) % len(places)]
    source = Site(0, Kind.ATTN_OUT) if mediator == PRE else PRE
    saes = {mediator: spliced_at(name, model, mediator, number)}
    parts = jc.mediated_edges(model, saes, tokens, source, mediator, POST)
    tangent = jnp.asarray(direction(parts.total.source_shape))
    found = images(parts.__dict__, tangent)
    reading = [mediator.input] if saes[mediator].decoder_reads_input else []
    assert ("input" in found) == bool(reading)
    held = [], [mediator], [mediator.error, *reading], [mediator.acts, *reading], [mediator.acts, mediator.error]
    total, beside, acts, error, read = pushed(model, tokens, saes, source, POST, tangent, *held)
    assert_close(found["total"], total)
    assert_close(found["mediated"], total - beside)
    if "direct" in found:
        assert_close(found["direct"], beside)
    else:
        assert np.abs(beside).max() < 1e-12
    assert_close(found["acts"], acts - beside)
    assert_close(found["acts"] + found["error"], found["mediated"])
    if name != "identity":  # which has no error
        assert_close(found["error"], error - beside)
    if reading:
        assert_close(found["input"], read - beside)


@needs_x64
@pytest.mark.parametrize("name", ["topk-standardised", "relu-unit-norm", "transcoder-skip"])
def test_one_part_as_the_mediator_is_that_part(name):
    """The same question asked in two ways has one answer, and what is direct is the rest."""
    model = model_named("gpt2")
    tokens, mediator = tokens_for(model, SEQ), at(Kind.MLP_OUT)
    saes = {mediator: spliced_at(name, model, mediator, 3)}
    ask = lambda mediator: jc.mediated_edges(model, saes, tokens, PRE, mediator, POST)
    whole, acts, error = map(ask, (mediator, mediator.acts, mediator.error))
    tangent = jnp.asarray(direction((SEQ, model.d_model)))
    whole, acts, error = (images(each.__dict__, tangent) for each in (whole, acts, error))
    assert_close(acts["mediated"], whole["acts"])
    assert_close(error["mediated"], whole["error"])
    for each in (acts, error):
        assert_close(each["mediated"] + each["direct"], each["total"])
        assert {*each} == {"mediated", "direct", "total"}


def test_what_cannot_be_split():
    """The mediator's own latents as the source; a decoder's input as a part to ablate, which moves nothing."""
    model, mediator = model_named("gpt2"), at(Kind.MLP_OUT)
    tokens, saes = tokens_for(model, SEQ), {mediator: spliced_at("relu-unit-norm", model, mediator)}
    with pytest.raises(
        ValueError, match=r"hook_sae_acts_post` is at the mediator `blocks.1.hook_mlp_out`, so there is nothing"
    ):
        jc.mediated_edges(model, saes, tokens, mediator.acts, mediator, POST)
    with pytest.raises(
        ValueError, match=r"hook_sae_error` is of a dictionary at `blocks.0.hook_mlp_out`, and there is none"
    ):
        jc.mediated_edges(model, saes, tokens, Site(0, Kind.RESID_PRE), Site(0, Kind.MLP_OUT).error, POST)
    with pytest.raises(ValueError, match=r"is what a decoder reads, and takes no part in the run by itself. Ablate"):
        jc.ablate(model, tokens[None], [mediator.input], jc.Zero(), saes=saes)


@needs_x64
@pytest.mark.parametrize(
    ("kind", "read"),
    [
        ("gpt2", PRE),
        ("gpt2", at(Kind.ATTN_OUT)),
        ("gpt2", Site(0, Kind.MLP_OUT)),
        ("parallel", at(Kind.LN1_NORMALIZED)),
        ("parallel", at(Kind.ATTN_OUT)),
    ],
)
def test_a_transcoder_may_read_anywhere_before(kind, read):
    """Also where nothing leads to its latents: another block, or before the path begins."""
    model = model_named(kind)
    tokens, attn, mlp = tokens_for(model, SEQ), at(Kind.ATTN_OUT), at(Kind.MLP_OUT)
    saes = {attn: spliced_at("relu", model, attn), mlp: spliced_at("transcoder-skip", model, mlp, 3, read)}
    tangent = jnp.asarray(direction((SEQ, model.d_model)))
    total = pushed(model, tokens, {}, PRE, POST, tangent, ())[0]
    paths = jc.block_paths(model, tokens, LAYER, saes=saes)
    assert ("mlp:acts" in paths) == reaches(model, PRE, mlp.acts, [attn], saes)
    assert ("attn_mlp:acts:acts" in paths) == reaches(model, attn, mlp.acts, (), saes)
    assert_close(sum(images(paths, tangent).values()), total)
    parts = jc.mediated_edges(model, saes, tokens, PRE, mlp, POST)
    found = images(parts.__dict__, tangent)
    assert ("acts" in found) == ("input" in found) == reaches(model, PRE, mlp.acts, (), saes)
    assert_close(found["error"] + found.get("acts", 0), found["mediated"])
    assert_close(found["direct"] + found["mediated"], total)


# --- Edges of circuits: the same convention


WIRED = {
    name: kind
    for name, kind in zip(
        READING,
        ["gpt2", "attention-only", "parallel", "no-norm-relu-bidirectional", "gpt-neo", "lnpre", "gpt2-untied"],
        strict=False,
    )
}


@ft.cache
def wired(name):
    """A model with dictionaries that read their input, in a sublayer and behind blocks; prompts that differ; node effects and edges."""
    model = model_named(WIRED[name])
    sublayer = Kind.ATTN_OUT if model.blocks[0].mlp is None else Kind.MLP_OUT
    sites = [Site(0, sublayer), Site(0, Kind.RESID_POST), Site(1, sublayer)]
    saes = {site: spliced_at(name, model, site, i) for i, site in enumerate(sites)}
    clean = jnp.stack([tokens_for(model, SEQ, seed) for seed in range(2)])
    corrupt = clean.at[:, 1].set((clean[:, 1] + 1) % model.d_vocab)
    return model, saes, clean, corrupt, jc.LogitDiff(jnp.arange(2), jnp.arange(2) + 2)


def check_conservation(saes, nodes, edges):
    for site in saes:
        out = sum(edges.dense(pair).sum((1, 2)) for pair in edges.coo if pair[0] == site)
        assert_close(out + np.asarray(edges.to_metric.get(site, 0.0)), nodes.nodes(site))


@needs_x64
@pytest.mark.parametrize("name", WIRED)
def test_edges_out_of_a_node_sum_to_its_effect(name):
    """Of clean gradients, and of integrated ones by the rule of Gauss and Legendre, however few its points are."""
    arguments = wired(name)
    nodes = jc.node_effects(*arguments, method=jc.Gradient())
    check_conservation(arguments[1], nodes, jc.edge_effects(*arguments, nodes, threshold=-1.0))
    if READING.index(name) % 2:
        return
    path = jc.IntegratedGradients(2, "gauss-legendre")
    integrated = jc.node_effects(*arguments, method=path)
    edges = jc.edge_effects(*arguments, integrated, threshold=-1.0, edges="integrated", path=path)
    check_conservation(arguments[1], integrated, edges)
    differ = [np.abs(integrated.nodes(site) - nodes.nodes(site)).max() for site in arguments[1]]
    assert max(differ) > 1e-3


@needs_x64
@pytest.mark.parametrize("name", WIRED)
def test_edges_into_a_dictionary_are_those_of_its_parts(name):
    """Into latents and error: the derivatives of `jc.edge` with the decoder's input held, times the metric's gradient."""
    model, saes, clean, corrupt, metric = wired(name)
    source, target = Site(0, Kind.RESID_POST), max(saes)
    nodes = jc.node_effects(model, saes, clean, corrupt, metric, method=jc.Gradient())
    edges = jc.edge_effects(model, saes, clean, corrupt, metric, nodes, threshold=-1.0).dense((source, target))
    difference = nodes.at.differences[source][:, : clean.shape[1]]
    into = lambda end, held: jc.edge(model, clean[0], source, end, saes=saes, frozen=held)
    found = images({"acts": into(target.acts, []), "error": into(target.error, [target.input])}, difference[0])
    read = saes[target].reads
    x = jc.run(model, clean[0], record=[read])[1][read]
    asked = np.asarray(saes[target].decoder_scale(x)[:, None] * (nodes.gradient[target][0] @ saes[target].W_dec.T))
    assert_close(edges[0].sum((2, 3))[:, :-1], asked * found["acts"])
    assert_close(edges[0].sum((2, 3))[:, -1], (np.asarray(nodes.gradient[target][0]) * found["error"]).sum(-1))


@needs_x64
@pytest.mark.parametrize("name", list(WIRED)[1:4])
def test_all_edges_between_its_nodes_are_the_nodes(name):
    """A circuit run by nodes and by edges, in which decoders read what they read in the clean run."""
    arguments = wired(name)
    nodes = some_nodes(arguments, 0.5, seed=1)
    circuit = circuit_of(arguments, nodes, all_edges(arguments, nodes))
    by_node, by_edge = (jc.evaluate(circuit, *arguments, level=level) for level in ("nodes", "edges"))
    assert len({round(float(values.mean()), 9) for values in by_node.per_prompt.values()}) == 4
    for run, values in by_edge.per_prompt.items():
        if run != "complement":  # which has edges from the circuit's nodes to others, and back
            assert_close(values, by_node.per_prompt[run])


@needs_x64
@pytest.mark.parametrize("name", list(WIRED)[1:4])
def test_small_steps_do_what_the_edges_predict(name):
    """Latents and errors, each by itself: the change of the metric is that of the edges out of it, as the step becomes small."""
    arguments = wired(name)
    circuit = jc.discover(*arguments, node_threshold=0.0, edge_threshold=0.0, method=jc.Gradient())
    last = max(arguments[1])
    rows = [row for row in circuit.node_rows() if row.site != str(last)]
    first = lambda kind: next(row.node for row in rows if row.kind == kind)
    table = jc.steer(circuit, *arguments, [first("latent"), first("error")], strengths=[1e-6])
    assert table["predicted"].abs().min() > 1e-9
    np.testing.assert_allclose(table["measured"], table["predicted"], rtol=1e-3)


MID = at(Kind.RESID_MID)
READ_WHERE_NODES_ARE = {
    "of the same place": ([MID, at(Kind.MLP_OUT)], MID),
    "of another name of it": ([Site(0, Kind.RESID_POST), at(Kind.MLP_OUT)], PRE),
    "of an earlier block": (
        [Site(0, Kind.ATTN_OUT), Site(0, Kind.RESID_POST), at(Kind.MLP_OUT)],
        Site(0, Kind.RESID_MID),
    ),
}


@needs_x64
@pytest.mark.parametrize("name", READ_WHERE_NODES_ARE)
def test_a_transcoder_may_read_where_nodes_are(name):
    """The nodes of the very value that it reads, or that others read on the way, feed it directly."""
    sites, read = READ_WHERE_NODES_ARE[name]
    model, _, *prompts = wired("topk-standardised")
    source, *others, target = sites
    saes = {site: spliced_at("relu-unit-norm", model, site, i) for i, site in enumerate(sites[:-1])}
    saes[target] = spliced_at("transcoder-skip", model, target, 3, read)
    arguments = (model, saes, *prompts)
    nodes = jc.node_effects(*arguments, method=jc.Gradient())
    edges = jc.edge_effects(*arguments, nodes, threshold=-1.0)
    check_conservation(saes, nodes, edges)
    J = jc.edge(model, prompts[0][0], source, target.acts, saes=saes, frozen=others)
    image = images({"": J}, nodes.at.differences[source][0, : prompts[0].shape[1]])[""]
    want = np.asarray(nodes.gradient[target][0] @ saes[target].W_dec.T) * image
    assert_close(edges.dense((source, target))[0].sum((2, 3))[:, :-1], want)
    chosen = some_nodes(arguments, 0.5, seed=1)
    circuit = circuit_of(arguments, chosen, all_edges(arguments, chosen))
    by_node, by_edge = (jc.evaluate(circuit, *arguments, level=level) for level in ("nodes", "edges"))
    for run in ("full", "circuit", "empty"):
        assert_close(by_edge.per_prompt[run], by_node.per_prompt[run])

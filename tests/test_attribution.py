"""Node and edge effects against their definitions, the identities that they obey, and known answers."""

import functools as ft
import gc
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc._fingerprint import fingerprint
from jaxcirc.attribution import _origin, _way_back
from jaxcirc.graph import wiring
from jaxcirc.parts import Attention, Block, MLP, relu
from tests import oracle
from tests.helpers import assert_close, make_model, MODELS, needs_x64, tokens_for

from .helpers import by_numpy


pytestmark = needs_x64

EMBED, ATTN, MLP_OUT, RESID = (
    Site(0, Kind.RESID_PRE),
    Site(0, Kind.ATTN_OUT),
    Site(0, Kind.MLP_OUT),
    Site(0, Kind.RESID_POST),
)


def problem(
    name="gpt2", *, batch=2, seq=4, changed=1, kinds=(Kind.ATTN_OUT, Kind.MLP_OUT, Kind.RESID_POST), alike=True
):
    """A random model with dictionaries, and prompts that differ at one early position."""
    model = MODELS[name](jax.random.key(3))
    saes = oracle.random_saes(jax.random.key(4), model, kinds, alike)
    clean = jnp.stack([tokens_for(model, seq, seed) for seed in range(batch)])
    corrupt = clean.at[:, changed].set((clean[:, changed] + 1) % model.d_vocab)
    metric = jc.LogitDiff(jnp.arange(batch), jnp.arange(batch) + 2)
    return model, saes, clean, corrupt, metric


def one(metric, i):
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[i]), metric)


@pytest.fixture(scope="module", params=["gpt2", "llama", "gemma2"])
def solved(request):
    arguments = problem(request.param, alike=False)
    nodes = jc.node_effects(*arguments, method=jc.Gradient())
    return arguments, nodes, jc.edge_effects(*arguments, nodes, threshold=0.0)


def test_node_effects_are_gradient_times_difference(solved):
    """With every dictionary spliced in, autodiff's gradients at latents and errors are what the plain model's gradient gives (T6)."""
    (model, saes, clean, corrupt, metric), nodes, _ = solved
    plain = {site: sae for site, sae in saes.items() if sae.normalisation is None}
    for i in range(len(clean)):
        gradient = oracle.node_gradients(model, saes, clean[i], one(metric, i))
        before, after = (oracle.node_values(model, saes, tokens[i]) for tokens in (clean, corrupt))
        gradient, before, after = jax.tree.map(np.asarray, (gradient, dict(before), dict(after)))
        for site in saes:
            difference = after[site.acts] - before[site.acts]
            assert_close(np.asarray(nodes.acts[site])[i], gradient[site.acts] * difference)
            if site in plain:  # else the corrupt error is measured with the clean statistics
                error = (gradient[site.error] * (after[site.error] - before[site.error])).sum(-1)
                assert_close(np.asarray(nodes.error[site])[i], error)


@pytest.mark.parametrize(
    "pair",
    [
        (EMBED, ATTN),
        (ATTN, MLP_OUT),
        (EMBED, MLP_OUT),
        (EMBED, RESID),
        (MLP_OUT, RESID),
        (RESID, RESID.offset_layers(1)),
    ],
)
def test_edges_are_their_definition(solved, pair):
    """Every entry, of all four kinds, against full Jacobians (T1, T3, T8); each kind has mass of its own (T4)."""
    (model, saes, clean, corrupt, metric), _, edges = solved
    source, target = pair
    got = edges.dense(pair)
    want = np.stack(
        [oracle.edges(model, saes, clean[i], corrupt[i], one(metric, i), source, target) for i in range(len(clean))]
    )
    # Errors of dictionaries that normalise their input are measured at the clean statistics, here they are not.
    latents = (slice(None), slice(None, -1))
    error = (slice(None), slice(-1, None))
    for target_kind in (latents, error)[: 2 if saes[target].normalisation is None else 1]:
        for source_kind in (latents, error)[: 2 if saes[source].normalisation is None else 1]:
            kind = (slice(None), *target_kind, *source_kind)
            assert_close(got[kind], want[kind])


# Wirings of other families are in `test_attribution_families.py`.
WIRINGS = {
    "gpt-neo": ("gpt-neo", (Kind.ATTN_OUT, Kind.MLP_OUT, Kind.RESID_POST)),
    "residual only": ("gpt2", (Kind.RESID_POST,)),
    "residual, middle too": ("lnpre", (Kind.RESID_MID, Kind.RESID_POST)),
    "MLPs only": ("gpt2-inverse-layer-scale", (Kind.MLP_OUT,)),
    "inside the sublayers": ("gpt2", (Kind.Z, Kind.ATTN_OUT, Kind.MLP_POST)),
    "attention only": ("attention-only", (Kind.ATTN_OUT, Kind.RESID_POST)),
    "side by side": ("parallel", (Kind.ATTN_OUT, Kind.MLP_OUT, Kind.RESID_POST)),
    "no norm, both directions": ("no-norm-relu-bidirectional", (Kind.ATTN_OUT, Kind.MLP_OUT, Kind.RESID_POST)),
}


@jax.jit
def metric_of_run(model, saes, tokens, metric, edits):
    return metric(jc.run(model, tokens, saes=saes, edits=edits)[0])


@pytest.mark.parametrize(
    ("name", "baseline"), [("gpt-neo", "corrupt"), ("gpt-neo", "zero"), ("llama", "corrupt"), ("gemma2", "corrupt")]
)
def test_exact_patching_is_a_run_with_one_node_changed(name, baseline):
    """Latents and errors of every kind of site and dictionary, one run each."""
    kinds = (Kind.Z, Kind.ATTN_OUT, Kind.MLP_POST, Kind.RESID_POST)
    model, saes, clean, corrupt, metric = problem(name, batch=2, seq=3, kinds=kinds)
    corrupt = corrupt if baseline == "corrupt" else None
    got = jc.node_effects(model, saes, clean, corrupt, metric, method=jc.ExactPatching(tokens_at_once=30))
    gradient = jc.node_effects(model, saes, clean, corrupt, metric, method=jc.Gradient())

    values = lambda tokens: jax.tree.map(np.asarray, dict(oracle.node_values(model, saes, tokens)))
    zero = lambda x: jax.tree.map(np.zeros_like, x)
    acts, error = jax.tree.map(np.asarray, (got.acts, got.error))
    for i in range(len(clean)):
        before = values(clean[i])
        after = zero(before) if corrupt is None else values(corrupt[i])
        differences = {site: after[site] - before[site] for site in before}
        base = metric_of_run(
            model, saes, clean[i], one(metric, i), {site: jc.Add(x) for site, x in zero(differences).items()}
        )
        compared = 0
        for site in saes:
            for pos, unit in itertools.product(range(3), (0, 5, 11, -1)):
                edits = {place: np.zeros(x.shape) for place, x in differences.items()}
                part = site.error if unit == -1 else site.acts
                where = (pos, ...) if unit == -1 else (pos, unit)
                edits[part][where] = differences[part][where]
                want = (
                    metric_of_run(
                        model, saes, clean[i], one(metric, i), {s: jc.Add(jnp.asarray(x)) for s, x in edits.items()}
                    )
                    - base
                )
                found = error[site][i, pos] if unit == -1 else acts[site][i, pos, unit]
                assert float(found) == pytest.approx(float(want), abs=1e-10)
                compared += abs(float(want)) > 1e-4
        assert compared > 10
    assert_close(got.total, gradient.total)
    assert max(np.abs(got.error[site] - gradient.error[site]).max() for site in saes) > 1e-3  # it is not linear


def test_where_everything_is_linear_patching_is_the_gradient():
    """T12: attention of one token, no norms, MLPs that are off: the exact effects are the gradient's."""
    model = make_model(jax.random.key(5), norm="None", attn_only=True)
    saes = oracle.random_saes(jax.random.key(4), model, (Kind.ATTN_OUT, Kind.RESID_POST), alike=True)
    clean, metric = jnp.array([[3], [5]], jnp.int32), jc.LogitDiff(jnp.array([1, 2]), jnp.array([4, 0]))
    exact, linear = (
        jc.node_effects(model, saes, clean, clean + 2, metric, method=method)
        for method in (jc.ExactPatching(), jc.Gradient())
    )
    for site in saes:
        assert_close(exact.nodes(site), linear.nodes(site))


def test_edges_carry_their_measured_error(solved, monkeypatch):
    """Asked for, with the precision of products; and products of bfloat16 are found to be wrong where they pass for exact ones."""
    arguments, nodes, plain = solved
    certified = ft.partial(jc.edge_effects, *arguments, nodes, threshold=0.0, certify=True)
    certificate = certified().certificate
    assert plain.certificate is None
    assert 0 < certificate.error < 1e-12
    assert certificate.precision == "highest"
    rounded = lambda x: x.astype(jnp.bfloat16).astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
    exact = _way_back.contract_batch
    in_bfloat16 = lambda segment, masks, resid, moved, *items: exact(segment, masks, resid, moved, *map(rounded, items))
    monkeypatch.setattr(_way_back, "contract_batch", in_bfloat16)
    with pytest.raises(
        ValueError, match=r"The result is wrong: relative error [1-9]\.\de-0[1-4] .*matmul precision highest"
    ):
        certified()


def test_edges_out_of_a_node_sum_to_its_effect(solved):
    """Conservation (T2): over all children, error nodes and the metric among them, for latents and errors alike."""
    arguments, nodes, edges = solved
    check_conservation(arguments[1], nodes, edges)


@pytest.mark.parametrize("wired", list(WIRINGS))
def test_edges_out_of_a_node_sum_to_its_effect_however_wired(wired):
    name, kinds = WIRINGS[wired]
    arguments = problem(name, seq=5, kinds=kinds, alike=wired != "gpt-neo")
    nodes = jc.node_effects(*arguments, method=jc.Gradient())
    edges = jc.edge_effects(*arguments, nodes, threshold=0.0)
    check_conservation(arguments[1], nodes, edges)


@pytest.mark.parametrize("wired", ["gpt-neo", "MLPs only"])
def test_integrated_edges_sum_to_integrated_effects(wired):
    """Conservation (T2, T13) by the same rule, however few its points are; clean edges do not sum to these effects."""
    name, kinds = WIRINGS[wired]
    arguments = problem(name, seq=4, kinds=kinds, alike=wired != "gpt-neo")
    path = jc.IntegratedGradients(2, "left", "corrupt")
    nodes = jc.node_effects(*arguments, method=path)
    edges = jc.edge_effects(*arguments, nodes, threshold=-1.0, edges="integrated", path=path)
    check_conservation(arguments[1], nodes, edges)
    clean = jc.edge_effects(*arguments, nodes, threshold=-1.0)
    with pytest.raises(AssertionError, match="relative error"):
        check_conservation(arguments[1], nodes, clean)
    targets, sources, _ = next(iter(edges.coo.values()))
    ends = np.concatenate([targets, sources], axis=1)
    assert len(np.unique(ends, axis=0)) == len(ends)


def check_conservation(saes, nodes, edges):
    for site in saes:
        out = sum(np.asarray(edges.dense(pair)).sum((1, 2)) for pair in edges.coo if pair[0] == site)
        out = out + np.asarray(edges.to_metric.get(site, 0.0))
        assert_close(out[..., :-1], nodes.acts[site])
        assert_close(out[..., -1], nodes.error[site])


def test_transcoders_are_nodes_too():
    """A transcoder reads the normed residual stream and its error is what it misses; edges conserve effects all the same."""
    model, saes, clean, corrupt, metric = problem(kinds=(Kind.ATTN_OUT, Kind.RESID_POST))
    saes |= {Site(i, Kind.MLP_OUT): oracle.random_transcoder(jax.random.key(i), i, model.d_model, 21) for i in range(2)}
    nodes = jc.node_effects(model, saes, clean, corrupt, metric, method=jc.Gradient())
    check_conservation(saes, nodes, jc.edge_effects(model, saes, clean, corrupt, metric, nodes, threshold=0.0))


def test_only_attention_moves_information(solved):
    """Off-position mass is 0 but for edges into attention, where it is causal (T9)."""
    _, _, edges = solved
    seq = edges.seq
    for source, target in edges.coo:
        by_position = np.abs(edges.dense((source, target))).sum((0, 2, 4))  # [target_pos source_pos]
        off = by_position * (1 - np.eye(seq))
        if target.kind == Kind.ATTN_OUT:
            assert off.sum() > 1e-3
            assert np.triu(by_position, 1).sum() == 0
        else:
            assert by_position.sum() > 1e-3
            assert off.sum() == 0


def linear_block(a, c):
    """`attn(x) = a x`, `mlp(h) = c h` for positive `h`, of width 1, without norms."""
    ones = lambda *shape: jnp.ones(shape)
    zero = lambda *shape: jnp.zeros(shape)
    attention = Attention(
        zero(1, 1, 1),
        zero(1, 1),
        zero(1, 1, 1),
        zero(1, 1),
        a * ones(1, 1, 1),
        zero(1, 1),
        ones(1, 1, 1),
        zero(1),
        ones(),
    )
    block = Block(None, attention, None, MLP(c * ones(1, 1), zero(1), ones(1, 1), zero(1), relu))
    return jc.Transformer(
        jnp.array([[1.0], [2.0]]),
        zero(1, 1),
        (block,),
        None,
        ones(1, 1),
        zero(1),
        (None,),
        True,
        "transformer_lens",
        "linear",
    )


def test_the_scalar_block():
    """T0: D = 1, A = a = 2, M = c = 3 and A-then-M = 6 make 12; by known defects others get 12 for D, or -5."""
    model, sites = linear_block(2.0, 3.0), (EMBED, ATTN, MLP_OUT, RESID)
    saes = {site: jc.saes.Identity(1, site) for site in sites}
    arguments = model, saes, jnp.array([[0]]), jnp.array([[1]]), jc.LogitDiff(0)
    nodes = jc.node_effects(*arguments, method=jc.Gradient())
    edges = jc.edge_effects(*arguments, nodes, threshold=0.0)
    weight = lambda source, target: edges.dense((source, target))[0, 0, 0, 0, 0].item()
    assert nodes.acts[EMBED].item() == pytest.approx(12)
    assert weight(EMBED, RESID) == pytest.approx(1)  # D
    assert weight(EMBED, MLP_OUT) == pytest.approx(3)  # M
    assert weight(EMBED, ATTN) == pytest.approx(8)  # A and A-then-M
    assert weight(ATTN, RESID) == pytest.approx(2)  # A
    assert weight(ATTN, MLP_OUT) == pytest.approx(6)  # A-then-M
    assert weight(MLP_OUT, RESID) == pytest.approx(9)
    assert edges.to_metric[RESID][0, 0, 0].item() == pytest.approx(12)


@ft.partial(by_numpy, static_argnames=("source", "target"))
def jacobian_between(model, tokens, at, held, source, target):
    edits = {site: jc.Replace(value) for site, value in held.items()}
    value = lambda x: jc.run(model, tokens, edits={**edits, source: jc.Replace(x)}, record=[target])[1][target]
    return jax.jacrev(value)(at)


def test_mediation_in_one_block():
    """T1: total = direct + via attention + via MLP + via both, elementwise, each by explicit products of Jacobians through latents and
    errors; the latents alone are not enough."""
    model = make_model(jax.random.key(7), layers=1)
    tokens = tokens_for(model, 4)
    cache = oracle.record(model, tokens, {}, [EMBED, ATTN, MLP_OUT, RESID])
    sae = oracle.random_sae(jax.random.key(8), MLP_OUT, model.d_model, 21)

    def jacobian(source, target, held=()):
        found = jacobian_between(model, tokens, cache[source], {site: cache[site] for site in held}, source, target)
        return np.asarray(found).reshape(cache[source].size, -1)

    total = jacobian(EMBED, RESID)
    direct = jacobian(EMBED, RESID, (ATTN, MLP_OUT))
    via_attn = jacobian(ATTN, RESID, (MLP_OUT,)) @ jacobian(EMBED, ATTN)
    via_mlp = jacobian(MLP_OUT, RESID) @ jacobian(EMBED, MLP_OUT, (ATTN,))
    via_both = jacobian(MLP_OUT, RESID) @ jacobian(ATTN, MLP_OUT) @ jacobian(EMBED, ATTN)
    assert_close(total, direct + via_attn + via_mlp + via_both)
    for path in (via_attn, via_mlp, via_both):
        assert np.abs(path).max() > 1e-3

    # via_mlp once more, through the dictionary: decoder times (encoder times Jacobian), and the error
    encode = jax.jit(jax.jacrev(lambda x, sae: jax.vmap(sae.encode)(x)))(cache[MLP_OUT], sae)
    encode = np.asarray(encode).reshape(tokens.size * sae.d_sae, -1)
    decode = np.kron(np.eye(tokens.size), np.asarray(sae.W_dec).T)
    through_latents = jacobian(MLP_OUT, RESID) @ decode @ encode @ jacobian(EMBED, MLP_OUT, (ATTN,))
    through_error = (
        jacobian(MLP_OUT, RESID) @ (np.eye(encode.shape[1]) - decode @ encode) @ jacobian(EMBED, MLP_OUT, (ATTN,))
    )
    assert_close(through_latents + through_error, via_mlp)
    assert np.abs(through_latents - via_mlp).max() > 1e-2 * np.abs(via_mlp).max()


def test_error_nodes_carry_their_edges():
    """T5: dictionaries whose latents never fire leave everything to the error nodes."""
    model, saes, clean, corrupt, metric = problem()
    silent = {
        site: oracle.random_sae(jax.random.key(1), site, model.d_model, 18, jc.saes.JumpReLU(jnp.asarray(1e6)))
        for site in saes
    }
    nodes = jc.node_effects(model, silent, clean, corrupt, metric, method=jc.Gradient())
    edges = jc.edge_effects(model, silent, clean, corrupt, metric, nodes, threshold=0.0)
    assert all(np.abs(acts).max() == 0 for acts in nodes.acts.values())
    for pair, (targets, sources, values) in edges.coo.items():
        assert len(values), pair
        assert (targets[:, 2] == 18).all()
        assert (sources[:, 2] == 18).all()
    assert_close(edges.dense((EMBED, RESID))[:, :, -1, :, -1].sum((1, 2)), _direct(model, nodes, clean, corrupt))


def _direct(model, nodes, clean, corrupt):
    """The direct effect of the embedding on the first block's output, position by position the same vector."""
    embed = lambda tokens: jax.vmap(lambda t: jc.run(model, t, record=[EMBED])[1][EMBED])(tokens)
    return ((embed(corrupt) - embed(clean)) * nodes.gradient[RESID]).sum((1, 2))


def test_integrated_gradients_are_complete():
    """T7 and law 9: at every residual site effects sum to the total, and the error falls at the rule's order."""
    arguments = problem(batch=3, seq=6)
    cuts = [site for site in arguments[1] if site.kind in (Kind.RESID_PRE, Kind.RESID_POST)]

    def worst(method):
        nodes = jc.node_effects(*arguments, method=method)
        assert np.abs(nodes.total).max() > 1e-2
        gaps = [np.abs(nodes.nodes(site).sum((1, 2)) - nodes.total).max() for site in cuts]
        return max(gaps) / float(np.abs(nodes.total).max())

    assert worst(jc.IntegratedGradients(10)) < 1e-2
    assert worst(jc.IntegratedGradients(10, "gauss-legendre")) < 1e-3
    for rule, order in (("midpoint", 2), ("left", 1), ("right", 1)):
        ratio = worst(jc.IntegratedGradients(20, rule)) / worst(jc.IntegratedGradients(40, rule))
        assert 0.8 * 2**order < ratio < 1.2 * 2**order, rule


def test_the_path_can_be_walked_from_either_end():
    arguments = problem()
    effects = [
        jc.node_effects(*arguments, method=jc.IntegratedGradients(4, *path)).acts[RESID]
        for path in (("left", "clean"), ("right", "corrupt"), ("right", "clean"))
    ]
    assert_close(effects[0], effects[1])
    assert np.abs(effects[0] - effects[2]).max() > 1e-3


def test_zero_baseline():
    """Without corrupt prompts every latent and error goes to zero: effects are minus the values times the gradient."""
    model, saes, clean, _, metric = problem()
    nodes = jc.node_effects(model, saes, clean, None, metric, method=jc.Gradient())
    found = (
        oracle.node_gradients(model, saes, clean[0], one(metric, 0)),
        dict(oracle.node_values(model, saes, clean[0])),
    )
    gradient, values = jax.tree.map(np.asarray, found)
    for site in saes:
        assert_close(nodes.acts[site][0], -gradient[site.acts] * values[site.acts])
        assert_close(nodes.error[site][0], -(gradient[site.error] * values[site.error]).sum(-1))
    assert_close(nodes.total, -nodes.clean)


def test_a_batch_is_its_prompts_one_by_one():
    """T11, for prompts of unequal length: padding contributes exactly nothing."""
    model, saes, clean, corrupt, _ = problem(seq=5)
    lengths = np.array([5, 3])
    mask = jnp.asarray(np.arange(5) < lengths[:, None])
    metric = jc.LogitDiff(jnp.arange(2), jnp.arange(2) + 2, position=jnp.asarray(lengths - 1))
    method = jc.IntegratedGradients(3)
    nodes = jc.node_effects(model, saes, clean, corrupt, metric, method=method, mask=mask)
    edges = jc.edge_effects(model, saes, clean, corrupt, metric, nodes, threshold=0.0, mask=mask)
    for i, length in enumerate(lengths):
        alone = (
            model,
            saes,
            clean[i : i + 1, :length],
            corrupt[i : i + 1, :length],
            jax.tree.map(lambda x, i=i: x[i : i + 1], metric),
        )
        nodes_alone = jc.node_effects(*alone, method=method)
        edges_alone = jc.edge_effects(*alone, nodes_alone, threshold=0.0)
        for site in saes:
            assert_close(nodes.nodes(site)[i, :length], nodes_alone.nodes(site)[0])
            assert np.abs(nodes.nodes(site)[i, length:]).max(initial=0.0) == 0
        for pair in edges.coo:
            assert_close(edges.dense(pair)[i, :length, :, :length], edges_alone.dense(pair)[0])
            assert np.abs(edges.dense(pair)[i, length:]).max(initial=0.0) == 0


def test_thresholds_choose_targets_and_sources(solved):
    arguments, nodes, every = solved
    cut = 0.02
    active = jc.edge_effects(*arguments, nodes, threshold=cut)
    selected = jc.edge_effects(*arguments, nodes, threshold=cut, upstream="selected")
    for pair in every.coo:
        source, target = pair
        above = {site: np.abs(nodes.nodes(site)) > cut for site in pair}
        assert above[target].any()
        assert not above[target].all()
        want = np.where(above[target][..., None, None], every.dense(pair), 0)
        assert_close(active.dense(pair), want)
        assert_close(selected.dense(pair), np.where(above[source][:, None, None], want, 0))
        assert all((values != 0).all() for _, _, values in active.coo.values())


def test_many_targets_go_in_several_chunks(solved, monkeypatch):
    arguments, nodes, edges = solved
    monkeypatch.setattr("jaxcirc.attribution._contract._chunk_size", lambda *_, most: 5)
    again = jc.edge_effects(*arguments, nodes, threshold=0.0)
    for pair in edges.coo:
        assert_close(again.dense(pair), edges.dense(pair))


def test_wiring_is_that_of_the_paper():
    model = make_model(jax.random.key(0))
    sites = [
        EMBED,
        *(Site(layer, kind) for layer in range(2) for kind in (Kind.ATTN_OUT, Kind.MLP_OUT, Kind.RESID_POST)),
    ]
    wires = {(wire.source, wire.target): set(wire.frozen) for wire in wiring(model, sites)}
    want = {}
    for layer in range(2):
        before = EMBED if layer == 0 else RESID.offset_layers(layer - 1)
        attn, mlp, resid = (site.offset_layers(layer) for site in (ATTN, MLP_OUT, RESID))
        want |= {
            (before, attn): set(),
            (before, mlp): {attn},
            (before, resid): {attn, mlp},
            (attn, mlp): set(),
            (attn, resid): {mlp},
            (mlp, resid): set(),
        }
    assert wires == want


def test_layers_share_their_programs():
    """One trace a kind of edge, in whatever layer; none for new prompts of the same shape."""
    from jaxcirc.linear._segments import _batch

    model = make_model(jax.random.key(3), layers=3)
    sites = [
        EMBED,
        *(Site(layer, kind) for layer in range(3) for kind in (Kind.ATTN_OUT, Kind.MLP_OUT, Kind.RESID_POST)),
    ]
    saes = {site: oracle.random_sae(jax.random.key(i), site, model.d_model, 20) for i, site in enumerate(sites)}
    _batch.clear_cache()
    for seed in range(2):
        clean = tokens_for(model, 5, seed)[None]
        arguments = model, saes, clean, clean.at[:, 1].set((clean[:, 1] + 1) % 13), jc.LogitDiff(0, 1)
        nodes = jc.node_effects(*arguments, method=jc.Gradient())
        edges = jc.edge_effects(*arguments, nodes, threshold=0.0, upstream="active")
        assert len(edges.coo) == 18
        if seed == 0:
            first = _batch._cache_size()
            assert first == 6  # attention, MLP and the three into the residual stream, and attention into the MLP
    assert _batch._cache_size() <= 2 * first  # chunk sizes are powers of two, so the second prompt may need one more


BAD = {
    "unequal lengths": (
        lambda a: a | {"corrupt": a["corrupt"][:, :-1]},
        "pairs of equal length: clean has shape .2, 4., corrupt .2, 3.",
    ),
    "one sequence": (lambda a: a | {"clean": a["clean"][0]}, r"shape \[batch seq\], got \(4,\)"),
    "token id": (lambda a: a | {"clean": a["clean"].at[1, 2].set(99)}, r"Token id 99 at \[1, 2\]"),
    "metric of another batch": (
        lambda a: a | {"metric": jc.LogitDiff(jnp.arange(5))},
        "leading axis over the 2 prompts",
    ),
    "metric's token": (lambda a: a | {"metric": jc.LogitDiff(jnp.array([1, 77]))}, "Token id 77"),
    "position": (
        lambda a: a | {"metric": jc.LogitDiff(1, position=9)},
        "reads position 9 of prompt 0, and the prompts have 4",
    ),
    "position of padding": (
        lambda a: a | {"mask": jnp.ones((2, 4), bool).at[1, 3].set(False)},
        "-1 of prompt 1, which is padding",
    ),
    "no dictionaries": (lambda a: a | {"saes": {}}, "jc.load_saes"),
    "mask": (lambda a: a | {"mask": jnp.ones((2, 3), bool)}, r"one boolean a token, .* bool\[2, 4\]; got bool\[2, 3\]"),
    "no such site": (lambda a: a | {"saes": {"blocks.9.hook_mlp_out": a["saes"][MLP_OUT]}}, "blocks.9.hook_mlp_out"),
}


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("what", list(BAD))
def test_bad_input(what):
    change, message = BAD[what]
    model, saes, clean, corrupt, metric = problem()
    arguments = change({"saes": saes, "clean": clean, "corrupt": corrupt, "metric": metric})
    with pytest.raises(ValueError, match=message):
        jc.node_effects(model, **arguments)


@pytest.mark.usefixtures("untyped")
def test_what_is_of_another_kind():
    model, saes, clean, corrupt, metric = problem()
    prompts = jc.data.Prompts(clean, corrupt, metric.answer, metric.foil, {"end": jnp.asarray([3, 3])})
    with pytest.raises(TypeError, match=r"expected one such as jc.IntegratedGradients\(10\), .* got a str"):
        jc.node_effects(model, saes, clean, corrupt, metric, method="gradient")
    with pytest.raises(TypeError, match=r"got the method that makes it. Call it: prompts.metric\(\)"):
        jc.node_effects(model, saes, clean, corrupt, prompts.metric)
    with pytest.raises(TypeError, match=r"Expected a mapping from sites, .* got a list"):
        jc.node_effects(model, [saes], clean, corrupt, metric)


def test_bad_dictionaries():
    model, saes, clean, corrupt, metric = problem()
    bad = {
        "cannot hold a circuit's nodes": {Site(0, Kind.Q): jc.saes.Identity(12)},
        "the same place": {RESID: saes[RESID], Site(1, Kind.RESID_PRE): jc.saes.Identity(16)},
        "maps 5 numbers": {RESID: jc.saes.Identity(5)},
        "trained for": {Site(1, Kind.RESID_POST): saes[RESID]},
    }
    for message, dictionaries in bad.items():
        with pytest.raises(ValueError, match=message):
            jc.node_effects(model, dictionaries, clean, corrupt, metric)


@pytest.mark.usefixtures("untyped")
def test_bad_options(solved):
    arguments, nodes, edges = solved
    for value in (float("nan"), float("inf"), None, "0.1", True):
        with pytest.raises(ValueError, match="edge_effects: threshold: expected a finite number, got"):
            jc.edge_effects(*arguments, nodes, threshold=value)
    with pytest.raises(
        TypeError, match=r"edge_effects: nodes: expected effects, as jc.node_effects gives them, got 'x'"
    ):
        jc.edge_effects(*arguments, "x", threshold=0.0)
    with pytest.raises(TypeError, match=r"edge_effects: path: expected a rule, jc.IntegratedGradients"):
        jc.edge_effects(*arguments, nodes, threshold=0.0, edges="integrated", path=jc.Gradient())
    with pytest.raises(ValueError, match="'active' or 'selected'"):
        jc.edge_effects(*arguments, nodes, threshold=0.0, upstream="all")
    with pytest.raises(ValueError, match="same prompts and dictionaries"):
        jc.edge_effects(*arguments[:1], {RESID: arguments[1][RESID]}, *arguments[2:], nodes, threshold=0.0)
    with pytest.raises(ValueError, match="No edges go directly from"):
        edges.dense((EMBED, RESID.offset_layers(1)))
    with pytest.raises(ValueError, match="rule must be one of"):
        jc.IntegratedGradients(5, "simpson")
    with pytest.raises(ValueError, match="at least 1"):
        jc.IntegratedGradients(0)


def test_a_jaxlib_known_to_be_wrong_is_refused(monkeypatch):
    monkeypatch.setattr("jaxlib.version.__version__", "0.10.2")
    monkeypatch.setattr("jaxcirc._guard.running_platform", lambda: "cpu")
    with pytest.raises(
        RuntimeError, match=r"jaxlib 0.10.2 computes wrong Jacobians on cpu .* pip install 'jax!=0.10.2'"
    ):
        jc.node_effects(*problem())


@pytest.mark.parametrize("on", [2, 40])
def test_lists_of_few_latents_and_of_many(on):
    """What latents write and read, by rows of their own and by an array of all of them."""
    from jaxcirc.units._latents import _most, Latents, listed, read, write, write_tiles

    rng = np.random.default_rng(0)
    dense, rows, vectors = np.zeros((2, 5, 40)), jnp.asarray(rng.normal(size=(40, 6))), rng.normal(size=(5, 6))
    for example in dense:
        for position in range(0, 5, 2):
            example[position, rng.permutation(40)[:on]] = rng.normal(size=on)
    latents = listed(dense)
    assert (latents.units >= 0).sum(axis=1).tolist() == [3 * on, 3 * on]
    mine = Latents(*(x[1] for x in (latents.positions, latents.units, latents.values)))
    assert _most(mine, rows, 5) == (on == 40)
    assert_close(write(mine, rows, 5, tiles=write_tiles()), dense[1] @ np.asarray(rows))
    want = (dense[1] != 0) * (vectors @ np.asarray(rows).T)
    got = np.zeros((5, 40))
    there = mine.units >= 0
    products = np.asarray(read(mine, rows, jnp.asarray(vectors)))
    got[mine.positions[there], mine.units[there]] = products[there]
    assert_close(got, want)


class Unknown(eqx.Module):
    """A metric of which is not known what it reads."""

    metric: jc.LogitDiff

    def __call__(self, logits):
        return self.metric(logits)


@pytest.mark.parametrize("name", ["gpt-neo", "attention-only", "parallel", "no-norm-relu-bidirectional"])
def test_behind_the_last_block_only_what_the_metric_reads_is_run(name, monkeypatch):
    # What a program of its own is worth, models of this size never are.
    monkeypatch.setattr("jaxcirc.runs._gradients._worth_a_program", lambda *_: True)
    model, saes, clean, corrupt, metric = problem(name, kinds=(Kind.ATTN_OUT, Kind.RESID_POST))
    metric = jc.LogitDiff(metric.answer, metric.foil, jnp.asarray([-1, 2]))
    method = jc.IntegratedGradients(2, "right")
    got, want = (
        jc.node_effects(model, saes, clean, corrupt, each, method=method) for each in (metric, Unknown(metric))
    )
    for site in saes:
        assert_close(got.acts[site], want.acts[site])
        assert_close(got.error[site], want.error[site])


def test_edits_behind_the_last_block_reach_the_metric():
    from jaxcirc._run import run_metric

    model, _, clean, _, metric = problem("gpt2")
    normalized, logits = Site.parse("ln_final.hook_normalized"), Site.parse("logits")
    plain = one(metric, 0)(jc.run(model, clean[0])[0])
    assert_close(run_metric(model, one(metric, 0), clean[0])[0], plain)
    for edits in ({normalized: jc.Apply(jnp.sin)}, {logits: jc.Add(jnp.arange(13.0))}):
        got, cache = run_metric(model, one(metric, 0), clean[0], edits=edits, record=[normalized])
        edited, want = jc.run(model, clean[0], edits=edits, record=[normalized])
        assert_close(got, one(metric, 0)(edited))
        assert abs(got - plain) > 1e-2
        assert {*cache} == {normalized}
        assert_close(cache[normalized], want[normalized])


def test_nodes_of_something_else_are_refused():
    model, saes, clean, corrupt, metric = arguments = problem("gpt2")
    nodes = jc.node_effects(*arguments, method=jc.Gradient())
    halved = lambda tree: jax.tree.map(lambda x: x * 0.5 if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)
    others = {
        "other prompts": (model, saes, corrupt, clean, metric),
        "another model, with other weights": (halved(model), saes, clean, corrupt, metric),
        f"another dictionary at `{RESID}`, with": (model, {**saes, RESID: halved(saes[RESID])}, clean, corrupt, metric),
        r"another metric\.": (model, saes, clean, corrupt, jc.LogitDiff(metric.foil, metric.answer)),
        "another metric": (model, saes, clean, corrupt, jc.LogProb(metric.answer)),
    }
    for what, given in others.items():
        with pytest.raises(ValueError, match=f"they are of {what}"):
            jc.edge_effects(*given, nodes, threshold=0.0)
    written = lambda token: lambda logits: logits[-1, token]
    nodes = jc.node_effects(*arguments[:4], written(3), method=jc.Gradient())
    assert len(jc.edge_effects(*arguments[:4], written(3), nodes, threshold=0.0).coo)  # the same, if another object
    with pytest.raises(ValueError, match="they are of another metric"):
        jc.edge_effects(*arguments[:4], written(4), nodes, threshold=0.0)


def test_a_model_is_fingerprinted_once_and_as_long_as_it_lives(monkeypatch):
    computed = []
    monkeypatch.setattr(_origin, "fingerprint", lambda tree: computed.append(tree) or fingerprint(tree))
    model, saes, *_ = problem("gpt2")
    first = _origin.fingerprints(model, saes)
    assert _origin.fingerprints(model, saes) == first
    assert len(computed) == 1 + len(saes)
    assert first[0] == fingerprint(model)
    known = len(_origin._KNOWN)
    computed.clear()
    del model, saes
    gc.collect()
    assert len(_origin._KNOWN) <= known - 1 - len(first[1])
    held = jax.tree.map(np.array, MODELS["gpt2"](jax.random.key(3)))  # arrays that can change
    assert _origin.fingerprints(held, {})[0] == first[0]
    held.blocks[0].attn.W_Q[...] = 0.0
    assert _origin.fingerprints(held, {})[0] != first[0]

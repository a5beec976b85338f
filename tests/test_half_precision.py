"""Models and dictionaries in half precision, with a residual stream as large as GPT-2's first position has it: every number is the one
that the same weights give in float64.

What is compared is computed in float32 from the very same weights, so what is left is float32's rounding, and not half precision's: of
values of 900 it is 6e-5, which norms, differences of large values and a few layers make some ten times larger. Half precision's own is
0.25 or 4, and its sums overflow.
"""

import dataclasses
import functools as ft
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc._precision import wide, wide_dtype, widened
from jaxcirc.components import Receivers
from jaxcirc.interop import save_pretrained
from jaxcirc.jacobian import frozen
from tests.dictionaries import DICTIONARIES, make_sae, transcoder
from tests.helpers import as_dtype, assert_close, make_model, MODELS, tokens_for
from tests.stored_models import stored_model
from tests.test_attribution import problem


HALF = {"float16": jnp.float16, "bfloat16": jnp.bfloat16}
ROUNDING = 2e-4
PRE, POST = Site(1, Kind.RESID_PRE), Site(1, Kind.RESID_POST)


def exact(tree):
    """The same weights, wide enough for an oracle."""
    return as_dtype(tree, jnp.float64 if jax.config.jax_enable_x64 else jnp.float32)


def large(model, size=900.0):
    """The model with a first position as large as this, or where positions are rotary a first token; without norms only so large that
    attention does not decide on rounding.
    """
    size = size if model.ln_final is not None else 30.0
    enlarged = lambda array, row: array.at[row, jnp.array([3, 7])].set(jnp.array([size, -size]))
    if model.W_pos is None:
        return dataclasses.replace(model, W_E=enlarged(model.W_E, tokens_for(model)[0]))
    return dataclasses.replace(model, W_pos=enlarged(model.W_pos, 0))


@ft.cache
def half(name, dtype):
    return as_dtype(large(MODELS[name](jax.random.key(0))), HALF[dtype])


def assert_same(got, want, *, tolerance=ROUNDING, mass=1e-3):
    """Every array of two results, in float32 at least."""
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    assert len(got) == len(want) > 0
    for mine, other in zip(got, want, strict=True):
        assert mine.dtype in (jnp.float32, jnp.float64)
        assert_close(mine, np.asarray(other), tolerance=tolerance, mass=mass)


# --- Runs


@ft.partial(jax.jit, static_argnames="record")
def run(model, tokens, record=(), mask=None):
    return jc.run(model, tokens, record=record, mask=mask)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_the_value_at_every_site(name, dtype):
    model = half(name, dtype)
    tokens, sites = tokens_for(model, 7), jc.sites(model)
    assert_same(run(model, tokens, sites), run(exact(model), tokens, sites))
    assert model.dtype == HALF[dtype]
    assert model.activation_dtype == jnp.float32


def with_large_scores(model):
    attn = lambda attn: dataclasses.replace(attn, W_Q=300 * attn.W_Q, W_K=300 * attn.W_K)
    return dataclasses.replace(
        model, blocks=tuple(dataclasses.replace(block, attn=attn(block.attn)) for block in model.blocks)
    )


def with_large_sums(model):
    mlp = lambda mlp: dataclasses.replace(mlp, W_in=3e4 * mlp.W_in, W_out=1e-2 * mlp.W_out)
    return dataclasses.replace(
        model, blocks=tuple(dataclasses.replace(block, mlp=mlp(block.mlp)) for block in model.blocks)
    )


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (with_large_scores, Kind.ATTN_SCORES),
        (with_large_sums, Kind.MLP_PRE),
        (lambda model: large(model, 6e4), Kind.RESID_PRE),
    ],
)
def test_what_float16_cannot_hold(change, kind):
    """Scores, sums over d_model and squares beyond 65504."""
    model = as_dtype(change(make_model(jax.random.key(0))), jnp.float16)
    site = Site(0, kind)
    got, want = (run(each, tokens_for(model, 7), (site,)) for each in (model, exact(model)))
    assert_same(got, want)
    largest = np.abs(np.where(np.isfinite(got[1][site]), got[1][site], 0)).max()
    assert largest ** (2 if kind == Kind.RESID_PRE else 1) > 65504


@pytest.mark.parametrize("dtype", HALF)
def test_loaded_models(dtype):
    model = jc.from_pretrained("tiny-gpt2", dtype=HALF[dtype])
    scales = [block.attn.scale for block in model.blocks]  # not stored, but computed with
    others = [leaf for leaf in jax.tree.leaves(model) if not any(leaf is scale for scale in scales)]
    assert {leaf.dtype for leaf in others} == {jnp.dtype(dtype)}
    assert {scale.dtype for scale in scales} == {jnp.dtype(jnp.float32)}
    tokens = tokens_for(model, 6)
    assert_same(run(model, tokens)[0], run(exact(model), tokens)[0])


@pytest.mark.parametrize("dtype", HALF)
def test_processed_weights_are_rounded_once(dtype):
    """What is folded is a product and a mean in float32, of which the weights keep half precision's digits."""
    model = half("gpt2", dtype)
    got, want = jc.process_weights(model), jc.process_weights(exact(model))
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(dtype)}
    for mine, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        if np.any(other):
            assert_close(mine.astype(jnp.float32), np.asarray(other), tolerance=float(jnp.finfo(HALF[dtype]).eps))


def test_single_and_double_precision_are_left_alone():
    """No array is copied, and no operation is added to a program."""
    model = as_dtype(make_model(jax.random.key(0)), jnp.float32)
    assert all(a is b for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(widened(model)), strict=True))
    program = jax.make_jaxpr(lambda model, tokens: jc.run(model, tokens)[0])
    conversions = lambda model: re.findall(
        r":f\d+\[\d[^\]]*\] = convert_element_type", str(program(model, tokens_for(model)))
    )
    assert not conversions(model)
    assert conversions(as_dtype(model, jnp.float16))
    assert [str(wide_dtype(dtype)) for dtype in ("float16", "bfloat16", "float32", "float64", "int8", "bool")] == [
        *["float32"] * 3,
        *["float64", "int8", "bool"],
    ]
    assert wide(jnp.ones(2, jnp.bfloat16)).dtype == jnp.float32


def test_edits_in_half_precision():
    """Values that were kept in half precision, and a function that hands it back, do not make the rest of the run half."""
    model = half("gpt2", "float16")
    tokens, site = tokens_for(model, 6), Site(0, Kind.RESID_MID)
    value = run(model, tokens, (site,))[1][site].astype(jnp.float16)
    want = jc.run(exact(model), tokens, edits={site: jc.Replace(exact(value))})[0]
    for edit in (jc.Replace(value), jc.Apply(lambda x: value), jc.Blend(jnp.ones(1, jnp.float16), value)):
        assert_same(jc.run(model, tokens, edits={site: edit})[0], want)


@pytest.mark.parametrize("dtype", HALF)
def test_metrics_of_logits_in_half_precision(dtype):
    """Logits and references that were kept in half precision: probabilities of many tokens are sums."""
    logits = 4 * jax.random.normal(jax.random.key(0), (3, 5000)).astype(HALF[dtype])
    reference = jax.random.normal(jax.random.key(1), (5000,)).astype(HALF[dtype])
    for metric in (jc.LogitDiff(2, 0), jc.LogProb(2), jc.KL(reference)):
        assert_same(metric(logits), exact(metric)(exact(logits)))


# --- Dictionaries


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", DICTIONARIES)
def test_dictionaries(name, dtype):
    """Their numbers are those of the same weights in float64, whether what they read is half precision too or not."""
    site = Site(0, Kind.RESID_MID)
    sae = as_dtype(DICTIONARIES[name](jax.random.key(2), 16, site), HALF[dtype])
    x = jax.random.normal(jax.random.key(3), (5, 16)).at[0].multiply(300.0).astype(HALF[dtype])

    def everything(sae, x):
        acts = sae.encode(x)
        return (
            acts,
            sae.decode(acts, x),
            sae.slopes(x),
            sae.decoder_scale(x),
            sae.pull_input(wide(x), jnp.cos(wide(x))),
        )  # along x itself a norm gives 0

    want = everything(exact(sae), exact(x))
    for read in (x, wide(x)):
        assert_same(everything(sae, read), want)


def test_dictionaries_in_half_precision_beside_a_model_in_single():
    model = as_dtype(large(MODELS["gpt2"](jax.random.key(0))), jnp.float32)
    saes = {Site(0, Kind.MLP_OUT): as_dtype(make_sae(jax.random.key(1), 16, Site(0, Kind.MLP_OUT)), jnp.bfloat16)}
    record = [site.acts for site in saes] + [site.error for site in saes]
    got, want = (
        jc.run(*each, saes=spliced, record=record)
        for *each, spliced in (
            (model, tokens_for(model, 6), saes),
            (exact(model), tokens_for(model, 6), exact(saes)),
        )
    )
    assert_same(got, want)


# --- Verbs


def first_position_large(name, dtype, **settings):
    """`problem` with the first position large, in half precision; and the metrics of its prompts."""
    model, saes, clean, corrupt, metric = problem(name, **settings)
    return *as_dtype((large(model), saes), HALF[dtype]), clean, corrupt, metric


def node_effects(method):
    def compute(model, saes, *prompts):
        found = jc.node_effects(model, saes, *prompts, method=method)
        return {site: found.nodes(site) for site in saes}, found.clean, found.total, found.gradient

    return compute


def edge_effects(edges):
    def compute(model, saes, *prompts):
        rule = jc.IntegratedGradients(2)
        nodes = jc.node_effects(model, saes, *prompts, method=jc.Gradient() if edges == "clean" else rule)
        found = jc.edge_effects(model, saes, *prompts, nodes, threshold=0.0, edges=edges, path=rule)
        return {str(pair): found.dense(pair) for pair in found.coo}, found.to_metric

    return compute


def head_effects(method):
    def compute(model, saes, *prompts):
        found = jc.head_effects(model, *prompts, method=method)
        return found.q, found.k, found.v, found.z, found.total, found.clean

    return compute


def patched(model, saes, *prompts):
    given = {"sites": ["resid_pre", "q", "pattern", "mlp_out.acts"], "saes": saes, "normalise": "metric"}
    return jc.activation_patch(model, *prompts, **given).values


def direct_effects(model, saes, clean, *_):
    return jc.direct_effects(model, clean, jnp.asarray([1, 2]), foils=0, neurons=[0], sources=[(1, 0)])


def direct_effects_of_a_direction(model, saes, clean, *_):
    return jc.direct_effects(model, clean, jnp.arange(16, dtype=model.dtype)).total


def logit_lens(model, saes, clean, *_):
    lens = jc.logit_lens(model, clean)
    return lens.answers(), lens.logits(1), lens.top(3)[1]


def ablations(model, saes, clean, corrupt, metric):
    parts = [(0, 1), "blocks.0.hook_mlp_out", (Site(1, Kind.RESID_POST), 2)]
    each = jc.ablate_each(model, clean, parts, jc.Resample(corrupt), metric, saes=saes)
    return jc.ablate(model, clean, parts, jc.Mean(corrupt), saes=saes), each


def self_repair(model, saes, clean, corrupt, _):
    found = jc.self_repair(model, clean, corrupt)
    return [getattr(found, name)[:, :1] for name in ("direct", "own", "backup", "mlps", "norm", "change")]


def circuits(model, saes, *prompts):
    circuit = jc.discover(model, saes, *prompts, node_threshold=0.01, edge_threshold=0.01, method=jc.Gradient())
    found = jc.evaluate(circuit, model, saes, *prompts)
    effects = np.array(circuit.nodes["effect"]), np.array(circuit.edges["weight"])
    steered = jc.steer(circuit, model, saes, *prompts, [circuit.nodes["node"][0]], strengths=[0.5])
    return *effects, np.array([found.faithfulness, found.completeness]), np.array(steered["effect"])


VERBS = {
    "gradients": node_effects(jc.Gradient()),
    "integrated gradients": node_effects(jc.IntegratedGradients(2)),
    "exact patching": node_effects(jc.ExactPatching()),
    "clean edges": edge_effects("clean"),
    "integrated edges": edge_effects("integrated"),
    "heads by gradients": head_effects(jc.Gradient()),
    "heads by AtP*": head_effects(jc.AtPStar()),
    "heads by patching": head_effects(jc.ExactPatching()),
    "activation patching": patched,
    "direct effects": direct_effects,
    "direct effects of a direction": direct_effects_of_a_direction,
    "logit lens": logit_lens,
    "ablations": ablations,
    "self-repair": self_repair,
    "circuits": circuits,
}


@pytest.mark.parametrize("verb", VERBS)
def test_verbs(verb):
    model, saes, *prompts = first_position_large("gpt2", "float16")
    assert_same(VERBS[verb](model, saes, *prompts), VERBS[verb](exact(model), exact(saes), *prompts))


@pytest.mark.parametrize("verb", ["clean edges", "direct effects"])
def test_verbs_on_another_model(verb):
    model, saes, *prompts = first_position_large("gpt-neo", "bfloat16")
    assert_same(VERBS[verb](model, saes, *prompts), VERBS[verb](exact(model), exact(saes), *prompts))


@pytest.mark.parametrize("size", [1e-9, 1e9])
def test_effects_that_float16_cannot_hold(size):
    """Metrics and derivatives far below its smallest number, and above its largest."""
    model, saes, clean, corrupt, _ = first_position_large("gpt2", "float16")
    metric = lambda logits: size * (logits[-1, 1] - logits[-1, 2])
    found = jc.node_effects(model, saes, clean, corrupt, metric, method=jc.Gradient())
    want = jc.node_effects(exact(model), exact(saes), clean, corrupt, metric, method=jc.Gradient())
    for site in saes:
        assert_same(found.nodes(site) / size, want.nodes(site) / size)


def test_sums_hold():
    """Edges out of a node sum to its effect, and what components add to a logit to the logit."""
    model, saes, clean, corrupt, metric = first_position_large("gpt2", "float16")
    nodes = jc.node_effects(model, saes, clean, corrupt, metric, method=jc.Gradient())
    edges = jc.edge_effects(model, saes, clean, corrupt, metric, nodes, threshold=0.0)
    for source in saes:
        total = np.asarray(edges.to_metric.get(source, 0.0), np.float64)
        for pair in edges.coo:
            total = total + (edges.dense(pair).astype(np.float64).sum((1, 2)) if pair[0] == source else 0)
        assert_close(total, np.asarray(nodes.nodes(source)), tolerance=ROUNDING)
    effects = jc.direct_effects(model, clean, 1, foils=2)
    logits = jax.vmap(lambda tokens: jc.run(model, tokens)[0])(clean)
    assert_close(effects.total, np.asarray(logits[..., 1] - logits[..., 2]), tolerance=ROUNDING)


@pytest.mark.parametrize("dtype", HALF)
def test_a_mean_over_many_prompts_does_not_stagnate(dtype):
    """In half precision a sum of ones stops growing at 2048 or 256."""
    model = make_model(jax.random.key(0), n_ctx=3)
    model = as_dtype(dataclasses.replace(model, W_E=1 + model.W_E / 100), HALF[dtype])
    site, prompts = Site(None, Kind.EMBED), jnp.arange(15000).reshape(5000, 3) % model.d_vocab
    embedded = jax.vmap(lambda tokens, keys: jc.run(model, tokens, record=[site], mask=keys)[1])
    in_two = lambda count: np.array_split(np.arange(count), 2)
    receivers = Receivers(model, prompts[:1], jnp.ones((1, 3), bool), prompts[:1], embedded, dict, in_two)
    got = jc.Mean(prompts).values(receivers)(np.arange(1))[site]
    assert_same(got[0], np.asarray(model.W_E, np.float64)[prompts].mean(0), tolerance=1e-4)  # float32 sums of thousands


# --- Jacobians


SPANS = {
    "one block": (PRE, POST, ()),
    "attention with patterns held": (Site(1, Kind.RESID_PRE), Site(1, Kind.ATTN_OUT), ("patterns",)),
    "an MLP with norms held": (Site(0, Kind.RESID_MID), Site(0, Kind.MLP_OUT), ("layer_norms",)),
    "several blocks": (Site(0, Kind.RESID_PRE), POST, ()),
    "to the logits": (Site(0, Kind.RESID_PRE), Site(None, Kind.LOGITS), ()),
    "from the embedding": (Site(None, Kind.EMBED), Site(0, Kind.MLP_POST), ()),
}


@pytest.mark.parametrize("span", SPANS)
def test_jacobians(span):
    """Closed forms and autodiff, entry by entry, bilinear forms and products; certificates hold them to float32's limit."""
    source, target, names = SPANS[span]
    model = half("gpt2", "float16")
    tokens = tokens_for(model, 5)
    held = lambda model: frozenset().union(*(getattr(frozen, name)(model) for name in names))
    make = lambda model, engine: jc.edge(model, tokens, source, target, frozen=held(model), engine=engine)
    oracle = make(exact(model), "autodiff")
    want = oracle.as_matrix()
    for engine in ("auto", "autodiff"):
        J = make(model, engine)
        assert J.dtype == jnp.float32
        assert_same(J.as_matrix(), want)
        left, right = (
            jax.random.normal(key, (3, want.shape[axis]))
            for key, axis in ((jax.random.key(1), 1), (jax.random.key(2), -1))
        )
        ends = left.astype(jnp.float16), jnp.arange(3) + 1, right.astype(jnp.float16), jnp.arange(3)
        assert_same(J.contract(*ends), oracle.contract(*map(exact, ends)))
        v = jax.random.normal(jax.random.key(3), J.source_shape).astype(jnp.float16)
        assert_same(J.mv(v), oracle.mv(exact(v)))
    if jax.config.jax_enable_x64:
        assert J.certificate(jax.random.key(0), probes=1).limit == 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_jacobians_of_every_model(name):
    model = half(name, "bfloat16")
    J, oracle = (jc.edge(each, tokens_for(model, 4), PRE, POST) for each in (model, exact(model)))
    assert jc.select(J) == "structured"
    assert_same(J.as_matrix(), oracle.as_matrix())


@pytest.mark.parametrize("make", [make_sae, transcoder])
def test_jacobians_between_latents(make):
    model = half("gpt2", "float16")
    first, second = Site(0, Kind.MLP_OUT), Site(1, Kind.MLP_OUT)
    saes = as_dtype({site: make(jax.random.key(site.layer), 16, site) for site in (first, second)}, jnp.float16)
    tokens = tokens_for(model, 5)

    def edges(model, saes):
        J = jc.edge(model, tokens, first.acts, second.acts, saes=saes)
        units, pos = jnp.arange(6), jnp.arange(6) % 5
        return J.contract(units, pos, units, jnp.zeros(6, int)), J.contract(units, pos, units, pos)

    def features(model, saes):
        found = jc.feature_jacobian(model, saes, tokens, first, second, minimum=0.05)
        steered = jc.steer_features(found, model, saes, tokens, rows=found.strongest(2), steps=[0.01])
        return found.gradient, found.cosine, np.array(steered["predicted"])

    for verb in (edges, features):
        assert_same(verb(model, saes), verb(exact(model), exact(saes)))


# --- Loading


def test_weights_that_float16_cannot_hold(tmp_path):
    """They would become infinite, without a word."""
    model = stored_model("gpt2")
    model = dataclasses.replace(model, W_pos=model.W_pos.at[0, 3].set(7e4))
    save_pretrained(model, tmp_path / "model")
    with pytest.raises(
        ValueError, match=r"dtype: W_pos holds 70000, and the largest number of float16 is 65504\. Use bfloat16 or"
    ):
        jc.from_pretrained(tmp_path / "model", dtype=jnp.float16)
    assert float(jc.from_pretrained(tmp_path / "model", dtype=jnp.bfloat16).W_pos[0, 3]) == pytest.approx(7e4, rel=4e-3)
    site = Site(0, Kind.MLP_OUT)
    sae = dataclasses.replace(
        as_dtype(make_sae(jax.random.key(1), 16, site), jnp.float32), b_dec=jnp.full(16, 7e4, jnp.float32)
    )
    jc.save_sae(sae, tmp_path / "sae")
    with pytest.raises(ValueError, match="holds 70000, and the largest number of float16 is 65504"):
        jc.load_sae(tmp_path / "sae", dtype=jnp.float16)
    assert jc.load_sae(tmp_path / "sae", dtype=jnp.bfloat16).b_dec.dtype == jnp.bfloat16

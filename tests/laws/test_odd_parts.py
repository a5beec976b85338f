"""Law: whatever the parts of a block are, every Jacobian is the derivative of a run. Closed forms are for the parts that registered one."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site

from ..helpers import assert_close, by_numpy, needs_x64, tokens_for
from ..odd_parts import ODD, odd_model
from ..oracle import edges as edges_by_definition, random_saes


pytestmark = needs_x64
SEQ = 4
SOME = ["RMS norm and gated MLP", "norm behind attention", "MLP that mixes positions"]
at = ft.partial(Site, 1)
PRE, MID, POST, ATTN, MLP = map(at, (Kind.RESID_PRE, Kind.RESID_MID, Kind.RESID_POST, Kind.ATTN_OUT, Kind.MLP_OUT))
SCALE = at(Kind.LN2_SCALE)

# source, target, held; and which of the MLP and attention lie between.
EDGES = {
    "attention": (PRE, ATTN, (), "a"),
    "MLP": (MID, MLP, (), "m"),
    "past the MLP, scale held": (MID, POST, (SCALE,), "m"),
    "block": (PRE, POST, (), "am"),
    "out of neurons": (at(Kind.MLP_POST), POST, (), "m"),
    "into neurons": (PRE, at(Kind.MLP_PRE), (), "am"),
    "two blocks": (Site(0, Kind.RESID_PRE), POST, (), None),
}
PARALLEL = {
    "block": (PRE, POST, ()),
    "MLP": (PRE, MLP, ()),
    "attention": (PRE, ATTN, ()),
    "heads": (at(Kind.Z), POST, ()),
}


def derivative(model, tokens, source, target, held):
    """By forward mode of a run with the source moved."""

    def value(step):
        edits = {source: jc.Add(step), **{site: jc.Detach() for site in held}}
        return jc.run(model, tokens, edits=edits, record=[target])[1][target]

    return jax.jacfwd(value)(jnp.zeros_like(jc.run(model, tokens, record=[source])[1][source]))


@by_numpy
def derivatives(model, tokens):
    return {name: derivative(model, tokens, *edge[:3]) for name, edge in EDGES.items()}


@jax.jit
def matrices(operators):
    return {name: J.as_matrix() for name, J in operators.items()}


@jax.jit
def products(operators, given):
    """Of every operator the bilinear forms of few rows and of more rows than columns, and products from both sides."""
    found = {}
    for name, J in operators.items():
        few, many, v, w = given[name]
        found[name] = J.contract(*few), J.contract(*many), J.cols(v), J.rows(w)
    return found


def items(J, seed=0):
    """Random covectors and vectors at random positions, few rows and many, and tangents and cotangents."""
    rng, n, width = np.random.default_rng(seed), int(np.prod(J.target_shape[1:])), int(np.prod(J.source_shape[1:]))
    at_random = lambda count, size: (rng.normal(size=(count, size)), rng.integers(0, SEQ, count))
    forms = [(*at_random(m, n), *at_random(k, width)) for m, k in ((3, 7), (40, 9))]
    return *forms, rng.normal(size=(2, *J.source_shape)), rng.normal(size=(2, *J.target_shape))


@pytest.fixture(scope="module", params=ODD)
def case(request):
    model = odd_model(request.param)
    tokens = tokens_for(model, SEQ)
    operators = {name: jc.edge(model, tokens, *ends, frozen=held) for name, (*ends, held, _) in EDGES.items()}
    return request.param, model, tokens, operators, jax.tree.map(np.asarray, derivatives(model, tokens))


def test_every_form_is_the_derivative_of_a_run(case):
    _, _, _, operators, want = case
    given = {name: items(J) for name, J in operators.items()}
    made, found = matrices(operators), products(operators, given)
    for name, J in operators.items():
        assert_close(made[name], want[name])
        flat = want[name].reshape(SEQ, -1, SEQ, int(np.prod(J.source_shape[1:])))
        *forms, v, w = given[name]
        for (left, left_pos, right, right_pos), got in zip(forms, found[name], strict=False):
            assert_close(got, np.einsum("mt,mtks,ks->mk", left, flat[left_pos][:, :, right_pos], right))
        assert_close(
            found[name][2], np.tensordot(v, want[name], (range(1, v.ndim), range(w.ndim - 1, want[name].ndim)))
        )
        assert_close(found[name][3], np.tensordot(w, want[name], (range(1, w.ndim), range(w.ndim - 1))))


def test_forms_of_two_blocks_go_step_by_step(case):
    """Where every part on the way has local maps, its own code's among them; and nowhere else."""
    name, model, tokens, _, want = case
    _, mlp, attention = ODD[name]
    source, target, held, _ = EDGES["two blocks"]
    if not (mlp and attention):
        with pytest.raises(ValueError, match="there is no closed form"):
            jc.edge(model, tokens, source, target, frozen=held, engine="structured")
        return
    J = jc.edge(model, tokens, source, target, frozen=held, engine="structured")
    assert jc.select(J, "contract") == "structured"
    flat = want["two blocks"].reshape(SEQ, -1, SEQ, int(np.prod(J.source_shape[1:])))
    for left, left_pos, right, right_pos in items(J)[:2]:
        got = J.contract(left, left_pos, right, right_pos)
        assert_close(got, np.einsum("mt,mtks,ks->mk", left, flat[left_pos][:, :, right_pos], right))


def test_what_is_selected(case):
    """Closed forms, or maps by autodiff of the part's own code, where all parts on the way have them."""
    name, _, _, operators, _ = case
    _, mlp, attention = ODD[name]
    for edge, (*_, passes) in EDGES.items():
        closed = passes is not None and (mlp or "m" not in passes) and (attention or "a" not in passes)
        assert jc.select(operators[edge], "contract") == ("structured" if closed else "autodiff"), edge


def test_a_certificate_is_issued(case):
    name, _, _, operators, _ = case
    if name in SOME:  # it runs operation by operation
        assert operators["block"].certificate(probes=1).error < 1e-10


def test_paths_sum_to_the_block(case):
    name, model, tokens, _, want = case
    if name == "class derived from Block":  # it does not add what its sublayers write, so there is nothing that sums
        return
    paths = jc.block_paths(model, tokens, 1)
    assert set(paths) == {"skip", "attn", "mlp", "attn_mlp"}
    made = matrices(paths)
    assert_close(sum(made.values()), want["block"])
    assert_close(made["attn"], want["attention"])
    assert_close(made["mlp"], want["MLP"])


@pytest.mark.parametrize("name", SOME)
def test_a_parallel_block(name):
    model = odd_model(name, parallel=True)
    tokens = tokens_for(model, SEQ)
    found = matrices({name: jc.edge(model, tokens, *ends) for name, (*ends, _) in PARALLEL.items()})
    want = by_numpy(lambda model, tokens: {name: derivative(model, tokens, *edge) for name, edge in PARALLEL.items()})(
        model, tokens
    )
    for edge in PARALLEL:
        assert_close(found[edge], want[edge])


@pytest.mark.parametrize("name", SOME)
def test_edges_are_their_definition(name):
    model = odd_model(name)
    first = Site(0, Kind.RESID_POST)
    saes = {
        s: sae for s, sae in random_saes(jax.random.key(1), model, alike=True).items() if s.layer == 1 or s == first
    }
    clean, corrupt, metric = tokens_for(model, SEQ), tokens_for(model, SEQ, seed=1), jc.LogitDiff(2, 0)
    given = model, saes, clean[None], corrupt[None], metric
    effects = jc.edge_effects(*given, jc.node_effects(*given, method=jc.Gradient()), threshold=0.0)
    for pair in ((first, ATTN), (ATTN, MLP), (MLP, POST), (first, MLP)):
        assert_close(effects.dense(pair)[0], edges_by_definition(model, saes, clean, corrupt, metric, *pair), mass=1e-8)


# Of every verb that computes with the weights of a part by itself: a part that it must not take for another.
DOORS = {
    "direct_effects": ("norm behind attention", lambda model, given: jc.direct_effects(model, given[1])),
    "self_repair": ("norm behind attention", lambda model, given: jc.self_repair(model, given[1], given[2])),
    "AtPStar": ("capped and scaled score", lambda *given: head_effects(*given, jc.AtPStar())),
    "ExactPatching of heads": ("capped and scaled score", lambda *given: head_effects(*given, jc.ExactPatching())),
    "Effects on a metric": ("class derived from Block", lambda *given: head_effects(*given, jc.Gradient())),
    "feature_jacobian": (
        "RMS norm",
        lambda model, given: jc.feature_jacobian(
            model, {s: jc.saes.Identity(16, s) for s in (MID, POST)}, given[1][0], MID, POST
        ),
    ),
}


def head_effects(model, given, method):
    return jc.head_effects(model, *given[1:], jc.LogitDiff(2, 0), method=method)


@pytest.mark.parametrize("verb", DOORS)
def test_a_part_is_not_taken_for_another(verb):
    name, call = DOORS[verb]
    model = odd_model(name)
    tokens = jnp.stack([tokens_for(model, SEQ, seed) for seed in range(4)])
    with pytest.raises(ValueError, match=f"{verb}: it (computes with the weights|goes on from inside a block)"):
        call(model, (model, tokens, tokens[::-1]))

"""Gates of activation functions, as sites, as ends of Jacobians, and held: in closed form and by autodiff."""

import dataclasses
import functools as ft
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.cli import main
from jaxcirc.models import _transformer
from jaxcirc.parts import _mlp, ACTIVATIONS, gate_of, GatedMLP, relu

from .helpers import assert_close, make_model, model_named, MODELS, needs_x64, one_by_one, tokens_for
from .odd_parts import odd_model


SEQ = 5
at = ft.partial(Site, 1)
GATE = at(Kind.MLP_GATE)
WITH_MLP = [name for name in MODELS if name != "attention-only"]
FUNCTIONS = {**ACTIVATIONS, "tanh": jnp.tanh, "softplus": jax.nn.softplus, "cosine": jnp.cos}


# --- The quotient


@needs_x64
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_gate_is_the_quotient_and_at_zero_the_derivative(name):
    act = FUNCTIONS[name]
    x = jnp.asarray([-7.0, -1.0, -1e-3, 1e-4, 0.3, 2.0, 40.0])
    assert_close(gate_of(act, x), (act(x) - act(jnp.zeros(()))) / x, mass=0)
    small = jnp.asarray([0.0, 1e-300, -1e-300, 1e-17, -1e-17, 1e-9, -1e-9])
    around = jnp.where(small == 0, small, jnp.sign(small) * 1e-30)  # on the same side of a bend at 0
    # The derivative of a smooth function at 1e-9 is that at 0 to 1e-9.
    assert_close(1 + gate_of(act, small), 1 + jax.vmap(jax.grad(act))(around), tolerance=2e-9)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_gate_and_its_derivatives_are_finite(name):
    """In forward and in reverse mode, at 0, beside it and far from it."""
    act = FUNCTIONS[name]
    tiny = float(jnp.finfo(jnp.zeros(()).dtype).tiny)
    x = jnp.asarray([0.0, -0.0, tiny, -tiny, tiny / 64, 1e-20, -1e-12, 1e-6, 1.0, -80.0, 1e4, -1e4])
    gate = ft.partial(gate_of, act)
    for found in (gate(x), jax.jvp(gate, (x,), (jnp.ones_like(x),))[1], jax.vmap(jax.grad(gate))(x)):
        assert np.isfinite(found).all()


@needs_x64
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_derivative_of_a_gate(name):
    """From integrals: `(act(x) - act(0)) / x` is the mean of `act'` between 0 and `x`, and its derivative that of `t act''(t x)`."""
    act, x = FUNCTIONS[name], np.asarray([-3.0, -0.2, -1e-5, 0.0, 1e-5, 0.4, 2.0])
    nodes, weights = np.polynomial.legendre.leggauss(60)
    t, weights = (nodes + 1) / 2, weights / 2
    second = jax.vmap(jax.vmap(jax.grad(jax.grad(act))))(jnp.asarray(t[:, None] * x))
    found = jax.vmap(jax.grad(ft.partial(gate_of, act)))(jnp.asarray(x))
    # A difference of nearly equal numbers by 1e-5 is rounded to 1e-11, by its square where it is taken from act(0).
    tolerance = 1e-10 if act(jnp.zeros(())) == 0 else 1e-5
    assert_close(1 + found, 1 + np.einsum("t,tx->x", weights * t, second), tolerance=tolerance)


# --- The site


def test_ordinary_runs_compute_no_quotient(monkeypatch):
    """Nor do Jacobians in which no gate is an end or held."""
    model = make_model(jax.random.key(11), logit_cap=3.0, d_mlp=20)
    tokens, made = tokens_for(model, SEQ), []
    for module in (_mlp, _transformer):
        monkeypatch.setattr(module, "gate_of", lambda function, x: made.append(None) or gate_of(function, x))
    sites = [site for site in jc.sites(model) if site.kind not in (Kind.MLP_GATE, Kind.LOGIT_GATE)]
    J = jc.edge(model, tokens, "blocks.0.hook_resid_pre", "blocks.1.hook_resid_post", engine="structured")
    assert len(made) >= 3  # which sites there are, and what feeds what, is read off a run that has them all
    made.clear()
    _, cache = jc.run(model, tokens, record=sites)
    for layer in range(2):
        pre, post = (cache[Site(layer, kind)] for kind in (Kind.MLP_PRE, Kind.MLP_POST))
        assert_close(post, model.blocks[layer].mlp.act(pre))
    J.as_matrix()
    J.mv(jnp.ones(J.source_shape))
    assert not made


def test_what_is_recorded_changes_the_logits_by_rounding_alone():
    for name in ("gpt2", "gemma2"):
        model = model_named(name)
        tokens = tokens_for(model, SEQ)
        gates = jc.frozen.gates(model)
        assert {site.kind for site in gates} == {Kind.MLP_GATE} | ({Kind.LOGIT_GATE} if name == "gemma2" else set())
        logits, cache = jc.run(model, tokens, record=gates)
        assert set(cache) == gates
        assert_close(logits, jc.run(model, tokens)[0])


def test_where_a_neuron_is_off_nothing_is_nan():
    """Weights of 0: `pre` is exactly 0, as an end, held, and in reverse mode."""
    for act in (*ACTIVATIONS.values(), jnp.tanh):
        model = make_model(jax.random.key(1), act=act)
        off = lambda mlp: dataclasses.replace(mlp, W_in=mlp.W_in.at[:, :3].set(0), b_in=mlp.b_in.at[:3].set(0))
        model = eqx.tree_at(lambda model: model.blocks[1].mlp, model, off(model.blocks[1].mlp))
        tokens = tokens_for(model, SEQ)
        _, cache = jc.run(model, tokens, record=[at(Kind.MLP_PRE), GATE])
        assert not np.asarray(cache[at(Kind.MLP_PRE)][:, :3]).any()
        assert_close(cache[GATE][0, :3] + 1, 1 + jax.grad(act)(jnp.zeros(())) * np.ones(3))
        for engine in ("structured", "autodiff"):
            held = jc.edge(model, tokens, at(Kind.RESID_MID), at(Kind.MLP_OUT), frozen=[GATE], engine=engine)
            into = jc.edge(model, tokens, at(Kind.RESID_MID), GATE, engine=engine)
            for J in (held, into):
                assert np.isfinite(J.as_matrix()).all()


def test_a_function_that_is_not_zero_at_zero():
    """The constant is left beside the gate, so that an edit of the gate alone moves `post` by it times `pre`."""
    model = make_model(jax.random.key(2), act=jax.nn.softplus)
    tokens = tokens_for(model, SEQ)
    kinds = (Kind.MLP_PRE, Kind.MLP_GATE, Kind.MLP_POST)
    _, cache = jc.run(model, tokens, record=map(at, kinds))
    pre, gate, post = (np.asarray(cache[at(kind)]) for kind in kinds)
    assert_close(pre * gate + pre.dtype.type(np.log(2)), post)
    _, moved = jc.run(model, tokens, edits={GATE: jc.Add(1.0)}, record=[at(Kind.MLP_POST)])
    assert_close(moved[at(Kind.MLP_POST)], post + pre)


def test_a_function_of_several_neurons_has_no_gate():
    model = odd_model("activation that is not elementwise")
    tokens = tokens_for(model, SEQ)
    assert GATE not in jc.sites(model)
    with pytest.raises(ValueError, match=r"no site `blocks\.1\.mlp\.hook_act_gate`"):
        jc.run(model, tokens, record=[GATE])
    with pytest.raises(ValueError, match=r"no site `blocks\.1\.mlp\.hook_act_gate`"):
        jc.edge(model, tokens, at(Kind.RESID_PRE), at(Kind.RESID_POST), frozen=[GATE])


# --- Jacobians

HELD = {
    "gates": lambda model: jc.frozen.gates(model),
    "gates and patterns": lambda model: jc.frozen.gates(model) | jc.frozen.patterns(model),
    "gates and scales": lambda model: jc.frozen.gates(model) | jc.frozen.layer_norms(model),
    "detached": jc.frozen.detached,
}
ENGINES = ("autodiff", "structured", "auto")
EDGES = {
    "block": (at(Kind.RESID_PRE), at(Kind.RESID_POST)),
    "two blocks": (Site(0, Kind.RESID_PRE), at(Kind.RESID_POST)),
    "into neurons": (at(Kind.RESID_PRE), at(Kind.MLP_POST)),
    "MLP": (at(Kind.MLP_IN), at(Kind.MLP_OUT)),
    "out of the gate": (GATE, at(Kind.RESID_POST)),
    "into the gate": (at(Kind.RESID_PRE), GATE),
    "through neurons": (at(Kind.MLP_PRE), at(Kind.MLP_POST)),
}


def by_definition(model, tokens, source, target, held):
    """`[seq n seq k]`, by forward mode of a run in which what is held is replaced by its clean value."""
    _, cache = jc.run(model, tokens, record={*held, source} - {target})
    held = {site: jc.Replace(cache[site]) for site in held - {source, target}}

    def value(step):
        return jc.run(model, tokens, edits={**held, source: jc.Add(step)}, record=[target])[1][target]

    return jax.jacfwd(value)(jnp.zeros_like(cache[source]))


@needs_x64
@pytest.mark.parametrize("name", WITH_MLP)
def test_all_engines_agree_where_gates_are_held(name):
    """Matrices, bilinear forms, rows and columns of a block and of another edge; and all are the derivative of a run. Operation by
    operation, as they are many.
    """
    model = model_named(name)
    tokens, number = tokens_for(model, SEQ), list(MODELS).index(name)
    rng, compared = np.random.default_rng(0), 0
    others = list(EDGES)[
        1 : -1 if isinstance(model.blocks[1].mlp, GatedMLP) else None
    ]  # whose gate is all that connects
    for edge in ("block", others[number % len(others)]):
        source, target = EDGES[edge]
        which = "detached" if edge == "block" else list(HELD)[number % len(HELD)]
        held = HELD[which](model) - {source, target}
        operators = [jc.edge(model, tokens, source, target, frozen=held, engine=engine) for engine in ENGINES]
        n, k = operators[0].target_shape[1], operators[0].source_shape[1]
        left, right = jnp.asarray(rng.normal(size=(6, n))), jnp.asarray(rng.normal(size=(7, k)))
        left_pos, right_pos = jnp.asarray(rng.integers(0, SEQ, 6)), jnp.asarray(rng.integers(0, SEQ, 7))
        tangents, cotangents = (jnp.asarray(rng.normal(size=(2, SEQ, width))) for width in (k, n))
        with one_by_one():
            want = np.asarray(by_definition(model, tokens, source, target, held))
            form = np.einsum("mn,mnjk,jk->mj", left, want[left_pos][:, :, right_pos], right)
            assert [jc.select(J) for J in operators[:2]] == ["autodiff", "structured"]
            for J in operators:
                pairs = [
                    (J.as_matrix(), want),
                    (J.contract(left, left_pos, right, right_pos), form),
                    (J.cols(tangents), np.einsum("tnsk,ask->atn", want, tangents)),
                    (J.rows(cotangents), np.einsum("tnsk,atn->ask", want, cotangents)),
                ]
                if edge == "into the gate" and model.blocks[1].mlp.act is relu:  # which is 0 or 1, and does not move
                    assert max(np.abs(found).max() for found, _ in pairs) < 1e-10
                    continue
                for found, expected in pairs:
                    try:
                        assert_close(found, expected)
                    except AssertionError as error:
                        raise AssertionError(f"{edge}, {which} held, {J.engine}: {error}") from None
                    compared += 1
    assert compared >= 12


@needs_x64
@pytest.mark.parametrize("name", ["MLP that mixes positions", "class derived from MLP", "norm behind the MLP"])
def test_gates_inside_parts_that_no_closed_form_knows(name):
    model = odd_model(name)
    tokens = tokens_for(model, SEQ)
    for source, target in (EDGES["block"], EDGES["out of the gate"], EDGES["into the gate"]):
        held = jc.frozen.gates(model) - {source, target}
        J = jc.edge(model, tokens, source, target, frozen=held)
        want = np.asarray(by_definition(model, tokens, source, target, held))
        assert_close(J.as_matrix(), want)
        n, k = J.target_shape[1], J.source_shape[1]
        left, right = jnp.eye(n)[:3], jnp.eye(k)[:4]
        some = jnp.asarray([4, 2, 4]), jnp.asarray([0, 1, 2, 4])
        form = np.einsum("mn,mnjk,jk->mj", left, want[some[0]][:, :, some[1]], right)
        assert_close(J.contract(left, some[0], right, some[1]), form, mass=1e-6)


@needs_x64
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_dictionary_at_a_gate(name):
    """Its latents read and write gates, and what leads to and from them is the derivative of a run."""
    model = model_named(name)
    tokens = tokens_for(model, SEQ)
    rng = np.random.default_rng(1)
    random = lambda *shape: jnp.asarray(rng.normal(size=shape))
    saes = {GATE: jc.saes.SAE(random(24, 30), random(30), random(30, 24), random(24), jc.saes.ReLU(), GATE)}
    for source, target in ((at(Kind.RESID_PRE), GATE.acts), (GATE.acts, at(Kind.RESID_POST))):

        def value(step, source=source, target=target):
            return jc.run(model, tokens, saes=saes, edits={source: jc.Add(step)}, record=[target])[1][target]

        zero = jnp.zeros((SEQ, 30 if source.part != jc.Part.VALUE else 16))
        want = np.asarray(jax.jacfwd(value)(zero))
        for engine in ("structured", "autodiff"):
            J = jc.edge(model, tokens, source, target, saes=saes, engine=engine)
            assert_close(J.as_matrix(), want)


def test_the_command_line_holds_them(capsys, tmp_path):
    ends = Site(3, Kind.RESID_PRE), Site(3, Kind.RESID_POST)
    (tmp_path / "ids.json").write_text("[3, 1, 4]", encoding="utf-8")
    command = ["jacobian", "--model", "tiny-gpt2", "--tokens", str(tmp_path / "ids.json"), "--top", "2", "--json"]
    assert main([*command, "--source", str(ends[0]), "--target", str(ends[1]), "--freeze", "detached"]) == 0
    found = json.loads(capsys.readouterr().out)["singular_values"]
    model = jc.from_pretrained("tiny-gpt2")
    J = jc.edge(model, jnp.asarray([3, 1, 4]), *ends, frozen=jc.frozen.detached(model))
    assert_close(np.asarray(found), np.asarray(J.svd(2)[1], np.float64), tolerance=1e-5)

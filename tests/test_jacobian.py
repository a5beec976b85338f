"""Jacobians as operators: singular values, certificates, traces, and what is refused."""

import dataclasses
import functools as ft
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxcirc as jc
from jaxcirc import Kind, Part, Site
from jaxcirc.jacobian import _certificate, _matrix, _product
from jaxcirc.jacobian._engine import matrix_route
from jaxcirc.linear import _chain, _contract, _memory, _segments
from jaxcirc.parts import Block

from .dictionaries import make_sae
from .helpers import as_dtype, assert_close, counting_calls, make_model, model_named, MODELS, needs_x64, tokens_for


SEQ, WIDTH = 5, 8
PRE, MID, POST = (Site(1, kind) for kind in (Kind.RESID_PRE, Kind.RESID_MID, Kind.RESID_POST))
ATTN_OUT, MLP_OUT = Site(1, Kind.ATTN_OUT), Site(1, Kind.MLP_OUT)


def small_model(**settings):
    return make_model(jax.random.key(4), d_model=WIDTH, d_head=3, d_mlp=10, vocab=9, **settings)


def direction(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.zeros(()).dtype)


@pytest.fixture(scope="module")
def small():
    model = small_model()
    return model, tokens_for(model, SEQ)


@pytest.fixture(scope="module")
def operator(small):
    """The edge from the beginning of a block to attention's output."""
    return jc.edge(*small, PRE, ATTN_OUT)


@pytest.fixture(scope="module")
def swept(small):
    """An edge that only autodiff knows."""
    return jc.edge(*small, PRE, Site(None, Kind.LOGITS))


@pytest.fixture(scope="module")
def contraction(operator):
    items, positions = direction((3, WIDTH)), jnp.array([4, 2, 4])
    return items, positions, items[::-1], positions


# --- What an operator says


def test_an_operator_says_what_it_is(operator, swept):
    assert repr(operator) == "EdgeJacobian(blocks.1.hook_resid_pre [5, 8] -> blocks.1.hook_attn_out [5, 8])"
    assert repr(operator.T) == "EdgeJacobian(blocks.1.hook_attn_out [5, 8] -> blocks.1.hook_resid_pre [5, 8])"
    assert repr(swept) == "EdgeJacobian(blocks.1.hook_resid_pre [5, 8] -> logits [5, 9])"
    assert (operator.source, operator.target, operator.engine) == (PRE, ATTN_OUT, "auto")
    assert operator.dtype == jnp.zeros(()).dtype
    assert jc.edge is jc.jacobian.edge
    assert (jc.select(operator), jc.select(swept)) == ("structured", "autodiff")


def test_sites_by_name_and_what_is_frozen_by_name(small, operator):
    named = jc.edge(*small, str(PRE), str(ATTN_OUT), frozen=["blocks.1.ln1.hook_scale", "blocks.0.hook_mlp_out"])
    assert (named.source, named.target) == (PRE, ATTN_OUT)
    held = jc.edge(*small, PRE, ATTN_OUT, frozen=[Site(1, Kind.LN1_SCALE)])
    v = direction((SEQ, WIDTH))
    assert_close(named.mv(v), held.mv(v))
    assert np.abs(named.mv(v) - operator.mv(v)).max() > 1e-3


def test_the_sets_of_frozen_sites(small):
    model, _ = small
    names = lambda sites: sorted(map(str, sites))
    assert names(jc.frozen.layer_norms(model)) == [
        "blocks.0.ln1.hook_scale",
        "blocks.0.ln2.hook_scale",
        "blocks.1.ln1.hook_scale",
        "blocks.1.ln2.hook_scale",
        "ln_final.hook_scale",
    ]
    assert names(jc.frozen.patterns(model)) == ["blocks.0.attn.hook_pattern", "blocks.1.attn.hook_pattern"]
    assert names(jc.frozen.between(model, "blocks.0.hook_resid_mid", POST)) == [
        "blocks.0.hook_mlp_out",
        "blocks.1.hook_attn_out",
        "blocks.1.hook_mlp_out",
    ]
    assert not jc.frozen.between(model, PRE, PRE)


@pytest.mark.parametrize("name", MODELS)
def test_the_scales_of_every_norm_are_held(name):
    model = model_named(name)
    scales = {site for site in jc.sites(model) if str(site).endswith("hook_scale")}
    assert jc.frozen.layer_norms(model) == scales
    assert bool(scales) == (model.ln_final is not None)


# --- Singular values


def test_singular_values_and_vectors(swept):
    """Against numpy's: leading values, the subspaces, and the part of the matrix that they make up."""
    rank, key = 4, jax.random.key(1)
    U, S, Vt = swept.svd(rank, key, iterations=30)
    assert (U.shape, S.shape, Vt.shape) == ((SEQ, 9, rank), (rank,), (rank, SEQ, WIDTH))
    matrix = np.asarray(swept.as_matrix()).reshape(SEQ * 9, SEQ * WIDTH)
    u, s, vt = np.linalg.svd(matrix)
    U, S, Vt = np.asarray(U).reshape(-1, rank), np.asarray(S), np.asarray(Vt).reshape(rank, -1)
    # The powers of a random start converge as ratios of singular values do.
    near = 1e-5 if U.dtype == np.float64 else 1e-4
    assert_close(S, s[:rank], tolerance=near)
    assert_close(U.T @ U, np.eye(rank, dtype=U.dtype))
    assert_close(Vt @ Vt.T, np.eye(rank, dtype=U.dtype))
    assert_close(U @ U.T, u[:, :rank] @ u[:, :rank].T, tolerance=100 * near)
    assert_close(U * S @ Vt, u[:, :rank] * s[:rank] @ vt[:rank], tolerance=100 * near)


def test_a_whole_decomposition_is_the_matrix(small):
    J = jc.edge(*small, MID, MLP_OUT, source_pos=[1], target_pos=[1])
    U, S, Vt = J.svd(WIDTH, jax.random.key(0))
    assert_close(np.einsum("tdr,r,rse->tdse", U, S, Vt), J.as_matrix())
    assert (np.diff(S) <= 0).all()


def test_without_a_key_it_is_always_the_same(swept):
    for one, other in zip(swept.svd(2), swept.svd(2, jax.random.key(0)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (0, r"rank is how many singular triples to find, at least 1; got 0\."),
        (-1, r"at least 1; got -1\."),
        (41, r"45 x 40, so rank is from 1 to 40; got 41\."),
    ],
)
def test_a_rank_that_cannot_be(swept, rank, message):
    with pytest.raises(ValueError, match=message):
        swept.svd(rank)


# --- Certificates


@pytest.mark.parametrize("name", ["operator", "swept"])
def test_a_certificate_of_what_is_right(request, name):
    J = request.getfixturevalue(name)
    certificate = J.certificate(jax.random.key(0), probes=1)
    single = J.dtype == jnp.float32
    assert 0 < certificate.error < (1e-5 if single else 1e-12)
    assert certificate.limit == (1e-4 if single else 1e-9)
    matrix, forms = ("block", "contraction") if name == "operator" else ("columns", "sweep")
    probed = f"matrix by {matrix}, bilinear forms by {forms}, products by sweep"
    assert (certificate.probes, certificate.engine) == (1, f"{jc.select(J)} ({probed})")
    assert (certificate.dtype, certificate.precision) == (str(J.dtype), "highest")
    assert certificate.versions == {
        "jaxcirc": jc.__version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
    }
    assert certificate.device == jax.devices()[0].device_kind
    assert json.loads(json.dumps(certificate.as_dict()))["error"] == certificate.error
    assert f"relative error {certificate.error:.1e}" in str(certificate)


def test_a_certificate_of_a_matrix(operator):
    key, matrix = jax.random.key(0), operator.as_matrix()
    assert operator.certificate(key, matrix=matrix, probes=1).error < 1e-5
    assert operator.T.certificate(key, matrix=operator.T.as_matrix(), probes=1).error < 1e-5
    wrong = matrix.at[3, 2].multiply(1.05)
    for J, result in ((operator, wrong), (operator.T, jnp.transpose(wrong, (2, 3, 0, 1)))):
        with pytest.raises(ValueError, match=r"The result is wrong: relative error .* Run `jaxcirc doctor`"):
            J.certificate(key, matrix=result, probes=2)
    accepted = operator.certificate(key, matrix=wrong, probes=1, limit=0.2)
    assert 1e-4 < accepted.error < accepted.limit == 0.2
    with pytest.raises(ValueError, match=r"expected the result of as_matrix, \(5, 8, 5, 8\); got \(5, 8\)"):
        operator.certificate(key, matrix=matrix[0, 0])


def test_no_certificate_of_an_engine_that_is_wrong(operator, swept, monkeypatch):
    """Off by 5 %, in either engine."""
    contract, push = _segments.contract_block, _product.jvp
    monkeypatch.setattr(_segments, "contract_block", lambda *args, **sizes: 1.05 * contract(*args, **sizes))
    with pytest.raises(ValueError, match="The result is wrong"):
        operator.certificate(jax.random.key(0), probes=1)
    monkeypatch.setattr(_product, "jvp", lambda *args, **more: 1.05 * push(*args, **more))
    with pytest.raises(ValueError, match="The result is wrong"):
        swept.certificate(jax.random.key(0), probes=1)


# Of every route: an edge that takes it, the function that it goes by, and what the certificate calls it.
ROUTES = {
    "block": ({}, _matrix, "block_matrix", "structured (matrix by block, "),
    "chain": ({"chain": True, "engine": "structured"}, _matrix, "chain_matrix", "structured (matrix by chain, "),
    "contraction": ({"latents": True}, _matrix, "contract_by_plan", "structured (matrix by contraction, "),
    "columns": ({"engine": "autodiff"}, _product.Product, "through", "autodiff (matrix by columns, "),
    "rows": (
        {"engine": "autodiff", "target_pos": [4]},
        _product.Product,
        "through",
        "autodiff (matrix by rows, ",
    ),
    "few forms": ({}, _contract, "_contract_at_once", "bilinear forms by contraction"),
    "many forms": ({}, _contract, "_contract_sorted", "bilinear forms by contraction"),
    "forms of a chain": (
        {"chain": True, "engine": "structured"},
        _segments,
        "contract_chain",
        "bilinear forms by steps",
    ),
    "swept forms": ({"engine": "autodiff"}, _segments, "contract_segments", "bilinear forms by sweep"),
    "pushed": ({}, _product, "jvp", "products by sweep"),
    "pulled": ({}, _product, "vjp", "products by sweep"),
}


def edge_by_route(small, dtype, *, chain=False, latents=False, **more):
    model, tokens = small
    saes = {PRE: make_sae(jax.random.key(0), WIDTH, PRE)} if latents else {}
    ends = (Site(0, Kind.RESID_PRE), POST) if chain else (PRE.acts if latents else PRE, ATTN_OUT)
    return jc.edge(as_dtype(model, dtype), tokens, *ends, saes=as_dtype(saes, dtype), **more)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=needs_x64)])
@pytest.mark.parametrize("name", ROUTES)
def test_a_certificate_probes_the_engine_that_it_names(small, name, dtype, monkeypatch):
    """An error of a thousandth in the function that a route goes by, and in no other, is refused; the matrix alone is where it is in it."""
    more, owner, function, called = ROUTES[name]
    J = edge_by_route(small, jnp.dtype(dtype), **more)
    assert called in J.certificate(probes=1).engine
    right = np.asarray(J.as_matrix())
    by_matrix = f"{jc.select(J, 'matrix')} (matrix by {matrix_route(J.product)})"
    assert J.certificate(matrix=right).engine == by_matrix
    unplanted = getattr(owner, function)
    monkeypatch.setattr(owner, function, lambda *given, **more: unplanted(*given, **more) * (1 + 1e-3))
    with pytest.raises(ValueError, match=r"The result is wrong: relative error (9\..e-04|1\..e-03)"):
        J.certificate(probes=1)
    wrong = np.asarray(J.as_matrix())
    if np.abs(wrong - right).max() > 1e-4 * np.abs(right).max():
        with pytest.raises(ValueError, match="The result is wrong"):
            J.certificate(matrix=wrong)
    else:
        assert not called.endswith(", ")


@pytest.mark.parametrize("name", ["block", "chain", "columns", "rows"])
def test_a_part_of_a_large_matrix_is_probed(small, name, monkeypatch):
    """As many positions as make a small one, by the same route."""
    monkeypatch.setattr(_certificate, "PROBED", 800)
    monkeypatch.setattr(_certificate, "SWEPT", 8)
    made, make = [], _certificate.matrix_by
    monkeypatch.setattr(_certificate, "matrix_by", lambda part, route: made.append((part, route)) or make(part, route))
    J = edge_by_route(small, jnp.zeros(()).dtype, **ROUTES[name][0])
    assert f"matrix by {name}" in J.certificate(probes=1).engine
    ((part, route),) = made
    assert (route, part.dtype) == (name, J.dtype)
    assert any(place.positions is not None for place in part.places)
    assert np.prod(part.target_shape) * np.prod(part.source_shape) < np.prod(J.target_shape) * np.prod(J.source_shape)


# --- Traces


def test_one_trace_for_all_layers_prompts_and_positions():
    """Also of `jit`s of users with an operator as argument."""
    model = small_model(layers=3, n_ctx=11)  # of shapes that no other test has
    jitted = jax.jit(lambda J, v: (J.mv(v), J.contract(v, jnp.arange(6), v, jnp.arange(6)[::-1])))

    def use(layer, seed):
        J = jc.edge(model, tokens_for(model, 6, seed), Site(layer, Kind.RESID_PRE), Site(layer, Kind.RESID_POST))
        v, rng = direction((6, WIDTH), seed), np.random.default_rng(seed)
        positions = jnp.asarray(rng.integers(0, 6, 6))
        few = jc.edge(model, tokens_for(model, 6, seed), J.source, J.target, source_pos=positions[:2])
        return J.mv(v), J.T.mv(v), J.contract(v, positions, v, positions), J.as_matrix(), few.as_matrix(), *jitted(J, v)

    with counting_calls(Block, "__call__") as traces:
        first = use(0, 0)
        count = len(traces)
        assert count > 0
        for layer, seed in ((0, 1), (1, 0), (2, 2)):
            others = use(layer, seed)
            assert len(traces) == count, f"layer {layer} is traced anew"
            for one, other in zip(first, others, strict=True):
                assert np.abs(np.asarray(one) - np.asarray(other)).max() > 1e-3
        jc.edge(small_model(layers=3, n_ctx=11, scales=None), tokens_for(model, 7), PRE, POST).mv(direction((7, WIDTH)))
        assert len(traces) > count


def test_nothing_leaks(small):
    v, positions = direction((2, WIDTH)), jnp.array([4, 1])
    with jax.checking_leaks():
        for source, target in ((PRE, POST), (PRE, Site(1, Kind.PATTERN))):
            compute = lambda model, tokens: jc.edge(model, tokens, source, target).mv(jnp.ones((SEQ, WIDTH)))  # noqa: B023
            jax.jit(compute)(*small)
        jc.edge(*small, PRE, POST).contract(v, positions, v, positions)


# --- Edges that are not


NOT_EDGES = {
    "swapped": (
        POST,
        PRE,
        {},
        r"the source `blocks\.1\.hook_resid_post` is not computed before the target .*swapped\?",
    ),
    "equal": (PRE, PRE, {}, r"`blocks\.1\.hook_resid_pre` is not computed before the target"),
    "beside": (Site(1, Kind.Q), Site(1, Kind.K), {}, r"the source `blocks\.1\.attn\.hook_q` does not feed the target"),
    "another layer": (
        Site(7, Kind.Q),
        POST,
        {},
        r"no site `blocks\.7\.attn\.hook_q` in random with 2 layers\. Did you mean",
    ),
    "no such name": (
        "blocks.1.hook_resid_prae",
        POST,
        {},
        r"No site is called .* Did you mean `blocks\.1\.hook_resid_pre`\?",
    ),
    "no such frozen": (
        PRE,
        POST,
        {"frozen": ["blocks.4.hook_mlp_out"]},
        r"no site `blocks\.4\.hook_mlp_out` in random",
    ),
    "no dictionary": (PRE.acts, POST, {}, r"and there is none\. Pass saes="),
    "no dictionary held": (
        PRE,
        POST,
        {"frozen": [MID.error]},
        r"of a dictionary at `blocks\.1\.hook_resid_mid`, and there is none",
    ),
    "an end held": (PRE, POST, {"frozen": [POST]}, r"`blocks\.1\.hook_resid_post` is an end of the edge and frozen"),
    "all held": (
        PRE,
        MLP_OUT,
        {"frozen": [MID, Site(0, Kind.Q)]},
        r"every path from `blocks\.1\.hook_resid_pre` to `blocks\.1\.hook_mlp_out` .* Free one of `blocks\.1\.hook_resid_mid`\.",
    ),
    "the scores' two ways": (
        Site(1, Kind.Q),
        POST,
        {"frozen": [Site(1, Kind.ATTN_SCORES)]},
        "meets a frozen site, so the edge is empty",
    ),
    "a position too far": (
        PRE,
        POST,
        {"source_pos": [0, 5]},
        r"source_pos: position 5 is outside the sequence of 5 tokens",
    ),
    "a position too early": (PRE, POST, {"target_pos": [-6]}, r"target_pos: position -6 is outside the sequence"),
    "no position": (PRE, POST, {"source_pos": []}, r"source_pos is a list of positions, such as \[0, -1\]; got \[\]"),
    "half a position": (PRE, POST, {"target_pos": [0.5]}, r"target_pos is a list of positions"),
    "one position": (PRE, POST, {"target_pos": 2}, r"target_pos is a list of positions"),
    "an engine": (
        PRE,
        POST,
        {"engine": "finite"},
        r"engine must be one of 'auto', 'autodiff', 'structured', got 'finite'",
    ),
    "no closed form": (PRE, Site(None, Kind.LOGITS), {"engine": "structured"}, r"no closed form .* Use engine='auto'"),
    "a mask": (PRE, POST, {"mask": jnp.ones(4, bool)}, r"mask: expected one boolean a token"),
}


@pytest.mark.parametrize("name", NOT_EDGES)
def test_edges_that_are_not(small, untyped, name):
    source, target, more, message = NOT_EDGES[name]
    with pytest.raises(ValueError, match=message):
        jc.edge(*small, source, target, **more)


def test_dictionaries_that_do_not_fit(small):
    wide = make_sae(jax.random.key(0), WIDTH + 1, PRE)
    with pytest.raises(ValueError, match="9 numbers to 9, and there the model has 8 and 8"):
        jc.edge(*small, PRE.acts, POST, saes={PRE: wide}).mv(jnp.ones((SEQ, 20)))
    with pytest.raises(ValueError, match="was trained for"):
        jc.edge(*small, PRE.acts, POST, saes={PRE: make_sae(jax.random.key(0), WIDTH, MID)})
    with pytest.raises(ValueError, match="does not feed"):  # latents and error are two coordinates of one value
        jc.edge(*small, PRE.acts, PRE.error, saes={PRE: make_sae(jax.random.key(0), WIDTH, PRE)})


# --- Vectors that do not fit


def test_vectors_of_the_wrong_shape(operator, swept, untyped):
    with pytest.raises(
        ValueError, match=r"tangents of shape \[n, 5, 8\] at `blocks\.1\.hook_resid_pre`, got \(1, 5, 7\)"
    ):
        operator.mv(jnp.ones((SEQ, 7)))
    with pytest.raises(ValueError, match=r"cotangents of shape \[n, 5, 9\] at `logits`, got \(2, 5, 8\)"):
        swept.rows(jnp.ones((2, SEQ, 8)))
    with pytest.raises(ValueError, match=r"tangents of shape \[n, 5, 9\] at `logits`, got \(1, 5, 8\)"):
        swept.T.mv(jnp.ones((SEQ, 8)))


def test_items_that_do_not_fit(operator, untyped):
    items, positions = jnp.ones((3, WIDTH)), jnp.array([4, 2, 4])
    units = jnp.array([0, 7, 3])
    bad = [
        ((items, positions + 1, items, positions), r"left_pos: position 5 is outside the sequence of 5 tokens"),
        ((items, positions, items, positions - 9), r"right_pos: position -7 is outside the sequence"),
        ((items[:, :5], positions, items, positions), r"left has rows of 5 numbers; a position of its site has 8"),
        ((items, positions, jnp.ones((3, 9)), positions), r"right has rows of 9 numbers; a position of its site has 8"),
        ((items, positions[:2], items, positions), r"left_pos holds one position for each of the 3 rows of left"),
        ((items, positions, items, positions[0]), r"right_pos holds one position for each of the 3 rows of right"),
        ((items, jnp.ones(3), items, positions), r"left_pos holds .* as integers; got float"),
        ((items[:0], positions[:0], items, positions), r"left is empty"),
        ((items, positions, items[:0], positions[:0]), r"right is empty"),
        ((units + 1, positions, items, positions), r"left holds coordinates from 0 to 7, got 1 to 8"),
        ((items, positions, units - 1, positions), r"right holds coordinates from 0 to 7, got -1 to 6"),
    ]
    for arguments, message in bad:
        with pytest.raises(ValueError, match=message):
            operator.contract(*arguments)


def test_scores_have_no_single_position(small):
    J = jc.edge(*small, PRE, Site(1, Kind.PATTERN))
    with pytest.raises(ValueError, match=r"scores and patterns have two\. Use J\.rows or J\.cols"):
        J.contract(jnp.ones((1, 10)), jnp.array([0]), jnp.ones((1, 8)), jnp.array([0]))


def test_products_that_do_not_meet(small, operator, untyped):
    with pytest.raises(TypeError, match=r"composes two EdgeJacobians, got a .*Array.* use J\.mv\(tangent\)"):
        operator @ jnp.ones((SEQ, WIDTH))
    with pytest.raises(TypeError, match=r"two operators of one direction\. For J\.T J v use"):
        operator.T @ operator
    with pytest.raises(
        ValueError,
        match=r"K ends at `blocks\.1\.hook_attn_out` \[5, 8\], and J begins at `blocks\.1\.hook_resid_pre` \[5, 8\]",
    ):
        operator @ operator
    few = jc.edge(*small, PRE, ATTN_OUT, target_pos=[0])
    with pytest.raises(
        ValueError, match=r"K ends at `blocks\.1\.hook_attn_out` \[1, 8\]|restrict positions at the outer ends"
    ):
        jc.edge(*small, ATTN_OUT, POST) @ few
    with pytest.raises(ValueError, match="restrict positions at the outer ends only"):
        jc.edge(*small, ATTN_OUT, POST, source_pos=[0]) @ few


# --- Memory


def test_results_larger_than_memory(operator, swept, contraction, monkeypatch):
    monkeypatch.setattr(_memory, "available", lambda: 50)
    for J in (operator, swept):
        with pytest.raises(
            ValueError,
            match=r"A Jacobian of shape \(5, [89], 5, 8\) takes .* KiB, and 50 bytes of memory are free\. Restrict the positions",
        ):
            J.as_matrix()
    monkeypatch.setattr(_memory, "available", lambda: 20)
    with pytest.raises(
        ValueError, match=r"A contraction of shape \(3, 3\) takes \d+ bytes, and 20 bytes .* Contract a part of `left`"
    ):
        operator.contract(*contraction)
    monkeypatch.setattr(_memory, "available", lambda: None)  # not known: nothing is refused
    assert operator.contract(*contraction).shape == (3, 3)


def test_sizes_are_told_readably(monkeypatch):
    monkeypatch.setattr(_memory, "available", lambda: 3 * 2**30)
    with pytest.raises(
        ValueError, match=r"^A matrix of shape \(2048, 1024, 1024\) takes 8 GiB, and 3 GiB of memory are free\. Less\.$"
    ):
        _memory.check_fits("A matrix", (2048, 1024, 1024), np.dtype("float32"), "Less.")
    _memory.check_fits("A matrix", (2, 2), np.dtype("float32"), "Less.")


def exhausted(function, times):
    """`function`, which runs out of memory some times before it does not."""
    left = [times]

    def call(*args, **kwargs):
        if left[0]:
            left[0] -= 1
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        return function(*args, **kwargs)

    return call


def test_out_of_memory_halves_the_chunk(small, operator, swept, contraction, monkeypatch):
    v = direction((4, SEQ, WIDTH))
    want, matrix, edges = swept.cols(v), swept.as_matrix(), operator.contract(*contraction)
    chain = jc.edge(*small, Site(0, Kind.RESID_PRE), POST, engine="structured", source_pos=[0, 2])
    blocks = chain.as_matrix()
    monkeypatch.setattr(_product, "jvp", exhausted(_product.jvp, 1))
    with pytest.warns(UserWarning, match=r"out of memory; going on with the chunk of vectors halved to 2\."):
        assert_close(swept.cols(v), want)
    monkeypatch.setattr(_product, "jvp", exhausted(_product.jvp, 1))
    with pytest.warns(UserWarning, match=r"the chunk of rows halved to 20\."):
        assert_close(swept.as_matrix(), matrix)
    monkeypatch.setattr(_segments, "contract_block", exhausted(_segments.contract_block, 1))
    with pytest.warns(UserWarning, match=r"the memory budget halved to 268435456\."):
        assert_close(operator.contract(*contraction), edges)
    monkeypatch.setattr(_chain, "pull_block", exhausted(_chain.pull_block, 1))
    with pytest.warns(UserWarning, match=r"the memory budget halved to 268435456\."):
        assert_close(chain.as_matrix(), blocks)
    monkeypatch.setattr(_product, "jvp", exhausted(_product.jvp, -1))
    with (
        pytest.warns(UserWarning, match="halved to 1"),
        pytest.raises(ValueError, match="out of memory even with the chunk of vectors at its smallest"),
    ):
        swept.cols(v[:2])


def test_other_errors_of_the_device_are_not_hidden(swept, monkeypatch):
    def broken(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("INTERNAL: a wire is loose")

    monkeypatch.setattr(_product, "jvp", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a wire is loose"):
        swept.mv(direction((SEQ, WIDTH)))


# --- Numbers that are none


def test_a_nan_is_named_where_it_begins(small, contraction):
    model, tokens = small
    broken = eqx.tree_at(lambda m: m.blocks[1].mlp.W_out, model, model.blocks[1].mlp.W_out.at[0, 0].set(jnp.nan))
    J = jc.edge(broken, tokens, MID, POST)
    first = r"the value at `blocks\.1\.hook_mlp_out` is the first NaN or infinity"
    for compute in (J.as_matrix, lambda: J.contract(*contraction)):
        with pytest.raises(ValueError, match=first):
            compute()
    with pytest.raises(ValueError, match=first):
        jc.edge(broken, tokens, Site(0, Kind.MLP_OUT), Site(None, Kind.LOGITS)).as_matrix()
    # Before the site everything is as it was.
    assert jnp.isfinite(jc.edge(broken, tokens, MID, Site(1, Kind.MLP_PRE)).as_matrix()).all()


def test_a_derivative_that_is_not_finite(small):
    """Without its epsilon the scale of a norm has a value where the residual stream is constant, and no derivative."""
    model, tokens = small
    block = model.blocks[1]
    block = dataclasses.replace(block, ln2=dataclasses.replace(block.ln2, eps=0.0))
    flat = dataclasses.replace(model, blocks=(model.blocks[0], block))
    written = lambda m: (
        m.W_E,
        m.W_pos,
        *[x for b in m.blocks for x in (b.attn.W_O, b.attn.b_O, b.mlp.W_out, b.mlp.b_out)],
    )
    flat = eqx.tree_at(written, flat, replace_fn=jnp.zeros_like)
    with pytest.raises(ValueError, match=r"the derivative at `blocks\.1\.ln2\.hook_scale` is the first NaN"):
        jc.edge(flat, tokens, MID, MLP_OUT).as_matrix()


def test_vectors_that_are_not_finite(operator, contraction):
    left, left_pos, right, right_pos = contraction
    with pytest.raises(ValueError, match="though every value and derivative on the way is"):
        operator.contract(left.at[0, 0].set(jnp.inf), left_pos, right, right_pos)


def test_no_jacobian_from_a_compiler_that_is_wrong(small, monkeypatch):
    monkeypatch.setattr(jaxlib.version, "__version__", "0.10.2")
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    with pytest.raises(RuntimeError, match=r"jaxlib 0\.10\.2 computes wrong Jacobians on cpu"):
        jc.edge(*small, PRE, POST)


# --- Half and single precision


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_the_dtype_is_the_activations(small, operator, contraction, dtype):
    model, tokens = small
    J = jc.edge(as_dtype(model, dtype), tokens, PRE, ATTN_OUT)
    assert J.dtype == jnp.float32
    v = direction((SEQ, WIDTH))
    got, want = J.mv(v), operator.mv(v)
    assert got.dtype == jnp.float32
    # The weights themselves are rounded, and nothing else is.
    assert_close(got, np.asarray(want), tolerance=1e-5 if dtype == jnp.float32 else 5 * float(jnp.finfo(dtype).eps))


@needs_x64
def test_a_certificate_in_single_precision(small):
    model, tokens = small
    certificate = jc.edge(as_dtype(model, jnp.float32), tokens, PRE, ATTN_OUT).certificate(jax.random.key(0), probes=1)
    assert 1e-9 < certificate.error < certificate.limit == 1e-4
    assert certificate.dtype == "float32"


@pytest.mark.parametrize("engine", ["structured", "autodiff"])
@pytest.mark.parametrize("units", [False, True])
def test_what_is_not_there_is_not_a_number_under_jit(small, engine, units):
    """On the host it is an error; where positions and coordinates are traced, their rows and columns are NaN, and no others."""
    model, tokens = small
    J = jc.edge(model, tokens, "blocks.0.hook_resid_pre", "blocks.0.hook_attn_out", engine=engine)
    seq = len(tokens)
    items = jnp.arange(4) if units else direction((4, WIDTH))
    where = jnp.asarray([seq - 1, 0, 2, 3])
    for operator in (J, J.T):
        contract = jax.jit(lambda items, to, of, J=operator: J.contract(items, to, items, of))
        want = operator.contract(items, where, items, where)
        assert_close(contract(items, where, where), want)
        assert_close(contract(items, where.at[0].set(-1), where), want)  # counted from the end
        for bad in (seq, -seq - 1, 10**6):
            got = np.asarray(contract(items, where.at[1].set(bad), where))
            assert np.isnan(got[1]).all()
            assert_close(np.delete(got, 1, 0), np.delete(np.asarray(want), 1, 0))
            got = np.asarray(contract(items, where, where.at[2].set(bad)))
            assert np.isnan(got[:, 2]).all()
            assert_close(np.delete(got, 2, 1), np.delete(np.asarray(want), 2, 1))
        if units:
            got = np.asarray(contract(items.at[3].set(WIDTH), where, where))
            assert np.isnan(got[3]).all()
            assert np.isnan(got[:, 3]).all()
            assert_close(got[:3, :3], np.asarray(want)[:3, :3])


@pytest.mark.parametrize(
    ("engine", "target"), [("structured", POST), ("autodiff", POST), ("structured", ATTN_OUT.acts)]
)
def test_no_position_outside_the_sequence_has_a_jacobian_under_jit(small, engine, target):
    """As above: NaN is what comes of it, by every route and from either side."""
    saes = {target.value: make_sae(jax.random.key(0), WIDTH, target.value)} if target.part != Part.VALUE else {}
    of = lambda model, tokens, **positions: jc.edge(model, tokens, PRE, target, saes=saes, engine=engine, **positions)

    @jax.jit
    def found(model, tokens, source_pos, target_pos):
        J = of(model, tokens, source_pos=source_pos, target_pos=target_pos)
        v, w = direction(J.source_shape), direction((1, *J.target_shape))
        return J.as_matrix(), J.T.as_matrix(), J.mv(v), J.rows(w)[0]

    positions = np.array([4, 1])
    whole, _, image, pulled = found(*small, positions, positions)
    assert_close(whole, of(*small, source_pos=[4, 1], target_pos=[4, 1]).as_matrix())
    for bad in (SEQ, -SEQ - 1, 10**6):
        matrix, transposed, pushed, back = found(*small, positions, np.array([4, bad]))
        assert np.isnan(matrix[1]).all()
        assert_close(matrix[0], whole[0])
        np.testing.assert_array_equal(transposed, np.moveaxis(matrix, (0, 1), (2, 3)))
        assert np.isnan(pushed[1]).all()
        assert_close(pushed[0], image[0])
        assert np.isnan(back).all()
        matrix, transposed, pushed, back = found(*small, np.array([4, bad]), positions)
        assert np.isnan(matrix[:, :, 1]).all()
        assert_close(matrix[:, :, 0], whole[:, :, 0])
        np.testing.assert_array_equal(transposed, np.moveaxis(matrix, (0, 1), (2, 3)))
        assert np.isnan(pushed).all()
        assert np.isnan(back[1]).all()
        assert_close(back[0], pulled[0])


# --- Derivatives of Jacobians


def test_closed_forms_have_the_derivatives_of_autodiff(small, contraction):
    """With respect to weights and items, of a matrix and of bilinear forms: of several prompts one by one, of their sum, and forwards."""
    model, tokens = small
    (items, pos), prompts = contraction[:2], jnp.stack([tokens, tokens[::-1]])

    def size(given, tokens, engine):
        part, items = given
        changed = eqx.tree_at(lambda model: model.blocks[1].mlp, model, part)
        J = jc.edge(changed, tokens, PRE, POST, engine=engine)
        return (J.as_matrix() ** 2).sum() + (J.contract(items, pos, items, pos) ** 2).sum()

    @ft.partial(jax.jit, static_argnums=1)
    def derivatives(given, engine):
        steps = jax.tree.map(jnp.ones_like, given)
        each = jax.vmap(jax.grad(size), (None, 0, None))(given, prompts, engine)
        of_all = jax.grad(lambda given: jax.vmap(lambda tokens: size(given, tokens, engine))(prompts).sum())(given)
        forward = jax.jvp(lambda given: size(given, tokens, engine), (given,), (steps,))[1]
        return ravel_pytree(each)[0], ravel_pytree(of_all)[0], forward

    given = model.blocks[1].mlp, items
    for got, want in zip(derivatives(given, "structured"), derivatives(given, "autodiff"), strict=True):
        assert_close(got, want)


def test_several_blocks_of_which_one_is_differentiated_are_swept(small, contraction):
    """No closed form of a chain has derivatives; that what enters it has none does not make it one."""
    model, tokens = small
    items, pos = contraction[:2]

    def size(block):
        J = jc.edge(eqx.tree_at(lambda model: model.blocks[1], model, block), tokens, Site(0, Kind.RESID_PRE), POST)
        J = dataclasses.replace(J, product=dataclasses.replace(J.product, engine="structured"))
        assert jc.select(J) == "autodiff"
        return (J.contract(items, pos, items, pos) ** 2).sum()

    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(jax.grad(size)(model.blocks[1]))) > 1e-3

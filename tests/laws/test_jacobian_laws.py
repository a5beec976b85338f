"""Laws of the Jacobians between sites, against `jc.run` with edits: `Detach` or `Replace` where a site is held, `Add` at the source."""

import functools as ft
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site

from ..dictionaries import make_sae
from ..helpers import (
    assert_close,
    by_numpy,
    Chosen,
    logits_by_embedding,
    make_model,
    model_named,
    MODELS,
    needs_x64,
    tokens_for,
)
from . import test_run_laws as runs
from .test_run_laws import InTurn


SEQ = 4
at = ft.partial(ft.partial, Site)
FIRST, SECOND, OUTSIDE = at(0), at(1), at(None)
EMBED, LOGITS = OUTSIDE(Kind.EMBED), OUTSIDE(Kind.LOGITS)


def direction(shape, seed=0):
    return jnp.asarray(runs.direction(shape, seed))


@pytest.fixture(scope="module")
def small():
    """A model so small that the Jacobians between all of its sites fit into one array each, and tokens."""
    model = make_model(jax.random.key(3), d_model=8, d_head=3, d_mlp=10, vocab=9, vocab_out=5)
    return model, tokens_for(model, SEQ)


def record(steps, model, tokens, choices, cache):
    """The values at some sites with `steps` added there, and every site as `choices` says: 0 left, 1 replaced, 2 detached."""
    held = {s: Chosen(choices[i], (jc.Replace(cache[s]), jc.Detach())) for i, s in enumerate(cache)}
    edits = {s: InTurn((held[s], jc.Add(steps[s]))) for s in steps}
    return dict(jc.run(model, tokens, edits=held | edits, record=list(steps))[1])  # the same tree as `steps`


def frozen_sets(model):
    """Sets of sites to hold, by name."""
    only = lambda *kinds: frozenset(s for s in jc.sites(model) if s.kind in kinds)
    return {
        "nothing": frozenset(),
        "norms": jc.frozen.layer_norms(model),
        "patterns": jc.frozen.patterns(model),
        "norms and patterns": jc.frozen.layer_norms(model) | jc.frozen.patterns(model),
        "scores": only(Kind.ATTN_SCORES),
        "q": only(Kind.Q),
        "k": only(Kind.K),
        "v": only(Kind.V),
        "q and v of one layer": frozenset({SECOND(Kind.Q), SECOND(Kind.V)}),
        "attn_out": only(Kind.ATTN_OUT),
        "mlp_out": only(Kind.MLP_OUT),
        "normalized": only(Kind.LN2_NORMALIZED),
        "everything between": jc.frozen.between(model, EMBED, LOGITS),
    }


# source, target, frozen; every kind of site is a source and a target somewhere.
EDGES = [
    (EMBED, LOGITS, "nothing"),
    (EMBED, LOGITS, "norms and patterns"),
    (EMBED, LOGITS, "everything between"),
    (EMBED, SECOND(Kind.ATTN_SCORES), "norms"),
    (OUTSIDE(Kind.POS_EMBED), FIRST(Kind.RESULT), "q"),
    (FIRST(Kind.RESID_PRE), SECOND(Kind.RESID_POST), "nothing"),
    (FIRST(Kind.RESID_PRE), FIRST(Kind.RESID_POST), "patterns"),
    (FIRST(Kind.RESID_PRE), SECOND(Kind.PATTERN), "k"),
    (FIRST(Kind.RESID_PRE), OUTSIDE(Kind.FINAL_SCALE), "v"),
    (SECOND(Kind.RESID_PRE), SECOND(Kind.LN1_SCALE), "nothing"),
    (FIRST(Kind.LN1_SCALE), SECOND(Kind.Q), "scores"),
    (FIRST(Kind.LN1_NORMALIZED), SECOND(Kind.K), "mlp_out"),
    (FIRST(Kind.Q), FIRST(Kind.PATTERN), "nothing"),
    (FIRST(Kind.K), LOGITS, "q and v of one layer"),
    (FIRST(Kind.V), SECOND(Kind.V), "mlp_out"),
    (FIRST(Kind.ATTN_SCORES), FIRST(Kind.PATTERN), "nothing"),
    (FIRST(Kind.ATTN_SCORES), SECOND(Kind.ATTN_SCORES), "normalized"),
    (FIRST(Kind.PATTERN), SECOND(Kind.Z), "norms"),
    (SECOND(Kind.Z), SECOND(Kind.ATTN_OUT), "nothing"),
    (SECOND(Kind.RESULT), LOGITS, "mlp_out"),
    (FIRST(Kind.ATTN_OUT), SECOND(Kind.MLP_PRE), "patterns"),
    (FIRST(Kind.RESID_MID), SECOND(Kind.RESID_MID), "q"),
    (FIRST(Kind.RESID_MID), FIRST(Kind.LN2_NORMALIZED), "norms"),
    (SECOND(Kind.RESID_MID), SECOND(Kind.LN2_SCALE), "nothing"),
    (FIRST(Kind.LN2_SCALE), SECOND(Kind.LN1_NORMALIZED), "nothing"),
    (FIRST(Kind.LN2_NORMALIZED), SECOND(Kind.MLP_POST), "v"),
    (FIRST(Kind.MLP_PRE), FIRST(Kind.MLP_OUT), "nothing"),
    (FIRST(Kind.MLP_POST), OUTSIDE(Kind.FINAL_NORMALIZED), "norms and patterns"),
    (FIRST(Kind.MLP_OUT), SECOND(Kind.RESID_PRE), "nothing"),
    (FIRST(Kind.RESID_POST), SECOND(Kind.RESID_MID), "nothing"),
    (FIRST(Kind.RESID_POST), LOGITS, "attn_out"),
    (OUTSIDE(Kind.FINAL_SCALE), LOGITS, "nothing"),
    (OUTSIDE(Kind.FINAL_NORMALIZED), LOGITS, "nothing"),
]
ENDS = sorted({end for edge in EDGES for end in edge[:2]})


@pytest.fixture(scope="module")
def cases(small):
    """Of every edge: itself, and the three that `jc.run` gives: by forward mode, by reverse mode, by differences along a direction."""
    model, tokens = small
    cache = jc.run(model, tokens, record=jc.sites(model))[1]
    sets = frozen_sets(model)
    choices = np.array([[site in held for site in cache] for held in sets.values()], int)
    rows = np.array([choices[list(sets).index(held)] for _, _, held in EDGES])
    zeros = {site: jnp.zeros_like(cache[site]) for site in ENDS}
    clean = (model, tokens, cache, zeros)  # all arguments: XLA would fold constants for minutes

    def by_forward(choices, tangents, model, tokens, cache, zeros):
        return jax.jvp(lambda steps: record(steps, model, tokens, choices, cache), (zeros,), (tangents,))[1]

    def by_reverse(choices, cotangents, model, tokens, cache, zeros):
        return jax.vjp(lambda steps: record(steps, model, tokens, choices, cache), zeros)[1](cotangents)[0]

    def matrices(by, begin, end, choice):
        into = [cache[edge[begin]].size for edge in EDGES]
        basis = {site: np.zeros((sum(into), *x.shape), x.dtype) for site, x in zeros.items()}
        parts = [slice(stop - n, stop) for n, stop in zip(into, np.cumsum(into), strict=True)]
        for edge, part in zip(EDGES, parts, strict=True):
            x = basis[edge[begin]]
            x[part] = np.eye(x[0].size).reshape(-1, *x.shape[1:])
        found = by_numpy(jax.vmap(by, in_axes=(0, 0, *[None] * 4)))(
            choice * np.repeat(rows, into, axis=0), basis, *clean
        )
        return [np.asarray(found[edge[end]][part]) for edge, part in zip(EDGES, parts, strict=True)]

    forward = matrices(by_forward, 0, 1, 2)  # [source target]
    reverse = matrices(by_reverse, 1, 0, 1)

    step = 1e-5
    directions = [direction(cache[source].shape, seed) for seed, (source, _, _) in enumerate(EDGES)]
    moves = {
        site: np.stack([d if site == s else np.zeros(d0.shape) for d, (s, _, _) in zip(directions, EDGES, strict=True)])
        for site, d0 in zeros.items()
    }
    moved = by_numpy(jax.vmap(record, in_axes=(0, None, None, 0, None)))
    above = moved(jax.tree.map(lambda x: step * x, moves), model, tokens, rows, cache)
    below = moved(jax.tree.map(lambda x: -step * x, moves), model, tokens, rows, cache)
    cases = []
    for i, (source, target, _) in enumerate(EDGES):
        with np.errstate(invalid="ignore"):
            differences = (np.asarray(above[target][i]) - np.asarray(below[target][i])) / (2 * step)
        # Masked scores are -inf on both sides: they do not move.
        differences = np.where(np.isnan(differences), 0, differences)
        shape = (*cache[target].shape, *cache[source].shape)
        columns = np.moveaxis(forward[i], 0, -1).reshape(shape)
        cases.append((columns, reverse[i].reshape(shape), directions[i], differences))
    return cases


@pytest.fixture(scope="module")
def operators(small):
    model, tokens = small
    sets = frozen_sets(model)
    return [
        jc.edge(model, tokens, source, target, frozen=sets[held], engine="autodiff") for source, target, held in EDGES
    ]


@pytest.fixture(scope="module")
def matrices(operators):
    """Of every operator its matrix, made within one `jit` that takes the operators as arguments."""
    compute = jax.jit(lambda operators: [J.as_matrix() for J in operators])
    return jax.tree.map(np.asarray, compute(operators))


@needs_x64
def test_every_edge_is_the_derivative_of_a_run(cases, matrices):
    """Law 2: `as_matrix` = `jacfwd` of a run with held sites detached = `jacrev` of one with them replaced = central differences."""
    for (forward, reverse, along, differences), matrix in zip(cases, matrices, strict=True):
        assert_close(matrix, forward)
        assert_close(matrix, reverse)
        # Differences by 1e-5 err by its square times the third derivative, and by rounding over it.
        assert_close(np.tensordot(matrix, along, along.ndim), differences, tolerance=1e-6)


def test_products_from_either_side_agree(operators, matrices):
    """Law 2: <w, J v> = <J^T w, v>; both are products with the matrix."""
    some = operators[::6]
    tangents = [direction(J.source_shape, seed) for seed, J in enumerate(some)]
    cotangents = [direction(J.target_shape, 1000 + seed) for seed, J in enumerate(some)]
    compute = jax.jit(lambda *zipped: [(J.mv(v), J.T.mv(w)) for J, v, w in zip(*zipped, strict=True)])
    found = compute(some, tangents, cotangents)
    for J, matrix, v, w, (image, pulled) in zip(some, matrices[::6], tangents, cotangents, found, strict=True):
        assert matrix.shape == J.target_shape + J.source_shape
        assert_close(image, np.tensordot(matrix, v, v.ndim))
        assert_close(pulled, np.tensordot(w, matrix, w.ndim))
        assert_close(jnp.sum(w * image), jnp.sum(pulled * v), mass=1e-6)


def test_an_operator_transposed_twice_is_itself(operators):
    J = operators[5]
    assert repr(J.T.T) == repr(J)
    assert (J.T.source, J.T.target) == (J.target, J.source)
    assert (J.T.source_shape, J.T.target_shape) == (J.target_shape, J.source_shape)


def test_rows_and_columns_are_those_of_the_matrix(small):
    """Chunked = unchunked; `mv` = `cols` of one; the columns of J are the rows of its transpose."""
    tangents, cotangents = direction((5, SEQ, 2, 3)), direction((5, SEQ, 5), 1)

    @jax.jit
    def compute(J, tangents, cotangents):
        matrices = [J.as_matrix(), J.as_matrix(chunk=3), jnp.transpose(J.T.as_matrix(chunk=7), (3, 4, 0, 1, 2))]
        cols = [J.cols(tangents), J.cols(tangents, chunk=2), J.cols(tangents, chunk=9), J.T.rows(tangents)]
        rows = [J.rows(cotangents), J.rows(cotangents, chunk=2), J.T.cols(cotangents)]
        return matrices, cols, rows, J.mv(tangents[2])

    matrices, cols, rows, image = compute(jc.edge(*small, SECOND(Kind.Z), LOGITS), tangents, cotangents)
    for matrix in matrices[1:]:
        assert_close(matrix, matrices[0])
    for found in cols:
        assert_close(found, np.einsum("tushd,nshd->ntu", matrices[0], tangents))
    for found in rows:
        assert_close(found, np.einsum("tushd,ntu->nshd", matrices[0], cotangents))
    assert_close(image, cols[0][2])


def test_positions_are_slices_of_the_whole(small):
    """`source_pos` and `target_pos` take rows and columns of positions, in the order given, also from the end; of attention scores and
    patterns those of the queries."""
    ends = FIRST(Kind.MLP_OUT), SECOND(Kind.MLP_OUT)
    scores = FIRST(Kind.Q), FIRST(Kind.ATTN_SCORES)
    of_scores = scores[1], FIRST(Kind.Z)
    operators = [
        jc.edge(*small, *ends),
        jc.edge(*small, *ends, source_pos=[2, 0], target_pos=jnp.array([-1, 2, 1])),
        jc.edge(*small, *scores),
        jc.edge(*small, *scores, source_pos=[3], target_pos=[-1, 0]),
        jc.edge(*small, *of_scores),
        jc.edge(*small, *of_scores, source_pos=[-2]),
    ]
    few = operators[1]
    assert (few.source_shape, few.target_shape) == ((2, 8), (3, 8))
    tangent, cotangent = direction((2, 8)), direction((3, 8))
    left, right = direction((2, 8)), direction((2, 8), 1)

    @jax.jit
    def compute(operators, few, tangent, cotangent, left, right):
        # What single positions are contracted with is counted in the whole sequence.
        edges = few.contract(left, jnp.array([-1, 2]), right, jnp.array([1, 0]))
        return [J.as_matrix() for J in operators], few.T.as_matrix(), few.mv(tangent), few.T.mv(cotangent), edges

    found, transposed, image, pulled, edges = compute(operators, few, tangent, cotangent, left, right)
    whole, some, scores, some_scores, of_scores, of_some_scores = map(np.asarray, found)
    want = whole[[3, 2, 1]][:, :, [2, 0]]
    assert_close(some, want)
    assert_close(transposed, np.transpose(want, (2, 3, 0, 1)))
    assert_close(image, np.tensordot(want, tangent, 2))
    assert_close(pulled, np.tensordot(cotangent, want, 2))
    assert_close(edges, np.einsum("mt,mtks,ks->mk", left, whole[[3, 2]][:, :, [1, 0]], right))
    assert some_scores.shape[:3] == (2, 2, SEQ)
    assert_close(some_scores, scores[:, [3, 0]][:, :, :, [3]])
    assert_close(of_some_scores, of_scores[:, :, :, :, [2]])


@needs_x64
def test_with_all_that_is_not_linear_held_a_run_is_linear(small):
    """Law 6: held norms, patterns and MLPs leave a linear function of any step, whose second derivative is 0, and J is its matrix."""
    model, tokens = small
    held = (
        jc.frozen.layer_norms(model)
        | jc.frozen.patterns(model)
        | {s for s in jc.sites(model) if s.kind == Kind.MLP_OUT}
    )
    cache = jc.run(model, tokens, record=held)[1]
    J = jc.edge(model, tokens, EMBED, LOGITS, frozen=held)

    def logits(step):
        edits = {site: jc.Replace(value) for site, value in cache.items()}
        return jc.run(model, tokens, edits={**edits, EMBED: jc.Add(step)})[0]

    step, other = 3 * direction(J.source_shape), direction(J.source_shape, 1)
    assert_close(logits(step) - logits(jnp.zeros_like(step)), J.mv(step))

    def second(function, x, v, w):
        return jax.jvp(lambda x: jax.jvp(function, (x,), (v,))[1], (x,), (w,))[1]

    detached = lambda step: jc.run(model, tokens, edits={**dict.fromkeys(held, jc.Detach()), EMBED: jc.Add(step)})[0]
    free = lambda step: jc.run(model, tokens, edits={EMBED: jc.Add(step)})[0]
    assert np.abs(second(free, step, step, other)).max() > 1e-3
    for function in (logits, detached):
        np.testing.assert_array_equal(second(function, step, step, other), 0)


ENGINES = ("autodiff", "auto")


@pytest.fixture(scope="module", params=MODELS)
def blocks(request):
    """Of every model of the registry the operators of its second block, and one through all blocks, with their matrices."""
    model = model_named(request.param)
    tokens = tokens_for(model)
    edges = {
        "attn": (SECOND(Kind.RESID_PRE), SECOND(Kind.ATTN_OUT)),
        "block": (SECOND(Kind.RESID_PRE), SECOND(Kind.RESID_POST)),
        "before": (FIRST(Kind.ATTN_OUT), SECOND(Kind.RESID_PRE)),
        "across": (FIRST(Kind.ATTN_OUT), SECOND(Kind.RESID_POST)),
        "all": (EMBED, LOGITS),
    }
    if model.blocks[0].mlp is not None:
        read = Kind.RESID_PRE if model.blocks[0].parallel else Kind.RESID_MID
        edges["mlp"] = (SECOND(read), SECOND(Kind.MLP_OUT))
    operators = {name: jc.edge(model, tokens, *ends) for name, ends in edges.items()}
    operators["product"] = operators["block"] @ operators["before"]
    operators |= {f"path {name}": J for name, J in jc.block_paths(model, tokens, 1).items()}
    matrices = jax.jit(lambda operators: jax.tree.map(lambda J: J.as_matrix(), operators, is_leaf=is_operator))(
        operators
    )
    return model, tokens, operators, jax.tree.map(np.asarray, matrices)


def is_operator(x):
    return isinstance(x, jc.EdgeJacobian)


def test_the_registry_has_the_derivatives_of_a_run(blocks):
    model, tokens, _, matrices = blocks
    assert_close(matrices["all"], logits_by_embedding(model, tokens))


def test_a_jacobian_is_the_product_at_a_cut(blocks):
    """Law 3: `J(a -> c) = J(b -> c) @ J(a -> b)`, where every path from a to c passes b."""
    _, _, operators, matrices = blocks
    assert_close(matrices["product"], matrices["across"])
    assert_close(np.tensordot(matrices["block"], matrices["before"], 2), matrices["across"])
    product = operators["product"]
    assert (product.source, product.target) == (operators["before"].source, operators["block"].target)


def test_nothing_comes_from_later_positions(blocks):
    """Law 4, exactly, in either engine; without causality everything reaches everything."""
    model, _, _, matrices = blocks
    for name in ("attn", "block", "across", "product", "all"):
        matrix = matrices[name]
        size = np.abs(matrix).max(axis=(1, 3))  # [target_pos source_pos]
        q, k = np.arange(len(size))[:, None], np.arange(len(size))[None]
        late = k > q
        if model.causal:
            assert not size[late].any(), name
        else:
            assert size[late].all(), name
        assert (np.diag(size) > 1e-3).all()
        window = model.windows[1]
        if name in ("attn", "block") and window is not None:
            assert not size[k <= q - window].any(), name
            assert size[~late & (k > q - window)].all(), name


def test_a_block_is_the_product_of_its_halves(blocks):
    """Law 5: `J = (I + J_mlp)(I + J_attn)`, or side by side `I + J_attn + J_mlp`; and each path is its term of the product."""
    model, _, operators, matrices = blocks
    shape = operators["attn"].source_shape
    size = np.prod(shape)
    square = lambda name: matrices[name].reshape(size, size)
    want = {"skip": np.eye(size), "attn": square("attn")}
    if "mlp" in matrices:
        want["mlp"] = square("mlp")
    if "mlp" in matrices and not model.blocks[1].parallel:
        want["attn_mlp"] = square("mlp") @ square("attn")
    assert_close(square("block"), sum(want.values()))
    paths = {name.removeprefix("path "): square(name) for name in matrices if name.startswith("path ")}
    assert paths.keys() == want.keys()
    for name in want:
        assert_close(paths[name], want[name])


def test_with_every_component_held_the_residual_stream_is_the_identity(small):
    """Law 7, exactly, in either engine, through one block and through two."""
    model, tokens = small
    for target in (FIRST(Kind.RESID_POST), SECOND(Kind.RESID_POST)):
        source = FIRST(Kind.RESID_PRE)
        held = jc.frozen.between(model, source, target)
        for engine in ("structured", "autodiff"):
            J = jc.edge(model, tokens, source, target, frozen=held, engine=engine, source_pos=[1])
            assert jc.select(J) == engine
            want = np.eye(SEQ * 8).reshape(SEQ, 8, SEQ, 8)
            np.testing.assert_array_equal(J.as_matrix(), want[:, :, [1]])


@pytest.fixture(scope="module")
def pair(small):
    """The operators of the same edge in two layers."""
    model, tokens = small
    return [jc.edge(model, tokens, at(Kind.RESID_PRE), at(Kind.RESID_POST)) for at in (FIRST, SECOND)]


def test_jit_changes_nothing(small, pair):
    """Law 10: J made inside a `jit`, J as the argument of one, and neither."""
    model, tokens = small
    J = pair[1]
    left, right, positions = direction((3, 8)), direction((3, 8), 1), jnp.array([3, 1, 3], jnp.int32)
    tangent = direction(J.source_shape)

    def compute(J):
        return J.mv(tangent), J.contract(left, positions, right, positions[::-1])

    want = compute(J)
    inside = jax.jit(lambda model, tokens: compute(jc.edge(model, tokens, J.source, J.target)))(model, tokens)
    through = jax.jit(compute)(J)
    for got in (inside, through):
        for one, other in zip(got, want, strict=True):
            assert_close(one, other)


def test_a_batch_of_prompts_is_a_loop(small):
    model, _ = small
    batch = jnp.stack([tokens_for(model, SEQ, seed) for seed in range(3)])
    left, right, positions = direction((3, 8)), direction((3, 8), 1), jnp.array([3, 1, 3], jnp.int32)

    def compute(tokens):
        J = jc.edge(model, tokens, SECOND(Kind.RESID_PRE), SECOND(Kind.RESID_POST))
        return J.mv(direction((SEQ, 8))), J.contract(left, positions, right, positions)

    whole = jax.jit(jax.vmap(compute))(batch)
    loop = [compute(tokens) for tokens in batch]
    for got, want in zip(whole, zip(*loop, strict=True), strict=True):
        assert_close(got, np.stack(want))
    assert np.abs(np.asarray(whole[1])[0] - np.asarray(whole[1])[1]).max() > 1e-3


def test_operators_of_several_layers_are_stacked(pair):
    tangent = direction(pair[0].source_shape)
    left, positions = direction((3, 8)), jnp.array([3, 1, 3], jnp.int32)
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pair)
    assert "layers relative" in repr(stack)
    assert_close(jax.vmap(lambda J: J.mv(tangent))(stack), np.stack([J.mv(tangent) for J in pair]))
    got = jax.vmap(lambda J: J.contract(left, positions, left, positions))(stack)
    assert_close(got, np.stack([J.contract(left, positions, left, positions) for J in pair]))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_bilinear_form_is_one_of_the_matrix(small, engine):
    """`contract` against `as_matrix` in both engines, of an operator, its transpose and products; units by number."""
    model, tokens = small
    K = jc.edge(model, tokens, FIRST(Kind.RESID_PRE), FIRST(Kind.RESID_POST), engine=engine)
    J = jc.edge(model, tokens, FIRST(Kind.RESID_POST), SECOND(Kind.MLP_OUT), engine=engine)
    left, right = direction((6, 8)), direction((3, 8), 1)
    left_pos, right_pos = jnp.array([3, 0, 1, 1, 2, 3]), jnp.array([0, 2, 1])
    for operator in (K, J @ K):
        matrix = np.asarray(operator.as_matrix())
        want = np.einsum("mi,mikj,kj->mk", left, matrix[np.asarray(left_pos)][:, :, np.asarray(right_pos)], right)
        assert_close(operator.contract(left, left_pos, right, right_pos), want)
        assert_close(operator.T.contract(right, right_pos, left, left_pos), want.T)
        units = jnp.arange(6, dtype=jnp.int32)
        want = matrix[np.asarray(left_pos), np.asarray(units)][:, np.asarray(right_pos), np.array([7, 0, 3])]
        assert_close(operator.contract(units, left_pos, jnp.array([7, 0, 3]), right_pos), want)
    matrix = np.tensordot(np.asarray(J.as_matrix()), np.asarray(K.as_matrix()), 2)
    assert_close((J @ K).as_matrix(), matrix)
    assert_close((K.T @ J.T).as_matrix(), np.transpose(matrix, (2, 3, 0, 1)))
    assert repr((J @ K).T) == repr(K.T @ J.T)


# --- Operators made of others: each is its dense matrix, in every property and method.

SOME = {"source_pos": [2, 0, 1], "target_pos": [3, 2]}


class Made(NamedTuple):
    """An operator, its matrix between all positions, and which of them it is restricted to."""

    J: jc.EdgeJacobian
    whole: np.ndarray
    source_pos: list[int] | None = None
    target_pos: list[int] | None = None

    def matrix(self, **positions) -> np.ndarray:
        """The matrix between its positions, or others."""
        found = self.whole
        axis = lambda site: 1 if site.kind in (Kind.ATTN_SCORES, Kind.PATTERN) else 0
        for place, site, before in (("source_pos", self.J.source, self.split), ("target_pos", self.J.target, 0)):
            chosen = positions.get(place, getattr(self, place))
            found = found if chosen is None else np.take(found, chosen, axis=before + axis(site))
        return found

    @property
    def split(self) -> int:
        return len(self.J.target_shape)


def operators_of(small) -> dict[str, Made]:
    """Operators of every kind, and their matrices: by autodiff, multiplied by NumPy where they are products."""
    model, tokens = small
    pre, post, last, mlp_out = (
        FIRST(Kind.RESID_PRE),
        FIRST(Kind.RESID_POST),
        SECOND(Kind.RESID_POST),
        SECOND(Kind.MLP_OUT),
    )
    saes = {site: make_sae(jax.random.key(i), 8, site, d_sae=9) for i, site in enumerate((pre, post))}
    edge = lambda *ends, **more: jc.edge(model, tokens, *ends, saes=saes, **more)
    dense = lambda *ends: np.asarray(edge(*ends, engine="autodiff").as_matrix())
    first, second = (pre, post), (post, last)
    block, blocks = dense(*first), np.tensordot(dense(*second), dense(*first), 2)
    product, pattern = edge(*second) @ edge(*first), (FIRST(Kind.Q), FIRST(Kind.PATTERN))
    return {
        "one block": Made(edge(*first), block),
        "one block by autodiff": Made(edge(*first, engine="autodiff"), block),
        "several blocks": Made(edge(pre, last), blocks),
        "several blocks in closed form": Made(edge(pre, last, engine="structured"), blocks),
        "latents": Made(edge(pre.acts, post.acts), dense(pre.acts, post.acts)),
        "an error": Made(edge(post.error, mlp_out), dense(post.error, mlp_out)),
        "some positions": Made(edge(*first, **SOME), block, *SOME.values()),
        "some positions of several blocks": Made(edge(pre, last, **SOME), blocks, *SOME.values()),
        "a product": Made(product, blocks),
        "a product at some positions": Made(product.restricted(**SOME), blocks, *SOME.values()),
        "a product of transposes": Made((edge(*first).T @ edge(*second).T).T, blocks),
        "patterns": Made(edge(*pattern, target_pos=[3, 1]), dense(*pattern), None, [3, 1]),
    }


@pytest.fixture(scope="module")
def registry(small):
    return operators_of(small)


KINDS_OF_OPERATORS = (
    "one block",
    "one block by autodiff",
    "several blocks",
    "several blocks in closed form",
    "latents",
    "an error",
    "some positions",
    "some positions of several blocks",
    "a product",
    "a product at some positions",
    "a product of transposes",
    "patterns",
)


def test_the_kinds_of_operators_are_all_of_them(registry):
    assert tuple(registry) == KINDS_OF_OPERATORS


def turned(matrix, split):
    return np.transpose(matrix, (*range(split, matrix.ndim), *range(split)))


def check_operator(J, matrix, source, target):
    """All that `J` says and does, against its matrix and its ends: sites, and positions."""
    listed = lambda positions: None if positions is None else np.asarray(positions).tolist()
    assert ((J.source, listed(J.source_pos)), (J.target, listed(J.target_pos))) == (source, target)
    assert J.target_shape + J.source_shape == matrix.shape
    assert repr(J) == f"EdgeJacobian({source[0]} {list(J.source_shape)} -> {target[0]} {list(J.target_shape)})"
    assert_close(J.as_matrix(), matrix)
    tangents, cotangents = direction((2, *J.source_shape)), direction((2, *J.target_shape), 1)
    images = np.stack([np.tensordot(matrix, v, v.ndim) for v in np.asarray(tangents)])
    assert_close(J.cols(tangents), images)
    assert_close(J.mv(tangents[1]), images[1])
    assert_close(J.rows(cotangents), np.stack([np.tensordot(w, matrix, w.ndim) for w in np.asarray(cotangents)]))


@pytest.mark.parametrize("name", KINDS_OF_OPERATORS)
def test_an_operator_and_its_transposes_are_their_matrices(registry, name):
    """`J`, `J.T`, `J.T.T`, and each of them restricted, before it is transposed or after."""
    made = registry[name]
    J, split = made.J, made.split
    source, target = (J.source, made.source_pos), (J.target, made.target_pos)
    check_operator(J, made.matrix(), source, target)
    check_operator(J.T, turned(made.matrix(), split), target, source)
    assert jax.tree.structure(J.T.T) == jax.tree.structure(J)
    assert (J.T.dtype, jc.select(J.T), J.T.engine) == (J.dtype, jc.select(J), J.engine)
    few = [3, 1]  # what the transpose begins at are positions of the target
    want = made.matrix(target_pos=few)
    check_operator(J.T.restricted(source_pos=few), turned(want, split), (J.target, few), source)
    check_operator(J.T.restricted(source_pos=jnp.array(few)).T, want, source, (J.target, few))
    want = made.matrix(source_pos=few)
    check_operator(J.restricted(source_pos=few).T, turned(want, split), target, (J.source, few))


@pytest.mark.parametrize("name", KINDS_OF_OPERATORS[:-1])
def test_bilinear_forms_and_singular_values_of_transposes(registry, name):
    """`contract` counts positions in the whole sequence, whatever the operator is restricted to."""
    made, rank = registry[name], 2
    (m, d_target), (k, d_source) = (5, made.whole.shape[1]), (3, made.whole.shape[3])
    left, right = direction((m, d_target), 2), direction((k, d_source), 3)
    left_pos, right_pos = jnp.array([3, 0, 2, 3, 1]), jnp.array([1, 0, 2])
    want = np.einsum("mt,mtks,ks->mk", left, made.whole[np.asarray(left_pos)][:, :, np.asarray(right_pos)], right)
    assert_close(made.J.contract(left, left_pos, right, right_pos), want)
    assert_close(made.J.T.contract(right, right_pos, left, left_pos), want.T)
    matrix = made.matrix().reshape(np.prod(made.J.target_shape), -1)
    U, S, Vt = made.J.T.svd(rank, iterations=20)
    assert (U.shape, Vt.shape) == ((*made.J.source_shape, rank), (rank, *made.J.target_shape))
    # The powers of a random start converge as ratios of singular values do.
    assert_close(S, np.linalg.svd(matrix, compute_uv=False)[:rank], tolerance=1e-4)


@pytest.mark.parametrize("name", KINDS_OF_OPERATORS)
def test_certificates_of_transposes(registry, name):
    J = registry[name].J
    certificate = J.T.certificate(probes=1)
    assert 0 < certificate.error < (1e-4 if J.dtype == jnp.float32 else 1e-10)
    assert certificate.engine == J.certificate(probes=1).engine
    assert J.T.certificate(matrix=J.T.as_matrix(), probes=1).error < certificate.limit


def test_what_does_not_fit_is_told_by_the_name_that_was_typed(registry, untyped):
    """Of a transpose too, where left and right, source and target change places."""
    J = registry["latents"].J.restricted(source_pos=[0])
    assert (J.source_shape, J.target_shape) == ((1, 9), (SEQ, 9))
    good, at_first = jnp.ones((1, 9)), jnp.array([0])
    for operator in (J, J.T):
        for arguments, message in (
            ((jnp.ones((1, 4)), at_first, good, at_first), "J.contract: left has rows of 4 numbers"),
            ((good, at_first, jnp.ones((1, 4)), at_first), "J.contract: right has rows of 4 numbers"),
            ((good, at_first + SEQ, good, at_first), "J.contract: left_pos: position 4 is outside"),
        ):
            with pytest.raises(ValueError, match=message):
                operator.contract(*arguments)
        for positions in ([], [0.5], [[1]], 3):
            with pytest.raises(
                ValueError, match=r"J\.restricted: target_pos is a list of positions, such as \[0, -1\]"
            ):
                operator.restricted(target_pos=positions)
        with pytest.raises(ValueError, match=r"J\.restricted: source_pos: position 9 is outside"):
            operator.restricted(source_pos=[9])
        with pytest.raises(TypeError, match=r"J\.svd: key: expected a random key"):
            operator.svd(1, 0)
        with pytest.raises(ValueError, match=r"J\.certificate: probes is how many random tangents, at least 1; got 0"):
            operator.certificate(probes=0)
    with pytest.raises(
        ValueError, match=r"tangents of shape \[n, 4, 9\] at `blocks\.0\.hook_resid_post\.hook_sae_acts_post`"
    ):
        J.T.mv(jnp.ones((1, 9)))
    with pytest.raises(ValueError, match=r"expected the result of as_matrix, \(1, 9, 4, 9\); got \(4, 9, 1, 9\)"):
        J.T.certificate(matrix=J.as_matrix())


def test_a_product_does_what_either_factor_insists_on(small):
    model, tokens = small
    pre, post, last = FIRST(Kind.RESID_PRE), FIRST(Kind.RESID_POST), SECOND(Kind.RESID_POST)
    for one, other, both in (
        ("auto", "autodiff", "autodiff"),
        ("structured", "auto", "auto"),
        ("structured", "structured", "structured"),
    ):
        for first, second in ((one, other), (other, one)):
            K = jc.edge(model, tokens, pre, post, engine=first)
            J = jc.edge(model, tokens, post, last, engine=second)
            assert ((J @ K).engine, (K.T @ J.T).engine) == (both, both)


def test_operators_made_within_a_jit_know_their_layers(small):
    """Paths of a block are products, which are refused where they do not meet; of an operator that is an argument that is not known."""
    model, tokens = small
    paths = lambda model, tokens: {name: J.mv(v) for name, J in jc.block_paths(model, tokens, 1).items()}
    v = direction((SEQ, 8))
    for name, got in jax.jit(paths)(model, tokens).items():
        assert_close(got, paths(model, tokens)[name])
    J = jc.edge(model, tokens, FIRST(Kind.RESID_POST), SECOND(Kind.RESID_POST))
    K = jc.edge(model, tokens, FIRST(Kind.RESID_PRE), J.source)
    with pytest.raises(ValueError, match=r"J @ K is J after K"):
        jax.jit(lambda model, tokens: (jc.edge(model, tokens, J.source, J.target) @ J).mv(v))(model, tokens)
    assert_close(jax.jit(lambda J, K: (J @ K).mv(v))(J, K), J.mv(K.mv(v)))
    with pytest.raises(ValueError, match=r"tangents of shape \[n, 4, 8\] at `blocks\.0\.hook_resid_pre`"):
        jax.jit(lambda J: J.mv(v[:2]))(K)


@needs_x64
def test_single_precision_is_close_to_double(small):
    model, tokens = small
    single = jax.tree.map(lambda x: x.astype(jnp.float32), model)
    got, want = (jc.edge(model, tokens, EMBED, LOGITS).as_matrix() for model in (single, model))
    assert got.dtype == jnp.float32
    assert_close(got, np.asarray(want), tolerance=1e-5)

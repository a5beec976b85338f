"""Closed forms against forward-mode autodiff of `jc.run` with edits.

Most of it runs operation by operation: there are many kinds of edges, each a program of its own, and compiling them would take minutes.
That the compiled programs agree is what `laws/test_jacobian_laws.py` and the last tests here see to.
"""

import contextlib
import functools as ft
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc._run import site_shapes
from jaxcirc._target import for_platform
from jaxcirc.graph import reaches
from jaxcirc.jacobian import _engine, _matrix as _whole
from jaxcirc.linear import _contract as contract
from jaxcirc.linear._chain import chain_matrix, chunk_of_rows, mlp_matrices, pull_block, pull_chunks
from jaxcirc.linear._dense import _matrix, block_matrix, Sizes
from jaxcirc.linear._forms import HELD, LOCAL
from jaxcirc.linear._steps import steps_of
from jaxcirc.linear._tiles import tile

from .dictionaries import DICTIONARIES, make_sae
from .helpers import (
    assert_close,
    by_numpy,
    Chosen,
    make_model,
    model_named,
    MODELS,
    needs_x64,
    one_by_one,
    RMS_GATED,
    tokens_for,
)
from .laws.test_jacobian_laws import direction
from .laws.test_run_laws import InTurn


SEQ, LAYER = 5, 1
at = lambda kind: Site(LAYER, kind)
PAIRS = [(source, target) for source in sorted(LOCAL) for target in sorted(LOCAL) if source < target]
PROMISED = [
    (Kind.RESID_PRE, Kind.ATTN_OUT),
    (Kind.RESID_MID, Kind.MLP_OUT),
    (Kind.RESID_PRE, Kind.RESID_POST),
]
HOLD = [
    (),
    (Kind.LN1_SCALE,),
    (Kind.PATTERN,),
    (Kind.Q,),
    (Kind.K,),
    (Kind.LN2_SCALE,),
    (Kind.V,),
    (Kind.Q, Kind.K),
    (Kind.ATTN_SCORES, Kind.LN1_SCALE, Kind.LN2_SCALE),
    (Kind.Z,),
    (Kind.RESULT,),
    (Kind.MLP_OUT,),
    (Kind.LN1_NORMALIZED,),
    (Kind.ATTN_OUT,),
    (Kind.MLP_POST,),
    (Kind.MLP_GATE,),
    (Kind.PATTERN, Kind.MLP_GATE, Kind.LN1_SCALE, Kind.LN2_SCALE, Kind.LN1_POST_SCALE, Kind.LN2_POST_SCALE),
    (Kind.MLP_PRE, Kind.MLP_GATE),
    (Kind.K, Kind.V, Kind.LN2_NORMALIZED),
    (Kind.ATTN_IN,),
    (Kind.MLP_IN,),
    (Kind.Q_SCALE, Kind.K_SCALE),
    (Kind.Q_NORMALIZED,),
    (Kind.ROT_K,),
    (Kind.ROT_Q, Kind.V),
    (Kind.LN1_POST_SCALE, Kind.LN2_POST_SCALE),
    (Kind.HEADS_OUT,),
    (Kind.LN1_POST_NORMALIZED, Kind.K_NORMALIZED),
    (Kind.MLP_PRE_LINEAR,),
    (Kind.NEURONS_OUT, Kind.Q),
    (Kind.LN2_POST_NORMALIZED,),
]
LEFT_POS, RIGHT_POS = jnp.array([4, 2, 4]), jnp.array([0, 4, 2, 2])


@ft.cache
def edges_of(name: str) -> list[tuple[Site, Site, frozenset[Site]]]:
    """A model's share of all edges inside a block, and those that are promised, with one set of held sites after another."""
    names = list(MODELS)
    model, number = model_named(name), names.index(name)
    having = [[each for each in names if has(each, pair)] for pair in PAIRS]
    share = [
        pair for i, (pair, some) in enumerate(zip(PAIRS, having, strict=True)) if some and some[i % len(some)] == name
    ]
    edges = []
    for i, pair in enumerate([*share, *PROMISED]):
        source, target = map(at, pair)
        for turn in range(len(HOLD)):
            held = frozenset(at(kind) for kind in HOLD[(3 * number + i + turn) % len(HOLD)]) & sites_of(name)
            if has(name, pair) and not held & {source, target} and reaches(model, source, target, held):
                edges.append((source, target, held))
                break
    return edges


@ft.cache
def sites_of(name: str) -> frozenset[Site]:
    return frozenset(jc.sites(model_named(name)))


@ft.cache
def has(name: str, pair: tuple[Kind, Kind]) -> bool:
    model = model_named(name)
    if pair[1] == Kind.MLP_GATE and name == "no-norm-relu-bidirectional":
        return False  # a rectifier's gate is 0 or 1, and does not move: there would be nothing to compare
    return {at(kind) for kind in pair} <= sites_of(name) and reaches(model, *map(at, pair))


def test_the_edges_are_all_of_them():
    """Over all models every edge inside a block is met, and every set of held sites."""
    assert {kind for held in HOLD for kind in held} <= HELD
    edges = [edge for name in MODELS for edge in edges_of(name)]
    there = {pair for pair in PAIRS for name in MODELS if has(name, pair)}
    assert {(source.kind, target.kind) for source, target, _ in edges} == there
    assert len(there) > 250
    met = {frozenset(site.kind for site in held) for *_, held in edges}
    assert met >= set(map(frozenset, HOLD))


def images_of_runs(model, tokens, edges, rights):
    """`{target: [edge item …]}`: of each edge the images of its items by forward mode of a run with what is held detached: one program."""
    sources, targets = (sorted({edge[end] for edge in edges}) for end in (0, 1))
    held = sorted(frozenset().union(*(edge[2] for edge in edges)))
    choices = np.array([[site in there for site in held] for *_, there in edges], int)
    shape = site_shapes(model, SEQ)
    zeros = {site: np.zeros(shape[site].shape, model.dtype) for site in sources}
    tangents = {site: np.zeros((len(edges), len(RIGHT_POS), *x.shape), x.dtype) for site, x in zeros.items()}
    for i, ((source, *_), right) in enumerate(zip(edges, rights, strict=True)):
        for j, position in enumerate(RIGHT_POS):
            tangents[source][i, j, position] = right[j].reshape(zeros[source].shape[1:])

    def image(choices, tangents, model, tokens, zeros):
        detached = {site: Chosen(choice, (jc.Detach(),)) for site, choice in zip(held, choices, strict=True)}

        def values(steps):
            moved = {site: InTurn((*filter(None, [detached.get(site)]), jc.Add(step))) for site, step in steps.items()}
            return dict(jc.run(model, tokens, edits=detached | moved, record=targets)[1])

        return jax.jvp(values, (zeros,), (tangents,))[1]

    over_items = jax.vmap(image, in_axes=(None, 0, None, None, None))
    return by_numpy(jax.vmap(over_items, in_axes=(0, 0, None, None, None)))(choices, tangents, model, tokens, zeros)


@pytest.mark.parametrize("name", MODELS)
def test_every_edge_inside_a_block(name):
    """Bilinear forms at random and repeated positions, with what is held given, or nothing; and of every third edge the matrix."""
    model, edges = model_named(name), edges_of(name)
    tokens = tokens_for(model, SEQ)
    shape = {site: x.shape for site, x in site_shapes(model, SEQ).items()}
    flat = lambda site: math.prod(shape[site][1:])
    lefts = [direction((len(LEFT_POS), flat(target)), i) for i, (_, target, _) in enumerate(edges)]
    rights = [direction((len(RIGHT_POS), flat(source)), 100 + i) for i, (source, *_) in enumerate(edges)]
    images = images_of_runs(model, tokens, edges, rights)
    for i, (source, target, held) in enumerate(edges):
        image = np.asarray(images[target][i]).reshape(len(RIGHT_POS), SEQ, -1)[:, LEFT_POS]
        want = np.einsum("kmd,md->mk", image, lefts[i])
        J = jc.edge(model, tokens, source, target, frozen=held, engine="structured")
        assert jc.select(J) == "structured"
        with one_by_one():
            got = [J.contract(lefts[i], LEFT_POS, rights[i], RIGHT_POS)]
        if (i + list(MODELS).index(name)) % 3 == 0:
            block = np.asarray(J.as_matrix()).reshape(SEQ, -1, SEQ, rights[i].shape[1])
            got.append(np.einsum("md,mdke,ke->mk", lefts[i], block[LEFT_POS][:, :, RIGHT_POS], rights[i]))
        # A gate is a quotient by what its neuron reads: where that is small, its derivative is the difference of two large numbers, of
        # which float32 keeps few digits, in the closed form and in the run. Float64 is compared to its full precision.
        rounding = 1e-3 if target.kind == Kind.MLP_GATE and want.dtype == np.float32 else None
        try:
            for edges in got:
                assert_close(edges, want, tolerance=rounding)
        except AssertionError as error:
            raise AssertionError(f"{source} -> {target} with {sorted(map(str, held))} held: {error}") from None


def dictionary_edges(name):
    """The dictionary at either end, its latents and its error; a transcoder's where it reads and where it writes."""
    pre, post, mlp_out = at(Kind.RESID_PRE), at(Kind.RESID_POST), at(Kind.MLP_OUT)
    if name.startswith("transcoder"):
        return [(pre.acts, mlp_out.acts), (mlp_out.acts, post), (mlp_out.error, post.acts)]
    if name == "identity":  # which has no error
        return [(pre.acts, post.acts), (pre.acts, post)]
    if list(DICTIONARIES).index(name) % 2:
        return [(pre.acts, post.acts), (pre.error, post.error)]
    return [(pre.acts, post.error), (pre.error, post.acts)]


@pytest.mark.parametrize("name", DICTIONARIES)
def test_dictionaries_at_the_ends(name):
    """Latents and errors of every kind of dictionary, the one spliced into the run, the other folded into the contraction."""
    model = model_named("gpt2")
    tokens = tokens_for(model, SEQ)
    keys = jax.random.split(jax.random.key(7), 3)
    is_transcoder = name.startswith("transcoder")
    saes = {}
    for key, kind in zip(keys, (Kind.RESID_PRE, Kind.RESID_POST, Kind.MLP_OUT), strict=True):
        if is_transcoder or kind != Kind.MLP_OUT:
            make = DICTIONARIES[name] if (kind == Kind.MLP_OUT) == is_transcoder else make_sae
            saes[at(kind)] = make(key, model.d_model, at(kind))

    for source, target in dictionary_edges(name):
        places = {site: saes[site] for site in saes if site in (source.value, target.value)}
        J = jc.edge(model, tokens, source, target, saes=places, frozen=jc.frozen.layer_norms(model))
        assert jc.select(J) == "structured"
        right = direction((len(RIGHT_POS), J.source_shape[1]))
        left = direction((len(LEFT_POS), J.target_shape[1]), 1)
        tangents = np.zeros((len(RIGHT_POS), *J.source_shape), right.dtype)
        tangents[np.arange(len(RIGHT_POS)), RIGHT_POS] = right
        held = dict.fromkeys(jc.frozen.layer_norms(model), jc.Detach())

        def value(step):
            edits = {**held, source: jc.Add(step)}  # noqa: B023  # called before the loop goes on
            return jc.run(model, tokens, saes=places, edits=edits, record=[target])[1][target]  # noqa: B023

        images = by_numpy(jax.vmap(lambda v: jax.jvp(value, (jnp.zeros_like(v),), (v,))[1]))(jnp.asarray(tangents))
        with one_by_one():
            got = J.contract(left, LEFT_POS, right, RIGHT_POS)
        assert_close(got, np.einsum("kmd,md->mk", images[:, np.asarray(LEFT_POS)], left))


@pytest.mark.parametrize("engine", ["structured", "autodiff"])
def test_units_by_number_are_unit_vectors(engine):
    """Integers stand for coordinates of the ends, latents of dictionaries or numbers of a site, in either engine."""
    model = model_named("gpt-neo")
    tokens = tokens_for(model, SEQ)
    pre, post = at(Kind.RESID_PRE), at(Kind.RESID_POST)
    saes = {
        site: make_sae(key, model.d_model, site)
        for site, key in zip((pre, post), jax.random.split(jax.random.key(1)), strict=True)
    }
    for source, target in ((pre.acts, post.error), (at(Kind.Z), at(Kind.MLP_PRE))):
        J = jc.edge(model, tokens, source, target, saes=saes, engine=engine)
        widths = [int(np.prod(shape[1:])) for shape in (J.target_shape, J.source_shape)]
        rng = np.random.default_rng(0)
        left, right = (jnp.asarray(rng.integers(0, width, 40)) for width in widths)
        left_pos, right_pos = (jnp.asarray(rng.integers(0, SEQ, 40)) for _ in widths)
        dense = [
            jax.nn.one_hot(units, width, dtype=J.dtype) for units, width in zip((left, right), widths, strict=True)
        ]
        with one_by_one() if engine == "structured" else contextlib.nullcontext():
            got = J.contract(left, left_pos, right, right_pos)
            want = J.contract(dense[0], left_pos, dense[1], right_pos)
        assert_close(got, want)


def test_a_product_of_edges():
    """Local segments, one that may attend, local segments: items are spread to it from either side; others are swept."""
    model = model_named("gpt2")
    tokens = tokens_for(model, SEQ)
    edge = lambda *ends, **more: jc.edge(model, tokens, *map(at, ends), **more)
    into, attends, out_of = (
        edge(Kind.RESID_PRE, Kind.LN1_NORMALIZED),
        edge(Kind.LN1_NORMALIZED, Kind.ATTN_OUT),
        edge(Kind.ATTN_OUT, Kind.MLP_OUT, frozen=[at(Kind.LN2_SCALE)]),
    )
    product = out_of @ attends @ into
    assert jc.select(product) == "structured"
    left, right = direction((len(LEFT_POS), 16)), direction((len(RIGHT_POS), 16), 1)
    factors = [J.as_matrix() for J in (out_of, attends, into)]
    matrix = np.tensordot(np.tensordot(factors[0], factors[1], 2), factors[2], 2)
    image = np.einsum("tdke,ke->tkd", matrix[:, :, np.asarray(RIGHT_POS)], right)[np.asarray(LEFT_POS)]
    with one_by_one():
        got = product.contract(left, LEFT_POS, right, RIGHT_POS)
        transposed = product.T.contract(right, RIGHT_POS, left, LEFT_POS)
    assert_close(got, np.einsum("mkd,md->mk", image, left))
    assert_close(transposed, got.T)
    twice = edge(Kind.RESID_PRE, Kind.RESID_POST) @ jc.edge(model, tokens, Site(0, Kind.RESID_PRE), at(Kind.RESID_PRE))
    assert jc.select(twice) == "autodiff"


def test_dictionaries_between_the_factors_of_a_product():
    """Latents in the middle: the sum over them is made by carrying items through the dictionary."""
    model = model_named("gpt2")
    tokens = tokens_for(model, SEQ)
    pre, middle, post = at(Kind.RESID_PRE), at(Kind.ATTN_OUT), at(Kind.RESID_POST)
    saes = {
        site: make_sae(key, model.d_model, site)
        for site, key in zip((pre, middle), jax.random.split(jax.random.key(2)), strict=True)
    }
    product = jc.edge(model, tokens, middle.acts, post, saes=saes) @ jc.edge(
        model, tokens, pre.acts, middle.acts, saes=saes
    )
    assert jc.select(product) == "structured"
    autodiff = jc.edge(model, tokens, middle.acts, post, saes=saes, engine="autodiff") @ jc.edge(
        model, tokens, pre.acts, middle.acts, saes=saes, engine="autodiff"
    )
    left, right = direction((len(LEFT_POS), 16)), direction((len(RIGHT_POS), 20), 1)
    want = np.stack([autodiff.mv(jnp.zeros((SEQ, 20)).at[p].set(v)) for p, v in zip(RIGHT_POS, right, strict=True)])
    want = np.einsum("kmd,md->mk", want[:, np.asarray(LEFT_POS)], left)
    assert_close(product.contract(left, LEFT_POS, right, RIGHT_POS), want)
    assert_close(autodiff.contract(left, LEFT_POS, right, RIGHT_POS), want)


@pytest.fixture(scope="module")
def block():
    """An edge through a block, and its matrix by autodiff."""
    model = make_model(jax.random.key(5), windows=(None, 3), architecture="gpt_neo")
    ends = model, tokens_for(model, 9), at(Kind.RESID_PRE), at(Kind.RESID_POST)
    return jc.edge(*ends, engine="structured"), np.asarray(jc.edge(*ends, engine="autodiff").as_matrix())


def bilinear(matrix, left, left_pos, right, right_pos):
    return np.einsum("mi,mikj,kj->mk", left, matrix[np.asarray(left_pos)][:, :, np.asarray(right_pos)], right)


@pytest.mark.parametrize("budget", [1, 20_000, 2**29])
def test_any_budget_gives_the_same(block, budget):
    """Sizes that divide no block, positions at random, many blocks and one, columns kept and made anew."""
    J, matrix = block
    rng = np.random.default_rng(3)
    left, right = direction((37, 16)), direction((45, 16), 1)
    left_pos, right_pos = jnp.asarray(rng.integers(0, 9, 37)), jnp.asarray(rng.integers(0, 9, 45))
    got = J.contract(left, left_pos, right, right_pos, budget=budget)
    assert_close(got, bilinear(matrix, left, left_pos, right, right_pos))
    if budget == 20_000:  # the same shapes run the same program
        for last in (jnp.full(37, 8), jnp.zeros(37, int), jnp.arange(37) % 2 * 8):
            got = J.contract(left, last, right, right_pos, budget=budget)
            assert_close(got, bilinear(matrix, left, last, right, right_pos))
        got = J.contract(left, jnp.full(37, -1), right, jnp.full(45, 8), budget=budget)
        assert_close(got, bilinear(matrix, left, jnp.full(37, 8), right, jnp.full(45, 8)))
        # Nothing comes from later positions, nor from further back than the window.
        assert not np.asarray(J.contract(left, jnp.full(37, 3), right, jnp.arange(45) % 5 + 4, budget=budget)).any()
        assert not np.asarray(J.contract(left, jnp.full(37, 8), right, jnp.arange(45) % 6, budget=budget)).any()


@pytest.mark.parametrize("asked", [True, False])
def test_columns_are_kept_with_what_is_asked_of_them_or_with_their_keys(block, asked):
    """In small blocks; positions that many items share and that none has."""
    J, matrix = block
    sizes = contract.Sizes(block=8, tiles=4, near=2, width=2, spread=False, kept=True, asked=asked)
    left, right = direction((37, 16)), direction((45, 16), 1)
    left_pos, right_pos = jnp.arange(37) ** 2 % 7 + 1, jnp.where(jnp.arange(45) < 25, 3, jnp.arange(45) % 9)
    at_positions = left, left_pos.astype(jnp.int32), right, right_pos.astype(jnp.int32)
    got = contract.contract_block(J.product.segments[0], *at_positions, sizes=sizes)
    assert_close(got, bilinear(matrix, left, left_pos, right, right_pos))


@pytest.mark.parametrize(
    ("family", "source", "frozen"),
    [
        ({}, Kind.RESID_PRE, None),
        ({}, Kind.RESID_PRE, Kind.PATTERN),
        ({}, Kind.RESID_PRE, Kind.Z),
        ({}, Kind.LN1_NORMALIZED, Kind.V),
        ({}, Kind.LN1_NORMALIZED, Kind.K),
        (RMS_GATED, Kind.RESID_PRE, Kind.PATTERN),
        (RMS_GATED, Kind.RESID_PRE, None),
    ],
)
def test_few_rows_are_spread_to_many_columns(family, source, frozen):
    """Where rows are few they go through attention and not the columns, unless keys are made by position; the budget is too small for all
    columns at once.
    """
    model = make_model(jax.random.key(5), windows=(None, 3), architecture="gpt_neo", **family)
    held = () if frozen is None else {at(frozen)}
    ends = model, tokens_for(model, 9), at(source), at(Kind.RESID_POST)
    J = jc.edge(*ends, engine="structured", frozen=held)
    matrix = np.asarray(jc.edge(*ends, engine="autodiff", frozen=held).as_matrix())
    rng = np.random.default_rng(3)
    left, right = direction((4, 16)), direction((900, 16), 1)
    left_pos, right_pos = jnp.asarray([8, 2, 8, 5]), jnp.asarray(rng.integers(0, 9, 900))
    want = bilinear(matrix, left, left_pos, right, right_pos)
    for budget in (20_000, 2**29):
        sizes = contract.sizes_for(J.product.segments[0], 4, 900, budget)
        assert sizes.spread == (not family or frozen is not None)
        assert sizes.tiles * sizes.width < 900
        assert_close(J.contract(left, left_pos, right, right_pos, budget=budget), want)
    got = J.contract(left, jnp.full(4, 2), right, right_pos, budget=20_000)
    assert not got[:, right_pos > 2].any()  # nothing comes from later positions
    assert got.any()


@pytest.mark.parametrize(("m", "k"), [(1, 1), (1, 20)])
def test_few_items(block, m, k):
    J, matrix = block
    left, right, left_pos, right_pos = direction((m, 16)), direction((k, 16), 1), jnp.full(m, 7), jnp.full(k, 6)
    with one_by_one():
        got = J.contract(left, left_pos, right, right_pos)
    assert_close(got, bilinear(matrix, left, left_pos, right, right_pos))


def test_padding_is_not_attended_to():
    model = model_named("gpt2")
    tokens, mask = tokens_for(model, SEQ), jnp.array([False, False, True, True, True])
    ends = at(Kind.RESID_PRE), at(Kind.RESID_POST)
    J = jc.edge(model, tokens, *ends, mask=mask, engine="structured")

    def value(step):
        return jc.run(model, tokens, edits={ends[0]: jc.Add(step)}, record=[ends[1]], mask=mask)[1][ends[1]]

    matrix = np.asarray(J.as_matrix())
    assert_close(matrix, by_numpy(jax.jacfwd(value))(jnp.zeros((SEQ, 16))))
    assert not matrix[2:, :, :2].any()
    assert np.abs(jc.edge(model, tokens, *ends).as_matrix()[2:, :, :2]).max() > 1e-3


def test_where_closed_forms_are():
    """`select` says so wherever they are promised, and where they are not `engine` decides."""
    model = model_named("gpt2")
    tokens = tokens_for(model, SEQ)
    kinds = (Kind.RESID_PRE, Kind.RESID_MID, Kind.ATTN_OUT, Kind.MLP_OUT, Kind.RESID_POST)
    saes = {at(kind): make_sae(jax.random.key(kind), model.d_model, at(kind)) for kind in kinds}
    for source, target in PROMISED:
        parts = lambda kind: (at(kind), at(kind).acts, at(kind).error)
        for ends in [(s, t) for s in parts(source) for t in parts(target)]:
            assert jc.select(jc.edge(model, tokens, *ends, saes=saes)) == "structured"
            assert jc.select(jc.edge(model, tokens, *ends, saes=saes).T) == "structured"
            assert jc.select(jc.edge(model, tokens, *ends, saes=saes, engine="autodiff")) == "autodiff"
    for ends in (
        ("hook_embed", "logits"),
        (at(Kind.RESID_PRE), at(Kind.PATTERN)),
        (at(Kind.LN1_SCALE), at(Kind.Z)),
    ):
        assert jc.select(jc.edge(model, tokens, *ends)) == "autodiff"
        with pytest.raises(ValueError, match="there is no closed form from"):
            jc.edge(model, tokens, *ends, engine="structured")
    between_blocks = jc.edge(model, tokens, Site(0, Kind.ATTN_OUT), at(Kind.ATTN_OUT), engine="structured")
    assert [jc.select(between_blocks, of) for of in ("matrix", "contract")] == ["autodiff", "structured"]


@pytest.fixture(scope="module")
def deep():
    model = make_model(jax.random.key(6), layers=3, d_model=8, d_head=3, d_mlp=10, windows=(None, 3, None))
    return model, tokens_for(model, 7), Site(0, Kind.RESID_PRE), Site(2, Kind.RESID_POST)


def test_several_blocks_are_in_closed_form_where_that_is_worth_compiling(deep, monkeypatch):
    """Of a small model autodiff is done before the chain's programs are compiled; whatever `select` says is what runs, part by part too."""
    auto, insists, without = (jc.edge(*deep, engine=engine) for engine in ("auto", "structured", "autodiff"))
    assert [jc.select(J) for J in (auto, insists, without)] == ["autodiff", "structured", "autodiff"]
    assert [jc.select(J, "contract") for J in (auto, insists, without)] == ["autodiff", "structured", "autodiff"]
    monkeypatch.setattr(_engine, "_while_compiling", lambda: 21 * 56 * 7 * 8**2)
    assert jc.select(auto, "contract") == "autodiff"
    monkeypatch.setattr(_engine, "_while_compiling", lambda: 21 * 56 * 7 * 8**2 - 1)
    assert jc.select(auto, "contract") == "structured"
    assert jc.select(auto.restricted(target_pos=[1]), "contract") == "autodiff"  # for fewer items
    monkeypatch.setattr(_engine, "_while_compiling", lambda: 19 * 7 * 7 * 8**3 * 3 - 1)
    assert (jc.select(auto), jc.select(auto, "matrix"), jc.select(without)) == ("structured", "structured", "autodiff")
    assert jc.select(auto.restricted(target_pos=[1])) == "autodiff"  # which saves less
    made = []
    monkeypatch.setattr(_whole, "chain_matrix", lambda *given, **more: made.append(1) or chain_matrix(*given, **more))
    assert_close(auto.as_matrix(), without.as_matrix())
    assert made == [1]
    with pytest.raises(ValueError, match=r"select: of must be 'any' or 'matrix' or 'contract', got 'all'"):
        jc.select(auto, "all")


def test_parts_on_disk_go_by_the_route_of_the_whole(deep, monkeypatch, tmp_path):
    """One position at a time saves less than all of them, and is made by the chain all the same, which the certificate says."""
    monkeypatch.setattr(_engine, "_while_compiling", lambda: 19 * 7 * 7 * 8**3 * 3 - 1)
    made = []
    monkeypatch.setattr(_whole, "chain_matrix", lambda *given, **more: made.append(1) or chain_matrix(*given, **more))
    J = jc.edge(*deep)
    certificate = jc.save_jacobian(J, tmp_path / "j.safetensors", budget=1)
    assert (len(made), certificate.engine) == (7, "structured (matrix by chain)")
    assert_close(jc.load_jacobian(tmp_path / "j.safetensors").matrix, J.as_matrix())


CHAINS = {
    "norms, queries, keys": (
        Site(0, Kind.K),
        Site(0, Kind.LN1_SCALE),
        Site(1, Kind.Q),
        Site(1, Kind.LN2_SCALE),
        Site(2, Kind.V),
    ),
    "outputs": (
        Site(0, Kind.RESULT),
        Site(1, Kind.PATTERN),
        Site(1, Kind.MLP_OUT),
        Site(2, Kind.LN1_NORMALIZED),
        Site(2, Kind.MLP_POST),
    ),
}


@pytest.mark.parametrize("held", CHAINS)
def test_a_chain_of_blocks(deep, held):
    """The matrix through several blocks, block by block in closed form, each with its own held sites, against autodiff."""
    frozen = CHAINS[held]
    want = np.asarray(jc.edge(*deep, frozen=frozen, engine="autodiff").as_matrix())
    J = jc.edge(*deep, frozen=frozen, engine="structured")
    assert jc.select(J) == "structured"
    matrix = J.as_matrix()
    assert_close(matrix, want)
    assert not np.abs(matrix).max(axis=(1, 3))[np.triu_indices(7, 1)].any()


SPANS = {
    "two blocks": (Site(0, Kind.RESID_PRE), Site(1, Kind.RESID_POST), []),
    "three blocks, held sites": (Site(0, Kind.RESID_PRE), Site(2, Kind.RESID_POST), CHAINS["norms, queries, keys"]),
    "outputs held": (Site(0, Kind.RESID_PRE), Site(2, Kind.RESID_POST), CHAINS["outputs"]),
    "from keys": (Site(0, Kind.K), Site(2, Kind.MLP_POST), []),
    "what is local at the ends": (Site(0, Kind.MLP_OUT), Site(2, Kind.RESID_MID), []),
    "from a norm to attention": (Site(0, Kind.LN1_NORMALIZED), Site(2, Kind.Z), []),
}


SHAPES, BUDGETS = [(5, 40), (40, 5), (60, 70)], [2**29, 20_000]
# Every span with every shape, and each of both with either budget.
FORMS = [(span, *shape, BUDGETS[(i + j) % 2]) for i, span in enumerate(SPANS) for j, shape in enumerate(SHAPES)] + [
    ("three blocks, held sites", *shape, BUDGETS[j % 2]) for j, shape in enumerate(SHAPES)
]


@pytest.mark.parametrize(("span", "m", "k", "budget"), FORMS)
def test_forms_of_several_blocks(deep, span, m, k, budget):
    """In closed form, rows pulled or columns pushed, in one window or in many, against autodiff of the whole matrix."""
    source, target, frozen = SPANS[span]
    J = jc.edge(*deep[:2], source, target, frozen=frozen, engine="structured")
    assert jc.select(J, "contract") == "structured"
    matrix = np.asarray(jc.edge(*deep[:2], source, target, frozen=frozen, engine="autodiff").as_matrix())
    matrix = matrix.reshape(7, -1, 7, math.prod(J.source_shape[1:]))
    left, right = direction((m, matrix.shape[1])), direction((k, matrix.shape[3]), 1)
    left_pos, right_pos = jnp.arange(m) * 3 % 7, jnp.arange(k) * 5 % 6
    got = J.contract(left, left_pos, right, right_pos, budget=budget)
    assert_close(got, bilinear(matrix, left, left_pos, right, right_pos))


def test_forms_of_several_blocks_between_latents(deep):
    """Dictionaries at the ends are folded into the items, also as latents by number; and a product of operators is one chain."""
    model, tokens, source, target = deep
    saes = {site: make_sae(jax.random.key(i), 8, site) for i, site in enumerate((source, target))}
    J = jc.edge(model, tokens, source.acts, target.acts, saes=saes, engine="structured")
    want = jc.edge(model, tokens, source.acts, target.acts, saes=saes, engine="autodiff")
    units, positions = jnp.arange(20, dtype=jnp.int32), jnp.arange(20) % 7
    items = units, positions, units, positions
    assert_close(J.contract(*items), want.contract(*items))
    middle = Site(1, Kind.RESID_MID)
    legs = (
        jc.edge(model, tokens, middle, target, engine="structured"),
        jc.edge(model, tokens, source, middle, engine="structured"),
    )
    both, left, right = legs[0] @ legs[1], direction((20, 8)), direction((30, 8), 1)
    assert jc.select(both, "contract") == "structured"
    vectors = left, positions, right, jnp.arange(30) % 7
    assert_close(both.contract(*vectors), jc.edge(*deep, engine="autodiff").contract(*vectors))


def test_forms_of_several_blocks_under_jit_are_swept(deep):
    """Where positions are not known the windows are not either."""
    J, left, right = jc.edge(*deep, engine="structured"), direction((9, 8)), direction((4, 8), 1)
    positions = jnp.arange(9) % 7, jnp.arange(4)
    want = J.contract(left, positions[0], right, positions[1])
    assert_close(jax.jit(lambda J, *at: J.contract(left, at[0], right, at[1]))(J, *positions), want)
    assert_close(jax.jit(lambda *at: J.contract(left, at[0], right, at[1]))(*positions), want)


FAMILIES = ["neox", "llama", "qwen3", "olmo2", "gemma2", "gemma3"]


@pytest.mark.parametrize("name", ["parallel", "attention-only", "no-norm-relu-bidirectional", *FAMILIES])
def test_forms_of_several_blocks_of_other_models(name):
    model = model_named(name)
    ends = model, tokens_for(model, SEQ), Site(0, Kind.RESID_PRE), Site(1, Kind.RESID_POST)
    left, right, positions = direction((12, model.d_model)), direction((9, model.d_model), 1), jnp.arange(12) % SEQ
    J, matrix = jc.edge(*ends, engine="structured"), np.asarray(jc.edge(*ends, engine="autodiff").as_matrix())
    pulled, pushed = (left, positions, right, positions[:9]), (left[:5], positions[:5], right[:3], positions[:3])
    for items in (pulled, pushed):
        assert_close(J.contract(*items), bilinear(matrix, *items))
    assert_close(J.as_matrix(), matrix)


def test_a_chain_of_blocks_at_some_positions_and_in_little_memory(deep):
    J = jc.edge(*deep, engine="structured")
    want = np.asarray(jc.edge(*deep, engine="autodiff").as_matrix())
    few = jc.edge(*deep, source_pos=[5, 2], target_pos=[-1, 3, 0], engine="structured")
    assert_close(few.as_matrix(), want[[6, 3, 0]][:, :, [5, 2]])
    # No matrices of the MLPs are kept, and few rows are pulled back at a time.
    assert_close(chain_matrix(J.product.segments[0], np.array([4, 1, 5]), budget=2000), want[[4, 1, 5]])
    assert_close(chain_matrix(J.product.segments[0], np.arange(7), groups=3), want)


@pytest.mark.parametrize("kept", [True, False])
def test_rows_that_end_early_are_cut(deep, kept):
    """What is 0 from a position on is pulled back through a block without the positions after it, and other rows are left alone."""
    segment = steps_of(jc.edge(*deep, frozen=[Site(1, Kind.LN1_SCALE)]).product.segments)[1]
    mlps, rows, reached = mlp_matrices(segment) if kept else None, direction((3, 8, 7, 8)), 4
    rows = rows.at[:, :, reached:].set(0)
    whole = np.asarray(pull_block(segment, rows + 0, mlps, 0, count=3, reached=7))
    assert np.abs(whole[:, :, :reached]).min(axis=(0, 1, 3)).min() > 0
    assert not whole[:, :, reached:].any()
    one = np.asarray(pull_block(segment, rows + 0, mlps, 1, count=1, reached=reached))
    assert_close(one[1], whole[1])
    np.testing.assert_array_equal(one[::2], rows[::2])
    want = jc.edge(*deep[:2], Site(1, Kind.RESID_PRE), Site(1, Kind.RESID_POST), frozen=[Site(1, Kind.LN1_SCALE)])
    assert_close(whole.reshape(-1, 7, 8), want.rows(rows.reshape(-1, 7, 8)))


@pytest.mark.parametrize("target", [Kind.RESID_POST, Kind.RESID_MID])
def test_the_matrix_of_a_block_at_some_positions(deep, target):
    """In any order, also where the last tiles overlap those before; a block that mixes positions and one that does not."""
    model, tokens, *_ = deep
    ends = (
        (Site(1, target), Site(1, Kind.MLP_OUT))
        if target == Kind.RESID_MID
        else (Site(1, Kind.RESID_PRE), Site(1, target))
    )
    want = np.asarray(jc.edge(model, tokens, *ends, engine="autodiff").as_matrix())
    J = jc.edge(model, tokens, *ends, source_pos=[6, 0, 4, 2], target_pos=[1, 6, 4])
    assert_close(J.as_matrix(), want[[1, 6, 4]][:, :, [6, 0, 4, 2]])
    tiles = Sizes(rows=5, coordinates=3, keys=3)
    segment, positions = jc.edge(model, tokens, *ends).product.segments[0], jnp.arange(7, dtype=jnp.int32)
    assert_close(_matrix(segment, positions, positions, sizes=tiles), want)


def test_a_parallel_chain():
    model = make_model(jax.random.key(7), layers=3, d_model=8, d_head=3, d_mlp=10, parallel=True)
    ends = model, tokens_for(model, 5), Site(0, Kind.RESID_PRE), Site(2, Kind.RESID_POST)
    want = np.asarray(jc.edge(*ends, engine="autodiff").as_matrix())
    J = jc.edge(*ends, engine="structured")
    assert_close(J.as_matrix(), want)
    assert_close(chain_matrix(J.product.segments[0], np.arange(5), budget=2000), want)


def test_a_chain_without_causality():
    model = model_named("no-norm-relu-bidirectional")
    ends = model, tokens_for(model, 4), Site(0, Kind.RESID_PRE), Site(1, Kind.RESID_POST)
    want = np.asarray(jc.edge(*ends, engine="autodiff").as_matrix())
    assert np.abs(want).max(axis=(1, 3)).min() > 1e-6
    assert_close(jc.edge(*ends, engine="structured").as_matrix(), want)


RMS_CAPPED = RMS_GATED | {"qk_norm": "head", "behind": True, "cap": 3.0}


@pytest.mark.parametrize(("family", "platform"), [({}, "cpu"), (RMS_CAPPED, "cpu"), ({}, "cuda")])
@pytest.mark.parametrize("budget", [2**21, 2**24])
def test_memory_is_the_result_and_the_budget(budget, family, platform):
    """What the compiled programs hold beside arguments and results, by XLA's own account; with an accelerator's sizes, too."""
    with for_platform(platform):
        check_memory(budget, family)


def check_memory(budget, family):
    model = make_model(jax.random.key(0), d_model=32, d_head=8, d_mlp=64, n_ctx=48, **{"heads": 4} | family)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), model)
    segment = jc.edge(single, tokens_for(model, 48), at(Kind.RESID_PRE), at(Kind.RESID_POST)).product.segments[0]
    items = lambda n: jax.ShapeDtypeStruct((n, 32), jnp.float32)
    positions = lambda n: jax.ShapeDtypeStruct((n,), jnp.int32)
    held = lambda lowered: lowered.compile().memory_analysis().temp_size_in_bytes

    m, k = 512, 2048
    sizes = contract.sizes_for(segment, m, k, budget)
    columns = jax.eval_shape(lambda at: tile(at, 48, sizes.width, sizes.tiles), positions(k))
    contraction = (segment, items(m), positions(m), positions(m), items(k), positions(k), columns)
    assert 0 < held(contract._contract_sorted.lower(*contraction, sizes=sizes)) < budget
    block = jax.jit(ft.partial(block_matrix, budget=budget)).lower(segment, positions(48), positions(48))
    assert 0 < held(block) < budget
    matrix, mlps = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(48, 32, 48, 32), (48, 32, 32)])
    chunk = chunk_of_rows(segment, 48 * 32, 48, budget, divides=True)
    assert 0 < held(pull_chunks.lower(segment, matrix, mlps, 0, count=48, reached=48, chunk=chunk)) < budget


@needs_x64
@pytest.mark.parametrize("name", ["gpt2", "qwen3", "gemma2"])
def test_single_precision(name):
    model = model_named(name)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), model)
    ends = tokens_for(model, SEQ), at(Kind.RESID_PRE), at(Kind.RESID_POST)
    items = direction((3, 16))
    got, want = (
        jc.edge(m, *ends, engine="structured").contract(items, LEFT_POS, items, LEFT_POS) for m in (single, model)
    )
    assert got.dtype == jnp.float32
    assert_close(got, np.asarray(want), tolerance=1e-5)

"""Laws of detached Jacobians: with patterns, scales and gates held a model is affine in what is embedded, and J gives its values."""

import dataclasses
import functools as ft
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.graph import first_curved
from jaxcirc.parts import MLP

from ..helpers import assert_close, by_numpy, make_model, model_named, MODELS, needs_x64, tokens_for
from ..odd_parts import ODD, odd_model


pytestmark = needs_x64
SEQ = 6
EXACT = 1e-12
EMBED, POS, LOGITS = (Site(None, kind) for kind in (Kind.EMBED, Kind.POS_EMBED, Kind.LOGITS))
PRODUCTS = (Kind.ATTN_SCORES,)
# Models whose odd parts have sites for all that is not linear in them; the others are refused.
AFFINE = {
    "RMS norm",
    "capped and scaled score",
    "MLP that mixes positions",
    "class derived from Block",
}
EVERY = {name: ft.partial(model_named, name) for name in MODELS} | {
    name: ft.partial(odd_model, name) for name in sorted(AFFINE)
}


@ft.partial(by_numpy, static_argnames=("sites",))
def record(model, tokens, sites):
    return jc.run(model, tokens, record=sites)[1]


@ft.partial(by_numpy, static_argnames=("sites",))
def held_run(model, tokens, clean, scale, sites):
    """The values at `sites` where `clean` is held and the embeddings are `scale` times theirs."""
    moved = dict.fromkeys([site for site in (EMBED, POS) if site in jc.sites(model)], jc.Apply(lambda x: scale * x))
    held = {site: jc.Replace(value) for site, value in clean.items()}
    return jc.run(model, tokens, edits={**held, **moved}, record=sites)[1]


@pytest.fixture(scope="module", params=EVERY)
def case(request):
    """A model, tokens, what is held, and the value at every site; and which model it is."""
    model = EVERY[request.param]()
    tokens = tokens_for(model, SEQ)
    return model, tokens, jc.frozen.detached(model), record(model, tokens, jc.sites(model)), request.param


def later_sites(model, source, held):
    """Sites behind the source whose values are affine in its."""
    free = [site for site in jc.sites(model) if site > source and site not in held and site.kind not in PRODUCTS]
    return [site for site in free if site.layer is None or site.layer >= (source.layer or 0)]


def test_the_held_model_is_affine(case):
    """The value at every site but products, where the embeddings are taken twice, half and not at all, lies on one line."""
    model, tokens, held, cache, _ = case
    clean = {site: cache[site] for site in held}
    sites = tuple(later_sites(model, POS, held))
    at = {scale: held_run(model, tokens, clean, jnp.asarray(scale), sites) for scale in (0.0, 0.5, 1.0, 2.0)}
    assert LOGITS in sites
    for site in sites:
        assert_close(at[1.0][site], cache[site], tolerance=EXACT)
        for scale in (0.5, 2.0):
            line = at[0.0][site] + scale * (at[1.0][site] - at[0.0][site])
            assert_close(at[scale][site], line, tolerance=2 * EXACT)


def test_logits_are_a_sum_over_positions_and_biases(case):
    """logits = sum over positions of J times what is embedded there, tokens and positions, plus what biases make."""
    model, tokens, held, cache, _ = case
    clean = {site: cache[site] for site in held}
    biases = held_run(model, tokens, clean, jnp.asarray(0.0), (LOGITS,))[LOGITS]
    total = np.array(biases)
    for site in (EMBED, POS):
        if site in cache:
            J = jc.edge(model, tokens, site, LOGITS, frozen=held)
            alone = np.zeros((SEQ, *J.source_shape))  # one position at a time
            alone[np.arange(SEQ), np.arange(SEQ)] = cache[site]
            total += np.asarray(J.cols(jnp.asarray(alone))).sum(0)
    assert_close(total, cache[LOGITS], tolerance=EXACT)
    found = jc.jacobian.intercept(model, tokens, Site(0, Kind.RESID_PRE), LOGITS, frozen=held)
    assert np.abs(np.asarray(found) - biases).max() <= EXACT * np.abs(cache[LOGITS]).max()


def test_any_later_value_is_a_jacobian_times_the_residual_stream(case):
    """From the residual stream of each layer to some sites behind it, to every one in some model; what is left biases behind it make."""
    model, tokens, held, cache, name = case
    for layer in range(model.n_layers):
        source = Site(layer, Kind.RESID_PRE)
        some = later_sites(model, source, held)[list(EVERY).index(name) % 4 :: 4]
        edges = {site: jc.edge(model, tokens, source, site, frozen=held) for site in some}
        images = jax.jit(lambda edges, x: {site: J.mv(x) for site, J in edges.items()})(edges, cache[source])

        @jax.jit
        def without(model, tokens, clean, source=source, some=tuple(some)):
            held = {site: jc.Replace(value) for site, value in clean.items()}
            return jc.run(model, tokens, edits={**held, source: jc.Apply(jnp.zeros_like)}, record=some)[1]

        rest = without(model, tokens, {site: cache[site] for site in held})
        for site in some:
            assert_close(images[site] + rest[site], cache[site], tolerance=EXACT)
        assert len(some) >= 2


@pytest.mark.parametrize("name", ["llama", "gemma2", "no-norm-relu-bidirectional", "lnpre"])
def test_without_biases_the_jacobian_gives_the_logits_alone(name):
    model = model_named(name)
    without = lambda path, x: jnp.zeros_like(x) if str(getattr(path[-1], "name", "")).startswith("b") else x
    model = jax.tree_util.tree_map_with_path(without, model)
    assert not np.asarray(model.blocks[0].mlp.b_out).any()
    tokens = tokens_for(model, SEQ)
    held = jc.frozen.detached(model)
    source = Site(0, Kind.RESID_PRE)
    J = jc.edge(model, tokens, source, LOGITS, frozen=held)
    logits, cache = jc.run(model, tokens, record=[source])
    assert_close(J.mv(cache[source]), logits, tolerance=EXACT)
    left = jc.jacobian.intercept(model, tokens, source, LOGITS, frozen=held)
    assert np.abs(np.asarray(left)).max() < EXACT


def test_of_rectifiers_without_norms_it_is_the_ordinary_one_with_patterns_held():
    model = model_named("no-norm-relu-bidirectional")
    tokens = tokens_for(model, SEQ)
    ordinary = jc.edge(model, tokens, EMBED, LOGITS, frozen=jc.frozen.patterns(model)).as_matrix()
    detached = jc.edge(model, tokens, EMBED, LOGITS, frozen=jc.frozen.detached(model)).as_matrix()
    assert_close(detached, ordinary, tolerance=EXACT)
    curved = dataclasses.replace(model, blocks=model_named("gpt2").blocks)  # and of no other
    apart = [
        jc.edge(curved, tokens, EMBED, LOGITS, frozen=held(curved)).as_matrix()
        for held in (jc.frozen.patterns, jc.frozen.detached)
    ]
    assert np.abs(apart[0] - apart[1]).max() > 1e-2 * np.abs(apart[0]).max()


def test_through_every_path_of_a_block():
    """The other verbs that take `frozen`: paths through nothing, attention and the MLP sum to the block."""
    model = model_named("gemma2")
    tokens, held = tokens_for(model, SEQ), jc.frozen.detached(model)
    paths = jc.block_paths(model, tokens, 1, frozen=held)
    ends = Site(1, Kind.RESID_PRE), Site(1, Kind.RESID_POST)
    total = jc.edge(model, tokens, *ends, frozen=held).as_matrix()
    assert_close(sum(J.as_matrix() for J in paths.values()), total, tolerance=EXACT)
    parts = jc.mediated_edges(model, {}, tokens, ends[0], Site(1, Kind.MLP_OUT), ends[1], frozen=held)
    assert_close(parts.direct.as_matrix() + parts.mediated.as_matrix(), total, tolerance=EXACT)


@pytest.mark.parametrize("name", sorted(set(ODD) - AFFINE))
def test_a_model_that_is_not_affine_then_is_refused(name):
    """It says where, and the values are indeed on no line."""
    model = odd_model(name)
    tokens = tokens_for(model, SEQ)
    with pytest.raises(
        ValueError, match=r"frozen\.detached: .* is not affine in what is embedded.*`blocks\.0\."
    ) as error:
        jc.frozen.detached(model)
    site = Site.parse(str(error.value).split("`")[1])
    held = jc.frozen.layer_norms(model) | jc.frozen.patterns(model) | jc.frozen.gates(model)
    cache = record(model, tokens, (*held, site))
    clean = {each: cache[each] for each in held}
    none, once, twice = (held_run(model, tokens, clean, jnp.asarray(scale), (site,))[site] for scale in (0.0, 1.0, 2.0))
    assert np.abs(twice - 2 * once + none).max() > 1e-3 * np.abs(once).max()


JUMPS = {
    "sign": jnp.sign,
    "rounding": lambda x: jnp.round(4 * x),
    "step": lambda x: jnp.where(x > 0, 1.0, -1.0).astype(x.dtype),
    "largest": lambda x: jax.nn.one_hot(jnp.argmax(x, axis=-1), x.shape[-1], dtype=x.dtype),
    "derivative that is not taken": lambda x: jax.lax.stop_gradient(x) * x,
    "derivative of another function": lambda x: x + jax.lax.stop_gradient(jnp.sign(x) - x),
}


@pytest.mark.parametrize("name", JUMPS)
def test_a_model_that_jumps_is_refused(name):
    """Of a jump its derivative does not tell."""
    model = make_model(jax.random.key(9))
    blocks = [dataclasses.replace(block, mlp=Jumping(block.mlp, JUMPS[name])) for block in model.blocks]
    odd = dataclasses.replace(model, blocks=tuple(blocks))
    with pytest.raises(
        ValueError, match=r"is not affine in what is embedded.*`blocks\.0\.hook_mlp_out` still bends or jumps"
    ):
        jc.frozen.detached(odd)
    assert jc.frozen.detached(model)


def test_a_later_block_that_jumps_is_named():
    """Blocks that are alike are looked at once; the one that is not keeps its own number."""
    model = make_model(jax.random.key(9), layers=4)
    block = dataclasses.replace(model.blocks[3], mlp=Jumping(model.blocks[3].mlp, JUMPS["sign"]))
    odd = dataclasses.replace(model, blocks=(*model.blocks[:3], block))
    with pytest.raises(ValueError, match=r"is not affine in what is embedded.*`blocks\.3\.hook_mlp_out` still"):
        jc.frozen.detached(odd)


def test_a_later_block_of_which_less_is_held_is_named():
    model = make_model(jax.random.key(9), layers=4)
    held = jc.frozen.detached(model)
    assert first_curved(model, held) is None
    for kind in (Kind.PATTERN, Kind.LN2_SCALE):
        assert Site(2, kind) in held
        site = first_curved(model, held - {Site(2, kind), Site(3, kind)})
        assert site.layer == 2, site
    assert first_curved(model, held - {Site(None, Kind.FINAL_SCALE)}).layer is None


class Jumping(eqx.Module):
    """An MLP beside which a function of what it reads is added."""

    mlp: MLP
    function: Callable = eqx.field(static=True)

    def __call__(self, x, tap):
        return self.mlp(x, tap) + self.function(x)


def test_the_rest_of_a_tangent_has_more_than_biases():
    """With less held it is of the tangent; at some positions of the target, with a mask, and from latents."""
    model = make_model(jax.random.key(9))
    tokens, mask = tokens_for(model, SEQ), jnp.arange(SEQ) > 0
    ends = Site(0, Kind.RESID_PRE), Site(1, Kind.RESID_POST)
    saes = {ends[0]: jc.saes.Identity(16, unit=jnp.ones((), model.dtype))}
    for more in ({}, {"mask": mask}, {"frozen": jc.frozen.patterns(model)}):
        J = jc.edge(model, tokens, *ends, target_pos=[-1, 2], **more)
        _, cache = jc.run(model, tokens, record=ends, mask=more.get("mask"))
        want = cache[ends[1]][jnp.asarray([-1, 2])] - J.mv(cache[ends[0]])
        found = jc.jacobian.intercept(model, tokens, *ends, target_pos=[-1, 2], **more)
        assert_close(found, want)
        latents = jc.jacobian.intercept(model, tokens, ends[0].acts, ends[1], saes=saes, target_pos=[-1, 2], **more)
        assert_close(latents, want)

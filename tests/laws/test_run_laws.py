"""Laws of one run, over all models, sites and edits. A sweep is one `vmap`, so that each model compiles once a law."""

import functools as ft
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.parts import relu

from ..helpers import (
    as_dtype,
    assert_close,
    by_numpy,
    Chosen,
    logits_by_embedding,
    make_model,
    model_named,
    MODELS,
    needs_x64,
    NEUTRAL_EDITS,
    one_at_a_time,
    tokens_for,
)


EMBED, LOGITS = Site(None, Kind.EMBED), Site(None, Kind.LOGITS)


@ft.partial(by_numpy, static_argnames=("sites",))
def record_batch(model, tokens, sites):
    return jax.vmap(lambda tokens: jc.run(model, tokens, record=sites)[1])(tokens)


@pytest.fixture(scope="module", params=MODELS)
def clean(request):
    """A model of the registry, tokens, its sites, and their values there; and a batch, each row with another token changed and the last
    with none, and the sites' values there."""
    model = model_named(request.param)
    tokens, sites = np.asarray(tokens_for(model)), jc.sites(model)
    changed = np.where(np.eye(len(tokens), dtype=bool), (tokens + 1) % model.d_vocab, tokens)
    batch = jnp.asarray(np.concatenate([changed, tokens[None]]))
    caches = jax.tree.map(np.asarray, record_batch(model, batch, sites))
    return Clean(model, batch[-1], sites, {site: x[-1] for site, x in caches.items()}, batch, caches)


class Clean(NamedTuple):
    model: jc.Transformer
    tokens: jax.Array
    sites: tuple[Site, ...]
    cache: dict[Site, np.ndarray]
    batch: jax.Array
    caches: dict[Site, np.ndarray]


def direction(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(jnp.zeros(()).dtype)


class InTurn(jc.AbstractEdit):
    """One edit after another at one site."""

    edits: tuple[jc.AbstractEdit, ...]

    def __call__(self, x):
        for edit in self.edits:
            x = edit(x)
        return x


def test_edits_that_change_nothing(clean):
    """`Replace(cache[s])`, `Add(0)`, `Blend(0, ·)`, `Blend(1, cache[s])`, `Detach()` at any one site leave the logits as they are."""
    model, tokens, sites, cache, *_ = clean

    def logits(model, tokens, cache, row):
        edits = [tuple(make(cache[site]) for make in NEUTRAL_EDITS.values()) for site in sites]
        return jc.run(model, tokens, edits={s: Chosen(row[i], edits[i]) for i, s in enumerate(sites)})[0]

    rows = one_at_a_time(len(sites), len(NEUTRAL_EDITS))
    got = jax.jit(jax.vmap(logits, in_axes=(None, None, None, 0)))(model, tokens, cache, rows)
    assert got.shape[0] == len(sites) * len(NEUTRAL_EDITS) + 1
    assert_close(got, np.broadcast_to(cache[LOGITS], got.shape))


def test_replace_and_detach_have_one_jacobian(clean):
    """Holding a site by its value or by `stop_gradient` is the same to derivatives: 0 through a cut of the graph, less elsewhere."""
    model, tokens, sites, cache, *_ = clean
    weights = direction(cache[LOGITS].shape)

    def gradient(model, tokens, cache, row):
        def metric(step):
            held = {s: Chosen(row[i], (jc.Replace(cache[s]), jc.Detach())) for i, s in enumerate(sites)}
            edits = held | {EMBED: InTurn((jc.Add(step), held[EMBED]))}
            return jnp.sum(weights * jc.run(model, tokens, edits=edits)[0])

        return jax.grad(metric)(jnp.zeros_like(cache[EMBED]))

    rows = one_at_a_time(len(sites), 2)
    got = np.asarray(jax.jit(jax.vmap(gradient, in_axes=(None, None, None, 0)))(model, tokens, cache, rows))
    replaced, detached, free = got[: len(sites)], got[len(sites) : -1], got[-1]
    assert_close(detached, replaced)
    cuts = (Kind.EMBED, Kind.RESID_PRE, Kind.RESID_MID, Kind.RESID_POST, Kind.FINAL_NORMALIZED, Kind.LOGITS)
    for site, left in zip(sites, detached, strict=True):
        if site.kind in cuts:
            assert not left.any(), f"a derivative passes {site}"
        else:
            assert np.abs(left).max() > 1e-3
            # A rectifier's gate is 0 or 1, and has no derivative to hold.
            constant = site.kind == Kind.MLP_GATE and model.blocks[0].mlp.act is relu
            moves = site.kind != Kind.POS_EMBED and not constant
            assert (np.abs(left - free).max() > 1e-6) == moves, f"nothing is held at {site}"


def test_the_derivative_of_a_blend(clean):
    """At mask 0 it is <value - x, gradient>, the attribution-patching score, at every site at once; masked scores give no NaN."""
    model, tokens, sites, cache, *_ = clean
    weights = direction(cache[LOGITS].shape)
    values = {site: direction(x.shape, seed) for seed, (site, x) in enumerate(cache.items())}

    def metric(moves, model, tokens, values):
        masks, steps = moves
        edits = {site: InTurn((jc.Blend(masks[site], values[site]), jc.Add(steps[site]))) for site in sites}
        return jnp.sum(weights * jc.run(model, tokens, edits=edits)[0])

    moves = ({site: np.zeros((), x.dtype) for site, x in cache.items()}, jax.tree.map(np.zeros_like, cache))
    by_mask, by_step = jax.tree.map(np.asarray, jax.jit(jax.grad(metric))(moves, model, tokens, values))
    cache, values = jax.tree.map(np.asarray, (cache, values))
    for site, gradient in by_step.items():
        assert np.isfinite(gradient).all(), f"the gradient at {site} is not finite"
    there = {site: np.where(np.isfinite(x), values[site] - x, 0) for site, x in cache.items()}
    want = np.array([np.sum(there[site] * by_step[site]) for site in sites])
    assert want.all()
    # All sites together: in float32 the sum at one of them can nearly cancel.
    assert_close(np.array([by_mask[site] for site in sites]), want)
    masked = [site for site in sites if not np.isfinite(cache[site]).all()]
    assert {site.kind for site in masked} == ({Kind.ATTN_SCORES} if model.causal else set())


# What every earlier token reaches.
MIXED = (Kind.FINAL_NORMALIZED, Kind.LOGITS)


def test_nothing_reaches_earlier_positions(clean):
    """Causality, exactly: a token moves no value before it, and the Jacobian of earlier logits by later embeddings is 0."""
    model, tokens, _, _, _, caches = clean
    seq = len(tokens)
    late = np.arange(seq)[None, :] >= np.arange(seq)[:, None]  # [changed position, position of the value]
    for site, values in caches.items():
        if site.kind in (Kind.ATTN_SCORES, Kind.PATTERN):
            values = np.moveaxis(np.where(np.isfinite(values), values, 0), 1, 2)  # [batch q_seq head k_seq]
        moved = np.abs(values[:-1] - values[-1]).reshape(seq, seq, -1).max(axis=-1) > 0
        if model.causal:
            assert not moved[~late].any(), f"a later token moves {site}"
        if site.kind in MIXED:
            assert moved[late].all(), f"an earlier token does not move {site}"

    size = np.abs(np.asarray(logits_by_embedding(model, tokens))).max(
        axis=(1, 3)
    )  # [position of the logits, position of the embedding]
    assert (size[late.T] > 0).all()
    assert model.causal == (not size[~late.T].any())


def test_a_window_ends():
    """Local attention alone: what is further back than the windows of all layers together reach is not seen, exactly."""
    model = make_model(jax.random.key(1), windows=(2, 3), architecture="gpt_neo")
    tokens = tokens_for(model, 8)
    size = np.abs(np.asarray(logits_by_embedding(model, tokens))).max(axis=(1, 3))
    q, k = np.arange(8)[:, None], np.arange(8)[None, :]
    np.testing.assert_array_equal(size > 0, (k <= q) & (k > q - 2 - 3 + 1))


def test_a_batch_is_a_loop_and_jit_is_eager(clean):
    single = jax.jit(lambda model, tokens: jc.run(model, tokens, record=clean.sites))
    for row in (0, 3, -1):
        logits, cache = single(clean.model, clean.batch[row])
        assert_close(logits, clean.caches[LOGITS][row])
        for site, value in cache.items():
            assert_close(value, clean.caches[site][row])
    logits, cache = jc.run(clean.model, clean.tokens, record=clean.sites)
    assert_close(logits, clean.cache[LOGITS])
    for site, value in cache.items():
        assert_close(value, clean.cache[site])


@ft.partial(by_numpy, static_argnames=("sites",))
def record_masked(model, tokens, mask, sites):
    return jc.run(model, tokens, record=sites, mask=mask)[1]


def test_padding_behind_a_prompt_has_no_part_in_it(clean):
    """At no site, whatever its tokens are; positions count from the first."""
    seq, padding = len(clean.tokens), 2
    tokens = jnp.concatenate([clean.tokens, (clean.tokens[:padding] + 1) % clean.model.d_vocab])
    cache = record_masked(clean.model, tokens, jnp.arange(seq + padding) < seq, clean.sites)
    for site, value in cache.items():
        if site.kind in (Kind.ATTN_SCORES, Kind.PATTERN):
            value = value[:, :seq, :seq]
        else:
            value = value[:seq]
        assert_close(value, clean.cache[site])


@needs_x64
def test_single_precision_is_close_to_double(clean):
    single = record_batch(as_dtype(clean.model, jnp.float32), clean.batch, clean.sites)
    for site, values in single.items():
        assert values.dtype == jnp.float32
        assert_close(values, clean.caches[site], tolerance=1e-5)

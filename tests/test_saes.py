"""Dictionaries: the laws that all of them keep, and each one against its equation in plain NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.saes import (
    AbsTopK,
    Gated,
    GroupMax,
    Identity,
    JumpReLU,
    Linear,
    mismatch,
    ReLU,
    SAE,
    Standardise,
    TanhReLU,
    TopK,
    Transcoder,
    UnitNorm,
)

from .dictionaries import DICTIONARIES, make_sae, transcoder, weights
from .helpers import as_dtype, assert_close, make_model, MODELS, needs_x64, tokens_for


WIDTH = 16
# Every kind of site whose positions hold vectors, with its width in the model of these tests.
WIDTHS = {
    Kind.EMBED: 16,
    Kind.POS_EMBED: 16,
    Kind.RESID_PRE: 16,
    Kind.LN1_NORMALIZED: 16,
    Kind.Q: 12,
    Kind.K: 12,
    Kind.V: 12,
    Kind.Z: 12,
    Kind.RESULT: 32,
    Kind.ATTN_OUT: 16,
    Kind.RESID_MID: 16,
    Kind.LN2_NORMALIZED: 16,
    Kind.MLP_PRE: 24,
    Kind.MLP_POST: 24,
    Kind.MLP_OUT: 16,
    Kind.RESID_POST: 16,
    Kind.FINAL_NORMALIZED: 16,
}
every_dictionary = pytest.mark.parametrize("name", DICTIONARIES)


@pytest.fixture(scope="module")
def model():
    return make_model(jax.random.key(3))


def all_sites(name: str) -> dict[Site, jc.saes.AbstractDictionary]:
    sites = [Site(1 if kind.in_block else None, kind) for kind in WIDTHS]
    return {site: DICTIONARIES[name](jax.random.key(i), WIDTHS[site.kind], site) for i, site in enumerate(sites)}


# Laws


@every_dictionary
def test_splicing_changes_no_logits(name, model):
    tokens = tokens_for(model)
    plain, _ = jc.run(model, tokens)
    saes = all_sites(name)
    spliced, cache = jc.run(model, tokens, saes=saes, record=[site.acts for site in saes])
    assert_close(spliced, plain)
    assert all(np.abs(cache[site.acts]).max() > 0 for site in saes), "a dictionary with no latent on tests nothing"


@every_dictionary
def test_the_decoder_is_affine_with_rows_scale_times_W_dec(name, getkey):
    sae = DICTIONARIES[name](getkey(), WIDTH)
    x, u, v = (jax.random.normal(getkey(), (5, n)) for n in (WIDTH, sae.d_sae, sae.d_sae))
    got = sae.decode(u, x) - sae.decode(v, x)
    assert_close(got, sae.decoder_scale(x)[:, None] * ((u - v) @ sae.W_dec))


@every_dictionary
def test_gradients_at_and_above_a_spliced_site(name, model, getkey):
    tokens = tokens_for(model)
    site, above = Site(1, Kind.MLP_OUT), Site(0, Kind.RESID_POST)
    sae = DICTIONARIES[name](getkey(), WIDTH, site)
    read = site if sae.reads is None else sae.reads

    def metric(offsets, saes):
        logits, _ = jc.run(model, tokens, saes=saes, edits={at: jc.Add(u) for at, u in offsets.items()})
        return logits[-1] @ jnp.arange(1.0, 1 + logits.shape[1])

    _, cache = jc.run(model, tokens, saes={site: sae}, record=[read, above, site, site.acts, site.error])
    zeros = {at: jnp.zeros_like(cache[at]) for at in (site, above)}
    plain = jax.grad(metric)(zeros, {})
    at_parts = jax.grad(metric)({at: jnp.zeros_like(cache[at]) for at in (site.acts, site.error, above)}, {site: sae})
    scale = sae.decoder_scale(cache[read])[:, None]
    assert_close(at_parts[site.acts], scale * (plain[site] @ sae.W_dec.T))
    assert_close(at_parts[site.error], plain[site])
    assert_close(at_parts[above], plain[above])


@every_dictionary
def test_vmap_over_dictionaries_is_a_loop(name, getkey):
    saes = [DICTIONARIES[name](getkey(), WIDTH) for _ in range(3)]
    x = jax.random.normal(getkey(), (3, 4, WIDTH))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *saes)
    both = lambda sae, x: (sae.encode(x), sae.decode(sae.encode(x), x))
    acts, recon = jax.jit(jax.vmap(both))(stacked, x)
    for i, sae in enumerate(saes):
        want_acts, want_recon = both(sae, x[i])
        assert_close(acts[i], want_acts)
        assert_close(recon[i], want_recon)


@every_dictionary
def test_leaves_are_arrays_and_one_position_needs_no_batch(name, getkey):
    sae = DICTIONARIES[name](getkey(), WIDTH, Site(0, Kind.MLP_OUT))
    assert jax.tree.leaves(sae)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(sae))
    x = jax.random.normal(getkey(), (2, 3, WIDTH))
    assert_close(sae.encode(x[1, 2]), sae.encode(x)[1, 2])
    assert (sae.d_in, sae.d_out, sae.d_sae) == (WIDTH, sae.W_dec.shape[1], sae.W_dec.shape[0])


@every_dictionary
def test_a_float32_model_stays_float32(name, model, getkey):
    site = Site(0, Kind.MLP_OUT)
    sae = as_dtype(DICTIONARIES[name](getkey(), WIDTH, site), jnp.float32)
    assert sae.W_dec.dtype == jnp.float32
    record = [site, site.acts, site.error]
    logits, cache = jc.run(as_dtype(model, jnp.float32), tokens_for(model), saes={site: sae}, record=record)
    assert logits.dtype == jnp.float32
    assert {value.dtype for value in cache.values()} == {jnp.dtype(jnp.float32)}


@every_dictionary
def test_it_can_be_moved_to_another_site(name, getkey):
    sae = DICTIONARIES[name](getkey(), WIDTH, Site(0, Kind.RESID_POST))
    moved = dataclasses.replace(sae, site=Site(3, Kind.RESID_POST))
    assert moved.site == Site(3, Kind.RESID_POST)
    assert isinstance(sae, Transcoder) or moved.reads == moved.site


@every_dictionary
def test_what_its_decoder_reads_is_a_site(name, model):
    """Of those whose decoder reads its input, and moving it moves no value: the error is what the latents leave there."""
    tokens, site = tokens_for(model), Site(1, Kind.MLP_OUT)
    sae = DICTIONARIES[name](jax.random.key(5), WIDTH, site)
    read = site if sae.reads is None else sae.reads
    record = [site.acts, site.error, site, read]
    if not sae.decoder_reads_input:
        with pytest.raises(
            ValueError, match=r"the decoder of the dictionary at `blocks.1.hook_mlp_out` reads nothing but"
        ):
            jc.run(model, tokens, saes={site: sae}, record=[site.input])
        with pytest.raises(ValueError, match=r"blocks.1.hook_mlp_out.hook_sae_decoder_input`: the decoder of the"):
            jc.edge(model, tokens, site.input, Site(1, Kind.RESID_POST), saes={site: sae})
        assert_close(sae.decode(jnp.ones(sae.d_sae)), sae.decode(jnp.ones(sae.d_sae), jnp.full(WIDTH, 7.0)))
        return
    record += [site.input]
    _, cache = jc.run(model, tokens, saes={site: sae}, record=record)
    assert [*cache][-4:] == [site.acts, site.input, site.error, site]
    assert_close(cache[site.input], sae_input(cache, read, site))
    other = 2 * cache[site.input][::-1] + 1
    _, moved = jc.run(model, tokens, saes={site: sae}, edits={site.input: jc.Replace(other)}, record=record)
    assert_close(moved[site], cache[site])
    assert_close(moved[site.acts], cache[site.acts])
    assert_close(moved[site.error], cache[site] - sae.decode(cache[site.acts], other))
    assert np.abs(moved[site.error] - cache[site.error]).max() > 1e-2
    # With latents edited it is what their rows are stretched by.
    pushed = {site.acts: jc.Add(jnp.zeros(20).at[3].set(2.0)), site.input: jc.Replace(other)}
    _, both = jc.run(model, tokens, saes={site: sae}, edits=pushed, record=record)
    assert_close(both[site] - cache[site], 2 * sae.decoder_scale(other)[:, None] * sae.W_dec[3])


def sae_input(cache, read, site):
    """What the dictionary at `site` reads: of its own site the value before it was split, which splicing leaves as it is."""
    return cache[site] if read == site else cache[read]


def test_what_a_decoder_reads_of_heads_has_their_shape(model):
    z = Site(0, Kind.Z)
    sae = DICTIONARIES["relu-unit-norm"](jax.random.key(5), 12, z)
    _, cache = jc.run(model, tokens_for(model), saes={z: sae}, record=[z, z.input])
    assert_close(cache[z.input], cache[z])
    with pytest.raises(ValueError, match=r"there is no dictionary at `blocks.0.attn.hook_z`. Pass saes"):
        jc.run(model, tokens_for(model), record=[z.input])


# Known answers


def test_activations_against_their_equations():
    rng = np.random.default_rng(0)
    pre = rng.normal(size=(6, 9))
    theta, r, g, m = np.abs(rng.normal(size=9)), *rng.normal(size=(3, 9))
    relu = np.maximum(pre, 0)
    top = np.zeros_like(pre)
    for row, out in zip(pre, top, strict=True):
        for i in sorted(range(9), key=lambda i: -row[i])[:4]:
            out[i] = row[i]
    signed = np.zeros_like(pre)
    for row, out in zip(pre, signed, strict=True):
        for i in sorted(range(9), key=lambda i: -abs(row[i]))[:4]:
            out[i] = row[i]
    assert signed.min() < 0 < signed.max()
    largest = np.zeros_like(pre)
    for row, out in zip(pre, largest, strict=True):
        for start in (0, 3, 6):
            best = start + np.argmax(row[start : start + 3])
            out[best] = max(row[best], 0)
    cases = {
        ReLU(): relu,
        TanhReLU(): np.tanh(relu),
        Linear(): pre,
        TopK(4): np.maximum(top, 0),
        TopK(4, rectified=False): top,
        AbsTopK(4): signed,
        GroupMax(3): largest,
    }
    for activation, want in cases.items():
        assert_close(activation(jnp.asarray(pre)), want)
    assert_close(JumpReLU(jnp.asarray(theta))(jnp.asarray(pre)), relu * (pre > theta))
    assert_close(JumpReLU(jnp.asarray(-1.0))(jnp.asarray(pre)), relu)
    want = (pre + g > 0) * np.maximum(np.exp(r) * pre + m, 0)
    assert_close(Gated(jnp.asarray(r), jnp.asarray(g), jnp.asarray(m))(jnp.asarray(pre)), want)


def test_topk_keeps_the_first_of_equal_ones():
    assert TopK(2)(jnp.array([1.0, 3.0, 3.0, 3.0])).tolist() == [0, 3, 3, 0]


def test_groupmax_keeps_the_first_of_equal_ones_and_nothing_that_is_negative():
    assert GroupMax(2)(jnp.array([3.0, 3.0, -1.0, -2.0])).tolist() == [3, 0, 0, 0]


@needs_x64
@pytest.mark.parametrize("kind", ["standardise", "unit-norm"])
def test_normalised_dictionary_against_its_equation(kind, getkey):
    sae = make_sae(getkey(), 6, normalisation=Standardise() if kind == "standardise" else UnitNorm())
    x = np.asarray(jax.random.normal(getkey(), (5, 6))) * 3 + 1
    shift = x.mean(-1, keepdims=True) if kind == "standardise" else 0
    scale = (
        x.std(-1, ddof=1, keepdims=True)
        if kind == "standardise"
        else np.linalg.norm(x, axis=-1, keepdims=True) / 6**0.5
    )
    W_enc, b_enc, W_dec, b_dec = (np.asarray(a) for a in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec))
    read = (x - shift) / (scale + (1e-5 if kind == "standardise" else 0))
    acts = np.maximum((read - b_dec) @ W_enc + b_enc, 0)
    assert_close(sae.encode(jnp.asarray(x)), acts)
    assert_close(sae.decode(jnp.asarray(acts), jnp.asarray(x)), (acts @ W_dec + b_dec) * scale + shift)
    assert_close(sae.decoder_scale(jnp.asarray(x)), scale[:, 0])


@pytest.mark.parametrize("normalisation", [Standardise(), UnitNorm()])
def test_a_position_of_zeros_gives_no_nan(normalisation, getkey):
    sae = make_sae(getkey(), 6, normalisation=normalisation)
    value, gradient = jax.value_and_grad(lambda x: sae.decode(sae.encode(x), x).sum())(jnp.zeros(6))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_transcoder_against_its_equation(getkey):
    b_in, W_skip = jnp.linspace(-1, 1, 5), jax.random.normal(getkey(), (5, 7))
    sae = Transcoder(*weights(getkey(), 5, 7), ReLU(), b_in=b_in, W_skip=W_skip)
    x = jax.random.normal(getkey(), (3, 5))
    W_enc, b_enc, W_dec, b_dec, skip, shift, y = (
        np.asarray(a) for a in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, W_skip, b_in, x)
    )
    acts = np.maximum((y - shift) @ W_enc + b_enc, 0)
    assert_close(sae.encode(x), acts)
    assert_close(sae.decode(sae.encode(x), x), acts @ W_dec + b_dec + y @ skip)


def test_identity_has_no_error(model):
    site = Site(0, Kind.Z)
    _, cache = jc.run(model, tokens_for(model), saes={site: Identity(12, site)}, record=[site, site.acts, site.error])
    assert_close(cache[site.acts].reshape(cache[site].shape), cache[site])
    assert not np.asarray(cache[site.error]).any()


# Which processing matters where


PROCESSED = ("fold_layer_norm", "center_writing", "center_unembed", "fold_value_biases")


@pytest.mark.parametrize("name", ["gpt2", "neox", "gemma2"])
@pytest.mark.parametrize("step", PROCESSED)
def test_mismatch_names_just_the_sites_that_a_step_changes(step, name):
    """The table behind it, against the change of every activation."""
    model = MODELS[name](jax.random.key(5))
    if step not in jc.process_weights(model).processing:
        pytest.skip("it would change probabilities of this model, and is refused")
    processed = jc.process_weights(model, **{name: name == step for name in PROCESSED})
    assert processed.processing == (step,)
    tokens = tokens_for(model)
    sites = [site for site in jc.sites(model) if site.kind != Kind.LOGITS]
    _, before = jc.run(model, tokens, record=sites)
    _, after = jc.run(processed, tokens, record=sites)
    changed = {site for site in sites if not np.allclose(before[site], after[site], rtol=1e-4, atol=1e-5)}
    assert {site for site in sites if mismatch(site, (), (step,))} == changed


def test_mismatch_compares_what_was_trained_with_what_is_run():
    site = Site(1, Kind.MLP_OUT)
    assert mismatch(site, None, PROCESSED) == ()
    assert mismatch(site, PROCESSED, PROCESSED) == ()
    assert mismatch(site, ("center_writing",), ()) == mismatch(site, (), PROCESSED) == ("center_writing",)
    assert mismatch(Site(1, Kind.RESULT), (), PROCESSED) == ("center_writing", "fold_value_biases")
    assert mismatch(Site(1, Kind.MLP_POST), (), PROCESSED) == ()


# Bad input


def test_a_dictionary_of_another_width_is_refused(model, getkey):
    site = Site(0, Kind.MLP_OUT)
    with pytest.raises(
        ValueError, match=r"blocks.0.hook_mlp_out` maps 5 numbers to 5, and there the model has 16 and 16"
    ):
        jc.run(model, tokens_for(model), saes={site: make_sae(getkey(), 5, site)})


def test_a_dictionary_for_another_site_is_refused(model, getkey):
    sae = make_sae(getkey(), 16, Site(1, Kind.MLP_OUT))
    with pytest.raises(ValueError, match=r"given for `blocks.0.hook_mlp_out` was trained for `blocks.1.hook_mlp_out`"):
        jc.run(model, tokens_for(model), saes={Site(0, Kind.MLP_OUT): sae})


@pytest.mark.usefixtures("untyped")
def test_arrays_of_other_shapes_are_refused(getkey):
    W_enc, b_enc, W_dec, b_dec = weights(getkey(), 4)
    with pytest.raises(ValueError, match=r"SAE: `W_dec` must have shape \(20, 4\), got \(4, 20\)"):
        SAE(W_enc, b_enc, W_dec.T, b_dec, ReLU())
    with pytest.raises(ValueError, match=r"Transcoder: `b_in` must have shape \(4,\), got \(3,\)"):
        Transcoder(W_enc, b_enc, W_dec, b_dec, ReLU(), b_in=jnp.zeros(3))
    with pytest.raises(ValueError, match=r"JumpReLU have one entry a latent, shape \(20,\); got \(7,\)"):
        SAE(W_enc, b_enc, W_dec, b_dec, JumpReLU(jnp.zeros(7)))


def test_k_beyond_the_dictionary_is_refused(getkey):
    with pytest.raises(ValueError, match="k is 21, and the dictionary has 20 latents"):
        make_sae(getkey(), 4, activation=TopK(21))
    with pytest.raises(ValueError, match="at least 1; got 0"):
        TopK(0)
    with pytest.raises(ValueError, match="AbsTopK: k is 21, and the dictionary has 20 latents"):
        make_sae(getkey(), 4, activation=AbsTopK(21))
    with pytest.raises(ValueError, match="AbsTopK: k is the number of latents that stay on, at least 1; got 0"):
        AbsTopK(0)
    with pytest.raises(ValueError, match="20 latents are not 3 groups of one size"):
        make_sae(getkey(), 4, activation=GroupMax(3))
    with pytest.raises(ValueError, match="at least 1; got 0"):
        GroupMax(0)
    with pytest.raises(ValueError, match="k is 5, and the dictionary has 4 latents"):
        TopK(5)(jnp.zeros(4))


def test_decoding_without_the_needed_input_is_refused(getkey):
    for sae in (make_sae(getkey(), 4, normalisation=UnitNorm()), transcoder(getkey(), 4, W_skip=jnp.eye(4))):
        with pytest.raises(ValueError, match=r"call decode\(acts, x\)"):
            sae.decode(jnp.zeros(20))

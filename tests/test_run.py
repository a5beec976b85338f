"""One run: recording, edits, padding, purity, and what it refuses."""

import functools as ft
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.parts import GatedMLP, LayerNorm

from .helpers import assert_close, Chosen, make_model, model_named, MODELS, one_at_a_time, tokens_for


RESID = Site(1, Kind.RESID_MID)
CUTS = (Kind.RESID_PRE, Kind.RESID_MID, Kind.RESID_POST)


@ft.cache
def swept(name: str):
    """`(sites, values, cache)`: every site's value, moved at one site a row by `values`; the last row is not moved."""
    model = model_named(name)
    tokens, rng = tokens_for(model), np.random.default_rng(1)
    sites = jc.sites(model)

    def world(model, tokens, values, row):
        edits = {site: Chosen(row[i], (jc.Add(values[site]),)) for i, site in enumerate(sites)}
        return jc.run(model, tokens, edits=edits, record=sites)[1]

    shapes = jax.eval_shape(lambda model: jc.run(model, tokens, record=sites)[1], model)
    values = {site: jnp.asarray(rng.uniform(0.5, 1.5, shape.shape), shape.dtype) for site, shape in shapes.items()}
    rows = one_at_a_time(len(sites))
    return sites, values, jax.jit(jax.vmap(world, in_axes=(None, None, None, 0)))(model, tokens, values, rows)


@pytest.mark.parametrize("name", MODELS)
def test_edits_move_what_is_downstream_and_nothing_upstream(name):
    sites, values, cache = swept(name)
    logits = cache[Site(None, Kind.LOGITS)]
    for row, edited in enumerate(sites):
        assert np.abs(logits[row] - logits[-1]).max() > 1e-4, f"an edit at {edited} does not reach the logits"
        with np.errstate(invalid="ignore"):  # masked scores, -inf + value
            assert_close(cache[edited][row], cache[edited][-1] + values[edited])
        for site in sites:
            if site < edited or (
                site.layer == edited.layer and site.kind <= Kind.V and edited.kind in (Kind.Q, Kind.K)
            ):
                same = site < edited or site.kind != edited.kind
                if same:
                    # The rows of one batched product may be rounded differently where heads share keys; what is moved, is by 1e-4.
                    rounding = 64 * np.finfo(cache[site].dtype).eps
                    np.testing.assert_allclose(
                        cache[site][row], cache[site][-1], rounding, rounding, err_msg=f"{edited} moved {site}"
                    )


@pytest.mark.parametrize("name", MODELS)
def test_a_record_is_what_downstream_sees(name):
    """Whichever site is edited, each recorded value is what the recorded values before it make it, but at the edited site itself."""
    sites, _, cache = swept(name)
    model = model_named(name)
    checked = 0
    for layer, block in enumerate(model.blocks):
        at = lambda kind, layer=layer: np.asarray(cache[Site(layer, kind)])
        attn, group = block.attn, model.n_heads // model.n_kv_heads
        shared = lambda x, group=group: x.repeat(group, axis=2)  # as each query head reads it
        q, k = (Kind.Q, Kind.K) if attn.rotary is None else (Kind.ROT_Q, Kind.ROT_K)
        scores = np.einsum("nqhd,nkhd->nhqk", at(q), shared(at(k))) * attn.scale
        heads_out = Kind.ATTN_OUT if block.ln1_post is None else Kind.HEADS_OUT
        made = {
            Kind.ATTN_SCORES: scores if attn.cap is None else attn.cap * np.tanh(scores / attn.cap),
            Kind.Z: np.einsum("nhqk,nkhd->nqhd", at(Kind.PATTERN), shared(at(Kind.V))),
            Kind.RESULT: np.einsum("nqhd,hdm->nqhm", at(Kind.Z), attn.W_O),
            heads_out: at(Kind.RESULT).sum(axis=2) + attn.b_O,
        }

        def norm(part, reads, scale, normalized, writes, at=at, made=made):
            if part is not None:
                x, axes = at(reads), tuple(range(2, at(reads).ndim)) if getattr(part, "joint", False) else -1
                x = x - x.mean(axis=-1, keepdims=True) if isinstance(part, LayerNorm) else x
                made[scale] = np.sqrt((x**2).mean(axis=axes, keepdims=True) + part.eps)
                made[normalized] = x / at(scale)
                weight = 1 if part.weight is None else getattr(part, "offset", 0) + part.weight
                bias = 0 if getattr(part, "bias", None) is None else part.bias
                if writes is not None:
                    made[writes] = at(normalized) * weight + bias

        norm(block.ln1, Kind.RESID_PRE, Kind.LN1_SCALE, Kind.LN1_NORMALIZED, Kind.ATTN_IN)
        norm(block.ln1_post, Kind.HEADS_OUT, Kind.LN1_POST_SCALE, Kind.LN1_POST_NORMALIZED, Kind.ATTN_OUT)
        norm(attn.q_norm, Kind.Q, Kind.Q_SCALE, Kind.Q_NORMALIZED, None)
        norm(attn.k_norm, Kind.K, Kind.K_SCALE, Kind.K_NORMALIZED, None)
        norm(block.ln2, block.mlp_reads, Kind.LN2_SCALE, Kind.LN2_NORMALIZED, Kind.MLP_IN)
        norm(block.ln2_post, Kind.NEURONS_OUT, Kind.LN2_POST_SCALE, Kind.LN2_POST_NORMALIZED, Kind.MLP_OUT)
        if block.mlp is None:
            made[Kind.RESID_POST] = at(Kind.RESID_PRE) + at(Kind.ATTN_OUT)
        elif block.parallel:
            made[Kind.RESID_POST] = at(Kind.RESID_PRE) + at(Kind.ATTN_OUT) + at(Kind.MLP_OUT)
        else:
            made[Kind.RESID_MID] = at(Kind.RESID_PRE) + at(Kind.ATTN_OUT)
            made[Kind.RESID_POST] = at(Kind.RESID_MID) + at(Kind.MLP_OUT)
        if block.mlp is not None:
            act = np.asarray(block.mlp.act(jnp.asarray(at(Kind.MLP_PRE))))
            gated = isinstance(block.mlp, GatedMLP)
            made[Kind.MLP_GATE] = act if gated else act / at(Kind.MLP_PRE)
            made[Kind.MLP_POST] = at(Kind.MLP_GATE) * at(Kind.MLP_PRE_LINEAR if gated else Kind.MLP_PRE)
            neurons_out = Kind.MLP_OUT if block.ln2_post is None else Kind.NEURONS_OUT
            made[neurons_out] = at(Kind.MLP_POST) @ block.mlp.W_out + block.mlp.b_out
        made[Kind.RESID_PRE] = cache[Site(layer - 1, Kind.RESID_POST)] if layer else cache[sites[0]]
        if layer == 0 and Site(None, Kind.POS_EMBED) in cache:
            made[Kind.RESID_PRE] = made[Kind.RESID_PRE] + cache[Site(None, Kind.POS_EMBED)]
        for kind, want in made.items():
            others = np.array([site != Site(layer, kind) for site in sites] + [True])
            got, want = at(kind)[others], np.asarray(want)[others]
            seen = np.isfinite(got)  # masked scores are made -inf afterwards
            assert_close(got[seen], want[seen])
            checked += 1
    assert checked >= 6 * model.n_layers


@pytest.mark.parametrize("name", MODELS)
def test_logits_do_not_depend_on_what_is_recorded(name):
    model = model_named(name)
    tokens = tokens_for(model)
    plain, nothing = jax.jit(lambda model, tokens: jc.run(model, tokens))(model, tokens)
    everything = swept(name)[2]
    assert nothing == {}
    assert plain.shape == (7, model.W_U.shape[1])
    assert_close(plain, everything[Site(None, Kind.LOGITS)][-1])


@pytest.fixture
def model():
    return model_named("gpt2")


@pytest.fixture
def tokens(model):
    return tokens_for(model)


def test_names_are_keys_and_the_cache_is_in_order(model, tokens):
    names = ["logits", "blocks.1.hook_resid_mid", "hook_embed", "blocks.0.attn.hook_z"]
    _, cache = jc.run(model, tokens, record=names)
    assert list(map(str, cache)) == ["hook_embed", "blocks.0.attn.hook_z", "blocks.1.hook_resid_mid", "logits"]
    _, by_site = jc.run(model, tokens, edits={RESID: jc.Add(1.0)}, record=[RESID, RESID, str(RESID)])
    _, by_name = jc.run(model, tokens, edits={str(RESID): jc.Add(1.0)}, record={RESID})
    assert_close(by_site[RESID], cache[RESID] + 1)
    np.testing.assert_array_equal(by_site[RESID], by_name[RESID])


def test_splicing_makes_sites_of_latents_and_error(model, tokens):
    weights = np.random.default_rng(0).normal(size=(16, 32)) / 4
    sae = jc.saes.SAE(*map(jnp.asarray, (weights, np.zeros(32), weights.T, np.ones(16))), jc.saes.ReLU())
    clean, _ = jc.run(model, tokens)
    spliced, cache = jc.run(model, tokens, saes={RESID: sae}, record=[RESID, RESID.acts, RESID.error])
    assert list(cache) == [RESID.acts, RESID.error, RESID]
    assert_close(spliced, clean)
    assert_close(sae.decode(cache[RESID.acts]) + cache[RESID.error], cache[RESID])
    assert 0 < (cache[RESID.acts] > 0).mean() < 1
    # A latent is moved: the stream moves by its decoder's row, because the error is that of the unedited latents.
    pushed = jc.Add(jnp.zeros(32).at[3].set(2.0))
    _, moved = jc.run(model, tokens, saes={str(RESID): sae}, edits={RESID.acts: pushed}, record=[RESID])
    assert_close(moved[RESID] - cache[RESID], jnp.broadcast_to(2 * sae.W_dec[3], (7, 16)))


def test_a_dictionary_on_z_reads_all_heads(model, tokens):
    z = Site(0, Kind.Z)
    clean, _ = jc.run(model, tokens)
    spliced, cache = jc.run(model, tokens, saes={z: jc.saes.Identity(12, z)}, record=[z, z.acts])
    assert_close(spliced, clean)
    np.testing.assert_array_equal(cache[z].reshape(7, 12), cache[z.acts])


def transcoder(reads, site, width=16):
    eye, zero = jnp.eye(width), jnp.zeros(width)
    return jc.saes.Transcoder(eye, zero, eye, zero, jc.saes.ReLU(), reads, site)


def test_a_transcoder_reads_another_site(model, tokens):
    reads, site = Site(1, Kind.LN2_NORMALIZED), Site(1, Kind.MLP_OUT)
    clean, _ = jc.run(model, tokens)
    spliced, cache = jc.run(model, tokens, saes={site: transcoder(reads, site)}, record=[reads, site.acts])
    assert_close(spliced, clean)
    assert_close(cache[site.acts], jnp.maximum(cache[reads], 0))


def pad(rows, length, side, filler):
    """`(tokens, mask)` of a batch of unequal rows, padded to one length on one side."""
    tokens, mask = np.full((len(rows), length), filler), np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        real = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        tokens[i, real], mask[i, real] = row, True
    return tokens, mask


@pytest.mark.parametrize("name", ["gpt2", "gpt-neo", "no-norm-relu-bidirectional"])
def test_padding(name):
    model = model_named(name)
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, model.d_vocab, length) for length in (3, 8, 3, 7)]
    record = [site for site in jc.sites(model) if site.kind in CUTS]
    embed, pattern = Site(None, Kind.EMBED), Site(model.n_layers - 1, Kind.PATTERN)
    weights = jnp.asarray(rng.normal(size=(8, model.W_U.shape[1])))

    def padded(model, tokens, mask):
        def total(step):
            logits, cache = jc.run(model, tokens, mask=mask, edits={embed: jc.Add(step)}, record=[*record, pattern])
            return jnp.sum(jnp.where(mask[:, None], weights * logits, 0)), (logits, cache)

        return jax.grad(total, has_aux=True)(jnp.zeros((tokens.shape[0], model.d_model), model.dtype))

    batched = jax.jit(jax.vmap(padded, in_axes=(None, 0, 0)))
    both = lambda filler: map(
        np.concatenate, zip(*(pad(rows, 8, side, filler) for side in ("left", "right")), strict=True)
    )
    tokens, mask = both(filler=0)
    gradient, (logits, cache) = jax.tree.map(np.asarray, batched(model, jnp.asarray(tokens), jnp.asarray(mask)))
    assert not gradient[~mask].any()
    assert (np.abs(gradient[mask]).max(axis=-1) > 0).all()
    assert not np.where(mask[:, None, :, None] & ~mask[:, None, None, :], cache[pattern], 0).any()

    # What stands at the padding changes nothing, bit for bit.
    _, (other, _) = batched(model, jnp.asarray(next(both(filler=3))), jnp.asarray(mask))
    np.testing.assert_array_equal(np.asarray(other)[mask], logits[mask])

    alone = jax.jit(lambda model, tokens: jc.run(model, tokens, record=record))
    for i, row in enumerate([*rows, *rows]):
        want, values = alone(model, jnp.asarray(row))
        assert_close(logits[i][mask[i]], want)
        for site in record:
            assert_close(cache[site][i][mask[i]], values[site])


def test_nothing_is_changed_by_running(model, tokens):
    before = jax.tree.map(np.array, (model, tokens))
    structure = jax.tree.structure(model)
    edits, record = {"hook_embed": jc.Add(1.0)}, [str(RESID)]
    jc.run(model, tokens, edits=edits, record=record)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, (model, tokens)))
    assert jax.tree.structure(model) == structure
    assert list(edits) == ["hook_embed"]
    assert record == [str(RESID)]


def test_no_tracer_leaks(model, tokens):
    with jax.checking_leaks():
        run = lambda model, step: jc.run(model, tokens, edits={RESID: jc.Add(step)}, record=[RESID])
        logits, cache = jax.jit(run)(model, jnp.ones(16))
        gradient = jax.jit(jax.grad(lambda step, model: run(model, step)[0].sum()))(jnp.ones(16), model)
        jc.sites(model)
    assert all(isinstance(leaf, jax.Array) for leaf in (logits, gradient, *cache.values()))


UNKNOWN = [
    ({"record": ["blocks.12.hook_mlp_out"]}, r"run\(record=…\): no site `blocks.12.hook_mlp_out` in random with 2 layers. "
     "Did you mean `blocks.1.hook_mlp_out`?"),
    ({"edits": {"blocks.2.hook_resid_pre": jc.Detach()}}, r"run\(edits=…\): no site `blocks.2.hook_resid_pre`.*mean `blocks.\d.hook_r"),
    ({"saes": {"blocks.7.hook_resid_post": jc.saes.Identity(16)}}, r"run\(saes=…\): no site `blocks.7.hook_resid_post`"),
    ({"record": [RESID.acts]}, "there is no dictionary at `blocks.1.hook_resid_mid`. Pass saes="),
    ({"record": ["blocks.0.hook_mlpout"]}, "No site is called `blocks.0.hook_mlpout`. Did you mean `blocks.0.hook_mlp_out`"),
    ({"edits": {RESID: jc.Detach(), str(RESID): jc.Detach()}}, "A site is given twice"),
    ({"saes": {RESID: jc.saes.Identity(16), str(RESID): jc.saes.Identity(16)}}, "A site is given twice"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), UNKNOWN)
def test_unknown_sites(model, tokens, arguments, message):
    with pytest.raises(ValueError, match=message):
        jc.run(model, tokens, **arguments)


def test_sites_that_another_model_has():
    model = model_named("attention-only")
    with pytest.raises(ValueError, match=r"no site `blocks.0.hook_mlp_out`.*Did you mean"):
        jc.run(model, tokens_for(model), record=["blocks.0.hook_mlp_out"])


BAD_TOKENS = [
    (lambda t: t.at[2].set(13), ValueError, r"Token id 13 at \[2\] is outside the vocabulary of random, 0 to 12.*tokenizer"),
    (lambda t: t.at[0].set(-1), ValueError, r"Token id -1 at \[0\] is outside the vocabulary"),
    (lambda t: jnp.zeros(13, int), ValueError, "The prompt has 13 tokens, and random has a context of 12. Shorten"),
    (lambda t: t[:0], ValueError, r"Expected at least one token, got token ids of shape \(0,\)"),
    (lambda t: t[None], ValueError, r"Expected token ids of shape \[seq\], got \(1, 7\). Use tokens\[0\]"),
    (lambda t: jnp.stack([t, t]), ValueError, r"Expected token ids of shape \[seq\], got \(2, 7\). Use jax.vmap over the batch"),
    (lambda t: t[0], ValueError, r"Expected token ids of shape \[seq\], got \(\)"),
    (lambda t: t.astype(float), TypeError, "Token ids are integers; got dtype float"),
    (lambda t: t > 3, TypeError, "Token ids are integers; got dtype bool"),
    (lambda t: t.tolist(), TypeError, r"Expected an array of token ids, got a list. Use jnp.asarray\(tokens\)"),
    (lambda t: "a text", TypeError, r"Expected an array of token ids, got text. Use jnp.array\(tokenizer.encode\('a text'\)\)"),
]  # fmt: skip


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("bad", "kind", "message"), BAD_TOKENS)
def test_bad_tokens(model, tokens, bad, kind, message):
    with pytest.raises(kind, match=message):
        jc.run(model, bad(tokens))


@pytest.mark.parametrize("bad", [13, -1, 10**6])
def test_a_token_that_is_not_there_is_not_a_number_under_jit(model, tokens, bad):
    """Where ids are traced there is no error to raise, so the run is NaN, and no other numbers."""
    under_jit = jax.jit(lambda model, tokens: jc.run(model, tokens)[0])
    assert np.isfinite(np.asarray(under_jit(model, tokens))).all()
    assert np.isnan(np.asarray(under_jit(model, tokens.at[4].set(bad)))).all()
    with pytest.raises(ValueError, match=rf"Token id {bad} at \[4\] is outside"):
        jc.run(model, tokens.at[4].set(bad))


def test_everything_can_be_recorded(model, tokens):
    """By name or by site, latents and errors too; and what is asked for by the wrong name says what there is."""
    site = Site(1, Kind.MLP_OUT)
    saes = {site: jc.saes.Identity(16, unit=jnp.ones((), model.dtype))}
    _, cache = jc.run(model, tokens, saes=saes, record="all")
    assert set(cache) == {*jc.sites(model), site.acts, site.error}
    for key in cache:
        assert cache[str(key)] is cache[key]
        assert cache.get(str(key)) is cache[key]
        assert str(key) in cache
    assert "blocks.7.hook_mlp_out" not in cache
    assert "no such thing" not in cache
    assert cache.get("blocks.7.hook_mlp_out", 3) == 3
    with pytest.raises(KeyError, match=r"nothing at `blocks\.7\.hook_mlp_out`\. There is `hook_embed`, "):
        cache["blocks.7.hook_mlp_out"]
    with pytest.raises(ValueError, match=r"Did you mean `blocks\.1\.hook_mlp_out`"):
        cache["blocks.1.mlp_out"]


def test_what_is_recorded_crosses_transformations(model, tokens):
    """A cache is a pytree, whatever the order in which it was filled."""
    each = jax.vmap(lambda tokens: jc.run(model, tokens, record="all")[1])(jnp.stack([tokens, tokens + 1]))
    assert each["blocks.0.hook_mlp_out"].shape == (2, 7, 16)
    again = type(each)(reversed(list(each.items())))
    assert jax.tree.structure(again) == jax.tree.structure(each)
    doubled = jax.jit(lambda cache: jax.tree.map(lambda x: x + x, cache))(each)
    assert type(doubled) is type(each)
    assert_close(doubled["logits"], 2 * np.asarray(each[Site(None, Kind.LOGITS)]))
    assert list(doubled) == sorted(doubled)


def test_a_prompt_that_is_all_padding(model, tokens):
    with pytest.raises(ValueError, match="mask: the prompt has no real token"):
        jc.run(model, tokens, mask=jnp.zeros(7, bool))


@pytest.mark.usefixtures("untyped")
def test_numpy_tokens_will_do(model, tokens):
    np.testing.assert_array_equal(jc.run(model, np.asarray(tokens))[0], jc.run(model, tokens)[0])


def test_a_batch_where_a_batch_is_wanted(model, tokens):
    from jaxcirc._run import check_tokens

    check_tokens(model, tokens[None], batched=True)
    with pytest.raises(ValueError, match=r"shape \[batch seq\], got \(7,\). Use tokens\[None\]"):
        check_tokens(model, tokens, batched=True)
    with pytest.raises(ValueError, match=r"Token id 99 at \[1, 3\]"):
        check_tokens(model, jnp.zeros((2, 7), int).at[1, 3].set(99), batched=True)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"edits": {RESID: jc.Replace(np.ones((3, 16)))}}, ValueError,
         r"at `blocks.1.hook_resid_mid`, Replace's value has shape \(3, 16\); give it an array of shape \(7, 16\)"),
        ({"edits": {RESID: jc.Add(np.ones((1, 7, 16)))}}, ValueError, r"at `blocks.1.hook_resid_mid`, Add's value"),
        ({"edits": {RESID: jc.Blend(np.ones(7), 0.0)}}, ValueError, r"Blend's mask has shape \(7,\)"),
        ({"edits": {RESID: jc.Apply(lambda x: x[:3])}}, ValueError, r"has shape \(7, 16\), and Apply made it \(3, 16\)"),
        ({"record": "blocks.0.hook_mlp_out"}, TypeError, r"expected a list of sites, or .all., got one site. Write record=\['blocks.0"),
        ({"saes": "tiny-gpt2"}, TypeError, "Expected a mapping from sites, such as .*, got a str"),
        ({"edits": {RESID: np.ones(16)}}, TypeError, "expected an edit such as jc.Replace.*, got a ndarray"),
        ({"edits": {RESID: lambda x: x}}, TypeError, "expected an edit such as .*, got a function"),
        ({"saes": {RESID: np.ones(16)}}, TypeError, "expected a dictionary such as .*, got a ndarray"),
        ({"mask": np.ones(6, bool)}, ValueError, r"one boolean a token, .* bool\[7\]; got bool\[6\]"),
        ({"edits": {RESID: jc.Replace(np.ones(16, complex))}}, ValueError, "`blocks.1.hook_resid_mid`, Replace's value is of complex"),
        ({"edits": {RESID: jc.Apply(lambda x: x.astype(jnp.int32))}}, TypeError, r"is of floating-point numbers, and Apply made it int32"),
        ({"mask": [True] * 7}, TypeError, r"mask: expected an array of booleans, such as jnp.asarray\(mask\), got \[True"),
        ({"mask": np.ones(7)}, ValueError, r"bool\[7\]; got float\d\d\[7\]"),
        ({"mask": np.ones((1, 7), bool)}, ValueError, r"got bool\[1, 7\]"),
    ],
)  # fmt: skip
def test_bad_edits_dictionaries_and_masks(model, tokens, arguments, kind, message):
    with pytest.raises(kind, match=message):
        jc.run(model, tokens, **arguments)


@pytest.mark.parametrize(
    ("saes", "message"),
    [
        ({RESID: jc.saes.Identity(8)}, "at `blocks.1.hook_resid_mid` maps 8 numbers to 8, and there the model has 16 and 16"),
        ({RESID: jc.saes.Identity(16, Site(0, Kind.RESID_MID))}, "for `blocks.1.hook_resid_mid` was trained for `blocks.0.hook_resid_mid`"),
        ({RESID: transcoder(Site(1, Kind.MLP_OUT), RESID)}, "reads `blocks.1.hook_mlp_out`, which the model does not compute before"),
        ({RESID: transcoder(Site(5, Kind.MLP_OUT), RESID)}, "reads `blocks.5.hook_mlp_out`, which the model does not compute before"),
        ({RESID: transcoder(None, RESID)}, "does not say which site it reads"),
        ({RESID: transcoder(Site(1, Kind.Q), RESID)}, "maps 16 numbers to 16, and there the model has 12 and 16"),
    ],
)  # fmt: skip
def test_dictionaries_of_another_model_or_site(model, tokens, saes, message):
    with pytest.raises(ValueError, match=message):
        jc.run(model, tokens, saes=saes)


def test_processing_is_compared(model, tokens):
    with pytest.warns(
        UserWarning, match="processed by center_writing, and random is processed by nothing. The activations there"
    ):
        jc.run(model, tokens, saes={RESID: jc.saes.Identity(16, RESID, ("center_writing",))})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for processing in (None, (), ("fold_layer_norm",)):  # folding norms leaves the residual stream as it is
            jc.run(model, tokens, saes={RESID: jc.saes.Identity(16, RESID, processing)})


def test_a_model_wants_a_window_for_each_layer():
    with pytest.raises(ValueError, match="one entry a layer: expected 2, got 3"):
        make_model(jax.random.key(0), windows=(None, 3, None))

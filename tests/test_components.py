"""Components: against sums of materialised outputs, against runs with a part replaced, and against loops."""

import dataclasses
import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.parts import LayerNorm
from jaxcirc.runs import _resume
from tests import oracle
from tests.helpers import assert_close, counting_calls, make_model, MODELS, needs_x64, tokens_for


pytestmark = needs_x64
VARIANTS = {
    **MODELS,
    "processed": lambda key: jc.process_weights(make_model(key)),
    "gpt-neo processed": lambda key: jc.process_weights(MODELS["gpt-neo"](key)),
    "gemma2 processed": lambda key: jc.process_weights(MODELS["gemma2"](key)),
    "layer norms behind": lambda key: make_model(key, behind=True),
}
MASK = np.array([[True] * 6, [True] * 4 + [False] * 2, [False] * 2 + [True] * 4])


def problem(name="gpt2", *, batch=3, seq=6):
    model = VARIANTS[name](jax.random.key(3))
    words = min(model.d_vocab, model.W_U.shape[1])
    return model, jnp.stack([tokens_for(model, seq, seed) % words for seed in range(batch)])


def written(model, tokens, keys=None, edits=None):
    """One sequence's components, all there: heads `[layer seq head d_model]`, MLPs `[layer seq d_model]`, and what else there is; `post`
    `[layer seq 1]` is by what a norm behind attention divides, and logits are before a cap.
    """
    model = dataclasses.replace(model, logit_cap=None)
    layers = range(model.n_layers)
    has_mlp, has_post = model.blocks[0].mlp is not None, model.blocks[0].ln1_post is not None
    names = {
        "result": [Site(i, Kind.RESULT) for i in layers],
        "mlp": [Site(i, Kind.MLP_OUT) for i in layers if has_mlp],
        "pre": [Site(i, Kind.RESID_PRE) for i in layers],
        "last": [Site(model.n_layers - 1, Kind.RESID_POST)],
        "post": [Site(i, Kind.LN1_POST_SCALE) for i in layers if has_post],
    }
    logits, cache = run(model, tokens, keys, edits or {}, tuple(site for sites in names.values() for site in sites))
    found = {name: np.stack([cache[site] for site in sites]) for name, sites in names.items() if sites}
    found.setdefault("mlp", np.zeros_like(found["pre"]))
    return {"post": None, **found, "logits": np.asarray(logits)}


@ft.partial(jax.jit, static_argnames="sites")
def run(model, tokens, keys, edits, sites):
    return jc.run(model, tokens, edits=edits, record=sites, mask=keys)


def affine(norm, x, scale):
    """What a norm makes of `x`, but for its bias, with the scale by which it divides; and its bias."""
    centred = x - x.mean(-1, keepdims=True) if isinstance(norm, LayerNorm) else x
    gain = 1.0 if norm.weight is None else getattr(norm, "offset", 0.0) + np.asarray(norm.weight)
    bias = getattr(norm, "bias", None)
    return centred / scale * gain, 0.0 if bias is None else np.asarray(bias)


def read(model, found, target, scale=None, post=None):
    """The direct effects of a sequence's components on the centred logit of `target` `[seq]`, by hand."""
    last, W_U, b_U = found["last"][0], np.asarray(model.W_U), np.asarray(model.b_U)
    u = (W_U - W_U.mean(1, keepdims=True))[:, target].T
    constant = (b_U - b_U.mean())[target]
    norm = model.ln_final
    if norm is None:
        along = lambda x: (x * u).sum(-1)
        scale = np.ones(len(last))
    else:
        own = np.sqrt((last.var(-1) if isinstance(norm, LayerNorm) else np.square(last).mean(-1)) + norm.eps)
        scale = own if scale is None else scale
        along = lambda x: (affine(norm, x, scale[:, None])[0] * u).sum(-1)
        constant = constant + (affine(norm, last, scale[:, None])[1] * u).sum(-1)
    post = found["post"] if post is None else post
    added, biases_behind = [], []
    for layer, (block, result) in enumerate(zip(model.blocks, found["result"], strict=True)):
        b_O = np.broadcast_to(np.asarray(block.attn.b_O), last.shape)
        if block.ln1_post is not None:
            result = affine(block.ln1_post, result, post[layer][:, None])[0]
            b_O = np.add(*affine(block.ln1_post, b_O, post[layer]))
        added.append(result)
        biases_behind.append(b_O)
    heads = np.stack([[along(layer[:, head]) for head in range(model.n_heads)] for layer in added])
    mlps = np.stack([along(layer) for layer in found["mlp"]])
    b_O = np.stack([along(b) for b in biases_behind])
    biases = b_O.sum(0) + constant
    parts = {"heads": heads, "mlps": mlps, "embed": along(found["pre"][0]), "biases": biases}
    return {**parts, "b_O": b_O, "scale": scale, "along": along}


def centred(logits, target):
    return np.take_along_axis(logits - logits.mean(-1, keepdims=True), target[:, None], axis=-1)[:, 0]


@pytest.mark.parametrize("name", VARIANTS)
def test_direct_effects_are_the_parts_of_the_logit(name):
    model, tokens = problem(name)
    got = jc.direct_effects(model, tokens)
    for i in range(len(tokens)):
        found = written(model, tokens[i])
        target = np.roll(tokens[i], -1)
        want = read(model, found, target)
        for part in ("heads", "mlps", "embed", "biases"):
            if part == "mlps" and model.blocks[0].mlp is None:
                assert not np.asarray(got.mlps).any()
                continue
            assert_close(getattr(got, part)[i, ..., :-1], want[part][..., :-1], tolerance=1e-10, mass=0.01)
        assert_close(got.total[i, :-1], centred(found["logits"], target)[:-1], tolerance=1e-10, mass=0.1)
    assert not np.asarray(got.total[:, -1]).any()
    per_layer = got.heads.sum(2) + got.mlps
    assert np.abs(per_layer).max() > 0.01
    b_O = np.diff(got.accumulated, axis=1) - per_layer
    assert_close(got.accumulated[:, -1], got.embed + (per_layer + b_O).sum(1), tolerance=1e-10)


def test_padding_has_no_effects_and_no_next_token():
    model, tokens = problem()
    got = jc.direct_effects(model, tokens, mask=jnp.asarray(MASK), tokens_at_once=6)
    for i, keys in enumerate(MASK):
        here = keys & np.roll(keys, -1) & (np.arange(6) < 5)
        want = read(model, written(model, tokens[i], jnp.asarray(keys)), np.roll(tokens[i], -1))
        assert_close(got.heads[i][..., here], want["heads"][..., here], tolerance=1e-10, mass=0.1)
        assert not np.asarray(got.total[i, ~here]).any()
        assert not np.asarray(got.heads[i][..., ~here]).any()


@pytest.mark.parametrize("name", ["gpt2-untied", "no-norm-relu-bidirectional", "gemma2"])
def test_answers_of_every_kind(name):
    """Of logits before a cap."""
    model, tokens = problem(name)
    logits = np.stack([written(model, row)["logits"] for row in tokens])
    each = np.asarray([[1, 2, 3, 4, 0, 1], [4, 4, 4, 0, 0, 0], [2, 1, 2, 1, 2, 1]])
    of = lambda ids: np.take_along_axis(logits, np.broadcast_to(ids, (3, 6))[..., None], -1)[..., 0]
    mean = logits.mean(-1)
    total = lambda *given, **more: jc.direct_effects(model, tokens, *given, **more).total
    assert_close(total(jnp.asarray(each)), of(each) - mean, tolerance=1e-10)
    assert_close(total(jnp.asarray([1, 2, 0])), of(np.array([[1], [2], [0]])) - mean, tolerance=1e-10)
    assert_close(total(3), of(3) - mean, tolerance=1e-10)
    assert_close(total(jnp.asarray(each), foils=2), of(each) - of(2), tolerance=1e-10)
    normalized = np.linalg.lstsq(
        np.asarray(model.W_U).T, (logits - np.asarray(model.b_U)).reshape(18, -1).T, rcond=None
    )[0]
    direction = np.asarray(model.W_U) @ np.arange(5.0, 5.0 + logits.shape[-1])
    want = (np.asarray(model.W_U).T @ normalized).T @ np.arange(5.0, 5.0 + logits.shape[-1])
    for shape in ((16,), (3, 16), (3, 6, 16)):
        assert_close(total(jnp.broadcast_to(direction, shape)), want.reshape(3, 6), tolerance=1e-10)


@pytest.mark.parametrize("name", ["gpt-neo", "parallel", "neox", "llama", "olmo2", "gemma2", "layer norms behind"])
def test_mlps_and_heads_taken_apart(name):
    model, tokens = problem(name)
    got = jc.direct_effects(model, tokens, neurons=[1], sources=[(1, 0), (0, 1)])
    assert {layer: x.shape for layer, x in got.neurons.items()} == {1: (3, 6, 24)}
    block, site = model.blocks[1], Site(1, Kind.LN2_POST_SCALE)
    for i in range(3):
        found = read(model, written(model, tokens[i]), np.roll(tokens[i], -1))
        rest = np.broadcast_to(np.asarray(block.mlp.b_out), (6, 16))
        if block.ln2_post is not None:
            rest = np.add(*affine(block.ln2_post, rest, np.asarray(run(model, tokens[i], None, {}, (site,))[1][site])))
        want = found["mlps"][1] - found["along"](rest)
        assert_close(got.neurons[1][i].sum(-1)[:-1], want[:-1], tolerance=1e-10)
    for (layer, head), apart in got.sources.items():
        assert apart.shape == (3, 6, 6)
        assert_close(apart.sum(-1), got.heads[:, layer, head], tolerance=1e-10)
        assert not np.asarray(apart)[:, *np.triu_indices(6, 1)].any()
    assert np.count_nonzero(got.sources[1, 0]) > 3 * np.count_nonzero(got.heads[:, 1, 0]) / 2


@pytest.mark.parametrize("name", ["gpt2-untied", "llama", "gemma2"])
def test_the_logit_lens(name):
    """Logits as the model makes them, and answers before a cap."""
    model, tokens = problem(name)
    uncapped = dataclasses.replace(model, logit_cap=None)
    lens = jc.logit_lens(model, tokens, tokens_at_once=6)
    accumulated = []
    for i, row in enumerate(tokens):
        found = written(model, row)
        resid = [*found["pre"], found["last"][0]]
        for depth, x in enumerate(resid):
            edits = {Site(1, Kind.RESID_POST): jc.Replace(x)}
            want = np.asarray(run(model, row, None, edits, ())[0])
            assert_close(lens.logits(depth)[i], want, tolerance=1e-10)
            before = np.asarray(run(uncapped, row, None, edits, ())[0])
            assert_close(lens.answers(2)[i, depth], (before - before.mean(-1, keepdims=True))[:, 2], tolerance=1e-10)
            ids, values = lens.top(3)
            np.testing.assert_array_equal(ids[i, depth], np.argsort(-want)[:, :3])
            assert_close(values[i, depth], -np.sort(-want)[:, :3], tolerance=1e-10)
        assert_close(lens.logits(-1)[i], run(model, row, None, {}, ())[0], tolerance=1e-10)
        u = np.asarray(model.W_U)[:, 2] - np.asarray(model.W_U).mean(1)
        scale = read(model, found, np.full(6, 2))["scale"][:, None]
        along = lambda x, u=u, scale=scale: affine(model.ln_final, x, scale)[0] @ u
        accumulated.append([along(x) for x in resid])
    assert_close(jc.direct_effects(model, tokens, 2).accumulated, accumulated, tolerance=1e-10)


def test_answers_and_parts_that_are_refused(untyped):
    model, tokens = problem("gpt2-untied")
    refused = [
        (dict(answers=jnp.zeros((2, 6), int)), r"answers: expected shape \(\), \(3,\) or \(3, 6\).* got \(2, 6\)"),
        (dict(answers=jnp.zeros((3, 5))), r"answers: expected shape \(16,\), \(3, 16\) or \(3, 6, 16\).* got \(3, 5\)"),
        (dict(answers=9), "Token id 9 is outside the vocabulary of random, 0 to 6"),
        (dict(answers=1, foils=jnp.zeros(3)), "foils: expected token ids, got dtype float64"),
        (dict(answers=jnp.zeros(16), foils=1), "foils are tokens, and the answers are directions"),
        (dict(neurons=[2]), "There is no layer 2 in random: it has 2 layers, 0 to 1"),
        (dict(sources=[(1, 2)]), r"There is no head \(1, 2\) in random: its layers have 2 heads, 0 to 1"),
        (dict(mask=jnp.ones((3, 5), bool)), "mask: expected one boolean a token"),
        (dict(tokens_at_once=0), "tokens_at_once is how many tokens are run at once, at least 1; got 0"),
    ]
    for arguments, message in refused:
        with pytest.raises(ValueError, match=message):
            jc.direct_effects(model, tokens, **arguments)
    for arguments, message in [
        (dict(neurons="all"), r"neurons: expected a list of layers, got one. Write \['all'\]"),
        (dict(neurons=1), "neurons: expected a list of layers, got 1"),
        (dict(neurons=[1.0]), r"neurons: expected a list of layers, as whole numbers; 1\.0 is none"),
        (dict(sources=[(1,)]), r"sources: expected a list of heads as \(layer, head\); \(1,\) is none"),
        (dict(sources=["a1.h0"]), r"sources: expected a list of heads as \(layer, head\); 'a1\.h0' is none"),
        (dict(sources=[(0.5, 0)]), r"sources: expected a list of heads as \(layer, head\); \(0\.5, 0\) is none"),
    ]:
        with pytest.raises(TypeError, match=message):
            jc.direct_effects(model, tokens, **arguments)
    with pytest.raises(ValueError, match=r"Token id .* is outside the vocabulary of random, 0 to 6"):
        jc.direct_effects(model, tokens + 6)  # the next tokens
    with pytest.raises(ValueError, match="random is of attention only, so layer 0 has none"):
        jc.direct_effects(*problem("attention-only"), neurons=[0])
    with pytest.raises(ValueError, match="There is no depth 3"):
        jc.logit_lens(model, tokens).logits(3)


def replaced(model, tokens, parts, others):
    """Logits with heads and whole sites of the values that they have in `others`, site -> `[seq …]`, sequence by sequence."""
    out = []
    for i, row in enumerate(tokens):
        edits = {}
        for site, values in others.items():
            heads = [(site.layer, head) in parts for head in range(model.n_heads)]
            member = np.array(heads)[:, None] if site.kind == Kind.Z else np.array(site in parts)
            edits[site] = jc.Blend(member, values[i])
        out.append(run(model, row, None, edits, ())[0])
    return np.stack(out)


def values_at(model, tokens, sites):
    caches = [run(model, row, None, {}, sites)[1] for row in tokens]
    return {site: np.stack([cache[site] for cache in caches]) for site in sites}


@pytest.fixture(params=["gpt2", "parallel", "gemma2"], name="ablations")
def make_ablations(request):
    """A model, prompts, parts, and of each ablation what its parts become."""
    model, tokens = problem(request.param)
    reference = jnp.asarray(np.random.default_rng(0).integers(0, model.d_vocab, (4, 6)), jnp.int32)
    parts = [(0, 1), (1, 0), (1, 1), Site(1, Kind.MLP_OUT)]
    seen = values_at(model, reference, (Site(0, Kind.Z), Site(1, Kind.Z), parts[-1]))
    others = {
        "zero": (jc.Zero(), {site: np.zeros_like(x[:3]) for site, x in seen.items()}),
        "mean": (jc.Mean(reference), {site: np.stack([x.mean(0)] * 3) for site, x in seen.items()}),
        "resample": (jc.Resample(reference[:3]), {site: x[:3] for site, x in seen.items()}),
    }
    return model, tokens, parts, others


def test_ablations_are_runs_with_values_replaced(ablations):
    model, tokens, parts, others = ablations
    for values, arrays in others.values():
        want = replaced(model, tokens, parts, arrays)
        assert np.abs(want - replaced(model, tokens, [], arrays)).max() > 0.1
        assert_close(jc.ablate(model, tokens, [*parts[:3], str(parts[3])], values), want, tolerance=1e-10)


def test_each_part_by_itself_is_a_loop(ablations):
    model, tokens, parts, others = ablations
    values, arrays = others["resample"]
    want = np.stack([replaced(model, tokens, [part], arrays) for part in parts])
    assert np.abs(want - replaced(model, tokens, [], arrays)).max((1, 2, 3)).min() > 0.01
    assert_close(jc.ablate_each(model, tokens, parts, values, tokens_at_once=50), want, tolerance=1e-10)
    metric = jc.LogitDiff(jnp.arange(3), jnp.arange(3) + 1)
    at = lambda ids: np.take_along_axis(want[:, :, -1], ids[None, :, None], -1)[..., 0]
    found = jc.ablate_each(model, tokens, parts, values, metric, tokens_at_once=50)
    assert_close(found, at(np.arange(3)) - at(np.arange(3) + 1), tolerance=1e-10)


def test_latents_are_ablated_as_nodes(getkey):
    model, tokens = problem()
    saes = oracle.random_saes(getkey(), model, alike=True)
    site = Site(0, Kind.MLP_OUT)
    acts = [oracle.record(model, row, saes, [site.acts])[site.acts] for row in tokens]
    unit = int(np.argmax(np.abs(np.stack(acts)).sum((0, 1))))
    want = np.stack(
        [
            jc.run(model, row, saes={site: saes[site]}, edits={site.acts: jc.Replace(a.at[:, unit].set(0))})[0]
            for row, a in zip(tokens, acts, strict=True)
        ]
    )
    got = jc.ablate(model, tokens, [(str(site), unit)], jc.Zero(), saes=saes)
    clean = np.stack([written(model, row)["logits"] for row in tokens])
    assert np.abs(want - clean).max() > 0.01
    assert_close(got, want, tolerance=1e-10)
    whole = jc.ablate(model, tokens, [site.acts, site.error], jc.Zero(), saes=saes)
    gone = {
        site: np.broadcast_to(np.asarray(saes[site].decode(jnp.zeros(saes[site].d_sae), jnp.zeros(16))), (3, 6, 16))
    }
    assert_close(whole, replaced(model, tokens, [site], gone), tolerance=1e-10)


@pytest.mark.parametrize("side", [1, -1])
def test_means_leave_padding_out(side):
    model, tokens = problem()
    mask = np.array([[True] * 6, [True] * 4 + [False] * 2, [True] * 3 + [False] * 3])[:, ::side]
    site = Site(1, Kind.Z)
    seen = np.stack(
        [run(model, row, jnp.asarray(keys), {}, (site,))[1][site] for row, keys in zip(tokens, mask, strict=True)]
    )
    weights = mask / mask.sum(0)
    mean = np.einsum("bs,bshd->shd", weights, seen)
    got = jc.ablate(model, tokens, [(1, 0)], jc.Mean(tokens, jnp.asarray(mask)))
    assert_close(got, replaced(model, tokens, [(1, 0)], {site: np.stack([mean] * 3)}), tolerance=1e-10)


def test_prompts_to_resample_from_are_others():
    tokens = jnp.arange(10)[:, None] + jnp.zeros((10, 2), int)
    shuffled = np.asarray(jc.Resample.shuffled(tokens, jax.random.key(1)).tokens)[:, 0]
    assert sorted(shuffled) == list(range(10))
    assert (shuffled != np.arange(10)).all()
    assert (shuffled != np.roll(np.arange(10), 1)).any()
    np.testing.assert_array_equal(jc.Resample.rolled(tokens).tokens, np.roll(tokens, 1, axis=0))


def test_every_part_by_itself_is_one_trace():
    model, tokens = problem()
    heads = [(layer, head) for layer in range(2) for head in range(2)]
    with counting_calls(jc.Transformer, "__call__") as traces:
        jc.ablate_each(model, tokens, heads, jc.Zero(), jc.LogitDiff(2, 1), tokens_at_once=18)
        once = len(traces)
        jc.ablate_each(model, tokens, heads[::-1], jc.Zero(), jc.LogitDiff(3, 1), tokens_at_once=18)
    assert once == len(traces) <= 2  # the other finds what sites there are


def test_each_part_is_ablated_from_its_block_on(monkeypatch, getkey):
    """Counts the variants that each block runs, beside the clean run; what is written outside of blocks takes whole runs, as before."""
    model, tokens = problem()
    saes = oracle.random_saes(getkey(), model, alike=True)
    values = jc.Resample(tokens[::-1])
    parts = [(1, 0), "hook_embed", (0, 1), (Site(1, Kind.MLP_OUT), 3), (1, 1), "ln_final.hook_scale"]
    want = [jc.ablate(model, tokens, [part], values, saes=saes) for part in parts]
    run, through = [], _resume._through

    def counted(block, masks, rows, *more, **kwargs):
        run.append((int(block is model.blocks[1]), len(rows)))
        return through(block, masks, rows, *more, **kwargs)

    monkeypatch.setattr(_resume, "_through", counted)
    got = jc.ablate_each(model, tokens, parts, values, saes=saes)
    assert_close(got, np.stack(want), tolerance=1e-10)
    variants = [sum(n for layer, n in run if layer == at) for at in range(2)]
    batch, clean = len(tokens), len(tokens)
    assert variants == [clean + batch, clean + 4 * batch], run


def test_what_ablation_refuses(untyped, getkey):
    model, tokens = problem()
    saes = oracle.random_saes(getkey(), model, alike=True)
    site = Site(0, Kind.MLP_OUT)
    refused = [
        ([(2, 0)], jc.Zero(), "There is no layer 2 in random: it has 2 layers, 0 to 1"),
        ([(1, 5)], jc.Zero(), r"There is no head \(1, 5\) in random: its layers have 2 heads, 0 to 1"),
        ([], jc.Zero(), "ablate: no part was given"),
        (["blocks.7.hook_mlp_out"], jc.Zero(), r"There is no site `blocks.7.hook_mlp_out` in random with 2 layers"),
        (["blocks.0.attn.hook_pattern"], jc.Zero(), "is not a component's output. Ablate `blocks.0.attn.hook_z`"),
        ([(site, 99)], jc.Zero(), r"the dictionary at `blocks.0.hook_mlp_out` has \d+ latents, 0 to \d+"),
        ([("blocks.1.attn.hook_z", 1)], jc.Zero(), "is a latent, and there is no dictionary at `blocks.1.attn.hook_z`"),
        ([Site(1, Kind.Z).acts], jc.Zero(), "is of a dictionary, and there is none at `blocks.1.attn.hook_z`"),
        ([(0, 0)], jc.Resample(tokens[:, :4]), r"resample from have shape \(3, 4\) and those that are run \(3, 6\)"),
        ([(0, 0)], jc.Mean(tokens[:, :4]), r"Mean: its tokens have shape \(3, 4\) and those that are run \(3, 6\)"),
    ]
    for parts, values, message in refused:
        with pytest.raises(ValueError, match=message):
            jc.ablate(model, tokens, parts, values, saes=saes)
    with pytest.raises(TypeError, match=r"A part is \(layer, head\), a site or its name, or \(site, unit\)"):
        jc.ablate(model, tokens, [3], jc.Zero())
    for alone in ((0, 0), "blocks.0.hook_mlp_out"):
        with pytest.raises(TypeError, match="ablate: expected a list of parts, got one"):
            jc.ablate(model, tokens, alone, jc.Zero())
    with pytest.raises(
        TypeError, match=r"expected jc.Zero\(\), jc.Mean\(tokens\) or jc.Resample\(tokens\) as the values, got a str"
    ):
        jc.ablate(model, tokens, [(0, 0)], "zero")
    with pytest.raises(ValueError, match="Resample takes another prompt's values, and there is one prompt"):
        jc.Resample.rolled(tokens[:1])

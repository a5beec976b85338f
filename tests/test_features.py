"""Latents by latents: against jacrev of whole runs, the closed form without attention, moved latents; and what is refused."""

import dataclasses
import functools as ft
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc._run import site_shapes
from jaxcirc.features import _same
from jaxcirc.features._cosine import cosines
from jaxcirc.features._ends import Dictionaries, Ends
from jaxcirc.features._latents import Latents, Pairs
from jaxcirc.linear import _same_position
from jaxcirc.saes import anonymous, Identity, Standardise, TanhReLU, TopK

from . import figures
from .dictionaries import make_sae, spliced_at, thresholds, transcoder
from .helpers import assert_close, by_numpy, Chosen, counting_calls, model_named, needs_x64, tokens_for


pytestmark = needs_x64

SEQ, LEAST = 6, 0.3
POST0, POST1 = Site(0, Kind.MLP_POST), Site(1, Kind.MLP_POST)
MLP_OUTS = Site(0, Kind.MLP_OUT), Site(1, Kind.MLP_OUT)
SUBSTITUTES = [(), ("source",), ("target",), ("source", "target")]


def dictionary(model, site, seed, make=make_sae, **settings):
    """A random dictionary for a site, whatever its width."""
    return make(jax.random.key(seed), site_shapes(model, 1)[site].size, site, **settings)


def both(model, source, target, **settings):
    return {site: dictionary(model, site, seed, **settings) for seed, site in enumerate((source, target), start=3)}


def by_jacrev(model, saes, tokens, source, target, *, substitute):
    """`[target_seq target source_seq source]` and the latents, by jacrev of a run with both dictionaries spliced in."""
    pair = {site: saes[site] for site in (source, target)}
    replaced = np.array([side in substitute for side in ("source", "target")])
    zero = np.zeros((len(tokens), saes[source].d_sae))
    return jax.tree.map(np.asarray, _by_jacrev(zero, model, pair, tokens, replaced, source, target))


@ft.partial(by_numpy, static_argnames=("source", "target"))
def _by_jacrev(zero, model, saes, tokens, replaced, source, target):
    """The same; `replaced` says of the source and the target whether the error is 0, so that one program serves all cases."""

    def run(step):
        errors = {
            site.error: Chosen(choice, (jc.Replace(0.0),))
            for site, choice in zip((source, target), replaced, strict=True)
        }
        edits = errors | {source.acts: jc.Add(step)}
        cache = jc.run(model, tokens, saes=saes, edits=edits, record=[source.acts, target.acts])[1]
        return cache[target.acts], (cache[source.acts], cache[target.acts])

    return jax.jacrev(run, has_aux=True)(zero)


def check(model, saes, tokens, source, target, *, positions=("same",), substitute=("source", "target")):
    """Every row against the whole Jacobian, and that no pair is missing."""
    want, (before, after) = by_jacrev(model, saes, tokens, source, target, substitute=substitute)
    p, j, q, i = np.nonzero((after > LEAST)[:, :, None, None] & (before > LEAST))
    for which in positions:
        how = {"minimum": LEAST, "positions": which, "substitute": substitute}
        got = jc.feature_jacobian(model, saes, tokens, source, target, **how)
        kept = p == q if which == "same" else (p >= q) | (not model.causal)
        rows = np.stack([p, j, q, i])[:, kept]
        np.testing.assert_array_equal(np.stack([got.position, got.target, got.source_position, got.source]), rows)
        assert len(got) > 20
        assert_close(got.gradient, want[tuple(rows)], mass=1e-2)
        assert_close(got.source_act, before[tuple(rows[2:])])
        assert_close(got.target_act, after[tuple(rows[:2])])


# --- Gradients, against jacrev of the whole run


ENDS = {
    "one sublayer": ("gpt2", Site(1, Kind.RESID_MID), Site(1, Kind.MLP_OUT)),
    "one attention": ("gpt-neo", Site(0, Kind.RESID_POST), Site(1, Kind.ATTN_OUT)),
    "GPT-Neo, local attention": ("gpt-neo", POST0, POST1),
    "embedding to the end": ("lnpre", Site(None, Kind.EMBED), Site(1, Kind.RESID_POST)),
    "several blocks": ("gpt2-inverse-layer-scale", POST0, Site(2, Kind.MLP_POST)),
    "parallel blocks": ("parallel", Site(0, Kind.RESID_PRE), Site(1, Kind.MLP_OUT)),
    "parallel, from one MLP to the next": ("parallel", POST0, POST1),
    "parallel, out of attention": ("parallel", Site(0, Kind.Z), Site(1, Kind.RESID_POST)),
    "parallel, in one block": ("parallel", Site(1, Kind.RESID_PRE), Site(1, Kind.RESID_POST)),
    "attention only": ("attention-only", Site(0, Kind.ATTN_OUT), Site(1, Kind.Z)),
    "attention only, all of it": ("attention-only", Site(None, Kind.EMBED), Site(1, Kind.RESID_POST)),
    "attention only, from one to the next": ("attention-only", Site(0, Kind.Z), Site(1, Kind.Q)),
    "heads": ("gpt2", Site(0, Kind.Z), Site(1, Kind.V)),
    "the next block's": ("gpt2", Site(0, Kind.MLP_OUT), Site(1, Kind.RESID_PRE)),
    "both directions": ("no-norm-relu-bidirectional", Site(0, Kind.RESID_PRE), Site(1, Kind.RESID_POST)),
    "both directions, one attention": ("no-norm-relu-bidirectional", POST0, POST1),
    "both directions, from one attention to the next": (
        "no-norm-relu-bidirectional",
        Site(0, Kind.V),
        Site(1, Kind.ATTN_OUT),
    ),
    "both directions, no attention": ("no-norm-relu-bidirectional", Site(1, Kind.RESID_MID), Site(1, Kind.MLP_POST)),
    "separate unembedding": ("gpt2-untied", Site(0, Kind.LN2_NORMALIZED), Site(1, Kind.K)),
    "rotary, parallel": ("neox", POST0, POST1),
    "rotary, parallel, heads": ("neox", Site(0, Kind.Z), Site(1, Kind.ROT_Q)),
    "gated": ("llama", POST0, POST1),
    "gated, what attention reads": ("llama", Site(0, Kind.MLP_OUT), Site(1, Kind.ATTN_IN)),
    "shared values": ("llama", Site(0, Kind.V), Site(1, Kind.MLP_PRE_LINEAR)),
    "norms of queries and keys": ("qwen3", Site(0, Kind.ATTN_OUT), Site(1, Kind.MLP_IN)),
    "norms of queries and keys, behind them": ("qwen3", Site(0, Kind.RESID_PRE), Site(1, Kind.K_NORMALIZED)),
    "norms behind alone": ("olmo2", POST0, POST1),
    "norms behind alone, heads": ("olmo2", Site(0, Kind.Z), Site(1, Kind.RESID_POST)),
    "norms behind": ("gemma2", Site(0, Kind.Z), Site(1, Kind.MLP_POST)),
    "norms behind, their outputs": ("gemma3", MLP_OUTS[0], MLP_OUTS[1]),
    "norms behind, what they read": ("gemma3", Site(0, Kind.NEURONS_OUT), Site(1, Kind.HEADS_OUT)),
    "embedding, scaled": ("gemma2", Site(None, Kind.EMBED), Site(0, Kind.MLP_IN)),
}


AT_ALL_POSITIONS = (
    *("GPT-Neo, local attention", "several blocks", "the next block's", "both directions"),
    *("gated", "norms behind alone, heads", "norms behind"),
    *(
        "parallel, from one MLP to the next",
        "attention only, all of it",
        "both directions, from one attention to the next",
    ),
)


@pytest.mark.parametrize("name", ENDS)
def test_gradients_are_those_of_the_whole_run(name):
    kind, source, target = ENDS[name]
    model = model_named(kind)
    positions = ("same", "all") if name in AT_ALL_POSITIONS else ("same",)
    check(model, both(model, source, target), tokens_for(model, SEQ), source, target, positions=positions)


@pytest.mark.parametrize("substitute", SUBSTITUTES)
def test_what_is_substituted(substitute):
    model = model_named("gpt2")
    saes = both(model, POST0, POST1)
    check(model, saes, tokens_for(model, SEQ), POST0, POST1, positions=("same", "all"), substitute=substitute)


def test_only_the_sources_reconstruction_matters():
    """The target's latents are upstream of its reconstruction."""
    model = model_named("gpt2")
    arguments = model, both(model, POST0, POST1), tokens_for(model, SEQ), POST0, POST1
    found = {each: jc.feature_jacobian(*arguments, minimum=LEAST, substitute=each) for each in SUBSTITUTES}
    for with_target, without in (SUBSTITUTES[2::-2], SUBSTITUTES[3:0:-2]):
        assert_close(found[with_target].gradient, found[without].gradient)
        assert found[with_target].substitute == with_target
    alike = [np.sort(found[each].gradient)[-20:] for each in ((), ("source",))]
    assert np.abs(alike[0] - alike[1]).max() > 0.01


@pytest.mark.parametrize(("few", "many"), [(8, 24), (24, 8)])
def test_whichever_side_has_fewer(few, many):
    model = model_named("gpt2")
    saes = {POST0: dictionary(model, POST0, 3, d_sae=few), POST1: dictionary(model, POST1, 4, d_sae=many)}
    check(model, saes, tokens_for(model, SEQ), POST0, POST1)


@pytest.mark.parametrize("kind", ["parallel", "attention-only", "no-norm-relu-bidirectional"])
@pytest.mark.parametrize("make", ["transcoder-skip", "topk-standardised"])
def test_dictionaries_that_decode_their_input_in_other_models(kind, make):
    """Replaced or not, the source's latents are the variable, and what its decoder reads beside them is before them."""
    model = model_named(kind)
    ends = (Site(0, Kind.ATTN_OUT), Site(1, Kind.RESID_POST)) if model.blocks[0].mlp is None else MLP_OUTS
    saes = {site: spliced_at(make, model, site, seed) for seed, site in enumerate(ends, start=3)}
    for substitute in ((), ("source",)):
        check(model, saes, tokens_for(model, SEQ), *ends, positions=("same", "all"), substitute=substitute)


def test_what_does_not_lead_there_in_other_models():
    """Side by side, attention does not feed the MLP of its block; there is no MLP in a model of attention only, and no norm without one."""
    cases = {
        "parallel": (Site(1, Kind.ATTN_OUT), Site(1, Kind.MLP_OUT), "do not depend on the source.*Are they swapped"),
        "attention-only": (Site(0, Kind.ATTN_OUT), Site(1, Kind.MLP_OUT), "no site `blocks.1.hook_mlp_out` in random"),
        "no-norm-relu-bidirectional": (
            POST0,
            Site(1, Kind.LN2_NORMALIZED),
            "no site `blocks.1.ln2.hook_normalized` in",
        ),
    }
    for kind, (source, target, message) in cases.items():
        model = model_named(kind)
        saes = {
            site: make_sae(jax.random.key(0), 24 if site.kind == Kind.MLP_POST else 16) for site in (source, target)
        }
        with pytest.raises(ValueError, match=message):
            jc.feature_jacobian(model, saes, tokens_for(model, SEQ), source, target, minimum=LEAST)


def normalised(key, width, site):
    return make_sae(key, width, site, normalisation=Standardise(1e-5))


KINDS = {
    "normalised to transcoder": (normalised, transcoder),
    "transcoder to normalised": (transcoder, normalised),
    "top k to tanh": (
        lambda *given: make_sae(*given, TopK(7)),
        lambda *given: make_sae(*given, TanhReLU()),
    ),
    "identity to thresholds": (
        lambda key, width, site: Identity(width, site),
        lambda key, width, site: make_sae(key, width, site, thresholds(key)),
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_dictionary(name):
    model, ends = model_named("gpt2"), (Site(0, Kind.MLP_OUT), Site(1, Kind.MLP_OUT))
    saes = {
        site: dictionary(model, site, 3 + i, make) for i, (site, make) in enumerate(zip(ends, KINDS[name], strict=True))
    }
    check(model, saes, tokens_for(model, SEQ), *ends)


def test_without_attention_it_is_the_closed_form():
    r"""$W_{enc}^T \mathrm{diag}(act') W_{in}^T \mathrm{diag}(g) (C - y y^T / d) / s\, W_{out}^T W_{dec}^T$, written out."""
    model = model_named("gpt2")
    attn = model.blocks[1].attn
    blocks = (model.blocks[0], dataclasses.replace(model.blocks[1], attn=dataclasses.replace(attn, W_O=0 * attn.W_O)))
    model, tokens = dataclasses.replace(model, blocks=blocks), tokens_for(model, SEQ)
    saes = both(model, POST0, POST1)
    values = jc.run(model, tokens, record=[POST0, Site(0, Kind.RESID_MID)])[1]
    f0 = saes[POST0].encode(values[POST0])
    first, second = blocks[0].mlp, blocks[1]
    resid = values[Site(0, Kind.RESID_MID)] + saes[POST0].decode(f0) @ first.W_out + first.b_out + second.attn.b_O
    resid, d = np.asarray(resid), model.d_model
    scale = np.sqrt(resid.var(-1, keepdims=True) + second.ln2.eps)
    y = (resid - resid.mean(-1, keepdims=True)) / scale
    pre = (y * second.ln2.weight + second.ln2.bias) @ second.mlp.W_in + second.mlp.b_in
    u = np.sqrt(2 / np.pi) * (pre + 0.044715 * pre**3)
    slope = 0.5 * (1 + np.tanh(u)) + 0.5 * pre * (1 - np.tanh(u) ** 2) * np.sqrt(2 / np.pi) * (1 + 0.134145 * pre**2)
    C = np.eye(d) - 1 / d
    J = jc.feature_jacobian(model, saes, tokens, POST0, POST1, minimum=LEAST)
    want = []
    for p, j, i in zip(J.position, J.target, J.source, strict=True):
        direction = (C - np.outer(y[p], y[p]) / d) @ (first.W_out.T @ saes[POST0].W_dec[i]) / scale[p]
        hidden = slope[p] * (second.mlp.W_in.T @ (second.ln2.weight * direction))
        want.append(saes[POST1].W_enc[:, j] @ hidden)
    assert len(want) > 100
    assert_close(J.gradient, np.array(want), mass=0.1)


def test_in_parts_it_is_the_same(monkeypatch):
    model, done = model_named("gpt2"), []
    arguments = model, both(model, POST0, POST1), tokens_for(model, SEQ), POST0, POST1
    whole = jc.feature_jacobian(*arguments, minimum=LEAST)
    monkeypatch.setattr(_same, "allowance", lambda: 30_000)
    parts = jc.feature_jacobian(*arguments, minimum=LEAST, progress=lambda *said: done.append(said))
    assert_close(parts.gradient, whole.gradient)
    assert done[-1][1] > 2
    assert [each[0] for each in done] == list(range(done[-1][1] + 1))


def test_more_latents_than_a_tile_holds():
    model, tokens = model_named("gpt2"), tokens_for(model_named("gpt2"), SEQ)
    saes = both(model, POST0, POST1, d_sae=90)
    check(model, saes, tokens, POST0, POST1)
    J = jc.feature_jacobian(model, saes, tokens, POST0, POST1, minimum=LEAST)
    on = [[np.unique(latents[J.position == p]).size for p in range(SEQ)] for latents in (J.source, J.target)]
    assert max(on[0]) > _same_position.TILE
    assert max(on[1]) > _same_position.TILE
    assert len(set(on[0])) > 2


def test_another_prompt_compiles_nothing():
    model = model_named("gpt2")
    saes = both(model, POST0, POST1, make=lambda key, width, site: make_sae(key, width, site, TopK(5)))
    saes = {
        site: dataclasses.replace(sae, b_enc=sae.b_enc + 50) for site, sae in saes.items()
    }  # as many are on at every position
    call = lambda seed: jc.feature_jacobian(model, saes, tokens_for(model, SEQ, seed), POST0, POST1)
    first = call(0)
    with counting_calls(_same_position, "_push") as pushed, counting_calls(jc.Transformer, "__call__") as ran:
        second = call(1)
    assert not pushed
    assert not ran
    assert len(first) == len(second) == SEQ * 25
    assert np.abs(first.gradient - second.gradient).max() > 1e-3


# --- Cosines, tables, pictures


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_cosines_of_hidden_activations():
    model, tokens = model_named("gpt2"), tokens_for(model_named("gpt2"), SEQ)
    saes = both(model, POST0, POST1)
    J = jc.feature_jacobian(model, saes, tokens, POST0, POST1, minimum=LEAST)
    first, second = (block.mlp for block in model.blocks)
    C, weight = np.eye(model.d_model) - 1 / model.d_model, np.asarray(model.blocks[1].ln2.weight)
    for row in range(0, len(J), 7):
        written = C @ np.asarray(saes[POST0].W_dec[J.source[row]] @ first.W_out)
        read = C @ (weight * np.asarray(second.W_in @ saes[POST1].W_enc[:, J.target[row]]))
        assert J.cosine[row] == pytest.approx(cosine(written, read), abs=1e-12)
    processed = jc.feature_jacobian(jc.process_weights(model), saes, tokens, POST0, POST1, minimum=LEAST)
    assert_close(processed.cosine, J.cosine, mass=0.1)
    assert_close(processed.gradient, J.gradient, mass=0.1)


# Of targets in the second block and sources in the first: what they read and write, by hand, up to its length.
READ = {
    Kind.MLP_PRE: lambda block, d: gain(block.ln2) * (block.mlp.W_gate @ d),
    Kind.MLP_PRE_LINEAR: lambda block, d: gain(block.ln2) * (block.mlp.W_in @ d),
    Kind.MLP_POST: lambda block, d: gain(block.ln2) * (block.mlp.W_in @ d),
    Kind.MLP_IN: lambda block, d: gain(block.ln2) * d,
    Kind.LN2_NORMALIZED: lambda block, d: d,
    Kind.ATTN_IN: lambda block, d: gain(block.ln1) * d,
    Kind.LN1_NORMALIZED: lambda block, d: d,
    Kind.Q: lambda block, d: gain(block.ln1) * through(block.attn.W_Q, d),
    Kind.K: lambda block, d: gain(block.ln1) * through(block.attn.W_K, d),
    Kind.Z: lambda block, d: gain(block.ln1) * through(np.repeat(block.attn.W_V, 2, axis=0), d),
    Kind.HEADS_OUT: lambda block, d: d,
    Kind.RESID_POST: lambda block, d: d,
    Kind.ROT_Q: None,
    Kind.Q_NORMALIZED: None,
}
WRITTEN = {
    Kind.MLP_POST: lambda block, d: gain(block.ln2_post) * (d @ block.mlp.W_out),
    Kind.NEURONS_OUT: lambda block, d: gain(block.ln2_post) * d,
    Kind.Z: lambda block, d: gain(block.ln1_post) * np.einsum("he,hem->m", d.reshape(4, 6), block.attn.W_O),
    Kind.HEADS_OUT: lambda block, d: gain(block.ln1_post) * d,
    Kind.ATTN_OUT: lambda block, d: d,
    Kind.MLP_PRE: None,
}


def gain(norm):
    return 1 if norm is None else norm.offset + np.asarray(norm.weight)


def through(W, d):
    return np.einsum("hme,he->m", W, np.asarray(d).reshape(len(W), -1))


@pytest.mark.parametrize("name", ["gemma3", "olmo2"])
def test_cosines_of_every_site(name):
    """By the weights on the way, with those of norms before and behind."""
    model, units = model_named(name), np.arange(5)
    sites = [Site(1, kind) for kind in READ], [Site(0, kind) for kind in WRITTEN]
    sites = [[site for site in some if site in jc.sites(model)] for some in sites]
    saes = {site: dictionary(model, site, seed) for some in sites for seed, site in enumerate(some)}
    listed = Latents(np.zeros(5, np.int32), units.astype(np.int32))
    pairs = Pairs(*(each.ravel() for each in np.meshgrid(units, units)))
    compared = 0
    for target, source in itertools.product(*sites):
        ends = Ends(source, source, target, target, False)
        given = Dictionaries(anonymous(saes[source]), anonymous(saes[target]))
        got = cosines(model, given, ends, listed, listed, pairs, same=False)
        read, write = READ[target.kind], WRITTEN[source.kind]
        if read is None or write is None:
            assert np.isnan(got).all()
            continue
        for row in range(0, len(got), 7):
            a = read(model.blocks[1], np.asarray(saes[target].W_enc)[:, pairs.target[row]])
            b = write(model.blocks[0], np.asarray(saes[source].W_dec)[pairs.source[row]])
            assert got[row] == pytest.approx(cosine(np.asarray(a), np.asarray(b)), abs=1e-12)
            compared += 1
    assert compared > 100


def test_cosines_of_other_sites():
    model, tokens = model_named("gpt2"), tokens_for(model_named("gpt2"), SEQ)
    resid, z, q = (Site(1, kind) for kind in (Kind.RESID_POST, Kind.Z, Kind.Q))
    saes = {site: dictionary(model, site, seed) for seed, site in enumerate((resid, z, q))}
    find = lambda source, target: jc.feature_jacobian(model, saes, tokens, source, target, minimum=LEAST)
    J = find(z, resid)
    out = np.einsum("he,hem->m", saes[z].W_dec[J.source[0]].reshape(2, 6), model.blocks[1].attn.W_O)
    assert J.cosine[0] == pytest.approx(cosine(out, np.asarray(saes[resid].W_enc[:, J.target[0]])), abs=1e-12)
    J = find(q, resid)
    assert np.isnan(J.cosine).all()
    assert np.abs(J.gradient).max() > 1e-3
    with pytest.raises(ValueError, match="the cosines are not defined here"):
        J.correlation()


@pytest.fixture(scope="module")
def found():
    model = model_named("gpt2")
    arguments = model, both(model, POST0, POST1), tokens_for(model, SEQ)
    return jc.feature_jacobian(*arguments, POST0, POST1, minimum=LEAST), arguments


def test_tables_and_correlation(found):
    J, _ = found
    table = J.to_pandas()
    assert list(table.columns) == [
        *("position", "source_position", "source", "target"),
        *("source_act", "target_act", "gradient", "cosine"),
    ]
    assert len(table) == len(J)
    assert abs(table["gradient"][J.strongest(3)[0]]) == table["gradient"].abs().max()
    sizes = table["gradient"].abs(), table["cosine"].abs()
    said = J.correlation()
    assert said.pearson == pytest.approx(pearsonr(*sizes).statistic)
    assert said.spearman == pytest.approx(spearmanr(*sizes).statistic)
    assert said.pairs == len(J)
    assert repr(J).startswith("FeatureJacobian(blocks.0.mlp.hook_post -> blocks.1.mlp.hook_post, ")
    assert "source and target substituted" in repr(J)
    with pytest.raises(ValueError, match="there is one pair"):
        J.rows(J.strongest(1)).correlation()


def test_pictures(found, tmp_path):
    J, _ = found
    figure = jc.draw_features(J, tmp_path / "features.svg")
    assert (tmp_path / "features.svg").stat().st_size > 1000
    gradients, cosines = figure.axes
    heights = [patch.get_height() for patch in gradients.patches]
    assert sum(heights) == len(J)
    points, marked = figures.dots(cosines)
    np.testing.assert_allclose(points, np.abs([J.gradient, J.cosine]).T)
    best = J.strongest(1)[0]
    np.testing.assert_allclose(marked, np.abs([[J.gradient[best], J.cosine[best]]]))
    assert figures.written(figure).count(f"{J.source[best]} → {J.target[best]} at {J.position[best]}") == 2
    said = J.correlation()
    assert cosines.get_title() == f"Pearson {said.pearson:.3f}, Spearman {said.spearman:.3f}"
    assert f"{J.target_site} by {J.source_site}; {len(J)} pairs" in figure.get_suptitle().replace("\n", " ")
    (only,) = jc.draw_features(J.rows(np.array([best]))).axes
    assert not figures.dots(only)
    with pytest.raises(ValueError, match=f"the Jacobian has rows 0 to {len(J) - 1}, and mark is -3"):
        jc.draw_features(J, tmp_path / "features.svg", mark=-3)
    with pytest.raises(ValueError, match="the Jacobian has no pair"):
        jc.draw_features(J.rows(np.array([], int)))


# --- Moved latents


@by_numpy
def moved(model, saes, tokens, held, step):
    """The target's latents where the source's are moved by `step`."""
    edits = {**held, POST0.acts: jc.Add(step)}
    return jc.run(model, tokens, saes=saes, edits=edits, record=[POST1.acts])[1][POST1.acts]


@pytest.mark.parametrize(("name", "substitute"), [("gpt2", ()), ("gpt2", ("source",)), ("gemma2", ()), ("olmo2", ())])
def test_measured_is_a_run_with_the_latent_moved(name, substitute):
    model = model_named(name)
    saes, tokens = both(model, POST0, POST1), tokens_for(model, SEQ)
    J = jc.feature_jacobian(model, saes, tokens, POST0, POST1, minimum=LEAST, substitute=substitute, positions="all")
    rows = np.append(J.strongest(2), np.flatnonzero(J.position > J.source_position)[0])
    table = jc.steer_features(J, model, saes, tokens, rows=rows, steps=[1e-5, 2.0])
    assert list(table.columns[-3:]) == ["step", "predicted", "measured"]
    small = table[table["step"] == 1e-5]
    assert small["predicted"].abs().max() > 1e-7
    np.testing.assert_allclose(small["measured"], small["predicted"], rtol=1e-3)
    held = {POST0.error: jc.Replace(0.0)} if substitute else {}

    for row in table[table["step"] == 2.0].itertuples():
        step = np.zeros((SEQ, 20))
        step[row.source_position, row.source] = 2.0
        change = moved(model, saes, tokens, held, step) - moved(model, saes, tokens, held, 0 * step)
        assert abs(row.measured) > 1e-4
        assert row.measured == pytest.approx(float(change[row.position, row.target]), abs=1e-10)


def test_what_steering_refuses(found):
    J, (model, saes, tokens) = found
    for rows, said in (
        ([], "rows is a list of numbers of rows"),
        ([len(J)], f"the Jacobian has rows 0 to {len(J) - 1}"),
    ):
        with pytest.raises(ValueError, match=said):
            jc.steer_features(J, model, saes, tokens, rows=rows)
    with pytest.raises(ValueError, match="steer_features: steps: expected at least one number"):
        jc.steer_features(J, model, saes, tokens, steps=[])
    with pytest.raises(ValueError, match="Give the model, dictionaries and tokens that it is of"):
        jc.steer_features(J, model, saes, tokens[::-1])


# --- What is refused


REFUSED = {
    "no latents": (
        {"minimum": 1e6},
        r"no latent of `blocks.1.mlp.hook_post` is above the minimum 1e\+06; the largest is \d",
    ),
    "negative minimum": ({"minimum": -0.5}, "minimum is the value above which a latent is on, 0 or more; got -0.5"),
    "swapped": (
        {"source": POST1, "target": POST0},
        "do not depend on the source `blocks.1.mlp.hook_post`.*Are they swapped",
    ),
    "the same": ({"target": POST0}, "it is not upstream of them"),
    "no dictionary": (
        {"source": "blocks.0.hook_mlp_out"},
        "there is no dictionary at `blocks.0.hook_mlp_out`. The dictionaries given",
    ),
    "substitute": (
        {"substitute": ("source", "error")},
        "substitute names 'source', 'target', both or none; got 'error'",
    ),
    "positions": ({"positions": "last"}, "positions is one of 'same', 'all'; got 'last'"),
    "a batch": ({"tokens": jnp.zeros((2, 3), jnp.int32)}, r"Expected token ids of shape \[seq\], got \(2, 3\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, found, untyped):
    _, (model, saes, tokens) = found
    change, said = REFUSED[name]
    options = {"tokens": tokens, "source": POST0, "target": POST1, "minimum": LEAST, **change}
    with pytest.raises(ValueError, match=said):
        jc.feature_jacobian(model, saes, **options)


def test_sites_that_are_refused(found):
    model, tokens = found[1][0], found[1][2]
    find = lambda saes, source, target: jc.feature_jacobian(model, saes, tokens, source, target, minimum=LEAST)
    far, last, pattern = Site(7, Kind.MLP_POST), Site(None, Kind.FINAL_NORMALIZED), Site(0, Kind.PATTERN)
    saes = {POST0: dictionary(model, POST0, 0), far: make_sae(jax.random.key(0), 24), last: dictionary(model, last, 1)}
    with pytest.raises(ValueError, match=r"no site `blocks.7.mlp.hook_post` in random with 2 layers. Did you mean"):
        find(saes, POST0, far)
    with pytest.raises(ValueError, match=r"`ln_final.hook_normalized` is not a vector at each position of a block"):
        find(saes, POST0, last)
    with pytest.raises(ValueError, match=r"`blocks.0.attn.hook_pattern` is not a vector"):
        find({pattern: make_sae(jax.random.key(0), 6), POST1: make_sae(jax.random.key(0), 24)}, pattern, POST1)
    with pytest.raises(ValueError, match="maps 16 numbers to 16, and there the model has 24 and 24"):
        find({POST0: make_sae(jax.random.key(0), 16), POST1: make_sae(jax.random.key(0), 24)}, POST0, POST1)


def test_latents_that_are_never_on_together(found):
    _, (model, saes, tokens) = found
    acts = jc.run(model, tokens, saes=saes, record=[POST0.acts, POST1.acts])[1]
    values = [np.asarray(acts[site.acts]) for site in (POST0, POST1)]
    # The dictionaries' largest value, and nothing else, at two different positions.
    places = [np.unravel_index(value.argmax(), value.shape) for value in values]
    assert places[0][0] != places[1][0]
    alone = {}
    for site, value in zip((POST0, POST1), values, strict=True):
        second = np.sort(value.ravel())[-2]
        alone[site] = dataclasses.replace(saes[site], b_enc=saes[site].b_enc - (second + value.max()) / 2)
    with pytest.raises(ValueError, match="no two latents above the minimum 0 are on at the same position"):
        jc.feature_jacobian(model, alone, tokens, POST0, POST1, minimum=0.0, substitute=())

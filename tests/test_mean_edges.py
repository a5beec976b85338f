"""`jc.features.mean_edges` against every pair of latents at every position, by brute force."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc._precision import rounded
from jaxcirc.features import mean_edges, MeanEdges
from jaxcirc.features._mean_few import readings_of_few
from jaxcirc.features._top_edges import largest_of_rows
from jaxcirc.saes import Identity, TanhReLU, TopK, Transcoder

from .dictionaries import DICTIONARIES, make_sae, thresholds, weights as random_weights
from .helpers import assert_close, model_named, needs_x64
from .means import corpus_for, jacobians, values_at
from .odd_parts import ODD


MID, IN, OUT, POST = (Site(1, kind) for kind in (Kind.RESID_MID, Kind.MLP_IN, Kind.MLP_OUT, Kind.RESID_POST))
NEXT_IN, FIRST_OUT = IN, Site(0, Kind.MLP_OUT)


def dictionaries_at(source: Site, target: Site, **more):
    """Of other sizes and other nonlinearities at the two ends."""
    key = jax.random.key
    made = {source: make_sae(key(1), 16, source, thresholds(key(2))), target: make_sae(key(3), 16, target, TanhReLU())}
    return made | more


def brute_force(corpus, saes, source, target, values, each, *, weighted):
    """`each` `[position d_read d_source]`: the Jacobians of all positions."""
    of_source, of_target = saes[source], saes[target]
    reads, encodes = of_target.reads or target, of_source.reads or source
    counts = (corpus[1] * corpus[2]).reshape(-1)
    slopes = np.asarray(jax.vmap(jax.jacfwd(of_target.encode))(jnp.asarray(values[reads])))  # [position d_sae d_read]
    scale = np.asarray(of_source.decoder_scale(jnp.asarray(values[encodes])))
    dec = np.asarray(of_source.W_dec)
    acts = np.asarray(of_source.encode(jnp.asarray(values[encodes]))) if weighted else np.ones((len(counts), len(dec)))
    return np.einsum("n,nko,noi,ji,nj->kj", counts * scale, slopes, each, dec, acts) / counts.sum()


def check(model, saes, source, target, each_of, *, weighted, **more):
    corpus = corpus_for(model)
    found = mean_edges(
        model, saes, corpus[0], source, target, mask=corpus[1], weights=corpus[2], weighted=weighted, **more
    )
    sites = {source, target, saes[target].reads or target, saes[source].reads or source}
    values = values_at(model, *corpus[:2], sorted(sites | {Site(s.layer, Kind.RESID_PRE) for s in sites}))
    want = brute_force(corpus, saes, source, target, values, each_of(values), weighted=weighted)
    assert_close(found.rows(range(len(want))), want, tolerance=4e-12)
    assert found.certificate().error < 1e-12
    return found, want


@needs_x64
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "no-norm-relu-bidirectional", "neox", "llama", "olmo2", "gemma2"])
def test_edges_around_an_mlp(name, weighted):
    model = model_named(name)
    source = Site(1, model.blocks[1].mlp_reads)
    target = POST if name == "llama" else OUT
    frozen = jc.frozen.layer_norms(model) | jc.frozen.gates(model) if name == "gpt2" and weighted else frozenset()
    each_of = lambda values: jacobians(model, values[source], source, target, frozen)
    saes = dictionaries_at(source, target)
    found, _ = check(model, saes, source, target, each_of, weighted=weighted, frozen=frozen)
    assert found.weighted == weighted


@needs_x64
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["gated", "topk", "topk-standardised", "relu-unit-norm", "identity", "groupmax"])
def test_edges_from_any_dictionary(name, weighted):
    model = model_named("gpt2")
    saes = dictionaries_at(MID, OUT) | {MID: DICTIONARIES[name](jax.random.key(7), 16, MID)}
    check(model, saes, MID, OUT, lambda values: jacobians(model, values[MID], MID, OUT), weighted=weighted)


@needs_x64
@pytest.mark.parametrize("name", ["gated", "topk", "jumprelu", "identity", "transcoder"])
def test_edges_to_any_dictionary(name):
    """A transcoder reads what the MLP adds, for another site."""
    model, target = model_named("gpt2"), POST if name == "transcoder" else OUT
    sae = DICTIONARIES[name](jax.random.key(7), 16, target)
    saes = dictionaries_at(MID, target) | {target: dataclasses.replace(sae, reads=OUT) if name == "transcoder" else sae}
    check(model, saes, MID, target, lambda values: jacobians(model, values[MID], MID, OUT), weighted=False)


@needs_x64
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_lists_of_few_latents_and_products_over_all_give_the_same(name, monkeypatch):
    model = model_named(name)
    corpus, target = corpus_for(model), POST if name == "llama" else OUT
    saes = dictionaries_at(MID, target) | {MID: DICTIONARIES["relu-unit-norm"](jax.random.key(7), 16, MID)}
    of = lambda: mean_edges(model, saes, corpus[0], MID, target, mask=corpus[1], weights=corpus[2]).readings
    made, listed = [], []
    in_lists = lambda *args, **kwargs: listed.append(few) or readings_of_few(*args, **kwargs)
    monkeypatch.setattr("jaxcirc.features._mean_sums.readings_of_few", in_lists)
    for few in (0.0, 1.0):
        monkeypatch.setattr("jaxcirc.features._mean_few.FEW", few)
        made.append(of())
    monkeypatch.setattr("jaxcirc.features._mean_few.AT_ONCE", 7)
    assert_close(made[1], made[0], tolerance=1e-13)
    assert_close(of(), made[0], tolerance=1e-13)
    assert set(listed) == {1.0}  # two routes


def transcoder_of(layer: int, seed: int, reads: Kind = Kind.MLP_IN) -> Transcoder:
    """Of a block's MLP."""
    site = Site(layer, Kind.MLP_OUT)
    return Transcoder(*random_weights(jax.random.key(seed), 16), TopK(6), Site(layer, reads), site)


@needs_x64
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("name", "reads"), [("gpt2", Kind.MLP_IN), ("gemma2", Kind.LN2_NORMALIZED), ("neox", Kind.MLP_IN)]
)
def test_edges_from_transcoder_to_transcoder(name, reads, weighted):
    """Along the stream alone: what lies between, attention and MLPs, is held."""
    model, target, source = model_named(name), OUT, FIRST_OUT
    saes, read = {source: transcoder_of(0, 1), target: transcoder_of(1, 2, reads)}, Site(1, reads)
    scales = jc.frozen.layer_norms(model)
    corpus = corpus_for(model)
    for frozen in (frozenset(), scales):
        held = frozen | {Site(1, Kind.ATTN_OUT)}

        def each_of(values, held=held):
            at = [
                jc.edge(
                    model, jnp.asarray(t), source, read, mask=jnp.asarray(m), frozen=held, engine="autodiff"
                ).as_matrix()
                for t, m in zip(*corpus[:2], strict=True)
            ]
            return np.concatenate([np.einsum("sosi->soi", np.asarray(J)) for J in at])

        check(model, saes, source, target, each_of, weighted=weighted, through="stream", frozen=frozen)


@needs_x64
def test_weighted_edges_of_a_linear_stream_are_global_weights():
    """With the norm's scale held: the product of directions times how strongly the two are on together."""
    model, source, target = model_named("gpt2"), FIRST_OUT, OUT
    saes, (tokens, mask, _) = (
        {source: transcoder_of(0, 1), target: transcoder_of(1, 2)},
        corpus_for(model_named("gpt2")),
    )
    found = mean_edges(
        *(model, saes, tokens, source, target),
        mask=mask,
        through="stream",
        weighted=True,
        frozen=jc.frozen.layer_norms(model),
    )
    values = values_at(model, tokens, mask, [Site(0, Kind.MLP_IN), Site(1, Kind.MLP_IN), Site(1, Kind.LN2_SCALE)])
    acts, gates = (np.asarray(saes[s].encode(jnp.asarray(values[saes[s].reads]))) for s in (source, target))
    real = mask.reshape(-1, 1) / values[Site(1, Kind.LN2_SCALE)]
    together = ((gates > 0) * real).T @ acts / mask.sum()
    dec, enc, norm = saes[source].W_dec, saes[target].W_enc, model.blocks[1].ln2
    virtual = np.asarray(((dec - dec.mean(1, keepdims=True)) * norm.weight) @ enc).T
    assert_close(found.rows(range(20)), together * virtual, tolerance=4e-12)


@needs_x64
@pytest.mark.parametrize("weighted", [False, True])
def test_batches_blocks_and_merges_give_the_same(weighted, monkeypatch, tmp_path):
    model, (tokens, mask, weights) = model_named("gpt2"), corpus_for(model_named("gpt2"))
    saes = dictionaries_at(MID, OUT)
    of = lambda some, **more: mean_edges(
        *(model, saes, tokens[some], MID, OUT), mask=mask[some], weights=weights[some], weighted=weighted, **more
    )
    whole = of(slice(None))
    everything = whole.rows(range(20))
    monkeypatch.setattr("jaxcirc.features._mean_sums.allowance", lambda: 5000)
    small = of(slice(None), tokens_at_once=7)
    monkeypatch.undo()
    assert_close(small.rows(range(20)), everything, tolerance=1e-13)
    chosen = of(slice(None), targets=[13, 2, 5])
    assert_close(chosen.rows([5, 13, 2]), everything[[5, 13, 2]], tolerance=1e-13)
    first, second = of(slice(1)), of(slice(1, None))
    merged = first.merge(second)
    assert_close(merged.rows(range(20)), everything, tolerance=1e-13)
    assert (merged.n_positions, merged.n_prompts) == (whole.n_positions, 4)
    assert merged.certificate().error < 1e-12
    first.save(tmp_path / "edges.safetensors")
    again = MeanEdges.load(tmp_path / "edges.safetensors")
    assert np.array_equal(again.rows(range(20)), first.rows(range(20)))
    assert again.certified is not None
    assert again.certified["error"] < 1e-12
    assert_close(again.merge(second).rows(range(20)), everything, tolerance=1e-13)
    again.save(tmp_path / "edges.safetensors")
    for other, said in (
        (chosen, "other target latents"),
        (dataclasses.replace(second, dictionaries=("a", "b")), "dictionaries differs"),
        (dataclasses.replace(second, through="stream"), "through differs"),
    ):
        with pytest.raises(ValueError, match=said):
            whole.merge(other)
    with pytest.raises(ValueError, match="edges that were loaded"):
        again.certificate()


@needs_x64
@pytest.mark.parametrize("weighted", [False, True])
def test_the_largest_of_each_row(weighted, monkeypatch):
    model, (tokens, mask, _) = model_named("gpt2"), corpus_for(model_named("gpt2"))
    found = mean_edges(model, dictionaries_at(MID, OUT), tokens, MID, OUT, mask=mask, weighted=weighted)
    dense = found.rows(range(20))
    monkeypatch.setattr("jaxcirc.features._mean_result.BUDGET", 3 * 20 * 8 * 6)  # six rows at a time
    top = found.top(4)
    for row, target in enumerate(top.target):
        order = np.argsort(-np.abs(dense[target]), kind="stable")[:4]
        there = dense[target][order] != 0
        assert (top.source[row] == np.where(there, order, -1)).all()
        np.testing.assert_allclose(top.value[row], dense[target][order], rtol=1e-12, atol=1e-16)
    table = top.to_pandas()
    assert len(table) == (top.source >= 0).sum() > 20
    np.testing.assert_allclose(dense[table["target"], table["source"]], table["value"], rtol=1e-12)
    assert found.top(100).source.shape == (20, 20)


def of_twins(width: int = 400, d: int = 96) -> MeanEdges:
    """Edges from latents that almost have a twin, as in wide dictionaries."""
    rng = np.random.default_rng(0)
    readings, half = rng.normal(size=(30, d)), rng.normal(size=(width // 2, d))
    W_dec = np.concatenate([half, half + 3e-4 * rng.normal(size=half.shape)]).astype(np.float32)
    about = {"weight": 1.0, "n_positions": 9, "n_prompts": 1, "through": "mlp", "frozen": (), "model": ""}
    return MeanEdges(
        readings, None, W_dec, np.arange(30), source=MID, target=OUT, dictionaries=("", ""), dtype="float32", **about
    )


@pytest.mark.parametrize("precision", ["bfloat16", "tensorfloat32"])
def test_the_largest_by_low_precision_are_those_of_full_precision(precision, monkeypatch):
    edges, k = of_twins(), 7
    want = edges.top(k)
    exact = edges.readings @ edges.W_dec.T.astype(np.float64)
    # Plainly, by the same roundings: other edges, so that what follows says something.
    plain = (
        np.asarray(rounded(jnp.asarray(edges.readings, jnp.float32), precision))
        @ np.asarray(rounded(jnp.asarray(edges.W_dec), precision)).T
    )
    chosen = lambda matrix: [set(row) for row in np.argsort(-np.abs(matrix), axis=1)[:, :k]]
    assert chosen(exact) == [set(row) for row in want.source]
    assert chosen(plain) != chosen(exact)
    monkeypatch.setattr("jaxcirc.features._top_edges.BUDGET", 2**16)
    for budget in (2**25, 3 * 400 * 8 * 7):  # all rows at once, and seven at a time
        found = largest_of_rows(edges.readings, edges.W_dec, k, precision, budget)
        assert (found.column == want.source).all()
        np.testing.assert_allclose(found.value, want.value, rtol=1e-13)
        said = found.recomputed
        assert (said.precision, said.of) == (precision, exact.size)
        assert 30 * k <= said.edges < exact.size / 4
        off = np.abs(plain - exact).max() / np.abs(exact).max()
        assert 0.2 * off < said.error <= 1.001 * off < said.bound < 30 * off
    assert str(said.edges) in str(edges.top(k, precision=precision).recomputed)
    assert edges.top(500, precision=precision).source.shape == exact.shape
    assert want.recomputed is None


def test_a_product_that_is_further_off_than_rounding_is_an_error(monkeypatch):
    edges = of_twins()
    monkeypatch.setattr("jaxcirc.features._top_edges._entries", lambda x, y, row, at: np.full(len(row), 1e3))
    with pytest.raises(ValueError, match="The result is wrong: an entry of a product in bfloat16"):
        edges.top(3, precision="bfloat16")


@pytest.mark.parametrize("weighted", [False, True])
def test_edges_into_a_latent_that_is_seldom_on_are_certified_and_saved(weighted, tmp_path):
    """At one position of 160, where an even sample has hardly one; and into one that is never on, of which there is nothing to measure."""
    model, rng = model_named("gpt2"), np.random.default_rng(0)
    saes, tokens = dictionaries_at(MID, OUT), rng.integers(0, model.d_vocab, (20, 8))
    reads = values_at(model, tokens, np.ones(tokens.shape, bool), [OUT])[OUT] - saes[OUT].b_dec
    between = -np.sort(np.asarray(reads @ saes[OUT].W_enc)[:, 3])[-2:].mean()
    rare = eqx.tree_at(lambda sae: sae.b_enc, saes[OUT], saes[OUT].b_enc.at[3].set(between).at[5].set(-1e3))
    make = lambda latent: mean_edges(model, saes | {OUT: rare}, tokens, MID, OUT, targets=[latent], weighted=weighted)
    found, path = make(3), tmp_path / "edges.safetensors"
    certificate = found.save(path)
    assert certificate is not None
    assert certificate.engine == "structured (sums over 1 of 1 positions with an edge; 160 are in the mean)"
    assert MeanEdges.load(path).certified == certificate.as_dict()
    assert np.abs(MeanEdges.load(path).rows([3])).max() > 0
    assert make(5).save(path) is None
    assert MeanEdges.load(path).certified is None
    assert not MeanEdges.load(path).rows([5]).any()
    assert found.merge(found).certificate().error < certificate.limit


def test_a_wrong_sum_is_told():
    model, (tokens, mask, _) = model_named("gpt2"), corpus_for(model_named("gpt2"))
    saes = dictionaries_at(MID, OUT)
    found = mean_edges(model, saes, tokens, MID, OUT, mask=mask)
    with pytest.raises(ValueError, match="The result is wrong"):
        found.certificate(limit=0.0)
    off = eqx.tree_at(lambda sae: sae.b_enc, saes[OUT], jnp.full(20, -1e3))
    with pytest.raises(ValueError, match="no position with an edge other than 0"):
        mean_edges(model, saes | {OUT: off}, tokens, MID, OUT, mask=mask).certificate()


NORMALISED = DICTIONARIES["relu-unit-norm"](jax.random.key(0), 16, OUT)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"through": "attention"}, "through must be"),
        ({"source": Site(0, Kind.RESID_MID)}, "no dictionary at `blocks.0.hook_resid_mid`"),
        ({"saes": dictionaries_at(MID, OUT) | {MID: make_sae(jax.random.key(0), 12, MID)}}, "maps 12 numbers"),
        ({"saes": dictionaries_at(FIRST_OUT, OUT), "source": FIRST_OUT}, "give through='stream'"),
        ({"saes": dictionaries_at(MID, FIRST_OUT), "target": FIRST_OUT}, "not around the MLP"),
        ({"saes": dictionaries_at(MID, OUT) | {OUT: NORMALISED}}, "normalises what it reads"),
        ({"through": "stream"}, "not joined by the residual stream"),
        ({"saes": dictionaries_at(POST, MID), "source": POST, "target": MID, "through": "stream"}, "is not upstream"),
        ({"targets": []}, "at least one"),
        ({"targets": [20]}, "from 0 to 19"),
        ({"targets": [3, 3]}, "a latent twice"),
        ({"prompts": []}, "the corpus is empty"),
        ({"weights": np.zeros((1, 4))}, "no position of the corpus counts"),
        ({"frozen": ["blocks.1.mlp.hook_pre"]}, "every path"),
        ({"frozen": ["blocks.1.ln2.hook_normalized"]}, "every path"),
    ],
)
def test_what_does_not_fit_is_refused(untyped, arguments, said):
    given = {"saes": dictionaries_at(MID, OUT), "prompts": np.zeros((1, 4), np.int32), "source": MID, "target": OUT}
    with pytest.raises(ValueError, match=said):
        mean_edges(model_named("gpt2"), **given | arguments)


def test_parts_without_a_closed_form_are_refused():
    model = ODD["gated MLP"][0](model_named("gpt2"))
    with pytest.raises(ValueError, match="no closed form"):
        mean_edges(model, dictionaries_at(MID, OUT), np.zeros((1, 4), np.int32), MID, OUT)


def test_rows_and_top_refuse_what_is_not_there(untyped):
    model = model_named("gpt2")
    found = mean_edges(model, dictionaries_at(MID, OUT), np.zeros((1, 4), np.int32), MID, OUT, targets=[4, 2])
    assert found.rows([2]).shape == (1, 20)
    with pytest.raises(ValueError, match="latent 3 is not among the 2"):
        found.rows([2, 3])
    with pytest.raises(ValueError, match="are kept for each target"):
        found.top(0)
    with pytest.raises(ValueError, match="precision must be"):
        found.top(2, precision="float16")
    weighted = mean_edges(model, dictionaries_at(MID, OUT), np.zeros((1, 4), np.int32), MID, OUT, weighted=True)
    with pytest.raises(ValueError, match="there already"):
        weighted.top(2, precision="bfloat16")


@needs_x64
def test_the_streams_own_coordinates_are_a_dictionary():
    """Then edges are the mean Jacobian, where the target's are too."""
    model, (tokens, mask, _) = model_named("gpt2"), corpus_for(model_named("gpt2"))
    saes = {site: Identity(16, site) for site in (MID, OUT)}
    found = mean_edges(model, saes, tokens, MID, OUT, mask=mask)
    assert_close(found.rows(range(16)), jc.jacobian.mean(model, tokens, 1, mask=mask).matrix)

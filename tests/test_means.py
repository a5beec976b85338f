"""`jc.jacobian.mean` against the Jacobians of all positions, added up."""

import dataclasses
import json

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.jacobian import mean, MeanJacobian

from .helpers import as_dtype, assert_close, model_named, MODELS, needs_x64, tokens_for
from .means import corpus_for, jacobians, values_at
from .odd_parts import ODD


WITH_MLP = [name for name in MODELS if name != "attention-only"]
STREAM, OUT, POST = Site(1, Kind.RESID_MID), Site(1, Kind.MLP_OUT), Site(1, Kind.RESID_POST)


def brute_force(model, corpus, source, target, held=()):
    tokens, mask, weights = corpus
    each = jacobians(model, values_at(model, tokens, mask, [source])[source], source, target, held)
    counts = (weights * mask).reshape(-1)
    return np.einsum("n,noi->oi", counts, each) / counts.sum()


@needs_x64
@pytest.mark.parametrize("held", ["live", "scales", "gates", "both"])
@pytest.mark.parametrize("name", WITH_MLP)
def test_the_mean_is_that_of_all_jacobians(name, held):
    model, corpus = model_named(name), corpus_for(model_named(name))
    source = Site(1, model.blocks[1].mlp_reads)
    scales, gates = jc.frozen.layer_norms(model), jc.frozen.gates(model)
    frozen = {"live": frozenset(), "scales": scales, "gates": gates, "both": scales | gates}[held]
    got = mean(model, corpus[0], 1, mask=corpus[1], weights=corpus[2], frozen=frozen)
    assert (got.source, got.target, got.engine) == (source, OUT, "structured")
    assert got.n_positions == np.count_nonzero(corpus[1] * corpus[2]) < corpus[1].sum()
    assert_close(got.matrix, brute_force(model, corpus, source, OUT, frozen), tolerance=4e-12)
    assert got.certificate().error < 1e-12


@needs_x64
@pytest.mark.parametrize("name", ["gpt2", "neox", "gemma2"])
def test_what_a_scale_that_moves_adds_is_there(name):
    """So that the test above could tell."""
    model, corpus = model_named(name), corpus_for(model_named(name))
    of = lambda frozen: mean(model, corpus[0], 1, mask=corpus[1], frozen=frozen).matrix
    live = of(())
    assert np.abs(of(jc.frozen.layer_norms(model)) - live).max() > 1e-2 * np.abs(live).max()
    assert np.abs(of(jc.frozen.gates(model)) - live).max() > 1e-2 * np.abs(live).max()


@needs_x64
@pytest.mark.parametrize(
    ("name", "source", "target"), [("llama", "hook_resid_mid", POST), ("neox", "mlp.hook_in", OUT)]
)
def test_other_sites_around_an_mlp(name, source, target):
    model, corpus, source = model_named(name), corpus_for(model_named(name)), Site.parse(f"blocks.1.{source}")
    got = mean(model, corpus[0], source=source, target=target, mask=corpus[1], weights=corpus[2])
    assert_close(got.matrix, brute_force(model, corpus, source, target), tolerance=4e-12)
    assert got.certificate().error < 1e-12
    if target == POST:
        assert_close(got.matrix - mean(model, *corpus[:1], 1, mask=corpus[1], weights=corpus[2]).matrix, np.eye(16))


@needs_x64
def test_it_is_the_mean_of_what_edge_gives():
    model, tokens = model_named("gpt2"), tokens_for(model_named("gpt2"))
    J = jc.edge(model, tokens, STREAM, OUT).as_matrix()
    assert_close(
        mean(model, tokens[None], 1).matrix, np.einsum("sosi->oi", np.asarray(J)) / len(tokens), tolerance=4e-12
    )


@needs_x64
def test_batches_of_any_size_and_any_form_give_the_same():
    model, (tokens, mask, weights) = model_named("gpt2"), corpus_for(model_named("gpt2"))
    whole = mean(model, tokens, 1, mask=mask, weights=weights)
    for size in (1, 7, 16, 1000):
        some = mean(model, tokens, 1, mask=mask, weights=weights, tokens_at_once=size)
        assert_close(some.matrix, whole.matrix, tolerance=1e-14)
        assert (some.n_positions, some.n_prompts, some.weight) == (whole.n_positions, 4, pytest.approx(whole.weight))
    one_by_one = mean(model, zip(tokens, mask, weights, strict=True), 1)
    assert_close(one_by_one.matrix, whole.matrix, tolerance=1e-14)
    in_two = mean(model, [(tokens[:1], mask[:1], weights[:1]), (tokens[1:], mask[1:], weights[1:])], 1)
    assert_close(in_two.matrix, whole.matrix, tolerance=1e-14)


@needs_x64
def test_prompts_of_mixed_lengths_are_those_with_padding():
    model = model_named("gpt2")
    prompts = [tokens_for(model, seq, seq) for seq in (3, 11, 2, 9, 10)]
    tokens, mask = np.zeros((5, 11), np.int32), np.zeros((5, 11), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)], mask[row, : len(prompt)] = prompt, True
    seen = []
    got = mean(model, prompts, 1, tokens_at_once=12, progress=lambda *said: seen.append(said))
    assert_close(got.matrix, mean(model, tokens, 1, mask=mask).matrix, tolerance=1e-14)
    assert_close(mean(model, [list(map(int, prompt)) for prompt in prompts], 1).matrix, got.matrix, tolerance=1e-14)
    assert (got.n_positions, got.n_prompts, seen[-1]) == (35, 5, (5, 5, "prompts"))


@needs_x64
def test_the_clean_prompts_of_a_set_count():
    model, (tokens, mask, _) = model_named("gpt2"), corpus_for(model_named("gpt2"))
    first = np.zeros(4, np.int32)
    prompts = jc.data.Prompts(
        *(map(jnp.asarray, (tokens, tokens * 0, first, first))), {"end": jnp.asarray(first)}, jnp.asarray(mask)
    )
    assert_close(mean(model, prompts, 1).matrix, mean(model, tokens, 1, mask=mask).matrix, tolerance=1e-14)
    assert_close(mean(model, [prompts], 1).matrix, mean(model, tokens, 1, mask=mask).matrix, tolerance=1e-14)


@needs_x64
@pytest.mark.parametrize(
    "name",
    ["gated MLP", "RMS norm", "norm behind the MLP", "class derived from MLP", "activation that is not elementwise"],
)
def test_parts_without_a_closed_form_are_differentiated(name):
    model = ODD[name][0](model_named("gpt2"))
    corpus = corpus_for(model)
    frozen = jc.frozen.layer_norms(model)
    for held in ((), frozen):
        got = mean(model, corpus[0], 1, mask=corpus[1], weights=corpus[2], frozen=held)
        assert got.engine == "autodiff"
        assert_close(got.matrix, brute_force(model, corpus, STREAM, OUT, held), tolerance=4e-12)
        assert got.certificate().error < 1e-12


@needs_x64
def test_means_merge(tmp_path):
    model, (tokens, mask, weights) = model_named("gpt2"), corpus_for(model_named("gpt2"))
    part = lambda some: mean(model, tokens[some], 1, mask=mask[some], weights=weights[some])
    whole, first, second = part(slice(None)), part(slice(1)), part(slice(1, None))
    merged = first.merge(second)
    assert_close(merged.matrix, whole.matrix, tolerance=1e-14)
    assert (merged.n_positions, merged.n_prompts) == (whole.n_positions, whole.n_prompts)
    assert merged.certificate().error < 1e-12
    first.save(tmp_path / "first.safetensors")
    again = MeanJacobian.load(tmp_path / "first.safetensors", model)
    assert np.array_equal(again.matrix, first.matrix)
    assert again.certified is not None
    assert again.certified["error"] < 1e-12
    assert_close(again.merge(second).matrix, whole.matrix, tolerance=1e-14)
    known, both = second.n_positions, whole.n_positions  # what is loaded has no positions to be measured on
    said = f"(sums over {min(known, 32)} of {known} positions; {both} are in the mean)"
    assert again.merge(second).certificate().engine.endswith(said)
    again.save(tmp_path / "first.safetensors")
    assert MeanJacobian.load(tmp_path / "first.safetensors").certified == again.certified
    for other, said in (
        (dataclasses.replace(second, frozen=("blocks.1.ln2.hook_scale",)), "frozen differs"),
        (mean(model, tokens, 0), "source differs"),
        (mean(as_dtype(model, jnp.float32), tokens, 1), "dtype differs"),
        (mean(eqx.tree_at(lambda m: m.b_U, model, model.b_U + 1), tokens, 1), "another model, with other weights"),
    ):
        with pytest.raises(ValueError, match=said):
            first.merge(other)


@needs_x64
def test_products_with_a_mean():
    model, tokens = model_named("gpt2"), tokens_for(model_named("gpt2"))
    J = mean(model, tokens[None], 1)
    vectors = np.random.default_rng(0).normal(size=(3, 16))
    assert_close(J.mv(vectors), vectors @ J.matrix.T)
    assert_close(J.rows(vectors), vectors @ J.matrix)
    before = jc.edge(model, tokens, Site(0, Kind.RESID_PRE), STREAM)
    moved = before.mv(jnp.asarray(np.random.default_rng(1).normal(size=before.source_shape)))
    assert_close(J.mv(moved), np.asarray(moved) @ J.matrix.T)
    with pytest.raises(ValueError, match="expected vectors of 16 numbers"):
        J.mv(vectors[:, :3])


def test_half_precision_is_computed_in_float32():
    model = as_dtype(model_named("llama"), jnp.bfloat16)
    tokens, mask, weights = corpus_for(model)
    got = mean(model, tokens, 1, mask=mask, weights=weights)
    wide = mean(as_dtype(model, jnp.float32), tokens, 1, mask=mask, weights=weights)
    assert got.dtype == "float32"
    assert_close(got.matrix, wide.matrix, tolerance=1e-5)
    assert got.certificate().error < 1e-5


def test_a_certificate_tells_a_wrong_sum():
    model, tokens = model_named("gpt2"), tokens_for(model_named("gpt2"))
    J = mean(model, tokens[None], 1)
    assert J.certificate(probes=1).probes == 1
    with pytest.raises(ValueError, match="The result is wrong"):
        J.certificate(limit=0.0)
    loaded = dataclasses.replace(J, sublayer=None, sample=None)
    with pytest.raises(ValueError, match="a mean that was loaded"):
        loaded.certificate()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"layer": 2}, "layers 0 to 1; got layer 2"),
        ({"layer": -1}, "layer is how many"),
        ({}, "of which MLP"),
        ({"source": "hook_embed"}, "of which MLP"),
        ({"source": "blocks.0.hook_resid_mid", "target": "blocks.1.hook_mlp_out"}, "not around the MLP of one block"),
        (
            {"source": "blocks.0.hook_resid_pre", "target": "blocks.0.hook_resid_post"},
            "not around the MLP of one block",
        ),
        ({"source": "blocks.0.hook_nothing"}, "No site is called"),
        ({"layer": 1, "frozen": ["blocks.1.hook_mlp_out"]}, "is an end of the edge and frozen"),
        ({"layer": 1, "frozen": ["blocks.1.mlp.hook_post"]}, "every path"),
        ({"layer": 1, "prompts": []}, "the corpus is empty"),
        ({"layer": 1, "prompts": np.zeros((0, 3), np.int32)}, "the corpus is empty"),
        ({"layer": 1, "weights": np.zeros((2, 5))}, "no position of the corpus counts"),
        ({"layer": 1, "weights": np.full((2, 5), -1.0)}, "0 or more"),
        ({"layer": 1, "weights": np.ones((2, 4))}, "of the shape of the tokens"),
        ({"layer": 1, "weights": np.full((2, 5), 1e-300)}, "largest of the weights is 1e-300, and they are summed in"),
        ({"layer": 1, "weights": np.full((2, 5), 1e300)}, "largest of the weights is 1e.300"),
        ({"layer": 1, "mask": np.zeros((2, 5), bool)}, "no real token"),
        ({"layer": 1, "prompts": np.zeros(3, np.int32)}, r"\[batch seq\]"),
        ({"layer": 1, "prompts": [np.zeros(3, np.int32)], "mask": np.ones((1, 3), bool)}, "are of an array"),
        ({"layer": 1, "prompts": [(np.zeros(3, np.int32),) * 4]}, "one of 4"),
        ({"layer": 1, "prompts": np.full((1, 3), 99, np.int32)}, "outside the vocabulary"),
        ({"layer": 1, "tokens_at_once": 0}, "tokens_at_once is how many"),
    ],
)
def test_what_does_not_fit_is_refused(untyped, arguments, said):
    arguments = {"prompts": np.zeros((2, 5), np.int32)} | arguments
    with pytest.raises(ValueError, match=said):
        mean(model_named("gpt2"), **arguments)


def test_models_that_have_no_such_mean(untyped):
    tokens = np.zeros((1, 3), np.int32)
    with pytest.raises(ValueError, match="has no MLP"):
        mean(model_named("attention-only"), tokens, 0)
    with pytest.raises(ValueError, match="not around the MLP of one block"):  # attention is beside it
        mean(model_named("parallel"), tokens, 1, target="blocks.1.hook_resid_post")
    with pytest.raises(TypeError, match="list of prompts"):
        mean(model_named("gpt2"), "a text", 1)
    for name, said in (
        ("MLP that mixes positions", "take part in one another"),
        ("class derived from Block", "inside is not known"),
    ):
        with pytest.raises(ValueError, match=said):
            mean(ODD[name][0](model_named("gpt2")), tokens, 1)
    broken = eqx.tree_at(lambda m: m.blocks[1].mlp.W_out, model_named("gpt2"), jnp.full((24, 16), jnp.nan))
    with pytest.raises(ValueError, match="not finite"):
        mean(broken, tokens, 1)


def test_files_of_others_are_refused(tmp_path):
    model, path = model_named("gpt2"), tmp_path / "mean.safetensors"
    J = mean(model, tokens_for(model)[None], 1)
    save_file({"jacobian": np.zeros(3)}, path)
    for what in (lambda: J.save(path), lambda: MeanJacobian.load(path)):
        with pytest.raises(ValueError, match="does not hold a mean Jacobian"):
            what()
    path.write_text(json.dumps({}))
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        MeanJacobian.load(path)
    path.unlink()
    J.save(path)
    with pytest.raises(ValueError, match="is of another model"):
        MeanJacobian.load(path, model_named("gpt2-untied"))

"""The Jacobian lens: against its definition by brute force, its files, merging, resuming, what it reads, and bad input."""

import dataclasses
import functools as ft
import itertools
import json
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc._sites import Kind
from jaxcirc.lens import LensSettings
from jaxcirc.lens._checkpoint import Progress
from jaxcirc.lens._fit import _is_enough
from jaxcirc.lens._running import Running
from jaxcirc.parts import Block, GatedMLP, silu
from tests.helpers import (
    assert_close,
    by_numpy,
    counting_programs,
    make_model,
    model_named,
    MODELS,
    needs_x64,
    tokens_for,
)
from tests.odd_parts import odd_model


SKIP = 3


@ft.partial(by_numpy, static_argnames=("layer", "target", "held"))
def whole(model, tokens, layer: int, target: int, held: frozenset = frozenset()) -> jax.Array:
    """`[t out s in]`: the Jacobian of one layer's output with respect to another's, by plain autodiff."""
    site = jc.Site(target, Kind.RESID_POST)
    edits = {each: jc.Detach() for each in held if layer < (each.layer or 0) <= target}
    value = lambda step: jc.run(
        model, tokens, edits={**edits, jc.Site(layer, Kind.RESID_POST): jc.Add(step)}, record=[site]
    )[1][site]
    return jax.jacrev(value)(jnp.zeros((len(tokens), model.d_model), model.dtype))


def by_definition(
    model, prompts, skip: int = SKIP, target: int | None = None, held=frozenset()
) -> dict[int, np.ndarray]:
    """The estimator as it is defined, prompt by prompt."""
    target = model.n_layers - 1 if target is None else target
    found = {layer: [] for layer in range(target)}
    for tokens in prompts:
        valid = np.arange(skip, len(tokens) - 1)
        for layer in found:
            J = np.asarray(whole(model, jnp.asarray(tokens), layer, target, held))
            found[layer].append(J[valid][:, :, valid].sum(0).mean(1))
    return {layer: np.mean(each, axis=0) for layer, each in found.items()}


def prompts_for(model, lengths=(9, 12)) -> list[np.ndarray]:
    return [np.asarray(tokens_for(model, n, seed=n)) for n in lengths]


@needs_x64
@pytest.mark.parametrize("name", MODELS)
def test_a_lens_is_the_estimator_of_its_definition(name):
    model = model_named(name)
    prompts = prompts_for(model)
    lens = jc.fit_lens(model, prompts, skip_first=SKIP)
    want = by_definition(model, prompts)
    assert lens.layers == tuple(want)
    for layer, matrix in want.items():
        assert_close(lens.J[layer], matrix, tolerance=1e-10)


@needs_x64
def test_positions_of_other_tokens_have_a_part():
    """Without what passes between positions the lens would be another: the sum over later positions is really in it."""
    model = model_named("gpt2")
    (tokens,) = prompts_for(model, (12,))
    J = np.asarray(whole(model, jnp.asarray(tokens), 0, 1))
    valid = np.arange(SKIP, len(tokens) - 1)
    own = J[valid, :, valid].mean(0)
    lens = jc.fit_lens(model, [tokens], skip_first=SKIP)
    assert np.abs(lens.J[0] - own).max() > 0.05 * np.abs(own).max()


@needs_x64
@pytest.mark.parametrize("target", [1, -2])
def test_maps_lead_to_the_layer_that_was_asked_for(target):
    model = model_named("gpt2-inverse-layer-scale")
    prompts = prompts_for(model)
    lens = jc.fit_lens(model, prompts, skip_first=SKIP, target_layer=target)
    assert lens.target_layer == 1
    assert_close(lens.J[0], by_definition(model, prompts, target=1)[0], tolerance=1e-10)


@needs_x64
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_detached_maps_hold_scales_patterns_and_gates(name):
    model = model_named(name)
    prompts = prompts_for(model, (10,))
    lens = jc.fit_lens(model, prompts, skip_first=SKIP, rule="detached")
    want = by_definition(model, prompts, held=jc.frozen.detached(model))
    assert_close(lens.J[0], want[0], tolerance=1e-10)
    assert np.abs(lens.J[0] - jc.fit_lens(model, prompts, skip_first=SKIP).J[0]).max() > 1e-3


class Relevance(GatedMLP):
    """A gated MLP written out as the rules say: each factor of the product passes half, `silu` is a held quotient times its input."""

    def __call__(self, x, tap):
        hold = jax.lax.stop_gradient
        pre, linear = x @ self.W_gate + self.b_gate, x @ self.W_in + self.b_in
        act = pre * hold(jax.nn.sigmoid(pre))
        product = act * linear
        return (0.5 * product + 0.5 * hold(product)) @ self.W_out + self.b_out


@needs_x64
def test_lrp_passes_half_to_each_factor_of_a_product():
    model = model_named("llama")
    assert model.blocks[0].mlp.act is silu
    prompts = prompts_for(model, (10,))
    lens = jc.fit_lens(model, prompts, skip_first=SKIP, rule="lrp")
    written = eqx.tree_at(
        lambda model: model.blocks,
        model,
        tuple(dataclasses.replace(block, mlp=Relevance(**vars(block.mlp))) for block in model.blocks),
    )
    held = jc.frozen.layer_norms(model) | jc.frozen.patterns(model)
    assert_close(lens.J[0], by_definition(written, prompts, held=held)[0], tolerance=1e-10)


@needs_x64
def test_lrp_of_a_plain_mlp_holds_its_quotient():
    model = model_named("gpt2")
    prompts = prompts_for(model, (10,))
    lens = jc.fit_lens(model, prompts, skip_first=SKIP, rule="lrp")
    assert_close(lens.J[0], by_definition(model, prompts, held=jc.frozen.detached(model))[0], tolerance=1e-10)


@needs_x64
@pytest.mark.parametrize(
    "name", ["MLP that mixes positions", "class derived from LayerNorm", "class derived from Block"]
)
def test_parts_of_a_users_own_are_swept_by_their_code(name):
    model = odd_model(name)
    prompts = prompts_for(model, (9,))
    lens = jc.fit_lens(model, prompts, skip_first=SKIP)
    assert_close(lens.J[0], by_definition(model, prompts)[0], tolerance=1e-10)


def test_linear_blocks_have_the_maps_that_they_are():
    """Blocks of `h + W h` alone: the map from the layer before the last is `I + W` of the last, whatever the prompt."""
    model = make_model(jax.random.key(3), layers=3, norm="None", act=lambda x: x)
    still = lambda block: dataclasses.replace(
        block, attn=dataclasses.replace(block.attn, W_O=0 * block.attn.W_O, b_O=0 * block.attn.b_O)
    )
    model = eqx.tree_at(lambda m: m.blocks, model, tuple(map(still, model.blocks)))
    W = [np.asarray(block.mlp.W_in @ block.mlp.W_out) for block in model.blocks]
    one = np.eye(model.d_model)
    lens = jc.fit_lens(model, prompts_for(model), skip_first=SKIP)
    assert_close(lens.J[1], (one + W[2]).T)
    assert_close(lens.J[0], (one + W[2]).T @ (one + W[1]).T)


def test_few_rows_at_once_change_nothing():
    model = model_named("gpt2")
    prompts = prompts_for(model)
    all_rows = jc.fit_lens(model, prompts, skip_first=SKIP)
    few = jc.fit_lens(model, prompts, skip_first=SKIP, budget=5 * 2 * 8 * 16 * 8)
    assert_close(few.J[0], all_rows.J[0])


def test_prompts_of_any_length_run_few_programs():
    model = model_named("gpt2-untied")
    first, then = prompts_for(model, (5, 8)), prompts_for(model, (6, 7, 8))
    jc.fit_lens(model, first, skip_first=SKIP)
    with counting_programs() as programs:
        jc.fit_lens(model, then, skip_first=SKIP)
    assert not programs


# Means over prompts.


@pytest.fixture(scope="module")
def some():
    """A model, prompts, the lens of each, and the lens of all."""
    model = model_named("gpt2-inverse-layer-scale")
    prompts = prompts_for(model, (8, 9, 10, 11, 12))
    alone = [jc.fit_lens(model, [tokens], skip_first=SKIP) for tokens in prompts]
    return model, prompts, alone, jc.fit_lens(model, prompts, skip_first=SKIP)


def test_the_standard_error_is_that_of_the_mean_over_prompts(some):
    _, prompts, alone, lens = some
    for layer in lens.layers:
        each = np.stack([one.J[layer] for one in alone])
        assert_close(lens.J[layer], each.mean(0))
        want = np.sqrt((each.var(axis=0, ddof=1) / len(prompts)).sum())
        assert_close(lens.standard_error[layer], want)
        assert_close(lens.relative_error[layer], want / np.linalg.norm(each.mean(0)))
    assert np.isnan(alone[0].standard_error[0])


def test_merged_lenses_are_the_lens_of_all_prompts(some):
    model, prompts, alone, lens = some
    merged = jc.JacobianLens.merge([alone[0], jc.fit_lens(model, prompts[1:], skip_first=SKIP)])
    assert merged.n_prompts == lens.n_prompts == 5
    for layer in lens.layers:
        assert_close(merged.J[layer], lens.J[layer])
        assert_close(merged.standard_error[layer], lens.standard_error[layer], tolerance=1e-5)


def test_prompts_that_are_too_short_are_left_out_and_counted(some):
    model, prompts, _, lens = some
    with pytest.warns(UserWarning, match="2 prompts of 7 had fewer than 5 tokens"):
        found = jc.fit_lens(model, [prompts[0][:4], *prompts, prompts[0][:1]], skip_first=SKIP)
    assert (found.n_prompts, found.n_skipped) == (5, 2)
    assert_close(found.J[0], lens.J[0])


def test_padding_has_no_part(some):
    model, prompts, _, lens = some
    padded = np.stack([np.pad(tokens, (2, 12 - len(tokens)), constant_values=1) for tokens in prompts])
    mask = np.stack([np.pad(np.ones(len(tokens), bool), (2, 12 - len(tokens))) for tokens in prompts])
    found = jc.fit_lens(model, padded[:, :12], skip_first=SKIP, mask=mask[:, :12])
    assert np.abs(found.J[0] - lens.J[0]).max() > 1e-6  # the longest lost its end
    some_of = slice(0, 3)
    assert_close(
        jc.fit_lens(model, padded[some_of, :12], skip_first=SKIP, mask=mask[some_of, :12]).J[0],
        jc.fit_lens(model, prompts[some_of], skip_first=SKIP).J[0],
    )


def test_fitting_stops_when_the_mean_is_sure_enough(some):
    model, prompts, _, lens = some
    sure = max(float(x) for x in lens.relative_error.values())
    early = jc.fit_lens(model, prompts * 2, skip_first=SKIP, stop_error=1.01 * sure, least=2)
    assert 2 <= early.n_prompts <= 5
    assert max(float(x) for x in early.relative_error.values()) <= 1.01 * sure
    moved = jc.fit_lens(model, prompts, skip_first=SKIP, stop_movement=1e3, least=3)
    assert moved.n_prompts == 3
    assert [number for number, _, _ in moved.history] == [0, 1, 2]
    assert moved.history[0][2] == pytest.approx(1)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_error_that_is_not_known_is_not_small(order):
    """Of the two layers one has a cluster with a single prompt."""
    some = lambda prompts: Running(jnp.ones((2, 2, 2)), jnp.full(2, 5.0), jnp.asarray(prompts), jnp.full(2, 1e-6))
    layers = {0: some([3.0, 3.0]), 1: some([3.0, 1.0])}
    state = Progress({layer: layers[layer] for layer in order}, 3, 0, ((2, 1.0, 1.0),), None)
    assert not _is_enough(state, 0.1, None, 2)
    assert _is_enough(state._replace(means={0: layers[0]}), 0.1, None, 2)


@needs_x64
def test_clusters_have_their_own_means():
    model = model_named("gpt2")
    prompts = prompts_for(model)
    lens = jc.fit_lens(model, prompts, skip_first=SKIP, average="cluster", clusters=2)
    centres, sums, counts = np.asarray(lens.centres[0]), np.zeros((2, 16, 16)), np.zeros(2)
    for tokens in prompts:
        site = "blocks.0.hook_resid_post"
        resid = np.asarray(jc.run(model, jnp.asarray(tokens), record=[site])[1][site])
        J = np.asarray(whole(model, jnp.asarray(tokens), 0, 1))
        valid = np.arange(SKIP, len(tokens) - 1)
        for p in valid:
            own = np.linalg.norm(resid[p] - centres, axis=1).argmin()
            sums[own] += J[valid][:, :, p].sum(0)
            counts[own] += 1
    assert (counts > 0).all()
    assert_close(lens.J[0], sums / counts[:, None, None], tolerance=1e-10)
    assert_close(lens.means[0].weight, counts)
    want = jc.fit_lens(model, prompts, skip_first=SKIP).history  # how large a prompt's Jacobian is, clusters or not
    assert [size for _, size, _ in lens.history] == pytest.approx([size for _, size, _ in want])


@needs_x64
@pytest.mark.parametrize("name", ["gpt2", "neox", "gemma2"])
def test_parts_by_head_are_what_comes_of_each_heads_output(name):
    model = model_named(name)
    (tokens,) = prompts_for(model, (9,))
    lens = jc.fit_lens(model, [tokens], skip_first=SKIP, average="head")
    assert lens.J[0].shape == (model.n_heads + 1, 16, 16)
    assert_close(lens.J[0].sum(0), by_definition(model, [tokens])[0], tolerance=1e-10)
    ((_, size, moved),) = lens.history
    assert (size, moved) == pytest.approx((np.linalg.norm(lens.J[0].sum(0)) / 4, 1))
    # Through one head alone: of its block that head's output moves, and nothing else that the block adds.
    source, result, last = (f"blocks.{place}" for place in ("0.hook_resid_post", "1.attn.hook_z", "1.hook_resid_post"))
    given = model, jnp.asarray(tokens)

    def of_head(step, head):
        z = jc.run(*given, edits={source: jc.Add(step)}, record=[result])[1][result]
        clean = jax.lax.stop_gradient(z)
        own = jnp.arange(model.n_heads)[:, None] == head
        return jc.run(*given, edits={result: jc.Replace(jnp.where(own, z, clean))}, record=[last])[1][last]

    valid = np.arange(SKIP, len(tokens) - 1)
    for head in range(model.n_heads):
        J = np.asarray(jax.jacrev(lambda step, head=head: of_head(step, head))(jnp.zeros((len(tokens), 16))))
        assert_close(lens.J[0][head], J[valid][:, :, valid].sum(0).mean(1), tolerance=1e-10)
    read = lens.readout(model, given[1], top_k=2)
    assert_close(read.logits, jc.fit_lens(model, [tokens], skip_first=SKIP).readout(model, given[1], top_k=2).logits)


# What it reads.


def test_the_readout_of_the_target_is_the_models_own(some):
    model, prompts, _, lens = some
    tokens = jnp.asarray(prompts[0])
    read = lens.readout(model, tokens, top_k=4, ranks_of=[2, 5])
    logits = np.asarray(jc.run(model, tokens)[0])
    assert read.layers == (0, 1, 2)
    assert_close(read.logits[-1], np.sort(logits, axis=1)[:, ::-1][:, :4])
    assert (np.asarray(read.tokens[-1, :, 0]) == logits.argmax(1)).all()
    ranks = 1 + (logits[:, None] > logits[:, [2, 5], None]).sum(-1)
    assert (np.asarray(read.ranks[-1]) == ranks).all()
    assert_close(read.logits_of[-1], logits[:, [2, 5]])
    following = logits[np.arange(len(tokens) - 1), np.asarray(tokens)[1:]]
    assert (np.asarray(read.next_rank[-1]) == 1 + (logits[:-1] > following[:, None]).sum(1)).all()
    assert (np.asarray(read.next_rank[-1]) == np.asarray(read.logit_lens_rank[-1])).all()


def test_a_layer_is_read_through_its_map(some):
    model, prompts, _, lens = some
    tokens, site = jnp.asarray(prompts[1]), "blocks.0.hook_resid_post"
    resid = jc.run(model, tokens, record=[site])[1][site]
    last = {"blocks.2.hook_resid_post": jc.Replace(resid @ lens.J[0].T)}
    logits = np.asarray(jc.run(model, tokens, edits=last)[0])
    read = lens.readout(model, tokens, top_k=3)
    assert_close(read.logits[0], np.sort(logits, axis=1)[:, ::-1][:, :3])
    chances = np.exp(logits - logits.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    assert_close(read.entropy[0], -(chances * np.log(chances)).sum(1))
    plain = lens.readout(model, tokens, top_k=3, logit_lens=True)
    by_itself = np.asarray(jc.logit_lens(model, tokens[None]).logits(1))[0]
    assert_close(plain.logits[0], np.sort(by_itself, axis=1)[:, ::-1][:, :3])
    assert (np.asarray(plain.next_rank) == np.asarray(read.next_rank)).all()


def test_ranks_of_the_next_token_stand_beside_the_logit_lens(some):
    model, prompts, _, lens = some
    table = lens.next_token(model, prompts)
    assert list(table["layer"]) == [0, 1, 2]
    last = table.iloc[-1]
    assert last["lens_log_rank"] == last["logit_lens_log_rank"] > 0
    ranks = np.concatenate([np.asarray(lens.readout(model, jnp.asarray(p)).next_rank[0]) for p in prompts])
    assert table["lens_median"][0] == np.median(ranks)


def test_a_lens_of_clusters_reads_by_the_nearest_centre(some):
    model, prompts, _, _ = some
    lens = jc.fit_lens(model, prompts, skip_first=SKIP, average="cluster", clusters=3)
    tokens, site = jnp.asarray(prompts[0]), "blocks.0.hook_resid_post"
    resid = np.asarray(jc.run(model, tokens, record=[site])[1][site])
    own = [np.linalg.norm(x - lens.centres[0], axis=1).argmin() for x in resid]
    carried = np.stack([lens.J[0][c] @ x for c, x in zip(own, resid, strict=True)])
    logits = jc.run(model, tokens, edits={"blocks.2.hook_resid_post": jc.Replace(jnp.asarray(carried))})[0]
    assert_close(lens.readout(model, tokens, top_k=1).logits[0, :, 0], np.asarray(logits).max(1))
    assert lens.readout(model, tokens, top_k=1).tokens.shape == (3, len(tokens), 1)


# Files.


def test_a_lens_comes_back_from_its_file(some, tmp_path):
    model, prompts, _, lens = some
    lens.save(tmp_path / "lens.safetensors")
    again = jc.JacobianLens.load(tmp_path / "lens.safetensors")
    assert again.settings == lens.settings
    assert (again.n_prompts, again.history) == (lens.n_prompts, lens.history)
    for layer in lens.layers:
        assert (np.asarray(again.J[layer]) == np.asarray(lens.J[layer])).all()
        assert_close(again.standard_error[layer], np.asarray(lens.standard_error[layer]), tolerance=1e-6)
    assert again.readout(model, jnp.asarray(prompts[0])).layers == (0, 1, 2)


def test_published_files_are_read_and_written(some, tmp_path):
    torch = pytest.importorskip("torch")
    model, prompts, _, lens = some
    lens.save(tmp_path / "lens.pt")
    held = torch.load(tmp_path / "lens.pt", weights_only=True)
    assert {name: held[name] for name in ("n_prompts", "source_layers", "d_model")} == {
        **{"n_prompts": 5, "source_layers": [0, 1], "d_model": 16}
    }
    assert held["J"][0].dtype == torch.float16
    assert_close(held["J"][0].double().numpy(), np.asarray(lens.J[0], np.float64), tolerance=1e-3)
    # As others write it: no more than the four fields, or a little more.
    bare = {name: held[name] for name in ("J", "n_prompts", "source_layers", "d_model")} | {
        "capture_point": "resid_post"
    }
    torch.save(bare, tmp_path / "bare.pt")
    again = jc.JacobianLens.load(tmp_path / "bare.pt")
    assert (again.target_layer, again.n_prompts, again.settings.more) == (-1, 5, (("capture_point", "resid_post"),))
    assert np.isnan(again.standard_error[0])
    assert again.readout(model, jnp.asarray(prompts[0])).layers == (0, 1, 2)
    again.save(tmp_path / "again.pt")
    assert torch.load(tmp_path / "again.pt", weights_only=True)["capture_point"] == "resid_post"
    stacked = {**bare, "J": torch.stack([held["J"][layer] for layer in (0, 1)])}
    torch.save(stacked, tmp_path / "stacked.pt")
    assert_close(jc.JacobianLens.load(tmp_path / "stacked.pt").J[1], np.asarray(again.J[1]))


@pytest.mark.parametrize(
    ("sources", "target", "read"),
    [
        ((0,), None, (0, 2)),
        ((0,), -1, (0, 2)),
        ((0,), -2, (0, 1)),
        ((0, 1), -2, (0, 1)),  # the target's own map is passed over: it is read as it is
        ((0, 1, 2), None, (0, 1, 2)),
        ((0, 1, 2), 2, (0, 1, 2)),
    ],
)
def test_a_published_target_is_counted_from_the_end_of_the_model(some, tmp_path, sources, target, read):
    torch = pytest.importorskip("torch")
    model, prompts, *_ = some
    held = {"J": {layer: 2 * torch.eye(16) for layer in sources}, "n_prompts": 2, "target_layer": target}
    torch.save({name: value for name, value in held.items() if value is not None}, tmp_path / "lens.pt")
    lens, tokens = jc.JacobianLens.load(tmp_path / "lens.pt"), jnp.asarray(prompts[0])
    found = lens.readout(model, tokens, top_k=1)
    assert found.layers == read
    by_itself = np.asarray(jc.logit_lens(model, tokens[None]).logits(read[-1] + 1))[0]
    assert_close(found.logits[-1, :, 0], by_itself.max(1))
    for suffix in (".pt", ".safetensors"):
        lens.save(tmp_path / f"again{suffix}")
        assert jc.JacobianLens.load(tmp_path / f"again{suffix}").settings == lens.settings


def test_a_target_before_its_sources_is_refused(some, tmp_path):
    torch = pytest.importorskip("torch")
    model, prompts, *_ = some
    held = {"J": {layer: torch.eye(16) for layer in range(3)}, "n_prompts": 2}
    torch.save(held | {"target_layer": 1}, tmp_path / "lens.pt")
    with pytest.raises(ValueError, match=r"lens.pt: its maps lead from layers \[0, 1, 2\] to layer 1"):
        jc.JacobianLens.load(tmp_path / "lens.pt")
    torch.save(held | {"target_layer": -2}, tmp_path / "lens.pt")
    with pytest.raises(ValueError, match=r"up to layer 2 and on to layer -2 from the end, and random has .* 3 layers"):
        jc.JacobianLens.load(tmp_path / "lens.pt").readout(model, jnp.asarray(prompts[0]))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_fit_goes_on_from_its_checkpoint(some, tmp_path, suffix):
    if suffix == ".pt":
        pytest.importorskip("torch")
    model, prompts, _, lens = some
    path = tmp_path / f"half{suffix}"
    given = {"skip_first": SKIP, "checkpoint": path, "checkpoint_seconds": 0}

    class Stopped(Exception):
        pass

    def stop(done, of, stage):
        if done == 3:
            raise Stopped

    with pytest.raises(Stopped):
        jc.fit_lens(model, prompts, **given, progress=stop)
    assert jc.JacobianLens.load(path).n_prompts == 3
    seen = []
    found = jc.fit_lens(model, prompts, **given, progress=lambda done, of, stage: seen.append(done))
    assert seen == [3, 4, 5]
    assert found.n_prompts == 5
    for layer in lens.layers:
        assert_close(found.J[layer], lens.J[layer], tolerance=1e-6)
        assert_close(found.standard_error[layer], lens.standard_error[layer], tolerance=1e-4)
    # And with more prompts, which are taken in behind.
    more = jc.fit_lens(model, [*prompts, prompts[0]], **given)
    assert more.n_prompts == 6


def test_checkpoints_of_others_are_gone_on_from(some, tmp_path):
    torch = pytest.importorskip("torch")
    model, prompts, alone, lens = some
    sums = {layer: torch.tensor(np.asarray(alone[0].J[layer] + alone[1].J[layer])) for layer in (0, 1)}
    held = {"jacobian_sum": sums, "n_done": 2, "next_idx": 2, "target_layer": 2, "skip_first": SKIP}
    torch.save(held, tmp_path / "theirs.pt")
    found = jc.fit_lens(model, prompts, skip_first=SKIP, checkpoint=tmp_path / "theirs.pt")
    assert found.n_prompts == 5
    assert_close(found.J[0], lens.J[0], tolerance=1e-5)


def test_a_checkpoint_of_something_else_is_refused(some, tmp_path):
    model, prompts, _, _ = some
    path = tmp_path / "lens.safetensors"
    jc.fit_lens(model, prompts[:2], skip_first=SKIP, checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="checkpoint with skip_first 3, and 4 was asked for"):
        jc.fit_lens(model, prompts, skip_first=4, checkpoint=path)
    with pytest.raises(ValueError, match="these are not the first of those"):
        jc.fit_lens(model, prompts[1:], skip_first=SKIP, checkpoint=path)
    other = model_named("gpt2-untied")
    with pytest.raises(ValueError, match=r"checkpoint with (target_layer|fingerprint)"):
        jc.fit_lens(other, prompts_for(other), skip_first=SKIP, checkpoint=path)
    assert path.read_bytes() == before


def test_a_checkpoint_of_other_clusters_is_refused(some, tmp_path):
    model, prompts, *_ = some
    given = {"skip_first": SKIP, "average": "cluster", "checkpoint": tmp_path / "lens.safetensors"}
    jc.fit_lens(model, prompts[:2], **given, clusters=2)
    with pytest.raises(
        ValueError, match="checkpoint with 2 of width 16 as the means of layer 0, and 3 of width 16 were"
    ):
        jc.fit_lens(model, prompts, **given, clusters=3)
    assert jc.fit_lens(model, prompts[:2], **given, clusters=2).n_prompts == 2


@pytest.mark.parametrize(
    ("sums", "message"),
    [
        ({0: 16}, r"checkpoint of layers \[0\], and one of layers \[0, 1\] was asked for"),
        ({0: 16, 2: 16}, r"(checkpoint of|lead from) layers \[0, 2\]"),
        ({0: 8, 1: 8}, "with 1 of width 8 as the means of layer 0, and 1 of width 16"),
    ],
)
@pytest.mark.parametrize("target", [2, -1])
def test_a_checkpoint_of_other_layers_or_another_width_is_refused(some, tmp_path, sums, message, target):
    torch = pytest.importorskip("torch")
    model, prompts, *_ = some
    sums, seen = {layer: torch.eye(width) for layer, width in sums.items()}, []
    held = {"jacobian_sum": sums, "n_done": 2, "next_idx": 2, "target_layer": target, "skip_first": SKIP}
    torch.save(held, tmp_path / "theirs.pt")
    with pytest.raises(ValueError, match=message):
        jc.fit_lens(
            model, prompts, skip_first=SKIP, checkpoint=tmp_path / "theirs.pt", progress=lambda *step: seen.append(step)
        )
    assert not seen


# Bad input.


def test_bad_arguments_are_told_before_any_work(some, tmp_path):
    model, prompts, _, lens = some
    fit = ft.partial(jc.fit_lens, model, prompts)
    with pytest.raises(ValueError, match="none of 5 prompts has the 22 tokens that skip_first=20 asks for"):
        fit(skip_first=20)
    with pytest.raises(ValueError, match=r"target_layer is 0, and random has 3 layers.*1 to 2"):
        fit(target_layer=0)
    with pytest.raises(ValueError, match="target_layer is -3"):
        fit(target_layer=-3)
    with pytest.raises(ValueError, match="rule must be 'exact' or 'lrp' or 'detached', got 'half'"):
        fit(rule="half")
    with pytest.raises(ValueError, match="entry 1 of the prompts: Token id 99"):
        jc.fit_lens(model, [prompts[0], np.asarray([1, 99, 2])], skip_first=SKIP)
    with pytest.raises(ValueError, match="the corpus is empty"):
        jc.fit_lens(model, [], skip_first=SKIP)
    with pytest.raises(ValueError, match=r"written as .safetensors or .pt"):
        fit(skip_first=SKIP, checkpoint=tmp_path / "lens.npz")
    with pytest.raises(ValueError, match=r"differ in target_layer|differ in layers"):
        jc.JacobianLens.merge([lens, jc.fit_lens(model, prompts[:1], skip_first=SKIP, target_layer=1)])
    with pytest.raises(ValueError, match="differ in skip_first: 3 and 4"):
        jc.JacobianLens.merge([lens, jc.fit_lens(model, prompts[:1], skip_first=4)])
    with pytest.raises(ValueError, match=r"lens 0 and lens 2 hold the same means.*Give each part once"):
        jc.JacobianLens.merge([lens, jc.fit_lens(model, prompts[1:2], skip_first=SKIP), lens])
    with pytest.raises(ValueError, match="at least one lens"):
        jc.JacobianLens.merge([])
    with pytest.raises(ValueError, match="top_k is 99"):
        lens.readout(model, jnp.asarray(prompts[0]), top_k=99)
    with pytest.raises(ValueError, match="clusters of"):
        fit(skip_first=SKIP, average="cluster", clusters=500)


def test_lenses_that_contradict_each_other_are_not_merged_in_any_order(some):
    """Also where the first of them says nothing; and what one says is kept."""
    *_, lens = some
    of = lambda times: {layer: each._replace(mean=times * each.mean) for layer, each in lens.means.items()}
    silent, quiet = (dataclasses.replace(lens, settings=LensSettings(-1), means=of(times)) for times in (2, 3))
    other = dataclasses.replace(lens, settings=dataclasses.replace(lens.settings, skip_first=4))
    for order in itertools.permutations([silent, lens, other]):
        with pytest.raises(ValueError, match=r"lens \d and those before it differ in skip_first: (3 and 4|4 and 3)"):
            jc.JacobianLens.merge(order)
    for order in ([silent, lens], [lens, silent], [silent, quiet, lens]):
        assert jc.JacobianLens.merge(order).settings == lens.settings
    assert jc.JacobianLens.merge([silent, quiet]).settings == silent.settings


def test_without_pytorch_a_pt_file_is_refused_before_any_work(some, tmp_path, monkeypatch):
    model, prompts, _, lens = some
    monkeypatch.setitem(sys.modules, "torch", None)
    seen = []
    with pytest.raises(ImportError, match=r"written by PyTorch: pip install 'jaxcirc\[torch\]'"):
        jc.fit_lens(
            model, prompts, skip_first=SKIP, checkpoint=tmp_path / "lens.pt", progress=lambda *step: seen.append(step)
        )
    assert not seen
    with pytest.raises(ImportError, match="written by PyTorch"):
        lens.save(tmp_path / "lens.pt")


def test_a_lens_of_another_model_is_refused(some):
    _, prompts, _, lens = some
    narrow = make_model(jax.random.key(1), layers=3, d_model=12)
    with pytest.raises(ValueError, match="width 16, up to layer 2, and random has width 12"):
        lens.readout(narrow, jnp.asarray(prompts[0]))
    twin = make_model(jax.random.key(5), layers=3)
    with pytest.raises(ValueError, match="fitted to random, with other weights"):
        lens.readout(twin, jnp.asarray(prompts[0]))


def test_a_lens_that_is_not_finite_is_refused():
    model = model_named("gpt2")
    broken = eqx.tree_at(lambda m: m.blocks[1].mlp.W_out, model, jnp.full((24, 16), jnp.nan))
    with pytest.raises(ValueError, match="the Jacobian of prompt 0 is not finite"):
        jc.fit_lens(broken, prompts_for(model, (9,)), skip_first=SKIP)


def test_text_is_no_prompt(some, untyped):
    model, *_ = some
    with pytest.raises(TypeError, match=r"entry 0 of the prompts is text. Encode it"):
        jc.fit_lens(model, ["The Eiffel tower"])


def test_files_that_are_no_lens_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    import pickle

    path = tmp_path / "lens.pt"
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="is not a lens: it holds a dict with weights"):
        jc.JacobianLens.load(path)
    torch.save({"J": {0: torch.zeros(3, 4)}, "n_prompts": 2}, path)
    with pytest.raises(ValueError, match="one square matrix"):
        jc.JacobianLens.load(path)
    for J, said in (
        ([[1.0, 2.0]], "expected a tensor for each layer, got a list"),
        ({0: 1.0}, "expected a tensor for each layer, got a float"),
        (3, r"expected a matrix for each of its source_layers, \[0\]; got 0"),
        (torch.zeros(2, 3, 3), r"expected a matrix for each of its source_layers, \[0\]; got 2"),
        ({"blocks.0": torch.zeros(3, 3)}, "expected the numbers of layers, from 0; got 'blocks.0'"),
    ):
        torch.save({"J": J, "n_prompts": 2, "source_layers": [0]}, path)
        with pytest.raises(ValueError, match=rf"lens.pt: {said}"):
            jc.JacobianLens.load(path)
    path.write_bytes(pickle.dumps({"J": print}))
    with pytest.raises(ValueError, match="holds more than weights"):
        jc.JacobianLens.load(path)
    with pytest.raises(FileNotFoundError, match="no such lens file"):
        jc.JacobianLens.load(tmp_path / "nothing.pt")
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not of a lens"):
        jc.JacobianLens.load(tmp_path / "other.safetensors")


def test_numbers_that_half_precision_cannot_hold_are_told(some, tmp_path):
    _, _, _, lens = some
    large = eqx.tree_at(lambda lens: lens.means[0].mean, lens, 1e6 * lens.means[0].mean)
    with pytest.raises(ValueError, match=r"layer 0 has entries up to .*dtype='float32'"):
        large.save(tmp_path / "lens.safetensors", dtype="float16")
    assert not list(tmp_path.iterdir())


def test_settings_say_in_what_they_differ():
    one = LensSettings(2, 16, "exact", "corpus", "a", "f")
    assert one.first_difference(dataclasses.replace(one, model="b")) is None
    assert one.first_difference(LensSettings(2)) is None
    assert one.first_difference(dataclasses.replace(one, rule="lrp")) == "rule"
    assert json.dumps(dataclasses.asdict(one))
    assert isinstance(model_named("gpt2").blocks[0], Block)

"""Few sizes of what is run: prompts of other lengths, and with other numbers of nodes, run the same programs, and get the same results."""

import dataclasses
from unittest import mock

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc._target import for_platform
from jaxcirc.runs import _sizes, tokens_together
from jaxcirc.runs._lengths import lengthened, padded_length, shortened
from jaxcirc.runs._together import KEPT

from .dictionaries import make_sae, transcoder
from .full_sizes import blocks, D, D_MLP
from .helpers import assert_close, counting_programs, make_model, MODELS


SITES = [Site(layer, kind) for layer in range(2) for kind in (Kind.ATTN_OUT, Kind.MLP_OUT, Kind.RESID_POST)]
EDGE = Site(0, Kind.MLP_OUT), Site(1, Kind.MLP_OUT)


def test_lengths_are_few_and_at_most_an_eighth_too_long_where_that_costs():
    lengths = [padded_length(seq, 4096) for seq in range(1, 1025)]
    assert all(length >= seq for seq, length in enumerate(lengths, 1))
    assert lengths == sorted(lengths)
    assert set(lengths[:128]) == set(range(8, 129, 8))
    assert all(8 * length <= 9 * seq for seq, length in enumerate(lengths, 1) if seq > 64)
    assert len(set(lengths)) == 16 + 8 * 3


def test_on_a_cpu_tokens_together_are_as_many_as_a_blocks_memory_is_kept_for():
    small = make_model(jax.random.key(0))
    assert tokens_together(small, 6, 8192) == 8192
    wide = eqx.tree_at(lambda model: model.blocks, small, blocks())
    wide = eqx.tree_at(lambda model: model.W_E, wide, jax.ShapeDtypeStruct((2, D), jnp.float32))
    few = tokens_together(wide, 32, 8192)
    assert few == KEPT // (4 * (2 * D_MLP + D))
    assert tokens_together(wide, 32, few - 1) == few - 1
    # Of a long prompt attention's scores are more than what the MLP makes of it.
    assert 1 <= tokens_together(wide, 1024, 8192) < few // 3
    with for_platform("cuda"):
        assert tokens_together(wide, 32, 8192) == 8192


def test_a_length_is_never_more_than_a_model_takes():
    assert [padded_length(seq, 13) for seq in (5, 9, 13)] == [8, 13, 13]


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_there_and_back(kind):
    given = kind(np.arange(24.0).reshape(2, 3, 4))
    longer = lengthened(given, 8, 0)
    assert longer.shape == (2, 8, 4)
    assert not longer[:, 3:].any()
    assert (lengthened(given, 8)[:, 3:] == np.asarray(given)[:, 2:]).all()
    back = shortened(kind(longer), 3)
    assert type(back) is type(given)
    assert_close(back, np.asarray(given))
    assert shortened(given, 3) is given
    assert_close(shortened(given, 2, axis=-1), np.asarray(given)[..., :2])


# --- Results are those of the prompts as they were given


def problem(
    seq: int, *, causal: bool = True, masked: str | None = None, n_ctx: int = 12, batch: int = 3, seed: int = 0
):
    """A model with dictionaries, and pairs of prompts; `masked` pads some of them, on that side."""
    model = dataclasses.replace(make_model(jax.random.key(0), layers=2, n_ctx=n_ctx), causal=causal)
    saes = {site: make_sae(jax.random.key(i), model.d_model, site) for i, site in enumerate(SITES)}
    saes[SITES[1]] = transcoder(jax.random.key(9), model.d_model, SITES[1])
    rng = np.random.default_rng([seed, seq])
    clean = rng.integers(0, model.d_vocab, (batch, seq))
    corrupt = (clean + rng.integers(1, model.d_vocab, clean.shape) * (rng.random(clean.shape) < 0.4)) % model.d_vocab
    corrupt[:, 1] = (clean[:, 1] + 1) % model.d_vocab
    mask, last = np.ones(clean.shape, bool), np.full(batch, -1)
    if masked == "right":
        mask[1, -2:], last[1] = False, seq - 3
    if masked == "left":
        mask[1, :2] = False
        corrupt[1, -2] = (clean[1, -2] + 1) % model.d_vocab
    metric = jc.LogitDiff(np.arange(batch), np.arange(batch) + 1, position=last)
    tokens = [jax.device_put(each.astype(np.int32)) for each in (clean, corrupt)]
    return model, saes, *tokens, metric, jax.device_put(mask)


def nodes(model, saes, clean, corrupt, metric, mask, **settings):
    found = jc.node_effects(model, saes, clean, corrupt, metric, mask=mask, **settings)
    return [
        found.total,
        found.clean,
        *(part[site] for part in (found.acts, found.error, found.gradient) for site in saes),
    ]


def edges(model, saes, clean, corrupt, metric, mask, **settings):
    method = jc.IntegratedGradients(2) if settings else jc.Gradient()
    effects = jc.node_effects(model, saes, clean, corrupt, metric, mask=mask, method=method)
    found = jc.edge_effects(
        model,
        saes,
        clean,
        corrupt,
        metric,
        effects,
        mask=mask,
        threshold=1e-3,
        path=jc.IntegratedGradients(2),
        **settings,
    )
    return [found.dense(pair) for pair in found.parts] + [found.to_metric[site] for site in found.to_metric]


def circuit(model, saes, clean, corrupt, metric, mask, *, edge_threshold: float | None = 1e-3, **settings):
    thresholds = {"node_threshold": 0.02, "edge_threshold": edge_threshold}
    return jc.discover(model, saes, clean, corrupt, metric, mask=mask, **thresholds, **settings)


def table(model, saes, clean, corrupt, metric, mask, **settings):
    found = circuit(model, saes, clean, corrupt, metric, mask, batch_size=2, **settings)
    kept = found.nodes.sort_values("node"), found.edges.sort_values(["source", "target"])
    names = [kept[0]["node"].to_numpy(str), (kept[1]["source"] + kept[1]["target"]).to_numpy(str)]
    return [*names, kept[0]["effect"].to_numpy(), kept[1]["weight"].to_numpy(), np.array(found.meta.length)]


def heads(model, saes, clean, corrupt, metric, mask, *, method):
    found = jc.head_effects(model, clean, corrupt, metric, mask=mask, method=method)
    return [found.total, found.q, found.k, found.v, found.z]


def circuit_of_others(model, saes, clean, **settings):
    """A circuit of the same model, the same whatever prompts it is tried on."""
    return circuit(model, saes, *problem(clean.shape[1])[2:], **settings)


def evaluation(model, saes, clean, corrupt, metric, mask, *, summed: bool = True, **settings):
    wide = circuit_of_others(model, saes, clean, aggregate="sum" if summed else "none")
    return list(jc.evaluate(wide, model, saes, clean, corrupt, metric, mask=mask, **settings).per_prompt.values())


def steered(model, saes, clean, corrupt, metric, mask):
    wide = circuit_of_others(model, saes, clean)
    names = [row.node for row in wide.node_rows()[:3]]
    return [jc.steer(wide, model, saes, clean, corrupt, metric, names, mask=mask)["measured"].to_numpy()]


def least(model, saes, clean, corrupt, metric, mask):
    wide = circuit_of_others(model, saes, clean)
    found = jc.minimality(wide, model, saes, clean, corrupt, metric, mask=mask, level="edges", most=3)
    return [found["lost"].to_numpy()]


def repair(model, saes, clean, corrupt, metric, mask):
    found = jc.self_repair(model, clean, jc.Resample(corrupt, mask), mask=mask)
    return [found.slope, found.direct, found.own, found.backup, found.mlps, found.norm, found.change, found.used]


def latents(model, saes, clean, corrupt, metric, mask, *, positions: str):
    found = jc.feature_jacobian(model, saes, clean[0], *EDGE, minimum=0.3, positions=positions)
    moved = jc.steer_features(found, model, saes, clean[0], rows=[0, 1])["measured"].to_numpy()
    return [found.position, found.source, found.target, found.gradient, found.cosine, moved]


def ablated(model, saes, clean, corrupt, metric, mask, *, values, metric_too: bool):
    parts = [(0, 1), "blocks.1.hook_mlp_out", (SITES[2], 3)]
    kept = metric if metric_too else None
    given = model, clean, parts, values(corrupt, mask)
    return [
        jc.ablate(*given, saes=saes, mask=mask),
        jc.ablate_each(*given, kept, saes=saes, mask=mask),
    ]


def patched(model, saes, clean, corrupt, metric, mask):
    given = {"saes": saes, "mask": mask}
    by_position = jc.activation_patch(model, clean, corrupt, metric, sites=["resid_pre", "pattern"], **given)
    heads = jc.activation_patch(model, clean, corrupt, metric, sites=["z"], by="head", direction="noise", **given)
    return [*by_position.values.values(), heads.values["z"], heads.clean, heads.corrupt]


VERBS = {
    "nodes": nodes,
    "nodes, by patching": lambda *given: nodes(*given, method=jc.ExactPatching()),
    "edges": edges,
    "edges, integrated": lambda *given: edges(*given, edges="integrated"),
    "a circuit": table,
    "a circuit, integrated": lambda *given: table(*given, edges="integrated", method=jc.IntegratedGradients(2)),
    "heads, by patching": lambda *given: heads(*given, method=jc.ExactPatching()),
    "heads, by AtP*": lambda *given: heads(*given, method=jc.AtPStar(grad_drop=True)),
    "activations, by patching": patched,
    "an evaluation by nodes": evaluation,
    "an evaluation by edges": lambda *given: evaluation(*given, level="edges"),
    "steering": steered,
    "minimality": least,
    "self-repair": repair,
    "latents by latents": lambda *given: latents(*given, positions="same"),
    "latents at all positions": lambda *given: latents(*given, positions="all"),
    "ablation to means": lambda *given: ablated(*given, values=jc.Mean, metric_too=False),
    "ablation to others": lambda *given: ablated(*given, values=jc.Resample, metric_too=True),
}
UNPADDED = {
    "a circuit by positions": lambda *given: table(*given, aggregate="none"),
    "an evaluation by positions": lambda *given: evaluation(*given, summed=False, level="edges"),
    "any function as metric": lambda model, saes, clean, corrupt, metric, mask: nodes(
        model, saes, clean, corrupt, lambda logits: logits[-1, 1] - logits[:, 2].mean(), mask
    ),
}


def assert_unchanged(verb, *given) -> None:
    """A model whose context is as long as the prompts pads nothing."""
    model, *rest = given
    seq = rest[1].shape[1]
    assert padded_length(seq, model.n_ctx) > seq
    got = verb(model, *rest)
    if model.W_pos is None:
        with mock.patch.object(jc.Transformer, "most_positions", seq):
            want = verb(model, *rest)
    else:
        want = verb(dataclasses.replace(model, W_pos=model.W_pos[:seq]), *rest)
    assert len(got) == len(want) > 0
    for one, other in zip(got, want, strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert one.shape == other.shape
        if one.dtype.kind == "f":
            scale = max(1.0, np.abs(np.nan_to_num(other)).max())
            # Sums have other numbers of terms, and so another order.
            tolerance = 1e-12 if jax.config.jax_enable_x64 else 1e-5
            np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)
        else:
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("masked", [None, "right", "left"])
@pytest.mark.parametrize("verb", VERBS)
def test_padding_has_no_part_in_results(verb, masked):
    if masked == "left" and verb == "ablation to means":
        pytest.skip("one prompt padded on the left has no part in a mean that others have from the beginning")
    assert_unchanged(VERBS[verb], *problem(6, masked=masked))


@pytest.mark.parametrize("verb", UNPADDED)
def test_padding_has_no_part_in_results_by_positions(verb):
    assert_unchanged(UNPADDED[verb], *problem(6))


@pytest.mark.parametrize("verb", ["nodes", "edges", "a circuit", "heads, by patching", "latents by latents"])
def test_padding_has_no_part_where_attention_goes_both_ways(verb):
    assert_unchanged(VERBS[verb], *problem(6, causal=False))


@pytest.mark.parametrize("name", ["gpt-neo", "no-norm-relu-bidirectional", "neox", "llama", "gemma3"])
def test_padding_has_no_part_in_other_models(name):
    """Those that differ in who sees padding, and in what positions are. That a run of padded prompts is that of each by itself, at every
    site of every model, is one of `laws/test_run_laws.py`.
    """
    model = MODELS[name](jax.random.key(1))
    _, saes, clean, corrupt, metric, mask = problem(6, masked="right")
    clean, corrupt = (tokens % min(model.d_vocab, len(model.b_U)) for tokens in (clean, corrupt))
    metric = jc.LogProb(jnp.arange(3), position=metric.position)
    saes = {site: sae for site, sae in saes.items() if site.kind == Kind.RESID_POST}
    assert_unchanged(edges, model, saes, clean, corrupt, metric, mask)


# --- Programs


def small_edges(given, mask, threshold, circuit):
    found = jc.node_effects(*given, mask=mask, method=jc.Gradient())
    jc.edge_effects(*given, found, mask=mask, threshold=threshold)


def small_circuit(given, mask, threshold, circuit):
    return jc.discover(*given, mask=mask, node_threshold=threshold, edge_threshold=threshold / 10)


def small_evaluation(given, mask, threshold, circuit):
    jc.evaluate(circuit, *given, mask=mask, level="edges")


def test_a_hundred_prompts_of_ten_lengths_run_few_programs():
    """One verb after another, each beside the programs of those before, for five prompts of each length; with thresholds, and so numbers of
    nodes, that differ; and after the first half of the prompts no program is new.
    """
    lengths = [16, 8, 20, 5, 11, 23, 6, 13, 18, 7]
    circuits = {}
    jax.clear_caches()
    with counting_programs() as programs:
        for verb, most in ((small_edges, 250), (small_circuit, 600), (small_evaluation, 750)):
            for seed in (0, 1):
                before = len(programs)
                for number, seq in enumerate(lengths):
                    *given, mask = problem(seq, n_ctx=32, batch=5, seed=seed)
                    threshold = 0.01 * (1 + (number + seed) % 4)
                    circuits[seed, seq] = verb(given, mask, threshold, circuits.get((seed, seq)))
                assert programs[before:] == [] if seed else 0 < len(programs) <= most


@pytest.mark.parametrize("verb", [verb for verb in VERBS if not verb.endswith("by patching")])
def test_a_second_call_with_other_prompts_compiles_nothing(verb, monkeypatch):
    monkeypatch.setattr(
        _sizes, "_met", {}
    )  # of sizes that other tests' models have met there is no program for this one
    VERBS[verb](*problem(6))
    with counting_programs() as programs:
        VERBS[verb](*problem(6, seed=1))
    assert programs == []

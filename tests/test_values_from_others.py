"""Values that a run takes from other prompts: of unequal lengths, padded on either side, against each prompt alone without padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from tests import oracle
from tests.helpers import assert_close, needs_x64
from tests.test_attribution import one, problem
from tests.test_evaluation import all_edges, by_nodes, circuit_of, masks, some_nodes


pytestmark = needs_x64
LENGTHS, SEQ = (6, 4, 5), 6
TWO_LENGTHS = (6, 4, 4)  # where each prompt runs alone: a program less
PARTS = [(0, 1), (1, 0), Site(0, Kind.MLP_OUT)]


def padding(side, lengths=LENGTHS):
    """True where a token is real."""
    mask = np.arange(SEQ) < np.array(lengths)[:, None]
    return mask if side == "right" else mask[:, ::-1]


@pytest.fixture(params=["left", "right"], name="side")
def sides(request):
    return request.param


def given(side, lengths=LENGTHS):
    """A model, dictionaries, prompts, a metric at the last token, and the mask; the pairs differ where all are real."""
    model, saes, clean, corrupt, metric = problem(batch=3, seq=SEQ, changed=3, kinds=(Kind.MLP_OUT, Kind.RESID_POST))
    mask = padding(side, lengths)
    last = SEQ - 1 - mask[:, ::-1].argmax(1)
    return model, saes, clean, corrupt, jc.LogitDiff(metric.answer, metric.foil, position=last), mask


def alone(prompts, i):
    """One pair without its padding, as a batch of one."""
    model, saes, clean, corrupt, metric, mask = prompts
    cut = lambda tokens: tokens[i][mask[i]][None]
    metric = jc.LogitDiff(metric.answer[i : i + 1], metric.foil[i : i + 1])
    return model, saes, cut(clean), cut(corrupt), metric


def from_alone(record, tokens, mask):
    """What `record` gives of each prompt without its padding, put where its tokens are; NaN elsewhere."""
    found = [record(row[keys]) for row, keys in zip(tokens, mask, strict=True)]
    out = {site: np.full((*mask.shape, *np.shape(x)[1:]), np.nan) for site, x in found[0].items()}
    for i, values in enumerate(found):
        for site, x in values.items():
            out[site][i, mask[i]] = x
    return out


def heads(model):
    sites = [Site(0, Kind.Z), Site(1, Kind.Z), Site(0, Kind.MLP_OUT)]
    return jax.jit(lambda tokens: jc.run(model, tokens, record=sites)[1])


def member(model, site, parts):
    """Which heads of the site are among the parts, or whether it is itself."""
    if site.kind != Kind.Z:
        return np.array(site in parts)
    return np.array([[(site.layer, head) in parts] for head in range(model.n_heads)])


@pytest.mark.parametrize("how", ["mean", "resample"])
def test_parts_are_ablated_to_what_they_are_on_the_other_prompts_alone(side, how):
    model, _, clean, corrupt, _, mask = given(side)
    longer = padding(side, (6, 6, 5))  # real wherever the prompts are
    seen = from_alone(heads(model), corrupt, longer)
    if how == "mean":
        values, seen = (
            jc.Mean(corrupt, jnp.asarray(longer)),
            {s: np.stack([np.nanmean(x, 0)] * 3) for s, x in seen.items()},
        )
    else:
        values = jc.Resample(corrupt, jnp.asarray(longer))
    got = jc.ablate(model, clean, PARTS, values, mask=jnp.asarray(mask))
    each = jc.ablate_each(model, clean, PARTS, values, mask=jnp.asarray(mask))
    edited = jax.jit(lambda tokens, edits: jc.run(model, tokens, edits=edits)[0])
    for i, keys in enumerate(mask):
        blend = lambda parts, i=i, keys=keys: {
            site: jc.Blend(member(model, site, parts), values[i, keys]) for site, values in seen.items()
        }
        clean_logits = edited(clean[i][keys], blend([]))
        for parts, logits in ((PARTS, got[i]), *(([part], each[k, i]) for k, part in enumerate(PARTS))):
            want = edited(clean[i][keys], blend(parts))
            assert np.abs(want - clean_logits).max() > 1e-3
            assert_close(logits[keys], want)


def test_rolled_and_shuffled_masks_go_with_their_prompts():
    tokens, mask = jnp.arange(12).reshape(3, 4), jnp.asarray(padding("right", (4, 2, 3))[:, :4])
    lengths = dict(zip(np.asarray(tokens)[:, 0].tolist(), np.asarray(mask).sum(1).tolist(), strict=True))
    for found in (jc.Resample.rolled(tokens, mask), jc.Resample.shuffled(tokens, jax.random.key(0), mask)):
        assert sorted(np.asarray(found.tokens)[:, 0]) == [0, 4, 8]
        for row, keys in zip(found.tokens, found.mask, strict=True):
            assert int(keys.sum()) == lengths[int(row[0])]


def test_self_repair_is_that_of_each_prompt_alone(side):
    model, _, clean, _, _, mask = given(side, TWO_LENGTHS)
    others = (clean + 1) % model.d_vocab
    found = jc.self_repair(model, clean, jc.Resample(others, jnp.asarray(mask)), mask=jnp.asarray(mask))
    for i, keys in enumerate(mask):
        want = jc.self_repair(model, clean[i][keys][None], others[i][keys][None])
        for part in ("direct", "own", "backup", "mlps", "norm", "change"):
            assert_close(getattr(found, part)[i][..., keys], getattr(want, part)[0])


def test_circuits_are_ablated_to_means_of_prompts_alone(side):
    prompts = given(side)
    model, saes, clean, corrupt, metric, mask = prompts
    seen = from_alone(lambda tokens: oracle.node_values(model, saes, tokens), corrupt, mask)
    mean = {site: np.nanmean(x, 0) for site, x in seen.items()}
    nodes = some_nodes(prompts, 0.4)
    circuit = circuit_of(prompts, nodes, all_edges(prompts, nodes))
    arguments = (circuit, model, saes, clean, corrupt, metric)
    by_node, by_edge = (jc.evaluate(*arguments, mask=jnp.asarray(mask), level=level) for level in ("nodes", "edges"))
    for i, keys in enumerate(mask):
        single = alone(prompts, i)
        values = {site: (mean[site.acts][keys][None], mean[site.error][keys][None]) for site in saes}
        keep = masks(prompts, nodes, seq=int(keys.sum()))
        for name, member in (("circuit", keep), ("empty", {site: np.zeros_like(x) for site, x in keep.items()})):
            assert_close(by_node.per_prompt[name][i : i + 1], by_nodes(single, member, values))
    for name in ("full", "circuit", "empty"):
        assert_close(by_edge.per_prompt[name], by_node.per_prompt[name])
    assert abs(by_node.m_circuit - by_node.m_empty) > 1e-2


@pytest.mark.parametrize("level", ["nodes", "edges"])
def test_circuits_ablated_to_zero_are_those_of_prompts_alone(side, level):
    prompts = given(side, TWO_LENGTHS)
    nodes = some_nodes(prompts, 0.4)
    circuit = circuit_of(prompts, nodes, all_edges(prompts, nodes)[::2])
    options = {"ablation": jc.ZeroAblation(), "level": level}
    found = jc.evaluate(circuit, *prompts[:5], mask=jnp.asarray(prompts[5]), **options)
    for i in range(3):
        want = jc.evaluate(circuit, *alone(prompts, i), **options)
        for name, values in want.per_prompt.items():
            assert_close(found.per_prompt[name][i : i + 1], values)


def test_circuits_resample_from_prompts_that_are_padded_alike(side):
    """Of one length they align; where lengths differ there is no value for the longer one."""
    prompts = given(side, (4, 4, 4))
    mask = jnp.asarray(prompts[5])
    circuit = circuit_of(prompts, some_nodes(prompts, 0.4))
    found = jc.evaluate(circuit, *prompts[:5], mask=mask, ablation=jc.ResampleAblation(1))
    model, saes, clean, corrupt, metric = prompts[:5]
    keys = prompts[5][0]
    unpadded = (model, saes, clean[:, keys], corrupt[:, keys], jc.LogitDiff(metric.answer, metric.foil))
    want = jc.evaluate(circuit, *unpadded, ablation=jc.ResampleAblation(1))
    for name, values in want.per_prompt.items():
        assert_close(found.per_prompt[name], values)
    unequal = given(side)
    with pytest.raises(ValueError, match=r"ResampleAblation: prompt \d has a token at position \d, .* has padding"):
        jc.evaluate(circuit, *unequal[:5], mask=jnp.asarray(unequal[5]), ablation=jc.ResampleAblation())


def test_steering_is_the_mean_of_prompts_alone(side):
    prompts = given(side, TWO_LENGTHS)
    mask = jnp.asarray(prompts[5])
    circuit = jc.discover(*prompts[:5], node_threshold=0.05, edge_threshold=None, method=jc.Gradient(), mask=mask)
    names = [row.node for row in circuit.node_rows()[:3]]
    got = jc.steer(circuit, *prompts[:5], names, mask=mask)
    each = [jc.steer(circuit, *alone(prompts, i), names)["measured"].to_numpy() for i in range(3)]
    assert_close(got["measured"].to_numpy(), np.mean(each, axis=0))


@pytest.mark.parametrize(
    "method", [jc.Gradient(), jc.IntegratedGradients(3), jc.ExactPatching()], ids=lambda m: type(m).__name__
)
def test_effects_are_those_of_pairs_alone(side, method):
    """Clean and corrupt share a mask, so that each is under its own."""
    prompts = given(side, TWO_LENGTHS)
    mask = prompts[5]
    nodes = jc.node_effects(*prompts[:5], method=method, mask=jnp.asarray(mask))
    site = Site(0, Kind.RESID_POST)
    wants = [jc.node_effects(*alone(prompts, i), method=method) for i in range(3)]
    for i, want in enumerate(wants):
        assert_close(nodes.nodes(site)[i][mask[i]], want.nodes(site)[0])
        assert not np.asarray(nodes.nodes(site)[i][~mask[i]]).any()
    if isinstance(method, jc.IntegratedGradients):
        return
    model, _, *rest, _ = prompts
    of_heads = jc.head_effects(model, *rest, method=method, mask=jnp.asarray(mask))
    for i, keys in enumerate(mask):
        model, _, *single = alone(prompts, i)
        assert_close(of_heads.z[i][..., keys], jc.head_effects(model, *single, method=method).z[0])


@pytest.mark.usefixtures("untyped")
def test_what_does_not_align_is_refused():
    model, saes, clean, corrupt, metric, mask = given("right")
    left = padding("left")
    run = lambda values, mask=mask: jc.ablate(model, clean, PARTS, values, mask=jnp.asarray(mask))
    given_mask = lambda mask: jnp.asarray(mask)
    for make in (jc.Mean, jc.Resample, jc.Resample.rolled):
        with pytest.raises(
            ValueError,
            match="the prompts that are run have padding, and it is not known",
        ):
            run(make(corrupt))
    for values, receivers, message in (
        (
            jc.Resample.rolled(corrupt, given_mask(mask)),
            mask,
            r"Resample: prompt 0 has a token at position 5, .*lengths 6 and 5\)",
        ),
        (
            jc.Resample(corrupt, given_mask(left)),
            mask,
            "Resample: prompt 1 has a token at position 0, where .* has padding",
        ),
        (jc.Resample(corrupt, given_mask(mask)), np.ones_like(mask), "Resample: prompt 1 has a token at position 4"),
        (jc.Mean(corrupt, given_mask(left)), mask, "Mean: some prompts are padded on the left and others on the right"),
        (jc.Mean(corrupt, given_mask(mask)), left, "Mean: some prompts are padded on the left and others on the right"),
        (
            jc.Mean(corrupt, given_mask(padding("right", (4, 4, 4)))),
            mask,
            r"Mean: prompt 0 has a token at position 4, where every prompt of the mean has padding \(the longest has length 4\)",
        ),
        (jc.Mean(corrupt[:0]), mask, "Mean: there are no prompts"),
        (jc.Mean(corrupt, given_mask(mask[:2])), mask, "mask: expected one boolean a token"),
        (
            jc.Resample(corrupt[:2], given_mask(mask[:2])),
            mask,
            r"resample from have shape \(2, 6\) and those that are run \(3, 6\)",
        ),
        (
            jc.Resample(jnp.concatenate([corrupt] * 2)),
            mask,
            r"resample from have shape \(6, 6\) and those that are run",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            run(values, receivers)
        if isinstance(values, jc.Resample):
            with pytest.raises(ValueError, match=message):
                jc.self_repair(model, clean, values, mask=jnp.asarray(receivers))
    with pytest.raises(ValueError, match="padding, and it is not known"):
        jc.self_repair(model, clean, corrupt, mask=jnp.asarray(mask))
    both = np.stack([mask[0], mask[1], left[2]])
    last = SEQ - 1 - both[:, ::-1].argmax(1)
    with pytest.raises(ValueError, match="Mean: some prompts are padded on the left and others on the right"):
        jc.evaluate(
            circuit_of((model, saes), []),
            model,
            saes,
            clean,
            corrupt,
            jc.LogitDiff(metric.answer, metric.foil, position=last),
            mask=jnp.asarray(both),
        )
    shorter = jnp.ones((3, 5), int)
    with pytest.raises(ValueError, match="Clean and corrupt prompts come in pairs of equal length"):
        jc.evaluate(circuit_of((model, saes), []), model, saes, clean, shorter, one(metric, slice(None)))

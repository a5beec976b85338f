"""Activation patching: against plain runs with one cell replaced, and by the laws that patches obey."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.runs import _resume, _windows

from . import figures, oracle
from .helpers import (
    assert_close,
    counting_calls,
    counting_programs,
    make_model,
    model_named,
    MODELS,
    needs_x64,
    tokens_for,
)


HEADS = {"q", "k", "v", "z", "pattern", "attn_scores", "rot_q"}
SEQ = 5


def problem(name="gpt2", *, batch=2, changed: int | slice = 1):
    model = model_named(name)
    clean = jnp.stack([tokens_for(model, SEQ, seed) for seed in range(batch)])
    corrupt = clean.at[:, changed].set((clean[:, changed] + 1) % model.d_vocab)
    return model, clean, corrupt, jc.LogitDiff(jnp.arange(batch), jnp.arange(batch) + 2)


def named(model, wanted):
    """Those of some kinds of sites that the model has."""
    there = {site.kind.name.lower() for site in jc.sites(model)}
    return [name for name in wanted if name in there]


@jax.jit
def blended(model, tokens, metric, keys, chosen, others):
    """`[cell]`: the metric of runs in which the cells of `chosen` at each site are those of `others`."""

    def one(chosen):
        edits = {site: jc.Blend(chosen[site], others[site]) for site in others}
        return metric(jc.run(model, tokens, edits=edits, mask=keys)[0])

    return jax.vmap(one)(chosen)


@jax.jit
def values(model, tokens, keys, sites):
    return jc.run(model, tokens, record=list(sites), mask=keys)[1]


def by_runs(model, base, other, metric, sites, by, mask=None):
    """The same as the verb by one plain run for each cell: `{site: [batch cell…]}`."""
    found = {site: [] for site in sites}
    keys = np.ones(base.shape, bool) if mask is None else np.asarray(mask)
    nothing = dict.fromkeys(sites, 0)
    for i, tokens in enumerate(base):
        others = values(model, other[i], keys[i], nothing)
        members = {site: cells(site, others[site].shape, by) for site in sites}
        shapes = {site: member.shape[: member.ndim - others[site].ndim] for site, member in members.items()}
        flat = {site: member.reshape(-1, *others[site].shape) for site, member in members.items()}
        chosen, begin = {}, 0
        total = sum(map(len, flat.values()))
        for site, member in flat.items():
            chosen[site] = np.zeros((total, *member.shape[1:]), bool)
            chosen[site][begin : begin + len(member)] = member
            begin += len(member)
        mine = jax.tree.map(lambda x, i=i: x[i], metric)
        after = np.asarray(blended(model, tokens, mine, keys[i], chosen, others))
        begin = 0
        for site, member in flat.items():
            found[site].append(after[begin : begin + len(member)].reshape(shapes[site]))
            begin += len(member)
    return {site: np.stack(each) for site, each in found.items()}


def cells(site, shape, by):
    """`[(head) (position) …]`: which entries of a site's value each cell is."""
    at = int(site.kind in (Kind.PATTERN, Kind.ATTN_SCORES))
    eye = lambda axis: np.eye(shape[axis], dtype=bool).reshape(
        -1, *[shape[axis] if a == axis else 1 for a in range(len(shape))]
    )
    every = np.ones(shape, bool)
    heads, positions = eye(1 - at) if "head" in by else None, eye(at) if "position" in by else None
    if heads is not None and positions is not None:
        return heads[:, None] & positions[None] & every
    return (heads if heads is not None else positions if positions is not None else np.ones((), bool)) & every


def compared(found, model, wanted, by, want):
    for name in wanted:
        group = [site for site in found.sites if site.kind.name.lower() == name]
        assert_close(found.metrics[name], np.stack([want[site] for site in group], axis=1))


FEW = ("pos_embed", "resid_pre", "resid_mid", "k", "attn_scores", "z", "mlp_pre", "mlp_out")


@needs_x64
@pytest.mark.parametrize("name", MODELS)
def test_a_cell_is_a_run_with_it_replaced(name):
    model, clean, corrupt, metric = problem(name, changed=slice(1, 3))
    for by, direction, wanted in (
        ("layer_position", "denoise", named(model, FEW)),
        ("head", "noise", named(model, ("q", "v", "pattern"))),
    ):
        found = jc.activation_patch(
            model, clean, corrupt, metric, sites=wanted, by=by, direction=direction, tokens_at_once=30
        )
        base, other = (clean, corrupt) if direction == "noise" else (corrupt, clean)
        want = by_runs(model, base, other, metric, found.sites, by)
        compared(found, model, wanted, by, want)
        moved = [
            np.abs(
                np.asarray(found.metrics[each]) - np.asarray(found.base)[:, *[None] * (found.metrics[each].ndim - 1)]
            ).max()
            for each in wanted
            if each != "pos_embed"
        ]
        assert min(moved) > 1e-4, moved


@needs_x64
@pytest.mark.parametrize("name", ["gpt-neo", "olmo2"])
@pytest.mark.parametrize("by", ["layer", "layer_position", "head", "head_position"])
def test_every_site_of_the_blocks(name, by):
    model, clean, corrupt, metric = problem(name, changed=slice(1, 3))
    there = dict.fromkeys(site.kind.name.lower() for site in jc.sites(model) if site.kind <= Kind.RESID_POST)
    of_heads = [each for each in there if each in {"q", "k", "v", "rot_k", "attn_scores", "pattern", "z", "result"}]
    wanted = of_heads if "head" in by else list(there)
    found = jc.activation_patch(model, clean, corrupt, metric, sites=wanted, by=by, direction="noise")
    compared(found, model, wanted, by, by_runs(model, clean, corrupt, metric, found.sites, by))


@needs_x64
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "attention-only"])
def test_windows_change_nothing(name, monkeypatch):
    """As many sizes of windows as there are positions, as large models have."""
    monkeypatch.setattr(_windows, "PROGRAMS", 1.0)
    model, clean, corrupt, _ = problem(name, changed=slice(1, 3))
    metric = jc.LogitDiff(jnp.arange(2), jnp.arange(2) + 2, jnp.array([3, -1]))
    wanted = named(model, ("embed", "resid_pre", "resid_post", "v", "pattern", "attn_out", "mlp_post"))
    found = jc.activation_patch(model, clean, corrupt, metric, sites=wanted, tokens_at_once=12)
    compared(
        found, model, wanted, "layer_position", by_runs(model, corrupt, clean, metric, found.sites, "layer_position")
    )
    heads = jc.activation_patch(model, clean, corrupt, metric, sites=["z", "k"], by="head")
    compared(heads, model, ["z", "k"], "head", by_runs(model, corrupt, clean, metric, heads.sites, "head"))


@needs_x64
@pytest.mark.parametrize("side", [1, -1])
def test_padding_changes_nothing(side):
    model, clean, corrupt, _ = problem(changed=slice(1, 4))
    mask = jnp.asarray(np.array([[True] * 5, [True] * 4 + [False]])[:, ::side])
    metric = jc.LogitDiff(jnp.arange(2), jnp.arange(2) + 2, jnp.array([4, 3 if side == 1 else 4]))
    found = jc.activation_patch(model, clean, corrupt, metric, sites=["resid_pre", "v"], mask=mask)
    compared(
        found,
        model,
        ["resid_pre", "v"],
        "",
        by_runs(model, corrupt, clean, metric, found.sites, "layer_position", mask),
    )


@needs_x64
@pytest.mark.parametrize("name", MODELS)
def test_a_whole_cut_is_the_other_run(name):
    model, clean, corrupt, metric = problem(name)
    cuts = named(model, ("resid_pre", "resid_mid", "resid_post"))
    cuts = [each for each in cuts if each != "resid_mid" or model.blocks[0].has_middle]
    found = jc.activation_patch(model, clean, corrupt, metric, sites=cuts, by="layer", normalise="metric")
    for each in found.values.values():
        assert_close(each, np.repeat(np.asarray(found.clean)[:, None], model.n_layers, axis=1))
    fraction = dataclasses.replace(found, normalise="fraction")
    assert_close(fraction.mean()["resid_pre"], np.ones(model.n_layers))
    assert np.abs(fraction.standard_error()["resid_pre"]).max() < 1e-8


@needs_x64
def test_the_other_direction_is_the_other_order():
    model, clean, corrupt, metric = problem()
    noise = jc.activation_patch(model, clean, corrupt, metric, direction="noise", sites=["z", "mlp_out"])
    denoise = jc.activation_patch(model, corrupt, clean, metric, direction="denoise", sites=["z", "mlp_out"])
    for name in ("z", "mlp_out"):
        assert_close(noise.values[name], denoise.values[name])
    assert_close(noise.clean, denoise.corrupt)
    assert_close(noise.other, noise.corrupt)


@needs_x64
def test_single_vectors_are_the_effects_of_heads():
    model, clean, corrupt, metric = problem("llama", changed=slice(1, 3))
    found = jc.activation_patch(
        *(model, clean, corrupt, metric),
        sites=["q", "k", "v", "z"],
        by="head_position",
        direction="noise",
        normalise="difference",
    )
    effects = jc.head_effects(model, clean, corrupt, metric, method=jc.ExactPatching())
    for part in "qkvz":
        assert_close(found.values[part], getattr(effects, part))
    assert found.values["k"].shape[2] == model.n_kv_heads < model.n_heads


@needs_x64
def test_latents_and_errors_are_patched(getkey):
    model, clean, corrupt, metric = problem()
    saes = oracle.random_saes(getkey(), model)
    wanted = ["resid_post.acts", "mlp_out.error", "attn_out.acts"]
    found = jc.activation_patch(model, clean, corrupt, metric, sites=wanted, saes=saes, normalise="metric")
    assert set(found.values) == {*wanted}
    moved = 0.0
    for site in found.sites:
        name = next(each for each in wanted if each.startswith(site.kind.name.lower()))
        for i, position in np.ndindex(2, SEQ):
            value = jc.run(model, clean[i], saes=saes, record=[site])[1][site]
            edit = jc.Blend((jnp.arange(SEQ) == position)[:, None], value)
            logits, _ = jc.run(model, corrupt[i], saes=saes, edits={site: edit})
            want = float(jax.tree.map(lambda x, i=i: x[i], metric)(logits))
            got = float(found.values[name][i, site.layer, position])
            assert got == pytest.approx(want, abs=1e-10)
            moved = max(moved, abs(want - float(found.base[i])))
    assert moved > 0.1


def test_values_are_normalised_as_asked():
    model, clean, corrupt, metric = problem(batch=3)
    found = jc.activation_patch(model, clean, corrupt, metric, sites=["z"], by="head", normalise="metric")
    raw, base, other = (np.asarray(x) for x in (found.values["z"], found.corrupt, found.clean))
    difference = dataclasses.replace(found, normalise="difference")
    assert_close(difference.values["z"], raw - base[:, None, None])
    spread = (raw - base[:, None, None]).std(0, ddof=1) / 3**0.5
    assert_close(difference.standard_error()["z"], spread)
    fraction = dataclasses.replace(found, normalise="fraction")
    # As with the averages of both runs.
    want = (raw.mean(0) - base.mean()) / (other.mean() - base.mean())
    assert_close(fraction.mean()["z"], want)
    change, gap = raw - base[:, None, None], (other - base)[:, None, None]
    rest = (change - want * gap).std(0, ddof=1) / 3**0.5 / abs(gap.mean())
    assert_close(fraction.standard_error()["z"], rest)
    assert np.isnan(jax.tree.map(lambda x: x[:1], fraction).standard_error()["z"]).all()


def test_the_table_has_a_row_a_cell():
    model, clean, corrupt, metric = problem()
    names = [f"word{i}" for i in range(SEQ)]
    found = jc.activation_patch(model, clean, corrupt, metric, sites=["blocks.1.attn.hook_q", "z"], by="head_position")
    table = found.table(names)
    assert list(table.columns) == ["site", "layer", "head", "position", "token", "value", "standard_error"]
    assert len(table) == (1 + 2) * model.n_heads * SEQ
    assert found.layers("q") == (1,)
    assert (np.diff(np.abs(table["value"].to_numpy(float))) <= 0).all()
    row = table.iloc[0]
    layer = found.layers("q" if row["site"].endswith("q") else "z").index(row["layer"])
    values = found.mean()["q" if row["site"].endswith("q") else "z"]
    assert row["value"] == pytest.approx(values[layer, row["head"], row["position"]])
    assert row["token"] == f"word{row['position']}"
    with pytest.raises(ValueError, match="the text at each of 5 positions, got 2"):
        found.table(["a", "b"])
    whole = jc.activation_patch(model, clean, corrupt, metric, sites=["embed", Kind.Z], by="layer").table()
    assert list(whole.columns) == ["site", "layer", "value", "standard_error"]


def test_only_what_differs_and_can_be_read_is_run(monkeypatch):
    """Counts the variants that each block runs, beside the two sides: a causal model is the same before the first token that differs."""
    model, clean, corrupt, metric = problem(changed=3)
    run, through = [], _resume._through

    def counted(block, masks, rows, *more, **kwargs):
        run.append((int(block is model.blocks[1]), len(rows)))
        return through(block, masks, rows, *more, **kwargs)

    monkeypatch.setattr(_resume, "_through", counted)
    found = jc.activation_patch(model, clean, corrupt, metric, sites=["resid_pre", "attn_out"], normalise="metric")
    batch = len(clean)
    sides = [(0, 2 * batch), (1, 2 * batch)]
    assert run[:2] == sides
    # Of 5 positions 3 and 4 differ, and where the first block begins the token alone, which both blocks are run for; where the second does,
    # and at both outputs of attention, both positions.
    variants = [sum(n for layer, n in run[2:] if layer == at) for at in range(2)]
    assert variants == [batch + 2 * batch, batch + 3 * 2 * batch], run
    np.testing.assert_array_equal(
        found.values["attn_out"][:, :, :3], np.asarray(found.corrupt)[:, None, None] * np.ones((1, 2, 3))
    )


def test_programs_serve_all_layers_and_further_prompts():
    # As no other in all its sizes, whose programs there would be.
    model = make_model(jax.random.key(5), layers=4, d_model=20, d_head=7, d_mlp=28, vocab=19)
    clean = jnp.stack([tokens_for(model, SEQ, seed) for seed in range(2)])
    corrupt = clean.at[:, 1].set((clean[:, 1] + 1) % model.d_vocab)
    given = {"sites": ["attn_out", "q"], "tokens_at_once": 40}
    turned = [jnp.asarray(np.asarray(x)[::-1]) for x in (clean, corrupt)]
    with counting_programs() as programs, counting_calls(jc.Transformer, "__call__") as traces:
        jc.activation_patch(model, clean, corrupt, jc.LogitDiff(1, 2), **given)
        names = [name.removeprefix("jit(").removesuffix(")") for name in programs]
        own = [name for name in names if name in ("_through", "_patched", "_entering", "metric_of_variants")]
        # Of both sides a block and the metric. Of each kind of site its value, what enters its block, and the block with it; of both a
        # block behind, and the metric. All layers share them, but for the first, where few queries differ: such a short list has its own.
        both, each, behind = (
            ["_through", "metric_of_variants"],
            ["_patched", "_through"],
            ["_through", "metric_of_variants"],
        )
        assert sorted(own) == sorted([*both, *2 * each, "_entering", *behind, *each, "_entering", *behind]), own
        count, before = len(programs), len(traces)
        jc.activation_patch(model, turned[0], turned[1], jc.LogitDiff(3, 1), **given)
        jc.activation_patch(model, clean, corrupt, jc.LogitDiff(3, 1), normalise="metric", **given)
    assert len(programs) == count, programs[count:]
    assert len(traces) == before <= 2


REFUSED = {
    "prompts of unequal length": ({"corrupt": np.zeros((2, 4), int)}, "come in pairs of equal length"),
    "no corrupt prompts": ({"corrupt": None}, "values come from the other prompts, and corrupt is None"),
    "equal prompts": ({"corrupt": "clean"}, "corrupt prompts are equal to the clean ones"),
    "the same metric": ({"metric": lambda logits: 0.0 * logits.sum()}, "The metric is the same on clean and corrupt prompts"),
    "heads of a site without": ({"by": "head"}, "`blocks.0.hook_resid_pre` is not of single heads"),
    "a kind that is none": ({"sites": "resid_per"}, "no site or kind of site is called 'resid_per'. Did you mean `resid_pre`?"),
    "a layer that is not there": ({"sites": "blocks.7.hook_mlp_out"}, "there is no site `blocks.7.hook_mlp_out` in random with 2 layers"),
    "a kind that the model lacks": ({"sites": ["mlp_pre_linear"]}, "there is no site 'mlp_pre_linear' in random"),
    "behind the blocks": ({"sites": Kind.LOGITS}, "is behind the blocks. Patch what is in front: `blocks.1.hook_resid_post`"),
    "latents without dictionary": ({"sites": "mlp_out.acts"}, "is of a dictionary, and there is none there. Pass saes="),
    "no site": ({"sites": []}, "no site was asked for"),
    "a number": ({"sites": [3]}, "expected a kind of site such as 'resid_pre', or a site, got 3"),
    "another direction": ({"direction": "up"}, "direction must be 'denoise' or 'noise', got 'up'"),
    "another by": ({"by": "token"}, "by must be 'layer' or 'layer_position' or 'head' or 'head_position', got 'token'"),
    "another normalisation": ({"normalise": "z"}, "normalise must be 'fraction' or 'difference' or 'metric', got 'z'"),
    "no tokens at once": ({"tokens_at_once": 0}, "tokens_at_once is how many tokens are run at once, at least 1; got 0"),
}  # fmt: skip


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what):
    model, clean, corrupt, metric = problem()
    more, message = REFUSED[what]
    given = {"clean": clean, "corrupt": corrupt, "metric": metric} | more
    given["corrupt"] = clean if isinstance(given["corrupt"], str) else given["corrupt"]
    with pytest.raises((ValueError, TypeError), match=message.replace("?", r"\?")):
        jc.activation_patch(model, **given)


def test_a_metric_that_reads_padding_is_refused():
    model, clean, corrupt, metric = problem()
    mask = jnp.ones(clean.shape, bool).at[:, -1].set(False)
    with pytest.raises(ValueError, match="reads position -1 of prompt 0, which is padding"):
        jc.activation_patch(model, clean, corrupt, metric, mask=mask)


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_patterns_are_weighted_at_the_key(name):
    model, clean, *_ = problem(name)
    heads = [(1, 0), (0, 1), (1, model.n_heads - 1)]
    sites = [Site(layer, kind) for layer in range(2) for kind in (Kind.PATTERN, Kind.V)]
    _, cache = jc.run(model, clean[0], record=sites)
    for weigh in ("none", "value", "output"):
        found = jc.patching.head_patterns(model, clean[0], heads, weigh=weigh)
        for got, (layer, head) in zip(found, heads, strict=True):
            want = np.array(cache[Site(layer, Kind.PATTERN)][head])
            v = np.asarray(cache[Site(layer, Kind.V)])[:, head // (model.n_heads // model.n_kv_heads)]
            read = {"value": v, "output": v @ np.asarray(model.blocks[layer].attn.W_O[head])}.get(weigh)
            for key in range(SEQ):
                want[:, key] *= 1 if read is None else np.linalg.norm(read[key])
            assert_close(got, want)
    with pytest.raises(ValueError, match=r"There is no head \(1, 9\)"):
        jc.patching.head_patterns(model, clean[0], [(1, 9)])
    with pytest.raises(ValueError, match="no head was given"):
        jc.patching.head_patterns(model, clean[0], [])


def test_patterns_of_what_is_no_head(untyped):
    model, clean, *_ = problem()
    for head in ((0,), (0.5, 0), "a0.h1"):
        with pytest.raises(
            TypeError, match=re.escape(f"head_patterns: heads: expected a list of heads as (layer, head); {head!r} is")
        ):
            jc.patching.head_patterns(model, clean[0], [head])


def test_pictures_have_a_panel_a_site_and_names(tmp_path):
    model, clean, corrupt, metric = problem(batch=3)
    names = [" word", "\n", "<a>", "other", "x" * 30]
    path = tmp_path / "patching.svg"
    found = jc.activation_patch(model, clean, corrupt, metric, sites=["resid_pre", "mlp_out"])
    figure = jc.draw_patching(found, path, tokens=names, metric="logits")
    assert "<svg" in path.read_text("utf-8")
    assert figure.get_suptitle() == (
        "Activation patching: corrupt run, clean values put in; metric: logits; mean of 3 prompts"
    )
    means, most = found.mean(), max(np.abs(mean).max() for mean in found.mean().values())
    assert most > 0.1
    for axes, name in zip(figures.panels(figure), ("resid_pre", "mlp_out"), strict=True):
        np.testing.assert_allclose(figures.cells(axes), means[name])
        assert figures.limits(axes) == pytest.approx((-most, most))
        assert (axes.get_title(), axes.get_ylabel(), axes.get_xlabel()) == (name, "layer", "position")
        assert figures.names(axes, "x") == ["word 0", "↵ 1", "<a> 2", "other 3", "xxxxxx…xxx 4"]
    assert figures.bars(figure)[0].get_ylabel() == (
        "fraction of the difference between the runs\nred positive, blue negative"
    )
    heads = jc.activation_patch(model, clean, corrupt, metric, sites="z", by="head_position", direction="noise")
    figure = jc.draw_patching(heads)
    assert [axes.get_title() for axes in figures.panels(figure)] == ["z, layer 0", "z, layer 1"]
    np.testing.assert_allclose(figures.cells(figures.panels(figure)[1]), heads.mean()["z"][1])
    whole = jc.activation_patch(
        model, clean, corrupt, metric, sites=["embed", "resid_post"], by="layer", normalise="metric"
    )
    figure = jc.draw_patching(whole)
    (axes,) = figures.panels(figure)
    assert (figures.names(axes, "y"), figures.names(axes, "x")) == (["embed", "resid_post"], ["embed", "0", "1"])
    assert np.isnan(figures.cells(axes)).tolist() == [[False, True, True], [True, False, False]]
    assert axes.get_xlabel() == "layer\ngrey: there is no such site"
    assert figures.bars(figure)[0].get_ylabel().startswith("change of the metric\n")
    single = jc.activation_patch(model, clean, corrupt, metric, sites="blocks.1.hook_attn_out")
    (axes,) = figures.panels(jc.draw_patching(single))
    assert figures.names(axes, "y") == ["1"]
    with pytest.raises(ValueError, match="the text at each of 5 positions, got 1"):
        jc.draw_patching(found, path, tokens=["a"])


def test_patterns_are_drawn(tmp_path):
    model, clean, *_ = problem()
    path, names = tmp_path / "patterns.svg", [f" w{i}" for i in range(SEQ)]
    heads = [(1, 0), (0, 1)]
    figure = jc.draw_patterns(model, clean[0], heads, path, names=names)
    want = np.asarray(jc.patching.head_patterns(model, clean[0], heads))
    assert want[0, 1].max() < 1
    for axes, pattern, title in zip(figures.panels(figure), want, ("head 1.0", "head 0.1"), strict=True):
        np.testing.assert_allclose(figures.cells(axes), pattern)
        assert figures.limits(axes) == (0, 1)
        assert (axes.get_title(), axes.get_ylabel(), axes.get_xlabel()) == (title, "query", "key")
        assert figures.names(axes, "x") == figures.names(axes, "y") == [f"w{i} {i}" for i in range(SEQ)]
    assert figures.written(figure).count("1.00") >= 2  # the first token attends to itself
    for through, norm, bar in ((False, "value", "attention · ‖v‖"), (True, "output", "attention · ‖v W_O‖")):
        figure = jc.draw_patterns(model, clean[0], [(1, 0)], value_weighted=True, through_output=through)
        want = np.asarray(jc.patching.head_patterns(model, clean[0], [(1, 0)], weigh=norm))[0]
        (axes,) = figures.panels(figure)
        np.testing.assert_allclose(figures.cells(axes), want)
        assert figures.limits(axes) == pytest.approx((0, want.max()))
        assert figures.bars(figure)[0].get_ylabel() == bar
        assert "weighted by the norm of the value" in figure.get_suptitle().replace("\n", " ")
    with pytest.raises(ValueError, match="Give value_weighted=True too"):
        jc.draw_patterns(model, clean[0], [(1, 0)], path, through_output=True)
    with pytest.raises(ValueError, match="the text of each of 5 tokens, got 1"):
        jc.draw_patterns(model, clean[0], [(1, 0)], path, names=["a"])

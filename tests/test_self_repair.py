"""Self-repair: against a run of the whole model for each head, with every component's output there."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.components import _after_heads
from jaxcirc.runs import _resume
from tests import figures
from tests.helpers import assert_close, counting_calls, make_model, needs_x64
from tests.test_components import centred, MASK, problem, read, run, VARIANTS, written


pytestmark = needs_x64
PARTS = ("direct", "own", "backup", "mlps", "norm", "change")


def by_hand(model, tokens, other, mask, other_mask):
    """The same six numbers `[batch layer head seq]` from whole runs with one head's `z` replaced; layers before it and beside it stay, and
    so does, read with the clean run's scale, what is behind a norm behind attention.
    """
    shape = (len(tokens), model.n_layers, model.n_heads, tokens.shape[1])
    out = {name: np.zeros(shape) for name in PARTS}
    sites = tuple(Site(layer, Kind.Z) for layer in range(model.n_layers))
    masks = zip(jnp.asarray(mask), jnp.asarray(other_mask), strict=True)
    for i, (row, (keys, other_keys)) in enumerate(zip(tokens, masks, strict=True)):
        target, clean = np.roll(row, -1), written(model, row, keys)
        before = read(model, clean, target)
        own = run(model, row, keys, {}, sites)[1]
        others = run(model, other[i], other_keys, {}, sites)[1]
        for layer in range(model.n_layers):
            for head in range(model.n_heads):
                # Every site is edited in every run, so that one program serves all.
                z = {site: own[site] for site in sites}
                edits = {site: jc.Blend(np.zeros((model.n_heads, 1), bool), z[site]) for site in sites}
                member = (np.arange(model.n_heads) == head)[:, None]
                edits[sites[layer]] = jc.Blend(member, others[sites[layer]])
                ablated = written(model, row, keys, edits)
                post = ablated["post"]
                if post is not None:
                    post = np.where(np.arange(model.n_layers)[:, None, None] == layer, clean["post"], post)
                after = read(model, ablated, target, before["scale"], post)
                moved = {part: after[part] - before[part] for part in ("heads", "mlps", "b_O")}
                assert np.abs(moved["heads"][:layer]).max(initial=0) < 1e-12
                assert np.abs(np.delete(moved["heads"][layer], head, axis=0)).max(initial=0) < 1e-12
                logit = centred(ablated["logits"], target) - centred(clean["logits"], target)
                parts = {
                    "direct": before["heads"][layer, head],
                    "own": moved["heads"][layer, head],
                    "backup": moved["heads"][layer + 1 :].sum((0, 1)) + moved["b_O"][layer + 1 :].sum(0),
                    "mlps": moved["mlps"].sum(0),
                    "change": logit,
                }
                parts["norm"] = logit - parts["own"] - parts["backup"] - parts["mlps"]
                for name, values in parts.items():
                    out[name][i, layer, head] = values
    return out


def used(mask):
    return mask & np.roll(mask, -1, axis=1) & (np.arange(mask.shape[1]) < mask.shape[1] - 1)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in ("gpt2-inverse-layer-scale", "lnpre")])
def test_every_part_is_that_of_whole_runs(name):
    model, tokens = problem(name, batch=2)
    other = (tokens + 1) % min(model.d_vocab, model.W_U.shape[1])
    found = jc.self_repair(model, tokens, other)
    want = by_hand(model, tokens, other, *np.ones((2, 2, 6), bool))
    for part in PARTS:
        got = getattr(found, part)[..., :-1]
        if np.abs(want[part][..., :-1]).max() < 1e-12:  # an MLP beside the last layer's heads, no MLPs, no norm
            assert part in ("mlps", "norm")
            assert np.abs(got).max() < 1e-12
        else:
            assert_close(got, want[part][..., :-1], tolerance=1e-10)
        assert not getattr(found, part)[..., -1].any()
    assert_close(found.own + found.backup + found.mlps + found.norm, found.change, tolerance=1e-10, mass=0.1)
    assert np.abs(found.slope[:-1]).max() > 0.01
    assert not found.slope[-1].any()
    assert not found.intercept[-1].any()
    for layer in range(model.n_layers):
        for head in range(model.n_heads):
            x, y = (want[part][:, layer, head, :-1].ravel() for part in ("direct", "backup"))
            line = np.linalg.lstsq(np.stack([x, np.ones_like(x)], axis=1), y, rcond=None)[0]
            assert found.slope[layer, head] == pytest.approx(line[0], abs=1e-9)
            assert found.intercept[layer, head] == pytest.approx(line[1], abs=1e-9)


def test_answers_are_read_where_they_are_asked_for():
    """The last position of all too, which no next token has; an answer less a foil is the difference of theirs."""
    model, _ = problem()
    tokens = jnp.asarray(np.random.default_rng(5).integers(0, model.d_vocab, (4, 8)), jnp.int32)
    other, answers, foils = tokens[::-1], jnp.array([1, 2, 3, 4]), jnp.array([5, 6, 7, 0])
    of = lambda **more: jc.self_repair(model, tokens, other, **more)
    both = of(answers=answers, foils=foils, positions=-1)
    one, less = (of(answers=each, positions=[7] * 4) for each in (answers, foils))
    for part in PARTS:
        assert_close(getattr(both, part), getattr(one, part) - getattr(less, part), tolerance=1e-10)
        assert not getattr(both, part)[..., :-1].any()
    direct = jc.direct_effects(model, tokens, answers, foils=foils).heads
    assert_close(both.direct[..., -1], direct[..., -1])
    x, y = both.points(0, 1)
    assert np.polyfit(x, y, 1) == pytest.approx([both.slope[0, 1], both.intercept[0, 1]], abs=1e-9)
    assert (len(x), both.logit, one.logit) == (4, "the answer less the foil", "the answer")
    site = Site(0, Kind.Z)
    for row in range(4):
        z = run(model, other[row], None, {}, (site,))[1][site]
        logits = [run(model, tokens[row], None, edits, ())[0][-1] for edits in ({}, {site: jc.Blend(ONLY_1, z)})]
        clean, ablated = (each[answers[row]] - each[foils[row]] for each in logits)
        assert_close(both.change[row, 0, 1, -1], ablated - clean, tolerance=1e-9)
    follow = of(answers=jnp.roll(tokens, -1, axis=1), positions=np.tile(np.arange(7), (4, 1)))
    assert_close(follow.change, of().change, tolerance=1e-10)
    assert of(answers=jnp.eye(16)[3]).logit == "a direction"


ONLY_1 = np.array([[False], [True]])


@pytest.mark.parametrize("tokens_at_once", [1, 12, 10**6])
def test_padding_never_enters_and_chunks_change_nothing(tokens_at_once):
    model, tokens = problem()
    other = jnp.roll(tokens, 1, axis=0)
    others_mask = np.array([[True] * 6, [True] * 5 + [False], [False] + [True] * 5])  # real wherever the prompts are
    want = by_hand(model, tokens, other, MASK, others_mask)
    resample = jc.Resample(other, jnp.asarray(others_mask))
    found = jc.self_repair(model, tokens, resample, mask=jnp.asarray(MASK), tokens_at_once=tokens_at_once)
    np.testing.assert_array_equal(found.used, used(MASK))
    for part in PARTS:
        here = np.broadcast_to(used(MASK)[:, None, None], want[part].shape)
        assert_close(getattr(found, part)[here], want[part][here], tolerance=1e-10)
        assert not getattr(found, part)[~here].any()
    x, y = found.points(0, 1)
    assert len(x) == used(MASK).sum()
    assert np.polyfit(x, y, 1) == pytest.approx([found.slope[0, 1], found.intercept[0, 1]], abs=1e-9)


def test_some_heads_alone():
    model, tokens = problem()
    other = jnp.roll(tokens, 1, axis=0)
    everything, some = (jc.self_repair(model, tokens, other, heads=heads) for heads in ("all", [(1, 1), (0, 0)]))
    assert some.heads == [(0, 0), (1, 1)]
    for layer, head in some.heads:
        for part in ("direct", "own", "norm", "change"):
            assert_close(getattr(some, part)[:, layer, head], getattr(everything, part)[:, layer, head])
        assert some.slope[layer, head] == pytest.approx(everything.slope[layer, head])
    assert np.isnan(some.slope[0, 1])
    assert np.isnan(some.backup[:, 1, 0]).all()
    assert "2 heads, 15 tokens; largest slope" in repr(some)


def test_a_minimum_leaves_tokens_out():
    model, tokens = problem(batch=6)
    found = jc.self_repair(model, tokens, jnp.roll(tokens, 1, axis=0), heads=[(0, 0), (0, 1)])
    minimum = float(np.median(found.direct[:, 0][..., :-1]))
    above = jc.self_repair(model, tokens, jnp.roll(tokens, 1, axis=0), heads=found.heads, minimum=minimum)
    for head in (0, 1):
        x, y = (getattr(found, part)[:, 0, head, :-1].ravel() for part in ("direct", "backup"))
        assert 3 <= (x > minimum).sum() < x.size
        assert above.slope[0, head] == pytest.approx(np.polyfit(x[x > minimum], y[x > minimum], 1)[0])
        assert above.points(0, head)[0].min() > minimum
        through_origin = found.refit(jc.OLS(intercept=False), minimum=minimum)
        wanted = x > minimum
        assert through_origin.slope[0, head] == pytest.approx((x[wanted] @ y[wanted]) / (x[wanted] @ x[wanted]))
        assert through_origin.intercept[0, head] == 0
        assert found.slope[0, head] != pytest.approx(above.slope[0, head])


def test_a_line_through_one_prompt_has_no_interval():
    """Without that prompt no slope is known, and 0 is none."""
    found = synthetic(batch=3)
    low, high = found.interval()
    assert np.isfinite([low, high]).all()
    direct = np.array(found.direct)
    direct[1:, 0, 0], direct[1, 0, 0, 3] = -5, 4  # of the others a single token is above the minimum
    direct[0, 0, 0] = np.abs(direct[0, 0, 0]) + 0.1
    above = dataclasses.replace(found, direct=direct).refit(jc.OLS(), minimum=0.0)
    low, high = above.interval()
    assert np.isnan([low[0, 0], high[0, 0]]).all()
    assert np.isfinite([low[0, 1], high[0, 1], above.slope[0, 0]]).all()


def synthetic(slope=0.6, intercept=-0.2, noise=0.1, batch=40, seq=25, seed=0):
    """A result whose line is known: two layers of two heads; the second layer repairs nothing."""
    rng = np.random.default_rng(seed)
    direct = rng.normal(1, 1, (batch, 2, 2, seq))
    backup = slope * direct + intercept + noise * rng.normal(size=direct.shape)
    backup[:, 1] = 0
    mlps, norm, own = (rng.normal(size=direct.shape) for _ in range(3))
    mask = np.ones((batch, seq), bool)
    mask[:, -1] = False
    changes = _after_heads.Changes(direct, own, backup, mlps, norm, own + backup + mlps + norm)
    return jc.components._repair.fitted(changes, mask, jc.OLS(), None)


def test_a_known_line_comes_back():
    found = synthetic()
    assert found.slope[0] == pytest.approx([0.6, 0.6], abs=0.02)
    assert found.intercept[0] == pytest.approx([-0.2, -0.2], abs=0.02)
    exact = synthetic(noise=0.0)
    assert exact.slope[0] == pytest.approx([0.6, 0.6], abs=1e-12)
    assert exact.intercept[0] == pytest.approx([-0.2, -0.2], abs=1e-12)
    low, high = found.interval()
    # The standard error of the slope is noise / (spread sqrt n), and the points are independent; Student's t of 39 is 2.02.
    widths = [np.subtract(*synthetic(seed=seed).interval()[::-1])[0] for seed in range(10)]
    assert np.mean(widths) == pytest.approx(2 * 2.02 * 0.1 / 960**0.5, rel=0.1)
    assert (low[0] < 0.6).all()
    assert (high[0] > 0.6).all()
    assert not low[1].any()
    assert not high[1].any()
    covered = [
        np.diff(np.sign(np.array(synthetic(seed=seed).interval(level=0.8))[:, 0, 0] - 0.6)) for seed in range(30)
    ]
    assert 17 <= np.count_nonzero(covered) <= 29


def test_no_spread_is_no_slope():
    flat = jc.OLS().line(np.array([[4.0], [4.0], [10.0], [4.0], [10.0]]))
    assert (float(flat[0][0]), float(flat[1][0])) == (0.0, 2.5)
    assert jc.OLS(intercept=False).line(np.array([[4.0], [0.0], [10.0], [0.0], [0.0]]))[0] == 0


def test_the_top_share_of_tokens():
    found = synthetic()
    top = found.top(share=0.05)
    assert (top.tokens == 48).all()
    for layer in (0, 1):
        direct = found.direct[:, layer, 1, :-1].ravel()
        best = np.argsort(-direct)[:48]
        of = lambda name, layer=layer, best=best: getattr(found, name)[:, layer, 1, :-1].ravel()[best]
        means = {
            "direct": of("direct"),
            "ablated": of("direct") + of("own"),
            "change": of("change"),
            "heads": of("backup"),
        }
        means |= {"mlps": of("mlps"), "norm": of("norm"), "repair": of("change") - of("own")}
        for name, values in means.items():
            assert getattr(top, name)[layer, 1] == pytest.approx(values.mean())
        for name in ("heads", "mlps", "norm", "repair"):
            assert top.shares[name][layer, 1] == pytest.approx(np.clip(means[name] / of("direct"), 0, 1).mean())
    assert top.direct.min() > 2
    assert np.abs(top.change - (top.ablated - top.direct) - top.heads - top.mlps - top.norm).max() < 1e-12
    assert (synthetic().top(share=1e-9).tokens == 1).all()
    for share in (0.0, math.nan, 1.5):
        with pytest.raises(
            ValueError, match=rf"SelfRepair\.top: share is a part of the tokens, above 0 and up to 1; got {share}"
        ):
            found.top(share)
    with pytest.raises(ValueError, match=r"SelfRepair\.refit: minimum: expected a finite number, got nan"):
        found.refit(jc.OLS(), minimum=math.nan)
    for level in (0.0, 1.0, math.nan, -1.0):
        with pytest.raises(ValueError, match=r"SelfRepair\.interval: level is how often the interval holds"):
            found.interval(level=level)


def test_one_program_for_all_layers_and_heads():
    model = make_model(jax.random.key(7), layers=4, heads=3, d_model=18)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 13, (2, 5)), jnp.int32)
    with (
        counting_calls(type(model.blocks[0]), "__call__") as whole,
        counting_calls(type(model.blocks[0]), "feed") as half,
    ):
        first = jc.self_repair(model, tokens, tokens[::-1])
        traces = len(whole), len(half)
        jc.self_repair(jax.tree.map(lambda x: 1.5 * x, model), tokens[::-1], tokens)
    assert np.abs(first.backup).max() > 1e-3
    assert traces == (2, 3)  # the plain run and the one onwards, each with its second half; and the second half alone
    assert (len(whole), len(half)) == traces


def test_positions_behind_the_last_that_is_read_are_not_run(monkeypatch):
    """The last of a prompt has no next token; in a causal model padding behind all prompts, too, changes nothing."""
    model, tokens = problem()
    lengths, through = [], _resume._through

    def counted(block, masks, rows, resid, *more, **kwargs):
        lengths.append(resid.shape[1])
        return through(block, masks, rows, resid, *more, **kwargs)

    monkeypatch.setattr(_resume, "_through", counted)
    found = jc.self_repair(model, tokens, tokens[::-1])
    assert set(lengths) == {7}  # all but the last of a length that is rounded to 8
    assert found.backup.shape[-1] == tokens.shape[1]
    assert not found.change[..., -1].any()
    pad = lambda x: jnp.pad(x, ((0, 0), (0, model.n_ctx - x.shape[1])))
    assert model.n_ctx > 7 > tokens.shape[1] - 1
    lengths.clear()
    mask = pad(jnp.ones(tokens.shape, bool))
    padded = jc.self_repair(model, pad(tokens), jc.Resample(pad(tokens[::-1]), mask), mask=mask)
    assert set(lengths) == {7}
    for name in ("backup", "mlps", "norm", "change"):
        assert_close(getattr(padded, name)[..., : tokens.shape[1]], getattr(found, name))


def test_progress_goes_to_the_end():
    model, tokens = problem()
    said = []
    jc.self_repair(model, tokens, tokens[::-1], tokens_at_once=6, progress=lambda *report: said.append(report))
    assert len(said) == 6
    assert said[-1] == (18, 18, "heads")
    assert said == sorted(said)


def test_what_self_repair_refuses(untyped):
    model, tokens = problem()
    unpadded = jc.Resample(tokens[::-1], jnp.ones((3, 6), bool))
    refused = [
        (dict(resample=tokens[:, :4]), r"resample from have shape \(3, 4\) and those that are run \(3, 6\)"),
        (dict(resample=tokens[:2]), r"resample from have shape \(2, 6\) and those that are run \(3, 6\)"),
        (dict(heads=[(0, 2)]), r"There is no head \(0, 2\) in random: its layers have 2 heads, 0 to 1"),
        (dict(heads=[(5, 0)]), "There is no layer 5 in random: it has 2 layers"),
        (dict(heads="none"), "heads is 'all' or a list of"),
        (dict(answers=99), "Token id 99 is outside the vocabulary"),
        (dict(answers=[1, 2]), r"answers: expected shape \(\), \(3,\) or \(3, 6\)"),
        (dict(positions=6), "self_repair: positions: prompt 0 has 6 tokens, and none at position 6"),
        (dict(positions=-1), "no position that is read has a next token"),
        (dict(heads=[]), "no head was given"),
        (
            dict(minimum=99.0),
            r"head \(0, 0\) has 0 tokens with a direct effect above 99, .* its largest direct effect is -?\d",
        ),
        (
            dict(mask=jnp.zeros((3, 6), bool).at[:, 2].set(True), resample=unpadded),
            "no position that is read has a next token",
        ),
        (dict(mask=jnp.ones((3, 5), bool)), "mask: expected one boolean a token"),
        (dict(minimum=math.nan), "self_repair: minimum: expected a finite number, got nan"),
        (dict(tokens_at_once=-5), "self_repair: tokens_at_once is how many tokens are run at once, at least 1; got -5"),
        (
            dict(mask=jnp.arange(6) < jnp.array([[2], [2], [1]]), resample=unpadded),
            r"head \(0, 0\) has 2 tokens with a next token, and a line takes at least 3",
        ),
    ]
    for arguments, message in refused:
        with pytest.raises(ValueError, match=message):
            jc.self_repair(model, tokens, **({"resample": tokens[::-1]} | arguments))
    with pytest.raises(TypeError, match=r"expected a list of heads as \(layer, head\); 1 is none"):
        jc.self_repair(model, tokens, tokens[::-1], heads=[1, 0])
    with pytest.raises(TypeError, match=r"self_repair: heads: expected a list of heads as \(layer, head\), got None"):
        jc.self_repair(model, tokens, tokens[::-1], heads=None)
    for ablation in (jc.Mean(tokens), jc.Zero()):
        with pytest.raises(
            TypeError, match=r"self_repair: resample: expected other prompts, as jc\.Resample\(tokens\)"
        ):
            jc.self_repair(model, tokens, ablation)
    with pytest.raises(TypeError, match=r"expected a fit such as jc.OLS\(intercept=True\), got a str"):
        jc.self_repair(model, tokens, tokens[::-1], fit="ols")


def test_the_picture_shows_every_slope_and_the_line(tmp_path):
    found = synthetic()
    figure = jc.draw_self_repair(found, tmp_path / "repair.svg", heads=[(0, 1)])
    slopes, tokens = figures.panels(figure)
    want = found.slope.copy()
    want[-1] = np.nan  # nothing comes after the last layer
    np.testing.assert_allclose(figures.cells(slopes), want)
    most = np.nanmax(np.abs(want))
    assert most > 0.1
    assert figures.limits(slopes) == pytest.approx((-most, most))
    assert "–" in figures.written(figure)
    assert slopes.get_xlabel() == "head\ngrey: no head comes after it, or it was not asked for"
    assert slopes.get_title() == "slope of backup on direct effect"
    assert tokens.get_title().startswith(f"head 0.1: slope {found.slope[0, 1]:.2f} (95 %: ")
    (points,) = figures.dots(tokens)
    np.testing.assert_allclose(points, np.transpose(found.points(0, 1)))
    assert len(points) == 960
    (line,) = tokens.get_lines()
    assert line.get_slope() == pytest.approx(found.slope[0, 1])
    assert line.get_xy1()[1] == pytest.approx(found.intercept[0, 1])
    with pytest.raises(ValueError, match=r"there is no head \(7, 0\) in the result, which has 4 heads"):
        jc.draw_self_repair(found, tmp_path / "none.svg", heads=[(7, 0)])
    assert [path.name for path in tmp_path.iterdir()] == ["repair.svg"]

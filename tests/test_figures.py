"""Figures: how they look, that they are written whole and alike, what they refuse, and that nothing else changes."""

import itertools
import re
import sys
import warnings

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

import jaxcirc as jc
from jaxcirc._figures import shortened, shown, token_names

from . import figures
from .helpers import example, model_named, REPOSITORY
from .test_layering import python


ODD = ["$x^2$ $", "שלום", "مرحبا", "中文", "\u202eabc", "\x00", "\ud83d", "🙂", " the", "\n", "", "\\frac", "a_b", "né"]
VALUES = np.random.default_rng(0).normal(size=(4, len(ODD)))


@pytest.fixture(scope="module")
def model():
    return model_named("gpt2")


TOKENS = jnp.array([3, 1, 4, 1, 5], jnp.int32)
ENDS = "blocks.0.hook_resid_pre", "blocks.1.hook_resid_post"


# --- Style


def test_signs_have_colours_about_zero():
    figure = jc.draw_effects(np.array([[0.5, -2.0], [0.0, np.nan]]), unit="logits")
    (axes,), (bar,) = figures.panels(figure), figures.bars(figure)
    assert figures.limits(axes) == (-2, 2)
    colour = lambda value: np.asarray(figures.mesh(axes).cmap(figures.mesh(axes).norm(value)))
    assert colour(2.0)[0] > 2 * colour(2.0)[2], "red"
    assert colour(-2.0)[2] > 2 * colour(-2.0)[0], "blue"
    assert colour(0.0)[:3].min() > 0.95, "white"
    grey = figures.mesh(axes).cmap.get_bad()
    assert grey[0] == grey[1] == grey[2] < 0.9
    assert bar.get_ylabel() == "logits\nred positive, blue negative"
    assert axes.get_xlabel() == "head\ngrey: no value"
    assert [text.get_text() for text in axes.texts] == ["0.50", "-2.00", "0", "–"]
    ink = [matplotlib.colors.to_rgb(text.get_color())[0] for text in axes.texts]
    assert ink == [0, 1, 0, 0], "white on the dark cell alone"


@pytest.mark.parametrize(
    ("values", "limit"),
    [([[3.0]], 3), ([[0.0, 0.0]], 1), ([[np.nan, np.nan]], 1), ([[np.inf, 0.5]], 0.5), ([[1e-9], [-2e-9]], 2e-9)],
)
def test_one_cell_zeros_and_nothing_at_all(values, limit, tmp_path):
    values = np.array(values)
    figure = jc.draw_effects(values, tmp_path / "some.svg")
    (axes,) = figures.panels(figure)
    assert figures.limits(axes) == pytest.approx((-limit, limit))
    np.testing.assert_array_equal(figures.cells(axes), np.where(np.isfinite(values), values, np.nan))
    assert ("grey" in axes.get_xlabel()) == (not np.isfinite(values).all())


def test_numbers_stand_in_cells_where_there_is_room():
    small, large = (figures.panels(jc.draw_effects(np.full((n, n), 0.5)))[0] for n in (4, 80))
    assert {text.get_text() for text in small.texts} == {"0.50"}
    assert len(small.texts) == 16
    assert not large.texts
    for value, text in ((123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.0123, "0.012"), (0.00012, "1e-04")):
        assert figures.panels(jc.draw_effects(np.array([[value]])))[0].texts[0].get_text() == text


@pytest.mark.parametrize("count", [3, 16, 90, 400])
def test_names_never_collide(count):
    tokens = [" a long token" if i % 2 else " b" for i in range(count)]
    values = np.ones((count, count))
    figure = jc.draw_effects(values, columns="position", tokens=tokens, row_names=tokens)
    figure.draw_without_rendering()
    (axes,) = figures.panels(figure)
    across, down = axes.get_xticklabels(), axes.get_yticklabels()
    assert 2 < len(across) <= count
    assert across[0].get_text() == "b 0"
    assert [axes.get_xticks()[0], axes.get_yticks()[0]] == [0, 0]
    steps = np.diff([text.get_window_extent().y0 for text in down])
    assert np.abs(steps).min() > down[0].get_window_extent().height * 0.9
    if across[0].get_rotation():
        # Of slanted lines of text the distance across them matters.
        places = axes.transData.transform([[tick, 0] for tick in axes.get_xticks()])[:, 0]
        high = across[0].get_fontsize() * figure.dpi / 72
        assert np.diff(places).min() * np.sin(np.radians(across[0].get_rotation())) > high
    else:
        boxes = [text.get_window_extent() for text in across]
        assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))


def test_tokens_of_any_kind_are_shown(tmp_path):
    with warnings.catch_warnings(action="error"):
        for suffix in (".svg", ".pdf", ".png"):
            figure = jc.draw_effects(VALUES, tmp_path / f"odd{suffix}", columns="position", tokens=ODD, metric="$m$")
    names = figures.names(figures.panels(figure)[0], "x")
    assert names[0] == "$x^2$ $ 0"
    assert names[4:7] == ["\\u202eabc 4", "\\x00 5", "\\ud83d 6"]
    assert names[8:] == ["the 8", "↵ 9", "␣ 10", "\\frac 11", "a_b 12", "né 13"]
    assert names[3] == "\\u4e2d… 3", "the font has no such letters"
    turned = matplotlib.__version_info__[:2] >= (3, 11)
    assert ("שלום" in names[1]) == turned
    assert not any(text.get_parse_math() for axes in figure.axes[:1] for text in axes.get_xticklabels())
    assert "$m$" in figure.get_suptitle()


def test_escapes_are_not_cut():
    assert shown("a\x07b") == "a\\x07b"
    assert shortened("中文中文中文") == "\\u4e2d…"
    assert shortened("abcdefghijkl") == "abcdef…jkl"
    assert all(len(shortened(token)) <= 10 for token in ODD)
    assert token_names(["a", "a"]) == ["a 0", "a 1"]


# --- Files


@pytest.mark.parametrize("suffix", [".svg", ".pdf", ".png"])
def test_a_figure_made_twice_is_the_same_file(suffix, tmp_path, monkeypatch):
    for name, time in (("one", "1"), ("two", "100000000")):
        monkeypatch.setattr("time.time", lambda time=time: float(time))
        assert isinstance(jc.draw_effects(VALUES, tmp_path / f"{name}{suffix}", tokens=ODD), Figure)
    one, two = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("one", "two"))
    assert one == two
    assert one.startswith({".svg": b"<?xml", ".pdf": b"%PDF", ".png": b"\x89PNG"}[suffix])
    assert b"CreationDate" not in one
    assert b"<dc:date>" not in one


DRAWERS = {
    "draw_circuit_curve": (None,),
    "draw_curves": (None,),
    "draw_effects": (None,),
    "draw_features": (None,),
    "draw_graph_checks": (None,),
    "draw_head_effects": (None,),
    "draw_jacobian_norms": (None,),
    "draw_lens": (None,),
    "draw_patching": (None,),
    "draw_path_patching": (None, None),
    "draw_patterns": (None, None, None),
    "draw_self_repair": (None,),
    "draw_spectra": (None,),
}


def test_every_drawer_is_here():
    assert {name for name in vars(jc.view) if name.startswith("draw_")} == {*DRAWERS}
    assert all(getattr(jc, name) is getattr(jc.view, name) for name in DRAWERS)


@pytest.mark.parametrize("name", DRAWERS)
def test_paths_are_checked_first(name, tmp_path, untyped, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.svg").mkdir()
    for path, message in (
        ("x.gif", rf"{name}: path: x.gif does not end in one of \.svg, \.pdf, \.png\. Name it so"),
        ("x", "does not end in one of"),
        ("folder.svg", "folder.svg is a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            getattr(jc, name)(*DRAWERS[name], path)
    assert [each.name for each in tmp_path.iterdir()] == ["folder.svg"]


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    def full(self, file, **_):
        file.write_text("half")
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match=r"No space left on device: .*some\.svg"):
        jc.draw_effects(VALUES, tmp_path / "some.svg")
    assert not [*tmp_path.iterdir()]


def test_no_global_state_changes(tmp_path):
    code = f"""
import sys, warnings
warnings.simplefilter("error")
import matplotlib
import numpy as np
import jaxcirc as jc
matplotlib.rcParams["svg.hashsalt"], matplotlib.rcParams["axes.grid"] = "mine", True
before = dict(matplotlib.rcParams.copy())  # the settings themselves would choose a backend when they are read
for suffix in ("svg", "pdf", "png"):
    jc.draw_effects(np.eye(3), f"{tmp_path}/some.{{suffix}}")
assert dict(matplotlib.rcParams.copy()) == before
assert len(before) > 100
print("matplotlib.pyplot" in sys.modules)
"""
    assert python(code) == "False"
    assert len([*tmp_path.iterdir()]) == 3


# --- Effects


def test_effects_by_name_share_their_colours(tmp_path):
    figure = jc.draw_effects(
        {"one": np.array([[1.0, -2.0]]), "two": jnp.array([[0.5, 4.0]], jnp.bfloat16)},
        columns="position",
        tokens=["a", "b"],
        row_names=["row"],
        title="Effects",
        method="patching",
        metric="logits",
        prompts=3,
    )
    one, two = figures.panels(figure)
    assert (one.get_title(), two.get_title()) == ("one", "two")
    assert figures.cells(two).tolist() == [[0.5, 4.0]]
    assert figures.limits(one) == figures.limits(two) == (-4, 4)
    assert figures.names(one, "y") == ["row"]
    assert figure.get_suptitle().replace("\n", " ") == "Effects; by patching; metric: logits; mean of 3 prompts"


@pytest.mark.parametrize(
    ("effects", "given", "message"),
    [
        ({}, {}, "expected at least one array"),
        (np.zeros(3), {}, r"expected numbers \[row column\], at least one, got an array \[3\]"),
        (np.zeros((2, 0)), {}, "at least one"),
        (np.array([["a"]]), {}, "expected numbers"),
        (np.zeros((2, 3)), {"tokens": ["a"]}, "tokens are the names of each of 3 heads, got 1"),
        (np.zeros((2, 3)), {"row_names": ["a"]}, "row_names are the names of each of 2 layers, got 1"),
        (np.zeros((2, 3)), {"tokens": "abc"}, "expected a list of texts"),
        (None, {}, r"expected an array \[row column\], or several by name, got None"),
    ],
)
def test_effects_of_other_shapes_are_refused(effects, given, message, untyped, tmp_path):
    with pytest.raises((ValueError, TypeError), match=message):
        jc.draw_effects(effects, tmp_path / "x.svg", **given)
    assert not [*tmp_path.iterdir()]


def test_head_effects_by_head_and_by_position(untyped):
    rng = np.random.default_rng(0)
    whole, shared = (jnp.asarray(rng.normal(size=(3, 2, heads, 5))) for heads in (4, 2))
    totals = jnp.ones(3, whole.dtype)
    effects = jc.HeadEffects(whole, shared, 2 * shared, -whole, totals, totals, jc.Gradient())
    figure = jc.draw_head_effects(effects, metric="logits")
    title = figure.get_suptitle().replace("\n", " ")
    assert (
        title
        == f"Effects of heads, corrupt − clean; by {jc.Gradient().words}; metric: logits; mean of 3 prompts total effect +1"
    )
    axes = figures.panels(figure)
    assert [each.get_title().split(",")[0] for each in axes] == ["output", "query", "key", "value"]
    assert [each.get_xlabel() for each in axes] == ["head"] * 2 + ["group of heads that share it"] * 2
    wanted = [np.asarray(values).sum(-1).mean(0) for values in (-whole, whole, shared, 2 * shared)]
    most = max(np.abs(want).max() for want in wanted)
    for each, want in zip(axes, wanted, strict=True):
        np.testing.assert_allclose(figures.cells(each), want, rtol=1e-5)  # float32, summed in another order
        assert figures.limits(each) == pytest.approx((-most, most))  # a colour means one size in all panels
    names = [f"t{i}" for i in range(5)]
    axes = figures.panels(jc.draw_head_effects(effects, by="position", tokens=names))
    np.testing.assert_allclose(figures.cells(axes[2]), np.asarray(shared).sum(2).mean(0), rtol=1e-5)
    assert figures.names(axes[2], "x") == [f"t{i} {i}" for i in range(5)]
    with pytest.raises(ValueError, match="by must be 'head' or 'position', got 'layer'"):
        jc.draw_head_effects(effects, by="layer")
    with pytest.raises(ValueError, match="the text at each of 5 positions, got 1"):
        jc.draw_head_effects(effects, by="position", tokens=["a"])


# --- Jacobians


@pytest.fixture(scope="module")
def jacobian(model):
    return jc.edge(model, TOKENS, *ENDS)


def test_norms_of_blocks(jacobian, model, tmp_path):
    whole = np.asarray(jacobian.as_matrix(), np.float64)
    names = [f"t{i}" for i in range(5)]
    for norm, order in (("frobenius", "fro"), ("spectral", 2)):
        want = np.linalg.norm(whole.swapaxes(1, 2), ord=order, axis=(2, 3))
        assert want[4, 0] > 0.01
        figure = jc.draw_jacobian_norms(jacobian, norm=norm, tokens=names)
        (axes,) = figures.panels(figure)
        np.testing.assert_allclose(figures.cells(axes), want, rtol=1e-4, atol=1e-6)
        assert figures.limits(axes) == pytest.approx((0, want.max()), rel=1e-4)
    assert figures.names(axes, "x") == figures.names(axes, "y") == [f"t{i} {i}" for i in range(5)]
    assert figures.bars(figure)[0].get_ylabel() == "norm, target's unit per source's"
    some = jacobian.restricted(target_pos=[4], source_pos=[1, 3])
    (axes,) = figures.panels(jc.draw_jacobian_norms(some))
    np.testing.assert_allclose(figures.cells(axes), np.linalg.norm(whole[[4]][:, :, [1, 3]], axis=(1, 3)), rtol=1e-4)
    assert (figures.names(axes, "y"), figures.names(axes, "x")) == (["4"], ["1", "3"])
    other = jc.edge(model, TOKENS[::-1], *ENDS)
    figure = jc.draw_jacobian_norms([jacobian, other])
    mean = (np.linalg.norm(whole, axis=(1, 3)) + np.linalg.norm(np.asarray(other.as_matrix()), axis=(1, 3))) / 2
    np.testing.assert_allclose(figures.cells(figures.panels(figure)[0]), mean, rtol=1e-4, atol=1e-6)
    assert figure.get_suptitle().replace("\n", " ").endswith("mean of 2 prompts")
    jc.save_jacobian(jacobian, tmp_path / "J.safetensors")
    (axes,) = figures.panels(jc.draw_jacobian_norms(jc.load_jacobian(tmp_path / "J.safetensors"), tokens=names))
    np.testing.assert_allclose(figures.cells(axes), np.linalg.norm(whole, axis=(1, 3)), rtol=1e-4, atol=1e-6)


def test_norms_of_other_things_are_refused(jacobian, model, untyped):
    for given, how, message in (
        ([], {}, "expected at least one, got none"),
        (3, {}, "expected a list of Jacobians"),
        ([3], {}, "expected an operator, as jc.edge gives one"),
        (jacobian.T, {}, "one position each, not transposed"),
        ([jacobian, jacobian.restricted(target_pos=[0])], {}, "a mean is of one edge"),
        (jacobian, {"norm": "nuclear"}, "norm must be 'frobenius' or 'spectral'"),
        (jacobian, {"tokens": ["a"]}, "the text at each of 5 positions, got 1"),
        (jc.edge(model, TOKENS, ENDS[0], "blocks.1.attn.hook_pattern"), {}, "one position each"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            jc.draw_jacobian_norms(given, **how)


def test_singular_values_on_a_logarithmic_axis(jacobian, model):
    values = jacobian.svd(4)[1]
    figure = jc.draw_spectra({"a": values, "b": jnp.array([2.0, 1.0, 0.0], values.dtype)}, title="Two")
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    a, b = axes.get_lines()[:2]
    np.testing.assert_allclose(a.get_data(), [[1, 2, 3, 4], values])
    np.testing.assert_allclose(b.get_data(), [[1, 2], [2, 1]])
    assert axes.get_xlabel() == "number of the singular value\n1 that are 0 are left out"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert jc.draw_spectra(values).axes[0].get_legend() is None
    sites = [f"blocks.{layer}.hook_resid_post" for layer in (0, 1)]
    found = jc.jacobian.spectra(model, TOKENS, "hook_embed", sites, rank=2)
    figure = jc.draw_spectra(found)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == sites
    assert figure.get_suptitle() == "Singular values of Jacobians of these sites by hook_embed"
    np.testing.assert_allclose(figure.axes[0].get_lines()[1].get_ydata(), found.values[1])
    many = jc.draw_spectra({f"layer {i}": np.ones(3) * (i + 1) for i in range(40)})
    assert many.axes[0].get_legend() is None
    assert "dark: layer 0\nlight: layer 39" in figures.written(many)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "at least one Jacobian, got none"),
        (np.zeros((2, 2)), r"expected singular values \[rank\], finite and none below 0, got an array \[2, 2\]"),
        ({"x": np.array([1.0, -1.0])}, r"\[rank\] of 'x', finite"),
        (np.array([np.nan]), "finite"),
        (np.zeros(3), "all singular values are 0"),
        (None, "what jc.jacobian.spectra gives, or singular values, got None"),
    ],
)
def test_what_are_no_singular_values(given, message, untyped):
    with pytest.raises((ValueError, TypeError), match=message):
        jc.draw_spectra(given)


# --- Lenses


class Letters:
    def decode(self, ids):
        return f" ${chr(97 + ids[0])}$"


def test_grids_of_a_logit_lens(model):
    read = jc.logit_lens(model, jnp.stack([TOKENS, TOKENS[::-1]]), mask=jnp.array([[True] * 5, [True] * 4 + [False]]))
    logits = np.stack([np.asarray(read.logits(depth)) for depth in range(3)], axis=1).astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    figure = jc.draw_lens(read, tokenizer=Letters())
    (axes,) = figures.panels(figure)
    np.testing.assert_allclose(figures.cells(axes), probabilities[0].max(-1), rtol=1e-4)
    assert figures.limits(axes) == (0, 1)
    assert axes.get_ylim() == (-0.5, 2.5), "the first depth at the bottom"
    assert figures.names(axes, "x") == [f"${chr(97 + int(token))}$ {i}" for i, token in enumerate(TOKENS)]
    best = [[f"${chr(97 + int(logits[0, i, j].argmax()))}$" for j in range(5)] for i in range(3)]
    assert [text.get_text() for text in axes.texts] == [*itertools.chain(*best)]
    (axes,) = figures.panels(jc.draw_lens(read, colour="rank", prompt=1))
    follows = np.take_along_axis(logits[1, :, :4], np.asarray(TOKENS[::-1])[None, 1:, None], 2)
    want = 1 + (logits[1, :, :4] > follows).sum(-1)
    assert want.max() > 2
    np.testing.assert_array_equal(figures.cells(axes)[:, :3], want[:, :3])
    assert np.isnan(figures.cells(axes)[:, 3:]).all(), "padding, and what it follows"
    assert "grey: no token follows" in axes.get_xlabel()
    (axes,) = figures.panels(jc.draw_lens(read, colour="entropy", tokens=list("abcde")))
    want = -(probabilities * np.log(probabilities)).sum(-1)[0]
    np.testing.assert_allclose(figures.cells(axes), want, rtol=1e-4, atol=1e-6)  # some are nearly 0, in float32
    assert figures.names(axes, "x") == ["a 0", "b 1", "c 2", "d 3", "e 4"]
    for how, message in (
        ({"colour": "loud"}, "colour must be 'rank' or 'entropy' or 'probability'"),
        ({"prompt": 2}, "prompt is 2, and there are 2, counted from 0"),
        ({"prompt": -1}, "prompt"),
        ({"tokens": ["a"]}, "the text at each of 5 positions, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            jc.draw_lens(read, **how)


def test_grids_of_a_jacobian_lens(model, tmp_path):
    lens = jc.fit_lens(model, [np.asarray(TOKENS)], skip_first=1)
    read = lens.readout(model, TOKENS, 2)
    assert float(read.probabilities.sum(-1).max()) <= 1
    last = np.asarray(jc.run(model, TOKENS)[0], np.float64)
    want = np.sort(np.exp(last) / np.exp(last).sum(-1, keepdims=True))[:, :-3:-1]
    np.testing.assert_allclose(read.probabilities[-1], want, rtol=1e-3)
    (axes,) = figures.panels(jc.draw_lens(read))
    np.testing.assert_allclose(figures.cells(axes), read.probabilities[:, :, 0], rtol=1e-6)
    assert [text.get_text() for text in axes.texts] == [
        str(token) for token in np.asarray(read.tokens[:, :, 0]).ravel()
    ]
    assert figures.names(axes, "y") == ["0", "1"]
    figure = lens.plot(model, TOKENS, Letters(), path=tmp_path / "lens.svg")
    (axes,) = figures.panels(figure)
    np.testing.assert_array_equal(figures.cells(axes)[:, :-1], read.next_rank)
    assert (
        figure.get_suptitle().replace("\n", " ")
        == "Jacobian lens of random: exact Jacobians, 1 prompt; read on 1 prompt"
    )
    (axes,) = figures.panels(lens.plot(model, TOKENS, colour="entropy"))
    np.testing.assert_allclose(figures.cells(axes), read.entropy, rtol=1e-5)
    for how, message in (
        (dict(colour="loud"), "colour must be"),
        (dict(path="x.gif"), "JacobianLens.plot: path: x.gif does not"),
    ):
        with pytest.raises(ValueError, match=message):
            lens.plot(model, TOKENS, **how)


# --- Graphs and curves


@pytest.fixture(scope="module")
def graph(model):
    return jc.attribution_graph(model, None, TOKENS, max_nodes=20)


def test_a_graph_has_its_most_influential_edges_in_their_colours(graph, tmp_path, untyped):
    figure = graph.to_figure(tmp_path / "graph.svg", tokens=["$a$", "b", "\x00", "d", "e"], most_edges=15)
    assert (tmp_path / "graph.svg").exists()
    axes = figure.axes[0]
    (lines,) = [each for each in axes.collections if type(each).__name__ == "LineCollection"]
    weights = [graph.weight(target, source) for target, source in graph.strongest(15).tolist()]
    assert len(lines.get_paths()) == len(weights) == 15
    by_size = sorted(weights, key=lambda weight: -abs(weight))
    assert weights != by_size, "here the strongest are not the most influential"
    red = [bool(colour[0] > colour[2]) for colour in lines.get_colors()[::-1]]
    assert red == [weight > 0 for weight in weights]
    assert len({*red}) == 2
    assert [*lines.get_linewidths()] == sorted(lines.get_linewidths())  # the widest are drawn last
    assert figures.names(axes, "x")[-5:] == ["0\n$a$", "1\nb", "2\n\\x00", "3\nd", "4\ne"]
    assert "15 most influential of" in figure.get_suptitle()
    assert "red positive, blue negative, wider with more" in figure.get_suptitle()
    with pytest.raises(ValueError, match="5 tokens"):
        graph.to_figure(tokens=["a"])
    with pytest.raises(ValueError, match="svg"):
        graph.to_figure("graph.txt")


def test_checks_of_a_graph(graph, model, untyped):
    latents = graph.nodes.index[(graph.nodes["kind"] == "latent") & (graph.nodes["layer"] == 0)][:3]
    table = jc.check_graph(graph, model, None, list(latents))
    (axes,) = jc.draw_graph_checks(table).axes
    for strength, points in zip((0.0, 2.0), figures.dots(axes), strict=True):
        rows = table[table["strength"] == strength]
        np.testing.assert_allclose(points, rows[["predicted", "measured"]])
    assert np.abs(table["measured"]).max() > 1e-3
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["times 0", "times 2"]
    assert axes.get_title().startswith("correlation 1.000; largest difference")
    for given, message in (
        (table[:0], "the table is empty"),
        (table.drop(columns="measured"), "the table has no column 'measured'"),
        (3, "expected the table of jc.check_graph, got 3"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            jc.draw_graph_checks(given)


def test_curves_have_their_band(untyped):
    import pandas as pd

    rows = {"threshold": [0.0, 0.1, 0.2], "nodes": [8, 4, 0], "edges": [9, 2, 0], "faithfulness": [1.0, 0.7, 0.0]}
    rows |= {"low": [0.9, 0.6, 0.0], "high": [1.1, 0.8, 0.0], "completeness": [0.1] * 3, "random": [1.0, 0.2, 0.0]}
    table = pd.DataFrame(rows)
    figure = jc.draw_curves({"by nodes": table}, metric="logits")
    (axes,) = figure.axes
    corners = axes.collections[0].get_paths()[0].vertices
    assert {tuple(corner) for corner in corners} == {(8, 0.9), (8, 1.1), (4, 0.6), (4, 0.8)}
    lines = {line.get_label(): line.get_data() for line in axes.get_lines()}
    np.testing.assert_array_equal(lines["faithfulness"], [[8, 4], [1.0, 0.7]])
    np.testing.assert_array_equal(lines["random"], [[8, 4], [1.0, 0.2]])
    drawn = {line.get_label(): (line.get_zorder(), line.get_linestyle()) for line in axes.get_lines()}
    assert drawn["faithfulness"][0] > drawn["random"][0]  # where both are the same, the first is seen
    assert [drawn[name][1] for name in ("faithfulness", "random")] == ["-", "--"]
    assert axes.get_ylabel() == "share of the metric recovered"
    assert figure.get_suptitle().replace("\n", " ").endswith("size of the circuit; metric: logits")
    for given, message in (
        ({}, "at least one table"),
        ({"x": table[:0]}, "none of them empty"),
        ({"x": table.drop(columns="low")}, "the table 'x' has no column 'low'"),
        ({"x": table[2:]}, "the circuits of 'x' keep nothing"),
        (3, "tables by name"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            jc.draw_curves(given)


# --- The pages' pictures


def test_one_command_makes_every_picture_of_the_pages(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [*sys.path])
    made = example("figures")
    places = {lives for _, lives, _, _ in made.pictures()}
    parts = ("logits", "inputs", "patterns", "weighted")
    places |= {each.with_name(f"{each.stem}-{part}.svg") for each in places for part in parts}
    pages = [page for folder in (".", ".github", ".github/docs", "docs") for page in (REPOSITORY / folder).glob("*.md")]
    shown = [
        (page.parent / name).resolve()
        for page in pages
        for name in re.findall(r"!\[[^]]*\]\((?!http)([^)]+)\)", page.read_text("utf-8"))
    ]
    assert len(shown) > 20
    assert [each for each in shown if each.name not in {place.name for place in places}] == []
    assert [each for each in shown if not each.is_file()] == []
    made.main(["jacobians", "--out", str(tmp_path / "out")])
    assert capsys.readouterr().out == "jacobians\n"
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["jacobians.svg"]
    with pytest.raises(SystemExit):
        made.main(["unknown"])
    assert "no picture is called unknown; there are figure-heads, " in capsys.readouterr().err

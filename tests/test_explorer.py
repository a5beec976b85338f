"""The explorer's page, as far as Python makes it: the layout, the routes, what is described, what stands in the file."""

import itertools
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import jaxcirc as jc
from jaxcirc.cli import main
from jaxcirc.explorer import Description, Edge, layout, Node, page, RADIUS, routes
from jaxcirc.explorer._page import embedded, first_thresholds
from jaxcirc.explorer._routes import straight_is_free

from .helpers import REPOSITORY


EVIL = "</script><img src=x onerror=\"document.title='ran'\">"


def random_circuit(nodes=2000, edges=20_000, rows=13, positions=12, seed=0) -> Description:
    """A large circuit of random nodes and edges."""
    rng = np.random.default_rng(seed)
    row, pos = rng.integers(0, rows, nodes), rng.integers(0, positions, nodes)
    ends = rng.integers(0, nodes, (4 * edges, 2))
    ends = np.unique(ends[row[ends[:, 0]] < row[ends[:, 1]]], axis=0)
    ends = rng.permutation(ends)[:edges]
    assert len(ends) == edges
    kinds, effects, weights = ("latent", "error"), rng.normal(size=nodes) ** 3, rng.normal(size=edges)
    about = {"examples": [{"tokens": [" word"] * 12, "acts": [0.5] * 12}] * 3}
    listed = [
        Node(f"n{i}", int(row[i]), int(pos[i]), kinds[i % 9 == 0], float(effects[i]), str(i), about)
        for i in range(nodes)
    ]
    linked = [Edge(f"n{a}", f"n{b}", float(w)) for (a, b), w in zip(ends.tolist(), weights, strict=True)]
    tokens, labels = [f" t{i}" for i in range(positions)], [f"row {i}" for i in range(rows)]
    return Description("Random", {"method": "none"}, listed, linked, labels, tokens, "effect", "weight")


def data_of(text: str) -> dict:
    """What the page holds."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def passed_under(places, ends, corners) -> np.ndarray:
    """Which edges come nearer than a node's radius to one that is neither of their ends, leg by leg, in double precision."""
    under = np.zeros(len(ends), bool)
    for i, (way, own) in enumerate(zip(corners, ends, strict=True)):
        for a, b in itertools.pairwise(way):
            along = b - a
            length = along @ along
            share = np.clip((places - a) @ along / length, 0, 1) if length > 0 else np.zeros(len(places))
            distance = np.hypot(*(places - a - share[:, None] * along).T)
            distance[own] = np.inf
            under[i] |= distance.min() < RADIUS
    return under


@pytest.fixture(scope="module")
def placed():
    """A random circuit of 400 nodes, laid out, and its edges."""
    described = random_circuit(nodes=400, edges=2000, rows=9, positions=6)
    place = layout([node.row for node in described.nodes], [node.pos for node in described.nodes], described.rows)
    ends = np.array([[int(end[1:]) for end in edge[:2]] for edge in described.edges])
    return described, place, ends


def test_no_edge_runs_under_a_node_it_does_not_touch(placed):
    _, place, ends = placed
    led = routes(place, ends)
    straight = np.stack([place.places[ends[:, 0]], place.places[ends[:, 1]]], axis=1)
    assert passed_under(place.places, ends, straight).mean() > 0.5  # else there is nothing to lead around
    assert not passed_under(place.places, ends, led.points).any()
    assert (led.points[:, 0] == straight[:, 0]).all()
    assert (led.points[:, -1] == straight[:, 1]).all()
    assert set(led.corners) == {2, 5}
    assert (straight_is_free(place, ends) == (led.corners == 2)).all()


def test_edges_between_the_same_nodes_and_backward_ones(placed):
    _, place, ends = placed
    some = np.concatenate([ends[:200], ends[:200], ends[:200, ::-1]])
    row = np.flatnonzero(place.places[:, 1] == place.places[0, 1])[:6]
    some = np.concatenate([some, [[a, b] for a in row for b in row if a != b]])
    led = routes(place, some)
    assert not passed_under(place.places, some, led.points).any()
    assert (np.abs(led.points[:200] - led.points[200:400]).max((1, 2)) > 0.01).all()  # none hides another
    with pytest.raises(ValueError, match="from a node to itself"):
        routes(place, np.array([[3, 3]]))


def test_nodes_stand_apart_each_in_its_row_and_column(placed):
    described, place, _ = placed
    apart = np.hypot(*(place.places[:, None] - place.places[None]).transpose(2, 0, 1))
    assert apart[~np.eye(len(apart), dtype=bool)].min() >= 1
    assert np.allclose(place.places[:, 0] % 1, 0.5)
    rows, columns = {band.label: band for band in place.rows}, {band.label: band for band in place.columns}
    for node, (x, y) in zip(described.nodes, place.places, strict=True):
        row, column = rows[described.rows[node.row]], columns[node.pos]
        assert row.low < y < row.high
        assert column.low < x < column.high
    assert 0.5 < place.width / place.height < 4


def test_small_layouts():
    one = layout([0], [None], ["row"])
    assert one.places.shape == (1, 2)
    assert one.columns[0].label is None
    assert routes(one, np.zeros((0, 2), int)).points.shape == (0, 5, 2)
    assert layout([], [], []).places.shape == (0, 2)


def test_what_is_shown_at_first():
    described = random_circuit(nodes=300, edges=3000)
    node, edge = first_thresholds(described.nodes, described.edges)
    shown = {each.name for each in described.nodes if abs(each.value) >= node}
    assert len(shown) == 60
    drawn = [each for each in described.edges if {each.source, each.target} <= shown and abs(each.weight) >= edge]
    assert 20 < len(drawn) <= 120
    assert first_thresholds(described.nodes[:9], []) == (0, 0)
    # Where the weaker nodes have weak edges alone, fewer are shown, each with an edge.
    strongest = sorted(described.nodes, key=lambda each: -abs(each.value))
    core, others = strongest[:40], strongest[40:60]
    weights = iter(np.linspace(2.0, 1.0, 40 * 39))
    strong = [Edge(a.name, b.name, next(weights)) for a in core for b in core if a is not b]
    weak = [Edge(core[0].name, each.name, 0.1) for each in others]
    node, edge = first_thresholds(described.nodes, [*strong[::12], *weak])
    shown = {each.name for each in described.nodes if abs(each.value) >= node}
    assert 30 <= len(shown) <= 40
    joined = {end for each in strong[::12] if each.weight >= edge for end in (each.source, each.target)}
    assert len(shown - joined) <= 1


@pytest.mark.parametrize("text", [EVIL, "<!--<script>", "&amp;", "\u2028\u2029", "\ud800", "‮אב", "\0\x1b"])
def test_no_text_ends_the_element_that_holds_it(text):
    held = embedded({"text": text})
    assert json.loads(held)["text"] == text
    assert not set(held) & set("<>&\u2028\u2029")
    held.encode("utf-8")


def test_the_page_is_one_file_with_all_in_it():
    node = Node(EVIL, 0, 0, "latent", 1.0, EVIL, {"note": EVIL})
    described = Description(EVIL, {EVIL: EVIL}, [node], [], [EVIL], [EVIL], EVIL, EVIL, remarks=[EVIL])
    text = page(described)
    assert EVIL not in text
    assert data_of(text)["nodes"]["name"] == [EVIL]
    assert not re.search(r"<(link|img|iframe|script)[^>]*(src|href)=[\"']?(https?:)?//", text)
    with pytest.raises(ValueError, match="two nodes have one name"):
        page(Description("", {}, [node, node], [], [""], None, "", ""))
    with pytest.raises(ValueError, match="ends at 'b', which is no node"):
        page(Description("", {}, [node], [Edge(EVIL, "b", 1.0)], [""], None, "", ""))


def test_a_large_circuit_fits_in_twelve_megabytes():
    assert 1e6 < len(page(random_circuit()).encode()) < 12e6


# Circuits


def small_circuit(pos=(0, 1, 1)) -> jc.Circuit:
    names = ["blocks.0.hook_mlp_out/3@0", "blocks.0.hook_mlp_out/error@1", "blocks.1.hook_resid_post/7@1"]
    nodes = pd.DataFrame(
        {
            "node": names,
            "site": [name.partition("/")[0] for name in names],
            "unit": [3, 9, 7],
            "kind": ["latent", "error", "latent"],
            "pos": pd.array(list(pos), "Int64"),
            "effect": [0.5, -0.25, 1.0],
        }
    )
    ends = [(names[0], names[2], 0.4), (names[1], names[2], -0.1), (names[2], "metric", 1.0)]
    edges = pd.DataFrame(ends, columns=["source", "target", "weight"])
    meta = {
        "model": "m",
        "metric": "LogitDiff",
        "prompts": 4,
        "method": {"name": "Gradient"},
        "tokens": ["The", " dog"],
    }
    return jc.Circuit(nodes, edges, meta)


def described_page(circuit, path):
    circuit.to_html(path)
    return data_of(path.read_text(encoding="utf-8"))


def test_a_circuits_page(tmp_path):
    circuit = small_circuit()
    note = {"blocks.0.hook_mlp_out/3": "dogs"}
    latents = {
        "blocks.1.hook_resid_post/7": {"promotes": [[" are", 0.5]], "suppresses": [], "examples": [], "acts": [0, 1]}
    }
    held = described_page(circuit.annotate(annotations=note, latents=latents), tmp_path / "page.html")
    assert dict(held["facts"]) == {"model": "m", "method": "Gradient", "metric": "LogitDiff", "prompts": "4"}
    assert set(held["nodes"]["name"]) == {*circuit.nodes["node"], "metric"}
    assert sum(held["nodes"]["counted"]) == 3
    about = dict(zip(held["nodes"]["name"], held["about"], strict=True))
    assert about["blocks.0.hook_mlp_out/3@0"]["note"] == "dogs"
    assert about["blocks.1.hook_resid_post/7@1"]["promotes"] == [[" are", 0.5]]
    assert [column["token"] for column in held["columns"]] == ["The", " dog"]
    assert held["labels"] == ["mlp 0", "resid 1", "metric"]
    assert "describe_latents" in held["missing"]["examples"]
    weights = {
        (held["nodes"]["name"][s], held["nodes"]["name"][t]): w
        for s, t, w in zip(*(held["edges"][name] for name in ("source", "target", "weight")), strict=True)
    }
    assert weights == {(s, t): w for s, t, w in circuit.edges.itertuples(index=False)}


def test_summed_positions_do_not_borrow_the_first_prompts_tokens(tmp_path):
    held = described_page(small_circuit(pos=[None] * 3), tmp_path / "page.html")
    assert held["tokens"] is None
    assert [(column["pos"], column["token"]) for column in held["columns"]] == [(None, "all positions")]
    assert any("Positions were summed" in remark for remark in held["remarks"])


def test_a_circuit_without_nodes_and_one_without_edges(tmp_path):
    assert described_page(small_circuit().subgraph([]), tmp_path / "a.html")["nodes"]["name"] == []
    one = small_circuit().subgraph(["blocks.0.hook_mlp_out/3@0"])
    held = described_page(one, tmp_path / "b.html")
    assert held["nodes"]["name"] == ["blocks.0.hook_mlp_out/3@0"]
    assert held["edges"]["weight"] == []


# Attribution graphs and circuits of components


@pytest.fixture(scope="module")
def graph(model):
    tokens = jnp.asarray([464, 77, 12, 5]) % len(model.W_E)
    return jc.attribution_graph(model, None, tokens, max_nodes=40, targets=[3, 4])


def test_an_attribution_graphs_page(graph, tmp_path):
    graph.to_html(tmp_path / "g.html", tokens=["a", " b", " c", " d"], outputs=["x", EVIL])
    held = data_of((tmp_path / "g.html").read_text(encoding="utf-8"))
    nodes, names = graph.nodes, held["nodes"]["name"]
    assert len(names) == len(nodes)
    assert len(held["edges"]["weight"]) == graph.edges.sum() > 20
    number = {name: i for i, name in enumerate(names)}
    latent = nodes[nodes.kind == "latent"].iloc[0]
    i = number[f"{latent.site}/{latent.unit}@{latent.pos}"]
    assert held["nodes"]["value"][i] == pytest.approx(latent.influence)
    assert held["about"][i]["facts"]["activation"] == pytest.approx(latent.activation, rel=1e-5)
    assert held["tokens"] == ["a", " b", " c", " d"]
    assert held["labels"][0] in ("own bias", "embed")
    assert held["labels"][-1] == "logits"
    graph.to_html(tmp_path / "ids.html")
    assert data_of((tmp_path / "ids.html").read_text(encoding="utf-8"))["tokens"][3] == "#5"
    with pytest.raises(ValueError, match=r"AttributionGraph\.to_html: tokens are the prompt's 4 tokens"):
        graph.to_html(tmp_path / "no.html", tokens=["a"])
    assert not (tmp_path / "no.html").exists()


@pytest.mark.parametrize("positions", [None, 3])
def test_a_page_of_components(model, positions, tmp_path):
    components = jc.component_graph(model, positions=positions)
    scores = np.random.default_rng(0).normal(size=(2, *components.edges.shape)) * components.edges
    components.to_html(tmp_path / "c.html", scores, facts={"metric": "m"}, tokens=["a", "b", "c"])
    held = data_of((tmp_path / "c.html").read_text(encoding="utf-8"))
    assert len(held["edges"]["weight"]) == components.n_edges
    assert np.sort(held["edges"]["weight"]) == pytest.approx(np.sort(scores.mean(0)[components.edges]))
    assert dict(held["facts"]) == {"metric": "m", "prompts": "2"}
    i = held["nodes"]["name"].index("m0" if positions is None else "m0@1")
    out = scores.mean(0)[..., components.sender("m0"), :]
    assert held["nodes"]["value"][i] == pytest.approx((out if positions is None else out[1]).sum())
    assert {*held["edges"]["part"]} == {"", "q", "k", "v"}
    kept = np.zeros(components.edges.shape, bool)
    kept[..., components.sender("embed"), components.receiver("a1.h0.q")] = True
    components.to_html(tmp_path / "k.html", kept=kept)
    held = data_of((tmp_path / "k.html").read_text(encoding="utf-8"))
    assert held["edges"]["part"] == ["q"] * (positions or 1)
    if positions is not None:
        with pytest.raises(ValueError, match="tokens are the prompt's, one for each of the graph's 3 positions; got 2"):
            components.to_html(tmp_path / "no.html", scores, tokens=["a", "b"])
        assert not (tmp_path / "no.html").exists()


def test_a_figure_of_components(model, tmp_path):
    components = jc.component_graph(model)
    scores = np.where(components.edges, np.random.default_rng(0).normal(size=components.edges.shape), 0)
    figure = components.to_figure(tmp_path / "c.pdf", scores, most_edges=9, facts={"method": "by hand"})
    (lines,) = [each for each in figure.axes[0].collections if type(each).__name__ == "LineCollection"]
    assert len(lines.get_paths()) == 9
    red = {tuple(colour[:3]) for colour in lines.get_colors()}
    assert len(red) == 2  # both signs
    assert "by hand" in figure.get_suptitle()
    assert (tmp_path / "c.pdf").stat().st_size > 1000


@pytest.mark.usefixtures("untyped")
def test_what_is_no_circuit_of_components(model, tmp_path):
    components = jc.component_graph(model)
    with pytest.raises(ValueError, match="expected scores, or the edges that are kept, or both"):
        components.to_html(tmp_path / "c.html")
    with pytest.raises(ValueError, match=r"scores are of the graph's edges, \[sender receiver\] = .*; got \[2, 3\]"):
        components.to_html(tmp_path / "c.html", np.zeros((2, 3)))
    assert not list(tmp_path.iterdir())


# The command


def test_view_writes_a_page(graph, tmp_path, capsys):
    small_circuit().save(tmp_path / "circuit")
    graph.save(tmp_path / "g.safetensors")
    graph.to_json(tmp_path / "g.json", tokens=["a", " b", " c", " d"])
    for which in ("circuit", "circuit/circuit.json", "g.safetensors", "g.json"):
        assert main(["view", str(tmp_path / which), "--out", str(tmp_path / "page.html")]) == 0
        assert data_of((tmp_path / "page.html").read_text(encoding="utf-8"))["nodes"]["name"]
        (tmp_path / "page.html").unlink()
    capsys.readouterr()


def test_view_says_what_is_wrong(tmp_path, capsys):
    small_circuit().save(tmp_path / "circuit")
    (tmp_path / "notes.txt").write_text("x")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for given, said in (
            (["nowhere"], "there is no such file or folder"),
            (["."], "is not a saved circuit"),
            (["notes.txt"], "is neither a circuit's folder nor a graph's"),
            (["circuit", "--port", port, "--no-browser"], f"--port {port} is in use. Choose another, or leave it out."),
            (["circuit", "--port", "70000", "--no-browser"], "--port is a number from 0 to 65535"),
            (["circuit", "--tokenizer", "tiny-gpt2"], "--tokenizer is for attribution graphs"),
        ):
            assert main(["view", str(tmp_path / given[0]), *given[1:]]) == 2
            told = capsys.readouterr().err
            assert said in told
            assert told.count("\n") == 1


def test_view_serves_to_this_machine_until_ctrl_c(tmp_path):
    small_circuit().save(tmp_path / "circuit")
    command = [sys.executable, "-m", "jaxcirc", "view", str(tmp_path / "circuit"), "--no-browser"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in a shell's background the tests hear none
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    with process:
        try:
            url = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())[0]
            assert 'id="data"' in urllib.request.urlopen(url).read().decode()
            for asked in (urllib.request.Request(url, headers={"Host": "elsewhere:80"}), url + "other"):
                with pytest.raises(urllib.error.HTTPError):
                    urllib.request.urlopen(asked)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
            assert "stopped" in process.stderr.read()
        finally:
            process.kill()

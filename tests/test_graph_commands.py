"""`jaxcirc check-graph`, `explain-edge`, `qk-attribution` and `intervene`: each prints and writes what its verb gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import jaxcirc as jc
from jaxcirc.attribution_graphs import Change
from jaxcirc.cli import main
from jaxcirc.cli._language import PYTHON

from .helpers import assert_close, printed, said
from .oracle import random_arrays


PROMPT = ["--model", "tiny-gpt2", "--prompt", "The teachers that the doctor likes"]
ROW = ["predicted", "measured"]


pytestmark = pytest.mark.usefixtures("same_cache")


@pytest.fixture(scope="module")
def tokens(tokenizer):
    return jnp.array([tokenizer.bos_token_id, *tokenizer.encode(PROMPT[-1])], jnp.int32)


@pytest.fixture(scope="module")
def graph(model, tokens, tokenizer):
    return jc.attribution_graph(model, None, tokens, targets=[5], max_nodes=100).annotate(tokenizer)


@pytest.fixture(scope="module")
def saved(graph, tmp_path_factory):
    path = tmp_path_factory.mktemp("graphs") / "graph.safetensors"
    graph.save(path)
    return [str(path), "--model", "tiny-gpt2"]


def name_of(row) -> str:
    """The name of a latent, of its row in a table of nodes."""
    return f"{row.site}/{row.unit}@{row.pos}"


@pytest.fixture(scope="module")
def latents(graph):
    """The two latents of most influence that are not in the last layer."""
    nodes = graph.nodes[(graph.nodes["kind"] == "latent") & (graph.nodes["layer"] < 3)]
    return nodes.sort_values("influence", ascending=False).index[:2].tolist()


def test_check_graph_against_its_verb(graph, model, saved, latents, tmp_path, capsys):
    names, out, drawn = [name_of(graph.nodes.iloc[i]) for i in latents], tmp_path / "c.csv", tmp_path / "checks.svg"
    command = ["check-graph", *saved, "--nodes", *names, "--factors", "0", "0.5"]
    found = said(capsys, *command, "--top", "3", "--out", str(out), "--plot", str(drawn))
    want = jc.check_graph(graph, model, None, latents, strengths=[0.0, 0.5])
    assert np.abs(want["measured"].to_numpy()).max() > 0.01
    written = pd.read_csv(out)
    assert written["node"].unique().tolist() == found["nodes"] == names
    assert_close(written[ROW].to_numpy(), want[ROW].to_numpy(), tolerance=1e-4)
    assert found["changes"] == len(want)
    assert found["largest_difference"] < 1e-3 * found["largest_change"]
    biggest = want.iloc[int(np.abs(want["measured"].to_numpy()).argmax())]
    assert found["rows"][0]["measured"] == pytest.approx(biggest["measured"], rel=1e-3)
    assert "times 0.5" in drawn.read_text("utf-8")
    live = [*command, "--freeze", "nothing", "--live-from", "1"]
    free = jc.check_graph(graph, model, None, latents, strengths=[0.0, 0.5], frozen=(), live_from=1)
    assert said(capsys, *live)["correlation"] == pytest.approx(np.corrcoef(free[ROW].T.to_numpy())[0, 1], abs=1e-3)
    assert "held: nothing; latents from layer 1 on computed anew" in printed(capsys, *live)


def test_explain_edges_and_one_edge(graph, model, saved, tmp_path, capsys):
    found = said(capsys, "explain-edge", *saved, "--top", "3", "--out", str(tmp_path / "heads.csv"))
    want = jc.head_loadings(graph, model, None, most=3)
    assert np.abs(want.heads).max() > 0.05
    assert len(found["edges"]) == 3
    for edge, value, heads in zip(found["edges"], want.values, want.heads, strict=True):
        assert edge["value"] == pytest.approx(float(value), rel=1e-4)
        got = np.zeros_like(heads)
        for each in edge["heads"]:
            got[each["layer"], each["head"]] = each["loading"]
        assert_close(got, heads, tolerance=1e-4)
    assert len(pd.read_csv(tmp_path / "heads.csv")) == np.count_nonzero(want.heads)

    nodes = graph.nodes
    logit, token = (nodes.index[nodes["kind"] == kind][0] for kind in ("logit", "token"))
    names = [f"token@{nodes['pos'][token]}", f"logits/5@{len(graph.meta['tokens']) - 1}"]
    command = ["explain-edge", *saved, "--edge", *names, "--heads", "2", "--top", "2"]
    found = said(capsys, *command)
    want = jc.explain_edge(graph, model, None, int(logit), int(token), heads=2, pairs=2)
    assert found["value"] == pytest.approx(want.value, rel=1e-4)
    assert len(found["heads"]) == len(want.heads) == 2
    for got, head in zip(found["heads"], want.heads, strict=True):
        assert [got[name] for name in ("layer", "head", "query", "key")] == [
            head.layer,
            head.head,
            head.query,
            head.key,
        ]
        assert got["loading"] == pytest.approx(head.loading, rel=1e-3)
        assert [pair["value"] for pair in got["pairs"]] == pytest.approx(head.score.values.tolist(), rel=1e-3)
    assert f"head {want.heads[0].layer}.{want.heads[0].head} carries" in printed(capsys, *command)


def test_qk_attribution_where_a_head_attends_most(model, tokens, tmp_path, capsys):
    out = tmp_path / "pairs.csv"
    command = ["qk-attribution", *PROMPT, "--head", "3.0", "1.2"]
    found = said(capsys, *command, "--top", "4", "--out", str(out))
    for row, (layer, head) in zip(found["rows"], ((3, 0), (1, 2)), strict=True):
        pattern = jc.run(model, tokens, record=[f"blocks.{layer}.attn.hook_pattern"])[1]
        attends = np.asarray(pattern[f"blocks.{layer}.attn.hook_pattern"])[head, 6]
        assert (row["query"], row["key"]) == (6, int(attends.argmax()))
        assert row["attends"] == pytest.approx(float(attends.max()), rel=1e-4)
        want = jc.qk_attribution(model, None, tokens, layer, head, 6, row["key"], pairs=4)
        assert row["score"] == pytest.approx(want.score, rel=1e-3)
        assert [pair["value"] for pair in row["pairs"]] == pytest.approx(want.values.tolist(), rel=1e-3)
        sums = [value for sums in row["by_kind"].values() for value in sums.values()]
        assert sum(sums) == pytest.approx(want.score, rel=1e-3)
    assert len(pd.read_csv(out)) == 8
    assert "attends from 3 ' that' to 2 ' teachers'" in printed(capsys, *command, "--query", "3", "--key", "-5")


def test_intervene_with_transcoders(model, tokens, tmp_path, capsys):
    for layer in range(4):
        site, reads = (jc.Site(layer, kind) for kind in (jc.Kind.MLP_OUT, jc.Kind.MLP_IN))
        W_enc, b_enc, W_dec, b_dec = (x.astype(jnp.float32) for x in random_arrays(jax.random.key(layer), 128, 132))
        made = jc.saes.Transcoder(W_enc, b_enc, W_dec, b_dec, jc.saes.ReLU(), reads, site)
        jc.save_sae(made, tmp_path / "transcoders" / str(site))
    loaded = jc.load_saes(tmp_path / "transcoders")
    moves = ["blocks.1.hook_mlp_out/3@2:=4", "blocks.2.hook_mlp_out/5@-1+=2.5"]
    command = ["intervene", *PROMPT, "--transcoders", str(tmp_path / "transcoders"), "--move", *moves]
    found = said(capsys, *command, "--freeze", "layer_norms", "--live-from", "3", "--out", str(tmp_path / "i.csv"))
    changes = [Change("blocks.1.hook_mlp_out", slice(2, None), 3, jc.Replace(4.0))]
    changes += [Change("blocks.2.hook_mlp_out", -1, 5, jc.Add(2.5))]
    want = jc.intervene(model, loaded, tokens, changes, frozen=jc.frozen.layer_norms(model), live_from=3)
    before, after = (jax.nn.softmax(state.logits[-1]) for state in (want.clean, want.changed))
    assert float(jnp.abs(before - after).max()) > 1e-3
    order = np.argsort(-np.maximum(before, after))[:8]
    assert [row["clean"] for row in found["next"]] == pytest.approx(before[order].tolist(), rel=1e-3)
    assert [row["changed"] for row in found["next"]] == pytest.approx(after[order].tolist(), rel=1e-3)
    table = pd.read_csv(tmp_path / "i.csv")
    first = table.iloc[0]
    at = first["pos"], first["unit"]
    assert first["changed"] == pytest.approx(float(want.changed.pre[jc.Site.parse(first["site"])][at]), rel=1e-3)
    sizes = [float(jnp.abs(want.changed.pre[site] - want.clean.pre[site]).max()) for site in want.clean.pre]
    assert abs(first["changed"] - first["clean"]) == pytest.approx(max(sizes), rel=1e-3)
    assert found["changed"] == len(table)
    assert "other latents stay" in printed(capsys, *command)


def test_graph_names_its_nodes_as_other_commands_take_them(saved, tmp_path, capsys):
    out = tmp_path / "graph.safetensors"
    made = said(capsys, "graph", *PROMPT, "--answer", "5", "--max-nodes", "100", "--out", str(out), "--top", "4")
    edge = made["strongest_edges"][0]
    told = said(capsys, "explain-edge", str(out), *saved[1:], "--edge", edge["source"], edge["target"], "--heads", "1")
    assert told["value"] == pytest.approx(edge["weight"], rel=1e-3)


BAD = {
    "check-graph": (
        ["{saved}", "--nodes", "blocks.0.hook_mlp_out/1@1"],
        "--nodes: the graph has no node 'blocks.0.hook",
    ),
    "check-graph kind": (["{saved}", "--nodes", "token@1"], "what can be moved are latents"),
    "check-graph model": (["{saved}", "--model", "tiny-gpt-neo"], "tiny-gpt-neo"),
    "check-graph json": (["graph.json", "--model", "tiny-gpt2"], "JSON holds only what was kept"),
    "check-graph layer": (["{saved}", "--live-from", "7"], "--live-from is a layer, 0 to 3"),
    "explain-edge": (["{saved}", "--edge", "logits/5@6", "token@1"], "nothing leads into 'token@1'"),
    "explain-edge none": (
        ["{saved}", "--edge", "token@1", "nobody"],
        "--edge: the graph has no node 'nobody'. It has ",
    ),
    "explain-edge near": (
        ["{saved}", "--edge", "token@1", "logits/272@6"],
        "has no node 'logits/272@6'. It has logits/5@6",
    ),
    "qk-attribution": ([*PROMPT, "--head", "3.0", "--query", "1", "--key", "2"], "--key 2 comes behind --query 1"),
    "qk-attribution head": ([*PROMPT, "--head", "3.9"], "heads 0 to 3; got 3.9"),
    "qk-attribution key": ([*PROMPT, "--head", "3.0", "--key", "20"], "--key is 20, and the prompt has 7 tokens"),
    "qk-attribution out": (
        [*PROMPT, "--head", "3.0", "--out", "pairs.txt"],
        "pairs.txt does not end in .csv",
    ),
    "intervene": ([*PROMPT, "--move", "blocks.1.mlp.hook_post/3=2"], "--move: A move is written SITE/UNIT@P=X"),
    "intervene unit": ([*PROMPT, "--move", "blocks.1.mlp.hook_post/3000@1=2"], "are 0 to 511"),
    "intervene number": (
        [*PROMPT, "--move", "blocks.1.mlp.hook_post/3@1=nan"],
        "--move: expected a finite number, got nan",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_in_one_line(name, saved, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "graph.json").write_text("{}")
    options, message = BAD[name]
    words = [word for each in options for word in (saved if each == "{saved}" else [each])]
    assert main([name.split()[0], *words, "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not PYTHON.search(line)
    assert [path.name for path in tmp_path.iterdir()] == ["graph.json"]

"""`jaxcirc logit-lens`, `direct-effects` and `component-edges`: each prints what its verb gives."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc._tokens import token_texts
from jaxcirc.cli import main
from jaxcirc.cli._language import PYTHON

from .helpers import assert_close, printed, said
from .test_cli import PAIRS


TEXT = "The teachers that the doctor likes"


pytestmark = pytest.mark.usefixtures("same_cache")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    path = tmp_path_factory.mktemp("components") / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, PAIRS[:2])), encoding="utf-8")
    return ["--model", "tiny-gpt2", "--prompts", str(path)]


@pytest.fixture(scope="module")
def pairs(given, tokenizer):
    return jc.data.load_prompts(given[-1], tokenizer)


def test_logit_lens_reads_every_depth(model, tokenizer, capsys):
    command = ["logit-lens", "--model", "tiny-gpt2", "--prompt", TEXT, "--answer", " are", "--foil", " is"]
    found = said(capsys, *command, "--top", "2", "--position", "-2")
    tokens = jnp.array([tokenizer.bos_token_id, *tokenizer.encode(TEXT)], jnp.int32)
    are, is_ = (tokenizer.encode(text)[0] for text in (" are", " is"))
    streams = [f"blocks.{layer}.hook_resid_pre" for layer in range(4)] + ["blocks.3.hook_resid_post"]
    _, cache = jc.run(model, tokens, record=streams)
    assert (found["position"], found["token"], len(found["rows"])) == (5, " doctor", 5)
    norm, W_U, b_U = model.ln_final, np.asarray(model.W_U), np.asarray(model.b_U)
    for row, stream in zip(found["rows"], streams, strict=True):
        x = np.asarray(cache[stream], np.float64)[5]  # by hand: centred, scaled, weighted, unembedded
        x = (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + norm.eps)
        logits = (x * np.asarray(norm.weight) + np.asarray(norm.bias)) @ W_U + b_U
        assert abs(logits[are] - logits[is_]) > 1e-2
        assert row["answer"] == pytest.approx(logits[are] - logits[is_], abs=1e-3)
        best = np.argsort(-logits)[:2]
        assert [word for word, _ in row["top"]] == token_texts(tokenizer, best)
        assert [logit for _, logit in row["top"]] == pytest.approx(logits[best].tolist(), abs=1e-3)
    assert main([*command, "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("tiny-gpt2 at 6 ' likes'; logit of ' are' less that of ' is'\n")
    assert len(printed.splitlines()) == 3 + 5


def test_direct_effects_sum_to_the_metric(given, model, pairs, capsys):
    found = said(capsys, "direct-effects", *given, "--batch-size", "1")
    rows = {row["component"]: row for row in found["rows"]}
    assert len(rows) == 2 + 16 + 4
    logits = jax.vmap(lambda tokens: jc.run(model, tokens)[0])(pairs.clean)
    want = np.asarray(jax.vmap(lambda metric, logits: metric(logits))(pairs.metric(), logits)).mean()
    assert max(abs(row["effect"]) for row in rows.values()) > 0.5
    assert abs(want) > 0.1
    assert found["metric"] == pytest.approx(want, abs=1e-3)
    assert sum(row["effect"] for row in rows.values()) == pytest.approx(want, abs=1e-3)
    processed = jc.process_weights(model)
    effects = jc.direct_effects(processed, pairs.clean, pairs.answer, foils=pairs.foil)
    of_head = np.asarray(effects.heads)[:, 3, 1, -1]
    assert rows["a3.h1"]["effect"] == pytest.approx(of_head.mean(), abs=1e-4)
    assert rows["a3.h1"]["standard_error"] == pytest.approx(of_head.std(ddof=1) / 2**0.5, abs=1e-4)
    assert found["processing"] == list(processed.processing)
    assert said(capsys, "direct-effects", *given, "--raw")["processing"] == []
    assert main(["direct-effects", *given, "--top", "3", "--quiet"]) == 0
    assert len(capsys.readouterr().out.split("(standard error)\n")[1].splitlines()) == 3


def test_direct_effects_of_capped_logits_are_before_the_cap(given, model, capsys, monkeypatch):
    capped = dataclasses.replace(model, logit_cap=2.0)
    want = said(capsys, "direct-effects", *given)
    monkeypatch.setattr("jaxcirc.cli._direct_effects.load_model", lambda arguments: capped)
    found = said(capsys, "direct-effects", *given)
    assert (want["before_cap"], found["before_cap"]) == (False, True)
    assert found["metric"] == pytest.approx(want["metric"], abs=1e-4)
    assert "sum to the logit difference before the logits' cap, " in printed(capsys, "direct-effects", *given)


@pytest.fixture(scope="module")
def graph(model):
    return jc.component_graph(model, embeddings="tokens", shared="each")


def scores_of(found, graph):
    scores = np.full(graph.edges.shape, np.nan)
    for row in found["rows"]:
        scores[graph.sender(row["sender"]), graph.receiver(row["receiver"])] = row["score"]
    return scores


def test_component_edges_by_attribution_and_measured(given, model, pairs, graph, tmp_path, capsys):
    out = tmp_path / "scores.json"
    found = said(capsys, "component-edges", *given, "--steps", "2", "--out", str(out))
    of_pairs = model, pairs.clean, pairs.corrupt, pairs.metric()
    want = np.asarray(jc.edge_attribution(*of_pairs, steps=2, rule="midpoint", graph=graph)).mean(0)
    there = np.asarray(graph.edges)
    assert np.abs(want).max() > 0.5
    assert_close(scores_of(found, graph)[there], want[there], tolerance=1e-3)
    assert_close(jc.localisation.load_scores(out, model).scores[there], -want[there], tolerance=1e-3)
    assert (found["edges"], found["kept"], found["circuit"]) == (graph.n_edges, None, None)
    full, empty = (np.asarray(jc.patch_edges(*of_pairs, keep, graph=graph)).mean() for keep in (there, ~there & there))
    assert (found["full"], found["empty"]) == (pytest.approx(full, abs=1e-3), pytest.approx(empty, abs=1e-3))
    assert abs(full - empty) > 1
    other = said(capsys, "component-edges", *given, "--steps", "2", "--derivatives", "lrp")
    of_rule = jc.edge_attribution(*of_pairs, steps=2, rule="midpoint", derivatives="lrp", graph=graph)
    assert (found["derivatives"], other["derivatives"]) == ("exact", "lrp")
    assert_close(scores_of(other, graph)[there], np.asarray(of_rule).mean(0)[there], tolerance=1e-3)
    assert np.nanmax(np.abs(scores_of(other, graph) - scores_of(found, graph))) > 0.1
    exact = said(capsys, "component-edges", *given, "--method", "exact")
    measured = np.asarray(jc.patching.exact_edges(*of_pairs, graph=graph)).mean(0)
    assert_close(scores_of(exact, graph)[there], measured[there], tolerance=1e-3)


def test_component_edges_of_a_circuit(given, model, pairs, graph, tmp_path, capsys):
    out = tmp_path / "scores.json"
    found = said(capsys, "component-edges", *given, "--method", "greedy", "--threshold", "0.3", "--out", str(out))
    of_pairs = model, pairs.clean, pairs.corrupt, pairs.metric()
    want = jc.patching.greedy_search(*of_pairs, threshold=0.3, absolute=True, graph=graph)
    assert 0 < found["kept"] == int(want.kept.sum()) < graph.n_edges
    assert found["circuit"] == pytest.approx(want.metric[-1], abs=1e-3)
    assert abs(found["circuit"] - found["empty"]) > 1
    assert {(row["sender"], row["receiver"]) for row in found["rows"]} == {
        (graph.senders[s], graph.receivers[r]) for s, r in np.argwhere(want.kept)
    }
    written = jc.localisation.load_scores(out, model)
    assert (written.kept == want.kept).all()
    assert written.sign == "helps"  # as the benchmark has it: minus the change without the edge
    strongest = max(found["rows"], key=lambda row: abs(row["score"]))
    at = graph.sender(strongest["sender"]), graph.receiver(strongest["receiver"])
    assert strongest["score"] < -1
    assert written.scores[at] == pytest.approx(-strongest["score"], abs=1e-3)


def test_component_edges_by_masks(given, capsys):
    pytest.importorskip("optax")
    command = ["component-edges", *given, "--method", "masks", "--keep", "0.2", "--updates", "3", "--seed", "4"]
    assert main([*command, "--top", "4", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "with the 96 edges kept alone " in printed
    assert "probability that the edge is kept" in printed
    assert printed.count(" -> ") == 4


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["logit-lens", "TEXT", "--foil", " is"], "--foil is subtracted from an answer's logit. Give --answer, too."),
        (["logit-lens", "TEXT", "--position", "9"], "--position is 9, and the prompt has 7 tokens."),
        (["logit-lens", "TEXT", "--answer", " are is"], "--answer takes one token, and ' are is' is 2"),
        (["logit-lens", "TEXT", "--top", "0"], "--top is how many tokens to print, at least 1; got 0"),
        (["logit-lens", "TEXT", "--top", "99999"], "there are logits of"),
        (["direct-effects", "MODEL"], "one of the arguments --prompts and --ioi is required, and not both."),
        (["component-edges", "IOI", "--method", "greedy"], "--method greedy takes --threshold: how much an edge may"),
        (["component-edges", "IOI", "--threshold", "1"], "--threshold is of --method greedy. Leave it out."),
        (["component-edges", "IOI", "--method", "masks", "--steps", "1"], "--steps is of --method attribution."),
        (
            ["component-edges", "IOI", "--method", "exact", "--derivatives", "lrp"],
            "--derivatives is of --method attribution.",
        ),
        (["component-edges", "IOI", "--derivatives", "magic"], "--derivatives: invalid choice: 'magic'"),
        (["component-edges", "IOI", "--keep", "2"], "--keep is a part of the edges, above 0 and up to 1; got 2"),
        (
            ["component-edges", "IOI", "--out", "x.csv"],
            "--out: x.csv does not end in one of .json, .pt",
        ),
    ],
)
def test_bad_input_is_one_line(command, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    MODEL = ["--model", "tiny-gpt2"]
    stands = {"TEXT": [*MODEL, "--prompt", TEXT], "MODEL": MODEL, "IOI": [*MODEL, "--ioi", "2"]}
    assert main([word for each in command for word in stands.get(each, [each])]) == 2
    captured = capsys.readouterr()
    assert message in captured.err.splitlines()[-1]
    assert not PYTHON.search(captured.err)
    assert captured.out == ""
    assert not list(tmp_path.iterdir())

"""The command line: every command, its help, and its one line on bad input."""

import argparse
import ast
import contextlib
import inspect
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc.cli import main
from jaxcirc.cli._language import in_options, PYTHON
from jaxcirc.cli._screen import keep_compilations, kept_compilations

from .helpers import REPOSITORY


# As long as the prompts of the demo and the doctor, and by default in batches of two as theirs: then they run the same programs.
PAIRS = [
    {
        "clean_prefix": f'"The {noun} that the teacher likes',
        "patch_prefix": f'"The {noun}s that the teacher likes',
        "clean_answer": " is",
        "patch_answer": " are",
        "case": "x",
    }
    for noun in ("teacher", "doctor", "farmer", "boy")
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Commands keep compiled programs in the user's cache; here in one of the test's own."""
    import jax

    before = jax.config.values["jax_compilation_cache_dir"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.getbasetemp() / "cache"))
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def write_files(folder):
    """Into `folder` a file of prompts, `prompts.jsonl`, and a few of the shipped dictionaries, `saes`."""
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, PAIRS)), encoding="utf-8")
    for place in ("0.hook_mlp_out", "0.hook_resid_post", "1.hook_attn_out", "1.hook_resid_post"):
        shipped = REPOSITORY / "weights" / "tiny-gpt2" / "saes" / f"blocks.{place}"
        shutil.copytree(shipped, folder / "saes" / shipped.name)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("cli"))


@pytest.fixture
def prompts(files):
    return files / "prompts.jsonl"


@pytest.fixture
def given(files):
    """What every command that takes pairs of prompts and dictionaries is given here."""
    options = {
        "--model": "tiny-gpt2",
        "--saes": files / "saes",
        "--prompts": files / "prompts.jsonl",
        "--batch-size": 2,
    }
    return [str(word) for option in options.items() for word in option]


@pytest.fixture(scope="module")
def found(files):
    """The folder of a circuit found by its gradient, and what the command said of it."""
    out, given = files / "found", ["--saes", str(files / "saes"), "--batch-size", "2", "--method", "gradient", "--json"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert discover(files / "prompts.jsonl", out, *given) == 0
    return out, json.loads(said.getvalue())


def discover(prompts, out, *more):
    options = ["--model", "tiny-gpt2", "--saes", "tiny-gpt2", "--prompts", str(prompts), "--out", str(out)]
    return main(["discover", *options, *more])


def test_programs_are_kept_where_something_can_be_written(tmp_path, monkeypatch):
    """And not where nothing can, without a warning for every program."""
    import jax

    name = "jax_compilation_cache_dir"
    before = jax.config.values[name]
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_compilations()
    assert jax.config.values[name] == str(tmp_path / "jaxcirc" / "compiled")
    jax.config.update(name, before)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep_compilations()
    assert jax.config.values[name] == before


def test_demo_finds_saves_and_draws(tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--n-prompts", "2"]) == 0
    printed = capsys.readouterr().out
    assert "strongest edges" in printed
    assert "of the total effect at the 5 residual sites" in printed
    assert "check: relative error of edges" in printed
    circuit = jc.Circuit.load(out)
    assert len(circuit.edges) > 10
    assert circuit.meta.bos
    assert circuit.edge_rows()[0].source in printed
    assert "<svg" in (out / "circuit.html").read_text()
    (again,) = [shlex.split(line)[1:] for line in printed.splitlines() if line.startswith("  jaxcirc evaluate ")]
    assert main([*again, "--json"]) == 0  # it stands there as it can be run
    said = json.loads(capsys.readouterr().out)
    assert (said["prompts"], said["m_full"]) == (2, pytest.approx(circuit.meta.clean_metric, rel=1e-4))


def test_discover_from_a_file(found):
    out, said = found
    circuit = jc.Circuit.load(out)
    assert said["nodes"] == len(circuit.nodes) > 0
    assert said["method"]["name"] == "Gradient"
    assert said["prompts"] == 4
    assert circuit.meta["prompts_file"] == "prompts.jsonl"
    assert said["bos"] is circuit.meta.bos is False  # prompts of a file are taken as they stand


def test_evaluate_a_saved_circuit(found, files, given, tmp_path, capsys):
    common = ["--circuit", str(found[0]), *given]
    assert main(["evaluate", *common, "--json", "--ablation", "zero", "--errors", "keep"]) == 0
    said = json.loads(capsys.readouterr().out)
    circuit, tokenizer = jc.Circuit.load(found[0]), jc.load_tokenizer("tiny-gpt2")
    loaded = jc.data.load_prompts(files / "prompts.jsonl", tokenizer)
    run = jc.from_pretrained("tiny-gpt2"), jc.load_saes(files / "saes"), loaded.clean, loaded.corrupt, loaded.metric()
    want = jc.evaluate(circuit, *run, ablation=jc.ZeroAblation(), errors="keep", mask=loaded.mask, batch_size=2)
    assert said["faithfulness"] == pytest.approx(want.faithfulness)
    assert said["m_full"] == pytest.approx(want.m_full)
    assert (said["level"], said["ablation"]["name"], said["prompts"]) == ("nodes", "Zero", 4)
    drawn = tmp_path / "curve.svg"
    assert main(["evaluate", *common, "--curve", "--plot", str(drawn), "--minimality", "2"]) == 0
    printed = capsys.readouterr().out
    assert "lost" in printed
    assert ">faithfulness<" in drawn.read_text("utf-8")
    assert printed.startswith(f"{len(circuit.nodes)} nodes, {len(circuit.edges)} edges, 4 prompts, by nodes")
    assert "random" in printed
    assert main(["evaluate", *common[2:], "--circuit", str(tmp_path)]) == 2
    assert "is not a saved circuit" in capsys.readouterr().err


def test_steer_a_saved_circuit(given, tmp_path, capsys):
    out = str(tmp_path / "out")
    integrated = ["--node-threshold", "0.002", "--edge-threshold", "0.0001", "--edges", "integrated", "--steps", "4"]
    assert main(["discover", *given, *integrated, "--out", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["edges"] > 10
    given = ["--circuit", out, *given]
    assert main(["steer", *given, "--strongest", "2", "--strengths", "0.5", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["strength"] for row in rows] == [0.5, 1.0] * 3
    assert rows[-1]["node"] == "all"
    assert min(abs(row[name]) for row in rows for name in ("effect", "predicted", "measured")) > 1e-3
    assert main(["steer", *given, "--nodes", "blocks.0.hook_mlp_out/oops"]) == 2
    assert "has no node 'blocks.0.hook_mlp_out/oops'" in capsys.readouterr().err
    for more, error in (
        (["--strongest", "0"], "--strongest is how many nodes to move, at least 1; got 0"),
        (["--strongest", "1", "--batch-size", "0"], "--batch-size is how many prompt pairs are in memory at once"),
    ):
        assert main(["steer", *given, *more]) == 2
        assert error in capsys.readouterr().err


def test_features_of_a_prompt(tmp_path, capsys):
    sites = ["--source", "blocks.0.hook_mlp_out", "--target", "blocks.1.hook_mlp_out", "--minimum", "0.1"]
    given = ["--model", "tiny-gpt-neo", "--saes", "tiny-gpt-neo", "--prompt", "The teachers that the doctor likes"]
    drawn = tmp_path / "features.svg"
    assert (
        main(["features", *given, *sites, "--top", "3", "--substitute", "target", "--plot", str(drawn), "--json"]) == 0
    )
    said = json.loads(capsys.readouterr().out)
    assert (said["substitute"], said["plot"], said["minimum"]) == (["target"], str(drawn), 0.1)
    assert said["pairs"] > len(said["rows"]) == 3
    first = said["rows"][0]
    assert abs(first["gradient"]) > 0.1
    assert first["predicted"] == pytest.approx(0.1 * first["gradient"])
    assert first["measured"] == pytest.approx(first["predicted"], rel=0.2)
    assert 0 < abs(said["correlation"]["pearson"]) < 1
    assert "Pearson" in drawn.read_text()
    assert main(["features", *given, *sites, "--top", "3", "--pairs", "all"]) == 0
    printed = capsys.readouterr().out
    assert "source_position" in printed
    assert " teachers" in printed
    for more, error in (
        (["--minimum", "1000"], "no latent of `blocks.1.hook_mlp_out` is above the minimum 1000; the largest is"),
        (["--pairs", "last"], "--pairs is one of 'same', 'all'; got 'last'"),
        (["--substitute", "error"], "substitute names 'source', 'target', both or none; got 'error'"),
        (["--top", "0"], "--top is how many pairs to print, at least 1; got 0"),
        (["--plot", "features.gif"], "features.gif does not end in one of .svg, .pdf, .png"),
        (["--target", "blocks.0.hook_resid_mid"], "there is no dictionary at `blocks.0.hook_resid_mid`"),
    ):
        assert main(["features", *given, *sites, *more]) == 2
        captured = capsys.readouterr().err.strip().splitlines()
        assert error in captured[-1]


def test_heads_of_a_prompts_file(prompts, tmp_path, capsys):
    drawn = tmp_path / "heads.svg"
    given = ["heads", "--model", "tiny-gpt2", "--prompts", str(prompts), "--batch-size", "2"]
    options = ["--method", "gradient", "--plot", str(drawn), "--json"]
    assert main([*given, *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["prompts"], said["method"], said["plot"]) == (4, "gradient", str(drawn))
    model, tokenizer = jc.from_pretrained("tiny-gpt2"), jc.load_tokenizer("tiny-gpt2")
    pairs = jc.data.load_prompts(prompts, tokenizer)
    halves = [pairs[:2], pairs[2:]]
    wants = [jc.head_effects(model, x.clean, x.corrupt, x.metric(), method=jc.Gradient()) for x in halves]
    outputs = np.concatenate([want.z for want in wants]).sum(-1).mean(0)
    assert np.abs(outputs).max() > 0.05
    largest = max(np.ndindex(outputs.shape), key=lambda at: abs(outputs[at]))
    assert said["rows"][0]["head"] == "{}.{}".format(*largest)
    assert said["rows"][0]["z"] == pytest.approx(outputs[largest], rel=1e-3)
    assert len(said["rows"]) == outputs.size
    for part in ("output", "query", "key", "value"):
        assert f"{part}, summed over positions" in drawn.read_text()

    assert main([*given, "--top", "2"]) == 0
    printed = capsys.readouterr().out
    assert "effects by exact patching\n" in printed
    assert len(printed.split("value\n")[1].splitlines()) == 2
    for more, error in (
        (["--top", "0"], "--top is how many heads to print, at least 1; got 0"),
        (["--batch-size", "0"], "--batch-size is how many prompt pairs are in memory at once, at least 1; got 0"),
        (["--plot", "heads.gif"], "heads.gif does not end in one of .svg, .pdf, .png"),
    ):
        assert main([*given, *more]) == 2
        assert error in capsys.readouterr().err.strip().splitlines()[-1]


def test_patching_of_a_prompts_file(prompts, files, tmp_path, capsys):
    drawn = tmp_path / "patching.svg"
    given = ["patch", "--model", "tiny-gpt2", "--prompts", str(prompts), "--batch-size", "2"]
    assert main([*given, "--sites", "resid_pre", "attn_out", "--plot", str(drawn), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    model, tokenizer = jc.from_pretrained("tiny-gpt2"), jc.load_tokenizer("tiny-gpt2")
    pairs = jc.data.load_prompts(prompts, tokenizer)
    want = jc.activation_patch(model, pairs.clean, pairs.corrupt, pairs.metric(), sites=["resid_pre", "attn_out"])
    assert (said["prompts"], said["by"], said["direction"], said["plot"]) == (
        4,
        "layer_position",
        "denoise",
        str(drawn),
    )
    assert said["clean"] == pytest.approx(float(np.mean(want.clean)), rel=1e-4)
    table = want.table()
    assert len(said["rows"]) == len(table)
    assert said["rows"][0]["site"] == table["site"][0]
    for key in ("value", "standard_error"):
        assert said["rows"][0][key] == pytest.approx(table[key][0], rel=1e-3, abs=1e-5)
    text = drawn.read_text("utf-8")
    assert "teacher… 2" in text  # of the first prompt; others have another noun there
    assert "likes 6" in text

    heads = [*given, "--sites", "z", "--by", "head", "--direction", "noise", "--normalise", "difference", "--top", "2"]
    assert main(heads) == 0
    printed = capsys.readouterr().out
    assert "clean run, corrupt values put in" in printed
    assert len(printed.split("(standard error)\n")[1].splitlines()) == 2
    latents = [*given, "--saes", str(files / "saes"), "--sites", "resid_post.acts", "--limit", "1", "--json"]
    assert main(latents) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["site"] for row in rows} == {f"blocks.{at}.hook_resid_post.hook_sae_acts_post" for at in (0, 1)}
    assert rows[0]["standard_error"] is None
    for more, error in (
        (["--sites", "resid_per"], "no site or kind of site is called 'resid_per'. Did you mean `resid_pre`?"),
        (
            ["--by", "head"],
            "--by head replaces one head at a time, and `blocks.0.hook_resid_pre` is not of single heads",
        ),
        (["--by", "head"], "take --by layer or --by layer_position"),
        (["--sites", "mlp_out.acts"], "there is none there. Name a folder with one there by --saes."),
        (["--sites", "logits"], "is behind the blocks"),
        (["--direction", "up"], "--direction"),
    ):
        assert main([*given, *more]) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert error in said
        assert not PYTHON.search(said)


def test_circuit_curve_of_a_prompts_file(prompts, tmp_path, capsys):
    drawn, written = tmp_path / "curve.svg", tmp_path / "importances.json"
    given = ["circuit-curve", "--model", "tiny-gpt2", "--prompts", str(prompts)]
    assert main([*given, "--steps", "2", "--out", str(written), "--plot", str(drawn), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["prompts"], said["test_prompts"], said["steps"], said["scores"]) == (4, 4, 2, None)
    assert (said["out"], said["plot"]) == (str(written), str(drawn))
    model, tokenizer = jc.from_pretrained("tiny-gpt2"), jc.load_tokenizer("tiny-gpt2")
    pairs = jc.data.load_prompts(prompts, tokenizer)
    graph, given_pairs = jc.localisation.benchmark_graph(model), (pairs.clean, pairs.corrupt, pairs.metric())
    scores = -np.asarray(jc.edge_attribution(model, *given_pairs, graph=graph, steps=2, start="corrupt")).mean(0)
    read = jc.localisation.load_scores(written, model)
    assert np.abs(read.scores - scores).max() < 1e-3 * np.abs(scores).max()
    assert said["edges"] == graph.n_edges
    for by in ("signed", "absolute"):
        want = jc.circuit_curve(model, *given_pairs, read.scores, graph=graph, by=by)
        assert [row["faithfulness"] for row in said[by]["rows"]] == pytest.approx(want.faithfulness.tolist(), abs=1e-3)
        assert said[by]["cpr"][0] == pytest.approx(want.cpr, abs=1e-3)
    assert "accuracy" in drawn.read_text()

    assert main([*given, "--scores", str(written), "--test-prompts", str(prompts), "--limit", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(
        "479 edges of tiny-gpt2 scored by importances.json, circuits measured on 1 prompt; metric"
    )
    assert "(one prompt tells nothing of others)" in printed
    assert len(printed.split("accuracy\n")[1].split("\n\n")[0].splitlines()) == 10


def test_path_patching_of_made_prompts(tmp_path, capsys):
    drawn = tmp_path / "paths.svg"
    given = ["path-patch", "--model", "tiny-gpt2", "--ioi", "4", "--flip", "IO"]
    queries = ["--receivers", "a3.h0.q,a2.h1.q", "--positions", "end", "S1"]
    assert main([*given, *queries, "--batch-size", "2", "--plot", str(drawn), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    model, tokenizer = jc.from_pretrained("tiny-gpt2"), jc.load_tokenizer("tiny-gpt2")
    prompts = jc.data.ioi(tokenizer, 4, template="mixed", flip=("IO",), seed=0)
    pairs = model, prompts.clean, prompts.corrupt, prompts.metric()
    at = np.stack([prompts.positions[name] for name in ("end", "S1")], axis=1)
    found = jc.path_patch(*pairs, receivers=["a3.h0.q", "a2.h1.q"], positions=at)
    clean = np.asarray(jax.vmap(lambda tokens, metric: metric(jc.run(model, tokens)[0]))(prompts.clean, pairs[-1]))
    graph, changes = jc.component_graph(model), np.asarray(found) - clean
    assert (said["prompts"], said["receivers"], said["mlps"], said["positions"], said["plot"]) == (
        *(4, [["a3.h0.q", "a2.h1.q"]], "frozen", ["end", "S1"]),
        str(drawn),
    )
    assert said["clean"] == pytest.approx(clean.mean(), rel=1e-4)
    assert {row["sender"] for row in said["rows"]} == set(graph.senders[: graph.sender("a3.h0")])
    for row in said["rows"]:
        mine = changes[graph.sender(row["sender"])]
        assert row["change"] == pytest.approx(mine.mean(), rel=1e-3, abs=1e-5)
        assert row["standard_error"] == pytest.approx(mine.std(ddof=1) / 2, rel=1e-3, abs=1e-5)
    assert "to a3.h0.q, a2.h1.q" in drawn.read_text("utf-8")

    chain = ["--receivers", "m2", "--chain", "a3.h0.k,a3.h0.v", "logits", "--senders", "a1.h0,a1.h1", "embed"]
    assert main([*given, *chain, "--mlps", "recomputed", "--norms", "frozen", "--receiver-positions", "-1"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(
        "2 senders of tiny-gpt2 to m2, then to a3.h0.k, a3.h0.v, then to logits; 4 prompts; metric clean"
    )
    assert "MLPs on the way computed anew" in printed
    assert [line.split()[0] for line in printed.splitlines()[-2:]] in (
        ["a1.h0,a1.h1", "embed"],
        ["embed", "a1.h0,a1.h1"],
    )


def test_path_patching_of_a_prompts_file(prompts, capsys):
    given = ["path-patch", "--model", "tiny-gpt2", "--prompts", str(prompts), "--receivers", "logits"]
    assert main([*given, "--limit", "1", "--positions", "end", "--top", "3"]) == 0
    printed = capsys.readouterr().out
    assert "21 senders of tiny-gpt2 to logits; 1 prompt; " in printed
    assert len(printed.split("(standard error)\n")[1].splitlines()) == 3
    for more, error in (
        (
            ["--positions", "IO"],
            "--positions: no position of these prompts is named 'IO'; they have 'end'. Or give a number",
        ),
        (["--receiver-positions", "99"], "has 7 tokens, and none at position 99"),
        (
            ["--senders", "a9.h0"],
            "Expected a sender of the component graph, such as 'embed', got 'a9.h0'. Did you mean",
        ),
        (["--receivers", "a1.h0.z"], "Expected a receiver of the component graph, such as 'a0.h0.q', got 'a1.h0.z'"),
        (["--receivers", "a1.h0.q", "--senders", "m3"], "Senders are before receivers"),
        (["--receivers", "a3.h0.q", "--chain", "a1.h0.k"], "Order the stages from the embedding to the logits"),
        (["--flip", "IO"], "--flip is about --ioi prompts"),
        (["--senders", "m0", "--plot", "all.svg"], "--plot draws all senders. Leave --senders out"),
    ):
        assert main([*given, *more]) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert error in said
        assert not PYTHON.search(said)


@pytest.mark.parametrize("command", ["heads", "jacobian", "demo"])
def test_a_shipped_model_takes_no_transformers(command, prompts, tmp_path, monkeypatch):
    """Whose import takes longer than most of what is asked."""
    monkeypatch.setitem(sys.modules, "transformers", None)  # makes the import an error
    ends = ["--source", "blocks.0.hook_resid_pre", "--target", "blocks.1.hook_resid_pre"]
    options = {
        "heads": ["--model", "tiny-gpt2", "--prompts", str(prompts)],
        "jacobian": ["--model", "tiny-gpt2", "--prompt", "The boys", *ends],
        "demo": ["--out", str(tmp_path / "circuit"), "--n-prompts", "1", "--method", "gradient"],
    }
    assert main([command, *options[command]]) == 0


def test_what_is_kept_of_compiled_programs_is_counted(tmp_path):
    for name, size in (("a-cache", 30), ("b-cache", 12), ("b-atime", 8)):
        (tmp_path / name).write_bytes(b"x" * size)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))  # which `own_cache` puts back
    assert kept_compilations() == (tmp_path, 2, 42)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "nothing"))
    assert kept_compilations() == (tmp_path / "nothing", 0, 0)
    jax.config.update("jax_compilation_cache_dir", None)
    assert kept_compilations() == (None, 0, 0)


def test_doctor_is_content_here_and_finds_a_planted_error(capsys, monkeypatch):
    assert main(["doctor", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    checks = said["checks"]
    assert len(checks) == 5
    assert all(check["ok"] for check in checks.values())
    kept, there = said["compiled"], Path(jax.config.values["jax_compilation_cache_dir"])
    assert set(kept) == {"folder", "programs", "bytes"}
    assert kept["folder"] == str(there)

    monkeypatch.setattr("jaxlib.version.__version__", "0.10.2")
    monkeypatch.setattr("jaxcirc.parts.gelu_new.__code__", jc.parts.relu.__code__)
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert f"compiled programs are kept in {there}: " in printed
    assert (
        "FAIL  jaxlib is not a version known to be wrong: RuntimeError: jaxlib 0.10.2 computes wrong Jacobians"
        in printed
    )


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "discover",
        "doctor",
        "evaluate",
        "steer",
        "convert",
        "jacobian",
        "features",
        "heads",
        "patch",
        "path-patch",
        "scrub",
        "self-repair",
        "circuit-curve",
        "attribute",
    ],
)
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"example: jaxcirc {command}" in " ".join(capsys.readouterr().out.split())


def bad(change):
    return "\n".join([json.dumps(PAIRS[0]), change])


BAD_FILES = {
    "empty": ("", "prompts.jsonl is empty"),
    "broken line": (bad("{oops"), "prompts.jsonl, line 2 is not JSON"),
    "missing key": (bad('{"clean_prefix": "The teacher"}'), "line 2 lacks patch_prefix"),
    "answer of two tokens": (
        bad(json.dumps(PAIRS[1] | {"clean_answer": " is are"})),
        "line 2: clean_answer ' is are' must be one token",
    ),
    "unequal lengths": (bad(json.dumps(PAIRS[1] | {"patch_prefix": "The doctor is"})), "must be of one length"),
    "clean equals corrupt": (
        json.dumps(PAIRS[0] | {"patch_prefix": PAIRS[0]["clean_prefix"]}),
        "clean_prefix and patch_prefix are the same",
    ),
}


@pytest.mark.parametrize("what", list(BAD_FILES))
def test_a_bad_prompts_file_is_one_line_and_exit_code_2(what, tmp_path, capsys):
    text, message = BAD_FILES[what]
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    assert discover(path, tmp_path / "out") == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("jaxcirc: ")
    assert message in said
    assert not (tmp_path / "out").exists()


def test_other_bad_input(prompts, given, tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    assert discover(prompts, tmp_path / "thesis") == 2
    assert "exists and is not a circuit" in capsys.readouterr().err
    assert discover(tmp_path / "none.jsonl", tmp_path / "out") == 2
    assert "none.jsonl" in capsys.readouterr().err
    assert (
        main(["discover", "--model", str(tmp_path / "nowhere"), "--saes", "tiny-gpt2", "--prompts", str(prompts)]) == 2
    )
    assert "nowhere" in capsys.readouterr().err
    large = ["--method", "gradient", "--node-threshold", "1e9"]
    assert main(["discover", *given, *large, "--out", str(tmp_path / "out")]) == 2
    assert "the largest is" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_full_disk(given, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "edges.parquet")

    monkeypatch.setattr("pandas.DataFrame.to_parquet", full)
    assert main(["discover", *given, "--method", "gradient", "--out", str(tmp_path / "out")]) == 2
    assert "No space left on device: edges.parquet" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def repair(capsys, *options):
    code = main(["self-repair", "--limit", "16", *options])
    return code, capsys.readouterr()


def test_self_repair_of_the_shipped_model(tmp_path, capsys):
    drawn = tmp_path / "repair.svg"
    code, said = repair(capsys, "--json", "--plot", str(drawn), "--head", "0.1", "2.3", "--no-intercept")
    assert code == 0, said.err
    found = json.loads(said.out)
    model = jc.process_weights(jc.from_pretrained("tiny-gpt2"))
    tokens = jc.data.subject_verb(jc.load_tokenizer("tiny-gpt2"), 16, kind="rc", seed=0).clean
    want = jc.self_repair(model, tokens, jc.Resample.rolled(tokens).tokens, fit=jc.OLS(intercept=False))
    slopes = {row["head"]: row["slope"] for row in found["rows"]}
    assert len(slopes) == 16
    assert slopes["1.2"] == pytest.approx(want.slope[1, 2])
    assert abs(slopes["1.2"]) > 0.01
    assert all(slopes[f"3.{head}"] is None for head in range(4))  # nothing comes after the last layer
    assert (found["tokens"], found["prompts"], found["intercept"]) == (96, 16, False)
    svg = drawn.read_text("utf-8")
    assert "slope of backup on direct effect" in svg
    assert svg.count("direct effect of the head") == 2
    assert "head 2.3: slope" in svg
    assert svg.count(">–<") == 4  # one for each head of the last layer
    code, said = repair(capsys, "--only", "1.2", "3.0", "--head", "3.0", "--plot", str(drawn))
    assert code == 0, said.err
    assert said.out.startswith("2 heads of tiny-gpt2, each ablated alone")
    assert re.search(r"\n3\.0 +–  +[+-]\d\.", said.out)
    assert "no slopes of layer 3: no head comes after it" in said.out
    assert "head 3.0: no head comes after it" in drawn.read_text()


def test_self_repair_of_given_text_and_tokens(tmp_path, capsys):
    text, ids = tmp_path / "text.txt", tmp_path / "ids.npy"
    text.write_text("The teacher that the doctors like\n\nThe farmers near the teacher run\nThe doctor\n")
    code, said = repair(capsys, "--prompts", str(text), "--length", "5", "--only", "1.2", "0.0")
    assert code == 0, said.err
    assert said.out.startswith("2 heads of tiny-gpt2, each ablated alone, on 8 tokens of 2 prompts")
    assert "\n1.2 " in said.out
    table = tmp_path / "text.csv"
    table.write_text("text\n" + text.read_text())
    assert repair(capsys, "--prompts", str(table), "--length", "5", "--only", "1.2", "0.0")[1].out == said.out
    np.save(ids, np.arange(10).reshape(2, 5))
    code, said = repair(capsys, "--tokens", str(ids), "--json", "--raw", "--minimum", "-100")
    assert code == 0, said.err
    assert (json.loads(said.out)["tokens"], json.loads(said.out)["minimum"]) == (8, -100)


def test_self_repair_of_answers(capsys):
    code, said = repair(capsys, "--ioi", "6", "--only", "1.2", "--json")
    assert code == 0, said.err
    found = json.loads(said.out)
    model, tokenizer = jc.process_weights(jc.from_pretrained("tiny-gpt2")), jc.load_tokenizer("tiny-gpt2")
    prompts = jc.data.ioi(tokenizer, 6, template="mixed", seed=0)
    asked = {"answers": prompts.answer, "foils": prompts.foil, "positions": prompts.positions["end"]}
    want = jc.self_repair(model, prompts.clean, jc.Resample.rolled(prompts.clean), heads=[(1, 2)], **asked)
    assert (found["logit"], found["tokens"]) == ("the answer less the foil", 6)
    assert abs(want.slope[1, 2]) > 1e-3
    assert found["rows"][0]["slope"] == pytest.approx(want.slope[1, 2])
    assert found["rows"][0]["low"] == pytest.approx(want.interval()[0][1, 2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ioi", "6", "--length", "3"], "--length cuts prompts, and those of --ioi are read at their end"),
        (["--head", "nine"], "A head is written LAYER.HEAD, such as 9.6; got 'nine'"),
        (["--only", "9.6"], "There is no layer 9 in tiny-gpt2: it has 4 layers, 0 to 3"),
        (["--minimum", "99"], "has 0 tokens with a direct effect above 99"),
        (["--limit", "1"], "--limit is how many prompts, each with another's values, at least 2; got 1"),
        (["--share", "0"], "share is a part of the tokens"),
        (["--plot", "picture.gif"], "does not end in one of .svg, .pdf, .png"),
        (["--head", "9.6", "--plot", "unused.svg"], "There is no layer 9 in tiny-gpt2"),
        (["--head", "1.9"], "There is no head (1, 9) in tiny-gpt2"),
        (["--head", "1.2", "--only", "0.1"], "--head draws heads of those that --only names; 1.2 is not one"),
        (["--prompts", "TEXT.txt", "--length", "50"], "has 0 prompts of 50 tokens or more"),
        (["--prompts", "EMPTY.txt"], "EMPTY.txt holds no text"),
        (["--prompts", "rows.jsonl"], "has none of the columns text, prompt"),
        (["--tokens", "TEXT.txt"], "TEXT.txt is neither a JSON list of token ids nor a .npy file of them"),
    ],
)
def test_self_repair_refuses_in_one_line(options, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "TEXT.txt").write_text("The teacher likes\nThe doctor runs\n")
    (tmp_path / "EMPTY.txt").write_text("\n")
    (tmp_path / "rows.jsonl").write_text('{"sentence": "The teacher likes"}\n{"sentence": "The doctor runs"}\n')
    code, said = repair(capsys, *options)
    assert code == 2
    assert message in said.err.strip().splitlines()[-1]
    assert said.out == ""
    assert not (tmp_path / "unused.svg").exists()


HYPOTHESIS = """
name = "logits"
sampler = "exact"
[[children]]
name = "a1.h0"
sampler = { class = "answer" }
[[children]]
name = "m1"
sampler = "exact"
[[children.children]]
name = "m0"
sampler = "exact"
"""


def test_scrub_a_hypothesis(prompts, tmp_path, capsys):
    (tmp_path / "tree.toml").write_text(HYPOTHESIS, encoding="utf-8")
    given = ["scrub", str(tmp_path / "tree.toml"), "--model", "tiny-gpt2", "--samples", "3"]
    assert main([*given, "--prompts", str(prompts), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    loaded = jc.data.load_prompts(prompts, jc.load_tokenizer("tiny-gpt2"))
    tree = jc.scrubbing.load_hypothesis(tmp_path / "tree.toml")
    model = jc.from_pretrained("tiny-gpt2")
    want = jc.scrub(model, tree, loaded, loaded.metric(), jax.random.key(0), samples=3)
    for name in ("recovered", "standard_error", "recovered_standard_error"):
        assert said[name] == pytest.approx(getattr(want, name))
    assert said["metric"] == pytest.approx(want.values.mean())
    assert [row["path"] for row in said["claims"]] == ["logits", "logits/a1.h0", "logits/m1", "logits/m1/m0"]
    assert (said["prompts"], said["samples"], said["runs"]) == (4, 3, want.runs)
    [documented] = re.findall(r"```toml\n(.*?)```", inspect.getdoc(jc.scrubbing.load_hypothesis) or "", re.DOTALL)
    (tmp_path / "tree.toml").write_text(documented, encoding="utf-8")
    assert main([*given, "--ioi", "4", "--seed", "1"]) == 0
    printed = capsys.readouterr()
    assert "4 indirect-object prompts of 16 tokens" in printed.err
    assert "metric, all resampled" in printed.out
    assert re.search(r"recovered +-?[\d.]+% ± [\d.]+%", printed.out)
    assert "    a2.h0.q " in printed.out


def test_scrub_refuses_in_one_line(prompts, tmp_path, capsys):
    for change, message in {
        ("m0", "m2"): "logits/m1 does not read m2",
        ("answer", "IO"): "no position of the prompts is named 'IO'; these have 'end'",
        ("class", "klass"): "sampler of /logits/a1.h0: expected 'exact'",
    }.items():
        (tmp_path / "tree.toml").write_text(HYPOTHESIS.replace(*change), encoding="utf-8")
        given = ["scrub", str(tmp_path / "tree.toml"), "--model", "tiny-gpt2", "--prompts", str(prompts)]
        assert main(given) == 2
        said = capsys.readouterr()
        assert message in said.err.strip().splitlines()[-1]
        assert not PYTHON.search(said.err)
        assert said.out == ""


SHIPPED = ["--model", "tiny-gpt2", "--saes", "tiny-gpt2"]
PAIRED = [*SHIPPED, "--prompts", "PROMPTS"]
SITES = ["--source", "blocks.0.hook_mlp_out", "--target", "blocks.1.hook_mlp_out"]
SAID = [*SHIPPED[:2], "--prompt", "The teacher"]
TEXT = [*SHIPPED, *SAID[2:], *SITES]
PATHS = ["path-patch", *PAIRED[:2], *PAIRED[4:], "--receivers", "logits"]
STEER = ["steer", "--circuit", "CIRCUIT", *PAIRED]
CURVE = ["circuit-curve", *PAIRED[:2], *PAIRED[4:]]
JOB = ["attribute", *PAIRED, "--out", "out"]
COUNTS = {  # every option that is a count, of every command
    "--n-prompts": [["demo"]],
    "--steps": [["demo"], ["discover", *PAIRED], CURVE],
    "--limit": [
        ["self-repair"],
        CURVE,
        ["discover", *PAIRED],
        ["evaluate", "--circuit", "CIRCUIT", *PAIRED],
        ["heads", *PAIRED[:2], *PAIRED[4:]],
        ["patch", *PAIRED[:2], *PAIRED[4:]],
        PATHS,
    ],
    "--batch-size": [
        JOB,
        ["discover", *PAIRED],
        ["evaluate", "--circuit", "CIRCUIT", *PAIRED],
        ["heads", *PAIRED[:2], *PAIRED[4:]],
        ["patch", *PAIRED[:2], *PAIRED[4:]],
        PATHS,
    ],
    "--minimality": [["evaluate", "--circuit", "CIRCUIT", *PAIRED]],
    "--strongest": [STEER],
    "--top": [
        ["jacobian", *TEXT],
        ["features", *TEXT],
        ["heads", *PAIRED[:2], *PAIRED[4:]],
        ["patch", *PAIRED[:2], *PAIRED[4:]],
        PATHS,
    ],
    "--length": [["self-repair"]],
    "--samples": [["scrub", "PROMPTS", *PAIRED[:2], "--ioi", "4"]],
    "--repeats": [["bench"]],
    "--shard-lines": [JOB],
}
SIZES = {"--node-threshold": ["discover", *PAIRED], "--edge-threshold": ["demo"], "--minimum": ["features", *TEXT]}
PLACES = {
    ("--out", ""): [["demo"], ["discover", *PAIRED], ["convert", "PROMPTS"], ["bench"]],
    ("--out", ".safetensors"): [["jacobian", *TEXT]],
    ("--out", ".json"): [CURVE],
    ("--plot", ".svg"): [
        CURVE,
        ["evaluate", "--circuit", "CIRCUIT", *PAIRED],
        ["features", *TEXT],
        ["heads", *PAIRED[:2], *PAIRED[4:]],
        ["patch", *PAIRED[:2], *PAIRED[4:]],
        PATHS,
        ["self-repair"],
    ],
}
BAD_OPTIONS = [
    *(
        ([*command, option, value], f"{option} is how many .*; got '?{value}")
        for option, commands in COUNTS.items()
        for command in commands
        for value in ("0", "-3", "nan", "2.5", "many")
    ),
    (
        ["evaluate", "--circuit", "CIRCUIT", *PAIRED, "--start-layer", "-1"],
        "--start-layer is how many layers .*; got -1",
    ),
    *(
        ([*command, option, value], f"{option} is a size .* 0 or more; got '?{value}")
        for option, command in SIZES.items()
        for value in ("nan", "-1", "much")
    ),
    *(
        ([*STEER, "--strongest", "1", "--strengths", value], "--strengths: expected a finite number")
        for value in ("nan", "x")
    ),
    ([*STEER, "--strongest", "1", "--strengths"], "--strengths: expected at least one argument"),
    ([*STEER, "--nodes"], "--nodes: expected at least one argument"),
    (STEER, "one of the arguments --nodes --strongest is required"),
    (["features", *TEXT, "--step", "inf"], "--step: expected a finite number, got inf"),
    *(
        ([*command, option, name], rf"{option}: {name} does not end in .*{written}.* Name it so")
        for command, option, name, written in (
            (CURVE, "--out", "scores.txt", r"\.json, \.pt"),
            (["graph", *SAID], "--out", "x.json", r"\.safetensors"),
            (["graph", *SAID], "--json-graph", "g.html", r"\.json"),
            (["jacobian", *TEXT], "--out", "plain", r"\.safetensors"),
            (["generate", *SAID], "--out", "x.csv", r"\.json"),
        )
    ),
    (["view", "PROMPTS", "--out", "v.png"], r"--out: A page is an HTML file, and v.png does not end in \.html"),
    ([*CURVE, "--scores", "nowhere.json"], r"--scores nowhere\.json: No such file"),
    ([*CURVE, "--how", "topn"], "--how: invalid choice: 'topn'"),
    (["self-repair", "--minimum", "nan"], "--minimum: expected a finite number, got nan"),
    (["self-repair", "--share", "1.5"], "--share is a part of the tokens, above 0 and up to 1; got 1.5"),
    (["self-repair", "--only", "9"], "--only: A head is written LAYER.HEAD, such as 9.6; got '9'"),
    (["jacobian", *TEXT, "--source-positions", "x"], "--source-positions takes whole numbers; got 'x'"),
    (["jacobian", *TEXT[:-1], "blocks.x"], "--target: No site is called `blocks.x`"),
    (["features", *TEXT, "--pairs", "last"], "--pairs is one of 'same', 'all'; got 'last'"),
    (["features", *TEXT, "--substitute", "error"], "--substitute names 'source', 'target', both or none; got 'error'"),
    (["discover", *PAIRED, "--method", "magic"], "--method: invalid choice: 'magic'"),
    (["discover", *SHIPPED], "the following arguments are required: --prompts"),
    (["discover", *SHIPPED, "--prompts", "nowhere.jsonl"], "--prompts nowhere.jsonl: No such file"),
    (["discover", *SHIPPED, "--prompts", "."], "--prompts . is a folder. Expected the name of a file"),
    (
        ["discover", "--model", "tiny-gpt2", "--saes", "no where", "--prompts", "PROMPTS"],
        "There are no dictionaries at 'no where'",
    ),
    (
        ["discover", "--model", "./nowhere", "--saes", "tiny-gpt2", "--prompts", "PROMPTS"],
        "There is nothing at './nowhere'",
    ),
    (["steer", "--circuit", "nowhere", *PAIRED, "--strongest", "1"], "--circuit nowhere: No such folder"),
    (["jacobian", "--model", "tiny-gpt2", "--tokens", "none.npy", *SITES], "--tokens none.npy: No such file"),
    (["convert", "none.pt"], "none.pt: No such file"),
    ([*JOB[:-2], "--out", "PROMPTS"], "--out: PROMPTS is a file"),
    ([*JOB, "--shard", "4/4"], "--shard is written I/N, with I from 0 to N-1, such as 0/4; got '4/4'"),
    ([*JOB, "--verb", "tea"], "--verb: invalid choice: 'tea'"),
    ([*JOB, "--verb", "heads", "--edge-threshold", "1"], "--edge-threshold says nothing of --verb heads"),
    (["scrub", "none.toml", *PAIRED[:2], "--ioi", "4"], "hypothesis none.toml: No such file"),
    ([*PATHS[:3], *PATHS[5:]], "one of the arguments --prompts and --ioi is required, and not both"),
    ([*PATHS, "--chain", "m1,,m2"], "--chain names receivers of each stage, .*, with commas between; got 'm1,,m2'"),
    ([*PATHS, "--flip", "S3"], "--flip names of --ioi prompts .*; got 'S3'"),
    (["scrub", "PROMPTS", *PAIRED[:2]], "one of the arguments --prompts and --ioi is required, and not both"),
    (["scrub", "PROMPTS", *PAIRED[:2], "--ioi", "1"], "--ioi is how many indirect-object prompts are made, at least 2"),
    (["scrub", "PROMPTS", *PAIRED[:2], "--ioi", "4"], "PROMPTS is no TOML: "),
    (["--quiet"], "the following arguments are required: COMMAND"),
    (["divine"], "invalid choice: 'divine'. Did you mean|There are"),
    (["head"], "COMMAND: invalid choice: 'head'. Did you mean `heads`\\? `jaxcirc --help` lists what there is"),
    (["--nothing"], "--nothing is no option of jaxcirc. .* `jaxcirc --help` lists what there is"),
    (["heads", *PAIRED[:2], "--promps", "f"], "--promps is no option of jaxcirc heads. Did you mean `--prompts`\\?"),
    (["heads", *PAIRED[:2], *PAIRED[4:], "--topp=3"], "--topp is no option of jaxcirc heads. Did you mean `--top`\\?"),
    *(
        (
            [*command, option, place],
            f"{option}: .*{re.escape(place)}.* cannot be written: .* Choose another place",
        )
        for (option, suffix), commands in PLACES.items()
        for command in commands
        for place in (f"PROMPTS/under-a-file{suffix}", f"/proc/nothing/here{suffix}")
    ),
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a file and a circuit, in which nothing is to be read that takes time."""

    def read(*_args, **_kwargs):
        raise AssertionError("read before the options were checked")

    for name in ("from_pretrained", "load_text_tokenizer", "load_saes"):
        for module in ("_common", "_loading", "_demo", "_features", "_jacobian"):
            monkeypatch.setattr(f"jaxcirc.cli.{module}.{name}", read, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "PROMPTS").write_text(json.dumps(PAIRS[0]))
    (tmp_path / "CIRCUIT").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("options", "message"), BAD_OPTIONS, ids=lambda x: " ".join(x)[:90] if isinstance(x, list) else ""
)
def test_options_are_checked_before_anything_is_read(options, message, here, capsys):
    before = sorted(here.rglob("*"))
    assert main(options) == 2
    said = capsys.readouterr()
    assert re.search(message, said.err), said.err
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("jaxcirc: ")
    assert not PYTHON.search(said.err)
    assert said.out == ""
    assert sorted(here.rglob("*")) == before


def test_defaults_are_checked_too(here, capsys):
    (here / "jaxcirc-demo").write_text("a file")
    assert main(["demo"]) == 2
    assert "--out: jaxcirc-demo exists and is not a circuit" in capsys.readouterr().err


OPTIONS = ("edges", "method", "node_threshold", "by_position", "skip_unusable", "errors", "level", "saes", "only")
GIVEN = argparse.Namespace(**dict.fromkeys(OPTIONS))
SAID = {
    "discover: aggregate='none' keeps positions apart, and padded prompts do not align. Use aggregate='sum'.": (
        "--by-position keeps positions apart, and padded prompts do not align. Leave --by-position out."
    ),
    "discover: edges='integrated' takes the path of the nodes' method, and Gradient() has none. Use "
    "method=jc.IntegratedGradients(steps).": (
        "--edges integrated takes the path of the nodes' method, and this method has none. Use --method integrated."
    ),
    "No node has an effect above node_threshold=0.1; the largest is 0.01. Lower it.": (
        "No node has an effect above --node-threshold 0.1; the largest is 0.01. Lower it."
    ),
    "evaluate: errors='keep' is of level='nodes'; an error node has no single input.": (
        "--errors keep is of --level nodes; an error node has no single input."
    ),
    "x holds two dictionaries for `y`, a and b. Choose with include=…, a pattern of paths.": (
        "x holds two dictionaries for `y`, a and b. Name a folder by --saes that holds one for each site."
    ),
    "The file is broken (a = 3). Call jc.repair(it) first.": "The file is broken (a = 3).",
    "p.jsonl, line 2: a prompt is empty. Correct the line, or leave such lines out (skip_unusable=True).": (
        "p.jsonl, line 2: a prompt is empty. Correct the line, or leave such lines out (--skip-unusable)."
    ),
    "self_repair: head (1, 0) has 0 tokens with a next token, and a line takes at least 3; its largest direct effect is 1. Lower "
    "minimum, give more prompts, or leave the head out by heads=[(layer, head), …].": (
        "head (1, 0) has 0 tokens with a next token, and a line takes at least 3; its largest direct effect is 1. Lower minimum, give "
        "more prompts, or name other heads by --only."
    ),
}


@pytest.mark.parametrize("message", SAID)
def test_python_is_translated(message):
    assert in_options(message, GIVEN) == SAID[message]


@pytest.mark.parametrize(
    ("message", "options", "said"),
    [
        ("edge: engine='structured' has none.", ["method"], "--method structured has none."),
        ("node_threshold is a part of it.", ["node_influence"], "--node-influence is a part of it."),
        ("Lower source_pos or so.", ["source_positions"], "Lower --source-positions or so."),
        ("Lower node_threshold=3.", ["node_threshold", "node_influence"], "Lower --node-threshold 3."),
    ],
)
def test_arguments_that_a_command_calls_otherwise(message, options, said):
    assert in_options(message, argparse.Namespace(**dict.fromkeys(options))) == said


def raised() -> list[str]:
    """The text of every error and warning of the library, `…` where a value stands."""
    found = []
    for path in sorted((REPOSITORY / "jaxcirc").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Raise) or (
                isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn"
            ):
                texts = [child for child in ast.walk(node) if isinstance(child, ast.JoinedStr | ast.Constant)]
                inside = {
                    id(part)
                    for text in texts
                    if isinstance(text, ast.JoinedStr)
                    for part in ast.walk(text)
                    if part is not text
                }
                for text in texts:
                    parts = text.values if isinstance(text, ast.JoinedStr) else [text]
                    if id(text) not in inside:
                        found.append(
                            "".join(
                                p.value if isinstance(p, ast.Constant) and isinstance(p.value, str) else "7"
                                for p in parts
                            )
                        )
    return [text for text in found if " " in text]


def test_no_message_of_the_library_brings_python_to_a_terminal():
    messages = raised()
    assert len(messages) > 300
    assert sum(bool(PYTHON.search(message)) for message in messages) > 40
    left = [message for message in messages if PYTHON.search(in_options(message, GIVEN))]
    # What is one sentence alone, and is raised of what no command can ask for.
    assert len(left) < 45, left


def test_the_library_speaks_of_no_options():
    for path in sorted((REPOSITORY / "jaxcirc").rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        if "cli" in path.parts:
            continue
        documents = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
                assert not re.search(r"(^|[\s(`])--[a-z]", node.value) or node.value.startswith("--xla"), (
                    path,
                    node.value,
                )


def patched(capsys, *command):
    """What a command prints that patches, and warns of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main([*command, "--method", "patching"]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_patching_warns_of_nothing_and_need_not_sum(prompts, given, tmp_path, capsys):
    printed = patched(capsys, "heads", "--model", "tiny-gpt2", "--prompts", str(prompts), "--limit", "1")
    assert re.search(r"\b1 prompt\b", printed)
    printed = patched(capsys, "discover", *given, "--limit", "2", "--out", str(tmp_path / "found"))
    assert "by this method they need not" in printed
    assert "check: node effects" not in printed


def test_numbers_that_round_to_zero_have_no_sign():
    """By the source: every number that a command prints is formatted so."""
    formats = []
    for folder in ("cli", "view"):
        for path in sorted((REPOSITORY / "jaxcirc" / folder).glob("*.py")):
            text = path.read_text("utf-8")
            sign = r"\+?" if folder == "cli" else r"\+"
            formats += re.findall(rf":({sign}z?\d*\.\d+[feg])[}}\"]", text)
    assert len(formats) > 20
    assert all("z" in each for each in formats), formats
    assert f"{-0.0001:+z.3f}" == "+0.000"


def test_a_model_that_is_not_there_without_network(tmp_path):
    """In a process of its own, with a Hub that cannot be reached: told soon, and about the model."""
    (tmp_path / "prompts.jsonl").write_text(json.dumps(PAIRS[0]))
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    took = []
    for model, hub in (
        ("./nope", {}),  # which is not asked of the Hub: so long it takes to begin
        ("nope", {"HF_ENDPOINT": "http://127.0.0.1:9"}),
        ("nope", {"HF_HUB_OFFLINE": "1"}),
    ):
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "jaxcirc", "heads", "--model", model, "--prompts", "prompts.jsonl"],
            cwd=tmp_path, env={**env, **hub}, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        took.append(time.monotonic() - begun)
        assert done.returncode == 2
        assert model == "./nope" or re.fullmatch(
            r"jaxcirc: 'nope' is no shipped model \(tiny-gpt2, tiny-gpt-neo\) and no folder here; nope is not in the cache of Hub files, "
            r"and the Hub cannot be reached \(.*\)\.\n",
            done.stderr,
        ), done.stderr
    assert max(took[1:]) < took[0] + 15  # on a busy machine; the client by itself waits 23 s for each of several files

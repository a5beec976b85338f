"""The command line: every command, its help, and its one line on bad input."""

import json

import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc.cli import main


PAIRS = [
    {
        "clean_prefix": f"The {noun}",
        "patch_prefix": f"The {other}",
        "clean_answer": " is",
        "patch_answer": " are",
        "case": "x",
    }
    for noun, other in (("teacher", "teachers"), ("doctor", "doctors"), ("farmer", "farmers"))
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


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, PAIRS)))
    return path


def discover(prompts, out, *more):
    options = ["--model", "tiny-gpt2", "--saes", "tiny-gpt2", "--prompts", str(prompts), "--out", str(out)]
    return main(["discover", *options, *more])


def test_programs_are_kept_where_something_can_be_written(tmp_path, monkeypatch):
    """And not where nothing can, without a warning for every program."""
    import jax

    from jaxcirc.cli._common import keep_compilations

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
    assert main(["demo", "--out", str(out), "--prompts", "4"]) == 0
    printed = capsys.readouterr().out
    assert "strongest edges" in printed
    assert "of the total effect at the 5 residual sites" in printed
    assert "check: relative error of edges" in printed
    circuit = jc.Circuit.load(out)
    assert len(circuit.edges) > 10
    assert circuit.edge_rows()[0].source in printed
    assert "<svg" in (out / "circuit.html").read_text()


def test_discover_from_a_file(prompts, tmp_path, capsys):
    assert discover(prompts, tmp_path / "out", "--method", "gradient", "--json", "--batch-size", "2") == 0
    said = json.loads(capsys.readouterr().out)
    circuit = jc.Circuit.load(tmp_path / "out")
    assert said["nodes"] == len(circuit.nodes) > 0
    assert said["method"]["name"] == "Gradient"
    assert said["prompts"] == 3
    assert circuit.meta["prompts_file"] == "prompts.jsonl"


def test_evaluate_a_saved_circuit(prompts, tmp_path, capsys):
    assert discover(prompts, tmp_path / "out", "--method", "gradient", "--json") == 0
    capsys.readouterr()
    common = [
        "--circuit",
        str(tmp_path / "out"),
        "--model",
        "tiny-gpt2",
        "--saes",
        "tiny-gpt2",
        "--prompts",
        str(prompts),
    ]
    assert main(["evaluate", *common, "--json", "--ablation", "zero", "--errors", "keep"]) == 0
    said = json.loads(capsys.readouterr().out)
    circuit, tokenizer = jc.Circuit.load(tmp_path / "out"), jc.load_tokenizer("tiny-gpt2")
    loaded = jc.data.load_prompts(prompts, tokenizer)
    given = jc.from_pretrained("tiny-gpt2"), jc.load_saes("tiny-gpt2"), loaded.clean, loaded.corrupt, loaded.metric()
    want = jc.evaluate(circuit, *given, ablation=jc.ZeroAblation(), errors="keep", mask=loaded.mask)
    assert said["faithfulness"] == pytest.approx(want.faithfulness)
    assert said["m_full"] == pytest.approx(want.m_full)
    assert (said["level"], said["ablation"]["name"], said["prompts"]) == ("nodes", "ZeroAblation", 3)
    drawn = tmp_path / "curve.svg"
    assert main(["evaluate", *common, "--curve", "--plot", str(drawn), "--minimality", "2"]) == 0
    printed = capsys.readouterr().out
    assert "lost" in printed
    assert "<polygon" in drawn.read_text()
    assert printed.startswith(f"{len(circuit.nodes)} nodes, {len(circuit.edges)} edges, 3 prompts, by nodes")
    assert "random" in printed
    assert main(["evaluate", *common[2:], "--circuit", str(tmp_path)]) == 2
    assert "is not a saved circuit" in capsys.readouterr().err


def test_steer_a_saved_circuit(prompts, tmp_path, capsys):
    out = tmp_path / "out"
    assert discover(prompts, out, "--edge-threshold", "0.001", "--edges", "integrated", "--steps", "4", "--json") == 0
    assert json.loads(capsys.readouterr().out)["edges"] > 10
    given = ["--circuit", str(out), "--model", "tiny-gpt2", "--saes", "tiny-gpt2", "--prompts", str(prompts)]
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
        main(["features", *given, *sites, "--most", "3", "--substitute", "target", "--plot", str(drawn), "--json"]) == 0
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
    assert main(["features", *given, *sites, "--most", "3", "--positions", "all"]) == 0
    printed = capsys.readouterr().out
    assert "source_position" in printed
    assert " teachers" in printed
    for more, error in (
        (["--minimum", "1000"], "no latent of `blocks.1.hook_mlp_out` is above the minimum 1000; the largest is"),
        (["--positions", "last"], "positions is one of 'same', 'all'; got 'last'"),
        (["--substitute", "error"], "substitute names 'source', 'target', both or none; got 'error'"),
        (["--most", "0"], "--most is how many pairs to print, at least 1; got 0"),
        (["--plot", "features.png"], "features.png does not end in .svg"),
        (["--target", "blocks.0.hook_resid_mid"], "there is no dictionary at `blocks.0.hook_resid_mid`"),
    ):
        assert main(["features", *given, *sites, *more]) == 2
        captured = capsys.readouterr().err.strip().splitlines()
        assert error in captured[-1]


def test_heads_of_a_prompts_file(prompts, tmp_path, capsys):
    drawn = tmp_path / "heads.svg"
    given = ["heads", "--model", "tiny-gpt2", "--prompts", str(prompts)]
    options = ["--method", "gradient", "--batch-size", "2", "--plot", str(drawn), "--json"]
    assert main([*given, *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["prompts"], said["method"], said["plot"]) == (3, "gradient", str(drawn))
    model, tokenizer = jc.from_pretrained("tiny-gpt2"), jc.load_tokenizer("tiny-gpt2")
    pairs = jc.data.load_prompts(prompts, tokenizer)
    want = jc.head_effects(model, pairs.clean, pairs.corrupt, pairs.metric(), method=jc.Gradient())
    outputs = np.asarray(want.z).sum(-1).mean(0)
    assert np.abs(outputs).max() > 0.05
    largest = max(np.ndindex(outputs.shape), key=lambda at: abs(outputs[at]))
    assert said["rows"][0]["head"] == "{}.{}".format(*largest)
    assert said["rows"][0]["z"] == pytest.approx(outputs[largest], rel=1e-3)
    assert len(said["rows"]) == outputs.size
    for part in ("output", "query", "key", "value"):
        assert f"{part}, summed over positions" in drawn.read_text()

    assert main([*given, "--most", "2"]) == 0
    printed = capsys.readouterr().out
    assert "effects by exact patching\n" in printed
    assert len(printed.split("value\n")[1].splitlines()) == 2
    for more, error in (
        (["--most", "0"], "--most is how many heads to print, at least 1; got 0"),
        (["--batch-size", "0"], "--batch-size is how many prompt pairs are in memory at once, at least 1; got 0"),
        (["--plot", "heads.png"], "heads.png does not end in .svg"),
    ):
        assert main([*given, *more]) == 2
        assert error in capsys.readouterr().err.strip().splitlines()[-1]


def test_doctor_is_content_here_and_finds_a_planted_error(capsys, monkeypatch):
    assert main(["doctor", "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert len(checks) == 5
    assert all(check["ok"] for check in checks.values())

    monkeypatch.setattr("jaxlib.version.__version__", "0.10.2")
    monkeypatch.setattr("jaxcirc._nn.gelu_new.__code__", jc._nn.relu.__code__)
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert (
        "FAIL  jaxlib is not a version known to be wrong: RuntimeError: jaxlib 0.10.2 computes wrong Jacobians"
        in printed
    )


@pytest.mark.parametrize(
    "command",
    ["demo", "discover", "doctor", "evaluate", "steer", "convert", "jacobian", "features", "heads", "self-repair"],
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
        json.dumps(PAIRS[0] | {"patch_prefix": "The teacher"}),
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


def test_other_bad_input(prompts, tmp_path, capsys):
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
    assert discover(prompts, tmp_path / "out", "--node-threshold", "1e9") == 2
    assert "the largest is" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_full_disk(prompts, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "edges.parquet")

    monkeypatch.setattr("pandas.DataFrame.to_parquet", full)
    assert discover(prompts, tmp_path / "out", "--method", "gradient") == 2
    assert "No space left on device: edges.parquet" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.jsonl"]


def repair(capsys, *options):
    code = main(["self-repair", "--prompts", "16", *options])
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
    assert slopes["3.0"] == 0
    assert (found["tokens"], found["prompts"], found["intercept"]) == (96, 16, False)
    svg = drawn.read_text()
    assert "slope of backup on direct effect" in svg
    assert svg.count("direct effect of the head") == 2
    assert "head 2.3: slope" in svg


def test_self_repair_of_given_text_and_tokens(tmp_path, capsys):
    text, ids = tmp_path / "text.txt", tmp_path / "ids.npy"
    text.write_text("The teacher that the doctors like\n\nThe farmers near the teacher run\nThe doctor\n")
    code, said = repair(capsys, "--text", str(text), "--length", "5", "--only", "1.2", "0.0")
    assert code == 0, said.err
    assert said.out.startswith("2 heads of tiny-gpt2, each ablated alone, on 8 tokens of 2 prompts")
    assert "\n1.2 " in said.out
    np.save(ids, np.arange(24).reshape(4, 6))
    code, said = repair(capsys, "--tokens", str(ids), "--json", "--raw", "--minimum", "-100")
    assert code == 0, said.err
    assert (json.loads(said.out)["tokens"], json.loads(said.out)["minimum"]) == (20, -100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--head", "nine"], "A head is written LAYER.HEAD, such as 9.6; got 'nine'"),
        (["--only", "9.6"], "There is no layer 9 in tiny-gpt2: it has 4 layers, 0 to 3"),
        (["--minimum", "99"], "has 0 tokens with a direct effect above 99"),
        (["--prompts", "1"], "--prompts is at least 2"),
        (["--share", "0"], "share is a part of the tokens"),
        (["--plot", "picture.png"], "does not end in .svg"),
        (["--head", "9.6", "--plot", "unused.svg"], "There is no layer 9 in tiny-gpt2"),
        (["--head", "1.9"], "There is no head (1, 9) in tiny-gpt2"),
        (["--head", "1.2", "--only", "0.1"], "--head draws heads of those that --only names; 1.2 is not one"),
        (["--plot", "nowhere/unused.svg"], "There is no folder nowhere for unused.svg. Make it first"),
        (["--text", "TEXT", "--length", "50"], "has 0 prompts of 50 tokens or more"),
        (["--text", "EMPTY"], "has no text. Expected a prompt a line"),
        (["--tokens", "TEXT"], "TEXT is neither a JSON list of token ids nor a .npy file of them"),
    ],
)
def test_self_repair_refuses_in_one_line(options, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "TEXT").write_text("The teacher likes\nThe doctor runs\n")
    (tmp_path / "EMPTY").write_text("\n")
    code, said = repair(capsys, *options)
    assert code == 2
    assert message in said.err.strip().splitlines()[-1]
    assert said.out == ""
    assert not (tmp_path / "unused.svg").exists()

"""One vocabulary for all commands: an option's name means one thing, examples are commands, and what every command can do."""

import argparse
import json
import re
import shlex
import subprocess
import time
from collections import defaultdict

import numpy as np
import pytest

from jaxcirc._files import writing_file
from jaxcirc.cli import main
from jaxcirc.cli._main import parser
from jaxcirc.cli._parsers import is_command, parsers
from jaxcirc.cli._timing import begin, Clock, clock, covered

from .helpers import REPOSITORY
from .test_cli import own_cache as own_cache, PAIRS


WHOLE = parser()
COMMANDS = {name: each for name, each in parsers(WHOLE) if name and is_command(each)}
# Options whose help differs between commands: what it says in all of them.
SAYS = {
    "--answer": "^whose logit",
    "--batch-size": "^prompt pairs ",
    "--bos": "^put the beginning-of-text token before ",
    "--derivatives": "^which derivatives are taken: exact; lrp, .*; or detached, .*held",
    "--edge-threshold": "^keep edges with ",
    "--faithfulness": "^raise a threshold until the circuit alone just recovers this share of the metric",
    "--foil": "^whose logit is subtracted",
    "--freeze": "^what is held: layer_norms, patterns, gates, detached",
    "--head": "^whose ",
    "--keep": "^the share of edges that is kept",
    "--length": "^tokens of a (text|prompt), ",
    "--level": "^nodes or edges: what is ",
    "--limit": "^use the first N ",
    "--method": "^how .* (computed|found)",
    "--minimum": "^only .* above ",
    "--model": "^(a shipped model, a Hugging Face folder, or a Hub id|the model that it was found in)",
    "--node-threshold": "^keep nodes with ",
    "--out": "^(file|folder) for ",
    "--plot": "SVG",
    "--positions": "^at which positions ",
    "--prompts": "^file of (texts|prompt pairs)",
    "--raw": "^weights as they are, not processed",
    "--saes": "^a shipped model's name, or a folder of dictionaries",
    "--shard": "^do every N-th (text|table) from the I-th on",
    "--source": "^such as blocks",
    "--steps": "^how many gradients are integrated",
    "--strongest": "^the N nodes ",
    "--target": "^such as blocks",
    "--tokens": "^token ids.*, taken as they are",
    "--top": "^how many .* to print",
    "--vector": r"^\.npy ",
}
EXAMPLES = [
    (name, line.strip())
    for name, each in COMMANDS.items()
    for line in (each.epilog or "").partition("example:\n")[2].splitlines()
]
NUMBERED = re.compile(r"\(%\(default\)s\)|\([^()]*\)$")


def options():
    """By its name, every option: the commands that have it."""
    found = defaultdict(list)
    for name, each in COMMANDS.items():
        for action in each._actions:
            if action.option_strings:
                found[action.option_strings[-1 if action.option_strings[0] == "-h" else 0]].append((name, action))
    return found


OPTIONS = options()


@pytest.mark.parametrize("option", [option for option, uses in OPTIONS.items() if len(uses) > 1])
def test_an_option_means_one_thing(option):
    """What it takes, how many of them, and what its help says; of options with choices, these may differ by command."""
    takes = {(action.metavar, action.nargs, action.dest, type(action).__name__) for _, action in OPTIONS[option]}
    if option == "--out":  # where results go, of one file or of several
        takes = {("FILE" if each[0] == "FOLDER" else each[0], *each[1:]) for each in takes}
    assert len(takes) == 1, takes
    if option not in ("--freeze", "--method"):  # words of which a command has those that it knows
        assert len({action.choices and tuple(action.choices) for _, action in OPTIONS[option]}) == 1
    helps = {NUMBERED.sub("", action.help or "").strip() for _, action in OPTIONS[option]}
    assert all(helps)
    assert len(helps) == 1 or option in SAYS, helps
    for name, action in OPTIONS[option]:
        assert re.search(SAYS.get(option, "."), action.help or ""), (name, action.help)


def test_the_table_of_meanings_is_of_options_that_there_are():
    assert set(SAYS) <= set(OPTIONS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_do_this(name):
    has = {option: action for each in [COMMANDS[name]] for action in each._actions for option in action.option_strings}
    for option in ("--json", "--quiet", "--traceback", "--help"):
        assert option in has, option
    assert has["--json"].help == "print one JSON object and nothing else"
    for option, action in has.items():  # counts are of N, numbers of X, and files and folders complete
        if option.endswith(("-folder", "circuit", "out")) and action.nargs is None:
            assert action.metavar in ("FOLDER", "FILE"), option
        assert action.nargs == 0 or action.choices or action.metavar, option


@pytest.mark.parametrize(("name", "example"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_an_example_is_of_its_command_and_can_be_parsed(name, example, tmp_path, monkeypatch):
    """With the files that it reads in place, which is all that is asked of them here."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(example)
    assert words[: 1 + len(name.split())] == ["jaxcirc", *name.split()]
    for word in words:
        if word.endswith((".json", ".jsonl", ".txt", ".toml", ".pt")) or (
            word.endswith(".safetensors") and "--out" not in words[words.index(word) - 1]
        ):
            (tmp_path / word).parent.mkdir(exist_ok=True)
            (tmp_path / word).write_text(json.dumps(PAIRS[0]))
    if "--circuit" in words:
        (tmp_path / words[words.index("--circuit") + 1]).mkdir()
    given = parser().parse_args(words[1:], argparse.Namespace())
    assert callable(given.command)


@pytest.mark.parametrize("name", ["logit-lens", "patch", "graph"])
def test_cheap_examples_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    (example,) = [shlex.split(example)[1:] for command, example in EXAMPLES if command == name]
    assert main([*example, "--quiet"]) == 0
    said = capsys.readouterr()
    assert "tiny-gpt2" in said.out
    assert said.err == ""


def test_every_command_has_an_example():
    assert {name for name, _ in EXAMPLES} == set(COMMANDS)


def test_help_lists_every_command_by_purpose(capsys):
    assert main([]) == 0
    alone = capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == alone
    listed = re.findall(r"^  ([a-z][\w-]*)  +\S", alone, flags=re.M)
    assert sorted(listed) == sorted({name.split()[0] for name in COMMANDS})
    assert len(re.findall(r"^\S.*:$", alone, flags=re.M)) >= 6
    for option in ("--quiet", "--traceback", "--version", "--print-completion"):
        assert option in alone
    assert max(map(len, alone.splitlines())) < 130


PROMPT = ["--model", "tiny-gpt2", "--prompt", "The boys near the car"]
ENDS = ["--source", "blocks.0.hook_resid_pre", "--target", "blocks.0.hook_resid_mid", "--target-positions", "-1"]


def test_quiet_and_json_and_the_seconds(capsys):
    command = ["jacobian", *PROMPT, *ENDS]
    assert main([*command, "--json"]) == 0
    said = capsys.readouterr()
    seconds = json.loads(said.out)["seconds"]
    assert list(seconds) == ["loading", "compiling", "running", "writing", "total"]
    assert 0 < seconds["loading"] < seconds["total"]
    assert seconds["compiling"] > 0
    assert sum(seconds[name] for name in list(seconds)[:-1]) == pytest.approx(seconds["total"], abs=0.05)
    assert re.fullmatch(
        r"jaxcirc: [\d.]+ s: loading [\d.]+, compiling [\d.]+, running [\d.]+, writing 0\.0", said.err.splitlines()[-1]
    )
    for quiet in ([*command, "--quiet", "--json"], ["--quiet", *command, "--json"]):
        assert main(quiet) == 0
        again = capsys.readouterr()
        assert again.err == ""
        assert json.loads(again.out)["singular_values"] == json.loads(said.out)["singular_values"]


def test_quiet_keeps_warnings_away_and_not_errors(tmp_path, capsys):
    (tmp_path / "ids.json").write_text("[5, 6, 7]")
    given = ["jacobian", "--model", "tiny-gpt2", "--tokens", str(tmp_path / "ids.json"), *ENDS]
    assert main(given) == 0
    assert "as they stand in the file" in capsys.readouterr().err
    assert main([*given, "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert main([*given, "--quiet", "--top", "0"]) == 2
    assert capsys.readouterr().err.startswith("jaxcirc: --top is how many singular values to print, at least 1; got 0")


def test_writing_is_told_apart(tmp_path):
    """By what writes files for all commands."""
    begin()
    with writing_file(tmp_path / "file") as aside:
        aside.write_text("whole")
        time.sleep(0.05)
    seconds = clock().seconds()
    assert 0.05 <= seconds["writing"] <= seconds["total"]
    assert seconds["running"] <= seconds["total"] - 0.05


@pytest.mark.parametrize("before", [True, False])
def test_traceback_on_either_side_of_the_name(before, capsys):
    command = ["heads", "--model", "tiny-gpt2", "--prompts", "nowhere.jsonl"]
    assert main(["--traceback", *command] if before else [*command, "--traceback"]) == 2
    *traced, last = capsys.readouterr().err.splitlines()
    assert traced[0].startswith("Traceback")
    assert last == "jaxcirc: --prompts nowhere.jsonl: No such file."
    assert main(command) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_spans_are_counted_once():
    """Against a grid of moments: nested, apart, touching and overlapping."""
    spans = [(0.0, 4.0), (1.0, 2.0), (3.0, 6.0), (6.0, 7.0), (9.0, 11.0), (9.0, 10.0)]
    moments = np.arange(0, 12, 0.25) + 0.125
    inside = sum(any(begin <= at < end for begin, end in spans) for at in moments) * 0.25
    assert covered(spans) == covered(reversed(spans)) == inside == 9
    own = Clock()
    own.began, own.loaded = own.began - 10, own.began - 6
    own.compiled, own.written = [(own.began + 1, own.began + 2), (own.began + 5, own.began + 8)], []
    found = own.seconds()
    assert [round(found[name]) for name in ("loading", "compiling", "running", "writing", "total")] == [3, 4, 3, 0, 10]


def completions(script: str, line: str, cwd) -> set[str]:
    """What bash offers for the last word of the line."""
    words = line.split(" ")
    quoted = " ".join(map(shlex.quote, words))
    code = (
        f"source {shlex.quote(script)}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; COMP_LINE={shlex.quote(line)}; "
        f'COMP_POINT={len(line)}; _shtab_jaxcirc; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", code], cwd=cwd, capture_output=True, text=True, check=True)
    return {word.strip() for word in done.stdout.splitlines() if word.strip()}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    pytest.importorskip("shtab")
    import contextlib
    import io

    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh", "tcsh"):
        with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit) as stop:
            main(["--print-completion", shell])
        assert stop.value.code == 0
        (folder / shell).write_text(said.getvalue())
    (folder / "here").mkdir()
    (folder / "here" / "prompts.jsonl").touch()
    (folder / "here" / "dictionaries").mkdir()
    return folder


def test_bash_completes_commands_options_choices_files_and_folders(scripts):
    ask = lambda line: completions(str(scripts / "bash"), line, scripts / "here")
    assert ask("jaxcirc ") >= {name.split()[0] for name in COMMANDS}
    assert ask("jaxcirc dis") == {"discover"}
    assert ask("jaxcirc lens ") >= {"fit", "show", "merge", "convert"}
    assert ask("jaxcirc heads --m") == {"--model", "--method"}
    assert ask("jaxcirc heads --method ") == {"auto", "patching", "atp-star", "atp-star-graddrop", "gradient"}
    assert ask("jaxcirc heads --prompts ") == {"prompts.jsonl", "dictionaries"}
    assert ask("jaxcirc discover --saes ") == {"dictionaries"}
    assert ask("jaxcirc scrub p") == {"prompts.jsonl"}


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_have_every_option(shell, scripts):
    text = (scripts / shell).read_text()
    missing = [option for option in OPTIONS if option.lstrip("-") not in text]
    assert not missing
    assert ("_files" if shell == "zsh" else "complete jaxcirc") in text


def commands_on_pages() -> list[tuple[str, list[str]]]:
    """Every call of `jaxcirc` in the pages and the README, with continued lines joined, as words."""
    pages = [REPOSITORY / "README.md", *sorted((REPOSITORY / ".github" / "docs").glob("*.md"))]
    text = "\n".join(page.read_text("utf-8") for page in pages if page.exists()).replace("\\\n", " ")
    lines = [line.strip().partition(" #")[0] for line in text.splitlines() if line.strip().startswith("jaxcirc ")]
    return [(words[1], words[2:]) for words in map(shlex.split, lines)]


def test_pages_use_options_that_there_are():
    """Written out in full, as an abbreviation would break when another option comes."""
    found = commands_on_pages()
    assert len(found) > 20
    for command, words in found:
        names = [f"{command} {words[0]}", command] if words else [command]
        known = next((COMMANDS[name] for name in names if name in COMMANDS), WHOLE)
        options = {option for action in known._actions for option in action.option_strings}
        used = {word.partition("=")[0] for word in [command, *words] if word.startswith("--")}
        assert used <= options, (command, used - options)
        assert known is not WHOLE or used, command


def test_a_graph_is_told_in_words(capsys):
    """Nodes by names that other commands take, and outputs with their tokens and not by their numbers alone."""
    given = ["graph", "--model", "tiny-gpt2", "--prompt", "The teachers that the doctor likes", "--max-nodes", "50"]
    assert main([*given, "--answer", " are", "--foil", " is", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "-> logits/0@6 ' are' less ' is'" in said
    assert "  blocks.3.mlp.hook_post/" in said
    assert "latent" not in said
    assert main([*given, "--quiet"]) == 0
    assert re.search(r"-> logits/\d+@6 ' want'", capsys.readouterr().out)

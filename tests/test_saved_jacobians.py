"""Jacobians on disk, and the command that makes them."""

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.cli import main
from jaxcirc.jacobian import _save
from jaxcirc.jacobian._certificate import _error
from jaxcirc.parts import gelu, gelu_new

from .helpers import as_dtype, assert_close, Child, make_model, needs_x64, REPOSITORY, tokens_for


SEQ = 6
EDGES = {
    "one block": (Site(0, Kind.RESID_PRE), Site(0, Kind.RESID_POST), {}),
    "several blocks": (Site(0, Kind.RESID_PRE), Site(2, Kind.RESID_POST), {}),
    "by rows": (Site(0, Kind.MLP_POST), Site(2, Kind.ATTN_OUT), {"target_pos": [1, -1]}),
    "by columns": (Site(0, Kind.Z), Site(2, Kind.MLP_POST), {"source_pos": [0, 3, 4]}),
}


@pytest.fixture(scope="module")
def model():
    return as_dtype(make_model(jax.random.key(0), layers=3), jnp.float32)


@pytest.fixture(scope="module", params=list(EDGES))
def solved(model, request):
    source, target, positions = EDGES[request.param]
    J = jc.edge(model, tokens_for(model, SEQ), source, target, **positions)
    return J, np.asarray(J.as_matrix())


class Stopped(Exception):
    pass


def test_what_is_saved_is_the_matrix(solved, tmp_path):
    J, want = solved
    seen = []
    certificate = jc.save_jacobian(J, tmp_path / "j.safetensors", budget=4096, progress=lambda *step: seen.append(step))
    saved = jc.load_jacobian(tmp_path / "j.safetensors")
    assert_close(saved.matrix, want)
    assert (saved.source, saved.target) == (J.source, J.target)
    assert saved.certificate["error"] == certificate.error < certificate.limit
    assert len(seen) > 2  # in several parts
    assert seen[-1][0] == seen[-1][1]
    assert [path.name for path in tmp_path.iterdir()] == ["j.safetensors"]
    other = safetensors.numpy.load_file(tmp_path / "j.safetensors")["jacobian"]
    np.testing.assert_array_equal(other, saved.matrix)


def test_stopped_work_goes_on_where_it_was(solved, tmp_path):
    J, want = solved

    def stop(done, of, stage):
        if done:
            raise Stopped

    path, seen = tmp_path / "j.safetensors", []
    with pytest.raises(Stopped):
        jc.save_jacobian(J, path, budget=4096, progress=stop)
    assert not path.exists()
    jc.save_jacobian(J, path, budget=4096, progress=lambda *step: seen.append(step))
    assert seen[0][0] > 0
    assert_close(jc.load_jacobian(path).matrix, want)


def test_another_jacobian_does_not_go_on_with_it(model, tmp_path):
    def stop(done, of, stage):
        if done:
            raise Stopped

    path, ends = tmp_path / "j.safetensors", EDGES["one block"][:2]
    with pytest.raises(Stopped):
        jc.save_jacobian(jc.edge(model, tokens_for(model, SEQ), *ends), path, budget=4096, progress=stop)
    other, seen = jc.edge(model, tokens_for(model, SEQ, seed=1), *ends), []
    with pytest.warns(UserWarning, match=r"j\.safetensors\.part holds \d positions of another Jacobian .* begins anew"):
        jc.save_jacobian(other, path, budget=4096, progress=lambda *step: seen.append(step))
    assert seen[0][0] == 0
    assert_close(jc.load_jacobian(path).matrix, other.as_matrix())


def test_a_wrong_result_is_not_saved(model, tmp_path, monkeypatch):
    """A planted error: every part is off by five per cent in one row."""
    parts = _save._parts

    def wrong(*arguments):
        for part in parts(*arguments):
            yield part * np.where(np.arange(part.shape[1]) == 2, 1.05, 1.0)[:, None, None].astype(part.dtype)

    monkeypatch.setattr(_save, "_parts", wrong)
    J = jc.edge(model, tokens_for(model, SEQ), *EDGES["one block"][:2])
    with pytest.raises(ValueError, match="The result is wrong: relative error"):
        jc.save_jacobian(J, tmp_path / "j.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_number_that_is_none_is_an_error_wherever_it_stands():
    assert _error(np.full(2, np.nan), np.ones(2)) == _error(np.ones(2), np.full(2, np.nan)) == np.inf
    assert (_error(np.zeros(2), np.zeros(2)), _error(np.full(2, 3.0), np.zeros(2))) == (0, 3)


def test_files_that_are_not_jacobians(model, tmp_path):
    J = jc.edge(model, tokens_for(model, SEQ), *EDGES["one block"][:2])
    thesis = tmp_path / "thesis.safetensors"
    thesis.write_text("years of work")
    with pytest.raises(ValueError, match="exists and is not a saved Jacobian"):
        jc.save_jacobian(J, thesis)
    with pytest.raises(ValueError, match=r"is not a Jacobian that jc\.save_jacobian wrote"):
        jc.load_jacobian(thesis)
    assert thesis.read_text() == "years of work"
    path = tmp_path / "j.safetensors"
    jc.save_jacobian(J, path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="is truncated"):
        jc.load_jacobian(path)
    with pytest.raises(ValueError, match="not transposed"):
        jc.save_jacobian(J.T, tmp_path / "t.safetensors")


def test_a_disk_that_is_too_small(model, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    J = jc.edge(model, tokens_for(model, SEQ), *EDGES["one block"][:2])
    with pytest.raises(ValueError, match="Restrict the positions"):
        jc.save_jacobian(J, tmp_path / "j.safetensors")
    assert not list(tmp_path.iterdir())


def test_one_writes_a_jacobian_at_a_time(model, tmp_path):
    """A second call in the midst of the first stands for a second process: locks are of open files."""
    J, path, seen = jc.edge(model, tokens_for(model, SEQ), *EDGES["one block"][:2]), tmp_path / "j.safetensors", []

    def another(done, of, stage):
        if done in (0, 3, of):
            with pytest.raises(ValueError, match=r"is being written by another process, whose parts are in .*part"):
                jc.save_jacobian(J, path)
            seen.append(done)

    certificate = jc.save_jacobian(J, path, budget=1, progress=another)
    assert seen == [0, 3, SEQ]
    assert_close(jc.load_jacobian(path).matrix, J.as_matrix())
    assert jc.save_jacobian(J, path) == certificate
    assert [file.name for file in tmp_path.iterdir()] == ["j.safetensors"]


# --- Files that are there already


def test_a_jacobian_that_is_there_is_not_computed_again(model, tmp_path, monkeypatch):
    """Whichever engine is asked for, and however it is called; with `overwrite` it is."""
    ends, path = EDGES["one block"][:2], tmp_path / "j.safetensors"
    certificate, before = jc.save_jacobian(jc.edge(model, tokens_for(model, SEQ), *ends), path), path.read_bytes()
    made = []
    monkeypatch.setattr(_save, "_parts", lambda *given: made.append(given) or iter(()))
    renamed, seen = dataclasses.replace(model, name="a copy"), []
    for engine in ("auto", "autodiff"):
        J = jc.edge(renamed, tokens_for(model, SEQ), *ends, engine=engine)
        assert jc.save_jacobian(J, path, progress=lambda *step: seen.append(step)) == certificate
    assert seen == [(SEQ, SEQ, "jacobian")] * 2
    assert not made
    assert path.read_bytes() == before
    monkeypatch.undo()
    jc.save_jacobian(J, path, overwrite=True, progress=lambda *step: seen.append(step))
    assert seen[2][0] == 0
    assert_close(jc.load_jacobian(path).matrix, J.as_matrix())


OTHERS = {
    "prompt": (
        lambda model: jc.edge(model, tokens_for(model, SEQ, 1), *EDGES["one block"][:2]),
        "another prompt, another model",
    ),
    "weights": (
        lambda model: jc.edge(
            jax.tree.map(lambda x: x * 1.001, model), tokens_for(model, SEQ), *EDGES["one block"][:2]
        ),
        "another prompt, another model",
    ),
    "activation": (
        lambda model: jc.edge(with_activation(model, gelu), tokens_for(model, SEQ), *EDGES["one block"][:2]),
        "another prompt, another model",
    ),
    "what is held": (
        lambda model: jc.edge(model, tokens_for(model, SEQ), *EDGES["one block"][:2], frozen=jc.frozen.patterns(model)),
        "other held sites",
    ),
    "precision of the weights": (
        lambda model: jc.edge(as_dtype(model, jnp.bfloat16), tokens_for(model, SEQ), *EDGES["one block"][:2]),
        "or weights of another precision",
    ),
    "dtype": (
        lambda model: jc.edge(as_dtype(model, jnp.float64), tokens_for(model, SEQ), *EDGES["one block"][:2]),
        r"and here is .* F64",
    ),
    "positions": (
        lambda model: jc.edge(model, tokens_for(model, SEQ), *EDGES["one block"][:2], target_pos=[1, 2]),
        r"and here is .* at positions \[1, 2\]",
    ),
    "sites": (
        lambda model: jc.edge(model, tokens_for(model, SEQ), *EDGES["several blocks"][:2]),
        r"and here is .* blocks\.2\.hook_resid_post",
    ),
}


def with_activation(model, act):
    blocks = (dataclasses.replace(b, mlp=dataclasses.replace(b.mlp, act=act)) for b in model.blocks)
    return dataclasses.replace(model, blocks=tuple(blocks))


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs_x64) if name == "dtype" else name for name in OTHERS])
def test_another_jacobian_there_is_refused_before_any_work(model, name, tmp_path):
    """Finished work is kept, and unfinished work of another is begun anew, aloud."""
    path = tmp_path / "j.safetensors"
    jc.save_jacobian(jc.edge(model, tokens_for(model, SEQ), *EDGES["one block"][:2]), path)
    make, message = OTHERS[name]
    J, before, seen = make(model), path.read_bytes(), []
    with pytest.raises(
        ValueError, match=rf"holds a Jacobian already, blocks\.0\.hook_resid_pre -> .*{message}.*overwrite=True"
    ):
        jc.save_jacobian(J, path, progress=lambda *step: seen.append(step))
    assert not seen
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["j.safetensors"]


def test_a_file_of_an_older_version_is_not_taken_for_another(model, tmp_path):
    J, path = jc.edge(model, tokens_for(model, SEQ), *EDGES["one block"][:2]), tmp_path / "j.safetensors"
    jc.save_jacobian(J, path)
    path.write_bytes(path.read_bytes().replace(b'"of": ', b'"fo": '))
    with pytest.raises(
        ValueError, match="does not say for which prompt and model, as it was written by an older jaxcirc"
    ):
        jc.save_jacobian(J, path)


def test_a_key_that_is_none_is_told_before_the_work(model, tmp_path, untyped):
    J = jc.edge(model, tokens_for(model, SEQ), *EDGES["one block"][:2])
    with pytest.raises(TypeError, match=r"save_jacobian: key: expected a random key, got 0"):
        jc.save_jacobian(J, tmp_path / "j.safetensors", key=0)
    assert not list(tmp_path.iterdir())


# --- Killed processes

CHILD = """
import sys, warnings
from pathlib import Path
import tests.conftest  # the same dtypes and flags of the compiler
from tests.test_saved_jacobians import child
child(*sys.argv[1:])
"""


def killed_edge(*changes: str) -> jc.EdgeJacobian:
    """The edge that is killed, or another one, with a name that no other process has."""
    model = dataclasses.replace(make_model(jax.random.key(0), layers=2, n_ctx=40), name=str(os.getpid()))
    model = with_activation(model, gelu if "activation" in changes else gelu_new)
    model = as_dtype(model, jnp.bfloat16 if "dtype" in changes else jnp.float32)
    model = jax.tree.map(lambda x: x * 1.001, model) if "weights" in changes else model
    positions = {"target_pos": list(range(1, LONG))} if "positions" in changes else {}
    tokens = tokens_for(model, LONG, seed=int("prompt" in changes))
    return jc.edge(model, tokens, *EDGES["one block"][:2], **positions)


def child(path: str, budget: str, wait: str) -> None:
    """Saves the edge as a process of its own, and prints what is done as it goes."""
    J = killed_edge()

    def progress(done, of, stage):
        print(done, flush=True)
        time.sleep(float(wait))

    jc.save_jacobian(J, path, budget=int(budget), progress=progress)
    error = np.abs(jc.load_jacobian(path).matrix - np.asarray(J.as_matrix())).max()
    print("error", error / np.abs(np.asarray(J.as_matrix())).max(), flush=True)


LONG = 30


def start(path, *, budget=1, wait=0.0) -> Child:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return Child("-c", CHILD, str(path), str(budget), str(wait), cwd=REPOSITORY, env=environment)


def kill_after(process: Child, done: int, wait: float) -> int:
    """Kills a process some time after it has said that so many positions are done; how many it said at last."""
    last = 0
    for line in process.stdout:
        last = int(line)
        if last >= done:
            break
    time.sleep(wait)
    process.kill()
    rest = process.finish()[1].split()
    return int(rest[-1]) if rest else last


def finish(process: Child) -> tuple[int, float, str]:
    """At what the process began, by how much its file is off, and what it warned of."""
    status, out, err = process.finish()
    assert status == 0, err[-2000:]
    return int(out.split()[0]), float(out.split()[-1]), err


def test_a_killed_process_is_gone_on_with_in_another(tmp_path):
    """By SIGKILL, three times at random moments, with another budget each time."""
    path, rng, reached = tmp_path / "j.safetensors", np.random.default_rng(), 0
    for budget in (1, 30_000, 1):
        process = start(path, budget=budget, wait=0.05)
        reached = kill_after(process, reached + int(rng.integers(1, 7)), rng.uniform(0, 0.1))
        assert 0 < reached < LONG
        assert not path.exists()
    began, error, warned = finish(start(path))
    assert began >= reached  # what was written between its last words and its end, too
    assert error < 1e-5
    assert "begins anew" not in warned
    assert [file.name for file in tmp_path.iterdir()] == ["j.safetensors"]


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What a killed process left, and how many positions it had done."""
    folder = tmp_path_factory.mktemp("killed")
    return folder, kill_after(start(folder / "j.safetensors", wait=0.05), 2, 0.0)


@pytest.mark.parametrize("change", ["nothing", "prompt", "weights", "activation", "positions", "dtype"])
def test_only_the_same_jacobian_goes_on_with_what_was_killed(left, change, tmp_path):
    (folder, reached), path, seen = left, tmp_path / "j.safetensors", []
    for file in folder.iterdir():
        shutil.copy(file, tmp_path)
    J = killed_edge(change)
    save = lambda: jc.save_jacobian(J, path, budget=100_000, progress=lambda *step: seen.append(step))
    if change == "nothing":
        save()
        assert seen[0][0] >= reached >= 2
    else:
        with pytest.warns(UserWarning, match="of another Jacobian .* so this one begins anew"):
            save()
        assert seen[0][0] == 0
    assert_close(np.asarray(jc.load_jacobian(path).matrix), J.as_matrix())


def test_parts_are_never_taken_for_those_of_another(model, tmp_path):
    """Stopped after another Jacobian's parts were laid out anew and before their first count, which is still that of the first."""
    path, ends, seen = tmp_path / "j.safetensors", EDGES["one block"][:2], []
    first, second = (jc.edge(model, tokens_for(model, SEQ, seed), *ends) for seed in (0, 1))

    def stop(done, of, stage):
        if done:
            raise Stopped

    def stop_at_once(done, of, stage):
        raise Stopped

    with pytest.raises(Stopped):
        jc.save_jacobian(first, path, budget=1, progress=stop)
    with pytest.raises(Stopped), pytest.warns(UserWarning, match="begins anew"):
        jc.save_jacobian(second, path, budget=1, progress=stop_at_once)
    jc.save_jacobian(first, path, budget=1, progress=lambda *step: seen.append(step))
    assert seen[0][0] == 0
    assert_close(jc.load_jacobian(path).matrix, first.as_matrix())


@pytest.mark.parametrize("damage", ["a torn header", "a count cut short", "parts cut short", "a count alone"])
def test_damaged_parts(model, damage, tmp_path):
    """Whatever a crash leaves, what is saved in the end is the matrix."""
    J, path = jc.edge(model, tokens_for(model, SEQ), *EDGES["one block"][:2]), tmp_path / "j.safetensors"

    def stop(done, of, stage):
        if done == 3:
            raise Stopped

    with pytest.raises(Stopped):
        jc.save_jacobian(J, path, budget=1, progress=stop)
    part, state = Path(f"{path}.part"), Path(f"{path}.part.json")
    if damage == "a torn header":
        part.write_bytes(bytes(100) + part.read_bytes()[100:])
    elif damage == "a count cut short":
        state.write_text(state.read_text()[:-9])
    elif damage == "parts cut short":
        part.write_bytes(part.read_bytes()[:5000])
    else:
        part.unlink()
    seen = []
    jc.save_jacobian(J, path, budget=1, progress=lambda *step: seen.append(step))
    assert seen[0][0] == (3 if damage == "a torn header" else 0)
    assert_close(jc.load_jacobian(path).matrix, J.as_matrix())
    assert [file.name for file in tmp_path.iterdir()] == ["j.safetensors"]


# --- The command

COMMAND = [
    "jacobian",
    "--model",
    "tiny-gpt2",
    "--source",
    "blocks.2.hook_resid_pre",
    "--target",
    "blocks.2.hook_resid_post",
]


def test_the_command_prints_what_the_library_computes(tmp_path, capsys):
    out = tmp_path / "j.safetensors"
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps([1, 2, 3]))
    assert main([*COMMAND, "--tokens", str(tokens), "--freeze", "patterns", "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    model = jc.from_pretrained("tiny-gpt2")
    J = jc.edge(model, jnp.array([1, 2, 3]), printed["source"], printed["target"], frozen=jc.frozen.patterns(model))
    matrix = np.asarray(J.as_matrix(), np.float64)
    assert_close(jc.load_jacobian(out).matrix, matrix.astype(np.float32))
    assert printed["frobenius"] == pytest.approx(np.linalg.norm(matrix), rel=1e-4)
    values = np.linalg.svd(matrix.reshape(3 * 128, -1), compute_uv=False)
    assert printed["singular_values"][:3] == pytest.approx(values[:3], rel=1e-2)
    assert printed["norm_by_source"] == pytest.approx(np.sqrt((matrix**2).sum((0, 1, 3))), rel=1e-4)
    assert printed["certificate"]["error"] < printed["certificate"]["limit"]


def test_the_command_reads_a_prompt_and_a_numpy_file(tmp_path, capsys):
    np.save(tmp_path / "tokens.npy", np.array([4, 5]))
    assert main([*COMMAND, "--tokens", str(tmp_path / "tokens.npy"), "--top", "2"]) == 0
    assert "[2, 128] by blocks.2.hook_resid_pre [2, 128], structured" in capsys.readouterr().out
    assert main([*COMMAND, "--prompt", "The teacher", "--top", "2", "--freeze", "between", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["singular_values"] == pytest.approx(
        [1, 1], rel=1e-4
    )  # nothing but the residual stream: the identity
    assert printed["source_shape"] == [3, 128]  # the end-of-text token is put first


def test_the_command_keeps_what_is_there(tmp_path, capsys):
    """The same Jacobian is not computed again, another one is refused, both by name; `--overwrite` does either."""
    out = ["--out", str(tmp_path / "j.safetensors"), "--top", "1"]
    (tmp_path / "thesis.safetensors").write_text("years of work")
    assert main([*COMMAND, "--prompt", "The teacher", "--out", str(tmp_path / "thesis.safetensors")]) == 2
    assert "thesis.safetensors exists and is not a saved Jacobian" in capsys.readouterr().err
    assert main([*COMMAND, "--prompt", "The teacher", *out]) == 0
    assert "saved to" in capsys.readouterr().out
    assert main([*COMMAND, "--prompt", "The teacher", *out]) == 0
    assert "held this Jacobian already, so it was not computed again; --overwrite does" in capsys.readouterr().out
    assert main([*COMMAND, "--prompt", "The doctor", *out]) == 2
    said = capsys.readouterr().err
    assert (
        "j.safetensors holds a Jacobian already, blocks.2.hook_resid_pre -> blocks.2.hook_resid_post [3, 128, 3, 128] F32"
        in said
    )
    assert "(--overwrite)" in said
    assert main([*COMMAND, "--prompt", "The doctor", *out, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["computed"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--tokens", "words.json"], "neither a JSON list of token ids nor a .npy file"),
        (["--tokens", "two.json"], "Give one prompt"),
        (["--prompt", "The", "--target-positions", "9"], "position 9 is outside the sequence of 2 tokens"),
        (["--prompt", "The", "--top", "0"], "at least 1; got 0"),
        (["--prompt", "The", "--freeze", "blocks.2.hook_resid_mid"], "every path from"),
    ],
)
def test_bad_input_of_the_command(change, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.json").write_text("the teacher")
    (tmp_path / "two.json").write_text("[[1, 2], [3, 4]]")
    assert main([*COMMAND, *change]) == 2
    assert message in capsys.readouterr().err

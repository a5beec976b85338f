"""Jacobians on disk, and the command that makes them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.cli import main

from .helpers import as_dtype, assert_close, make_model, tokens_for


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
    jc.save_jacobian(other, path, budget=4096, progress=lambda *step: seen.append(step))
    assert seen[0][0] == 0
    assert_close(jc.load_jacobian(path).matrix, other.as_matrix())


def test_a_wrong_result_is_not_saved(model, tmp_path, monkeypatch):
    """A planted error: every part is off by five per cent in one row."""
    from jaxcirc.jacobian import _save

    parts = _save._parts

    def wrong(*arguments):
        for part in parts(*arguments):
            yield part * np.where(np.arange(part.shape[1]) == 2, 1.05, 1.0)[:, None, None].astype(part.dtype)

    monkeypatch.setattr(_save, "_parts", wrong)
    J = jc.edge(model, tokens_for(model, SEQ), *EDGES["one block"][:2])
    with pytest.raises(ValueError, match="The result is wrong: relative error"):
        jc.save_jacobian(J, tmp_path / "j.safetensors")
    assert not list(tmp_path.iterdir())


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
    assert main([*COMMAND, "--tokens", str(tmp_path / "tokens.npy"), "--rank", "2"]) == 0
    assert "[2, 128] by blocks.2.hook_resid_pre [2, 128], structured" in capsys.readouterr().out
    assert main([*COMMAND, "--prompt", "The teacher", "--rank", "2", "--freeze", "between", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["singular_values"] == pytest.approx(
        [1, 1], rel=1e-4
    )  # nothing but the residual stream: the identity
    assert printed["source_shape"] == [3, 128]  # the end-of-text token is put first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--tokens", "words.json"], "neither a JSON list of token ids nor a .npy file"),
        (["--tokens", "two.json"], "Give one prompt"),
        (["--prompt", "The", "--target-pos", "9"], "position 9 is outside the sequence of 2 tokens"),
        (["--prompt", "The", "--rank", "0"], "at least 1; got 0"),
        (["--prompt", "The", "--freeze", "blocks.2.hook_resid_mid"], "every path from"),
    ],
)
def test_bad_input_of_the_command(change, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.json").write_text("the teacher")
    (tmp_path / "two.json").write_text("[[1, 2], [3, 4]]")
    assert main([*COMMAND, *change]) == 2
    assert message in capsys.readouterr().err

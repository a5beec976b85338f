"""`jaxcirc mean-jacobian`, `mean-edges`, `decode` and `spectra`: each prints and writes what its verb gives."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

import jaxcirc as jc
from jaxcirc.cli import main
from jaxcirc.cli._language import PYTHON

from .helpers import assert_close, printed, said


TEXTS = ("The teachers that the doctor likes are here.", "The boy near the cars is tall.")
PROMPT = ["--model", "tiny-gpt2", "--prompt", "The boys near the car"]
UNIT = ["--saes", "tiny-gpt2", "--site", "blocks.1.hook_mlp_out", "--unit", "196"]
ENDS = ["--source", "blocks.0.hook_mlp_out", "--target", "blocks.1.hook_resid_post", "--through", "stream"]


pytestmark = pytest.mark.usefixtures("same_cache")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(TEXTS), encoding="utf-8")
    return ["--model", "tiny-gpt2", "--prompts", str(path), "--skip-first", "1"]


@pytest.fixture(scope="module")
def corpus(tokenizer):
    ids = [np.array(tokenizer.encode(text), np.int32) for text in TEXTS]
    return [(tokens, None, (np.arange(len(tokens)) >= 1).astype(float)) for tokens in ids]


def test_mean_jacobian_of_texts(given, corpus, model, tokenizer, tmp_path, capsys):
    out = tmp_path / "mean.safetensors"
    command = ["mean-jacobian", *given, "--layer", "1", "--freeze", "layer_norms", "--out", str(out)]
    found = said(capsys, *command, "--top", "2", "--words", "2")
    want = jc.jacobian.mean(model, corpus, 1, frozen=jc.frozen.layer_norms(model))
    U, S, _ = np.linalg.svd(want.matrix)
    assert S[0] > 0.1
    assert found["singular_values"] == pytest.approx(S.tolist(), rel=1e-3, abs=1e-4 * S[0])
    assert found["frobenius"] == pytest.approx(np.linalg.norm(want.matrix), rel=1e-4)
    assert (found["positions"], found["texts"]) == (want.n_positions, 2) == (sum(len(c[0]) - 1 for c in corpus), 2)
    assert found["frozen"] == list(want.frozen) != []
    assert found["certificate"]["error"] < 1e-4
    loaded = jc.jacobian.MeanJacobian.load(out, model)
    assert_close(loaded.matrix, want.matrix, tolerance=1e-4)
    ids, _ = jc.decode(model, jnp.asarray(U.T[:2]), "blocks.1.hook_mlp_out").top(2)
    words = {frozenset(tokenizer.decode([int(t)]) for t in row) for row in np.asarray(ids)}
    for row in found["rows"]:  # the sign of a pair of vectors is nobody's choice
        sides = {frozenset(text for text, _ in row["target"][side]) for side in ("top", "bottom")}
        assert len(sides & words) == 1
    assert len(printed(capsys, *command, "--top", "2").split("spectral norm")[1].splitlines()) > 4


@pytest.mark.parametrize("weighted", [True, False])
def test_mean_edges_of_texts(weighted, given, corpus, model, tmp_path, capsys):
    out, whole = tmp_path / "edges.csv", tmp_path / "edges.safetensors"
    more = ["--weighted"] if weighted else ["--latents", "180", "23", "376"]
    command = ["mean-edges", *given, "--saes", "tiny-gpt2", *ENDS, *more, "--per-target", "3"]
    found = said(capsys, *command, "--top", "4", "--out", str(out))
    ends = "blocks.0.hook_mlp_out", "blocks.1.hook_resid_post"
    rest: dict[str, Any] = {"weighted": True} if weighted else {"targets": [180, 23, 376]}
    want = jc.features.mean_edges(model, jc.load_saes("tiny-gpt2"), corpus, *ends, through="stream", **rest)
    table = want.top(3).to_pandas()
    table = table.iloc[np.argsort(-table["value"].abs().to_numpy(), kind="stable")]
    assert table["value"].abs().max() > 0.05
    assert found["kept"] == len(table)
    written = pd.read_csv(out)
    assert written[["source", "target"]].values.tolist() == table[["source", "target"]].values.tolist()
    assert_close(written["value"].to_numpy(), table["value"].to_numpy(), tolerance=1e-5)
    assert [row["value"] for row in found["rows"]] == written["value"].tolist()[:4]
    assert f"blocks.0.hook_mlp_out/{table['source'].iloc[0]}" in printed(capsys, *command, "--out", str(whole))
    assert jc.features.MeanEdges.load(whole).weighted is weighted


def test_decode_a_latent_a_neuron_and_vectors(model, tokenizer, tmp_path, capsys):
    sae, out = jc.load_saes("tiny-gpt2")[jc.Site.parse("blocks.1.hook_mlp_out")], tmp_path / "words.csv"
    W_dec, W_out = np.asarray(sae.W_dec), np.asarray(model.blocks[2].mlp.W_out)
    np.save(tmp_path / "v.npy", W_dec[[196, 4]])
    save_file({"a": W_out[17], "b": np.zeros(3)}, tmp_path / "v.safetensors")
    stream = ["--site", "blocks.1.hook_resid_post"]
    for command, vectors in (
        ([*UNIT, "--out", str(out)], W_dec[[196]]),
        ([*UNIT, "--reads"], np.asarray(sae.W_enc)[:, 196][None]),
        (["--site", "blocks.2.mlp.hook_post", "--unit", "17"], W_out[[17]]),
        (["--vector", str(tmp_path / "v.npy"), *stream], W_dec[[196, 4]]),
        (["--vector", str(tmp_path / "v.safetensors"), "--tensor", "a", *stream], W_out[[17]]),
    ):
        rows = said(capsys, "decode", "--model", "tiny-gpt2", *command, "--top", "3")["rows"]
        want = jc.decode(model, vectors)
        assert len(rows) == len(vectors)
        for name, (ids, logits) in (("top", want.top(3)), ("bottom", want.bottom(3))):
            for row, of, sizes in zip(rows, ids, logits, strict=True):
                assert [text for text, _ in row[name]] == [tokenizer.decode([int(token)]) for token in of]
                assert [size for _, size in row[name]] == pytest.approx(sizes.tolist(), rel=1e-4)
    assert len(pd.read_csv(out)) == 3
    assert "  raises  ' new' " in printed(capsys, "decode", "--model", "tiny-gpt2", *UNIT)


def test_decode_heads_by_their_singular_vectors(model, capsys):
    given = ["decode", "--model", "tiny-gpt2", "--head", "3.1", "2.0", "--singular", "2", "--top", "1"]
    writes, reads = (said(capsys, *given, *more)["rows"] for more in ([], ["--reads"]))
    W_U = np.asarray(model.W_U, np.float64)
    weight = np.asarray(model.ln_final.weight, np.float64)
    for i, (layer, head) in enumerate(((3, 1), (2, 0))):
        attn = model.blocks[layer].attn
        U, S, Vt = np.linalg.svd(np.asarray(attn.W_V[head], np.float64) @ np.asarray(attn.W_O[head], np.float64))
        assert S[1] > 0.1
        for k in range(2):
            for row, vector in ((writes[2 * i + k], Vt[k]), (reads[2 * i + k], U[:, k])):
                logits = ((vector - vector.mean()) * weight) @ W_U
                logits -= logits.mean()
                assert row["value"] == pytest.approx(S[k], rel=1e-4)
                size = {row["top"][0][1], -row["bottom"][0][1]}  # turned around it is as good
                assert sorted(size) == pytest.approx(sorted([logits.max(), -logits.min()]), rel=1e-3)


def test_spectra_layer_by_layer(model, tokenizer, tmp_path, capsys):
    out, drawn = tmp_path / "spectra.safetensors", tmp_path / "spectra.svg"
    command = ["spectra", *PROMPT, "--source", "hook_embed", "--target-positions", "-1", "--freeze", "detached"]
    found = said(capsys, *command, "--top", "2", "--words", "1", "--out", str(out), "--plot", str(drawn))
    tokens = jnp.array([tokenizer.bos_token_id, *tokenizer.encode(PROMPT[-1])], jnp.int32)
    layers = [f"blocks.{layer}.hook_resid_post" for layer in range(4)]
    held = jc.frozen.detached(model)
    want = jc.jacobian.spectra(model, tokens, "hook_embed", layers, rank=2, frozen=held, target_pos=[-1])
    assert float(want.values.min()) > 0.1
    assert [row["target"] for row in found["rows"]] == layers
    assert np.array([row["values"] for row in found["rows"]]) == pytest.approx(np.asarray(want.values), rel=1e-4)
    assert_close(load_file(out)["left"], want.left, tolerance=1e-4)
    assert "blocks.3.hook_resid_post" in drawn.read_text("utf-8")
    first = found["rows"][3]["left"][0]
    ids, _ = jc.decode(model, want.left[3, 0, 0]).top(1)
    assert (first["position"], first["token"], first["share"]) == (len(tokens) - 1, " car", pytest.approx(1))
    assert first["top"][0][0] == tokenizer.decode([int(ids[0])])
    right = np.linalg.norm(np.asarray(want.right[3, 0]), axis=-1)
    assert found["rows"][3]["right"][0]["position"] == right.argmax()
    few = ["--targets", "blocks.0.hook_resid_post", "--top", "2", "--words", "0"]
    assert len(printed(capsys, *command, *few).splitlines()) == 5


BAD = {
    "mean-jacobian": (["{given}"], "--layer says of which MLP"),
    "mean-jacobian 9": (["{given}", "--layer", "9"], "tiny-gpt2 has layers 0 to 3; got layer 9"),
    "mean-jacobian short": (["{given}", "--layer", "1", "--skip-first", "50"], "--skip-first 50 leaves nothing of"),
    "mean-jacobian out": (["{given}", "--layer", "1", "--out", "{other}"], "does not hold a mean Jacobian"),
    "mean-edges out": (
        ["{given}", "--saes", "tiny-gpt2", *ENDS, "--out", "edges.txt"],
        "edges.txt does not end in one of",
    ),
    "mean-edges site": (
        ["{given}", "--saes", "tiny-gpt2", *ENDS, "--source", "blocks.0.hook_resid_mid"],
        "--source: there is no dictionary at `blocks.0.hook_resid_mid`",
    ),
    "decode": (["--model", "tiny-gpt2", "--unit", "3"], "--unit is at a site. Give --site"),
    "decode unit": (["--model", "tiny-gpt2", *UNIT, "--unit", "9999"], "the units at `blocks.1.hook_mlp_out` are 0 to"),
    "decode neuron": (
        ["--model", "tiny-gpt2", "--unit", "3", "--site", "blocks.0.hook_mlp_out"],
        "--unit without --saes is a neuron, of `mlp.hook_post`",
    ),
    "decode head": (["--model", "tiny-gpt2", "--head", "4.0"], "layers 0 to 3 and heads 0 to 3; got 4.0"),
    "decode tensor": (
        ["--model", "tiny-gpt2", "--site", "hook_embed", "--vector", "{other}"],
        "holds 2 tensors. Say which one by --tensor",
    ),
    "decode width": (
        ["--model", "tiny-gpt2", "--site", "hook_embed", "--vector", "{other}", "--tensor", "b"],
        "vectors at `hook_embed` are [128], got [1, 3]",
    ),
    "spectra": ([*PROMPT, "--source", "logits"], "no layer comes behind `logits`"),
    "spectra out": ([*PROMPT, "--source", "hook_embed", "--out", "s.csv"], "s.csv does not end in .safetensors"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_in_one_line(name, given, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_file({"a": np.ones(128, np.float32), "b": np.ones(3, np.float32)}, tmp_path / "other.safetensors")
    options, message = BAD[name]
    words = [word for each in options for word in (given if each == "{given}" else [each])]
    words = [word.replace("{other}", "other.safetensors") for word in words]
    assert main([name.split()[0], *words, "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not PYTHON.search(line)
    assert [path.name for path in tmp_path.iterdir()] == ["other.safetensors"]

"""`jaxcirc lens`, and texts from files."""

import json
import re

import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc.cli import main
from tests.helpers import assert_close


TEXTS = [
    "The teachers that the doctor likes are in the garden and the doctor is there too.",
    "Yesterday, Mary and John went to the store. John gave a drink to Mary.",
    "The boy near the cars likes the girl, and the girls near the car like the boys.",
]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join([*TEXTS, "", TEXTS[0]]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def fitted(texts):
    out = texts.parent / "lens.safetensors"
    given = ["--model", "tiny-gpt2", "--prompts", str(texts), "--skip-first", "4"]
    assert main(["lens", "fit", *given, "--out", str(out)]) == 0
    return out


def test_fit_writes_a_lens_and_compares_it(texts, fitted, capsys):
    lens = jc.JacobianLens.load(fitted)
    assert (lens.n_prompts, lens.settings.skip_first, lens.layers) == (4, 4, (0, 1, 2))
    assert {path.name for path in fitted.parent.iterdir()} == {"texts.txt", "lens.safetensors"}
    tokenizer = jc.load_tokenizer("tiny-gpt2")
    model = jc.from_pretrained("tiny-gpt2")
    own = jc.fit_lens(model, jc.data.load_texts(texts, tokenizer), skip_first=4)
    assert_close(lens.J[0], own.J[0], tolerance=1e-5)
    given = ["--model", "tiny-gpt2", "--prompts", str(texts), "--skip-first", "4", "--limit", "2"]
    capsys.readouterr()
    assert main(["lens", "fit", *given, "--out", str(fitted.parent / "two.safetensors"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["prompts"], [row["layer"] for row in found["rows"]]) == (2, [0, 1, 2, 3])
    assert found["rows"][3]["lens_median"] == found["rows"][3]["logit_lens_median"]
    assert found["rows"][0]["relative_error"] > 0
    (fitted.parent / "two.safetensors").unlink()


def test_a_checkpoint_that_is_asked_for_stays_and_takes_more_texts(texts, tmp_path, capsys):
    given = ["lens", "fit", "--model", "tiny-gpt2", "--prompts", str(texts), "--skip-first", "4"]
    given += ["--out", str(tmp_path / "lens.safetensors"), "--checkpoint", str(tmp_path / "kept.safetensors")]
    for limit in (2, 3):
        assert main([*given, "--limit", str(limit)]) == 0
        assert jc.JacobianLens.load(tmp_path / "kept.safetensors").n_prompts == limit
    assert main([*given, "--skip-first", "5"]) == 2
    assert re.search("skip.first 4, and 5 was asked for", capsys.readouterr().err)


def test_show_reads_a_prompt(fitted, tmp_path, capsys):
    given = ["lens", "show", str(fitted), "--model", "tiny-gpt2", "--prompt", TEXTS[0]]
    picture = tmp_path / "lens.png"
    assert main([*given, "--position", "-2", "--rank-of", " are", "--plot", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "strongest" in printed
    assert picture.stat().st_size > 1000
    assert main([*given, "--top", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["layer"] for row in found["rows"]] == [0, 1, 2, 3]
    tokenizer, model = jc.load_tokenizer("tiny-gpt2"), jc.from_pretrained("tiny-gpt2")
    ids = np.asarray([tokenizer.bos_token_id, *tokenizer.encode(TEXTS[0], add_special_tokens=False)])
    read = jc.JacobianLens.load(fitted).readout(model, ids, 2)
    tops = [[tokenizer.decode([int(token)]) for token in read.tokens[i, -1]] for i in range(4)]
    assert [[text for text, _ in row["top"]] for row in found["rows"]] == tops


def test_shards_of_texts_merge_to_the_lens_of_all(texts, fitted, tmp_path):
    given = ["lens", "fit", "--model", "tiny-gpt2", "--prompts", str(texts), "--skip-first", "4"]
    outs = [str(tmp_path / f"{number}.safetensors") for number in range(3)]
    for number, out in enumerate(outs):
        assert main([*given, "--shard", f"{number}/3", "--out", out]) == 0
    assert main(["lens", "merge", *outs, "--out", str(tmp_path / "all.safetensors")]) == 0
    merged, whole = (jc.JacobianLens.load(path) for path in (tmp_path / "all.safetensors", fitted))
    assert merged.n_prompts == whole.n_prompts == 4
    assert_close(merged.J[0], whole.J[0], tolerance=1e-5)


def test_merge_and_convert(fitted, tmp_path, capsys):
    pytest.importorskip("torch")
    published, whole = tmp_path / "published.pt", tmp_path / "whole.safetensors"
    assert main(["lens", "convert", str(fitted), "--out", str(published)]) == 0
    assert "layers 0 to 2, to the output of layer 3, 4 prompts" in capsys.readouterr().out
    assert main(["lens", "merge", str(published), str(fitted), "--out", str(whole)]) == 0
    assert "2 lenses of 8 prompts" in capsys.readouterr().out
    assert jc.JacobianLens.load(whole).n_prompts == 8


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "fit --model tiny-gpt2 --prompts {texts} --out {to}/lens.npz",
            "lens.npz does not end in one of .safetensors, .pt",
        ),
        ("fit --model tiny-gpt2 --prompts {texts} --out {to}/l.pt --length 12", "none of 4 prompts has the 18 tokens"),
        ("fit --model tiny-gpt2 --prompts {to}/none.txt --out {to}/l.pt", "No such file"),
        ("show {lens} --model tiny-gpt-neo --prompt The", "width 128, up to layer 3, and tiny-gpt-neo has width 64"),
        ("show {texts} --model tiny-gpt2 --prompt The", "is not a PyTorch file"),
        ("show {lens} --model tiny-gpt2 --prompt The --position 7", "--position is 7, and the prompt has 2 tokens"),
        ("merge {lens} {texts} --out {to}/l.safetensors", "is not a PyTorch file"),
    ],
)
def test_bad_input_is_one_line(command, message, fitted, texts, tmp_path, capsys):
    pytest.importorskip("torch")
    words = command.format(lens=fitted, texts=texts, to=tmp_path).split()
    assert main(["lens", *words]) == 2
    said = capsys.readouterr().err.strip().split("\n")[-1]
    assert message in said
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".pt", ".npz", ".safetensors")]


def test_help_of_each_part_shows_an_example(capsys):
    for part in ("fit", "show", "merge", "convert"):
        with pytest.raises(SystemExit):
            main(["lens", part, "--help"])
        assert f"example: jaxcirc lens {part}" in " ".join(capsys.readouterr().out.split())


# Texts from files.


def test_texts_are_read_from_lines_and_tables(tmp_path):
    tokenizer = jc.load_tokenizer("tiny-gpt2")
    want = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    (tmp_path / "b.csv").write_text("\n".join(["prompt", *(f'"{text}"' for text in TEXTS)]))
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"tokens": ids}) for ids in want))
    for name in ("a.jsonl", "b.csv", "c.jsonl"):
        found = jc.data.load_texts(tmp_path / name, tokenizer, bos=False)
        assert [tokens.tolist() for tokens in found] == want
    cut = jc.data.load_texts(tmp_path / "a.jsonl", tokenizer, limit=2, length=5, bos=True)
    assert [tokens.tolist() for tokens in cut] == [[tokenizer.bos_token_id, *ids][:5] for ids in want[:2]]


def test_rows_without_texts_are_told_together(tmp_path):
    tokenizer, path = jc.load_tokenizer("tiny-gpt2"), tmp_path / "texts.jsonl"
    path.write_text('{"text": "The boy"}\n{"label": 3}\n{oops\n{"text": 7}\n')
    with pytest.raises(ValueError, match="3 rows that cannot be used") as error:
        jc.data.load_texts(path, tokenizer)
    assert all(
        part in str(error.value) for part in ("line 2 has none of the columns", "line 3 is not JSON", "holds a int")
    )
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="holds no text"):
        jc.data.load_texts(tmp_path / "empty.txt", tokenizer)

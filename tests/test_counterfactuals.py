"""Indirect-object prompts with eight counterfactuals, and rows that have several."""

import json

import numpy as np
import pytest

import jaxcirc as jc

from .test_data import same_prompts, words


NAMES = (
    "abc",
    "random_names",
    "s1_io_flip",
    "s2_io_flip",
    "s1_ioi_flip_s2_ioi_flip",
    "random_names_s1_ioi_flip",
    "random_names_s2_ioi_flip",
    "random_names_s1_ioi_flip_s2_ioi_flip",
)


@pytest.fixture(scope="module")
def made(tokenizer):
    return jc.data.ioi_counterfactuals(tokenizer, 40, seed=3)


def test_clean_prompts_are_those_of_ioi(tokenizer, made):
    plain = jc.data.ioi(tokenizer, 40, template="mixed", seed=3)
    assert tuple(made.prompts) == NAMES
    for prompts in made.prompts.values():
        for part in ("clean", "answer", "foil"):
            assert (np.asarray(getattr(prompts, part)) == np.asarray(getattr(plain, part))).all()
        assert prompts.positions.keys() == plain.positions.keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_counterfactual_changes_what_its_name_says(tokenizer, made, name):
    prompts = made.prompts[name]
    IO, S, _ = (words(tokenizer, prompts, prompts.clean, role) for role in ("IO", "S1", "S2"))
    at_IO, at_S1, at_S2 = (words(tokenizer, prompts, prompts.corrupt, role) for role in ("IO", "S1", "S2"))
    differ = (np.asarray(prompts.clean) != np.asarray(prompts.corrupt)).sum(axis=1)
    random, flips = name.startswith("random_names"), "flip" in name
    first = "s1_io" in name  # the names of the first clause stand in the other order
    second = "s2_io" in name
    for i in range(40):
        if random:
            assert not {at_IO[i], at_S1[i], at_S2[i]} & {IO[i], S[i]}
        else:
            assert [at_IO[i], at_S1[i]] == ([S[i], IO[i]] if first else [IO[i], S[i]])
    if name == "abc":
        assert all(c not in (a, b) for a, b, c in zip(IO, S, at_S2, strict=True))
    else:  # where the second clause's name stands in the first clause says the position, which is the clean one's unless one flips
        assert all((c == b) == (first == second) for b, c in zip(at_S1, at_S2, strict=True))
        assert all((c == a) == (first != second) for a, c in zip(at_IO, at_S2, strict=True))
    changed = 3 if random else 2 * first + (second or not flips)
    assert (differ == changed).all()


def test_random_names_are_one_set_for_all_counterfactuals(tokenizer, made):
    named = [name for name in NAMES if name.startswith("random_names")]
    sets = [
        [
            {*pair}
            for pair in zip(
                *(words(tokenizer, made.prompts[n], made.prompts[n].corrupt, r) for r in ("IO", "S1")), strict=True
            )
        ]
        for n in named
    ]
    assert all(each == sets[0] for each in sets)
    assert [{row["metadata"]["random_a"], row["metadata"]["random_b"]} for row in made.rows] == sets[0]


def test_rows_have_the_benchmarks_fields(made):
    row = made.rows[0]
    assert list(row) == [
        "template",
        "metadata",
        "prompt",
        "choices",
        "answerKey",
        *(f"{name}_counterfactual" for name in NAMES),
    ]
    assert list(row["metadata"]) == [
        *("indirect_object", "subject", "object", "place", "random_a", "random_b", "random_c")
    ]
    for row in made.rows:
        metadata = row["metadata"]
        first = row["prompt"].index(metadata["indirect_object"]) < row["prompt"].index(metadata["subject"])
        A, B = (
            metadata[part] for part in (("indirect_object", "subject") if first else ("subject", "indirect_object"))
        )
        blanks = {"name_A": A, "name_B": B, "name_C": metadata["subject"]}
        assert row["template"].format(**blanks, place=metadata["place"], object=metadata["object"]) == row["prompt"]
        assert row["choices"][row["answerKey"]] == metadata["indirect_object"]
        flipped = row["s2_io_flip_counterfactual"]
        assert flipped["choices"][flipped["answerKey"]] == metadata["subject"]
        assert list(flipped) == ["prompt", "choices", "answerKey"]


@pytest.mark.parametrize("name", [None, *NAMES])
def test_rows_are_read_back(tokenizer, made, tmp_path, name):
    path = tmp_path / "ioi.jsonl"
    made.save(path)
    read = jc.data.load_prompts(path, tokenizer, counterfactual=name, bos=True)
    want = made.prompts[name or "s2_io_flip"]
    assert same_prompts(
        read, jc.data.Prompts(want.clean, want.corrupt, want.answer, want.foil, {"end": want.positions["end"]})
    )
    batches = list(jc.data.PromptFile(path, tokenizer, batch_size=30, counterfactual=name, bos=True))
    assert [len(batch) for batch in batches] == [30, 10]
    assert (np.asarray(batches[0].corrupt) == np.asarray(want.corrupt[:30])).all()


def test_rows_of_parquet_are_read(tokenizer, made, tmp_path):
    import pandas as pd

    pd.DataFrame(made.rows).to_parquet(tmp_path / "ioi.parquet")
    read = jc.data.load_prompts(tmp_path / "ioi.parquet", tokenizer, bos=True)
    assert (np.asarray(read.corrupt) == np.asarray(made.prompts["s2_io_flip"].corrupt)).all()


def test_multiple_choice_and_sums_answer_by_labels(tokenizer, tmp_path):
    """Labels are without a space before them, and numbers in the counterfactual; sums are themselves the label."""
    choice = {
        "prompt": "Then Mary gave the ring",
        "choices": {"label": ["A", "B"], "text": ["red", "blue"]},
        "answerKey": 1,
        "symbol_counterfactual": {
            "prompt": "Then Mary gave the book",
            "choices": {"label": [1, 2], "text": ["red", "blue"]},
            "answerKey": 0,
        },
    }
    total = {
        "prompt": "Then Mary gave the ring",
        "label": 12,
        "random_counterfactual": {"prompt": "Then Mary gave the book", "label": "7"},
    }
    first = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"][0]
    for row, answers in ((choice, ("B", "1")), (total, ("12", "7"))):
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
        read = jc.data.load_prompts(path, tokenizer)
        assert (int(read.answer[0]), int(read.foil[0])) == tuple(first(answer) for answer in answers)


def test_what_is_wrong_with_a_row_is_told(tokenizer, made, tmp_path, untyped):
    path = tmp_path / "rows.jsonl"

    def tell(change, match, **options):
        row = json.loads(json.dumps(made.rows[0]))
        change(row)
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
        with pytest.raises((ValueError, TypeError), match=match):
            jc.data.load_prompts(path, tokenizer, **options)

    nothing = lambda row: None
    tell(nothing, r"line 1 has no counterfactual 'abcd'\. It has 'abc', 'random_names'", counterfactual="abcd")
    tell(
        nothing, "load_prompts: counterfactual: expected the name of one, such as 's2_io_flip', got 3", counterfactual=3
    )
    tell(
        lambda row: row["metadata"].update(random_c="Maximilianus"),
        "names must be equally many tokens: indirect_object is 1",
    )
    tell(lambda row: row.pop("metadata"), "expected choices with labels and the number of the right one in answerKey")
    tell(
        lambda row: row["s2_io_flip_counterfactual"].pop("prompt"),
        r"s2_io_flip_counterfactual\.prompt must be text, got None",
    )


def test_options_are_those_of_ioi(tokenizer):
    for options, match in (
        ({"n": 0}, r"jc\.data\.ioi_counterfactuals: n is how many prompts to make, at least 1; got 0"),
        ({"template": "AABB"}, r"jc\.data\.ioi_counterfactuals: template must be"),
        ({"split": "test"}, r"jc\.data\.ioi_counterfactuals: split must be"),
    ):
        with pytest.raises(ValueError, match=match):
            jc.data.ioi_counterfactuals(tokenizer, **{"n": 2, "seed": 0, **options})

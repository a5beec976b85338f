"""Prompts from templates and from files."""

import json
import re
import time

import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc.data import held_out, Prompts
from jaxcirc.data._words import AGREEMENT, CLAUSE_VERBS, MAIN_VERBS, NAMES, NOUNS, OBJECTS, PLACES, PREPOSITIONS, THINGS

from .helpers import needs_real, REAL


FLIPS = (("IO",), ("S",), ("S1",), ("S2",), ("order",), ("IO", "S"), ("IO", "S1", "S2"), ("IO", "S1", "S2", "order"))


@pytest.fixture(scope="module")
def bytes_tokenizer():
    """One token a byte: it has no word whole."""
    from tokenizers import models, pre_tokenizers, Tokenizer
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


def gpt2_tokenizer():
    from transformers import GPT2TokenizerFast

    return GPT2TokenizerFast(str(REAL / "gpt2-tokenizer/vocab.json"), str(REAL / "gpt2-tokenizer/merges.txt"))


def words(tokenizer, prompts, tokens, role):
    return [tokenizer.decode([int(row[p])]).strip() for row, p in zip(tokens, prompts.positions[role], strict=True)]


def texts(tokenizer, ids):
    return [tokenizer.decode(row) for row in np.asarray(ids)]


@pytest.mark.parametrize("template", ["ABBA", "BABA", "mixed"])
def test_ioi_says_what_it_says(tokenizer, template):
    prompts = jc.data.ioi(tokenizer, 40, template=template, seed=3)
    IO, S1, S2 = (words(tokenizer, prompts, prompts.clean, role) for role in ("IO", "S1", "S2"))
    assert S1 == S2
    assert all(a != b for a, b in zip(IO, S1, strict=True))
    assert [t.strip() for t in texts(tokenizer, prompts.answer[:, None])] == IO
    assert [t.strip() for t in texts(tokenizer, prompts.foil[:, None])] == S1
    assert set(words(tokenizer, prompts, prompts.clean, "end")) == {"to"}
    first = np.asarray(prompts.positions["IO"] < prompts.positions["S1"])
    assert {"ABBA": first.all(), "BABA": not first.any(), "mixed": 0 < first.sum() < 40}[template]
    assert prompts.clean.dtype == jnp.int32
    assert (np.asarray(prompts.positions["S1+1"]) == np.asarray(prompts.positions["S1"]) + 1).all()


@pytest.mark.parametrize("flip", FLIPS, ids="+".join)
def test_a_flip_changes_what_it_names_and_nothing_else(tokenizer, flip):
    prompts = jc.data.ioi(tokenizer, 60, flip=flip, seed=5)
    clean, corrupt = np.asarray(prompts.clean), np.asarray(prompts.corrupt)
    swap = "order" in flip
    changed = set(flip) - {"order", "S"} | ({"S1", "S2"} if "S" in flip else set())
    names = {role: words(tokenizer, prompts, clean, role) for role in ("IO", "S1", "S2")}
    places = {"IO": "S1", "S1": "IO", "S2": "S2"} if swap else {role: role for role in names}
    for role, was in names.items():
        now = words(tokenizer, prompts, corrupt, places[role])
        if role in changed:
            assert all(new not in (names["IO"][i], names["S1"][i]) for i, new in enumerate(now)), (
                "a name of the sentence"
            )
        else:
            assert now == was
    moved = {places[role] for role in changed} | ({"IO", "S1"} if swap else set())
    differs = clean != corrupt
    for role in moved:
        assert differs[np.arange(60), np.asarray(prompts.positions[role])].all()
    assert (differs.sum(axis=1) == len(moved)).all()


def test_the_new_names_are_distinct_but_under_the_flip_S(tokenizer):
    prompts = jc.data.ioi(tokenizer, 200, flip=("IO", "S1", "S2"), seed=0)
    new = [words(tokenizer, prompts, prompts.corrupt, role) for role in ("IO", "S1", "S2")]
    assert all(len({*names}) == 3 for names in zip(*new, strict=True))
    prompts = jc.data.ioi(tokenizer, 50, flip=("S",), seed=0)
    assert words(tokenizer, prompts, prompts.corrupt, "S1") == words(tokenizer, prompts, prompts.corrupt, "S2")


def test_flips_are_drawn_from_streams_of_their_own(tokenizer):
    n = 300
    make = lambda *flip: jc.data.ioi(tokenizer, n, flip=flip, seed=11)
    alone, both = make("IO"), make("IO", "S")
    assert (alone.clean == both.clean).all(), "the clean prompts do not depend on the flip"
    IO = [words(tokenizer, p, p.corrupt, "IO") for p in (alone, both)]
    S = words(tokenizer, both, both.corrupt, "S1")
    assert IO[0] == IO[1], "the first stream does not depend on the others"
    shared = lambda a, b: np.mean([x == y for x, y in zip(a, b, strict=True)])
    for shift in range(-3, 4):
        assert shared(IO[1][3 + shift : n - 3 + shift], S[3 : n - 3]) < 0.1, "two streams are copies of each other"


def test_the_same_seed_gives_the_same_prompts(tokenizer):
    make = {
        "ioi": lambda seed: jc.data.ioi(tokenizer, 20, template="mixed", seed=seed),
        "subject_verb": lambda seed: jc.data.subject_verb(tokenizer, 20, kind="rc", seed=seed),
    }
    for verb in make.values():
        a, b, c = verb(1), verb(1), verb(2)
        assert (a.clean == b.clean).all()
        assert (a.corrupt == b.corrupt).all()
        assert (a.clean != c.clean).any()


@pytest.mark.parametrize("kind", list(AGREEMENT))
def test_only_the_subjects_number_differs(tokenizer, kind):
    prompts = jc.data.subject_verb(tokenizer, 80, kind=kind, seed=2)
    number = {word: i for pair in (*NOUNS, *MAIN_VERBS, *CLAUSE_VERBS) for i, word in enumerate(pair)}
    differs = np.asarray(prompts.clean != prompts.corrupt)
    assert (differs.sum(axis=1) == 1).all()
    assert differs[np.arange(80), np.asarray(prompts.positions["subject"])].all()
    subject, other = (words(tokenizer, prompts, tokens, "subject") for tokens in (prompts.clean, prompts.corrupt))
    answer, foil = ([t.strip() for t in texts(tokenizer, ids[:, None])] for ids in (prompts.answer, prompts.foil))
    numbers = [number[noun] for noun in subject]
    assert numbers == [number[verb] for verb in answer]
    assert numbers == [1 - number[noun] for noun in other] == [1 - number[verb] for verb in foil]
    assert 10 < sum(numbers) < 70
    assert ("distractor" in prompts.positions) == (kind != "simple")


@pytest.mark.parametrize("kind", list(AGREEMENT))
def test_held_out_combinations(tokenizer, kind):
    singular = {word: pair[0] for pair in (*NOUNS, *THINGS, *MAIN_VERBS, *CLAUSE_VERBS) for word in pair}
    for split, want in (("held_out", True), ("train", False)):
        prompts = jc.data.subject_verb(tokenizer, 30, kind=kind, seed=2, split=split)
        roles = ("subject",) if kind == "simple" else ("subject", "distractor")
        said = [words(tokenizer, prompts, prompts.clean, role) for role in roles]
        said.append([t.strip() for t in texts(tokenizer, prompts.answer[:, None])])
        assert {held_out(kind, *(singular[word] for word in row)) for row in zip(*said, strict=True)} == {want}


def test_held_out_names(tokenizer):
    for split, want in (("held_out", True), ("train", False)):
        prompts = jc.data.ioi(tokenizer, 40, seed=0, split=split)
        pairs = zip(*(words(tokenizer, prompts, prompts.clean, role) for role in ("IO", "S1")), strict=True)
        assert {held_out(*pair) for pair in pairs} == {want}
    share = np.mean([held_out(a, b) for a in NAMES for b in NAMES if a < b])
    assert 0.05 < share < 0.15


def test_beginning_of_text_is_an_option(tokenizer):
    with_bos, without = (jc.data.ioi(tokenizer, 4, seed=0, bos=bos) for bos in (True, False))
    assert (with_bos.clean[:, 0] == tokenizer.bos_token_id).all()
    assert (with_bos.clean[:, 1:] == without.clean).all()
    for role, position in without.positions.items():
        assert (with_bos.positions[role] == position + 1).all()


@needs_real
def test_every_word_is_one_token_of_gpt2():
    tokenizer = gpt2_tokenizer()
    pairs = (word for pair in (*NOUNS, *THINGS, *MAIN_VERBS, *CLAUSE_VERBS) for word in pair)
    for word in (*NAMES, *PLACES, *OBJECTS, *PREPOSITIONS, *pairs):
        assert len(tokenizer(" " + word)["input_ids"]) == 1, word
    assert jc.data.ioi(tokenizer, 50, template="mixed", seed=0).clean.shape == (50, 16)
    for kind in AGREEMENT:
        assert len(jc.data.subject_verb(tokenizer, 50, kind=kind, seed=0)) == 50


def test_prompts_index_and_metric(tokenizer):
    prompts = jc.data.subject_verb(tokenizer, 6, seed=0)
    assert [len(prompts[i]) for i in (slice(2), [0, 5], 3, -1)] == [2, 2, 1, 1]
    assert (prompts[-1].clean[0] == prompts.clean[5]).all()
    assert (prompts[[4, 1]].positions["end"] == prompts.positions["end"][jnp.array([4, 1])]).all()
    metric = prompts.metric()
    assert isinstance(metric, jc.LogitDiff)
    assert (metric.answer == prompts.answer).all()
    assert (metric.position == prompts.clean.shape[1] - 1).all()
    with pytest.raises(IndexError):
        prompts[6]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda t: jc.data.ioi(t, 3, seed=0, bos=False),
            r"jc\.data\.ioi: ' \w+' must be one token, and this tokenizer splits it into \[",
        ),
        (lambda t: jc.data.subject_verb(t, 3, seed=0, bos=False), r"jc\.data\.subject_verb: ' \w+' must be one token"),
    ],
)
def test_a_word_of_several_tokens_is_refused(bytes_tokenizer, make, message):
    with pytest.raises(ValueError, match=message) as error:
        make(bytes_tokenizer)
    assert "load_prompts" in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: jc.data.ioi(t, 0, seed=0), "at least 1; got 0"),
        (
            lambda t: jc.data.ioi(t, 2, template="AABB", seed=0),
            "template must be 'ABBA' or 'BABA' or 'mixed', got 'AABB'",
        ),
        (lambda t: jc.data.ioi(t, 2, flip=("X",), seed=0), "flip is a tuple out of 'IO', 'S', 'S1', 'S2', 'order'"),
        (lambda t: jc.data.ioi(t, 2, flip="IO", seed=0), "flip is a tuple"),
        (lambda t: jc.data.ioi(t, 2, flip=(), seed=0), "not empty"),
        (lambda t: jc.data.ioi(t, 2, flip=("S", "S2"), seed=0), "sets S1 and S2 to one name"),
        (
            lambda t: jc.data.subject_verb(t, 2, kind="object", seed=0),
            "kind must be 'simple' or 'nounpp' or 'rc' or 'within_rc', got 'object'",
        ),
        (
            lambda t: jc.data.subject_verb(t, 2, split="test", seed=0),
            "split must be 'all' or 'train' or 'held_out', got 'test'",
        ),
    ],
)
def test_bad_requests(tokenizer, make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(tokenizer)


@pytest.mark.usefixtures("untyped")
def test_requests_of_another_kind(tokenizer):
    with pytest.raises(TypeError, match=r"ioi: flip: expected a tuple out of 'IO', .*, got None"):
        jc.data.ioi(tokenizer, 1, seed=0, flip=None)
    with pytest.raises(TypeError, match=r"bos: expected True, False, or None for the rule .*, got 'yes'"):
        jc.data.ioi(tokenizer, 1, seed=0, bos="yes")
    with pytest.raises(TypeError, match=r"Prompts: expected a number, a slice or a list of numbers in \[ \], got None"):
        jc.data.ioi(tokenizer, 1, seed=0)[None]


LINE = {
    "clean_prefix": "The boy",
    "patch_prefix": "The boys",
    "clean_answer": " is",
    "patch_answer": " are",
    "case": "singular_plural",
}
LONGER = LINE | {"clean_prefix": "The boy near the car", "patch_prefix": "The boys near the car"}


def write(path, *lines):
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8"
    )
    return path


def test_load_prompts_of_one_length(tokenizer, tmp_path):
    prompts = jc.data.load_prompts(write(tmp_path / "p.json", LINE, "", LINE), tokenizer)
    assert isinstance(prompts, Prompts)
    assert texts(tokenizer, prompts.clean) == ["The boy"] * 2, "as given, with nothing before it"
    assert texts(tokenizer, prompts.corrupt) == ["The boys"] * 2
    assert texts(tokenizer, prompts.answer[:, None]) == [" is"] * 2
    assert texts(tokenizer, prompts.foil[:, None]) == [" are"] * 2
    assert prompts.mask is None


def test_load_prompts_pads_on_the_right(tokenizer, tmp_path):
    prompts = jc.data.load_prompts(write(tmp_path / "p.json", LINE, LONGER), tokenizer)
    assert prompts.clean.shape == (2, 5)
    assert prompts.mask.tolist() == [[True] * 2 + [False] * 3, [True] * 5]
    assert prompts.positions["end"].tolist() == [1, 4]
    assert prompts.metric().position.tolist() == [1, 4]
    assert prompts[:1].mask.shape == (1, 5)


def test_load_prompts_takes_some_and_drops_the_beginning_of_text(tokenizer, tmp_path):
    with_bos = LINE | {"clean_answer": tokenizer.bos_token + " is"}
    path = write(tmp_path / "p.json", with_bos, LINE, "this line is never read")
    assert jc.data.load_prompts(path, tokenizer, limit=2).answer.tolist() == [tokenizer(" is").input_ids[0]] * 2


def test_load_prompts_can_leave_lines_out(tokenizer, tmp_path):
    path = write(
        tmp_path / "p.json",
        LINE | {"clean_answer": " is not"},
        LINE,
        LINE | {"patch_prefix": "The tall boys"},
        LINE | {"patch_prefix": LINE["clean_prefix"]},
        LINE | {"patch_answer": LINE["clean_answer"]},
    )
    with pytest.warns(UserWarning, match=r"4 pairs are left out, 1 read\. The first: .*line 1: clean_answer ' is not'"):
        assert len(jc.data.load_prompts(path, tokenizer, skip_unusable=True)) == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((LINE, "{broken"), "p.json, line 2 is not JSON"),
        ((LINE, {"clean_prefix": "The boy"}), "p.json, line 2 lacks patch_prefix, clean_answer, patch_answer"),
        (("[1, 2]",), "p.json, line 1 is a JSON list. Expected one object a line with clean_prefix"),
        ((LINE | {"clean_answer": 3},), "line 1: clean_answer must be text, got 3"),
        (
            (LINE, LINE | {"patch_answer": " are not"}),
            "line 2: patch_answer ' are not' must be one token, and is ['Ġare', 'Ġnot']",
        ),
        ((LINE | {"patch_prefix": "The tall boys"},), "line 1: clean_prefix is 2 tokens and patch_prefix 3"),
        ((LINE | {"clean_prefix": "The"},), "line 1: clean_prefix is 1 token and patch_prefix 2; they must be of one"),
        ((LINE | {"patch_prefix": ""},), "line 1: a prompt is empty"),
        ((LINE | {"patch_prefix": LINE["clean_prefix"]},), "line 1: clean_prefix and patch_prefix are the same"),
        ((LINE, LINE | {"patch_answer": LINE["clean_answer"]}), "line 2: clean_answer and patch_answer are the same"),
        ((), "p.json is empty"),
        (("", "  "), "p.json is empty"),
    ],
)
def test_bad_files(tokenizer, tmp_path, lines, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        jc.data.load_prompts(write(tmp_path / "p.json", *lines), tokenizer)


def test_nothing_usable(tokenizer, tmp_path):
    path = write(tmp_path / "p.json", LINE | {"clean_answer": " is not"})
    with pytest.raises(ValueError, match="holds no usable pair of prompts: 1 pair is left out"):
        jc.data.load_prompts(path, tokenizer, skip_unusable=True)
    with pytest.raises(ValueError, match="limit is how many pairs"):
        jc.data.load_prompts(path, tokenizer, limit=0)


def test_a_prompt_file_is_read_batch_by_batch(tokenizer, tmp_path):
    accented = LINE | {"case": "é, so that bytes are not characters"}
    path = write(tmp_path / "p.json", accented, "", LONGER, LINE, LONGER, LINE)
    whole, file = jc.data.load_prompts(path, tokenizer), jc.data.PromptFile(path, tokenizer, batch_size=2)
    assert len(file) == 3
    for _ in range(2):  # it can be gone through again
        batches = list(file)
        assert [batch.clean.shape for batch in batches] == [(2, 5), (2, 5), (1, 5)]
        for name in ("clean", "corrupt", "answer", "foil", "mask"):
            joined = np.concatenate([getattr(batch, name) for batch in batches])
            assert joined.tolist() == getattr(whole, name).tolist()


def test_a_prompt_file_is_checked_before_any_work(tokenizer, tmp_path):
    path = write(tmp_path / "p.json", LINE, LINE | {"clean_answer": " is not"}, LONGER)
    with pytest.raises(ValueError, match=r"line 2: clean_answer ' is not' must be one token"):
        jc.data.PromptFile(path, tokenizer, batch_size=2)
    with pytest.warns(UserWarning, match="1 pair is left out, 2 read"):
        file = jc.data.PromptFile(path, tokenizer, batch_size=2, skip_unusable=True)
    assert [len(batch) for batch in file] == [2]
    with pytest.raises(ValueError, match="batch_size is how many pairs at a time, at least 1; got 0"):
        jc.data.PromptFile(path, tokenizer, batch_size=0)
    (tmp_path / "latin.json").write_bytes(json.dumps(LINE, ensure_ascii=False).encode() + b'\n{"clean_prefix": "\xe9"}')
    with pytest.raises(ValueError, match=r"latin\.json, line 2 is not text in UTF-8"):
        jc.data.load_prompts(tmp_path / "latin.json", tokenizer)


# Files of any kind

SECOND = {
    "clean_prefix": "The girls",
    "patch_prefix": "The girl",
    "clean_answer": " run",
    "patch_answer": " runs",
    "case": "é",
}
ROWS = [LINE, SECOND]
SCHEMAS = {
    "feature-circuits": lambda row: row,
    "auto-circuit": lambda row: {
        "clean": row["clean_prefix"],
        "corrupt": row["patch_prefix"],
        "answers": [row["clean_answer"]],
        "wrong_answers": [row["patch_answer"]],
        "case": row["case"],
    },
    "plain answers": lambda row: dict(
        zip(("clean", "corrupt", "answers", "wrong_answers", "case"), row.values(), strict=True)
    ),
    "ours": lambda row: dict(zip(("clean", "corrupt", "answer", "foil", "case"), row.values(), strict=True)),
}


def lines_of(rows):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def divided(delimiter):
    def table(rows):
        import csv
        import io

        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()

    return table


def quoted(rows):
    text = divided(",")(rows)
    return "\n".join(",".join(f'"{field}"' for field in line.split(",")) for line in text.splitlines())


def pandas_json(orient):
    def written(rows):
        import pandas as pd

        return pd.DataFrame(rows).to_json(orient=orient, force_ascii=False)

    return written


STORED = {
    "JSON lines": lines_of,
    "JSON lines with a byte-order mark": lambda rows: "\ufeff" + lines_of(rows),
    "JSON lines after Windows": lambda rows: lines_of(rows).replace("\n", "\r\n\r\n"),
    "a list on one line": json.dumps,
    "a list over lines": lambda rows: json.dumps(rows, indent=2),
    "a list with a line an object": lambda rows: "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n",
    "an object with a list": lambda rows: json.dumps({"word_idxs": {"end": 3}, "prompts": rows}, indent=1),
    "an object with a list on one line": lambda rows: json.dumps({"seq_labels": ["a", "b"], "prompts": rows}),
    "an object with a list with a line an object": lambda rows: (
        '\n{"prompts": [\n' + ",\n".join(map(json.dumps, rows)) + "]}"
    ),
    "columns": pandas_json("columns"),
    "records": pandas_json("records"),
    "lines of pandas": lambda rows: pandas_json("records")(rows)[1:-1].replace("},{", "}\n{"),
    "lists of columns": lambda rows: json.dumps({name: [row[name] for row in rows] for name in rows[0]}, indent=1),
}
TABLES = {
    "CSV": divided(","),
    "CSV of a spreadsheet": lambda rows: "\ufeff" + divided(";")(rows),
    "CSV with quotes": quoted,
    "TSV": divided("\t"),
    "CSV with names in capitals": lambda rows: "".join(
        line.title() if n == 0 else line for n, line in enumerate(divided(",")(rows).splitlines(keepends=True))
    ),
    "CSV with blank lines": lambda rows: "\n" + divided(",")(rows).replace("\r\n", "\n\n"),
}
FILES = [
    (schema, stored)
    for schema in SCHEMAS
    for stored in (*STORED, *(TABLES if schema != "auto-circuit" else {}), "parquet")
]


def stored_file(path, schema, stored, rows):
    rows = [SCHEMAS[schema](row) for row in rows]
    if stored == "parquet":
        import pandas as pd

        pd.DataFrame(rows).to_parquet(path)
    else:
        path.write_bytes((STORED | TABLES)[stored](rows).encode())
    return path


def same_prompts(a, b):
    return all(
        np.array_equal(np.asarray(getattr(a, name)), np.asarray(getattr(b, name)))
        for name in ("clean", "corrupt", "answer", "foil", "mask")
    )


@pytest.mark.parametrize(("schema", "stored"), FILES, ids=" as ".join)
def test_the_same_pairs_in_any_file(tokenizer, tmp_path, schema, stored):
    want = jc.data.load_prompts(write(tmp_path / "want.jsonl", *ROWS), tokenizer)
    assert len(want) == 2
    path = stored_file(tmp_path / "prompts", schema, stored, ROWS)
    assert same_prompts(jc.data.load_prompts(path, tokenizer), want)
    batches = list(jc.data.PromptFile(path, tokenizer, batch_size=1))
    assert [int(batch.answer[0]) for batch in batches] == want.answer.tolist()
    assert same_prompts(jc.data.load_prompts(path, tokenizer, limit=1), want[:1])


@pytest.mark.parametrize(("schema", "stored"), FILES, ids=" as ".join)
def test_a_bad_pair_in_any_file_is_told_by_its_place(tokenizer, tmp_path, schema, stored):
    bad = SECOND | {"clean_answer": " is not"}
    path = stored_file(tmp_path / "prompts", schema, stored, [LINE, bad, LINE, bad])
    with pytest.raises(ValueError, match="prompts has 2 rows that cannot be used:") as error:
        jc.data.load_prompts(path, tokenizer)
    told = str(error.value).splitlines()
    assert len(told) == 4
    place = "row" if stored in ("columns", "lists of columns", "parquet") else "line"
    for line in told[1:3]:
        assert re.match(rf"{place} \d+( \(entry \d\))?: \w+ ' is not' must be one token", line)
    numbers = [int(re.search(r"\d+", line)[0]) for line in told[1:3]]
    if stored in TABLES or place == "line":
        text = path.read_bytes().decode().splitlines()
        assert all(" is not" in "".join(text[n - 1 : n + 7]) and n <= len(text) for n in numbers)
    else:
        assert numbers == [2, 4]
    with pytest.warns(UserWarning, match="2 pairs are left out, 2 read"):
        assert len(jc.data.load_prompts(path, tokenizer, skip_unusable=True)) == 2


def other_files():
    import gzip
    import io
    import pickle
    import zipfile

    archive, array = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("prompts.jsonl", lines_of(ROWS))
    np.save(array, np.arange(3))
    return {
        "web page": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "a web page"),
        "plain web page": (b"\n <html lang='en'>", "a web page"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git LFS pointer"),
        "gzip": (gzip.compress(lines_of(ROWS).encode()), "compressed by gzip: unpack it first"),
        "zip": (archive.getvalue(), "a zip archive"),
        "pickle": (pickle.dumps(ROWS), "a pickle of Python objects"),
        "array": (array.getvalue(), r"a NumPy array \(.npy\)"),
        "UTF-16": (lines_of(ROWS).encode("utf-16"), "text in UTF-16: save it as UTF-8"),
        "PDF": (b"%PDF-1.7\n", "a PDF document"),
        "numbers": (b"abc\0\0\0\0", "not text: it holds zero bytes"),
    }


@pytest.mark.parametrize("what", list(other_files()))
@pytest.mark.parametrize("reader", ["prompts", "a prompt file", "annotations"])
def test_another_file_is_called_what_it_is(tokenizer, tmp_path, what, reader):
    read = {
        "prompts": lambda path: jc.data.load_prompts(path, tokenizer),
        "a prompt file": lambda path: jc.data.PromptFile(path, tokenizer, batch_size=2),
        "annotations": jc.load_annotations,
    }[reader]
    content, message = other_files()[what]
    (tmp_path / "file.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=rf"file.jsonl looks like .*{message}.*\. Expected one object a line") as error:
        read(tmp_path / "file.jsonl")
    assert "is not JSON" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "The boy is here.\nThe boys are here.\n",
            r"line 1 is neither JSON nor the head of a table .*'The boy is here.",
        ),
        ('{"prompts": [\n{"clean": "The boy",\n]}', r"line 3 is not JSON \(.*\)"),
        ('[\n{"clean": "The boy"},\n{"clean": ', r"line 3 is not JSON \(.*\)"),
        ('{"prompts": {"clean": "The boy"}}', "line 1 lacks clean_prefix, .*: its names are 'prompts'"),
        ('{"clean": ["a", "b"], "corrupt": ["c"]}', r"holds columns of \[1, 2\] entries"),
        (
            '{"clean_prefix": "The b\n{"clean_prefix": "The\n',
            r"has 2 rows that cannot be used:\nline 1 is not JSON.*\nline 2",
        ),
        (
            '{"clean_prefix": "The boy",\n{}\n{}\n',
            r"has 3 rows that cannot be used:\nline 1 is not JSON.*\nline 2 lacks",
        ),
        ("oops\n{}\n", r"has 2 rows that cannot be used:\nline 1 is not JSON.*\nline 2 lacks"),
        ("[]", "is empty"),
        ("clean,corrupt,answer,foil\n", "is empty"),
        ("clean,corrupt,answer\nThe boy,The boys, is", "line 2 lacks foil|line 2 lacks wrong_answer"),
        ("clean,corrupt,answer,foil\nThe boy,The boys, is", "line 2 has 3 fields, and the head of the table 4"),
        (
            'clean,corrupt,answer,foil\n"The boy,The boys, is, are\n',
            r"line 2 is no row of a table \(unexpected end of data\)",
        ),
        ('"a text"', "line 1 is a JSON text"),
        ("3", "line 1 is a JSON number"),
        (b"PAR1 and no more", r"is not a whole parquet table \("),
        (b'[\n"\xe9"]', "line 2 is not text in UTF-8"),
        (b"clean,corrupt,answer,foil\n\xe9,b,c,d", "line 2 is not text in UTF-8"),
        (json.dumps(LINE | {"clean_prefix": "\ud83d"}), "line 1: clean_prefix holds half a character"),
    ],
)
def test_what_is_wrong_with_other_tables(tokenizer, tmp_path, text, message):
    path = tmp_path / "p.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"p.json,? {message}"):
        jc.data.load_prompts(path, tokenizer)


def test_every_bad_line_is_told_up_to_twenty(tokenizer, tmp_path):
    bad = ["{oops", {"clean_prefix": "The boy"}, LINE | {"clean_answer": " is not"}, [1], LINE | {"patch_prefix": ""}]
    path = write(tmp_path / "p.json", LINE, *bad, LINE)
    with pytest.raises(ValueError, match=r"p.json has 5 rows that cannot be used") as error:
        jc.data.load_prompts(path, tokenizer)
    _, *told, remedy = str(error.value).splitlines()
    reasons = (
        "is not JSON",
        "lacks patch_prefix",
        ": clean_answer ' is not' must be one",
        "is a JSON list",
        ": a prompt is empty",
    )
    assert len(told) == 5
    for number, (line, reason) in enumerate(zip(told, reasons, strict=True), start=2):
        assert line.startswith(f"line {number}")
        assert reason in line
    assert "Expected one object a line" in remedy
    assert "(skip_unusable=True)" in remedy
    with pytest.raises(ValueError, match=r"p.json has 3 rows that cannot be used"):  # these are no pairs at all
        jc.data.load_prompts(path, tokenizer, skip_unusable=True)

    path = write(tmp_path / "p.json", *["{oops"] * 57)
    with pytest.raises(ValueError, match=r"p.json has 57 rows that cannot be used") as error:
        jc.data.PromptFile(path, tokenizer, batch_size=2)
    told = str(error.value).splitlines()
    assert told[20].startswith("line 20 is not JSON")
    assert told[21] == "and 37 more."
    assert len(told) == 23


def test_several_answers(tokenizer, tmp_path):
    pair = {
        "clean": "The boy",
        "corrupt": "The boys",
        "answers": [" is", " was", " has", " runs"],
        "wrong_answers": [" are"],
    }
    path = write(tmp_path / "p.json", json.dumps({"prompts": [pair, pair | {"answers": [" was"]}]}, indent=1))
    with pytest.raises(ValueError, match=r"answers lists 4 \(' is', ' was', ' has', …\), and the metric compares one"):
        jc.data.load_prompts(path, tokenizer)
    prompts = jc.data.load_prompts(path, tokenizer, first_answer=True)
    assert texts(tokenizer, prompts.answer[:, None]) == [" is", " was"]
    with pytest.warns(UserWarning, match="1 pair is left out, 1 read"):
        assert len(jc.data.load_prompts(path, tokenizer, skip_unusable=True)) == 1
    for wrong, message in (([], "answers is an empty list"), ([3], "answers must be text, got 3"), (None, "got None")):
        with pytest.raises(ValueError, match=message):
            jc.data.load_prompts(write(tmp_path / "p.json", pair | {"answers": wrong}), tokenizer)


def test_a_file_is_read_from_a_pipe(tokenizer, tmp_path):
    import os
    import threading

    os.mkfifo(tmp_path / "pipe")
    text = "\n".join(json.dumps(LINE) for _ in range(50))
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text(text, encoding="utf-8"))
    writer.start()
    assert len(jc.data.load_prompts(tmp_path / "pipe", tokenizer)) == 50
    writer.join()


# The beginning-of-text token


def test_prompts_of_a_file_stand_as_they_are_unless_asked(tokenizer, bytes_tokenizer, tmp_path):
    begun = LINE | {"clean_prefix": f"{tokenizer.bos_token}The boy", "patch_prefix": f"{tokenizer.bos_token}The boys"}
    path = write(tmp_path / "p.json", LINE, begun)
    plain, put = (jc.data.load_prompts(path, tokenizer, bos=bos) for bos in (False, True))
    assert texts(tokenizer, plain[:1].clean[:, :2]) == ["The boy"]
    assert plain.mask.sum(1).tolist() == [2, 3]
    assert texts(tokenizer, put.clean) == ["<|endoftext|>The boy"] * 2, "once"
    assert texts(tokenizer, put.corrupt) == ["<|endoftext|>The boys"] * 2
    assert put.positions["end"].tolist() == [2, 2]
    (batch,) = jc.data.PromptFile(path, tokenizer, batch_size=2, bos=True)
    assert same_prompts(batch, put)
    with pytest.raises(ValueError, match=r"This tokenizer has no beginning-of-text token .*\(bos=True\)"):
        jc.data.load_prompts(path, bytes_tokenizer, bos=True)


def given(capsys, *options):
    """The tokens that a command makes of its options, and what it says of them."""
    import argparse

    from jaxcirc.cli._common import add_text_options, tokens_of

    parser = argparse.ArgumentParser()
    add_text_options(parser)
    tokens = tokens_of(parser.parse_args(["--model", "tiny-gpt2", *map(str, options)]))
    said = capsys.readouterr()
    assert said.out == "", "results alone go to standard output"
    return tokens.tolist(), said.err.strip()


def test_text_given_to_a_command(tokenizer, tmp_path, capsys):
    (bos,), ids = tokenizer("<|endoftext|>").input_ids, tokenizer("The teachers that").input_ids
    assert given(capsys, "--prompt", "The teachers that") == (
        [bos, *ids],
        "4 tokens, <|endoftext|> put before the text",
    )
    assert given(capsys, "--no-bos", "--prompt", "The teachers that") == (ids, "3 tokens, the text as it stands")
    for option in ([], ["--bos"], ["--no-bos"]):
        told = "4 tokens, the text as it stands, which begins with <|endoftext|>"
        assert given(capsys, *option, "--prompt", "<|endoftext|>The teachers that") == ([bos, *ids], told)
    escaped = "caf\udcc3\udca9"  # "café" of UTF-8, as Python gives it where the locale is C
    assert given(capsys, "--prompt", escaped)[0] == [bos, *tokenizer("café").input_ids]
    (tmp_path / "ids.json").write_text("\ufeff" + json.dumps(ids), encoding="utf-8")
    np.save(tmp_path / "ids.npy", np.array(ids))
    for name in ("ids.json", "ids.npy"):
        assert given(capsys, "--tokens", tmp_path / name) == (ids, f"{name}: 3 tokens, as they stand in the file")
    for options, message in (
        (["--prompt", "", "--no-bos"], "--prompt is empty"),
        (["--prompt", "caf\udce9"], "--prompt is not text in UTF-8"),
        (["--tokens", tmp_path / "ids.npy", "--bos"], "token ids are taken as they are"),
        (["--tokens", tmp_path / "ids.npy", "--no-bos"], "token ids are taken as they are"),
    ):
        with pytest.raises(ValueError, match=message):
            given(capsys, *options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "neither a JSON list of token ids nor a .npy file of them"),
        (b"[1, 2", "neither a JSON list"),
        (b"[[1, 2], [3]]", "neither a JSON list"),
        (b"[[1, 2], [3, 4]]", r"expected one list of token ids, got int64\[2, 2\]\. Give one prompt"),
        (b"[0.5]", r"got float64\[1\]"),
        (b"[]", r"got float64\[0\]"),
        (b"PK\x03\x04", "looks like a zip archive.*Expected a JSON list of token ids, or a .npy file"),
        (b"version https://git-lfs.github.com/spec/v1", "looks like a Git LFS pointer"),
        (b"[1, \xe9]", "line 1 is not text in UTF-8"),
        (b"\x93NUMPY\x01\x00", "neither a JSON list of token ids nor a .npy file of them"),
    ],
)
def test_files_of_token_ids_that_are_none(capsys, tmp_path, content, message):
    (tmp_path / "ids").write_bytes(content)
    with pytest.raises(ValueError, match=rf"ids,?.* {message}"):
        given(capsys, "--tokens", tmp_path / "ids")


# How many prompts there are


def prompts_made(tokenizer, verb, n, **options):
    return getattr(jc.data, verb)(tokenizer, n, seed=0, **options)


@pytest.mark.parametrize("split", ["all", "train", "held_out"])
@pytest.mark.parametrize("kind", list(AGREEMENT))
def test_no_more_agreement_prompts_than_there_are(tokenizer, kind, split):
    numbers = [0, 1]
    kinds = {
        "simple": lambda s, d, v: {f"The {s[i]}" for i in numbers},
        "nounpp": lambda s, d, v: {
            f"The {s[i]} {p} the {d[j]}" for i in numbers for j in numbers for p in PREPOSITIONS
        },
        "rc": lambda s, d, v: {
            f"The {s[i]} that the {d[j]} {c[j]}" for i in numbers for j in numbers for c in CLAUSE_VERBS
        },
        "within_rc": lambda s, d, v: {f"The {d[j]} that the {s[i]}" for i in numbers for j in numbers},
    }
    verbs = CLAUSE_VERBS if kind == "within_rc" else MAIN_VERBS
    others = [None] if kind == "simple" else (THINGS if kind == "nounpp" else NOUNS)
    there_are = 0
    for subject in NOUNS:
        for verb in verbs:
            for other in others:
                words = (subject[0], verb[0], *([] if other is None else [other[0]]))
                if split == "all" or held_out(kind, *words) == (split == "held_out"):
                    there_are += len(kinds[kind](subject, other, verb))
    assert there_are > 50
    start = time.monotonic()
    for n in (there_are + 1, 10**7, 10**9):
        message = rf"jc.data.subject_verb: there are {there_are} different prompts with kind='{kind}', split='{split}'; got n={n}\."
        with pytest.raises(ValueError, match=message):
            prompts_made(tokenizer, "subject_verb", n, kind=kind, split=split)
    if there_are > 100_000:
        with pytest.raises(ValueError, match="at most 100000 prompts are made at once; got n=100001"):
            prompts_made(tokenizer, "subject_verb", 100_001, kind=kind, split=split)
    assert time.monotonic() - start < 5
    if there_are < 1000:
        prompts = prompts_made(tokenizer, "subject_verb", there_are, kind=kind, split=split)
        rows = np.concatenate([prompts.clean, prompts.answer[:, None]], axis=1)
        assert len(np.unique(rows, axis=0)) == there_are, "all there are, each once"
        few = prompts_made(tokenizer, "subject_verb", 60, kind=kind, split=split)
        assert same_prompts(few, prompts[:60]), "the first ones do not depend on how many are asked for"


def test_indirect_object_prompts_are_all_different_and_not_millions(tokenizer):
    from jaxcirc.data._ioi import how_many

    assert how_many("ABBA", "all") == len(NAMES) * (len(NAMES) - 1) * 4 * 4 * len(PLACES) * 4 * len(OBJECTS)
    assert how_many("ABBA", "train") + how_many("BABA", "held_out") == how_many("mixed", "all") / 2
    clean = np.asarray(prompts_made(tokenizer, "ioi", 3000, template="mixed").clean)
    assert len(np.unique(clean, axis=0)) == len(clean) == 3000
    start = time.monotonic()
    with pytest.raises(
        ValueError, match=r"jc.data.ioi: at most 100000 prompts are made at once; got n=10000000\. Make several"
    ):
        prompts_made(tokenizer, "ioi", 10**7)
    with pytest.raises(ValueError, match=r"jc.data.ioi: there are 40624128 different prompts with template='ABBA'"):
        prompts_made(tokenizer, "ioi", 10**8)
    assert time.monotonic() - start < 5


def test_a_repeated_sentence_is_drawn_anew_and_flips_stay_in_step():
    """Of which few are left to draw, so that repeats are sure."""
    from jaxcirc.data._draw import distinct

    rng = np.random.default_rng(0)
    drawn = distinct(lambda: int(rng.integers(20)), 20, key=lambda x: x)
    assert sorted(drawn) == list(range(20))
    again = np.random.default_rng(0)
    plain = [int(again.integers(20)) for _ in range(200)]
    assert drawn == list(dict.fromkeys(plain)), "the draws as they come, without the repeats"

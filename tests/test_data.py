"""Prompts from templates and from files."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc.data import held_out, Prompts
from jaxcirc.data._words import AGREEMENT, CLAUSE_VERBS, MAIN_VERBS, NAMES, NOUNS, OBJECTS, PLACES, PREPOSITIONS, THINGS

from .helpers import needs_real, REAL


FLIPS = (("IO",), ("S",), ("S1",), ("S2",), ("order",), ("IO", "S"), ("IO", "S1", "S2"), ("IO", "S1", "S2", "order"))


@pytest.fixture(scope="module")
def tokenizer():
    return jc.load_tokenizer("tiny-gpt2")


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
            "template is one of 'ABBA', 'BABA', 'mixed'; got 'AABB'",
        ),
        (lambda t: jc.data.ioi(t, 2, flip=("X",), seed=0), "flip is a tuple out of 'IO', 'S', 'S1', 'S2', 'order'"),
        (lambda t: jc.data.ioi(t, 2, flip="IO", seed=0), "flip is a tuple"),
        (lambda t: jc.data.ioi(t, 2, flip=(), seed=0), "not empty"),
        (lambda t: jc.data.ioi(t, 2, flip=("S", "S2"), seed=0), "sets S1 and S2 to one name"),
        (
            lambda t: jc.data.subject_verb(t, 2, kind="object", seed=0),
            "kind is one of 'simple', 'nounpp', 'rc', 'within_rc'",
        ),
        (lambda t: jc.data.subject_verb(t, 2, split="test", seed=0), "split is one of 'all', 'train', 'held_out'"),
    ],
)
def test_bad_requests(tokenizer, make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(tokenizer)


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
        (("[1, 2]",), "p.json, line 1 lacks clean_prefix"),
        ((LINE | {"clean_answer": 3},), "line 1: clean_answer must be text, got 3"),
        (
            (LINE, LINE | {"patch_answer": " are not"}),
            "line 2: patch_answer ' are not' must be one token, and is ['Ġare', 'Ġnot']",
        ),
        ((LINE | {"patch_prefix": "The tall boys"},), "line 1: clean_prefix is 2 tokens and patch_prefix 3"),
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
    with pytest.raises(ValueError, match="holds no usable pair of prompts: 1 were left out"):
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
    with pytest.warns(UserWarning, match="1 pairs are left out, 2 read"):
        file = jc.data.PromptFile(path, tokenizer, batch_size=2, skip_unusable=True)
    assert [len(batch) for batch in file] == [2]
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        jc.data.PromptFile(path, tokenizer, batch_size=0)
    (tmp_path / "latin.json").write_bytes(json.dumps(LINE, ensure_ascii=False).encode() + b'\n{"clean_prefix": "\xe9"}')
    with pytest.raises(ValueError, match=r"latin\.json, line 2 is not text in UTF-8"):
        jc.data.load_prompts(tmp_path / "latin.json", tokenizer)

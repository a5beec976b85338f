"""Which prompts begin with the beginning-of-text token: one rule a family, a flag against it, and a warning where it is broken."""

import argparse
import json
import re
import warnings

import pytest
import tokenizers
from tokenizers import processors

import jaxcirc as jc
from jaxcirc.data._words import AGREEMENT, CLAUSE_VERBS, NOUNS, PREPOSITIONS, THINGS
from jaxcirc.interop import save_pretrained
from jaxcirc.interop._text_tokenizer import load_text_tokenizer, TextTokenizer

from .stored_models import stored_model


WORDS = sorted(
    {"<bos>", "The", "that", "the", "ĠThe", "like", "."}
    | {word for pair in (*NOUNS, *THINGS, *CLAUSE_VERBS) for word in pair}
    | set(PREPOSITIONS)
    | {word for form in AGREEMENT.values() for word in form.split() if "{" not in word}
)
# {family: (whether its tokenizer puts the token, whether text made here gets it, whether prompts of a file do)}
FAMILIES = {
    "llama": (True, True, True),
    "mistral": (True, True, True),
    "gemma": (True, True, True),
    "gemma2": (False, True, True),  # a folder whose post-processor lacks it: Gemma is broken without
    "gemma3_text": (True, True, True),
    "gemma3": (False, True, True),
    "gpt_neox": (False, False, False),
    "qwen2": (False, False, False),
    "qwen3": (False, False, False),
    "olmo2": (False, False, False),
    "smollm2": (False, False, False),
    "gpt2": (False, True, False),
    "gpt_neo": (False, True, False),
}


def save_tokenizer(folder, family, puts):
    """A tokenizer of whole words in a folder with the configuration of such a model."""
    folder.mkdir(exist_ok=True)
    encoder = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=".")
    )
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    if puts:
        encoder.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", WORDS.index("<bos>"))]
        )
    encoder.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings |= {"bos_token": "<bos>", "eos_token": "."}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    kind = "llama" if family == "smollm2" else family
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))


@pytest.fixture(params=[load_text_tokenizer, jc.load_tokenizer], ids=["light", "transformers"])
def load(request):
    return request.param


def prompts_file(folder, text="The boy"):
    path = folder / "prompts.jsonl"
    path.write_text(json.dumps({"clean": text, "corrupt": text + "s", "answer": "like", "foil": "likes"}))
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rule_of_each_family(family, load, tmp_path):
    if family == "qwen2" and load is jc.load_tokenizer:
        pytest.skip("transformers takes a class of its own there, whatever the folder says")
    puts, made, of_file = FAMILIES[family]
    save_tokenizer(tmp_path, family, puts)
    tokenizer = load(tmp_path)
    assert tokenizer.family == ("llama" if family == "smollm2" else family)
    bos = tokenizer.bos_token_id
    begins = lambda prompts: bool((prompts.clean[:, 0] == bos).all())
    assert begins(jc.data.subject_verb(tokenizer, 4, kind="rc", seed=0)) is made
    path = prompts_file(tmp_path)
    assert begins(jc.data.load_prompts(path, tokenizer)) is of_file
    (batch,) = jc.data.PromptFile(path, tokenizer, batch_size=1)
    assert begins(batch) is of_file
    with warnings.catch_warnings(action="ignore"):
        for wanted in (True, False):
            assert begins(jc.data.subject_verb(tokenizer, 4, kind="rc", seed=0, bos=wanted)) is wanted
            assert begins(jc.data.load_prompts(path, tokenizer, bos=wanted)) is wanted


def test_a_tokenizer_that_does_not_say_its_family_goes_as_before(tmp_path):
    save_tokenizer(tmp_path, "gpt_neox", False)
    (tmp_path / "config.json").unlink()
    tokenizer = load_text_tokenizer(tmp_path)
    assert isinstance(tokenizer, TextTokenizer)
    assert tokenizer.family is None
    assert (jc.data.subject_verb(tokenizer, 2, seed=0).clean[:, 0] == tokenizer.bos_token_id).all()


RULE = re.escape("The rule: before a prompt of Llama, Mistral and Gemma, whose tokenizers put it by themselves")


@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_a_prompt_without_it_warns_and_names_the_rule(family, tmp_path):
    save_tokenizer(tmp_path, family, family == "llama")
    tokenizer, path = load_text_tokenizer(tmp_path), prompts_file(tmp_path)
    for make in (
        lambda: jc.data.subject_verb(tokenizer, 3, seed=0, bos=False),
        lambda: jc.data.load_prompts(path, tokenizer, bos=False),
        lambda: jc.data.PromptFile(path, tokenizer, batch_size=1, bos=False),
    ):
        with pytest.warns(
            UserWarning, match=rf"<bos>: \d of \d prompts lack it, and this model was trained with it. {RULE}"
        ):
            make()


@pytest.mark.parametrize("family", ["gemma2", "gpt_neox"])
def test_a_prompt_with_two_of_them_warns_and_names_the_rule(family, tmp_path):
    save_tokenizer(tmp_path, family, False)
    path = prompts_file(tmp_path, "<bos> <bos> The boy")
    with pytest.warns(UserWarning, match=rf"<bos>: 1 of 1 prompts begin with it twice. {RULE}"):
        jc.data.load_prompts(path, load_text_tokenizer(tmp_path))


def test_asking_for_it_of_a_tokenizer_without_it(tmp_path):
    save_tokenizer(tmp_path, "qwen2", False)
    tokenizer = load_text_tokenizer(tmp_path)
    tokenizer.bos_token = tokenizer.bos_token_id = None
    with pytest.raises(ValueError, match=r"no beginning-of-text token to put before text \(bos=True\)"):
        jc.data.subject_verb(tokenizer, 2, seed=0, bos=True)
    assert len(jc.data.subject_verb(tokenizer, 2, seed=0)) == 2


@pytest.mark.parametrize(
    ("name", "option", "said"),
    [
        ("llama", [], "3 tokens, <bos> put before the text"),
        ("llama", ["--no-bos"], "2 tokens, the text as it stands"),
        ("gpt-neox", [], "2 tokens, the text as it stands"),
        ("gpt-neox", ["--bos"], "3 tokens, <bos> put before the text"),
    ],
)
def test_the_first_line_of_a_command_says_what_was_done(name, option, said, tmp_path, capsys):
    from jaxcirc.cli._common import tokens_of

    bos = {(): None, ("--bos",): True, ("--no-bos",): False}[tuple(option)]
    given = {"prompt": "The boy", "tokens": None, "revision": None, "bos": bos}
    given |= {"model": str(tmp_path / "model"), "tokenizer": str(tmp_path / "words")}
    save_pretrained(stored_model(name), tmp_path / "model")
    save_tokenizer(tmp_path / "words", "gpt2", name == "llama")  # the model's family counts
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        tokens_of(argparse.Namespace(**given))
    assert capsys.readouterr().err.splitlines()[0] == said
    assert bool(warned) == (option == ["--no-bos"])


def test_words_that_a_tokenizer_splits_are_left_out(tmp_path):
    """And so much the fewer prompts there are."""
    save_tokenizer(tmp_path, "qwen2", False)
    tokenizer = load_text_tokenizer(tmp_path)
    few = {"teacher", "teachers", "boy", "boys"}
    split = lambda text: [1, 2] if text.strip() not in few | {"The", "is", "are"} else [3]

    class Splitting:
        bos_token = bos_token_id = None

        def __call__(self, text, **_):
            ids = [split(each) for each in ([text] if isinstance(text, str) else text)]
            return {"input_ids": ids[0] if isinstance(text, str) else ids}

        encode = __call__

    from jaxcirc.data._encode import usable

    assert usable(Splitting(), NOUNS) == (("teacher", "teachers"), ("boy", "boys"))
    assert usable(Splitting(), THINGS) == THINGS  # none is left: the first then says why
    assert usable(Splitting(), NOUNS, least=3) == NOUNS
    assert len(jc.data.subject_verb(tokenizer, 5, seed=0)) == 5

"""The tokenizer of the commands: what transformers' does with the same folder, and transformers' own where that is not sure."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc._tokens import together, token_text, token_texts
from jaxcirc.interop import shipped_folder
from jaxcirc.interop._shipped import SHIPPED
from jaxcirc.interop._text_tokenizer import load_text_tokenizer, TextTokenizer


TEXTS = [
    *(
        "The teachers that the doctor likes",
        " is",
        "is",
        "",
        " ",
        "\n\ttabs  and   spaces ",
        "don't , do 's .",
        "3.14, 1,000",
    ),
    *(
        "café naïve 日本語 🙂 \u200d ﬁ e\u0301",
        "<|endoftext|>",
        "<|endoftext|>The<|endoftext|> boy",
        "<|endoftext|",
        "\0\x7f\ufeff",
    ),
    "The boy " * 100,  # longer than the model's context
]


@pytest.fixture(params=SHIPPED)
def both(request):
    light, full = load_text_tokenizer(request.param), jc.load_tokenizer(request.param)
    assert isinstance(light, TextTokenizer)
    return light, full


@pytest.mark.parametrize("special", [False, True])
def test_text_is_encoded_as_by_transformers(both, special):
    light, full = both
    options = {"add_special_tokens": special, "return_offsets_mapping": True}
    for given in (*TEXTS, TEXTS, TEXTS[:1], ["", ""]):
        want, got = full(given, **options), light(given, **options)
        assert got["input_ids"] == want["input_ids"]
        assert got["offset_mapping"] == want["offset_mapping"]
        assert light(given)["input_ids"] == full(given)["input_ids"]
    for text in TEXTS:
        assert light.encode(text, add_special_tokens=special) == full.encode(text, add_special_tokens=special)
        assert light.encode(text) == full.encode(text)


def test_tokens_are_decoded_as_by_transformers(both):
    light, full = both
    rng = np.random.default_rng(0)
    rows = [full(text)["input_ids"] for text in TEXTS] + rng.integers(0, len(full), (50, 6)).tolist()
    for row in rows:
        assert light.decode(row) == full.decode(row)
        assert light.convert_ids_to_tokens(row) == full.convert_ids_to_tokens(row)
    for one in range(len(full)):
        assert light.decode(one) == light.decode([one]) == full.decode([one])
    row = rows[0]
    assert light.decode(np.array(row)) == light.decode(jnp.array(row, jnp.int32)) == full.decode(row)
    assert light.decode(np.int32(row[0])) == full.decode(row[:1])


def test_special_tokens_are_those_of_transformers(both):
    light, full = both
    for name in ("bos_token", "eos_token", "pad_token"):
        assert getattr(light, name) == getattr(full, name)
        assert getattr(light, f"{name}_id") == getattr(full, f"{name}_id")


def test_a_padding_token_of_its_own(tmp_path):
    folder = altered(tmp_path, pad_token="<|padding|>")
    light, full = load_text_tokenizer(folder), jc.load_tokenizer(folder)
    assert isinstance(light, TextTokenizer)
    assert (light.pad_token, light.pad_token_id) == (full.pad_token, full.pad_token_id)
    text = "The boy<|padding|> runs"
    assert light(text)["input_ids"] == full(text)["input_ids"]


@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer_class": "GPT2Tokenizer"},
        {"clean_up_tokenization_spaces": True},
        {"bos_token": {"content": "<|endoftext|>", "lstrip": True, "__type": "AddedToken"}},
        {"add_bos_token": True},
        {"extra_special_tokens": {"image": "<image>"}},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_other_settings_are_left_to_transformers(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxcirc.interop._text_tokenizer.load_tokenizer", lambda *given, **options: (given, options))
    folder = altered(tmp_path, **settings)
    assert load_text_tokenizer(folder, revision="v1") == ((folder,), {"revision": "v1"})


def test_other_files_are_left_to_transformers(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxcirc.interop._text_tokenizer.load_tokenizer", lambda name, revision: name)
    folder = altered(tmp_path)
    assert isinstance(load_text_tokenizer(folder), TextTokenizer)
    (folder / "added_tokens.json").write_text('{"<image>": 2048}')
    assert load_text_tokenizer(folder) == folder
    (folder / "added_tokens.json").unlink()
    (folder / "tokenizer_config.json").write_text("{")
    assert load_text_tokenizer(folder) == folder
    assert load_text_tokenizer("gpt2") == "gpt2"


def altered(folder, **settings):
    """A copy of a shipped tokenizer, with other settings."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shipped_folder("tiny-gpt2") / name, folder / name)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    return folder


WITHOUT_TORCH = """
import importlib.util, os
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "torch" else find_spec(name, *more)
from jaxcirc.interop import load_tokenizer
print(len(load_tokenizer("tiny-gpt2")), "TRANSFORMERS_NO_ADVISORY_WARNINGS" in os.environ)
"""


def test_nothing_is_said_where_torch_is_missing():
    """transformers advises to install it when it is imported; a tokenizer needs none, and the library prints nothing."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == [str(len(jc.load_tokenizer("tiny-gpt2"))), "False"], done.stderr
    assert "PyTorch" not in done.stderr


def test_each_token_has_a_name_of_its_own(both):
    """Decoded alone all parts of letters read alike; together they are text."""
    light, full = both
    ids = full.encode("\u05e9 is", add_special_tokens=False)
    for tokenizer in (light, full):
        size = len(json.loads((shipped_folder("tiny-gpt2") / "tokenizer.json").read_text("utf-8"))["model"]["vocab"])
        names = token_texts(tokenizer, np.arange(size))
        assert size > 256
        assert len({*names}) == size
        assert token_texts(tokenizer, ids) == ["<0xD7>", "<0xA9>", " is"]
        assert together(tokenizer, np.asarray(ids)) == [(2, "\u05e9"), (1, " is")]
        assert together(tokenizer, ids[1:]) == [(1, "<0xA9>"), (1, " is")]  # whose beginning is cut off
    assert token_text(None, np.int32(7)) == "7"
    assert together(None, ids) == [(1, str(token)) for token in ids]


def test_the_name_of_a_token_whose_bytes_are_not_known():
    class Decodes:
        def decode(self, ids):
            return "\ufffd"

    class Knows(Decodes):
        def convert_ids_to_tokens(self, ids):
            return ["<0xD7>" if each else "\u2581\ufffd" for each in ids]

    assert token_texts(Decodes(), [3]) == ["<token 3>"]
    assert token_texts(Knows(), [0, 1]) == ["<token 0>", "<0xD7>"]


def test_tokens_are_named_in_one_place():
    package = Path(jc.__file__).parent
    alone = [
        path.name
        for path in package.rglob("*.py")
        if re.search(r"\.decode\(\[\w+(\(\w+\))?\]\)", path.read_text("utf-8"))
    ]
    assert alone == ["_tokens.py"]

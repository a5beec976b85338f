"""Tokenizers: transformers', found as models are."""

import os
from pathlib import Path
from typing import Any

from . import _hub
from ._beginning import with_family
from ._gguf_file import is_gguf
from ._gguf_tokenizer import gguf_encoder
from ._shipped import SHIPPED, shipped_folder


def load_tokenizer(name_or_dir: str | Path, *, revision: str | None = None) -> Any:
    """The transformers tokenizer of a shipped model, a folder, a GGUF file, or a Hub id.

    A folder may hold `tokenizer.json`, or only GPT-2's `vocab.json` and `merges.txt`. Its `family` is the architecture of the model beside
    it, by which prompts are made with the beginning-of-text token in front or without: as the tokenizer itself puts it (Llama, Mistral,
    Gemma) or does not (GPT-NeoX, Qwen, SmolLM2, OLMo 2), except that Gemma gets it in any case, and GPT-2 and GPT-Neo before text that is
    made or typed here. `bos=` of what makes prompts says otherwise.

    >>> tokenizer = jc.load_tokenizer("tiny-gpt2")
    >>> tokenizer.decode(tokenizer("The dog is here.").input_ids)
    'The dog is here.'
    """
    if not isinstance(name_or_dir, str | Path):
        raise TypeError(f"load_tokenizer: expected the name of a model, or its folder, got {name_or_dir!r}.")
    return with_family(_load(name_or_dir, revision), name_or_dir, revision)


def _load(name_or_dir: str | Path, revision: str | None) -> Any:
    transformers = _transformers()
    if is_gguf(name_or_dir):
        encoder, settings = gguf_encoder(name_or_dir)
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=encoder, clean_up_tokenization_spaces=False, **settings
        )
    name, path = str(name_or_dir), Path(name_or_dir).expanduser()
    if name in SHIPPED:
        path = shipped_folder(name)
    if not path.exists():
        repo = _hub.repo_id(name)
        try:
            with _hub.patient():
                return transformers.AutoTokenizer.from_pretrained(repo, revision=revision or "main")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"No tokenizer could be loaded for {repo} ({str(error).splitlines()[0]}). Shipped are {', '.join(SHIPPED)}; any other "
                "name is a folder or an id of the Hub."
            ) from None
    held = {file.name for file in path.iterdir()} if path.is_dir() else set()
    if "tokenizer.json" in held or "tokenizer_config.json" in held:
        return transformers.AutoTokenizer.from_pretrained(path)
    if {"vocab.json", "merges.txt"} <= held:
        return transformers.GPT2TokenizerFast.from_pretrained(path)
    raise ValueError(
        f"{path} holds no tokenizer: expected tokenizer.json, or vocab.json with merges.txt. If the model was "
        "saved without one, name the tokenizer apart."
    )


def _transformers() -> Any:
    """Imports transformers without its advice that PyTorch is missing, which looks like an error: tokenizers need none."""
    name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(name)
    os.environ[name] = before or "1"
    try:
        import transformers
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
    return transformers

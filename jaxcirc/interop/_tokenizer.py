"""Tokenizers: transformers', found as models are."""

from pathlib import Path
from typing import Any

from . import _hub
from ._shipped import SHIPPED, shipped_folder


def load_tokenizer(name_or_dir: str | Path, *, revision: str | None = None) -> Any:
    """The transformers tokenizer of a shipped model, a folder, or a Hub id.

    A folder may hold `tokenizer.json`, or only GPT-2's `vocab.json` and `merges.txt`.

    >>> tokenizer = jc.load_tokenizer("tiny-gpt2")
    >>> tokenizer.decode(tokenizer("The dog is here.").input_ids)
    'The dog is here.'
    """
    import transformers

    if not isinstance(name_or_dir, str | Path):
        raise TypeError(f"load_tokenizer: expected the name of a model, or its folder, got {name_or_dir!r}.")
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
        return transformers.GPT2TokenizerFast.from_pretrained(path)  # pyright: ignore[reportAttributeAccessIssue]  # exported lazily
    raise ValueError(
        f"{path} holds no tokenizer: expected tokenizer.json, or vocab.json with merges.txt. If the model was "
        "saved without one, name the tokenizer apart."
    )

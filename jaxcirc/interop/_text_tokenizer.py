"""A tokenizer for text alone: of a folder that says all of it in two files, without transformers, which takes seconds to import."""

import json
from pathlib import Path
from typing import Any, TYPE_CHECKING

import numpy as np

from ._beginning import with_family
from ._gguf_file import is_gguf
from ._gguf_tokenizer import gguf_encoder
from ._shipped import SHIPPED, shipped_folder
from ._tokenizer import load_tokenizer


if TYPE_CHECKING:
    import tokenizers

_FILES = {"tokenizer.json", "tokenizer_config.json"}
# Files by which a transformers tokenizer becomes another one than these two say.
_OTHERS = {"added_tokens.json", "special_tokens_map.json"}
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
# Settings that change nothing of what is read here: how long a text may be is for the model to say.
_INDIFFERENT = {"backend", "model_max_length", "tokenizer_class"}


def load_text_tokenizer(name_or_dir: str | Path, *, revision: str | None = None) -> Any:
    """What `load_tokenizer` gives, or a `TextTokenizer` that does the same where its folder says that it would."""
    if is_gguf(name_or_dir):
        return with_family(TextTokenizer(*gguf_encoder(name_or_dir)), name_or_dir)
    folder = shipped_folder(str(name_or_dir)) if str(name_or_dir) in SHIPPED else Path(name_or_dir).expanduser()
    held = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    if held >= _FILES and not held & _OTHERS:
        settings = _settings(folder / "tokenizer_config.json")
        if _is_plain(settings):
            return with_family(_text_tokenizer(folder / "tokenizer.json", settings), name_or_dir)
    return load_tokenizer(name_or_dir, revision=revision)


def _settings(file: Path) -> dict[str, Any]:
    """Reads a JSON object; nothing where there is none, of which `load_tokenizer` will tell."""
    try:
        settings = json.loads(file.read_bytes())
    except ValueError:
        return {}
    return settings if isinstance(settings, dict) else {}


def _is_plain(settings: dict[str, Any]) -> bool:
    """Says whether a transformers tokenizer of these settings does as its `tokenizer.json` says, and nothing else."""
    special = {name: settings[name] for name in _SPECIAL if name in settings}
    return (
        settings.get("tokenizer_class") == "PreTrainedTokenizerFast"
        and settings.get("clean_up_tokenization_spaces") is False
        and all(isinstance(token, str) for token in special.values())
        and settings.keys() <= {*_INDIFFERENT, *special, "clean_up_tokenization_spaces"}
    )


def _text_tokenizer(file: Path, settings: dict[str, Any]) -> "TextTokenizer":
    import tokenizers

    encoder = tokenizers.Tokenizer.from_file(str(file))
    encoder.no_truncation()
    encoder.no_padding()
    encoder.add_special_tokens([settings[name] for name in _SPECIAL if name in settings])
    return TextTokenizer(encoder, settings)


class TextTokenizer:
    """What prompts are made with and shown by, as a transformers tokenizer has it.

    **Attributes:** - `family`: the architecture of the model that it was loaded for, `None` if nothing says it.
    """

    family: str | None = None

    def __init__(self, encoder: "tokenizers.Tokenizer", settings: dict[str, Any]):
        self._encoder = encoder
        self.bos_token, self.eos_token, self.pad_token = (settings.get(name) for name in _SPECIAL[:3])
        self.bos_token_id, self.eos_token_id, self.pad_token_id = (
            None if token is None else encoder.token_to_id(token)
            for token in (self.bos_token, self.eos_token, self.pad_token)
        )

    def __call__(
        self, text: str | list[str], *, add_special_tokens: bool = True, return_offsets_mapping: bool = False
    ) -> dict[str, Any]:
        """Encodes a text, or each of several: `input_ids`, and `offset_mapping`, which characters each token is of."""
        texts = [text] if isinstance(text, str) else text
        encoded = self._encoder.encode_batch(texts, add_special_tokens=add_special_tokens)
        found: dict[str, list[Any]] = {"input_ids": [each.ids for each in encoded]}
        if return_offsets_mapping:
            found["offset_mapping"] = [each.offsets for each in encoded]
        return {name: values[0] for name, values in found.items()} if isinstance(text, str) else found

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Encodes one text."""
        return self(text, add_special_tokens=add_special_tokens)["input_ids"]

    def decode(self, ids: Any) -> str:
        """Decodes one token id, or a sequence or an array of them."""
        return self._encoder.decode(np.atleast_1d(np.asarray(ids, int)).tolist(), skip_special_tokens=False)

    def convert_ids_to_tokens(self, ids: Any) -> list[str | None]:
        """Finds how the vocabulary writes each of several tokens."""
        return [self._encoder.id_to_token(i) for i in np.asarray(ids, int).tolist()]

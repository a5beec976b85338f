"""Where prompts begin with the beginning-of-text token: one rule a family.

It is put where the model's tokenizer puts it by itself, as those of Llama, Mistral and Gemma do, and of Gemma in any case, which is broken
without it. GPT-NeoX, Qwen, SmolLM2 and OLMo 2 go without. GPT-2's and GPT-Neo's tokenizers put nothing either; text that is made or typed
here gets it all the same, because their training texts begin with it, and text that a file holds is taken as it stands, as what is
published was measured.
"""

from pathlib import Path
from typing import Any

from . import _hub
from ._gguf import ARCHITECTURES
from ._gguf_file import is_gguf, open_gguf
from ._read import read_configuration
from ._shipped import SHIPPED, shipped_folder


_GEMMA = {"gemma", "gemma2", "gemma3", "gemma3_text"}
_LIKE_GPT2 = {"gpt2", "gpt_neo", None}  # None: it does not say
RULE = (
    "The rule: before a prompt of Llama, Mistral and Gemma, whose tokenizers put it by themselves; not of GPT-NeoX, Qwen, SmolLM2 and "
    "OLMo 2; of GPT-2 and GPT-Neo before text that is made or typed here."
)


def puts_bos(tokenizer: Any, *, of_file: bool) -> bool:
    """Says whether the token is put before a prompt where nobody asks for it or refuses it; `of_file`: a file holds the prompt."""
    if tokenizer.bos_token_id is None:
        return False
    return needs_bos(tokenizer) or (not of_file and family_of(tokenizer) in _LIKE_GPT2)


def needs_bos(tokenizer: Any) -> bool:
    """Says whether the model was trained with the token before every text: its tokenizer puts it, or it is a Gemma's."""
    if tokenizer.bos_token_id is None:
        return False
    begins = tokenizer("a", add_special_tokens=True)["input_ids"][:1] == [tokenizer.bos_token_id]
    return begins or family_of(tokenizer) in _GEMMA


def family_of(tokenizer: Any) -> str | None:
    """The architecture of the model that a tokenizer was loaded for; `None` if it does not say."""
    return getattr(tokenizer, "family", None)


def with_family(tokenizer: Any, name_or_dir: str | Path, revision: str | None = None) -> Any:
    """The tokenizer, which says from now on for which architecture it was loaded."""
    tokenizer.family = _family(name_or_dir, revision)
    return tokenizer


def _family(name_or_dir: str | Path, revision: str | None) -> str | None:
    """The `model_type` beside a tokenizer."""
    if is_gguf(name_or_dir):
        return ARCHITECTURES.get(open_gguf(name_or_dir).architecture)
    path = shipped_folder(str(name_or_dir)) if str(name_or_dir) in SHIPPED else Path(name_or_dir).expanduser()
    try:
        folder = path if path.exists() else _hub.configuration(str(name_or_dir), revision).parent
        return read_configuration(folder if folder.is_dir() else folder.parent).get("model_type")
    except ValueError:  # a tokenizer without a model
        return None

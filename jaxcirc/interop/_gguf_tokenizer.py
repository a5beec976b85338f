"""The tokenizer in a GGUF file: byte-level BPE, with the way of splitting text that llama.cpp has a name for."""

from pathlib import Path
from typing import Any, TYPE_CHECKING

from ._gguf_file import GGUF, open_gguf


if TYPE_CHECKING:
    import tokenizers

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How text is split before pairs are merged: as GPT-2 does, each digit by itself first, or by an expression.
_SPLITS: dict[str, str | None] = {
    **dict.fromkeys(("gpt-2", "gpt2", "olmo", "mpt"), None),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), "digits"),
    "qwen2": rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}",
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "dbrx"), rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"),
}
_CONTROL, _OF_USERS = 3, 4  # kinds of tokens


def gguf_encoder(path: str | Path) -> tuple["tokenizers.Tokenizer", dict[str, Any]]:
    """Makes the encoder of a GGUF file, and its settings: `bos_token`, `eos_token`, `pad_token`, `unk_token`.

    **Raises:** `ValueError` for a kind of tokenizer that is not byte-level BPE, or a way of splitting text that is not known.
    """
    import tokenizers
    from tokenizers import decoders, models, normalizers

    file = open_gguf(path)
    said = lambda name, default=None: file.metadata.get(f"tokenizer.ggml.{name}", default)
    kind, split = said("model"), said("pre", "gpt-2")
    if kind != "gpt2":
        raise ValueError(_unreadable(file, f"tokenizer.ggml.model = {kind!r}", "'gpt2', byte-level BPE,"))
    if split not in _SPLITS:
        raise ValueError(_unreadable(file, f"tokenizer.ggml.pre = {split!r}", f"{', '.join(map(repr, _SPLITS))}"))
    tokens = said("tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in said("merges")]
    whole_words = split in ("llama-bpe", "llama3", "llama-v3")
    encoder = tokenizers.Tokenizer(
        models.BPE({token: i for i, token in enumerate(tokens)}, merges, ignore_merges=whole_words)  # pyright: ignore[reportArgumentType]
    )
    encoder.pre_tokenizer = _pre_tokenizer(_SPLITS[split])  # pyright: ignore[reportAttributeAccessIssue]
    encoder.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    if split == "qwen2":
        encoder.normalizer = normalizers.NFC()  # pyright: ignore[reportAttributeAccessIssue]
    kinds = said("token_type", [])
    encoder.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=False) if kind == _CONTROL])
    encoder.add_tokens([token for token, kind in zip(tokens, kinds, strict=False) if kind == _OF_USERS])
    names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    ids = {name: said(f"{which}_token_id") for name, which in names.items()}
    settings = {name: tokens[i] for name, i in ids.items() if i is not None}
    if said("add_bos_token", whole_words) and "bos_token" in settings:
        encoder.post_processor = _putting(settings["bos_token"], ids["bos_token"])  # pyright: ignore[reportAttributeAccessIssue]
    return encoder, settings


def _unreadable(file: GGUF, what: str, supported: str) -> str:
    return (
        f"{file.path}: {what} is not supported; {supported} is. Take the tokenizer of the model that it was made from, and name the "
        "tokenizer apart."
    )


def _pre_tokenizer(split: str | None) -> Any:
    from tokenizers import pre_tokenizers, Regex

    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split in (None, "digits"))
    if split is None:
        return as_bytes
    first = (
        pre_tokenizers.Digits(individual_digits=True)
        if split == "digits"
        else pre_tokenizers.Split(Regex(split), "isolated")
    )
    return pre_tokenizers.Sequence([first, as_bytes])


def _putting(token: str, number: int) -> Any:
    """Puts a token before a text."""
    from tokenizers import processors

    return processors.TemplateProcessing(single=f"{token} $A", special_tokens=[(token, number)])

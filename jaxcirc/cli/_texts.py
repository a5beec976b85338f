"""One text, which commands are given as such or as token ids."""

import argparse
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._files import read_text
from .._words import counted
from ..data._encode import beginning, begun, check_beginnings
from ..interop import check_pretrained
from ._loading import add_bos_option, add_model_option, add_tokenizer_options, tokenizer_of
from ._options import existing_file
from ._screen import note


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of every command that runs a given model on one text."""
    add_model_option(parser)
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--prompt", metavar="TEXT", help="the text")
    text.add_argument(
        "--tokens",
        type=existing_file("--tokens"),
        metavar="FILE",
        help="token ids, taken as they are: JSON list, or .npy",
    )
    add_bos_option(
        parser,
        "before the text, unless it begins with it (it is put as the model's family is used to; the documentation has the rule)",
    )
    add_tokenizer_options(parser)


def tokens_of(arguments: argparse.Namespace) -> jax.Array:
    """Encodes the text, as the options of `add_text_options` name it; says how many, and whether a token was put before the text."""
    if arguments.prompt is None:
        check_pretrained(arguments.model, arguments.revision)
        return jnp.asarray(ids_of(arguments, rank=1), jnp.int32)
    tokenizer = tokenizer_of(arguments)
    text = _typed(arguments.prompt)
    ids, plain = encode_text(tokenizer, text, bos=arguments.bos), encode_text(tokenizer, text, bos=False)
    if not plain:
        raise ValueError("--prompt is empty. Expected a text.")
    begins = plain[0] == tokenizer.bos_token_id
    put = f"{tokenizer.bos_token} put before the text" if len(ids) > len(plain) else "the text as it stands"
    note(f"{counted(len(ids), 'token')}, {put}{f', which begins with {tokenizer.bos_token}' if begins else ''}")
    check_beginnings(tokenizer, [ids])
    return jnp.asarray(ids, jnp.int32)


def encode_text(tokenizer: Any, text: str, *, bos: bool | None = None) -> list[int]:
    """Encodes a text: its token ids behind what `beginning` says, which is not put before a text that begins with it."""
    return begun(tokenizer.encode(text, add_special_tokens=False), beginning(tokenizer, bos))


def _typed(text: str) -> str:
    """Decodes text as it was typed, in UTF-8, where the locale knows no such letters and Python has escaped its bytes."""
    if not any("\udc80" <= letter <= "\udcff" for letter in text):
        return text
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("--prompt is not text in UTF-8.") from None


def ids_of(arguments: argparse.Namespace, *, rank: int) -> np.ndarray:
    """Reads token ids out of the `.npy` file or JSON list of `--tokens`: of one prompt (`rank=1`), or of several alike (`rank=2`)."""
    if arguments.bos is not None:
        raise ValueError("--bos and --no-bos are about text; token ids are taken as they are. Leave the option out.")
    path = arguments.tokens
    with path.open("rb") as file:
        stored = file.read(6) == b"\x93NUMPY"
    text = "" if stored else read_text(path, expected="a JSON list of token ids, or a .npy file of them")
    try:
        ids = np.load(path) if stored else np.asarray(json.loads(text))
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is neither a JSON list of token ids nor a .npy file of them ({error}).") from None
    if ids.ndim != rank or not np.issubdtype(ids.dtype, np.integer):
        wanted, give = ("one list of", "one prompt") if rank == 1 else ("lists of", "several, of one length")
        raise ValueError(f"{path}: expected {wanted} token ids, got {ids.dtype}{list(ids.shape)}. Give {give}.")
    note(f"{path.name}: {' x '.join(map(str, ids.shape))} tokens, as they stand in the file")
    return ids

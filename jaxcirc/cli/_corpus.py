"""A corpus on the command line: a file of texts, of which a mean is taken."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from .._words import counted
from ..data import load_texts
from ..jacobian._means import opened
from ..models import Transformer
from ._common import add_bos_option, note
from ._loading import add_model_option, add_tokenizer_options
from ._options import count, existing_file


TEXTS_HELP = "file of texts: .txt with one a line, or a table with a column text, JSON lines, JSON, CSV, TSV or parquet"
Texts = Sequence[Int[np.ndarray, " _"]]


def add_corpus_options(parser: argparse.ArgumentParser, *, length: int | None = None, skip_first: int = 0) -> None:
    """Adds the options of every command that takes a mean over the positions of a file of texts, with these defaults."""
    of_length = length or "the model's context"
    add_model_option(parser)
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        required=True,
        type=existing_file("--prompts"),
        help=TEXTS_HELP,
    )
    parser.add_argument("--limit", type=count("--limit", "texts to use"), metavar="N", help="use the first N texts")
    parser.add_argument(
        "--length",
        type=count("--length", "tokens of a text"),
        default=length,
        metavar="N",
        help=f"tokens of a text, of which longer ones are cut ({of_length})",
    )
    parser.add_argument(
        "--skip-first",
        type=count("--skip-first", "positions to leave out", least=0),
        default=skip_first,
        metavar="N",
        help="positions left out at the beginning of each text (%(default)s)",
    )
    add_tokenizer_options(parser)
    add_bos_option(parser, "before each text (it is put where the model's tokenizer puts it by itself)")


def texts_of(arguments: argparse.Namespace, tokenizer: Any) -> Texts:
    """Reads the texts as the options name them. **Raises:** `ValueError` if no position of theirs is left."""
    texts = load_texts(arguments.prompts, tokenizer, limit=arguments.limit, length=arguments.length, bos=arguments.bos)
    if arguments.skip_first >= (longest := max(map(len, texts))):
        raise ValueError(
            f"--skip-first {arguments.skip_first} leaves nothing of {arguments.prompts}: its longest text has "
            f"{counted(longest, 'token')}. Leave out fewer."
        )
    return texts


def weighed_texts(
    arguments: argparse.Namespace, model: Transformer, texts: Texts
) -> list[tuple[Int[np.ndarray, " seq"], None, Float[np.ndarray, " seq"]]]:
    """Makes a corpus of the texts, cut to the model's context, whose first positions count for nothing if that is asked for."""
    long = sum(len(text) > model.n_ctx for text in texts)
    cut = [text[: model.n_ctx] for text in texts]
    counts = [(np.arange(len(text)) >= arguments.skip_first).astype(np.float64) for text in cut]
    if long:
        note(
            f"{counted(long, 'text')} of {len(texts)} cut to {model.n_ctx} tokens, the context of {model.name}; --length cuts more"
        )
    said = (
        f"{arguments.prompts.name}: {counted(len(texts), 'text')}, {counted(int(sum(map(np.sum, counts))), 'position')}"
    )
    note(f"{said} after the first {arguments.skip_first} of each" if arguments.skip_first else said)
    return [(text, None, weight) for text, weight in zip(cut, counts, strict=True)]


def check_place(path: Path | None, form: str, what: str) -> None:
    """ValueError for a file that is there already and holds something else, before anything is computed."""
    if path is not None and path.exists():
        opened(path, form, what)

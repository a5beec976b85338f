"""The model that commands are given, and its tokenizer."""

import argparse
from typing import Any

from ..interop import check_pretrained, from_pretrained
from ..interop._beginning import with_family
from ..interop._text_tokenizer import load_text_tokenizer
from ..models import Transformer
from ._timing import loaded


def load_model(arguments: argparse.Namespace) -> Transformer:
    """Loads the model that is asked for, after all else that is read."""
    model = from_pretrained(arguments.model, revision=arguments.revision)
    loaded()
    return model


def add_model_option(parser: argparse.ArgumentParser, *, required: bool = True, default: str | None = None) -> None:
    """Adds `--model`, which is `required` unless it has a default."""
    named = "a shipped model, a Hugging Face folder, or a Hub id" + (" (%(default)s)" if default else "")
    parser.add_argument("--model", metavar="MODEL", required=required and not default, default=default, help=named)


def add_tokenizer_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--tokenizer`, and `--revision` of the model and its tokenizer."""
    parser.add_argument("--tokenizer", metavar="TOKENIZER", help="where the tokenizer is, if not with the model")
    add_revision_option(parser)


def add_revision_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--revision`."""
    parser.add_argument("--revision", metavar="NAME", help="which revision of a Hub model")


def tokenizer_of(arguments: argparse.Namespace) -> Any:
    """Loads the tokenizer that was named, or the model's own at its revision. That there is such a model is looked at first: without one
    there is no tokenizer either, and what is missing is the model.
    """
    check_pretrained(arguments.model, arguments.revision)
    if arguments.tokenizer:
        return with_family(load_text_tokenizer(arguments.tokenizer), arguments.model, arguments.revision)
    return load_text_tokenizer(arguments.model, revision=arguments.revision)


def add_bos_option(parser: argparse.ArgumentParser, where: str) -> None:
    """Adds `--bos` and `--no-bos`; neither is the default that `where` states.

    One rule a family for all commands, as `jc.load_tokenizer` states it: the beginning-of-text token is put where the model's tokenizer
    puts it by itself, and of GPT-2 and GPT-Neo before a text of one's own; token ids of a file are taken as they stand.
    """
    parser.add_argument("--bos", action=argparse.BooleanOptionalAction, help=f"put the beginning-of-text token {where}")


def check_heads(model: Transformer, heads: list[tuple[int, int]]) -> None:
    """ValueError unless the model has every layer and head that `--head` names."""
    for layer, number in heads:
        if layer >= model.n_layers or number >= model.n_heads:
            raise ValueError(
                f"--head: {model.name} has layers 0 to {model.n_layers - 1} and heads 0 to {model.n_heads - 1}; got {layer}.{number}."
            )

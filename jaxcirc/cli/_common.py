"""What the commands share: pairs of prompts, from a file or made, and what the files beside this one hold."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from .._sites import Site
from .._words import counted
from ..data import ioi, load_prompts, Prompts
from ..data._encode import beginning
from ..interop import check_saes, load_saes
from ..models import Transformer
from ..saes import AbstractDictionary
from ._found_circuit import (
    add_circuit_options as add_circuit_options,
    deliver as deliver,
    find_circuit as find_circuit,
    given_again as given_again,
    METHODS as METHODS,
    show_circuit as show_circuit,
)
from ._loading import (
    add_bos_option as add_bos_option,
    add_model_option,
    add_tokenizer_options,
    load_model as load_model,
    tokenizer_of as tokenizer_of,
)
from ._options import count, existing_file
from ._results import progress_bar as progress_bar, say_json as say_json
from ._screen import note as note
from ._texts import (
    add_text_options as add_text_options,
    encode_text as encode_text,
    ids_of as ids_of,
    tokens_of as tokens_of,
)


Subparsers = Any  # argparse keeps the class of add_subparsers' result to itself


def add_prompt_options(
    parser: argparse.ArgumentParser,
    *,
    prompts: str = "file of prompt pairs",
    dictionaries: bool = True,
    required: bool = True,
    batches: bool = True,
    model: bool = True,
) -> None:
    """Adds the options of every command that runs a given model, with `dictionaries` or without, on the prompts of a file; `prompts`
    explains the file, which is `required` unless they may come from elsewhere. Without `batches` all are in memory at once. With `model`
    false the command does something without one, too, and nothing is required.
    """
    add_model_option(parser, required=model)
    if dictionaries:
        parser.add_argument(
            "--saes", metavar="DICTIONARIES", required=model, help="a shipped model's name, or a folder of dictionaries"
        )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        required=required and model,
        type=existing_file("--prompts"),
        help=f"{prompts}: JSON lines, JSON, CSV, TSV or parquet",
    )
    add_tokenizer_options(parser)
    parser.add_argument(
        "--limit", type=count("--limit", "prompt pairs to use"), metavar="N", help="use the first N prompt pairs"
    )
    parser.add_argument(
        "--skip-unusable", action="store_true", help="leave out pairs that do not align or whose answers are split"
    )
    parser.add_argument("--first-answer", action="store_true", help="of several answers of a prompt take the first")
    add_bos_option(
        parser,
        "before each prompt (it is put where the model's tokenizer puts it by itself, as what is published was measured)",
    )
    if batches:
        parser.add_argument(
            "--batch-size",
            type=count("--batch-size", "prompt pairs are in memory at once"),
            metavar="N",
            help="prompt pairs in memory at once (all)",
        )


def load_given(
    arguments: argparse.Namespace,
) -> tuple[Transformer, dict[Site, AbstractDictionary], Prompts, Any]:
    """Loads model, dictionaries, prompts and tokenizer, as the options of `add_prompt_options` name them."""
    # The prompts first, and a model last: what is wrong with the others shows before a large one is read.
    check_saes(arguments.saes)
    tokenizer = tokenizer_of(arguments)
    prompts = load_prompt_file(arguments, tokenizer)
    saes = load_saes(arguments.saes)
    return load_model(arguments), saes, prompts, tokenizer


def load_prompt_file(arguments: argparse.Namespace, tokenizer: Any, path: Path | None = None) -> Prompts:
    """Loads the prompts that are asked for, or those of another file in the same way."""
    file: Path = arguments.prompts if path is None else path
    put_there = bool(beginning(tokenizer, arguments.bos, of_file=True))
    prompts = load_prompts(
        file,
        tokenizer,
        limit=arguments.limit,
        skip_unusable=arguments.skip_unusable,
        bos=put_there,
        first_answer=arguments.first_answer,
    )
    lengths = np.unique(np.asarray(prompts.positions["end"]) + 1)
    size = f"{lengths[0]} tokens" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]} tokens"
    put = (
        f"{tokenizer.bos_token} put before each prompt that lacks it"
        if put_there
        else "prompts as they stand in the file"
    )
    note(f"{file.name}: {counted(len(prompts), 'pair')} of {size}, {put}")
    return prompts


def add_ioi_option(parser: argparse.ArgumentParser, group: argparse._ActionsContainer | None = None) -> None:
    """Adds `--ioi`, in place of a file of prompts, to a group of options if there is one, and `--seed`."""
    (parser if group is None else group).add_argument(
        "--ioi",
        type=count("--ioi", "indirect-object prompts are made", least=2),
        metavar="N",
        help="make so many indirect-object prompts instead, in both orders of names; they have positions IO, S1, S1+1, S2 and end",
    )
    add_seed_option(parser)


def add_seed_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--seed`, of all that is made or drawn at random."""
    parser.add_argument(
        "--seed",
        type=count("--seed", "to begin random numbers with", least=0),
        default=0,
        metavar="N",
        help="the same seed makes and draws the same (%(default)s)",
    )


def check_prompts_or_ioi(arguments: argparse.Namespace) -> None:
    """ValueError unless a file of prompts or `--ioi` is asked for, and not both."""
    if (arguments.prompts is None) == (arguments.ioi is None):
        raise ValueError("one of the arguments --prompts and --ioi is required, and not both.")


def prompts_or_ioi(arguments: argparse.Namespace, tokenizer: Any, **options: Any) -> Prompts:
    """Loads the prompts of the file, or makes those that `--ioi` asks for, with the `options` of `jc.data.ioi`."""
    if arguments.prompts is not None:
        return load_prompt_file(arguments, tokenizer)
    prompts = ioi(tokenizer, arguments.ioi, template="mixed", seed=arguments.seed, bos=arguments.bos, **options)
    note(f"{counted(len(prompts), 'indirect-object prompt')} of {prompts.clean.shape[1]} tokens")
    return prompts

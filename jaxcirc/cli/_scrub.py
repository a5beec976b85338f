"""`jaxcirc scrub`: how much of a behaviour is left where all is resampled that a hypothesis says does not matter."""

import argparse
import math
from typing import Any

import jax

from .._words import counted
from ..models import Transformer
from ..scrubbing import load_hypothesis, Scrub, scrub
from ._common import (
    add_ioi_option,
    add_prompt_options,
    check_prompts_or_ioi,
    load_model,
    progress_bar,
    prompts_or_ioi,
    say_json,
    Subparsers,
    tokenizer_of,
)
from ._options import count, existing_file


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "scrub",
        help="test a hypothesis by resampling all that it says does not matter",
        description="Causal scrubbing: the metric with everything resampled that a hypothesis says does not matter, and how much of it is "
        "left. The hypothesis is a TOML file, a tree of claims from the logits down.",
        epilog="example: jaxcirc scrub hypothesis.toml --model tiny-gpt2 --ioi 40",
    )
    parser.add_argument("hypothesis", type=existing_file("hypothesis"), help="TOML file of claims")
    about = "file of prompt pairs, of which the clean ones are taken"
    add_prompt_options(parser, dictionaries=False, prompts=about, required=False, batches=False)
    add_ioi_option(parser)
    parser.add_argument(
        "--samples",
        type=count("--samples", "times data are drawn for each prompt"),
        default=10,
        metavar="N",
        help="how often data are drawn for each prompt (%(default)s)",
    )
    parser.set_defaults(command=scrub_file)


def scrub_file(arguments: argparse.Namespace) -> int:
    check_prompts_or_ioi(arguments)
    hypothesis = load_hypothesis(arguments.hypothesis)
    tokenizer = tokenizer_of(arguments)
    prompts = prompts_or_ioi(arguments, tokenizer)
    model = load_model(arguments)
    with progress_bar() as progress:
        found = scrub(
            model,
            hypothesis,
            prompts,
            prompts.metric(),
            jax.random.key(arguments.seed),
            samples=arguments.samples,
            progress=progress,
        )
    if arguments.json:
        say_json(_summary(model, found))
    else:
        _show(model, found)
    return 0


def _summary(model: Transformer, found: Scrub) -> dict[str, Any]:
    numbers = {
        "metric": found.mean,
        "standard_error": found.standard_error,
        "reference": float(found.reference.mean()),
        "baseline": float(found.baseline.mean()),
        "recovered": found.recovered,
        "recovered_standard_error": found.recovered_standard_error,
        "equal": float(found.equal.mean()),
    }
    samples, prompts = found.values.shape
    return {
        "model": model.name,
        "prompts": prompts,
        "samples": samples,
        **{name: None if math.isnan(value) else value for name, value in numbers.items()},
        "runs": found.runs,
        "claims": [row._asdict() for row in found.claims],
    }


def _show(model: Transformer, found: Scrub) -> None:
    said = _summary(model, found)
    error = lambda name, form: "" if said[name] is None else f" ± {said[name]:{form}}"
    print(f"{counted(said['prompts'], 'prompt')} on {model.name}, {counted(said['samples'], 'sample')} of each\n")
    print(f"metric, as it is      {said['reference']:+z8.3f}")
    print(f"metric, scrubbed      {said['metric']:+z8.3f}{error('standard_error', 'z.3f')}")
    print(f"metric, all resampled {said['baseline']:+z8.3f}")
    if said["recovered"] is not None:
        print(f"recovered             {said['recovered']:z8.1%}{error('recovered_standard_error', 'z.1%')}")
    print(f"\nall as it is in {said['equal']:.1%} of the runs; {counted(said['runs'], 'component')} run anew\n")
    print(f"{'claim':<32} {'data':>5}  itself")
    for row in said["claims"]:
        depth = row["path"].count("/")
        print(f"{'  ' * depth + row['path'].rpartition('/')[2]:<32} {row['data']:>5} {row['itself']:7.1%}")
    print("\ndata: how many were drawn; itself: how often it was the prompt itself, by which nothing is tested")

"""`jaxcirc discover`: a circuit of your model, your dictionaries and your prompts."""

import argparse
from pathlib import Path

from ..circuits import check_output
from ._common import add_circuit_options, add_prompt_options, deliver, find_circuit, load_given, Subparsers


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "discover",
        help="find the circuit of a prompts file",
        description="Finds the sparse feature circuit of the prompts in a file, and saves and draws it.",
        epilog=(
            "The prompts file has one JSON object a line: clean_prefix, patch_prefix, clean_answer, patch_answer. "
            "example: jaxcirc discover --model tiny-gpt2 --saes tiny-gpt2 --prompts prompts.jsonl --out circuit"
        ),
    )
    add_prompt_options(parser)
    parser.add_argument("--out", type=Path, default=Path("circuit"), help="folder for the circuit (%(default)s)")
    parser.add_argument("--positions", action="store_true", help="keep positions apart, for prompts that align")
    parser.add_argument(
        "--thresholds",
        choices=("averages", "instances"),
        default="averages",
        help="edges into every instance of a node that is kept, or into those above the threshold themselves (%(default)s)",
    )
    add_circuit_options(parser, node_threshold=0.1, edge_threshold=0.02)
    parser.set_defaults(command=discover_file)


def discover_file(arguments: argparse.Namespace) -> int:
    check_output(arguments.out)
    model, saes, prompts, tokenizer = load_given(arguments)
    options = {name: getattr(arguments, name) for name in ("positions", "thresholds", "batch_size")}
    circuit = find_circuit(arguments, model, saes, prompts, tokenizer, **options)
    deliver(circuit.annotate(prompts_file=arguments.prompts.name), arguments)
    return 0

"""`jaxcirc discover`: a circuit of your model, your dictionaries and your prompts."""

import argparse
from pathlib import Path

from .. import data
from ..circuits import check_output
from ..interop import from_pretrained, load_saes, load_tokenizer
from ._common import add_circuit_options, deliver, find_circuit, Subparsers


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
    parser.add_argument("--model", required=True, help="a shipped model, a Hugging Face folder, or a Hub id")
    parser.add_argument("--saes", required=True, help="a shipped model's name, or a folder of dictionaries")
    parser.add_argument("--prompts", required=True, type=Path, help="JSON-lines file of prompt pairs")
    parser.add_argument("--out", type=Path, default=Path("circuit"), help="folder for the circuit (%(default)s)")
    parser.add_argument("--tokenizer", help="where the tokenizer is, if not with the model")
    parser.add_argument("--revision", help="which revision of a Hub model")
    parser.add_argument("--limit", type=int, metavar="N", help="use the first N prompt pairs")
    parser.add_argument(
        "--skip-unusable", action="store_true", help="leave out pairs that do not align or whose answers are split"
    )
    parser.add_argument("--positions", action="store_true", help="keep positions apart, for prompts that align")
    parser.add_argument("--batch-size", type=int, metavar="N", help="prompt pairs in memory at once (all)")
    add_circuit_options(parser, node_threshold=0.1, edge_threshold=0.02)
    parser.set_defaults(command=discover_file)


def discover_file(arguments: argparse.Namespace) -> int:
    check_output(arguments.out)
    tokenizer = load_tokenizer(arguments.tokenizer or arguments.model)
    prompts = data.load_prompts(
        arguments.prompts, tokenizer, limit=arguments.limit, skip_unusable=arguments.skip_unusable
    )
    model, saes = from_pretrained(arguments.model, revision=arguments.revision), load_saes(arguments.saes)
    circuit = find_circuit(
        arguments, model, saes, prompts, tokenizer, positions=arguments.positions, batch_size=arguments.batch_size
    )
    deliver(circuit.annotate(prompts_file=arguments.prompts.name), arguments)
    return 0

"""`jaxcirc discover`: a circuit of your model, your dictionaries and your prompts."""

import argparse

from ..circuits import Circuit, prune
from ._common import (
    add_circuit_options,
    add_prompt_options,
    deliver,
    find_circuit,
    given_again,
    load_given,
    progress_bar,
    Subparsers,
)
from ._found_circuit import about_pruning
from ._options import new_circuit, share


LOOKING = {"node_threshold": 0.1, "edge_threshold": 0.02}  # shows the strongest parts
WIDE = {"node_threshold": 0.01, "edge_threshold": 0.0003}  # to be pruned


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
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=new_circuit("--out"),
        default="circuit",
        help="folder for the circuit (%(default)s)",
    )
    parser.add_argument("--by-position", action="store_true", help="keep positions apart, for prompts that align")
    parser.add_argument(
        "--thresholds",
        choices=("averages", "instances"),
        default="averages",
        help="edges into every instance of a node that is kept, or into those above the threshold themselves (%(default)s)",
    )
    add_circuit_options(parser, **LOOKING)
    parser.add_argument(
        "--faithfulness",
        type=share("--faithfulness", "change of the metric"),
        metavar="X",
        help=(
            "raise a threshold until the circuit alone just recovers this share of the metric, such as 0.8; it begins at --node-threshold "
            f"and --edge-threshold, by default then {WIDE['node_threshold']:g} and {WIDE['edge_threshold']:g}"
        ),
    )
    parser.add_argument(
        "--level", choices=("nodes", "edges"), help="nodes or edges: what is to recover it, of --faithfulness (edges)"
    )
    parser.set_defaults(command=discover_file, **dict.fromkeys(LOOKING))  # thresholds go by what is asked for


def discover_file(arguments: argparse.Namespace) -> int:
    if arguments.faithfulness is None and arguments.level is not None:
        raise ValueError(f"--level {arguments.level} says what --faithfulness is of. Give both, or neither.")
    for name, default in (LOOKING if arguments.faithfulness is None else WIDE).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
    model, saes, prompts, tokenizer = load_given(arguments)
    options = {name: getattr(arguments, name) for name in ("thresholds", "batch_size")}
    options |= {"positions": arguments.by_position}
    circuit = find_circuit(arguments, model, saes, prompts, tokenizer, **options)
    if arguments.faithfulness is not None:
        with progress_bar() as progress:
            circuit = prune(
                circuit,
                model,
                saes,
                prompts.clean,
                prompts.corrupt,
                prompts.metric(),
                faithfulness=arguments.faithfulness,
                level=arguments.level or "edges",
                batch_size=arguments.batch_size,
                mask=prompts.mask,
                progress=progress,
            )
    deliver(circuit.annotate(prompts_file=arguments.prompts.name), arguments, given_again(arguments))
    if not arguments.json:
        print(_about_thresholds(circuit))
    return 0


def _about_thresholds(circuit: Circuit) -> str:
    if circuit.meta.pruned is None:
        return (
            f"Thresholds of {circuit.meta.node_threshold:g} and {circuit.meta.edge_threshold:g} are for looking at the strongest "
            "parts: the nodes may carry most of the behaviour, but these edges alone carry little of it. For a circuit that carries 0.8 by "
            "its edges, add --faithfulness 0.8."
        )
    return about_pruning(circuit, "pairs that it was found on; an honest number is that of others")

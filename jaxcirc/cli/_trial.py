"""A saved circuit, tried on the prompts of a file: what the commands that ask something of it share."""

import argparse

from ..circuits import Circuit, MeanAblation, ResampleAblation, Trial, ZeroAblation
from ._common import add_prompt_options, load_given, Subparsers
from ._options import count, existing_folder


ABLATIONS = {"mean": MeanAblation, "zero": ZeroAblation, "resample": ResampleAblation}
METRIC = "logit difference"


def add_circuit_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--circuit`, the folder of a circuit."""
    parser.add_argument(
        "--circuit",
        metavar="FOLDER",
        required=True,
        type=existing_folder("--circuit"),
        help="folder that `jaxcirc discover` wrote",
    )


def add_trial(
    subparsers: Subparsers, name: str, *, help: str, description: str, example: str, level: str = "nodes"
) -> argparse.ArgumentParser:
    """Adds a command that runs parts of a saved circuit on prompts, with the options that all of these have."""
    parser = subparsers.add_parser(
        name,
        help=help,
        description=description,
        epilog=f"example: jaxcirc {name} --circuit circuit --model tiny-gpt2 --saes tiny-gpt2 --prompts held-out.jsonl {example}",
    )
    add_circuit_option(parser)
    add_prompt_options(parser, prompts="file of prompt pairs, best not the circuit's own")
    parser.add_argument(
        "--level", choices=("nodes", "edges"), default=level, help="nodes or edges: what is ablated (%(default)s)"
    )
    parser.add_argument(
        "--ablation", choices=ABLATIONS, default="mean", help="to what (%(default)s, of the corrupt prompts)"
    )
    parser.add_argument(
        "--start-layer",
        type=count("--start-layer", "layers to leave alone", least=0),
        default=0,
        metavar="N",
        help="leave earlier layers alone (%(default)s)",
    )
    parser.add_argument(
        "--errors",
        choices=("default", "keep", "remove"),
        default="default",
        help="what happens to error nodes (%(default)s)",
    )
    return parser


def load_trial(arguments: argparse.Namespace, verb: str) -> Trial:
    """Loads the circuit, and all that it is tried on, as the options of `add_trial` name them."""
    circuit = Circuit.load(arguments.circuit)
    model, saes, prompts, _ = load_given(arguments)
    return Trial(
        circuit,
        model,
        saes,
        prompts.clean,
        prompts.corrupt,
        prompts.metric(),
        level=arguments.level,
        ablation=ABLATIONS[arguments.ablation](),
        start_layer=arguments.start_layer,
        errors=arguments.errors,
        batch_size=arguments.batch_size,
        mask=prompts.mask,
        verb=verb,
    )

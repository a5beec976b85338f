"""`jaxcirc lens fit | show | merge | convert`: the Jacobian lens."""

import argparse
from typing import Any

from .._words import counted
from ..lens import JacobianLens
from . import _lens_fit, _lens_show
from ._common import say_json, Subparsers
from ._lens_file import add_out
from ._options import existing_file


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "lens",
        help="the Jacobian lens: fit, show, merge, convert",
        description="The Jacobian lens carries the residual stream of each layer to the last by the mean Jacobian, and reads it there.",
        epilog="example: jaxcirc lens fit --model tiny-gpt2 --prompts texts.txt --out lens.safetensors",
    )
    parts = parser.add_subparsers(metavar="PART", required=True)
    _lens_fit.add(parts)
    _lens_show.add(parts)
    _add_merge(parts)
    _add_convert(parts)


def _add_merge(parts: Subparsers) -> None:
    parser = parts.add_parser(
        "merge",
        help="one lens of several",
        description="Merges lenses that were fitted to other texts in the same way: the lens of all texts.",
        epilog="example: jaxcirc lens merge first.safetensors second.safetensors --out lens.safetensors",
    )
    parser.add_argument("lenses", nargs="+", type=existing_file("lenses"), help="the lenses")
    add_out(parser)
    parser.set_defaults(command=merge)


def _add_convert(parts: Subparsers) -> None:
    parser = parts.add_parser(
        "convert",
        help="a published file as one of ours, or the other way round",
        description="Reads a lens, or a checkpoint of one, and writes it as the suffix says: .safetensors, or .pt as it is published.",
        epilog="example: jaxcirc lens convert published.pt --out lens.safetensors",
    )
    parser.add_argument("lens", type=existing_file("lens"), help="the lens")
    add_out(parser)
    parser.set_defaults(command=convert)


def merge(arguments: argparse.Namespace) -> int:
    lens = JacobianLens.merge([JacobianLens.load(path) for path in arguments.lenses])
    lens.save(arguments.out)
    if arguments.json:
        say_json({"lenses": len(arguments.lenses), **_about(lens, arguments)})
    else:
        print(f"{counted(len(arguments.lenses), 'lens')} of {counted(lens.n_prompts, 'prompt')} in {arguments.out}.")
    return 0


def convert(arguments: argparse.Namespace) -> int:
    lens = JacobianLens.load(arguments.lens)
    lens.save(arguments.out)
    if arguments.json:
        say_json(_about(lens, arguments))
        return 0
    layers = f"layers {lens.layers[0]} to {lens.layers[-1]}, to the output of {_target(lens)}"
    print(f"{layers}, {counted(lens.n_prompts, 'prompt')}, in {arguments.out}.")
    return 0


def _target(lens: JacobianLens) -> str:
    return "the last layer" if lens.target_layer == -1 else f"layer {lens.target_layer}"


def _about(lens: JacobianLens, arguments: argparse.Namespace) -> dict[str, Any]:
    """What was written."""
    return {
        "prompts": lens.n_prompts,
        "layers": list(lens.layers),
        "target_layer": lens.target_layer,
        "out": str(arguments.out),
    }

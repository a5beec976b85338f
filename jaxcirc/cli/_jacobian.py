"""`jaxcirc jacobian`: the Jacobian between two sites of a model, for one prompt."""

import argparse
from typing import Any

import numpy as np

from .. import jacobian as jac
from ..interop import check_saes, load_saes
from ..jacobian._save import check_free, saved_already
from ._common import add_text_options, load_model, progress_bar, say_json, Subparsers, tokens_of
from ._frozen import held, SAID
from ._options import new_file, site, whole_number
from ._results import add_top_option


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "jacobian",
        help="the Jacobian between two sites",
        description="Computes the Jacobian of the value at one site with respect to that at another, for one prompt: its shape, norms, "
        "leading singular values and measured error; with --out the matrix too.",
        epilog="example: jaxcirc jacobian --model tiny-gpt2 --prompt 'The teachers that the doctor likes' "
        "--source blocks.0.hook_resid_pre --target blocks.3.hook_resid_post --target-positions -1 --out jacobian.safetensors",
    )
    add_text_options(parser)
    parser.add_argument(
        "--source", required=True, type=site("--source"), metavar="SITE", help="such as blocks.0.hook_resid_pre"
    )
    parser.add_argument(
        "--target", required=True, type=site("--target"), metavar="SITE", help="such as blocks.3.hook_resid_post"
    )
    parser.add_argument(
        "--source-positions",
        type=whole_number("--source-positions"),
        nargs="+",
        metavar="P",
        help="only these positions of the source, from the end if negative (all)",
    )
    parser.add_argument(
        "--target-positions",
        type=whole_number("--target-positions"),
        nargs="+",
        metavar="P",
        help="only these positions of the target, from the end if negative (all)",
    )
    parser.add_argument(
        "--freeze",
        nargs="+",
        default=[],
        metavar="WHAT",
        help=f"what is held: {SAID}; between, which is all between the ends; or any sites (nothing)",
    )
    parser.add_argument(
        "--saes",
        metavar="DICTIONARIES",
        help="a shipped model's name, or a folder of dictionaries, for ends that are latents or errors",
    )
    parser.add_argument(
        "--method",
        choices=("auto", "autodiff", "structured"),
        default="auto",
        help="how it is computed: structured is in closed form, auto takes that where there is one (%(default)s)",
    )
    add_top_option(parser, "singular values", 8)
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=new_file("--out", ".safetensors"),
        help="file for the matrix, .safetensors; interrupted work goes on where it was",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a Jacobian that --out holds")
    parser.set_defaults(command=jacobian)


def jacobian(arguments: argparse.Namespace) -> int:
    if arguments.out:
        check_free(arguments.out)
    if arguments.saes:
        check_saes(arguments.saes)
    tokens = tokens_of(arguments)
    saes = load_saes(arguments.saes) if arguments.saes else {}
    model = load_model(arguments)
    frozen = held((what for what in arguments.freeze if what != "between"), model)
    if "between" in arguments.freeze:
        frozen |= jac.frozen.between(model, arguments.source, arguments.target)
    J = jac.edge(
        model,
        tokens,
        arguments.source,
        arguments.target,
        frozen=frozen,
        saes=saes,
        source_pos=arguments.source_positions,
        target_pos=arguments.target_positions,
        engine=arguments.method,
    )
    result = _measure(J, arguments)
    if arguments.json:
        say_json(result)
        return 0
    print(
        f"{result['target']} {result['target_shape']} by {result['source']} {result['source_shape']}, {result['engine']}"
    )
    print(f"Frobenius norm {result['frobenius']}, spectral norm {result['singular_values'][0]:z.6g}")
    print("singular values  " + "  ".join(f"{value:z.4g}" for value in result["singular_values"]))
    print("norm from position  " + "  ".join(f"{norm:z.3g}" for norm in result["norm_by_source"]))
    print(f"certificate: {result['said']}")
    if arguments.out:
        if result["computed"]:
            print(f"saved to {arguments.out}: any reader of safetensors opens it.")
        else:
            print(f"{arguments.out} held this Jacobian already, so it was not computed again; --overwrite does.")
    return 0


def _measure(J: jac.EdgeJacobian, arguments: argparse.Namespace) -> dict[str, Any]:
    there = arguments.out is not None and saved_already(J, arguments.out, overwrite=arguments.overwrite)
    if arguments.out:
        with progress_bar() as progress:
            certificate = jac.save_jacobian(J, arguments.out, overwrite=arguments.overwrite, progress=progress)
        matrix = jac.load_jacobian(arguments.out).matrix
    else:
        matrix = np.asarray(J.as_matrix())
        certificate = J.certificate(matrix=matrix)
    size = min(int(np.prod(J.source_shape)), int(np.prod(J.target_shape)))
    _, values, _ = J.svd(min(arguments.top, size))
    # One target position at a time, because the matrix may be larger than memory.
    axes = tuple(axis for axis in range(len(J.source_shape)) if axis != 0)
    squares = sum(
        np.sum(np.asarray(row, np.float64) ** 2, axis=tuple(range(row.ndim - len(J.source_shape)))).sum(axes)
        for row in matrix
    )
    return {
        "source": str(J.source),
        "target": str(J.target),
        "source_shape": list(J.source_shape),
        "target_shape": list(J.target_shape),
        "engine": jac.select(J, "matrix"),
        "frobenius": float(f"{np.sqrt(np.sum(squares)):z.6g}"),
        "singular_values": [float(value) for value in values],
        "norm_by_source": [float(norm) for norm in np.sqrt(squares)],
        "certificate": certificate.as_dict(),
        "said": str(certificate),
        "out": str(arguments.out) if arguments.out else None,
        "computed": not there,
    }

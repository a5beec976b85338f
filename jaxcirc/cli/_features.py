"""`jaxcirc features`: the latents of one dictionary by those of an earlier one, for one prompt."""

import argparse

import numpy as np

from .._tokens import token_texts
from ..features import feature_jacobian, FeatureJacobian, steer_features
from ..features._ends import SIDES
from ..interop import check_saes, load_saes
from ..view import draw_features
from ._common import add_text_options, load_model, progress_bar, say_json, Subparsers, tokenizer_of, tokens_of
from ._options import figure, number, one_of, site, threshold
from ._results import add_top_option


PAIRS = ("same", "all")


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "features",
        help="latents of one dictionary by latents of an earlier one",
        description="Computes the derivatives of the latents at one site by those at an earlier one, of those that are on, for one "
        "prompt; moves the sources of the strongest pairs, and compares.",
        epilog="example: jaxcirc features --model tiny-gpt-neo --saes tiny-gpt-neo --prompt 'The teachers that the doctor likes' "
        "--source blocks.0.mlp.hook_post --target blocks.1.mlp.hook_post --minimum 0.1 --plot features.svg",
    )
    add_text_options(parser)
    parser.add_argument(
        "--saes", metavar="DICTIONARIES", required=True, help="a shipped model's name, or a folder of dictionaries"
    )
    parser.add_argument(
        "--source", required=True, type=site("--source"), metavar="SITE", help="such as blocks.0.mlp.hook_post"
    )
    parser.add_argument(
        "--target", required=True, type=site("--target"), metavar="SITE", help="such as blocks.1.mlp.hook_post"
    )
    parser.add_argument(
        "--minimum",
        type=threshold("--minimum"),
        default=1.0,
        metavar="X",
        help="only latents above this, which are on (%(default)s)",
    )
    parser.add_argument(
        "--pairs",
        type=one_of("--pairs", PAIRS),
        choices=PAIRS,
        default="same",
        help="pairs at the same position, or all (%(default)s)",
    )
    parser.add_argument(
        "--substitute",
        nargs="*",
        type=one_of("--substitute", SIDES, says="names {}, both or none"),
        choices=SIDES,
        default=list(SIDES),
        metavar="SIDE",
        help="whose reconstruction is put in place of its site: source, target, or with nothing behind it none (both)",
    )
    add_top_option(parser, "pairs", 12)
    parser.add_argument(
        "--step",
        type=number("--step"),
        default=0.1,
        metavar="X",
        help="how far their sources are moved (%(default)s)",
    )
    parser.add_argument(
        "--plot",
        type=figure("--plot"),
        metavar="FILE",
        help="draw the distribution of gradients, and cosines, as SVG, PDF or PNG",
    )
    parser.set_defaults(command=features)


def features(arguments: argparse.Namespace) -> int:
    check_saes(arguments.saes)
    tokens, saes = tokens_of(arguments), load_saes(arguments.saes)
    model = load_model(arguments)
    with progress_bar() as progress:
        J = feature_jacobian(
            model,
            saes,
            tokens,
            arguments.source,
            arguments.target,
            minimum=arguments.minimum,
            positions=arguments.pairs,
            substitute=arguments.substitute,
            progress=progress,
        )
    strongest = J.strongest(arguments.top)
    table = steer_features(J, model, saes, tokens, rows=strongest, steps=[arguments.step])
    table.insert(4, "gradient", J.gradient[strongest])
    table.insert(5, "cosine", J.cosine[strongest])
    if arguments.prompt is not None:
        at = np.asarray(tokens)[table["position"].to_numpy()]
        table.insert(1, "token", token_texts(tokenizer_of(arguments), at))
    if arguments.plot:
        draw_features(J, arguments.plot)
    if arguments.json:
        rows = (
            table.astype(object).where(table.notna(), None).to_dict("records")
        )  # a cosine that is not defined is null
        say_json({**_summary(J), "rows": rows, "plot": str(arguments.plot) if arguments.plot else None})
        return 0
    _show(J, table)
    if arguments.plot:
        print(f"\ndrawn in {arguments.plot}.")
    return 0


def _summary(J: FeatureJacobian) -> dict:
    correlation = J.correlation()._asdict() if len(J) > 1 and J.has_cosine else None
    return {
        "source": str(J.source_site),
        "target": str(J.target_site),
        "positions": J.positions,
        "minimum": J.minimum,
        "substitute": list(J.substitute),
        "pairs": len(J),
        "correlation": correlation,
    }


def _show(J: FeatureJacobian, table) -> None:
    print(repr(J))
    if len(J) > 1 and J.has_cosine:
        correlation = J.correlation()
        print(f"|gradient| with |cosine|: Pearson {correlation.pearson:z.3f}, Spearman {correlation.spearman:z.3f}")
    print(f"\nstrongest pairs, and what the target does when its source is moved by {table['step'][0]:g}")
    beside = ["step", *(["source_position"] if J.positions == "same" else [])]
    print(table.drop(columns=beside).to_string(index=False, float_format="{:+z.4f}".format))

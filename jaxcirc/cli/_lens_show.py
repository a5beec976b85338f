"""`jaxcirc lens show`: a prompt read through a Jacobian lens."""

import argparse
import functools as ft
from typing import Any

import numpy as np

from .._figures import COLOURED_BY
from .._tokens import token_text
from .._words import counted
from ..lens import JacobianLens
from ._common import add_text_options, load_model, say_json, Subparsers, tokenizer_of, tokens_of
from ._edges import check_known_tokens, token_of
from ._logit_lens import position_of
from ._options import existing_file, figure, whole_number
from ._results import add_top_option


def add(parts: Subparsers) -> None:
    parser = parts.add_parser(
        "show",
        help="read a prompt through a lens",
        description="What each layer would say of each position: the strongest tokens, and the rank of the token that follows, by the lens "
        "and by the logit lens.",
        epilog="example: jaxcirc lens show lens.safetensors --model tiny-gpt2 --prompt 'The teachers that the doctor likes are' "
        "--plot lens.svg",
    )
    parser.add_argument("lens", type=existing_file("lens"), help="the lens: a .safetensors or a published .pt file")
    add_text_options(parser)
    add_top_option(parser, "tokens", 3)
    parser.add_argument("--rank-of", metavar="TOKEN", help="also the ranks of this token: its text, or its id")
    parser.add_argument(
        "--position",
        type=whole_number("--position"),
        default=-1,
        metavar="P",
        help="the position that is printed, from the end if negative (%(default)s)",
    )
    parser.add_argument("--plot", type=figure("--plot"), metavar="FILE", help="draw all positions, as SVG, PDF or PNG")
    parser.add_argument("--colour", choices=COLOURED_BY, default="rank", help="of what is drawn (%(default)s)")
    parser.set_defaults(command=show)


def show(arguments: argparse.Namespace) -> int:
    lens = JacobianLens.load(arguments.lens)
    tokens = tokens_of(arguments)
    tokenizer = None if arguments.prompt is None else tokenizer_of(arguments)
    chosen = token_of(tokenizer, "--rank-of", arguments.rank_of)
    at = position_of("--position", arguments.position, len(tokens))
    model = load_model(arguments)
    check_known_tokens(model, {"--rank-of": chosen})
    read = lens.readout(model, tokens, arguments.top, ranks_of=[] if chosen is None else [chosen])
    if arguments.plot:
        lens.plot(model, tokens, tokenizer, colour=arguments.colour, path=arguments.plot)
    text = ft.partial(token_text, tokenizer)
    rows = [_row(read, i, at, text, chosen is not None) for i in range(len(read.layers))]
    if arguments.json:
        place = {
            "position": at,
            "token": text(int(tokens[at])),
            "plot": str(arguments.plot) if arguments.plot else None,
        }
        say_json({"model": model.name, "prompts": lens.n_prompts, **place, "rows": rows})
        return 0
    print(f"{model.name} at {at} {text(int(tokens[at]))!r}, read by a lens of {counted(lens.n_prompts, 'prompt')}\n")
    follows = at + 1 < len(tokens)
    header = f"layer{'  next: lens  logit lens' * follows}{'  rank of token' * (chosen is not None)}  strongest"
    print(header)
    for row in reversed(rows):
        ranks = f"{row['next_rank']:>12}{row['logit_lens_rank']:>12}" if follows else ""
        own = f"{row['rank']:>15}" if chosen is not None else ""
        print(f"{row['layer']:>5}{ranks}{own}  " + "  ".join(f"{t!r} {v:z.2f}" for t, v in row["top"]))
    if arguments.plot:
        print(f"\ndrawn in {arguments.plot}.")
    return 0


def _row(read: Any, i: int, at: int, text: Any, ranked: bool) -> dict[str, Any]:
    """What one layer reads at one position."""
    strongest = zip(np.asarray(read.tokens[i, at]).tolist(), np.asarray(read.logits[i, at]).tolist(), strict=True)
    follows = at < read.next_rank.shape[1]
    return {
        "layer": read.layers[i],
        "next_rank": int(read.next_rank[i, at]) if follows else None,
        "logit_lens_rank": int(read.logit_lens_rank[i, at]) if follows else None,
        "rank": int(read.ranks[i, at, 0]) if ranked else None,
        "entropy": float(read.entropy[i, at]),
        "top": [(text(token), value) for token, value in strongest],
    }

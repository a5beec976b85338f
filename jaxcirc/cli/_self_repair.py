"""`jaxcirc self-repair`: what later heads do about a head that is ablated."""

import argparse
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from .. import data
from .._words import counted
from ..components import OLS, Resample, self_repair, SelfRepair
from ..components._parts import check_head
from ..data._encode import beginning, check_beginnings
from ..interop import check_pretrained
from ..models import process_weights, Transformer
from ..view import draw_self_repair
from ._common import (
    add_bos_option,
    add_ioi_option,
    ids_of,
    load_model,
    note,
    progress_bar,
    prompts_or_ioi,
    say_json,
    Subparsers,
    tokenizer_of,
)
from ._corpus import TEXTS_HELP
from ._loading import add_model_option, add_tokenizer_options
from ._options import count, existing_file, figure, head, number, share


SHOWN = 10
LINE = ("slope", "low", "high", "intercept")


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "self-repair",
        help="how later heads make up for a head that is ablated",
        description="Ablates every head by itself, by its output on another prompt, and puts a line through tokens: how the later heads' "
        "direct effects on the true next token change, on the head's own direct effect; with --ioi, those on the logit of the answer less "
        "that of the foil, at the end.",
        epilog="example: jaxcirc self-repair --model tiny-gpt2 --plot self-repair.svg --head 1.2",
    )
    add_model_option(parser, default="tiny-gpt2")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--prompts",
        type=existing_file("--prompts"),
        metavar="FILE",
        help=f"{TEXTS_HELP} (sentences on subject-verb agreement are made)",
    )
    what.add_argument(
        "--tokens",
        type=existing_file("--tokens"),
        metavar="FILE",
        help="token ids of prompts of one length, taken as they are: JSON lists, or .npy",
    )
    add_ioi_option(parser, what)
    parser.add_argument(
        "--limit",
        type=count("--limit", "prompts, each with another's values", least=2),
        default=64,
        metavar="N",
        help="use the first N prompts of a file, or make so many sentences (%(default)s)",
    )
    parser.add_argument(
        "--length",
        type=count("--length", "tokens of each prompt", least=2),
        metavar="N",
        help="tokens of a prompt, with what is put before it; shorter texts are left out (the shortest text's)",
    )
    add_bos_option(
        parser,
        "before each prompt that lacks it (it is put as the model's family is used to; the documentation has the rule)",
    )
    add_tokenizer_options(parser)
    parser.add_argument("--raw", action="store_true", help="weights as they are, not processed as in publications")
    parser.add_argument(
        "--only", nargs="+", type=head("--only"), metavar="L.H", help="ablate only these heads, such as 9.6 (all)"
    )
    parser.add_argument(
        "--minimum",
        type=number("--minimum"),
        metavar="X",
        help="only tokens on which the head's direct effect is above X",
    )
    parser.add_argument("--no-intercept", action="store_true", help="lines through the origin")
    parser.add_argument(
        "--share",
        type=share("--share", "tokens"),
        default=0.02,
        metavar="X",
        help="of tokens that each head helps most (%(default)s)",
    )
    parser.add_argument(
        "--plot", type=figure("--plot"), metavar="FILE", help="draw slopes and tokens, as SVG, PDF or PNG"
    )
    parser.add_argument(
        "--head",
        nargs="+",
        type=head("--head"),
        default=[],
        metavar="L.H",
        help="whose tokens are drawn (those of the largest slope)",
    )
    parser.set_defaults(command=repair)


def repair(arguments: argparse.Namespace) -> int:
    drawn, only = arguments.head, arguments.only
    for at in drawn:
        if only is not None and at not in only:
            raise ValueError("--head draws heads of those that --only names; {}.{} is not one.".format(*at))
    tokens, asked = _asked(arguments)
    model = load_model(arguments)
    for at in drawn:
        check_head(model, *at)
    model = model if arguments.raw else process_weights(model)
    with progress_bar() as progress:
        result = self_repair(
            model,
            tokens,
            Resample.rolled(tokens),
            **asked,
            heads="all" if only is None else only,
            fit=OLS(intercept=not arguments.no_intercept),
            minimum=arguments.minimum,
            progress=progress,
        )
    if arguments.plot:
        draw_self_repair(result, arguments.plot, heads=drawn)
    rows = _rows(result, arguments.share)
    if arguments.json:
        say_json(_summary(model, result, rows, arguments))
    else:
        _show(model, result, rows, arguments)
    return 0


def _rows(result: SelfRepair, share: float) -> list[dict[str, Any]]:
    """Makes a row a head, the largest slope first; those of the last layer have none, because no head comes after them."""
    (low, high), top, last = result.interval(), result.top(share), len(result.slope) - 1
    rows = []
    for at in result.heads:
        numbers = {"slope": result.slope, "low": low, "high": high, "intercept": result.intercept}
        numbers |= {name: getattr(top, name) for name in ("direct", "ablated", "change", "heads", "mlps", "norm")}
        row = {"head": "{}.{}".format(*at), **{name: _number(values[at]) for name, values in numbers.items()}}
        rows.append(row | dict.fromkeys(LINE) if at[0] == last else row)
    return sorted(rows, key=lambda row: math.inf if row["slope"] is None else -row["slope"])


def _number(value: np.floating) -> float | None:
    """`None` for what is not known, as the interval of a line through a single prompt is not."""
    return None if np.isnan(value) else float(value)


def _summary(
    model: Transformer, result: SelfRepair, rows: list[dict[str, Any]], arguments: argparse.Namespace
) -> dict[str, Any]:
    return {
        "model": model.name,
        "processing": list(model.processing),
        "prompts": len(result.used),
        "logit": result.logit,
        "tokens": int(result.used.sum()),
        "intercept": not arguments.no_intercept,
        "minimum": result.minimum,
        "share": arguments.share,
        "rows": rows,
        "plot": str(arguments.plot) if arguments.plot else None,
    }


def _show(model: Transformer, result: SelfRepair, rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    tokens, prompts = int(result.used.sum()), len(result.used)
    print(
        f"{counted(len(rows), 'head')} of {model.name}, {'each ' if len(rows) > 1 else ''}ablated alone, on "
        f"{counted(tokens, 'token')} of {counted(prompts, 'prompt')}; logit of {result.logit}\n"
    )
    print(
        f"slope of the later heads' change on the head's direct effect, and on the {arguments.share:z.2g} of tokens with the"
    )
    print("largest direct effect the means of it, of it after ablation, of the logit's change, and of the repair by")
    print("later heads, MLPs and the final norm\n")
    print("head    slope  (95 %)              direct ablated  logit    heads   mlps   norm")
    for row in rows[:SHOWN]:
        line = f"{row['head']:<6}" + (
            f"{'–':>7}{'':22}" if row["slope"] is None else f"{row['slope']:+z7.3f}  {_interval(row):<20}"
        )
        names = ("direct", "ablated", "change", "heads", "mlps", "norm")
        print(line + "".join(f"{row[name]:+z7.3f}" + ("  " if name == "change" else " ") for name in names))
    fitted = [row for row in rows if row["slope"] is not None]
    if len(fitted) > SHOWN:
        print(f"…     {fitted[-1]['slope']:+z7.3f}, of {fitted[-1]['head']}, is the smallest of {len(fitted)}")
    if len(fitted) < len(rows):
        print(f"no slopes of layer {model.n_layers - 1}: no head comes after it")
    if arguments.plot:
        print(f"\ndrawn in {arguments.plot}.")


def _interval(row: dict[str, Any]) -> str:
    return "" if row["low"] is None else f"({row['low']:+z.3f} to {row['high']:+z.3f})"


def _asked(arguments: argparse.Namespace) -> tuple[Int[Array, "batch seq"], dict[str, Any]]:
    """The prompts, and whose logit is read of them where it is not the next token's."""
    if arguments.ioi is None:
        return _tokens(arguments), {}
    if arguments.length is not None:
        raise ValueError("--length cuts prompts, and those of --ioi are read at their end. Leave it out.")
    made = prompts_or_ioi(arguments, tokenizer_of(arguments))
    return made.clean, {"answers": made.answer, "foils": made.foil, "positions": np.asarray(made.positions["end"])}


def _tokens(arguments: argparse.Namespace) -> Int[Array, "batch seq"]:
    if arguments.tokens is not None:
        check_pretrained(arguments.model, arguments.revision)
        ids = ids_of(arguments, rank=2)
        return jnp.asarray(ids[: arguments.limit, : arguments.length], jnp.int32)
    tokenizer = tokenizer_of(arguments)
    bos = bool(beginning(tokenizer, arguments.bos))
    note(f"{tokenizer.bos_token} put before each prompt that lacks it" if bos else "prompts as they stand")
    if arguments.prompts is None:
        made = data.subject_verb(tokenizer, arguments.limit, kind="rc", seed=arguments.seed, bos=bos)
        return made.clean[:, : arguments.length]
    rows = data.load_texts(arguments.prompts, tokenizer, bos=bos)
    check_beginnings(tokenizer, [row.tolist() for row in rows])
    length = min(map(len, rows)) if arguments.length is None else arguments.length
    long_enough = [row[:length] for row in rows if len(row) >= length]
    if len(long_enough) < 2:
        raise ValueError(
            f"{arguments.prompts} has {counted(len(long_enough), 'prompt')} of {length} tokens or more, and each takes another's values. "
            "Give more texts, or a smaller --length."
        )
    return jnp.asarray(np.stack(long_enough[: arguments.limit]))

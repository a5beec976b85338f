"""`jaxcirc self-repair`: what later heads do about a head that is ablated."""

import argparse
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from .. import data
from .._files import read_text
from ..components import check_head, OLS, Resample, self_repair, SelfRepair
from ..models import process_weights, Transformer
from ..view import check_svg, draw_self_repair
from ._common import (
    add_bos_option,
    encode_text,
    ids_of,
    load_model,
    note,
    progress_bar,
    put_before,
    Subparsers,
    tokenizer_of,
)


SHOWN = 10


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "self-repair",
        help="how later heads make up for a head that is ablated",
        description="Ablates every head by itself, by its output on another prompt, and puts a line through tokens: how the later heads' "
        "direct effects on the true next token change, on the head's own direct effect.",
        epilog="example: jaxcirc self-repair --model tiny-gpt2 --plot self-repair.svg --head 1.2",
    )
    parser.add_argument(
        "--model", default="tiny-gpt2", help="a shipped model, a Hugging Face folder, or a Hub id (%(default)s)"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--text", type=Path, metavar="FILE", help="a prompt a line (sentences on subject-verb agreement)")
    what.add_argument("--tokens", type=Path, metavar="FILE", help="token ids of prompts of one length: .npy, or JSON")
    parser.add_argument("--prompts", type=int, default=64, metavar="N", help="how many prompts at most (%(default)s)")
    parser.add_argument(
        "--length",
        type=int,
        metavar="N",
        help="tokens a prompt, with what is put before it; shorter lines are left out (the shortest line's)",
    )
    add_bos_option(parser, "before each prompt that lacks it (it is put, as models of this family were trained)")
    parser.add_argument("--tokenizer", help="where the tokenizer is, if not with the model")
    parser.add_argument("--revision", help="which revision of a Hub model")
    parser.add_argument("--raw", action="store_true", help="weights as they are, not processed as in publications")
    parser.add_argument("--only", nargs="+", metavar="L.H", help="ablate only these heads, such as 9.6 (all)")
    parser.add_argument(
        "--minimum", type=float, metavar="X", help="only tokens on which the head's direct effect is above X"
    )
    parser.add_argument("--no-intercept", action="store_true", help="lines through the origin")
    parser.add_argument(
        "--share", type=float, default=0.02, metavar="X", help="of tokens that each head helps most (%(default)s)"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw slopes and tokens as an SVG file")
    parser.add_argument(
        "--head", nargs="+", default=[], metavar="L.H", help="whose tokens are drawn (those of the largest slope)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(command=repair)


def repair(arguments: argparse.Namespace) -> int:
    if arguments.plot:
        check_svg(arguments.plot)
    drawn = [_head(name) for name in arguments.head]
    only = None if arguments.only is None else [_head(name) for name in arguments.only]
    if not 0 < arguments.share <= 1:
        raise ValueError(f"--share is a part of the tokens, above 0 and up to 1; got {arguments.share}.")
    for head in drawn:
        if only is not None and head not in only:
            raise ValueError("--head draws heads of those that --only names; {}.{} is not one.".format(*head))
    tokens = _tokens(arguments)
    model = load_model(arguments)
    for head in drawn:
        check_head(model, *head)
    model = model if arguments.raw else process_weights(model)
    with progress_bar() as progress:
        found = self_repair(
            model,
            tokens,
            Resample.rolled(tokens).tokens,
            heads="all" if only is None else only,
            fit=OLS(intercept=not arguments.no_intercept),
            minimum=arguments.minimum,
            progress=progress,
        )
    if arguments.plot:
        draw_self_repair(found, arguments.plot, heads=drawn)
    rows = _rows(found, arguments.share)
    if arguments.json:
        print(json.dumps(_summary(model, found, rows, arguments)))
    else:
        _show(model, found, rows, arguments)
    return 0


def _rows(found: SelfRepair, share: float) -> list[dict[str, Any]]:
    """A row a head, the largest slope first."""
    (low, high), top = found.interval(), found.top(share)
    rows = []
    for at in found.heads:
        numbers = {"slope": found.slope, "low": low, "high": high, "intercept": found.intercept}
        numbers |= {name: getattr(top, name) for name in ("direct", "ablated", "change", "heads", "mlps", "norm")}
        rows.append({"head": "{}.{}".format(*at), **{name: float(values[at]) for name, values in numbers.items()}})
    return sorted(rows, key=lambda row: -row["slope"])


def _summary(
    model: Transformer, found: SelfRepair, rows: list[dict[str, Any]], arguments: argparse.Namespace
) -> dict[str, Any]:
    return {
        "model": model.name,
        "processing": list(model.processing),
        "prompts": len(found.used),
        "tokens": int(found.used.sum()),
        "intercept": not arguments.no_intercept,
        "minimum": found.minimum,
        "share": arguments.share,
        "rows": rows,
        "plot": str(arguments.plot) if arguments.plot else None,
    }


def _show(model: Transformer, found: SelfRepair, rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    tokens, prompts = int(found.used.sum()), len(found.used)
    print(f"{len(rows)} heads of {model.name}, each ablated alone, on {tokens} tokens of {prompts} prompts\n")
    print(
        f"slope of the later heads' change on the head's direct effect, and on the {arguments.share:.2g} of tokens with the"
    )
    print("largest direct effect the means of it, of it after ablation, of the logit's change, and of the repair by")
    print("later heads, MLPs and the final norm\n")
    print("head    slope  (95 %)              direct ablated  logit    heads   mlps   norm")
    last = f"{model.n_layers - 1}."  # with nothing after it to repair
    for row in [row for row in rows if not row["head"].startswith(last)][:SHOWN]:
        line = f"{row['head']:<6}{row['slope']:+7.3f}  ({row['low']:+.3f} to {row['high']:+.3f})  "
        names = ("direct", "ablated", "change", "heads", "mlps", "norm")
        print(line + "".join(f"{row[name]:+7.3f}" + ("  " if name == "change" else " ") for name in names))
    if len(rows) > SHOWN:
        print(f"…     {rows[-1]['slope']:+7.3f}, of {rows[-1]['head']}, is the smallest of {len(rows)}")
    if arguments.plot:
        print(f"\ndrawn in {arguments.plot}.")


def _head(name: str) -> tuple[int, int]:
    layer, dot, head = name.partition(".")
    if not (dot and layer.isdecimal() and head.isdecimal()):
        raise ValueError(f"A head is written LAYER.HEAD, such as 9.6; got {name!r}.")
    return int(layer), int(head)


def _tokens(arguments: argparse.Namespace):
    if arguments.prompts < 2:
        raise ValueError(f"--prompts is at least 2, because each takes another's values; got {arguments.prompts}.")
    if arguments.tokens is not None:
        ids = ids_of(arguments, rank=2)
        return jnp.asarray(ids[: arguments.prompts, : arguments.length], jnp.int32)
    tokenizer = tokenizer_of(arguments)
    bos = bool(put_before(tokenizer, arguments.bos))
    note(f"{tokenizer.bos_token} put before each prompt that lacks it" if bos else "prompts as they stand")
    if arguments.text is None:
        made = data.subject_verb(tokenizer, arguments.prompts, kind="rc", seed=0, bos=bos)
        return made.clean[:, : arguments.length]
    text = read_text(arguments.text, expected="a prompt a line")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{arguments.text} has no text. Expected a prompt a line.")
    rows = [encode_text(tokenizer, line, bos=bos) for line in lines]
    length = min(map(len, rows)) if arguments.length is None else arguments.length
    long_enough = [row[:length] for row in rows if len(row) >= length]
    if len(long_enough) < 2:
        raise ValueError(
            f"{arguments.text} has {len(long_enough)} prompts of {length} tokens or more, and each takes another's values. Give more "
            "lines, or a smaller --length."
        )
    return jnp.asarray(long_enough[: arguments.prompts], jnp.int32)

"""`jaxcirc intervene`: latents of one prompt moved, and what becomes of the next token and of later latents."""

import argparse
import re
from typing import Any, TYPE_CHECKING

import jax
import numpy as np

from .._checks import check_number
from .._edits import Add, Replace, Scale
from .._sites import Site
from .._tokens import token_text, token_texts
from .._words import counted
from ..attribution_graphs import Change, intervene, Intervention
from ._check_graph import add_holding_options
from ._common import add_text_options, load_model, say_json, Subparsers, tokenizer_of, tokens_of
from ._frozen import held
from ._results import add_top_option
from ._saved_graph import add_dictionaries, check_dictionaries_there, load_dictionaries
from ._tables import add_table_option, save_table


if TYPE_CHECKING:
    import pandas as pd

MOVE = re.compile(
    r"(?P<site>[^/]+)/(?P<unit>\d+)@(?P<begin>-?\d*)(?P<several>:?)(?P<end>-?\d*)(?P<how>[+*]?)=(?P<value>.+)"
)
EDITS = {"": Replace, "+": Add, "*": Scale}


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "intervene",
        help="move latents of a prompt, and see what follows",
        description="Runs a prompt with latents of transcoders (neurons, without any) set, added to or multiplied, with what dictionaries "
        "do not reconstruct left as it was; prints what becomes of the next token and of later latents.",
        epilog="example: jaxcirc intervene --model tiny-gpt2 --prompt 'The teachers that the doctor likes' "
        "--move 'blocks.1.mlp.hook_post/17@2*=0' --freeze nothing --live-from 2",
    )
    add_text_options(parser)
    add_dictionaries(parser)
    parser.add_argument(
        "--move",
        nargs="+",
        required=True,
        type=_move,
        metavar="MOVE",
        help="SITE/UNIT@P=X sets a latent at position P, +=X adds to it, *=X multiplies it; P may be several, 2:5 or 2:",
    )
    add_holding_options(parser)
    add_top_option(parser, "tokens and latents", 8)
    add_table_option(parser, "latents that change")
    parser.set_defaults(command=move)


def _move(text: str) -> Change:
    found = MOVE.fullmatch(text)
    change = None if found is None else _read(found)
    if change is None:
        raise argparse.ArgumentTypeError(
            "--move: A move is written SITE/UNIT@P=X, SITE/UNIT@P+=X or SITE/UNIT@P*=X, such as blocks.1.mlp.hook_post/17@2*=0; got "
            f"{text!r}."
        )
    return change


def _read(found: re.Match[str]) -> Change | None:
    """The change that is written so, or `None` for what is no number or no position."""
    try:
        begin, end = (int(found[name]) if found[name] else None for name in ("begin", "end"))
        value = float(found["value"])
    except ValueError:
        return None
    if not found["several"] and (begin is None or end is not None):
        return None
    try:
        check_number("--move", value)
        place = Site.parse(found["site"])
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"--move: {str(error).removeprefix('--move: ')}") from None
    pos = slice(begin, end) if begin is None or found["several"] else begin
    return Change(place, pos, int(found["unit"]), EDITS[found["how"]](value))


def move(arguments: argparse.Namespace) -> int:
    check_dictionaries_there(arguments)
    tokens = tokens_of(arguments)
    tokenizer = None if arguments.prompt is None else tokenizer_of(arguments)
    transcoders = load_dictionaries(arguments)
    model = load_model(arguments)
    found = intervene(
        model,
        transcoders,
        tokens,
        arguments.move,
        frozen=held(arguments.freeze, model),
        live_from=arguments.live_from,
    )
    texts = token_texts(tokenizer, np.asarray(tokens))
    table = _latents(found)
    save_table(table, arguments.out)
    first = table.head(arguments.top)
    rows = _next(found, arguments.top, tokenizer)
    if arguments.json:
        facts = {"model": model.name, "tokens": texts, "frozen": arguments.freeze, "live_from": arguments.live_from}
        latents = first.to_dict("records")
        out = str(arguments.out) if arguments.out else None
        say_json({**facts, "next": rows, "changed": len(table), "latents": latents, "out": out})
        return 0
    what = "latent" if arguments.transcoders or arguments.cross_layer_transcoder else "neuron"
    follow = "stay" if arguments.live_from is None else f"from layer {arguments.live_from} on follow"
    print(f"{model.name}; held: {', '.join(arguments.freeze)}; other {what}s {follow}\n")
    print("next token, probability without and with the change, and the change of its logit")
    for row in rows:
        print(f"  {row['clean']:z7.2%}  {row['changed']:z7.2%}  {row['logit']:+z9.4f}  {row['token']!r}")
    print(f"\n{counted(len(table), what)} whose pre-activations change, those that change most: without, with")
    for row in first.to_dict("records"):
        print(f"  {row['clean']:+z9.4f}  {row['changed']:+z9.4f}  {row['latent']} {texts[row['pos']]!r}")
    if arguments.out:
        print(f"\nwritten to {arguments.out}.")
    return 0


def _next(found: Intervention, most: int, tokenizer: Any) -> list[dict[str, Any]]:
    """The likeliest next tokens of either run."""
    clean, changed = (np.asarray(state.logits[-1], np.float64) for state in (found.clean, found.changed))
    before, after = (np.asarray(jax.nn.softmax(logits.astype(np.float32))) for logits in (clean, changed))
    order = np.argsort(-np.maximum(before, after), kind="stable")[:most]
    return [
        {
            "token": token_text(tokenizer, token),
            "clean": float(before[token]),
            "changed": float(after[token]),
            "logit": float(changed[token] - clean[token]),
        }
        for token in order.tolist()
    ]


def _latents(found: Intervention) -> "pd.DataFrame":
    """Every latent whose pre-activation changes by more than rounding, that which changes most first."""
    import pandas as pd

    parts = []
    for place, before in found.clean.pre.items():
        clean, changed = np.asarray(before, np.float64), np.asarray(found.changed.pre[place], np.float64)
        change = changed - clean
        pos, unit = np.nonzero(np.abs(change) > 1e-6 * max(1e-30, np.abs(clean).max()))
        latent = [f"{place}/{u}@{p}" for p, u in zip(pos.tolist(), unit.tolist(), strict=True)]
        columns = {"latent": latent, "site": str(place), "pos": pos, "unit": unit}
        parts.append(pd.DataFrame({**columns, "clean": clean[pos, unit], "changed": changed[pos, unit]}))
    table = pd.concat(parts, ignore_index=True)
    order = np.argsort(-np.abs(table["changed"].to_numpy() - table["clean"].to_numpy()), kind="stable")
    return table.iloc[order].reset_index(drop=True)

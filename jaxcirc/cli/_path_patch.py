"""`jaxcirc path-patch`: which heads and MLPs act on the metric by way of given receivers, and by how much."""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from .._words import counted
from ..data import Prompts
from ..data._ioi import FLIPS
from ..graph import component_graph, ComponentGraph
from ..models import Transformer
from ..patching import path_patch
from ..runs import prepare_prompts, record_sides
from ..view import draw_path_patching
from ._common import (
    add_ioi_option,
    add_prompt_options,
    check_prompts_or_ioi,
    load_model,
    progress_bar,
    prompts_or_ioi,
    say_json,
    Subparsers,
    tokenizer_of,
)
from ._options import figure, one_of
from ._results import add_top_option


Values = Float[np.ndarray, "sender batch"]
Metrics = Float[np.ndarray, " batch"]


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "path-patch",
        help="which heads and MLPs act by way of given heads' queries, keys and values, or on the logits directly",
        description="Path patching: what each sender writes on the corrupt prompt, put into the clean run directly where the receivers "
        "read and nowhere else; all behind them is computed anew. Printed is what that changes of the metric, averaged over prompts.",
        epilog="example: jaxcirc path-patch --model tiny-gpt2 --ioi 50 --flip IO --receivers logits --positions end --plot paths.svg",
    )
    add_prompt_options(parser, dictionaries=False, required=False)
    add_ioi_option(parser)
    parser.add_argument(
        "--flip",
        nargs="+",
        type=one_of("--flip", FLIPS, "names of --ioi prompts what is another in the corrupt ones, {}"),
        choices=FLIPS,
        metavar="NAME",
        help="with --ioi, which names are others in the corrupt prompts (IO S1 S2)",
    )
    parser.add_argument(
        "--receivers",
        required=True,
        type=_names("--receivers", "receivers, such as a3.h0.q,a3.h1.q, m2 or logits"),
        metavar="NAMES",
        help="what reads the corrupt values, together: heads' inputs a3.h0.q, a3.h0.k, a3.h0.v, MLPs m3, logits; with commas between",
    )
    parser.add_argument(
        "--chain",
        nargs="+",
        default=[],
        type=_names("--chain", "receivers of each stage, such as m3 or logits"),
        metavar="NAMES",
        help="what the receivers write is sent on to these, and from them to the next; a chain to the logits holds all that is not on it",
    )
    parser.add_argument(
        "--senders",
        nargs="+",
        type=_names("--senders", "senders, such as a0.h1, m0 or embed"),
        metavar="NAMES",
        help="whose corrupt values are sent, a run each; those with a comma between together (every sender that the receivers read)",
    )
    parser.add_argument(
        "--mlps",
        choices=("frozen", "recomputed"),
        default="frozen",
        help="MLPs on the way to the receivers: held at the clean run, or computed anew, so that paths pass through them (%(default)s)",
    )
    parser.add_argument(
        "--norms",
        choices=("live", "frozen"),
        default="live",
        help="the receivers' norms: by what they read, or as in the clean run (%(default)s)",
    )
    for option, whose in (("--positions", "senders are patched"), ("--receiver-positions", "receivers read it")):
        parser.add_argument(
            option,
            nargs="+",
            metavar="P",
            help=f"at which positions {whose}: numbers, from the end if negative, or names, such as end; of --ioi prompts also IO, S1, "
            "S1+1, S2 (all)",
        )
    add_top_option(parser, "senders", 20)
    parser.add_argument("--plot", type=figure("--plot"), metavar="FILE", help="draw all senders, as SVG, PDF or PNG")
    parser.set_defaults(command=path_patching)


def path_patching(arguments: argparse.Namespace) -> int:
    check_prompts_or_ioi(arguments)
    if arguments.plot and arguments.senders:
        raise ValueError("--plot draws all senders. Leave --senders out.")
    if arguments.flip and arguments.ioi is None:
        raise ValueError("--flip is about --ioi prompts; those of a file have their corrupt ones. Leave it out.")
    tokenizer = tokenizer_of(arguments)
    prompts = prompts_or_ioi(arguments, tokenizer, **({"flip": arguments.flip} if arguments.flip else {}))
    places = {name: _places(f"--{name}", getattr(arguments, name.replace("-", "_")), prompts) for name in PLACES}
    model = load_model(arguments)
    graph = component_graph(model)
    changes, clean, corrupt = _patched(arguments, model, prompts, places)
    if arguments.plot:
        path = " to ".join(", ".join(stage) for stage in _chain(arguments))
        draw_path_patching({f"to {path}": changes}, graph, arguments.plot, metric="logit difference")
    rows = _rows(arguments, graph, changes)
    if arguments.json:
        say_json(_summary(arguments, model, rows, clean, corrupt))
    else:
        _show(arguments, model, rows, clean, corrupt)
    return 0


PLACES = ("positions", "receiver-positions")


def _patched(
    arguments: argparse.Namespace,
    model: Transformer,
    prompts: Prompts,
    places: dict[str, Int[np.ndarray, "batch k"] | None],
) -> tuple[Values, Metrics, Metrics]:
    """By how much the metric changes, and what it is on the clean and on the corrupt prompts."""
    size = len(prompts) if arguments.batch_size is None else arguments.batch_size
    asked: dict[str, Any] = {name: getattr(arguments, name) for name in ("mlps", "norms", "senders")}
    changes, sides = [], []
    with progress_bar() as progress:
        for first in range(0, len(prompts), size):
            progress(first, len(prompts), "prompts")
            rows = slice(first, first + size)
            some = prompts[rows]
            given = model, some.clean, some.corrupt, some.metric()
            at: dict[str, Any] = {
                name.replace("-", "_"): None if where is None else where[rows] for name, where in places.items()
            }
            found = path_patch(*given, receivers=_chain(arguments), mask=some.mask, **asked, **at)
            clean, corrupt = record_sides(model, prepare_prompts(*given, some.mask), ())
            assert corrupt is not None
            sides.append(np.stack([np.asarray(clean.metric), np.asarray(corrupt.metric)]))
            changes.append(np.asarray(found) - sides[-1][0])
        progress(len(prompts), len(prompts), "prompts")
    return np.concatenate(changes, axis=1), *np.concatenate(sides, axis=1)


def _chain(arguments: argparse.Namespace) -> list[tuple[str, ...]]:
    return [arguments.receivers, *arguments.chain]


def _places(option: str, given: list[str] | None, prompts: Prompts) -> Int[np.ndarray, "batch k"] | None:
    """Looks up where each prompt has the positions that were named."""
    if given is None:
        return None
    found = []
    for text in given:
        if text.lstrip("-").isdecimal():
            found.append(np.full(len(prompts), int(text)))
        elif text in prompts.positions:
            found.append(np.asarray(prompts.positions[text]))
        else:
            names = ", ".join(map(repr, prompts.positions))
            raise ValueError(
                f"{option}: no position of these prompts is named {text!r}; they have {names}. Or give a number."
            )
    return np.stack(found, axis=1)


def _rows(arguments: argparse.Namespace, graph: ComponentGraph, changes: Values) -> list[dict[str, Any]]:
    """Makes a row for every sender that the receivers read, or that was named, the largest change first."""
    receivers = [graph.receiver(name) for name in arguments.receivers]
    reached: Any = graph.of_one_position[:, receivers].any(axis=1)
    names = graph.senders if arguments.senders is None else [",".join(group) for group in arguments.senders]
    error = changes.std(1, ddof=1) / changes.shape[1] ** 0.5 if changes.shape[1] > 1 else [None] * len(changes)
    rows = [
        {"sender": name, "change": float(change), "standard_error": None if spread is None else float(spread)}
        for i, (name, change, spread) in enumerate(zip(names, changes.mean(1), error, strict=True))
        if arguments.senders is not None or reached[i]
    ]
    return sorted(rows, key=lambda row: -abs(row["change"]))


def _summary(
    arguments: argparse.Namespace, model: Transformer, rows: list[dict[str, Any]], clean: Metrics, corrupt: Metrics
) -> dict[str, Any]:
    asked: dict[str, Any] = {
        name: getattr(arguments, name) for name in ("mlps", "norms", "positions", "receiver_positions")
    }
    metrics = {"clean": float(clean.mean()), "corrupt": float(corrupt.mean())}
    plot = str(arguments.plot) if arguments.plot else None
    about = {"model": model.name, "prompts": len(clean), "receivers": [list(stage) for stage in _chain(arguments)]}
    return {**about, **asked, **metrics, "rows": rows, "plot": plot}


def _show(
    arguments: argparse.Namespace, model: Transformer, rows: list[dict[str, Any]], clean: Metrics, corrupt: Metrics
) -> None:
    path = ", then to ".join(", ".join(stage) for stage in _chain(arguments))
    print(
        f"{counted(len(rows), 'sender')} of {model.name} to {path}; {counted(len(clean), 'prompt')}; metric clean {clean.mean():z.3f}, "
        f"corrupt {corrupt.mean():z.3f}"
    )
    between = "held at the clean run" if arguments.mlps == "frozen" else "computed anew"
    print(f"clean run, corrupt values sent; MLPs on the way {between}\n")
    wide = max(6, *(len(row["sender"]) for row in rows))
    print(f"{'sender':<{wide}}    change  (standard error)")
    for row in rows[: arguments.top]:
        error = "" if row["standard_error"] is None else f"  ({row['standard_error']:z.3f})"
        print(f"{row['sender']:<{wide}}  {row['change']:+z8.3f}{error}")
    if arguments.plot:
        print(f"\ndrawn in {arguments.plot}.")


def _names(option: str, what: str) -> Callable[[str], tuple[str, ...]]:
    """Takes names with commas between; whether there are such shows when the model is there."""

    def read(text: str) -> tuple[str, ...]:
        names = tuple(name.strip() for name in text.split(","))
        if not all(names):
            raise argparse.ArgumentTypeError(f"{option} names {what}, with commas between; got {text!r}.")
        return names

    return read

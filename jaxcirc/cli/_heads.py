"""`jaxcirc heads`: which heads' queries, keys, values and outputs matter to the prompts of a file."""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..attribution import AtPStar, ExactPatching, Gradient, head_effects, HeadEffects
from ..data import Prompts
from ..models import Transformer
from ..view import check_svg, draw_head_effects
from ._common import (
    add_prompt_options,
    check_count,
    load_model,
    load_prompt_file,
    progress_bar,
    Subparsers,
    tokenizer_of,
)


METHODS = {"atp-star": AtPStar, "gradient": Gradient, "patching": ExactPatching}
PARTS = ("z", "q", "k", "v")


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "heads",
        help="which heads matter to the prompts of a file",
        description="Effects of every head's output, query, key and value on the metric: what it would change by if that one vector were "
        "as on the corrupt prompt. They are summed over positions and averaged over prompts.",
        epilog="example: jaxcirc heads --model tiny-gpt2 --prompts prompts.jsonl --plot heads.svg",
    )
    add_prompt_options(parser, dictionaries=False)
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="atp-star",
        help="attribution patching with its corrections, which gives sizes without signs (%(default)s), or without; or a run for each",
    )
    parser.add_argument("--most", type=int, default=12, metavar="N", help="how many heads to print (%(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw all heads as an SVG file")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(command=heads)


def heads(arguments: argparse.Namespace) -> int:
    if arguments.plot:
        check_svg(arguments.plot)
    check_count("--most", "heads to print", arguments.most)
    prompts = load_prompt_file(arguments, tokenizer_of(arguments))
    model = load_model(arguments)
    found = _effects(arguments, model, prompts)
    if arguments.plot:
        draw_head_effects(found, arguments.plot)
    rows = _rows(found)
    total, clean = (float(np.mean(x)) for x in (found.total, found.clean))
    if arguments.json:
        plot = str(arguments.plot) if arguments.plot else None
        about = {"model": model.name, "method": arguments.method, "prompts": len(prompts)}
        print(json.dumps({**about, "clean_metric": clean, "total_effect": total, "rows": rows, "plot": plot}))
        return 0
    print(f"{len(rows)} heads of {model.name}, {len(prompts)} prompts; metric {clean:.3f}, effect {total:+.3f}\n")
    if arguments.method == "atp-star":
        print("AtP* gives sizes without signs, of effects that may cancel; --method patching has signs\n")
    print("head    output    query      key    value")
    for row in rows[: arguments.most]:
        print(f"{row['head']:<6}" + " ".join(f"{row[part]:+8.3f}" for part in PARTS))
    if arguments.plot:
        print(f"\ndrawn in {arguments.plot}.")
    return 0


def _effects(arguments: argparse.Namespace, model: Transformer, prompts: Prompts) -> HeadEffects:
    size = len(prompts) if arguments.batch_size is None else arguments.batch_size
    parts: list[HeadEffects] = []
    with progress_bar() as progress:
        for first in range(0, len(prompts), size):
            progress(first, len(prompts), "prompts")
            some = prompts[first : first + size]
            method = METHODS[arguments.method]()
            parts.append(head_effects(model, some.clean, some.corrupt, some.metric(), method=method, mask=some.mask))
        progress(len(prompts), len(prompts), "prompts")
    return jax.tree.map(lambda *each: jnp.concatenate(each), *parts)


def _rows(found: HeadEffects) -> list[dict[str, Any]]:
    """A row a head, the largest output's effect first."""
    mean = {part: np.asarray(getattr(found, part)).sum(-1).mean(0) for part in PARTS}
    rows = [
        {"head": "{}.{}".format(*at), **{part: float(mean[part][at]) for part in PARTS}}
        for at in np.ndindex(mean["z"].shape)
    ]
    return sorted(rows, key=lambda row: -abs(row["z"]))

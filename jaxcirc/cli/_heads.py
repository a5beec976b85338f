"""`jaxcirc heads`: which heads' queries, keys, values and outputs matter to the prompts of a file."""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._words import counted
from ..attribution import (
    AbstractHeadMethod,
    affordable_method,
    AtPStar,
    ExactPatching,
    Gradient,
    head_effects,
    HeadEffects,
    patching_runs,
)
from ..data import Prompts
from ..models import Transformer
from ..view import draw_head_effects
from ._common import (
    add_prompt_options,
    load_model,
    load_prompt_file,
    progress_bar,
    say_json,
    Subparsers,
    tokenizer_of,
)
from ._options import figure
from ._results import add_top_option


METHODS: dict[str, AbstractHeadMethod] = {
    "patching": ExactPatching(),
    "atp-star": AtPStar(),
    "atp-star-graddrop": AtPStar(grad_drop=True),
    "gradient": Gradient(),
}
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
        choices=("auto", *METHODS),
        default="auto",
        help="how effects are found. patching: exact, a run for each vector. "
        "atp-star: estimated by gradients with the softmax recomputed, and with signs. "
        "atp-star-graddrop: sizes without signs, which also show heads whose ways cancel, but hide heads that act through several layers "
        "where layers are few. gradient: to first order. auto: patching where that takes about as long as atp-star, otherwise atp-star; "
        "what it took is printed (%(default)s)",
    )
    add_top_option(parser, "heads", 12)
    parser.add_argument("--plot", type=figure("--plot"), metavar="FILE", help="draw all heads, as SVG, PDF or PNG")
    parser.set_defaults(command=heads)


def heads(arguments: argparse.Namespace) -> int:
    prompts = load_prompt_file(arguments, tokenizer_of(arguments))
    model = load_model(arguments)
    method = _method(arguments, model, prompts)
    effects = _effects(arguments, model, prompts, method)
    if arguments.plot:
        draw_head_effects(effects, arguments.plot, metric="logit difference")
    rows = _rows(effects)
    total, clean = (float(np.mean(np.asarray(x))) for x in (effects.total, effects.clean))
    if arguments.json:
        plot = str(arguments.plot) if arguments.plot else None
        name = next(name for name, known in METHODS.items() if known == effects.method)
        about = {"model": model.name, "method": name, "prompts": len(prompts)}
        say_json({**about, "clean_metric": clean, "total_effect": total, "rows": rows, "plot": plot})
        return 0
    print(
        f"{counted(len(rows), 'head')} of {model.name}, {counted(len(prompts), 'prompt')}; "
        f"metric {clean:z.3f}, effect {total:+z.3f}"
    )
    runs = patching_runs(model, *prompts.clean.shape)
    rather = (
        f"; --method patching would take {runs:,} runs" if arguments.method == "auto" and method == AtPStar() else ""
    )
    print(f"effects by {effects.method.words}{rather}")
    if model.n_kv_heads < model.n_heads:
        share = model.n_heads // model.n_kv_heads
        print(f"{share} heads each share a key and a value, whose effects stand with every one of them")
    print()
    print("head    output    query      key    value")
    sign = "" if method == METHODS["atp-star-graddrop"] else "+"
    for row in rows[: arguments.top]:
        print(f"{row['head']:<6}" + " ".join(f"{row[part]:{sign}z8.3f}" for part in PARTS))
    if arguments.plot:
        print(f"\ndrawn in {arguments.plot}.")
    return 0


def _method(arguments: argparse.Namespace, model: Transformer, prompts: Prompts) -> AbstractHeadMethod:
    """Chooses the method that was asked for. All prompts decide on what they can afford, not those that are in memory at once."""
    if arguments.method == "auto":
        return affordable_method(model, *prompts.clean.shape)
    if arguments.method == "atp-star-graddrop" and model.n_layers == 1:
        raise ValueError(
            f"--method atp-star-graddrop drops one layer's gradient at a time, and {model.name} has a single layer. "
            "Use --method atp-star."
        )
    return METHODS[arguments.method]


def _effects(
    arguments: argparse.Namespace, model: Transformer, prompts: Prompts, method: AbstractHeadMethod
) -> HeadEffects:
    size = len(prompts) if arguments.batch_size is None else arguments.batch_size
    parts: list[HeadEffects] = []
    with progress_bar() as progress:
        for first in range(0, len(prompts), size):
            progress(first, len(prompts), "prompts")
            some = prompts[first : first + size]
            parts.append(head_effects(model, some.clean, some.corrupt, some.metric(), method=method, mask=some.mask))
        progress(len(prompts), len(prompts), "prompts")
    return jax.tree.map(lambda *each: jnp.concatenate(each), *parts)


def _rows(effects: HeadEffects) -> list[dict[str, Any]]:
    """Makes a row a head, the largest output's effect first; heads that share a key and a value have the same of them."""
    mean = {part: np.asarray(getattr(effects, part)).sum(-1).mean(0) for part in PARTS}
    heads = mean["z"].shape[1]
    mean = {part: np.repeat(each, heads // each.shape[1], axis=1) for part, each in mean.items()}
    rows = [
        {"head": "{}.{}".format(*at), **{part: float(mean[part][at]) for part in PARTS}}
        for at in np.ndindex(mean["z"].shape)
    ]
    return sorted(rows, key=lambda row: -abs(row["z"]))

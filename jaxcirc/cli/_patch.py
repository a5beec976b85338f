"""`jaxcirc patch`: which activations make the difference between the two prompts of each pair of a file."""

import argparse
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._sites import Site
from .._tokens import token_texts
from .._words import counted
from ..data import Prompts
from ..interop import check_saes, load_saes
from ..models import Transformer
from ..patching import activation_patch, PatchedMetrics
from ..patching._cells import BY
from ..patching._patched_metrics import DIRECTIONS, NORMALISATIONS
from ..saes import AbstractDictionary
from ..view import draw_patching
from ._common import add_prompt_options, load_model, load_prompt_file, progress_bar, say_json, Subparsers, tokenizer_of
from ._options import figure
from ._results import add_top_option


OTHERS = "…"  # behind a token that not all prompts have there


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "patch",
        help="which layers, positions and heads carry the difference between two prompts",
        description="Activation patching: runs one prompt of each pair with one activation of the other put in, for every cell of a "
        "site, and prints what that does to the metric, averaged over prompts.",
        epilog="example: jaxcirc patch --model tiny-gpt2 --prompts prompts.jsonl --sites z --by head --plot patching.svg",
    )
    add_prompt_options(parser, dictionaries=False)
    parser.add_argument(
        "--saes",
        metavar="DICTIONARIES",
        help="a shipped model's name, or a folder of dictionaries, whose latents and errors --sites may name",
    )
    parser.add_argument(
        "--sites",
        nargs="+",
        default=["resid_pre"],
        metavar="SITE",
        help="resid_pre, attn_out, mlp_out, z, q, k, v, pattern, mlp_post, … in all layers, or single sites such as blocks.3.attn.hook_z "
        "(resid_pre)",
    )
    parser.add_argument(
        "--by",
        choices=tuple(BY),
        default="layer_position",
        help="what is replaced at a time in each layer (%(default)s)",
    )
    parser.add_argument(
        "--direction",
        choices=DIRECTIONS,
        default="denoise",
        help="denoise: the corrupt prompt is run, and clean values put in. noise: the other way round (%(default)s)",
    )
    parser.add_argument(
        "--normalise",
        choices=NORMALISATIONS,
        default="fraction",
        help="fraction: 0 is the prompt that is run, 1 the other. difference: to the prompt that is run. metric: as it is (%(default)s)",
    )
    add_top_option(parser, "cells", 20)
    parser.add_argument("--plot", type=figure("--plot"), metavar="FILE", help="draw heat maps, as SVG, PDF or PNG")
    parser.set_defaults(command=patch)


def patch(arguments: argparse.Namespace) -> int:
    if arguments.saes is not None:
        check_saes(arguments.saes)
    tokenizer = tokenizer_of(arguments)
    prompts = load_prompt_file(arguments, tokenizer)
    saes = {} if arguments.saes is None else load_saes(arguments.saes)
    model = load_model(arguments)
    found = _patched(arguments, model, saes, prompts)
    tokens = _texts(tokenizer, prompts)
    rows = _rows(found, tokens)
    if arguments.plot:
        draw_patching(found, arguments.plot, tokens=tokens, metric="logit difference")
    if arguments.json:
        say_json(_summary(arguments, model, found, rows))
    else:
        _show(arguments, model, found, rows)
    return 0


def _patched(
    arguments: argparse.Namespace, model: Transformer, saes: Mapping[Site, AbstractDictionary], prompts: Prompts
) -> PatchedMetrics:
    size = len(prompts) if arguments.batch_size is None else arguments.batch_size
    parts: list[PatchedMetrics] = []
    with progress_bar() as progress:
        for first in range(0, len(prompts), size):
            progress(first, len(prompts), "prompts")
            some = prompts[first : first + size]
            asked = {name: getattr(arguments, name) for name in ("sites", "by", "direction")}
            given = model, some.clean, some.corrupt, some.metric()
            parts.append(activation_patch(*given, **asked, normalise="difference", saes=saes, mask=some.mask))
        progress(len(prompts), len(prompts), "prompts")
    joined = jax.tree.map(lambda *each: jnp.concatenate(each), *parts)
    return dataclasses.replace(joined, normalise=arguments.normalise)  # of all prompts: fractions are of a mean


def _texts(tokenizer: Any, prompts: Prompts) -> list[str]:
    """Decodes what stands at each position: of the first clean prompt, with an ellipsis where others have another token there."""
    clean, both = np.asarray(prompts.clean), np.concatenate([prompts.clean, prompts.corrupt])
    texts = token_texts(tokenizer, clean[0])
    return [text + OTHERS * bool((both[:, at] != clean[0, at]).any()) for at, text in enumerate(texts)]


def _rows(found: PatchedMetrics, tokens: list[str]) -> list[dict[str, Any]]:
    """Makes a row a cell, the largest first; one prompt has no standard error."""
    rows = found.table(tokens).to_dict("records")
    return [{key: None if isinstance(x, float) and math.isnan(x) else x for key, x in row.items()} for row in rows]


def _summary(
    arguments: argparse.Namespace, model: Transformer, found: PatchedMetrics, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    about = {name: getattr(arguments, name) for name in ("by", "direction", "normalise")}
    metrics = {name: float(np.mean(getattr(found, name))) for name in ("clean", "corrupt")}
    plot = str(arguments.plot) if arguments.plot else None
    return {"model": model.name, "prompts": len(found.base), **about, **metrics, "rows": rows, "plot": plot}


def _show(arguments: argparse.Namespace, model: Transformer, found: PatchedMetrics, rows: list[dict[str, Any]]) -> None:
    clean, corrupt = (float(np.mean(x)) for x in (found.clean, found.corrupt))
    run = "corrupt run, clean values put in" if arguments.direction == "denoise" else "clean run, corrupt values put in"
    print(
        f"{counted(len(rows), 'cell')} of {model.name}, {counted(len(found.base), 'prompt')}; metric clean {clean:z.3f}, corrupt "
        f"{corrupt:z.3f}\n{run}\n"
    )
    wide = max(len(row["site"]) for row in rows)
    print(f"{'site':<{wide}}{'  head' * ('head' in found.axes)}  {arguments.normalise:>10}  (standard error)")
    for row in rows[: arguments.top]:
        head = f"{row['head']:>6}" if "head" in row else ""
        error = "" if row["standard_error"] is None else f"  ({row['standard_error']:z.3f})"
        place = f"  at {row['position']}{row['token']!r:>16}" if "position" in row else ""
        print(f"{row['site']:<{wide}}{head}  {row['value']:+z10.3f}{error:<9}{place}")
    if len(found.base) > 1 and any(row["token"].endswith(OTHERS) for row in rows if "position" in row):
        print(f"\n{OTHERS} behind a token: not all prompts have it there")
    if arguments.plot:
        print(f"\ndrawn in {arguments.plot}.")

"""`jaxcirc direct-effects`: what each head and MLP adds to the answer's logit directly."""

import argparse
from typing import Any

import numpy as np
from jaxtyping import Float

from .._words import counted
from ..components import direct_effects
from ..data import Prompts
from ..models import process_weights, Transformer
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
from ._results import add_top_option


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "direct-effects",
        help="what each head and MLP adds to the answer's logit directly",
        description="Direct logit attribution: what each head, MLP, embedding and bias adds to the logit of the answer less that of the "
        "foil, at the end of the clean prompts, with the final norm's scale held. It is averaged over prompts, and sums to the metric; "
        "of a model that caps its logits, to the logit difference before the cap.",
        epilog="example: jaxcirc direct-effects --model tiny-gpt2 --ioi 8",
    )
    about = "file of prompt pairs, of which the clean ones are taken"
    add_prompt_options(parser, dictionaries=False, prompts=about, required=False)
    add_ioi_option(parser)
    parser.add_argument("--raw", action="store_true", help="weights as they are, not processed as in publications")
    add_top_option(parser, "components", 12)
    parser.set_defaults(command=effects)


def effects(arguments: argparse.Namespace) -> int:
    check_prompts_or_ioi(arguments)
    prompts = prompts_or_ioi(arguments, tokenizer_of(arguments))
    model = load_model(arguments)
    model = model if arguments.raw else process_weights(model)
    found, total = _effects(arguments, model, prompts)
    rows = _rows(found)
    capped = model.logit_cap is not None
    if arguments.json:
        about = {"model": model.name, "processing": list(model.processing), "prompts": len(prompts)}
        say_json({**about, "before_cap": capped, "metric": float(total.mean()), "rows": rows})
        return 0
    what = "the logit difference before the logits' cap" if capped else "the metric"
    print(
        f"{counted(len(rows), 'component')} of {model.name}, {counted(len(prompts), 'prompt')}; their effects sum to {what}, "
        f"{total.mean():z.3f}\n"
    )
    print("component    effect  (standard error)")
    for row in rows[: arguments.top]:
        error = "" if row["standard_error"] is None else f"  ({row['standard_error']:z.3f})"
        print(f"{row['component']:<10} {row['effect']:+z8.3f}{error}")
    return 0


def _effects(
    arguments: argparse.Namespace, model: Transformer, prompts: Prompts
) -> tuple[dict[str, Float[np.ndarray, " batch"]], Float[np.ndarray, " batch"]]:
    """By component its effect at the end of each prompt, and their sum."""
    size = len(prompts) if arguments.batch_size is None else arguments.batch_size
    parts: list[dict[str, np.ndarray]] = []
    with progress_bar() as progress:
        for first in range(0, len(prompts), size):
            progress(first, len(prompts), "prompts")
            some = prompts[first : first + size]
            found = direct_effects(model, some.clean, some.answer, foils=some.foil, mask=some.mask)
            end = (np.arange(len(some)), ..., np.asarray(some.positions["end"]))
            heads, mlps = np.asarray(found.heads)[end], np.asarray(found.mlps)[end]
            part = {"embed": np.asarray(found.embed)[end], "biases": np.asarray(found.biases)[end]}
            part |= {f"a{layer}.h{head}": heads[:, layer, head] for layer, head in np.ndindex(heads.shape[1:])}
            part |= {f"m{layer}": mlps[:, layer] for layer in range(mlps.shape[1])}
            parts.append(part | {"": np.asarray(found.total)[end]})
        progress(len(prompts), len(prompts), "prompts")
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return joined, joined.pop("")


def _rows(found: dict[str, Float[np.ndarray, " batch"]]) -> list[dict[str, Any]]:
    """Makes a row a component, the largest effect first; one prompt has no standard error."""
    error = lambda x: float(x.std(ddof=1) / len(x) ** 0.5) if len(x) > 1 else None
    rows = [{"component": name, "effect": float(x.mean()), "standard_error": error(x)} for name, x in found.items()]
    return sorted(rows, key=lambda row: -abs(row["effect"]))

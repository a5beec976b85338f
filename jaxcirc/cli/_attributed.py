"""Scores of the edges between components, by attribution: the options, and the scores of every prompt."""

import argparse

import jax
import numpy as np
from jaxtyping import Float

from ..data import Prompts
from ..graph import ComponentGraph
from ..jacobian._rules import RULES
from ..models import Transformer
from ..patching import edge_attribution
from ._options import count


STEPS = 5


def add_attribution_options(parser: argparse.ArgumentParser, *, of: str = "") -> None:
    """Adds `--steps` and `--derivatives`, which are `of` a method alone if that is said; they are `None` where they are not given."""
    parser.add_argument(
        "--steps",
        type=count("--steps", "gradients to integrate"),
        metavar="N",
        help=f"how many gradients are integrated{of} ({STEPS})",
    )
    add_derivatives_option(parser, of=of)


def add_derivatives_option(parser: argparse.ArgumentParser, *, of: str = "") -> None:
    """Adds `--derivatives`."""
    parser.add_argument(
        "--derivatives",
        choices=RULES,
        help="which derivatives are taken: exact; lrp, that propagate relevance as RelP does; or detached, with norms, patterns and gates "
        f"held{of} (exact)",
    )


def attributed(
    arguments: argparse.Namespace, model: Transformer, prompts: Prompts, graph: ComponentGraph, *, rule: str, start: str
) -> Float[jax.Array, "batch sender receiver"]:
    """What each edge does to the metric of each prompt, estimated as the options say."""
    return edge_attribution(
        model,
        prompts.clean,
        prompts.corrupt,
        prompts.metric(),
        steps=arguments.steps or STEPS,
        rule=rule,
        start=start,
        derivatives=arguments.derivatives or "exact",
        graph=graph,
        mask=prompts.mask,
    )


def benchmark_scores(
    arguments: argparse.Namespace, model: Transformer, prompts: Prompts, graph: ComponentGraph
) -> Float[np.ndarray, "batch sender receiver"]:
    """Scores of each prompt as the benchmark of circuit localisation has them: above 0 for edges that help."""
    return -np.asarray(attributed(arguments, model, prompts, graph, rule="left", start="corrupt"), np.float64)

"""Activation patching: the residual stream by layer and position, and heads' outputs by head."""

import functools as ft

from .. import _patching as ours, _work
from .._row import first_part, register, Rival, Row
from ..peers import _patching as peers


QUICK = {"layers": 2, "d_model": 32, "heads": 4, "batch": 2, "seq": 6, "vocabulary": 64, "timed": 4}
SMALL = {"layers": 12, "d_model": 768, "heads": 12, "vocabulary": 50257, "batch": 4, "seq": 16, "timed": 12}
XL = {"layers": 48, "d_model": 1600, "heads": 25, "vocabulary": 50257, "batch": 16, "seq": 32, "timed": 24}


@register("patching", quick=QUICK, small=SMALL, xl=XL)
def patching(*, timed: int, **sizes: int) -> Row:
    problem = ours.make_patching(**sizes)
    a_layer = sizes["seq"] + sizes["heads"]
    count = sizes["layers"] * a_layer

    def rival(name: str, prepare, *variants: str, tried: int, timed: int) -> Rival:
        return Rival(name, variants, prepare, first_part, "cells", tried=tried, timed=timed, all=count)

    whole = lambda variant, amount: peers.whole_runs(problem, amount)
    from_layers = ft.partial(peers.runs_from_layers, problem)
    # Cells are batched by layer, so whole layers are run, and around the middle one.
    layers = {"tried": min(2 * a_layer, count), "timed": min(4 * a_layer, count)}
    return Row(
        what="for every cell the metric with it as on the other prompt: what enters each block at each position, and each head's output at "
        "all positions; prompts differ in three tokens",
        sizes=sizes,
        prepare=lambda: ours.run(problem),
        check=ft.partial(ours.check, problem),
        rivals=(
            rival("a run of the model a cell in PyTorch", whole, "with hooks", tried=max(1, timed // 2), timed=timed),
            rival("PyTorch, from the cell's layer on", from_layers, "all cells", "cells that differ", **layers),
        ),
        work=_work.patching(**sizes),
        numbers=ft.partial(ours.numbers, problem),
        against="runs of the whole model",
    )

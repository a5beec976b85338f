"""Causal scrubbing of a hypothesis of two levels."""

import functools as ft

import numpy as np

from .. import _ours_scrubbing as ours, _work
from .._row import first_part, register, Rival, Row
from .._scrubbing import make_scrubbing
from ..peers import _scrubbing as peers


QUICK = {"layers": 4, "d_model": 32, "heads": 4, "batch": 4, "seq": 5, "vocabulary": 64, "samples": 3, "timed": 2}
GPT2 = {"layers": 12, "d_model": 768, "heads": 12, "vocabulary": 50257}
SMALL = {**GPT2, "batch": 16, "seq": 16, "samples": 10, "timed": 2}
XL = {**GPT2, "batch": 100, "seq": 16, "samples": 20, "timed": 4}


@register("scrubbing", quick=QUICK, small=SMALL, xl=XL)
def scrubbing(*, timed: int, **sizes: int) -> Row:
    problem = make_scrubbing(**sizes)
    draws = ours.draws(problem)
    return Row(
        what="the metric with all resampled but three heads, by what four heads write to their queries",
        sizes=sizes,
        prepare=lambda: ours.scrub(problem),
        check=ft.partial(ours.check_scrubbing, problem),
        rivals=(
            Rival(
                "a run of the model a claim in PyTorch",
                ("a loop",),
                lambda variant, amount: peers.whole_runs(problem, draws, amount),
                first_part,
                "samples",
                tried=max(1, timed // 2),
                timed=timed,
                all=problem.samples,
            ),
        ),
        work=_work.scrubbing(**sizes),
        numbers=lambda found: np.asarray(found.values),
        against="runs of the whole model",
    )

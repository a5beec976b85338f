"""The Jacobian lens of one prompt."""

import functools as ft

import numpy as np

from .. import _lens as ours, _work
from .._row import register, Rival, Row
from ..peers import _lens as peers


QUICK = {"layers": 3, "d_model": 32, "heads": 4, "seq": 12, "vocabulary": 64, "skip_first": 4, "timed": 16}
SMALL = {"layers": 4, "d_model": 768, "heads": 12, "seq": 64, "vocabulary": 50257, "skip_first": 16, "timed": 64}
XL = {"layers": 48, "d_model": 1600, "heads": 25, "seq": 128, "vocabulary": 50257, "skip_first": 16, "timed": 64}


@register("lens", quick=QUICK, small=SMALL, xl=XL)
def lens(*, timed: int, **sizes: int) -> Row:
    problem = ours.make_lens(**sizes)
    prepare, all = ft.partial(peers.fit, problem), sizes["d_model"]
    of_first = lambda numbers, variant, amount: np.asarray(numbers)[:, :amount]

    def rival(name: str, *variants: str) -> Rival:
        return Rival(name, variants, prepare, of_first, "rows", tried=timed // 2, timed=timed, all=all)

    return Row(
        what="the Jacobian lens of one prompt: for every layer below the last the mean Jacobian over its valid positions",
        sizes=sizes,
        prepare=lambda: ours.run(problem),
        check=ft.partial(ours.check, problem),
        rivals=(
            rival("PyTorch, 8 cotangents a pass, each on a run of its own", "8 on as many runs"),
            rival("PyTorch, cotangents on one run", "8 on one run", "32 on one run"),
        ),
        work=_work.lens(**{name: sizes[name] for name in ("layers", "d_model", "seq", "skip_first")}),
        numbers=ours.numbers,
    )

"""Path patching: every sender to the queries of three heads."""

import functools as ft

from .. import _path_patching as ours, _work
from .._row import first_part, register, Rival, Row
from ..peers import _path_patching as peers


QUICK = {"layers": 3, "d_model": 32, "heads": 4, "batch": 2, "seq": 6, "vocabulary": 64, "timed": 4}
SMALL = {"layers": 12, "d_model": 768, "heads": 12, "vocabulary": 50257, "batch": 4, "seq": 16, "timed": 12}
XL = {"layers": 48, "d_model": 1600, "heads": 25, "vocabulary": 50257, "batch": 16, "seq": 32, "timed": 24}


@register("path-patching", quick=QUICK, small=SMALL, xl=XL)
def path_patching(*, timed: int, **sizes: int) -> Row:
    problem = ours.make_paths(**sizes)
    count, first = len(problem.senders), min(layer for layer, _ in problem.receivers)

    def rival(name: str, prepare, *variants: str, tried: int, timed: int) -> Rival:
        return Rival(name, variants, prepare, first_part, "senders", tried=tried, timed=timed, all=count)

    whole = lambda variant, amount: peers.whole_runs(problem, amount)
    from_receivers = ft.partial(peers.runs_from_receivers, problem)
    some = {"tried": min(2 * timed, count), "timed": min(4 * timed, count)}
    return Row(
        what="the metric with what each sender writes on the other prompt put in where the queries of three heads in two late layers read, "
        "and nowhere else; all behind computed anew; prompts differ in three tokens",
        sizes=sizes,
        prepare=lambda: ours.run(problem),
        check=ft.partial(ours.check, problem),
        rivals=(
            rival("a run of the model a sender in PyTorch", whole, "with hooks", tried=max(1, timed // 2), timed=timed),
            rival("PyTorch, from the first receiver on", from_receivers, "1 at once", "16 at once", **some),
        ),
        work=_work.path_patching(**sizes, senders=count, first=first),
        numbers=ft.partial(ours.numbers, problem),
        against="runs of the whole model",
    )

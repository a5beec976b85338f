"""Self-repair of every head: each ablated by itself, and what later heads do about it."""

import functools as ft

from .. import _ours_repair as ours, _work
from .._repair import make_repair
from .._row import first_part, register, Rival, Row
from ..peers import _repair as peers


QUICK = {"layers": 2, "d_model": 32, "heads": 4, "batch": 2, "seq": 5, "vocabulary": 64, "timed": 4}
GPT2 = {"layers": 12, "d_model": 768, "heads": 12, "vocabulary": 50257}
SMALL = {**GPT2, "batch": 4, "seq": 32, "timed": 6}
XL = {**GPT2, "batch": 50, "seq": 100, "timed": 24}


@register("self-repair", quick=QUICK, small=SMALL, xl=XL)
def self_repair(*, timed: int, **sizes: int) -> Row:
    problem = make_repair(**sizes)
    heads, count = sizes["heads"], sizes["layers"] * sizes["heads"]
    # Heads are batched by layer, so whole layers are run, and around the middle one.
    layers = {"tried": min(2 * heads, count), "timed": min(4 * heads, count)}

    def rival(name: str, prepare, *variants: str, tried: int, timed: int) -> Rival:
        return Rival(name, variants, prepare, first_part, "heads", tried=tried, timed=timed, all=count)

    whole = lambda variant, amount: peers.whole_runs(problem, amount)
    from_layers = ft.partial(peers.runs_from_layers, problem)
    batches = tuple(f"{n} heads at once" for n in sorted({max(2, heads // 4), heads}))
    return Row(
        what="for every head ablated by itself, the change of the later heads' direct effects on the next token",
        sizes=sizes,
        prepare=lambda: ours.repair(problem),
        check=ft.partial(ours.check_repair, problem),
        rivals=(
            rival("two runs of the model a head in PyTorch", whole, "a loop", tried=max(1, timed // 2), timed=timed),
            rival("PyTorch, from the head's layer on", from_layers, "head by head", *batches, **layers),
        ),
        work=_work.self_repair(**sizes),
        numbers=ft.partial(ours.repair_numbers, problem),
        against="runs of the whole model",
    )

"""Edges of the component graph: what each does by itself, exactly and by gradients."""

import functools as ft

from .. import _ours_component_edges as ours, _work
from .._component_edges import make_component_edges
from .._row import first_part, register, Rival, Row
from ..peers import _component_edges as peers


QUICK = {"layers": 2, "d_model": 32, "heads": 4, "batch": 2, "seq": 5, "vocabulary": 64}
GPT2 = {"layers": 12, "d_model": 768, "heads": 12, "vocabulary": 50257, "seq": 16}
XL = {**GPT2, "layers": 48, "d_model": 1600, "heads": 25}


@register(
    "exact-edges",
    quick={**QUICK, "edges": 24, "timed": 8},
    small={**GPT2, "batch": 1, "edges": 1024, "timed": 16},
    xl={**XL, "batch": 1, "edges": 1024, "timed": 16},
)
def exact_edges(*, timed: int, **sizes: int) -> Row:
    problem = make_component_edges(**sizes)

    def rival(name: str, prepare, *variants: str, timed: int) -> Rival:
        timed = min(timed, sizes["edges"])
        prepare, all = ft.partial(prepare, problem), sizes["edges"]
        return Rival(name, variants, prepare, first_part, "edges", tried=timed // 2, timed=timed, all=all)

    batches = ("edge by edge", "4 edges at once", "16 edges at once")
    return Row(
        what="the metric with an edge of the component graph patched by itself, for a random sample of all edges",
        sizes=sizes,
        prepare=lambda: ours.exact(problem),
        check=ft.partial(ours.check_exact, problem),
        rivals=(
            rival("PyTorch, a forward an edge", peers.whole_runs, "edge by edge", timed=timed),
            rival("PyTorch, from the receiver's layer on", peers.runs_from_layers, *batches, timed=8 * timed),
        ),
        work=_work.exact_edges(
            **{name: sizes[name] for name in ("layers", "d_model", "seq", "batch")},
            receivers=[edge.receiver[:2] for edge in problem.edges],
        ),
        numbers=ft.partial(ours.numbers, problem),
        against="runs of the whole model",
    )


@register(
    "edge-attribution",
    quick=QUICK,
    small={**GPT2, "batch": 4},
    xl={**XL, "batch": 4},
)
def edge_attribution(**sizes: int) -> Row:
    problem = make_component_edges(**sizes, edges=None)
    count = len(problem.edges)
    return Row(
        what="the scores of all edges of the component graph by one gradient at the clean prompts",
        sizes=sizes,
        prepare=lambda: ours.attribution(problem),
        check=ft.partial(ours.check_attribution, problem),
        rivals=(
            Rival(
                "PyTorch, gradients at inputs of each head",
                ("all at once",),
                ft.partial(peers.attribution, problem),
                first_part,
                "edges",
                tried=count,
                timed=count,
                all=count,
            ),
        ),
        work=_work.edge_attribution(**{name: sizes[name] for name in ("layers", "d_model", "heads", "seq", "batch")}),
        numbers=ft.partial(ours.numbers, problem),
        against="the slope of patching",
    )

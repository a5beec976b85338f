"""All edges into many single nodes of one prompt."""

import functools as ft

from .. import _node_edges as ours, _work
from .._row import first_part, register, Rival, Row
from ..peers import _node_edges as peers


QUICK = {"layers": 2, "d_model": 32, "heads": 4, "seq": 8, "vocabulary": 64, "nodes": 16, "timed": 8}
SMALL = {"layers": 12, "d_model": 768, "heads": 12, "seq": 64, "vocabulary": 50257, "nodes": 256, "timed": 32}
XL = {"layers": 48, "d_model": 1600, "heads": 25, "seq": 256, "vocabulary": 50257, "nodes": 256, "timed": 64}


@register("node-edges", quick=QUICK, small=SMALL, xl=XL)
def node_edges(*, timed: int, **sizes: int) -> Row:
    problem = ours.make_node_edges(**sizes)

    def rival(name: str, *variants: str) -> Rival:
        prepare, all = ft.partial(peers.edges_into, problem), sizes["nodes"]
        return Rival(name, variants, prepare, first_part, "nodes", tried=timed // 2, timed=timed, all=all)

    return Row(
        what="all edges into nodes, a quarter each neurons and heads' queries, keys and values, before their activation functions, from "
        "every neuron, every head at every pair of positions and every token upstream",
        sizes=sizes,
        prepare=lambda: ours.run(problem),
        check=ft.partial(ours.check, problem),
        rivals=(
            rival("PyTorch, a backward pass a node", "at all positions"),
            rival("PyTorch, a backward pass a node, and only what it reads", "at the position"),
        ),
        work=_work.node_edges(**{name: sizes[name] for name in ("layers", "d_model", "seq", "nodes")}),
        numbers=ours.numbers,
        against="what tokens push forward",
    )

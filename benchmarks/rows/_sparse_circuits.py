"""A whole sparse feature circuit on a model of GPT-2's size: the effects of all nodes, and then all edges."""

import functools as ft
from typing import Any

import numpy as np

from .. import _ours_circuits as ours, _work
from .._circuits import Circuit, middle_out, STEPS
from .._row import first_part, register, Rival, Row
from ..peers import _circuits as peers


QUICK = {"layers": 2, "d_model": 32, "heads": 4, "seq": 5, "vocabulary": 64, "batch": 2, "d_sae": 96, "active": 4}
SMALL = {
    **{"layers": 12, "d_model": 768, "heads": 12, "seq": 16, "vocabulary": 50257},
    **{"batch": 2, "d_sae": 24576, "active": 50},
}
XL = {
    **{"layers": 48, "d_model": 1600, "heads": 25, "seq": 16, "vocabulary": 50257},
    **{"batch": 2, "d_sae": 51200, "active": 50},
}
KEPT = {"quick": 4, "small": 30, "xl": 30}


@ft.lru_cache(maxsize=1)  # both rows are about the same circuit
def make_circuit(kept: int, **sizes: int) -> Circuit:
    return ours.circuit(kept=kept, **sizes)


def _sizes(circuit: Circuit, sizes: dict[str, int]) -> dict[str, int]:
    shown = {name: sizes[name] for name in ("layers", "d_model", "heads", "seq", "batch", "d_sae", "active")}
    return {**shown, "sites": len(circuit.coders)}


@register(
    "circuit-nodes",
    quick={**QUICK, "kept": KEPT["quick"], "timed": 2},
    small={**SMALL, "kept": KEPT["small"], "timed": 3},
    xl={**XL, "kept": KEPT["xl"], "timed": 7},
)
def circuit_nodes(*, timed: int, kept: int, **sizes: int) -> Row:
    circuit = make_circuit(kept, **sizes)
    # Sites around the middle one are as deep as all on average.
    order = middle_out(len(circuit.coders))

    def expected(numbers: np.ndarray, variant: str, amount: int) -> np.ndarray:
        return numbers[order[:amount]]

    def rival(name: str, prepare: Any, *variants: str) -> Rival:
        run = lambda variant, amount: prepare(circuit, variant, [list(circuit.coders)[i] for i in order[:amount]])
        return Rival(name, variants, run, expected, "sites", tried=1, timed=timed, all=len(order))

    return Row(
        what=f"effects of all latents and errors by integrated gradients, {STEPS} steps",
        sizes=_sizes(circuit, sizes),
        prepare=lambda: ours.nodes(circuit),
        check=ft.partial(ours.check_nodes, circuit),
        rivals=(
            rival("feature-circuits' algorithm in PyTorch", peers.nodes, "all steps at once", "step by step"),
            rival("PyTorch, from the site on", peers.nodes_from_sites, "all steps at once", "step by step"),
        ),
        work=_work.circuit_nodes(steps=STEPS, **_work_sizes(sizes)),
        numbers=ft.partial(ours.node_numbers, circuit),
    )


@register(
    "circuit-edges",
    quick={**QUICK, "kept": KEPT["quick"], "timed": 16},
    small={**SMALL, "kept": KEPT["small"], "timed": 48},
    xl={**XL, "kept": KEPT["xl"], "timed": 32},
)
def circuit_edges(*, timed: int, kept: int, **sizes: int) -> Row:
    circuit = make_circuit(kept, **sizes)
    rows, wires = len(circuit.rows.wire), len(circuit.wires)
    timed, some = min(timed, rows), min(12, wires)
    of = lambda amount: np.concatenate([circuit.rows.of(wire) for wire in range(amount)])
    chunks = (8, 32) if rows > 1000 else (8,)
    rivals = (
        Rival(
            "feature-circuits' algorithm in PyTorch",
            ("a backward pass a row",),
            lambda variant, amount: peers.edges(circuit, amount),
            first_part,
            *("backward passes", max(1, timed // 2), timed, rows),
        ),
        Rival(
            "PyTorch autodiff of the sublayer between",
            ("loop", *(f"vmap {chunk}" for chunk in chunks)),
            lambda variant, amount: peers.edges_between(circuit, variant, amount),
            lambda numbers, variant, amount: numbers[of(amount)],
            *("wires", max(1, some // 2), some, wires),
        ),
    )
    counts = {"rows": rows, "columns": circuit.width}
    return Row(
        what=f"edges into the {rows} node instances above a threshold, at the clean point",
        sizes={**_sizes(circuit, sizes), **counts},
        prepare=lambda: ours.edges(circuit),
        check=ft.partial(ours.check_edges, circuit),
        rivals=rivals,
        work=_work.circuit_edges(**_work_sizes(sizes), **counts),
        numbers=ft.partial(ours.edge_numbers, circuit),
    )


def _work_sizes(sizes: dict[str, int]) -> dict[str, int]:
    return {name: sizes[name] for name in ("layers", "d_model", "heads", "seq", "batch", "vocabulary", "d_sae")}

"""Verbs for whose prompts memory is planned, beside those of growth: the Jacobian lens."""

import jaxcirc as jc

from ._growth_verbs import make_problem, Point, Term, Verb, VERBS
from ._timing import Run


ROWS = 2**28  # bytes of the rows that a lens sweeps together
SKIPPED = 1  # positions at the beginning of a prompt


def fit_lens(point: Point) -> Run:
    model, _, clean, *_ = make_problem(point, ())
    return lambda: jc.fit_lens(model, [clean[0]], skip_first=SKIPPED, budget=ROWS).J


PLAN_VERBS: dict[str, Verb] = {
    "node_effects": VERBS["node_effects"],
    "edge_effects": VERBS["edge_effects"],
    "fit_lens": Verb(
        fit_lens,
        False,
        (
            Term("the maps: those of a prompt, and the mean", lambda p: (p.blocks - 1) * p.width**2, each=(8, 40)),
            # The rows, and beside them what they pass in one block.
            Term("rows on their way", lambda p: p.seq * p.width**2, each=(4, 64), most=4 * ROWS),
            Term("the run of every block", lambda p: p.seq * p.blocks * p.width),
        ),
    ),
}

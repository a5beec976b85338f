"""Verbs for whose prompts memory is planned, beside those of growth: the Jacobian lens, and edge attribution."""

import jaxcirc as jc

from ._growth_verbs import make_problem, Point, Term, Verb, VERBS
from ._timing import Run


ROWS = 2**28  # bytes of the rows that a lens sweeps together
SKIPPED = 1  # positions at the beginning of a prompt


def fit_lens(point: Point) -> Run:
    model, _, clean, *_ = make_problem(point, ())
    return lambda: jc.fit_lens(model, [clean[0]], skip_first=SKIPPED, budget=ROWS).J


def edge_attribution(point: Point) -> Run:
    model, _, clean, corrupt, metric = make_problem(point, ())
    return lambda: jc.edge_attribution(model, clean, corrupt, metric)


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
    "edge_attribution": Verb(
        edge_attribution,
        True,
        (
            Term(
                "what every head and MLP writes, and by how much that differs",
                lambda p: p.tokens * p.blocks * (p.heads + 1) * p.width,
                each=(4, 16),
            ),
            Term(
                "gradients at what the receivers of one block read",
                lambda p: p.tokens * (3 * p.heads + 1) * p.width,
                each=(4, 64),
            ),
        ),
    ),
}

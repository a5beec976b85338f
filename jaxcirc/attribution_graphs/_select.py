"""Which latents get rows: those of most influence, found as rows are computed."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from ._influence import influence, output_weights
from ._rows import Report, Rows
from ._table import ERROR, LATENT, LOGIT, Table


RANKED_ANEW = 1024  # latents whose rows are computed between two rankings
UNSELECTED = -2  # the unit of a node that stands for the latents without rows at a site and position


def select(
    rows: Rows, table: Table, max_nodes: int | None, dtype: np.dtype, report: Report
) -> tuple[Float[np.ndarray, "target node"], Int[np.ndarray, " target"]]:
    """Computes the rows of outputs and of at most `max_nodes` latents: those of most influence on the outputs by way of the rows that are
    computed already, ranked anew after every 1,024.

    **Returns:** rows, and the nodes that they are of, in the table's order.
    """
    latents, outputs = (np.flatnonzero(table.kind == kind) for kind in (LATENT, LOGIT))
    count = len(latents) if max_nodes is None else min(max_nodes, len(latents))
    found, targets = np.zeros((len(outputs) + count, len(table)), dtype), outputs
    rows.of(outputs, found[: len(outputs)], report)
    while len(targets) < len(found):
        begin, left = len(targets), len(found) - len(targets)
        if count == len(latents):
            chosen = latents
        else:
            chosen = _ranked(found[:begin], targets, table)[: min(left, RANKED_ANEW)]
        targets = np.concatenate([targets, chosen])
        rows.of(chosen, found[begin : len(targets)], report)
    order = np.argsort(targets)
    return found[order], targets[order]


def _ranked(found, targets, table: Table) -> Int[np.ndarray, " latent"]:
    """Lists latents without a row by their influence; of equal ones the first."""
    reached = influence(found, targets, output_weights(table))
    reached[table.kind != LATENT] = -1
    reached[targets] = -1
    return np.argsort(-reached, kind="stable")


def merge_unselected(
    found: Float[np.ndarray, "target node"], targets: Int[np.ndarray, " target"], table: Table
) -> tuple[Float[np.ndarray, "target left"], Int[np.ndarray, " target"], Table]:
    """Puts latents without a row together: those of one site and position become one node, of kind error, so that rows sum as before.

    **Returns:** rows, targets and table of the nodes that are left.
    """
    without = table.kind == LATENT
    without[targets] = False
    if not without.any():
        return found, targets, table
    rest, kept = np.flatnonzero(without), np.flatnonzero(~without)
    # They lie in the order of sites and positions.
    first = np.flatnonzero(np.diff(table.site[rest], prepend=-1) | np.diff(table.pos[rest], prepend=-1))
    merged = np.add.reduceat(found[:, rest], first, axis=1)
    of_each = table.some(rest[first])
    nothing = np.full_like(of_each.value, np.nan)
    more = dataclasses.replace(
        of_each,
        kind=np.full_like(of_each.kind, ERROR),
        unit=np.full_like(of_each.unit, UNSELECTED),
        activation=nothing,
        value=nothing,
    )
    return (
        np.concatenate([found[:, kept], merged], axis=1),
        np.searchsorted(kept, targets),
        table.some(kept).joined(more),
    )

"""The ends of paths by name: receivers, stage by stage, and which senders are patched together."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from .._checks import check_list
from ..graph import ComponentGraph


Group = str | Sequence[str]


def chain_of(who: str, graph: ComponentGraph, receivers) -> list[list[int]]:
    """The numbers of the receivers, stage by stage. **Raises:** `ValueError` for a name that is none, or a stage that nothing reaches."""
    given = check_list(f"{who}: receivers", "receivers", receivers)
    if not given:
        raise ValueError(f"{who}: no receiver was given. Name some, such as ['a1.h0.q'] or ['logits'].")
    nested = [not isinstance(each, str) for each in given]
    if any(nested) and not all(nested):
        raise ValueError(f"{who}: receivers are names, or lists of names that are a chain; got both, {given!r}.")
    names = [check_list(f"{who}: receivers", "names", stage) for stage in given] if all(nested) else [given]
    chain = [[graph.receiver(name) for name in stage] for stage in names]
    edges = graph.of_one_position
    for number, stage in enumerate(chain):
        if not stage:
            raise ValueError(f"{who}: stage {number} of the chain has no receiver.")
        if number == len(chain) - 1:
            continue
        writers = graph.reads[:, stage].any(1)
        for receiver in chain[number + 1]:
            if not edges[writers, receiver].any():
                raise ValueError(
                    f"{who}: {graph.receivers[receiver]} reads the residual stream before any of "
                    f"{', '.join(names[number])} writes to it, so that the chain does not go on there. Order the stages from the "
                    "embedding to the logits."
                )
    return chain


def groups_of(who: str, graph: ComponentGraph, senders, first: list[int]) -> Bool[np.ndarray, "group sender"]:
    """Which senders are patched together. **Raises:** `ValueError` for one that reaches none of the first receivers."""
    if senders is None:
        return np.eye(len(graph.senders), dtype=bool)
    given = check_list(f"{who}: senders", "senders", senders)
    if not given:
        raise ValueError(
            f"{who}: no sender was given. Name some, such as ['a0.h1', 'm0'], or leave senders out for all."
        )
    groups = np.zeros((len(given), len(graph.senders)), bool)
    edges = graph.of_one_position
    for number, group in enumerate(given):
        names = [group] if isinstance(group, str) else check_list(f"{who}: senders", "names", group)
        if not names:
            raise ValueError(f"{who}: group {number} of the senders is empty. Leave it out.")
        for name in names:
            sender = graph.sender(name)
            if not edges[sender, first].any():
                raise ValueError(
                    f"{who}: {name} writes to the residual stream behind all that {', '.join(graph.receivers[i] for i in first)} read. "
                    "Senders are before receivers."
                )
            groups[number, sender] = True
    return groups

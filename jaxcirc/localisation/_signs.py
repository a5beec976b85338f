"""What the sign of a score seems to say."""

from typing import Literal

import numpy as np
from jaxtyping import Float

from ..graph import ComponentGraph


Sign = Literal["helps", "hurts", "none"]


def sign_of(graph: ComponentGraph, scores: Float[np.ndarray, "sender receiver"]) -> Sign:
    """Says what a score above 0 seems to mean of an edge; `"none"` without scores below 0.

    Those of all edges across a cut of the model sum to about what the task loses by the corruption. So where positive helps, those into the
    logits sum to more than 0, and those of all edges, too.
    """
    values = scores[graph.edges]
    if not (values < 0).any():
        return "none"
    into_logits = scores[:, graph.receiver("logits")]
    part = lambda x: np.nansum(x) / max(np.nansum(np.abs(x)), np.finfo(float).tiny)
    spread = np.sqrt(np.nansum(values**2))  # of a sum of random signs: a sum of few edges is often below 0
    return "hurts" if max(part(values), part(into_logits)) < -0.1 and np.nansum(values) < -2 * spread else "helps"

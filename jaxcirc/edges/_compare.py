"""Edges of several runs side by side: of two prompts, and of many, with error bars."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from .._checks import check_count, check_kind, check_list, check_seed
from ._into_result import EdgesInto
from ._out_result import EdgesOutOf
from ._table import COLUMNS, described, first, Part


if TYPE_CHECKING:
    import pandas as pd


def compare(clean: EdgesInto | EdgesOutOf, corrupt: EdgesInto | EdgesOutOf, k: int = 20) -> "pd.DataFrame":
    """The edges of one node that differ most between two prompts of one length.

    **Returns:** a data frame as `EdgesInto.table` gives it, with `clean`, `corrupt` and `difference`, corrupt − clean, the largest
    difference first.

    **Raises:** `ValueError` for edges of different nodes' kinds, models, dictionaries or lengths.

    >>> into = lambda tokens: jc.edges_into(model, tokens, jc.LogitDiff(5), jc.Neuron(2, 4, 130))
    >>> list(jc.edges.compare(into(tokens), into(tokens[::-1])).columns[-3:])
    ['clean', 'corrupt', 'difference']
    """
    import pandas as pd

    check_count("compare: k", "edges to list", k)
    parts, values = _stacked("compare", [clean, corrupt])
    chosen = first(values[1] - values[0], k, "size")
    table = pd.DataFrame(described(parts, chosen), columns=COLUMNS)
    return table.assign(clean=values[0, chosen], corrupt=values[1, chosen], difference=(values[1] - values[0])[chosen])


def stability(
    edges: Sequence[EdgesInto] | Sequence[EdgesOutOf], k: int = 20, *, resamples: int = 1000, seed: int = 0
) -> "pd.DataFrame":
    r"""The edges of one node whose mean over prompts is largest, and how far it can be trusted.

    **Arguments:** - `edges`: of each prompt, all of one length, the node at the same positions. - `resamples`: drawings of as many
    prompts with replacement, the bootstrap (Efron 1979). - `seed`: of these.

    **Returns:** a data frame as `EdgesInto.table` gives it, with `mean`; its `standard_error`, the standard deviation over resamples of
    their mean; `same_sign`, the share of resamples whose mean has the sign of `mean`; and `prompts`, the share of prompts whose edge has.
    An edge is stable where both are near 1.

    **Raises:** `ValueError` for fewer than two prompts, and for edges that do not match.

    >>> runs = [jc.edges_into(model, tokens + i, jc.LogitDiff(5), jc.Neuron(2, 4, 130)) for i in range(3)]
    >>> list(jc.edges.stability(runs, k=5).columns[-4:])
    ['mean', 'standard_error', 'same_sign', 'prompts']
    """
    import pandas as pd

    check_count("stability: k", "edges to list", k)
    check_count("stability: resamples", "drawings to take", resamples, least=2)
    check_seed("stability: seed", seed)
    edges = check_list("stability: edges", "edges of each prompt", edges)
    if len(edges) < 2:
        raise ValueError(f"stability: a mean has an error only of two prompts or more, got {len(edges)}.")
    parts, values = _stacked("stability", edges)
    mean = values.mean(0)
    chosen = first(mean, k, "size")
    some = values[:, chosen]
    weights = np.random.default_rng(seed).multinomial(len(some), np.full(len(some), 1 / len(some)), resamples)
    means = weights @ some / len(some)
    table = pd.DataFrame(described(parts, chosen), columns=COLUMNS)
    return table.assign(
        mean=mean[chosen],
        standard_error=means.std(0, ddof=1),
        same_sign=(np.sign(means) == np.sign(mean[chosen])).mean(0),
        prompts=(np.sign(some) == np.sign(mean[chosen])).mean(0),
    )


def _stacked(what: str, edges: Sequence[EdgesInto | EdgesOutOf]) -> tuple[list[Part], Float[np.ndarray, "prompt edge"]]:
    """The edges of all runs, and what they are of. **Raises:** `ValueError` unless they are of nodes alike."""
    for each in edges:
        check_kind(f"{what}: edges", each, (EdgesInto, EdgesOutOf), "what jc.edges_into or jc.edges_out_of gives")
    lists = [list(each.parts()) for each in edges]
    about = [
        [(part.kind, part.site, [tuple(numbers) for _, numbers in part.axes]) for part in parts] for parts in lists
    ]
    if any(each != about[0] for each in about):
        raise ValueError(
            f"{what}: the edges are not of nodes alike. Give those of one node, at the same positions, with the same dictionaries, "
            "of prompts of one length."
        )
    return lists[0], np.stack([np.concatenate([part.values.reshape(-1) for part in parts]) for parts in lists])

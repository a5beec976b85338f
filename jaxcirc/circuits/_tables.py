"""The tables of a circuit, from lists of effects and sparse matrices of edges."""

from collections.abc import Mapping
from typing import Any, TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from .._sites import Site
from ._node_list import NodeList
from ._rows import METRIC


if TYPE_CHECKING:
    import pandas as pd

Names = Mapping[Site, tuple[Int[np.ndarray, " n"], np.ndarray]]
"""Of each site the numbers of the kept nodes, ascending, and their names."""


def node_table(kept: Mapping[Site, NodeList]) -> "tuple[pd.DataFrame, Names]":
    """Makes the table of kept nodes, and their names by number."""
    import pandas as pd

    parts, names = [], {}
    for site, (numbers, effects, shape) in kept.items():
        d_sae, summed = shape[-1] - 1, len(shape) == 1
        pos, unit = np.divmod(numbers, d_sae + 1)
        error = unit == d_sae
        labels = zip(unit.tolist(), error.tolist(), pos.tolist(), strict=True)
        prefix = f"{site}/"
        named = [prefix + ("error" if e else str(u)) + ("" if summed else f"@{p}") for u, e, p in labels]
        names[site] = (numbers, np.array(named, object))
        columns = {
            "node": named,
            "site": str(site),
            "unit": unit,
            "kind": np.where(error, "error", "latent"),
            "pos": pd.array([pd.NA] * len(pos) if summed else pos, "Int64"),
            "effect": effects.astype(np.float64),
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True), names


def edge_table(weights: Mapping[tuple[Site, Site | None], Any], names: Names, threshold: float) -> "pd.DataFrame":
    """Makes the table of edges with `|weight| > threshold`, the strongest first; `weights` `[target source]`, target `None` the metric."""
    import pandas as pd

    parts = [
        pd.DataFrame({"source": pd.Series(dtype=object), "target": pd.Series(dtype=object), "weight": np.zeros(0)})
    ]
    for (source, target), matrix in weights.items():
        entries = matrix.tocoo()
        strong = np.abs(entries.data) > threshold
        row, column = (index[strong] for index in entries.coords)
        targets = np.full(len(row), METRIC, object) if target is None else _named(names[target], row)
        columns = {"source": _named(names[source], column), "target": targets, "weight": entries.data[strong]}
        parts += [pd.DataFrame(columns)] if len(row) else []
    table = pd.concat(parts[1:] or parts, ignore_index=True)
    return table.sort_values("weight", key=abs, ascending=False, ignore_index=True)


def _named(names: tuple[np.ndarray, np.ndarray], numbers: np.ndarray) -> np.ndarray:
    kept, named = names
    return named[np.searchsorted(kept, numbers)]

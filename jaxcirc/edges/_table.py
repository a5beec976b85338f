"""Edges as tables: the strongest of them, and their sums by what they have in common."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from .._checks import check_choice, check_count
from .._sites import Kind, Site
from ..nodes import name_of


if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["node", "kind", "layer", "pos", "key", "unit", "site"]
ORDERS = ("size", "top", "bottom")


class Part(NamedTuple):
    """Edges of one kind as an array, and what each of its axes is: the name of a column, and the number that each place has there."""

    kind: str
    values: Float[np.ndarray, "..."]
    axes: tuple[tuple[str, Int[np.ndarray, " n"]], ...]
    site: Site | None = None

    def rows(self, flat: Int[np.ndarray, " n"]) -> list[dict]:
        """What the edges at these places of the flat array are of."""
        found = np.unravel_index(flat, self.values.shape)
        columns = {name: numbers[at] for (name, numbers), at in zip(self.axes, found, strict=True)}
        return [self._row({name: int(each[i]) for name, each in columns.items()}) for i in range(len(flat))]

    def _row(self, at: dict[str, int]) -> dict:
        site = self.site
        if self.kind == "bias":
            site = Site(at["layer"], Kind.ATTN_OUT if at.pop("sublayer") == 0 else Kind.MLP_OUT)
        layer = at.get("layer", None if site is None else site.layer)
        fields = {
            "neuron": ("layer", "pos", "unit"),
            "latent": ("site", "pos", "unit"),
            "error": ("site", "pos"),
            "token": ("pos",),
            "bias": ("site", "pos"),
            "final": (),
        }.get(self.kind, ("layer", "unit", "pos", "key"))
        known = {**at, "site": None if site is None else str(site)}
        part = [self.kind] if self.kind in ("q", "k", "v") else []
        name = name_of("head" if part else self.kind, *(known[field] for field in fields), *part)
        return {"node": name, "kind": self.kind, **{key: None for key in COLUMNS[2:]}, **known, "layer": layer}


def check_one(batch: tuple[int, ...]) -> None:
    """ValueError for edges of several nodes."""
    if batch:
        raise ValueError(
            f"These are the edges of {' x '.join(map(str, batch))} nodes. A table is of one: take it out by "
            "jax.tree.map(lambda x: x[i], edges), or use jc.edges.strongest_edges."
        )


def table_of(parts: Sequence[Part], k: int, order: str) -> "pd.DataFrame":
    """The `k` first edges in an order."""
    import pandas as pd

    check_count("table: k", "edges to list", k)
    check_choice("table: order", order, ORDERS)
    values = np.concatenate([part.values.reshape(-1) for part in parts])
    chosen = first(values, k, order)
    return pd.DataFrame(described(parts, chosen), columns=COLUMNS).assign(edge=values[chosen])


def first(values: Float[np.ndarray, " n"], k: int, order: str) -> Int[np.ndarray, " k"]:
    """The places of the `k` first values that are not zero: by size, from the top, or from the bottom."""
    keys = {"size": -np.abs(values), "top": -values, "bottom": values}[order]
    there = np.flatnonzero(values)
    keys = keys[there]
    some = there if len(there) <= k else there[np.argpartition(keys, k)[:k]]
    by = {"size": -np.abs(values[some]), "top": -values[some], "bottom": values[some]}[order]
    return some[np.argsort(by, kind="stable")]


def described(parts: Sequence[Part], chosen: Int[np.ndarray, " n"]) -> list[dict]:
    """What edges at places in the concatenation of all parts are of, in their order."""
    ends = np.cumsum([part.values.size for part in parts])
    which = np.searchsorted(ends, chosen, side="right")
    found: list[dict] = [{}] * len(chosen)
    for number, part in enumerate(parts):
        here = np.flatnonzero(which == number)
        for place, row in zip(here, part.rows(chosen[here] - (ends[number] - part.values.size)), strict=True):
            found[place] = row
    return found


def sums_of(parts: Sequence[Part], by: str) -> "pd.DataFrame":
    """The sums of edges by kind and layer, or by kind and position, and of their sizes."""
    import pandas as pd

    check_choice("sums: by", by, ("kind", "layer", "pos"))
    found: dict[tuple, list[float]] = {}
    for part in parts:
        for group, values in _groups(part, by):
            total = found.setdefault((part.kind, group), [0.0, 0.0])
            total[0] += float(values.sum())
            total[1] += float(np.abs(values).sum())
    if by == "kind":
        return pd.DataFrame([(kind, *sums) for (kind, _), sums in found.items()], columns=["kind", "sum", "size"])
    return pd.DataFrame([(*key, *sums) for key, sums in found.items()], columns=["kind", by, "sum", "size"])


def _groups(part: Part, by: str) -> Iterator[tuple[int | None, Float[np.ndarray, "..."]]]:
    """Yields a part's edges by what they have in common."""
    names = [name for name, _ in part.axes]
    if by not in names:
        yield None if part.site is None or by != "layer" else part.site.layer, part.values
        return
    axis = names.index(by)
    for place, number in enumerate(part.axes[axis][1]):
        yield int(number), np.take(part.values, place, axis)

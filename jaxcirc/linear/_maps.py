"""Local maps: the derivative of what a part makes of a position, at the same position.

An item `[n width]` at positions `[n]` is pushed forward, or pulled back, map by map.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int

from .._indexing import take
from .._sites import Kind


Items = Float[Array, "n width"]
Positions = Int[Array, " n"]
Push = Callable[[Items, Positions], Items]


class LocalMap(NamedTuple):
    """The derivative of the value at one kind of site with respect to that at another, all between them held.

    `push` takes vectors `[n width]` at positions `[n]` to their images `[n width_target]`.
    """

    source: Kind
    target: Kind
    push: Push
    width: int  # of the source

    def pull(self, covectors: Float[Array, "n width_target"], positions: Positions) -> Float[Array, "n width_source"]:
        """Takes covectors of the target to covectors of the source."""
        like = jax.ShapeDtypeStruct((covectors.shape[0], self.width), covectors.dtype)
        return jax.linear_transpose(lambda x: self.push(x, positions), like)(covectors)[0]


def push(maps: Iterable[LocalMap], items: dict[Kind, Items], positions: Positions) -> dict[Kind, Items]:
    """Finds the images of items at every kind to which the maps, in execution order, lead from where the items are."""
    items = dict(items)
    for each in maps:
        if each.source in items:
            image = each.push(items[each.source], positions)
            items[each.target] = items[each.target] + image if each.target in items else image
    return items


def pull(maps: Iterable[LocalMap], covectors: dict[Kind, Items], positions: Positions) -> dict[Kind, Items]:
    """Finds the covectors at every kind from which the maps, in execution order, lead to where covectors are."""
    covectors = dict(covectors)
    for each in reversed(list(maps)):
        if each.target in covectors:
            image = each.pull(covectors[each.target], positions)
            covectors[each.source] = covectors[each.source] + image if each.source in covectors else image
    return covectors


def same(x: Items, positions: Positions) -> Items:
    """The map of what is passed on as it is."""
    return x


def diagonal(slope: Float[Array, "seq width"]) -> Push:
    """The map of a product with a number for each coordinate at each position."""
    return lambda x, positions: x * take(slope, positions)


def dense(W: Float[Array, "d_in d_out"]) -> Push:
    """The map of a product with a matrix."""
    # [n d_in] · [d_in d_out] -> [n d_out]
    return lambda x, positions: x @ W

"""A hypothesis with its data drawn: each claim's own datum and that of all else that it reads."""

import dataclasses
from collections.abc import Hashable, Iterator

import numpy as np
from jaxtyping import Int

from ._claim import Claim
from ._data import Data
from ._samplers import Rows, Words


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
    """A claim of a tree in which data are drawn.

    **Attributes:** - `own`: its datum, for each example of each sample, `[sample batch]`, or for some, `[variant]`. - `others`: that of all
    that its children are not.
    """

    path: str
    claim: Claim
    own: Int[np.ndarray, "*variant"]
    others: Int[np.ndarray, "*variant"]
    children: tuple["Drawn", ...]

    @property
    def form(self) -> Hashable:
        """What is computed, whatever the data: claims of one form are run together, and the same values once."""
        if not self.children:
            return self.claim.name
        below = tuple((child.claim.through, child.claim.where, child.form) for child in self.children)
        return self.claim.name, self.claim.paths, below

    def walk(self) -> Iterator["Drawn"]:
        """Yields the claims of the tree, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()

    def of(self, variants: Int[np.ndarray, " variant"]) -> "Drawn":
        """The tree of some of the examples of all samples, which are numbered sample by sample."""
        own, others = (rows.reshape(-1)[variants] for rows in (self.own, self.others))
        return dataclasses.replace(
            self, own=own, others=others, children=tuple(child.of(variants) for child in self.children)
        )


def draw(claim: Claim, rows: Rows, data: Data, words: Words, parent: str = "") -> Drawn:
    """Draws the data of a claim that takes the place of `rows` in its parent, and of all below it."""
    path = f"{parent}/{claim.label}" if parent else claim.label
    own = claim.sampler.draw(words.at(f"{path} datum"), rows, data)
    others = claim.others.draw(words.at(f"{path} others"), own, data) if claim.children else own
    return Drawn(path, claim, own, others, tuple(draw(child, own, data, words, path) for child in claim.children))

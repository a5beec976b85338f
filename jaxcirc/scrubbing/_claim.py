"""Claims: a hypothesis about a computation as a tree, from the logits down to what they are said to depend on."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool

from .._checks import check_choice, check_kind
from ..graph import ComponentGraph
from ._data import check_field, Data, Field
from ._samplers import AbstractSampler, check_sampler, Unconditional


ROOT = "logits"
INPUTS = ("q", "k", "v")


@dataclasses.dataclass(frozen=True)
class Claim:
    """That a component may be run on another datum: what its value depends on, and which of what it reads matters.

    A hypothesis is a claim about `logits`, whose children are components that the logits read, whose children in turn are what these read.
    Of a claim with children the component is run on inputs in which each child's edge carries the child's value, on the child's own datum,
    and every other edge what its sender writes on a datum drawn by `others`. One without children is the component on its datum.

    **Arguments:**

    - `name`: `"logits"`, or a sender of the component graph: `"a9.h6"`, `"m0"`, `"embed"`.
    - `sampler`: which datum takes the place of the parent's: `jc.Exact()`, `jc.Unconditional()`, `jc.Conditional(fn)`.
    - `children`: claims about what it reads.
    - `others`: which datum all else that it reads is on, drawn in place of its own datum.
    - `through`: by which input of the parent, a head, it is read: `"q"`, `"k"`, `"v"`, or all three.
    - `positions`: the edge to the parent carries it at these positions alone, and elsewhere what `others` of the parent draws: a name of
      `Prompts.positions`, a number, or several. They are where the *reference* example has them, in the whole tree.
    - `paths`: how children reach the component: `"direct"`, by the edge alone, past all that lies between; or by `"any"` path, in a run on
      the others' datum in which what children write is replaced, and all between them and the component is computed anew.

    **Raises:** `TypeError` for what are no claims or samplers; `ValueError` for other words.

    >>> jc.Claim("logits", jc.Exact(), children=[jc.Claim("a1.h0", jc.Conditional("end"), positions="end")]).children[0].name
    'a1.h0'
    """

    name: str
    sampler: AbstractSampler
    _: dataclasses.KW_ONLY
    children: Sequence["Claim"] = ()
    others: AbstractSampler = Unconditional()
    through: Literal["q", "k", "v"] | None = None
    positions: Field | tuple[Field, ...] | list[Field] | None = None
    paths: Literal["direct", "any"] = "direct"

    def __post_init__(self):
        check_kind("Claim: name", self.name, str, "the name of a component, such as 'a1.h0'")
        check_sampler(f"Claim {self.name}: sampler", self.sampler)
        check_sampler(f"Claim {self.name}: others", self.others)
        check_kind(f"Claim {self.name}: children", self.children, (list, tuple), "a list of claims")
        for child in self.children:
            check_kind(f"Claim {self.name}: children", child, Claim, "claims, as jc.Claim(name, sampler) makes one")
        object.__setattr__(self, "children", tuple(self.children))
        check_choice(f"Claim {self.name}: paths", self.paths, ("direct", "any"))
        expected = "names or numbers of positions"
        if self.through is not None:
            check_choice(f"Claim {self.name}: through", self.through, INPUTS)
        if self.positions is not None:
            check_kind(f"Claim {self.name}: positions", self.positions, (str, int, list, tuple), expected)
        if isinstance(self.positions, list):  # a claim is equal to another however its list is written
            object.__setattr__(self, "positions", tuple(self.positions))
        if self.where == ():
            raise ValueError(f"Claim {self.name}: positions: expected at least one, or None for all.")
        for position in self.where or ():
            check_field(f"Claim {self.name}: positions", position, expected)

    @property
    def where(self) -> tuple[Field, ...] | None:
        """All its positions."""
        if self.positions is None:
            return None
        return (self.positions,) if isinstance(self.positions, (str, int)) else tuple(self.positions)

    @property
    def is_head(self) -> bool:
        return ".h" in self.name

    @property
    def reads(self) -> tuple[str, ...]:
        """The inputs that it has: a head three, all others one."""
        return INPUTS if self.is_head else ("in",)

    @property
    def label(self) -> str:
        """What tells it from its siblings."""
        through = "" if self.through is None else f".{self.through}"
        positions = "" if self.where is None else "@" + "+".join(map(str, self.where))
        return f"{self.name}{through}{positions}"

    def feeds(self, part: str) -> bool:
        """Whether it is read by this input of its parent."""
        return part == "in" or self.through in (None, part)

    def walk(self, path: str = "") -> Iterator[tuple[str, "Claim"]]:
        """Yields all claims of the tree with their paths, parents first."""
        path = f"{path}/{self.label}" if path else self.label
        yield path, self
        for child in self.children:
            yield from child.walk(path)


def check_hypothesis(graph: ComponentGraph, root: Claim, data: Data) -> None:
    """ValueError unless each claim is about what its parent reads, and each input carries one claim at a position."""
    check_kind("scrub: hypothesis", root, Claim, "a claim about 'logits', as jc.Claim('logits', jc.Exact()) makes one")
    if root.name != ROOT or root.through is not None or root.positions is not None:
        raise ValueError(
            f"scrub: a hypothesis begins with a claim about {ROOT!r}, with neither through nor positions; got {root.label!r}."
        )
    for path, claim in root.walk():
        for child in claim.children:
            _check_edge(graph, path, claim, child)
        _check_apart(path, claim, data)


def _check_edge(graph: ComponentGraph, path: str, parent: Claim, child: Claim) -> None:
    """ValueError unless the parent reads the child, by the input that it names."""
    try:
        sender = graph.sender(child.name)
    except ValueError as error:
        raise ValueError(f"scrub: under {path}: {error}") from None
    if child.through is not None and not parent.is_head:
        raise ValueError(
            f"scrub: {child.name} is read through {child.through!r}, and {path} is no head, so it has no such input. Leave through out."
        )
    if parent.name == "embed":
        raise ValueError(f"scrub: {path} reads nothing, so it has no children; got {child.name}.")
    receiver = graph.receiver(f"{parent.name}.{child.through or 'q'}" if parent.is_head else parent.name)
    if not graph.edges[sender, receiver]:
        raise ValueError(
            f"scrub: {path} does not read {child.name}: it reads the residual stream before {child.name} writes to it. A child is an "
            "earlier component than its parent."
        )


def _check_apart(path: str, parent: Claim, data: Data) -> None:
    """ValueError for two children of one name that are read by the same input at the same position."""
    for i, one in enumerate(parent.children):
        if one.where is not None:
            data.columns(one.where)  # that there are such positions
        for other in parent.children[:i]:
            together = one.name == other.name and any(one.feeds(part) and other.feeds(part) for part in parent.reads)
            if together and (_columns(one, data) & _columns(other, data)).any():
                raise ValueError(
                    f"scrub: {path} names {one.name} twice, as {other.label} and as {one.label}, and one edge carries one value. Tell them "
                    "apart by through or by positions."
                )


def _columns(claim: Claim, data: Data) -> Bool[np.ndarray, "..."]:
    return np.ones((1, 1), bool) if claim.where is None else data.columns(claim.where)

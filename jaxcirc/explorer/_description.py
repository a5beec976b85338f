"""What a page shows, whatever it is of: a feature circuit, an attribution graph, or a circuit of components."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Node(NamedTuple):
    """One node as it is drawn.

    **Attributes:**

    - `name`: by which edges and users name it; no two the same. - `row`: its number in `Description.rows`, counted from the bottom.
    - `pos`: its position in the prompt; `None` for one that has none. - `kind`: what it is, which its shape says: a key of `SHAPES`.
    - `value`: its size and sign; NaN for one without, which no threshold hides. - `label`: the few letters in its mark.
    - `about`: what else is known of it, by the names of `ABOUT`. - `counted`: whether the table that the page is of has it as a row.
    """

    name: str
    row: int
    pos: int | None
    kind: str
    value: float
    label: str
    about: Mapping[str, Any] = {}
    counted: bool = True


class Edge(NamedTuple):
    """One edge: the names of its ends, its weight, through which input of its target it goes, if that has several, and its influence on
    the outputs, if that is known: where weights of different targets cannot be compared, it tells which edges matter.
    """

    source: str
    target: str
    weight: float
    part: str = ""
    influence: float | None = None

    @property
    def size(self) -> float:
        """By which a figure ranks it."""
        return abs(self.weight) if self.influence is None else self.influence


SHAPES = {
    "latent": "circle",
    "neuron": "hex",
    "error": "square",
    "token": "square_pin",
    "position": "triangle",
    "bias": "plus",
    "head": "diamond",
    "MLP": "inverted_triangle",
    "embedding": "square_pin",
    "logit": "star",
    "metric": "star",
}
"""The mark of each kind of node, as Bokeh names marks."""

ABOUT = {
    "note": "what it was annotated with",
    "acts": "its activation at each token of the prompt",
    "examples": "prompts on which it is strongest: [{'tokens': […], 'acts': […]}]",
    "promotes": "the output tokens that what it writes raises most: [[token, logit]]",
    "suppresses": "those that it lowers most",
    "facts": "single numbers, by their names",
}
"""What a page can show of a node beside its edges."""


@dataclasses.dataclass(frozen=True)
class Description:
    """All that a page shows.

    **Attributes:**

    - `title`: what it is of, as a heading. - `facts`: method, metric, number of prompts and the like, by name, in the order in which they
      are shown. - `nodes`, `edges`. - `rows`: what the rows are called, from the bottom. - `tokens`: the prompt's, as text; `None` where
      positions were summed or are not known. - `value`, `weight`: what the numbers of nodes and of edges are, in a sentence's words.
    - `signed`: whether values of nodes have signs. - `remarks`: sentences that a reader must know, such as that positions were summed.
    - `missing`: of what is not known of any node, by a name in `ABOUT`, which call adds it. - `settings`: plain JSON, shown as it is.
    """

    title: str
    facts: Mapping[str, str]
    nodes: Sequence[Node]
    edges: Sequence[Edge]
    rows: Sequence[str]
    tokens: Sequence[str] | None
    value: str
    weight: str
    signed: bool = True
    remarks: Sequence[str] = ()
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def check_ends(what: str, nodes: Sequence[Node], edges: Sequence[Edge]) -> None:
    """ValueError if two nodes have one name, or an edge ends at none of them."""
    names = {node.name for node in nodes}
    if len(names) < len(nodes):
        raise ValueError(f"{what}: two nodes have one name. Expected names of which no two are the same.")
    if unknown := {end for edge in edges for end in (edge.source, edge.target)} - names:
        raise ValueError(f"{what}: an edge ends at {min(unknown)!r}, which is no node.")

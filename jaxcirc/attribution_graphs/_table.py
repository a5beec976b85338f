"""The nodes of an attribution graph, in the order of its columns, and where each kind of them stands."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from .._sites import layer_of, Site
from ._linear import Linearised
from ._replacement import Replaced


KINDS = ("latent", "error", "token", "position", "bias", "logit")
LATENT, ERROR, TOKEN, POSITION, BIAS, LOGIT = range(len(KINDS))
NOWHERE = -1


class Directions(NamedTuple):
    """Directions of what the unembedding reads, each with a constant and a name."""

    names: tuple[str, ...]
    vectors: Float[Array | np.ndarray, "output d_model"]
    constants: Float[Array | np.ndarray, " output"]


@dataclasses.dataclass(frozen=True, eq=False)
class Outputs:
    """What the graph explains: directions of what the unembedding reads at the last position, each plus a constant.

    **Attributes:** - `names`, or `None` for tokens; `tokens`: their ids, or the numbers of the directions. - `probability`: their weights.
    - `values`: what they are at the prompt.
    """

    names: tuple[str, ...] | None
    tokens: Int[np.ndarray, " output"]
    directions: Float[Array, "output d_model"]
    constants: Float[Array, " output"]
    probability: Float[np.ndarray, " output"]
    values: Float[np.ndarray, " output"]

    @property
    def given(self) -> Directions | None:
        """The directions that were asked for, on the host; `None` for tokens."""
        if self.names is None:
            return None
        return Directions(self.names, np.asarray(self.directions), np.asarray(self.constants))


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Nodes, one entry each in every array.

    **Attributes:** - `kind`: as in `KINDS`; `site`: a number in `sites`. - `layer`: -1 for what enters the first block, and the number of
    layers for outputs. - `pos`, `unit`: of a node that has none -1. - `activation`: NaN but for latents. - `value`: what the rows of
    latents and outputs sum to, NaN for other nodes. - `probability`: 0 but for outputs.
    """

    sites: tuple[str, ...]
    kind: Int[np.ndarray, " node"]
    site: Int[np.ndarray, " node"]
    layer: Int[np.ndarray, " node"]
    pos: Int[np.ndarray, " node"]
    unit: Int[np.ndarray, " node"]
    activation: Float[np.ndarray, " node"]
    value: Float[np.ndarray, " node"]
    probability: Float[np.ndarray, " node"]

    def __len__(self) -> int:
        return len(self.kind)

    def some(self, nodes: Int[np.ndarray, " some"]) -> "Table":
        """The table of some of the nodes."""
        return dataclasses.replace(self, **{name: getattr(self, name)[nodes] for name in COLUMNS})

    def word(self, i: int) -> str:
        """What a node is, for people: the latents of a model without dictionaries are its neurons."""
        neuron = self.kind[i] == LATENT and self.sites[self.site[i]].endswith("mlp.hook_post")
        return "neuron" if neuron else KINDS[self.kind[i]]

    def moved(self, by: int) -> "Table":
        """The same nodes at positions by so many further on."""
        return dataclasses.replace(
            self, pos=np.where(self.pos == NOWHERE, NOWHERE, self.pos + by).astype(self.pos.dtype)
        )

    def joined(self, other: "Table") -> "Table":
        """This table and, behind it, another of the same sites."""
        both = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in COLUMNS}
        return dataclasses.replace(self, **both)

    def sources(self) -> np.ndarray:
        """Which nodes only write: all but latents and outputs."""
        return (self.kind != LATENT) & (self.kind != LOGIT)


COLUMNS = tuple(field.name for field in dataclasses.fields(Table) if field.name != "sites")


@dataclasses.dataclass(frozen=True)
class Columns:
    """Where the nodes stand: of the latents of each dictionary, and of errors, biases, tokens and positions the first, one a position."""

    features: tuple[int, ...]
    errors: dict[Site, int]
    tokens: int
    positions: int | None
    biases: dict[Site, int]
    own: int
    outputs: int
    count: int


def make_table(linear: Linearised, replaced: Replaced, outputs: Outputs) -> tuple[Table, Columns]:
    """Lists the nodes: latents, errors, tokens, position embeddings, biases, each row's own bias, outputs."""
    n_layers, seq = linear.model.n_layers, linear.seq
    listed = _Listed(outputs.values.dtype)
    everywhere = np.arange(seq)
    features = [
        listed.add(LATENT, each.site, each.pos, each.unit, activation=each.acts, value=each.pre)
        for each in replaced.features
    ]
    errors = {site: listed.add(ERROR, site, everywhere) for site in replaced.errors}
    tokens = listed.add(TOKEN, "hook_embed", everywhere, np.asarray(linear.tokens))
    has_positions = linear.model.W_pos is not None
    positions = listed.add(POSITION, "hook_pos_embed", everywhere, everywhere) if has_positions else None
    biases = {site: listed.add(BIAS, site, everywhere) for site in replaced.biases}
    own = listed.add(BIAS, "", np.array([NOWHERE]))
    last = np.full(len(outputs.tokens), seq - 1)
    more = {"probability": outputs.probability, "value": outputs.values}
    ends = listed.add(LOGIT, "logits", last, outputs.tokens, layer=n_layers, **more)
    columns = Columns(tuple(features), errors, tokens, positions, biases, own, ends, listed.count)
    return listed.table(), columns


class _Listed:
    """Nodes, gathered group by group."""

    def __init__(self, dtype: np.dtype):
        self.dtype, self.count, self.sites = dtype, 0, dict[str, int]()
        self.parts: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}

    def add(
        self,
        kind: int,
        site: Site | str,
        pos: Int[np.ndarray, " group"],
        unit: Int[np.ndarray, " group"] | None = None,
        *,
        layer: int = NOWHERE,
        **numbers: Float[np.ndarray, " group"],
    ) -> int:
        """Adds a group of nodes at a site. **Returns:** where it begins."""
        first, n = self.count, len(pos)
        where = self.sites.setdefault(str(site), len(self.sites))
        entries = {
            "kind": np.full(n, kind, np.int8),
            "site": np.full(n, where, np.int32),
            "layer": np.full(n, layer_of(site) if isinstance(site, Site) else layer, np.int32),
            "pos": np.asarray(pos, np.int32),
            "unit": np.full(n, NOWHERE, np.int32) if unit is None else np.asarray(unit, np.int32),
            "activation": np.full(n, np.nan, self.dtype),
            "value": np.full(n, np.nan, self.dtype),
            "probability": np.zeros(n, self.dtype),
            **{name: np.asarray(values, self.dtype) for name, values in numbers.items()},
        }
        for name, values in entries.items():
            self.parts[name].append(values)
        self.count += n
        return first

    def table(self) -> Table:
        joined = {name: np.concatenate(parts) for name, parts in self.parts.items()}
        return Table(sites=tuple(self.sites), **joined)

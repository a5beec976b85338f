"""The prompt that a graph is of, linearised anew: its nodes by number, what each writes, and by what targets are read."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._sites import Kind, layer_of, Site
from .._typing import Tokens
from ..models import Transformer
from ._given import Dictionaries
from ._heads_on_path import Passing
from ._linear import linearise, Linearised
from ._padding import Real
from ._replacement import closed_layers, linear_paths, replace_sublayers, Replaced
from ._rows import Covectors, EMBED, Rows
from ._table import BIAS, Columns, Directions, ERROR, LATENT, make_table, Outputs, POSITION, Table, TOKEN
from ._targets import make_outputs, Targets


Write = tuple[Site, int, Float[np.ndarray, " d_model"]]  # where in the model, at which position, what


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """What is `real` of a prompt, linearised, and all nodes that it has: of every latent that is on, and of what a graph explains, the
    `outputs`. Positions are counted from the first that is real.
    """

    real: Real
    linear: Linearised
    replaced: Replaced
    table: Table
    columns: Columns
    outputs: Outputs
    rows: Rows

    def passing(self, layer: int) -> Passing:
        """The attention of a layer."""
        linear = self.linear
        return Passing(linear.model.blocks[layer], linear.masks[layer], linear.resid[Site(layer, Kind.RESID_PRE)])

    def reach(self, nodes: Int[np.ndarray, " n"]) -> int:
        """How many positions have a part in what these targets read."""
        return int(self.table.pos[nodes].max()) + 1 if self.linear.model.causal else self.linear.seq

    def covectors(self, targets: Int[np.ndarray, " n"], seq: int) -> Covectors:
        """The covectors by which targets are read, at their cuts, over the first `seq` positions; nothing for those numbered -1."""
        reader = np.maximum(np.searchsorted(self.rows.begins, targets, side="right") - 1, 0)
        return Covectors(self.rows, reader, np.where(targets < 0, -1, targets - self.rows.begins[reader]), seq)

    def vectors(self, sources: Sequence[Sequence[int]], seq: int) -> "Vectors":
        """What sources write, each the sum of some nodes."""
        return Vectors([[write for node in nodes for write in self.writes(node)] for nodes in sources], seq)

    def writes(self, node: int) -> Iterator[Write]:
        """What a node writes, and where."""
        kind, pos = int(self.table.kind[node]), int(self.table.pos[node])
        site = self.table.sites[self.table.site[node]]
        if kind == LATENT:
            number = int(np.searchsorted(self.columns.features, node, side="right")) - 1
            i = node - self.columns.features[number]
            for written in self.replaced.features[number].writes:
                row = np.asarray(written.rows[int(written.index[i])])
                yield written.site, pos, written.scale[i] * row.astype(written.scale.dtype)
        elif kind in (TOKEN, POSITION):
            yield EMBED, pos, np.asarray(self.linear.embeddings()[kind == POSITION][pos])
        elif kind in (ERROR, BIAS) and site:
            of = self.replaced.errors if kind == ERROR else self.replaced.biases
            yield Site.parse(site), pos, np.asarray(of[Site.parse(site)][pos])

    def first_layer(self, node: int) -> int:
        """The first layer whose attention can pass what a node writes."""
        layer = int(self.table.layer[node])
        return layer + 1 if self.table.kind[node] in (LATENT, ERROR, BIAS) else 0

    def last_layer(self, node: int) -> int:
        """The last layer whose attention a target sees through."""
        reader = int(np.searchsorted(self.rows.begins, node, side="right")) - 1
        cut = self.linear.cut_of(self.rows.readers[reader].read)
        return layer_of(cut) - (cut.kind == Kind.RESID_PRE)

    def reads_attention(self, node: int) -> bool:
        """Whether a target reads what attention writes, and not a residual stream."""
        reader = int(np.searchsorted(self.rows.begins, node, side="right")) - 1
        return self.rows.readers[reader].read.kind == Kind.ATTN_OUT


class Vectors(Mapping[Site, Array]):
    """What some sources write, `[n seq d_model]` by site, made when it is asked for."""

    def __init__(self, writes: Sequence[Sequence[Write]], seq: int):
        self.n, self.seq = len(writes), seq
        self.at: dict[Site, list[tuple[int, int, np.ndarray]]] = {}
        for number, each in enumerate(writes):
            for site, pos, vector in each:
                if pos < seq:
                    self.at.setdefault(site, []).append((number, pos, vector))

    def __getitem__(self, site: Site) -> Float[Array, "n seq d_model"]:
        number, pos, vectors = (np.array(column) for column in zip(*self.at[site], strict=True))
        out = np.zeros((self.n, self.seq, vectors.shape[1]), vectors.dtype)
        np.add.at(out, (number, pos), vectors)
        return jnp.asarray(out)

    def __iter__(self) -> Iterator[Site]:
        return iter(self.at)

    def __len__(self) -> int:
        return len(self.at)


def linearised_prompt(
    model: Transformer,
    dictionaries: Dictionaries,
    tokens: Tokens | Int[np.ndarray, " seq"],
    real: Real,
    targets: Targets | Directions,
) -> Prompt:
    """Linearises what is real of a prompt; dictionaries and targets have been checked."""
    of_real = jnp.asarray(np.asarray(tokens)[real.slice])
    linear = linearise(model, of_real, linear_paths(dictionaries), closed_layers(dictionaries))
    replaced = replace_sublayers(linear, dictionaries)
    outputs = make_outputs(linear, targets)
    table, columns = make_table(linear, replaced, outputs)
    return Prompt(real, linear, replaced, table, columns, outputs, Rows(linear, replaced, outputs, columns))

"""The edges out of one node, as arrays that users index by layer and position."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._shown import Shown
from .._sites import BySite
from ._table import check_one, Part, sums_of, table_of


if TYPE_CHECKING:
    import pandas as pd


class EdgesOutOf(Shown, eqx.Module):
    """The direct edges out of one node, in the metric's units; without a metric, each in the units of its target's activation.

    **Attributes:**

    - `neurons` `[layer seq d_mlp]`; `latents[site]` `[seq d_sae]` of the dictionaries that were given.
    - `q`, `k`, `v` `[layer head q_seq k_seq]`: into heads, through their queries, keys and values. There is no `v` without a metric.
    - `final`: into the last residual stream, the node's direct effect on the metric; 0 without a metric.
    - `row`: the position at which the node writes.
    - `activation`, `derivative`: of the node, and the metric's by it. For what is a vector by itself (tokens, biases, errors) the
      activation is 1. Their product, `attribution`, is the sum of all edges into neurons, q, k, v and the last stream.

    Everything that is not downstream of the node is 0.
    """

    row: Int[Array, ""]
    neurons_at_row: Float[Array, "layer d_mlp"]
    q: Float[Array, "layer head q_seq k_seq"]
    k: Float[Array, "layer head q_seq k_seq"]
    values: Float[Array, "layer head q_seq k_seq"] | None
    latents: BySite[Float[Array, "seq d_sae"]]
    final: Float[Array, ""]
    activation: Float[Array, ""]
    derivative: Float[Array, ""]

    @property
    def neurons(self) -> Float[Array, "*node layer seq d_mlp"]:
        at_row, seq = self.neurons_at_row, self.q.shape[-1]
        here = jnp.arange(seq) == self.row[..., None]
        # [layer d_mlp] · [seq] -> [layer seq d_mlp]
        return jnp.where(here[..., None, :, None], at_row[..., :, None, :], 0)

    @property
    def v(self) -> Float[Array, "*node layer head q_seq k_seq"]:
        if self.values is None:
            raise ValueError(
                "EdgesOutOf.v: without a metric an edge into a head's value has no size, as what passes is a vector. Give a metric."
            )
        return self.values

    @property
    def attribution(self) -> Float[Array, "*node"]:
        """The node's activation times the metric's derivative by it: its effect on the metric along all paths, to first order."""
        return self.activation * self.derivative

    @property
    def total(self) -> Float[Array, "*node"]:
        """The sum of the edges into neurons, q, k, v and the last stream; latents read the same values anew, and are not in it."""
        batch = self.row.shape  # the axes over nodes that `jax.vmap` has added
        parts = (self.neurons_at_row, self.q, self.k, self.v, self.final)
        return sum((each.reshape(*batch, -1).sum(-1) for each in parts), jnp.zeros_like(self.final))

    def table(self, k: int = 20, *, order: str = "size") -> "pd.DataFrame":
        """The `k` first edges, as `EdgesInto.table`; of heads `kind` is `q`, `k` or `v`.

        >>> edges = jc.edges_out_of(model, tokens, jc.LogitDiff(5), jc.Token(2))
        >>> len(edges.table(5, order="top"))
        5
        """
        return table_of(tuple(self.parts()), k, order)

    def sums(self, by: str = "layer") -> "pd.DataFrame":
        """The sums of edges, and of their sizes, as `EdgesInto.sums`."""
        return sums_of(tuple(self.parts()), by)

    def parts(self) -> Iterator[Part]:
        """Yields the edges by kind."""
        check_one(self.row.shape)
        upto, row = np.arange, np.asarray(self.row)[None]
        layers, heads, seq, _ = self.q.shape
        layer, neurons = ("layer", upto(layers)), np.asarray(self.neurons_at_row)[:, None]
        yield Part("neuron", neurons, (layer, ("pos", row), ("unit", upto(neurons.shape[-1]))))
        pairs = (layer, ("unit", upto(heads)), ("pos", upto(seq)), ("key", upto(seq)))
        for kind, values in (("q", self.q), ("k", self.k), ("v", self.values)):
            if values is not None:
                yield Part(kind, np.asarray(values), pairs)
        for site, each in self.latents.items():
            yield Part("latent", np.asarray(each), (("pos", upto(seq)), ("unit", upto(each.shape[-1]))), site)
        yield Part("final", np.asarray(self.final)[None], (("pos", row),))

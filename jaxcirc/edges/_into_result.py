"""The edges into one node, as arrays that users index by layer and position."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._shown import Shown
from .._sites import BySite
from ._table import check_one, Part, sums_of, table_of


if TYPE_CHECKING:
    import pandas as pd


Either: TypeAlias = Array | np.ndarray  # NumPy's, where the edges of many nodes have come to the host


class EdgesInto(Shown, eqx.Module):
    """The direct edges into one node, in the metric's units; without a metric, in those of the node's activation.

    Most nodes read the stream at one position, and all their edges come from what is written there. So edges are kept for the rows that
    are read, `rows` `[row]`, in arrays that end in `_at_rows`; those without lay them out over all positions, 0 elsewhere and wherever a
    node is not upstream.

    **Attributes:**

    - `neurons` `[layer seq d_mlp]`; `heads` `[layer head q_seq k_seq]`, of what a head writes at the query from the key; `latents[site]`
      `[seq d_sae]` and `errors[site]` `[seq]` of the dictionaries that were given.
    - `tokens` `[seq]`: of what enters the first block, token and position; `positions` `[seq]`: the position's part of it, 0 if rotary.
    - `biases` `[layer sublayer seq]`: of the bias with which attention, 0, and the MLP, 1, write.
    - `gradient` `[seq d_model]`: the derivative by the stream that the node reads, times the metric's by the node.
    - `activation`, `derivative`: of the node, and the metric's by it (1 without a metric).

    Heads, neurons, biases and tokens make up the stream: where no norm stands behind sublayers, or its scale is held, `total` is their sum
    and the gradient's product with the stream. Latents and errors split the same values anew, and are not in it.
    """

    rows: Int[Either, " row"]
    neurons_at_rows: Float[Either, "layer row d_mlp"]
    heads_at_rows: Float[Either, "layer head row k_seq"]
    latents_at_rows: BySite[Float[Either, "row d_sae"]]
    errors_at_rows: BySite[Float[Either, " row"]]
    tokens_at_rows: Float[Either, " row"]
    positions_at_rows: Float[Either, " row"]
    biases_at_rows: Float[Either, "layer sublayer row"]
    gradient_at_rows: Float[Either, "row d_model"]
    activation: Float[Either, ""]
    derivative: Float[Either, ""]

    @property
    def neurons(self) -> Float[Array, "*node layer seq d_mlp"]:
        return self._laid_out(self.neurons_at_rows, -2)

    @property
    def heads(self) -> Float[Array, "*node layer head q_seq k_seq"]:
        return self._laid_out(self.heads_at_rows, -2)

    @property
    def latents(self) -> BySite[Float[Array, "*node seq d_sae"]]:
        return BySite((site, self._laid_out(each, -2)) for site, each in self.latents_at_rows.items())

    @property
    def errors(self) -> BySite[Float[Array, "*node seq"]]:
        return BySite((site, self._laid_out(each, -1)) for site, each in self.errors_at_rows.items())

    @property
    def tokens(self) -> Float[Array, "*node seq"]:
        return self._laid_out(self.tokens_at_rows, -1)

    @property
    def positions(self) -> Float[Array, "*node seq"]:
        return self._laid_out(self.positions_at_rows, -1)

    @property
    def biases(self) -> Float[Array, "*node layer sublayer seq"]:
        return self._laid_out(self.biases_at_rows, -1)

    @property
    def gradient(self) -> Float[Array, "*node seq d_model"]:
        return self._laid_out(self.gradient_at_rows, -2)

    @property
    def total(self) -> Float[Array, "*node"]:
        """The sum of the edges from heads, neurons, biases and tokens."""
        parts = (self.neurons_at_rows, self.heads_at_rows, self.tokens_at_rows, self.biases_at_rows)
        return sum(
            (each.reshape(*self._batch, -1).sum(-1) for each in parts),
            jnp.zeros(self._batch, self.tokens_at_rows.dtype),
        )

    @property
    def by_position(self) -> Float[Array, "*node seq"]:
        """The same sum by the position whose content it is: a neuron's, bias' and token's own, and of a head the key's."""
        own = self.neurons_at_rows.sum((-3, -1)) + self.tokens_at_rows + self.biases_at_rows.sum((-3, -2))
        return self.heads_at_rows.sum((-4, -3, -2)) + self._laid_out(own, -1)

    def table(self, k: int = 20, *, order: str = "size") -> "pd.DataFrame":
        """The `k` first edges that are not 0: by size, or with `order="top"` the largest, with `"bottom"` the most negative.

        **Returns:** a data frame: `node`, its name, and what it is, `kind`, `layer`, `pos` (of a head the query), `key`, `unit` (of a head
        its number, of a neuron or latent its index) and `site`; its `edge`.

        **Raises:** `ValueError` for less than one edge, and an order that there is not.

        >>> edges = jc.edges_into(model, tokens, jc.LogitDiff(5), jc.Neuron(2, 4, 130))
        >>> list(edges.table(3).columns)
        ['node', 'kind', 'layer', 'pos', 'key', 'unit', 'site', 'edge']
        """
        return table_of(tuple(self.parts()), k, order)

    def sums(self, by: str = "layer") -> "pd.DataFrame":
        """The sums of edges, and of their sizes, of each kind: by `"layer"`, by position, `"pos"`, or of all, `"kind"`."""
        return sums_of(tuple(self.parts()), by)

    def parts(self) -> Iterator[Part]:
        """Yields the edges by kind, without those that are part of others."""
        check_one(self._batch)
        upto, pos = np.arange, ("pos", np.asarray(self.rows))
        layers, heads, _, seq = self.heads_at_rows.shape
        layer, neurons = ("layer", upto(layers)), np.asarray(self.neurons_at_rows)
        yield Part("neuron", neurons, (layer, pos, ("unit", upto(neurons.shape[-1]))))
        yield Part("head", np.asarray(self.heads_at_rows), (layer, ("unit", upto(heads)), pos, ("key", upto(seq))))
        for site, each in self.latents_at_rows.items():
            yield Part("latent", np.asarray(each), (pos, ("unit", upto(each.shape[-1]))), site)
            yield Part("error", np.asarray(self.errors_at_rows[site]), (pos,), site)
        yield Part("token", np.asarray(self.tokens_at_rows), (pos,))
        yield Part("bias", np.asarray(self.biases_at_rows), (layer, ("sublayer", upto(2)), pos))

    @property
    def _batch(self) -> tuple[int, ...]:
        """The axes over nodes, in front of all others, that `jax.vmap` has added."""
        return self.rows.shape[:-1]

    def _laid_out(self, at_rows: Float[Either, "..."], axis: int) -> Float[Array, "..."]:
        """Lays rows, along an axis counted from the end, out over all positions."""
        seq = self.heads_at_rows.shape[-1]

        def one(rows, values):
            values = jnp.moveaxis(values, axis, 0)
            laid = jnp.zeros((seq, *values.shape[1:]), values.dtype).at[rows].set(values)
            return jnp.moveaxis(laid, 0, axis)

        for _ in self._batch:
            one = jax.vmap(one)
        return one(self.rows, at_rows)

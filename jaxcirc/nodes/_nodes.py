"""The kinds of nodes: what is one number, or one vector at one position, in the run of one prompt.

Where a node is in the network is static: its layer, its site, its part. Which position and which unit it is are arrays, so that `jax.vmap`
over them serves many nodes of a layer, and none costs a compilation.
"""

from typing import Literal, TypeAlias

import equinox as eqx
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from .._sites import Site


Index: TypeAlias = int | np.integer | Int[Array | np.ndarray, ""]
HeadPart: TypeAlias = Literal["q", "k", "qk", "v"]


class Neuron(eqx.Module):
    """A neuron of an MLP at a position, after its activation function."""

    layer: int = eqx.field(static=True)
    pos: Index
    index: Index


class Latent(eqx.Module):
    """A latent of the dictionary at `site`, at a position."""

    site: Site = eqx.field(static=True, converter=Site.parse)
    pos: Index
    index: Index


class Error(eqx.Module):
    """What the dictionary at `site` does not reconstruct, at a position: a vector, and a source of edges only."""

    site: Site = eqx.field(static=True, converter=Site.parse)
    pos: Index


class Head(eqx.Module):
    """An attention head at a pair of positions: by how much position `query` attends to position `key`.

    As a source it writes `pattern[head, query, key] v[key] W_O` to the stream at `query`. As a target it has parts: `part="q"`, `"k"` and
    `"v"` read through its query, its key and its value alone, `"qk"` through query and key; `None` is the sum of q, k and v.
    """

    layer: int = eqx.field(static=True)
    head: Index
    query: Index
    key: Index
    part: HeadPart | None = eqx.field(static=True, default=None)


class Token(eqx.Module):
    """What enters the first block at a position: the token's embedding, and the position's where a model learned one."""

    pos: Index


class Position(eqx.Module):
    """The part of it that is the position's embedding."""

    pos: Index


class Bias(eqx.Module):
    """The bias with which a sublayer writes at a position: `b_O` at `hook_attn_out` of its block, `b_out` at `hook_mlp_out`."""

    site: Site = eqx.field(static=True, converter=Site.parse)
    pos: Index


class Direction(eqx.Module):
    """A target of one's own making: the residual stream at `site` and a position, along a vector `[d_model]`."""

    site: Site = eqx.field(static=True, converter=Site.parse)
    pos: Index
    vector: Float[Array, " d_model"]


class Final(eqx.Module):
    """The last residual stream, along the metric's gradient there: the target whose edges are direct effects on the metric."""


def is_known_index(value: Index) -> bool:
    """Whether an index has a value yet: under `jit` and `vmap` it has none."""
    return not isinstance(value, Tracer)

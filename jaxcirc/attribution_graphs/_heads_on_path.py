r"""What each head of a layer carries of an edge.

Between the place where a source writes and the place where a target reads everything is linear, so at any layer's attention on the way the
edge is what passes it by each of its heads, and what goes past. With $v_k$ the source's vector as it enters attention at position $k$, and
$g_q$ the covector by which the target reads what attention adds at position $q$,

$$\text{edge} = \text{bypass} + \sum_h \sum_{q,k} A^h_{qk} \langle W_O^h g_q, W_V^h v_k \rangle,$$

patterns $A$ and the scales of norms held (those are in the maps to values and from heads' outputs).
"""

import functools as ft
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._edits import Detach, Replace
from .._indexing import take
from .._run import NOTHING
from .._sites import Kind, Site
from .._tap import Tap
from .._typing import Mask, Resid
from ..parts import Block
from ..runs import at_once, in_loop


class Passing(NamedTuple):
    """A layer's attention at the clean prompt, by the residual stream that enters it."""

    block: Block
    mask: Mask
    resid: Resid


@jax.jit
def values_of(here: Passing, vectors: Float[Array, "n seq d_model"]) -> Float[Array, "n seq kv_head d_head"]:
    """Pushes vectors that enter attention to its values."""
    here = _of_first(here, vectors.shape[1])

    def value(resid: Resid) -> Float[Array, "seq kv_head d_head"]:
        tap = Tap(NOTHING, {_LN1: Detach()}, {_V}, layer=0)
        here.block.attend(resid, here.mask, tap)
        return tap.cache[_V]

    return jax.vmap(jax.linearize(value, here.resid)[1])(vectors)


@jax.jit
def averages_of(
    here: Passing, covectors: Float[Array, "n seq d_model"]
) -> tuple[Float[Array, "n seq head d_head"], Float[Array, "head q_seq k_seq"]]:
    """Pulls covectors of what attention adds back to its heads' averages of values; and gives the pattern."""
    here = _of_first(here, covectors.shape[1])
    tap = Tap(NOTHING, NOTHING, {_Z, _PATTERN}, layer=0)
    here.block.attend(here.resid, here.mask, tap)

    def out(z: Float[Array, "seq head d_head"]) -> Resid:
        inside = Tap(NOTHING, {_Z: Replace(z), _LN1_POST: Detach()}, {_OUT}, layer=0)
        here.block.attend(here.resid, here.mask, inside)
        return inside.cache[_OUT]

    return jax.vmap(jax.vjp(out, tap.cache[_Z])[1])(covectors)[0], tap.cache[_PATTERN]


def parts_of_heads(
    pattern: Float[Array, "head q_seq k_seq"],
    averages: Float[Array, "target q_seq head d_head"],
    values: Float[Array, "source k_seq kv_head d_head"],
    target: Int[Array, " edge"],
    source: Int[Array, " edge"],
) -> Float[Array, "edge head"]:
    """What each head carries of each edge, from `source` to `target` by their numbers."""
    together = at_once(2 * averages[0].size * averages.dtype.itemsize, on_cpus=8)
    return _parts_of_heads(pattern, averages, values, target, source, together=together)


@ft.partial(jax.jit, static_argnames="together")
def _parts_of_heads(pattern, averages, values, target, source, *, together: int) -> Float[Array, "edge head"]:
    kv_heads = values.shape[2]
    grouped = averages.reshape(*averages.shape[:2], kv_heads, -1, averages.shape[-1])
    by_group = pattern.reshape(kv_heads, -1, *pattern.shape[1:])
    # [kv_head group q_seq k_seq] · [target q_seq kv_head group d_head] -> [target k_seq kv_head group d_head]
    at_keys = jnp.einsum("jgqk,tqjgd->tkjgd", by_group, grouped)

    def one(edge):
        # [k_seq kv_head group d_head] · [k_seq kv_head d_head] -> [kv_head group]
        return jnp.einsum("kjgd,kjd->jg", take(at_keys, edge[0]), take(values, edge[1])).reshape(-1)

    return in_loop(one, (target, source), together)


@jax.jit
def by_positions(
    pattern: Float[Array, "head q_seq k_seq"],
    averages: Float[Array, "q_seq head d_head"],
    values: Float[Array, "k_seq kv_head d_head"],
    head: Int[Array, ""],
) -> Float[Array, "q_seq k_seq"]:
    """What one head carries of one edge from each key to each query."""
    group = averages.shape[1] // values.shape[1]
    # [q_seq d_head] · [k_seq d_head] -> [q_seq k_seq]
    return take(pattern, head) * (take(averages, head, axis=1) @ take(values, head // group, axis=1).T)


def _of_first(here: Passing, seq: int) -> Passing:
    return Passing(here.block, here.mask[:seq, :seq], here.resid[:seq])


_LN1, _V, _Z, _PATTERN, _LN1_POST, _OUT = (
    Site(0, kind) for kind in (Kind.LN1_SCALE, Kind.V, Kind.Z, Kind.PATTERN, Kind.LN1_POST_SCALE, Kind.ATTN_OUT)
)

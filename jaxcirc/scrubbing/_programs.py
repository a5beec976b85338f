"""The programs: one component of many variants, each on inputs of its own. Layers and heads share them."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._edits import Apply
from .._precision import widened
from .._run import NOTHING
from .._sites import Kind, Site
from .._tap import bare_tap, Tap
from ..graph import ComponentGraph
from ..parts import Block, RMSNorm
from ..runs import attention_writes, feed_own, kinds_written, mlp_writes
from ._between import Stream


Table = Float[Array, "_ seq d_model"]  # of what was computed, as many as there are
OfData = Float[Array, "datum seq d_model"]  # of the plain runs


@jax.jit
def value_by_number(plain: OfData, computed: Table | None, numbers) -> Stream:
    """Values by their numbers."""
    if computed is None:
        return plain[numbers]
    was_run = (numbers >= len(plain))[:, None, None]
    of_computed = computed[jnp.maximum(numbers - len(plain), 0)]
    return jnp.where(was_run, of_computed, plain[jnp.minimum(numbers, len(plain) - 1)])


@jax.jit
def stream_by_edges(streams: OfData, others, own: list[OfData], there) -> Stream:
    """The residual stream of plain runs, in which some edges carry another value."""
    changes = zip(own, there, strict=True)
    return sum((jnp.where(at[..., None], value - of[others], 0) for of, (value, at) in changes), streams[others])


@ft.partial(jax.jit, static_argnames="graph")
def run_head(graph: ComponentGraph, block: Block, masks, rows, streams: OfData, reads: list[Stream], head) -> Stream:
    """What a head writes whose query, key and value read streams of their own; all other heads read that of a plain run."""
    block, here = _alone(block, head)
    attn, kinds = widened(block.attn), (Kind.Q, Kind.K, Kind.V)
    weights = [(attn.W_Q[here], attn.b_Q[here]), (attn.W_K[here], attn.b_K[here]), (attn.W_V[here], attn.b_V[here])]

    def one(row, *reads):
        normed = (x if block.ln1 is None else block.ln1(x, bare_tap(0)) for x in reads)
        # [seq d_model] · [d_model d_head] -> [seq d_head]
        own = [x @ W + b for x, (W, b) in zip(normed, weights, strict=True)]
        edits = {
            Site(0, kind): Apply(lambda x, mine=mine: x.at[:, here].set(mine))
            for kind, mine in zip(kinds, own, strict=True)
        }
        tap = Tap(NOTHING, edits, {Site(0, kind) for kind in kinds_written(block)}, layer=0)
        block.attend(streams[row], masks[row], tap)
        return attention_writes(graph, block, {site.kind: value for site, value in tap.cache.items()})[here]

    return jax.vmap(one)(rows, *reads)


def _alone(block: Block, head: Int[Array, ""]) -> tuple[Block, Int[Array, ""] | int]:
    """A block with one head, and its number there; as it is where a norm is over all heads, so that each depends on the others."""
    attn = block.attn
    of_each = lambda norm: norm is None or (isinstance(norm, RMSNorm) and not norm.joint)
    if block.ln1_post is not None or not (of_each(attn.q_norm) and of_each(attn.k_norm)):
        return block, head
    of_heads = lambda attn: [attn.W_Q, attn.b_Q, attn.W_K, attn.b_K, attn.W_V, attn.b_V, attn.W_O]
    only = eqx.tree_at(of_heads, attn, [x[head][None] for x in of_heads(attn)])
    return eqx.tree_at(lambda block: block.attn, block, only), 0


@ft.partial(jax.jit, static_argnames="graph")
def run_mlp(graph: ComponentGraph, block: Block, reads: Stream) -> Stream:
    """What an MLP writes."""

    def one(read):
        _, values = feed_own(block, read, read, record=kinds_written(block))
        return mlp_writes(graph, block, values)[0]

    return jax.vmap(one)(reads)

r"""An attention score as a bilinear form of what stands in the residual stream before it.

With the scale of the norm in front of attention held, and those of the norms of queries and keys, a head's query at a position and its key
at another are affine in the residual stream there; they are rotated after that, which is linear. The score before the cap is

$$S = \text{scale} \, \langle \tilde q, \tilde k \rangle, \qquad \tilde q = \sum_i M_q^i, \quad \tilde k = \sum_j M_k^j,$$

the sums over everything that is written before, and the biases.
"""

import functools as ft

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._edits import Detach
from .._run import NOTHING
from .._sites import Kind, Site
from .._tap import Tap
from .._typing import Resid
from ..parts import Attention
from ._heads_on_path import Passing


_HELD = {Site(0, kind): Detach() for kind in (Kind.LN1_SCALE, Kind.Q_SCALE, Kind.K_SCALE)}


def query_kind(attn: Attention) -> Kind:
    """The site of queries as the scores read them."""
    return Kind.ROT_Q if attn.places_queries else Kind.Q


def key_kind(attn: Attention) -> Kind:
    """The site of keys as the scores read them."""
    return Kind.ROT_K if attn.places_keys else Kind.K


@ft.partial(jax.jit, static_argnames="kind")
def reading_of(
    here: Passing, pos: Int[Array, ""], head: Int[Array, ""], *, kind: Kind
) -> tuple[Float[Array, "d_head seq d_model"], Float[Array, " d_head"]]:
    """Finds the covectors of the residual stream that enters attention by which one head's query or key at a position is read, one for each
    of its numbers, and the constant of each: biases of the projection and of the norm.
    """

    def read(resid: Resid) -> Float[Array, " d_head"]:
        tap = Tap(NOTHING, _HELD, {Site(0, kind)}, layer=0)
        here.block.attend(resid, here.mask, tap)
        return tap.cache[Site(0, kind)][pos, head]

    value, back = jax.vjp(read, here.resid)
    covectors = jax.vmap(back)(jnp.eye(len(value), dtype=value.dtype))[0]
    # [d_head seq d_model] · [seq d_model] -> [d_head]
    return covectors, value - jnp.einsum("esm,sm->e", covectors, here.resid)

"""Attention patterns of single heads, plain and weighted by what is read."""

import functools as ft
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_choice
from .._precision import wide
from .._run import check_mask, check_tokens, run
from .._sites import Kind, Site
from ..components._parts import check_heads
from ..models import check_known, Transformer


WEIGHTS = ("none", "value", "output")


def head_patterns(
    model: Transformer,
    tokens: Int[Array, " seq"],
    heads: Sequence[tuple[int, int]],
    *,
    weigh: str = "none",
    mask: Bool[Array, " seq"] | None = None,
) -> Float[Array, "head q_seq k_seq"]:
    r"""Attention patterns of some heads on one prompt, $A_{qk}$, as they are or weighted by the size of what is read at the *key*.

    Heads attend where there is nothing to read: to the first token, for one. Weighted patterns show what moves:
    $$A_{qk}\, \lVert v_k \rVert \quad \text{or} \quad A_{qk}\, \lVert v_k W_O \rVert,$$
    with the value $v_k$ `[d_head]` of the head, its bias included, and the head's output matrix $W_O$ `[d_head d_model]`.

    **Arguments:** - `heads`: as `(layer, head)`. - `weigh`: by nothing, `"none"`; by the norm of the `"value"`; or by that of the
    `"output"`, what the value writes to the residual stream if it alone is attended to (without $b_O$; before a norm behind attention,
    where there is one). - `mask`: False for padding.

    **Returns:** `[head q_seq k_seq]`, in the order of `heads`.

    **Raises:** `ValueError` for a head that is not there.

    >>> pattern = jc.patching.head_patterns(model, tokens, [(1, 0), (2, 3)])
    >>> bool(jnp.allclose(pattern.sum(-1), 1.0, atol=1e-5))
    True
    >>> jc.patching.head_patterns(model, tokens, [(1, 0)], weigh="value").shape
    (1, 6, 6)

    **Reference:** Kobayashi et al. 2020, arXiv 2004.10102, eq. 5, is `weigh="output"`.
    """
    check_tokens(model, tokens)
    check_mask(tokens, mask)
    check_choice("head_patterns: weigh", weigh, WEIGHTS)
    listed = check_heads("head_patterns: heads", model, heads)
    if not listed:
        raise ValueError("head_patterns: no head was given. Give a list of (layer, head).")
    if weigh == "output":
        check_known("head_patterns, weighted by outputs", model, "attn")
    layers, numbers = np.array(listed).T
    present = tuple(sorted(set(layers.tolist())))
    of_all = _patterns(model, tokens, mask, layers=present, weigh=weigh)
    return of_all[np.searchsorted(present, layers), numbers]


@ft.partial(jax.jit, static_argnames=("layers", "weigh"))
def _patterns(
    model: Transformer, tokens, mask, *, layers: tuple[int, ...], weigh: str
) -> Float[Array, "layer head q_seq k_seq"]:
    """Runs a prompt and takes the patterns of all heads of some layers, weighted."""
    sites = [Site(layer, kind) for layer in layers for kind in (Kind.PATTERN, Kind.V)]
    _, cache = run(model, tokens, record=sites, mask=mask)
    found = []
    for layer in layers:
        pattern, v = cache[Site(layer, Kind.PATTERN)], cache[Site(layer, Kind.V)]
        if weigh == "none":
            found.append(pattern)
            continue
        v = jnp.repeat(v, pattern.shape[0] // v.shape[1], axis=1)
        # [k_seq head d_head] · [head d_head d_model] -> [k_seq head d_model]
        read = v if weigh == "value" else jnp.einsum("khd,hdm->khm", v, wide(model.blocks[layer].attn.W_O))
        # At the key, the last axis: what a query attends to has a size there, and not the query.
        found.append(pattern * jnp.linalg.norm(read, axis=-1).T[:, None, :])
    return jnp.stack(found)

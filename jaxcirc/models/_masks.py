"""Who attends to whom: the one place where attention masks are made."""

import functools as ft

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from .._typing import Keys, Mask


def attention_mask(seq: int, *, causal: bool, window: int | None, keys: Keys | None) -> Mask:
    """`[q_seq k_seq]`, True where the query at `q` may attend to the key at `k`.

    **Arguments:**

    - `causal`: only `k <= q`.
    - `window`: only `q - window < k`, the local attention of GPT-Neo; `None` is global.
    - `keys` `[seq]`: False for padding, to which nobody attends. Every position attends to itself all the same, so that no row of the
      softmax is empty; what padding computes reaches no other position.
    """
    q, k = jnp.arange(seq)[:, None], jnp.arange(seq)[None, :]
    mask = (k <= q) if causal else jnp.ones((seq, seq), dtype=bool)
    if window is not None:
        mask = mask & (k > q - window)
    if keys is not None:
        mask = (mask & keys[None, :]) | (k == q)
    return mask


@ft.partial(jax.jit, static_argnames=("seq", "causal", "windows"))
def window_masks(keys: Keys | None, *, seq: int, causal: bool, windows: tuple[int | None, ...]) -> tuple[Mask, ...]:
    """The masks of several windows, by one program."""
    return tuple(attention_mask(seq, causal=causal, window=window, keys=keys) for window in windows)


@ft.partial(jax.jit, static_argnames=("causal", "windows"))
def batch_masks(
    keys: Bool[Array, "batch seq"], *, causal: bool, windows: tuple[int | None, ...]
) -> tuple[Bool[Array, "batch q_seq k_seq"], ...]:
    """The mask of each layer for each prompt, `windows` holding the width of each layer's."""
    seq = keys.shape[1]
    return jax.vmap(lambda keys: window_masks(keys, seq=seq, causal=causal, windows=windows))(keys)

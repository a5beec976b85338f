"""How far heads attend to the token before, and to what came after the present token the last time.

Both on random tokens said twice: of the previous-token head the mean attention one back, over all positions after the second, and of the
induction head the mean attention from the second copy to the token after the same one in the first (Olsson et al. 2022, arXiv
2209.11895).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from weights.train.evaluate import repeated_tokens

import jaxcirc as jc


LENGTH, ROWS, SEED = 24, 32, 11


def scores(model: jc.Transformer) -> dict[str, Any]:
    """`previous` and `induction`, each by `[layer][head]`, and how often the next token of the second copy is the most probable."""
    tokens = jnp.asarray(repeated_tokens(model.d_vocab, ROWS, length=LENGTH, seed=SEED))
    previous, induction, top_1 = _scores(model, tokens)
    rounded = lambda x: np.asarray(x, np.float64).round(4).tolist()
    return {"previous": rounded(previous), "induction": rounded(induction), "top_1": float(top_1)}


@jax.jit
def _scores(model: jc.Transformer, tokens):
    sites = [jc.Site.parse(f"blocks.{layer}.attn.hook_pattern") for layer in range(model.n_layers)]
    logits, cache = jax.vmap(lambda row: jc.run(model, row, record=sites))(tokens)
    patterns = jnp.stack([cache[site].mean(axis=0) for site in sites])  # [layer head q_seq k_seq]
    back = lambda n: jnp.diagonal(patterns, -n, axis1=2, axis2=3)  # [layer head q_seq], from position n on
    previous, induction = back(1)[..., 1:].mean(axis=-1), back(LENGTH - 1)[..., 4:].mean(axis=-1)
    second = logits[:, LENGTH + 2 : -1].argmax(axis=-1)
    return previous, induction, jnp.mean(second == tokens[:, LENGTH + 3 :])


def summary(row: dict[str, Any]) -> str:
    """One line for a person."""
    best = lambda kind: " ".join(f"{max(heads):.2f}" for heads in row[kind])
    return (
        f"step {row['step']}: loss {row['loss']:.4f}, previous {best('previous')}, induction {best('induction')}, "
        f"top 1 {row['top_1']:.3f}"
    )

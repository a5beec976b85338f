"""The axis vocabulary. Every public signature uses these words and no others.

`batch seq q_seq k_seq layer head d_model d_head d_mlp d_vocab d_sae feature world src dst tangent`

One sequence is `[seq]`; a batch of them is `jax.vmap` or, for the verbs over data, `[batch seq]`.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Array, Bool, Float, Int


Tokens: TypeAlias = Int[Array, " seq"]
Prompt: TypeAlias = str | Int[Array | np.ndarray, " seq"] | Sequence[int]  # a text, or token ids
Keys: TypeAlias = Bool[Array, " seq"]  # which positions are real, False for padding
Mask: TypeAlias = Bool[Array, "q_seq k_seq"]
Resid: TypeAlias = Float[Array, "seq d_model"]
Logits: TypeAlias = Float[Array, "seq d_vocab"]
Progress: TypeAlias = Callable[[int, int, str], None]  # called as progress(done, of, stage) on the way

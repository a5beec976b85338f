"""One family of models: transformers of residual blocks, from GPT-2 to Gemma 3.

What tells them apart is data: masks (causal or not, local windows), positions (learned or rotary), the scale and cap of the scores, which
norms there are and where, the kind of MLP, shared keys and values, tied or separate unembedding. There is no branch on an architecture's
name.
"""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._indexing import entries
from .._labels import with_labels
from .._precision import wide, wide_dtype
from .._shown import Shown
from .._sites import Kind
from .._tap import Tap
from .._typing import Keys, Logits, Mask, Resid, Tokens
from ..parts import Block, gate_of, Norm, Rotary
from ._masks import batch_masks, window_masks
from ._pieces import Pieces
from ._spans import through_blocks


@with_labels("name", "positions")
class Transformer(Shown, eqx.Module):
    """A language model of one token sequence; `jax.vmap` for a batch. Call it through `jaxcirc.run`.

    **Attributes:** arrays under TransformerLens' names (`model.blocks[3].attn.W_Q`), all leaves; the rest is static:

    - `windows`: for each layer the width of its local attention, `None` for global.
    - `causal`: False for attention in both directions.
    - `embed_scale`: multiplies the rows of `W_E` where they enter; the unembedding, tied or not, is without it.
    - `logit_cap`: logits are `cap tanh(logit / cap)`; `None` leaves them.
    - `context`: how many tokens the longest prompt that it was trained on has, where `W_pos` does not say it.
    - `positions`: for each layer how its rotary tables were made, `None` for none.
    - `architecture`: which key table reads and writes it (`"gpt2"`, `"llama"`, `"transformer_lens"`, …).
    - `name`: what it was loaded from, for messages and results.
    - `processing`: which of `process_weights`' steps it went through.

    Weights in float16 or bfloat16 take half the memory, and are widened where they are read: activations, derivatives and results are
    float32 (`activation_dtype`). On accelerators `jax.default_matmul_precision` trades exactness of the products for speed.
    """

    LABELS: ClassVar = (
        "architecture",
        "name",
        "processing",
        "positions",
    )  # what is said of it, and is no part of what it computes

    W_E: Float[Array, "d_vocab d_model"]
    W_pos: Float[Array, "n_ctx d_model"] | None  # None: positions are rotary
    blocks: tuple[Block, ...]
    ln_final: Norm | None
    untied_W_U: Float[Array, "d_model d_vocab_out"] | None  # None: tied to W_E
    b_U: Float[Array, " d_vocab_out"]
    windows: tuple[int | None, ...] = eqx.field(static=True)
    causal: bool = eqx.field(static=True)
    architecture: str = eqx.field(static=True)
    name: str = eqx.field(static=True)
    processing: tuple[str, ...] = eqx.field(static=True, default=())
    embed_scale: float = eqx.field(static=True, default=1.0)
    logit_cap: float | None = eqx.field(static=True, default=None)
    context: int | None = eqx.field(static=True, default=None)
    positions: tuple[Any, ...] = eqx.field(static=True, default=())

    def __check_init__(self):
        if len(self.windows) != len(self.blocks):
            raise ValueError(f"windows holds one entry a layer: expected {len(self.blocks)}, got {len(self.windows)}.")

    @property
    def W_U(self) -> Float[Array, "d_model d_vocab_out"]:
        """The unembedding, whether tied to `W_E` or its own."""
        return self.W_E.T if self.untied_W_U is None else self.untied_W_U

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def n_heads(self) -> int:
        return self.blocks[0].attn.W_Q.shape[0]

    @property
    def d_model(self) -> int:
        return self.W_E.shape[1]

    @property
    def d_head(self) -> int:
        return self.blocks[0].attn.W_Q.shape[2]

    @property
    def d_vocab(self) -> int:
        return self.W_E.shape[0]

    @property
    def n_kv_heads(self) -> int:
        """How many heads have keys and values, which each group of the others reads."""
        return self.blocks[0].attn.W_K.shape[0]

    @property
    def n_ctx(self) -> int:
        """How many tokens the longest prompt has that the model was trained on."""
        return self.most_positions if self.context is None else self.context

    @property
    def most_positions(self) -> int:
        """How many tokens the longest prompt has that can be run."""
        return Rotary.MOST if self.W_pos is None else self.W_pos.shape[0]

    @property
    def dtype(self) -> jnp.dtype:
        """In what the weights are stored."""
        return self.W_E.dtype

    @property
    def activation_dtype(self) -> jnp.dtype:
        """In what everything is computed, and the dtype of every site's value: `dtype`, but float32 where that is half precision."""
        return wide_dtype(self.dtype)

    def _facts(self) -> dict[str, str]:
        arrays = [leaf for leaf in jax.tree.leaves(self) if eqx.is_array_like(leaf)]
        facts = {
            "name": self.name,
            "architecture": self.architecture,
            "parameters": f"{sum(math.prod(jnp.shape(array)) for array in arrays):,}",
        }
        if not (self.blocks and isinstance(self.W_E, jax.Array | np.ndarray | jax.ShapeDtypeStruct)):
            return facts  # a tree of something else, or a model's ends
        kinds = sorted({type(block.mlp).__name__ for block in self.blocks if block.mlp is not None})
        heads = f"{self.n_heads} of d_head {self.d_head}" + (
            f", {self.n_kv_heads} with keys and values" if self.n_kv_heads != self.n_heads else ""
        )
        return facts | {
            "layers": f"{self.n_layers}, d_model {self.d_model}",
            "heads": heads,
            "MLPs": " and ".join(kinds) or "none",
            "vocabulary": f"{self.d_vocab}, context {self.n_ctx}",
            "dtype": str(self.dtype),
            "processing": ", ".join(self.processing) or "none",
            "sites": "jc.sites(model) lists them",
        }

    def __call__(self, tokens: Tokens, tap: Tap, keys: Keys | None = None) -> Logits:
        ends, pieces = self.without_blocks, Pieces(tap)
        resid = pieces(_embed, ends, None, tokens, keys)
        resid = through_blocks(self.blocks, self.masks(tokens.shape[0], keys), resid, pieces, loops=False)
        return pieces(_unembed, ends, None, resid)

    def entering(self, tokens: Tokens, keys: Keys | None = None) -> tuple[Resid, ...]:
        """Computes what enters each block, `[seq d_model]`, by programs that alike blocks share."""
        pieces, masks = Pieces(Tap({}, {}, frozenset())), self.masks(tokens.shape[0], keys)
        resids = [pieces(_embed, self.without_blocks, None, tokens, keys)]
        for layer, block in enumerate(self.blocks[:-1]):
            resids.append(through_blocks([block], masks[layer : layer + 1], resids[-1], pieces, loops=False))
        return tuple(resids)

    @property
    def without_blocks(self) -> "Transformer":
        """The model without its blocks: programs that need only its ends do not take the rest as arguments."""
        return eqx.tree_at(lambda model: model.blocks, self, ())

    def masks(self, seq: int, keys: Keys | None) -> tuple[Mask, ...]:
        """The attention mask of each layer."""
        widths = tuple(dict.fromkeys(self.windows))
        of = dict(zip(widths, window_masks(keys, seq=seq, causal=self.causal, windows=widths), strict=True))
        return tuple(of[window] for window in self.windows)

    def batch_masks(self, keys: Bool[Array, "batch seq"]) -> tuple[Bool[Array, "batch q_seq k_seq"], ...]:
        """The same for a batch of prompts, compiled."""
        return batch_masks(keys, causal=self.causal, windows=self.windows)

    def embed(self, tokens: Tokens, tap: Tap, keys: Keys | None = None, first: Int[Array, ""] | None = None) -> Resid:
        """Tokens and learned positions to the first residual stream. Positions count the real tokens, wherever the padding is; of tokens
        that stand further behind they count from the `first`'s on.
        """
        rows = wide(entries(self.W_E, tokens))
        embedded = tap(Kind.EMBED, rows if self.embed_scale == 1 else rows * self.embed_scale)
        if self.W_pos is None:
            return embedded
        positions = jnp.arange(tokens.shape[0]) if keys is None else jnp.maximum(jnp.cumsum(keys) - 1, 0)
        positions = positions if first is None else positions + first.astype(positions.dtype)
        return embedded + tap(Kind.POS_EMBED, wide(self.W_pos[positions]))

    def unembed(self, resid: Resid, tap: Tap, tokens: Int[Array, " token"] | None = None) -> Logits:
        """The last residual stream to logits; of some `tokens` alone, whose directions are few."""
        normalized = resid if self.ln_final is None else self.ln_final(resid, tap)
        if tokens is not None:
            own = self.untied_W_U
            directions = entries(self.W_E, tokens).T if own is None else entries(own, tokens, axis=1)
            # [seq d_model] · [d_model token] -> [seq token]
            return self._capped(normalized @ wide(directions) + wide(entries(self.b_U, tokens)), tap)
        if self.untied_W_U is None and len(normalized) == 1:
            # Of few rows with a transposed matrix XLA on CPUs first copies all of that, and takes ten times as long.
            logits = jax.lax.optimization_barrier(wide(self.W_E) @ normalized[0])[None]
        else:
            logits = normalized @ wide(self.W_U)
        return tap(Kind.LOGITS, self._capped(logits + wide(self.b_U), tap))

    def _capped(self, logits: Float[Array, "seq token"], tap: Tap) -> Float[Array, "seq token"]:
        cap = self.logit_cap
        if cap is None:
            return logits
        capped = lambda x: cap * jnp.tanh(x / cap)
        if tap.uses(Kind.LOGIT_GATE):
            return logits * tap(Kind.LOGIT_GATE, gate_of(capped, logits))
        return capped(logits)


def _embed(ends: Transformer, tap: Tap, tokens: Tokens, keys: Keys | None) -> Resid:
    return ends.embed(tokens, tap, keys)


def _unembed(ends: Transformer, tap: Tap, resid: Resid) -> Logits:
    return ends.unembed(resid, tap)

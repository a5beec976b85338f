"""What a model is, apart from its arrays: the noun between configurations, key tables and `Transformer`s."""

import dataclasses
import functools as ft

from ._rotation import Rotation


ATTENTION_BIASES = frozenset(f"attn.b_{part}" for part in "QKVO")
MLP_BIASES = frozenset(("mlp.b_in", "mlp.b_out"))


@dataclasses.dataclass(frozen=True)
class Spec:
    """Sizes and choices that every configuration comes down to.

    - `norm`: `"LN"`, `"RMS"`, the same without weights, `"LNPre"` and `"RMSPre"`, or `None`; `before`: whether there are such norms of
      what the sublayers read. `behind`: whether there are RMS norms of what they write; `qk_norm`: whether queries and keys have one,
      `"head"` by head or `"all"` of all heads together. `offset` is added to the weights that are stored.
    - `scales` multiply the attention scores, `windows` are the widths of local attention, `rotations` turn queries and keys: one of each
      a layer. Without rotations positions are learned.
    - `cap` and `logit_cap` bound scores and logits, `embed_scale` multiplies the embedding.
    - `biases`: which of a block's biases files hold; the others are zero.
    - `d_mlp` and `act` are `None` in a model of attention only.
    """

    architecture: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_model: int
    d_mlp: int | None
    d_vocab: int
    d_vocab_out: int
    n_ctx: int
    act: str | None
    eps: float
    norm: str | None
    scales: tuple[float, ...]
    windows: tuple[int | None, ...]
    causal: bool
    tied: bool
    biases: frozenset[str] = frozenset()
    parallel: bool = False  # attention and MLP side by side
    gated: bool = False
    before: bool = True
    behind: bool = False
    qk_norm: str | None = None
    offset: float = 0.0
    rotations: tuple[Rotation | None, ...] = ()
    cap: float | None = None
    logit_cap: float | None = None
    embed_scale: float = 1.0
    precision: float = 1e-6  # of the scales, relative: they are arrays

    @property
    def sizes(self) -> dict[str, int]:
        """Gives the length of each axis word in the key tables; `part` is the three of query, key and value."""
        return {
            "part": 3,
            "head": self.n_heads,
            "kv_head": self.n_kv_heads,
            "d_head": self.d_head,
            "d_model": self.d_model,
            "d_mlp": self.d_mlp or 0,
            "d_vocab": self.d_vocab,
            "d_vocab_out": self.d_vocab_out,
            "n_ctx": self.n_ctx,
        }

    @ft.cached_property
    def arrays(self) -> dict[str, str]:
        """Gives the axes of every array of the model, by the path by which the key tables call it; of what is tied, the embedding."""
        outside = {"W_E": "d_vocab d_model", "b_U": "d_vocab_out", **self._norm("ln_final")}
        if not self.rotations:
            outside["W_pos"] = "n_ctx d_model"
        if not self.tied:
            outside["W_U"] = "d_model d_vocab_out"
        block = self._block()
        inside = {f"blocks.{layer}.{name}": axes for layer in range(self.n_layers) for name, axes in block.items()}
        return outside | inside

    @ft.cached_property
    def stored(self) -> frozenset[str]:
        """Gives the paths of the arrays that a file of this model holds."""
        in_block = lambda path: path.split(".", 2)[2] if path.startswith("blocks.") else path
        return frozenset(path for path in self.arrays if not is_bias(path) or in_block(path) in self.biases)

    def _block(self) -> dict[str, str]:
        into = {"Q": "head", "K": "kv_head", "V": "kv_head"}
        out = {f"attn.W_{part}": f"{heads} d_model d_head" for part, heads in into.items()}
        out |= {f"attn.b_{part}": f"{heads} d_head" for part, heads in into.items()}
        out |= {"attn.W_O": "head d_head d_model", "attn.b_O": "d_model"}
        if self.qk_norm is not None:
            all_heads = self.qk_norm == "all"
            out |= {
                "attn.q_norm.weight": "head d_head" if all_heads else "d_head",
                "attn.k_norm.weight": "kv_head d_head" if all_heads else "d_head",
            }
        sublayers = ("ln1",) if self.d_mlp is None else ("ln1", "ln2")
        for name in sublayers if self.before else ():
            out |= self._norm(name)
        for name in sublayers if self.behind else ():
            out |= {f"{name}_post.weight": "d_model"}  # it cannot be folded into a matrix, so it is there in any case
        if self.d_mlp is not None:
            for name in ("gate", "in") if self.gated else ("in",):
                out |= {f"mlp.W_{name}": "d_model d_mlp", f"mlp.b_{name}": "d_mlp"}
            out |= {"mlp.W_out": "d_mlp d_model", "mlp.b_out": "d_model"}
        return out

    def _norm(self, name: str) -> dict[str, str]:
        held = {"LN": ("weight", "bias"), "RMS": ("weight",)}.get(self.norm or "", ())
        return {f"{name}.{which}": "d_model" for which in held}


def is_bias(path: str) -> bool:
    """Says whether an array is one of those biases that not every architecture has."""
    return path.rpartition(".")[2].startswith("b_")

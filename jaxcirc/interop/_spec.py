"""What a model is, apart from its arrays: the noun between configurations, key tables and `Transformer`s."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Spec:
    """Sizes and choices that every configuration comes down to.

    `norm` is `"LN"`, `"LNPre"` (no weights) or `None`; `scales` multiply the attention scores, `windows` are the widths of local
    attention, one of each a layer; `d_mlp` and `act` are `None` in a model of attention only.
    """

    architecture: str
    n_layers: int
    n_heads: int
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
    parallel: bool = False  # attention and MLP side by side
    precision: float = 1e-6  # of the scales, relative: they are arrays of the model's dtype

    @property
    def sizes(self) -> dict[str, int]:
        """Gives the length of each axis word in the key tables; `part` is the three of query, key and value."""
        return {
            "part": 3,
            "head": self.n_heads,
            "d_head": self.d_head,
            "d_model": self.d_model,
            "d_mlp": self.d_mlp or 0,
            "d_vocab": self.d_vocab,
            "d_vocab_out": self.d_vocab_out,
            "n_ctx": self.n_ctx,
        }

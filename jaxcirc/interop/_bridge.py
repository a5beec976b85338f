"""TransformerLens' bridges, from its version 3 on: the same arrays as its hooked models have, under the names of modules.

Matrices lie as the model inside the bridge keeps them: GPT-2's input first, but for the queries, keys and values that the bridge takes
apart; those of TransformerLens' own models output first, as linear layers have them.
"""

from collections.abc import Mapping

import numpy as np

from . import _layouts
from ._spec import Spec


# {name in the bridge: (name in a hooked model, its layout there, layout in a GPT-2, layout in a model of TransformerLens' own)}
_Row = tuple[str, str, str, str]


def _same(name: str, axes: str) -> _Row:
    return name, axes, axes, axes


_OUTSIDE: dict[str, _Row] = {
    "embed.weight": _same("embed.W_E", "d_vocab d_model"),
    "pos_embed.weight": _same("pos_embed.W_pos", "n_ctx d_model"),
    "unembed.weight": ("unembed.W_U", "d_model d_vocab_out", "d_vocab_out d_model", "d_vocab_out d_model"),
    "unembed.bias": _same("unembed.b_U", "d_vocab_out"),
    "ln_final.weight": _same("ln_final.w", "d_model"),
    "ln_final.bias": _same("ln_final.b", "d_model"),
}
_HEADS = "(head d_head) d_model", "(head d_head) d_model"
_HEAD_BIAS = "(head d_head)", "(head d_head)"
_BLOCK: dict[str, _Row] = {
    "ln1.weight": _same("ln1.w", "d_model"),
    "ln1.bias": _same("ln1.b", "d_model"),
    "ln2.weight": _same("ln2.w", "d_model"),
    "ln2.bias": _same("ln2.b", "d_model"),
    "attn.q.weight": ("attn.W_Q", "head d_model d_head", *_HEADS),
    "attn.k.weight": ("attn.W_K", "head d_model d_head", *_HEADS),
    "attn.v.weight": ("attn.W_V", "head d_model d_head", *_HEADS),
    "attn.q.bias": ("attn.b_Q", "head d_head", *_HEAD_BIAS),
    "attn.k.bias": ("attn.b_K", "head d_head", *_HEAD_BIAS),
    "attn.v.bias": ("attn.b_V", "head d_head", *_HEAD_BIAS),
    "attn.o.weight": ("attn.W_O", "head d_head d_model", "(head d_head) d_model", "d_model (head d_head)"),
    "attn.o.bias": _same("attn.b_O", "d_model"),
    "mlp.in.weight": ("mlp.W_in", "d_model d_mlp", "d_model d_mlp", "d_mlp d_model"),
    "mlp.in.bias": _same("mlp.b_in", "d_mlp"),
    "mlp.out.weight": ("mlp.W_out", "d_mlp d_model", "d_mlp d_model", "d_model d_mlp"),
    "mlp.out.bias": _same("mlp.b_out", "d_model"),
}


def is_bridge(names: Mapping[str, object]) -> bool:
    """Says whether these are the names of a bridge's tensors."""
    return "embed.weight" in names


def as_hooked(stored: Mapping[str, np.ndarray], spec: Spec, *, gpt2: bool, source: str) -> dict[str, np.ndarray]:
    """Puts a bridge's tensors under the names and in the layouts of a hooked model; `gpt2`: it is Hugging Face's GPT-2 inside.

    **Raises:** `ValueError` for a tensor of another shape than the configuration asks for. Names that are not known stay.
    """
    rows = dict(_OUTSIDE)
    for layer in range(spec.n_layers):
        at = f"blocks.{layer}."
        rows |= {at + name: (at + row[0], *row[1:]) for name, row in _BLOCK.items()}
    out = {}
    for name, array in stored.items():
        if name not in rows:
            out[name] = array
            continue
        hooked, axes, of_gpt2, of_own = rows[name]
        layout = of_gpt2 if gpt2 else of_own
        expected = _layouts.shape(layout, spec.sizes)
        if array.shape != expected:
            raise ValueError(
                f"{source}: tensor `{name}` has shape {array.shape}, and its configuration asks for {expected} ({layout}). "
                "Do the weights and the configuration belong together?"
            )
        out[hooked] = _layouts.rearrange(array, layout, axes, spec.sizes)
    return out

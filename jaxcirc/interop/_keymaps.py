"""One table of names and layouts for each architecture, which every reader and writer uses in both directions.

A row says where one stored tensor lives in PyTorch and in Flax checkpoints, which of our arrays it holds, and in what layout. Hugging
Face's GPT-2 keeps its linear maps as `Conv1D`, input first; its Flax version stores the same kernels output first; GPT-Neo uses ordinary
linear layers, output first in PyTorch and input first in Flax. TransformerLens has our names and layouts.
"""

import dataclasses
import re

from ._spec import Spec


@dataclasses.dataclass(frozen=True)
class Key:
    """One stored tensor: the arrays that it holds (stacked on a leading axis `part` if more than one), their layout, and its name and
    layout in each kind of file. `optional`: a file may lack it, and then it is zero.
    """

    ours: tuple[str, ...]
    axes: str
    torch: str
    torch_axes: str
    flax: str = ""
    flax_axes: str = ""
    optional: bool = False

    def name(self, kind: str) -> str:
        return self.flax if kind == "flax" else self.torch

    def layout(self, kind: str) -> str:
        return self.flax_axes if kind == "flax" else self.torch_axes

    def in_block(self, layer: int) -> "Key":
        """Makes the row for block `layer`."""
        replace = lambda name: name.replace("{layer}", str(layer))
        ours = tuple(f"blocks.{layer}.{name}" for name in self.ours)
        return dataclasses.replace(self, ours=ours, torch=replace(self.torch), flax=replace(self.flax))


def _vector(ours: str, torch: str, flax: str, axes: str = "d_model") -> Key:
    return Key((ours,), axes, torch, axes, flax, axes)


EMBEDDING = Key(("W_E",), "d_vocab d_model", "wte.weight", "d_vocab d_model", "wte.embedding", "d_vocab d_model")
_OUTSIDE = (
    EMBEDDING,
    Key(("W_pos",), "n_ctx d_model", "wpe.weight", "n_ctx d_model", "wpe.embedding", "n_ctx d_model"),
    _vector("ln_final.weight", "ln_f.weight", "ln_f.scale"),
    _vector("ln_final.bias", "ln_f.bias", "ln_f.bias"),
)
HEAD = Key(("W_U",), "d_model d_vocab", "lm_head.weight", "d_vocab d_model", "lm_head.kernel", "d_model d_vocab")
_NORMS = tuple(
    _vector(f"ln{i}.{ours}", f"h.{{layer}}.ln_{i}.{ours}", f"h.{{layer}}.ln_{i}.{flax}")
    for i in (1, 2)
    for ours, flax in (("weight", "scale"), ("bias", "bias"))
)
_BIASES = (
    _vector("mlp.b_in", "h.{layer}.mlp.c_fc.bias", "h.{layer}.mlp.c_fc.bias", "d_mlp"),
    _vector("mlp.b_out", "h.{layer}.mlp.c_proj.bias", "h.{layer}.mlp.c_proj.bias"),
)

# fmt: off
_GPT2_BLOCK = (
    Key(("attn.W_Q", "attn.W_K", "attn.W_V"), "part head d_model d_head",
        "h.{layer}.attn.c_attn.weight", "d_model (part head d_head)", "h.{layer}.attn.c_attn.kernel", "(part head d_head) d_model"),
    Key(("attn.b_Q", "attn.b_K", "attn.b_V"), "part head d_head",
        "h.{layer}.attn.c_attn.bias", "(part head d_head)", "h.{layer}.attn.c_attn.bias", "(part head d_head)"),
    Key(("attn.W_O",), "head d_head d_model",
        "h.{layer}.attn.c_proj.weight", "(head d_head) d_model", "h.{layer}.attn.c_proj.kernel", "d_model (head d_head)"),
    _vector("attn.b_O", "h.{layer}.attn.c_proj.bias", "h.{layer}.attn.c_proj.bias"),
    Key(("mlp.W_in",), "d_model d_mlp", "h.{layer}.mlp.c_fc.weight", "d_model d_mlp", "h.{layer}.mlp.c_fc.kernel", "d_mlp d_model"),
    Key(("mlp.W_out",), "d_mlp d_model", "h.{layer}.mlp.c_proj.weight", "d_mlp d_model", "h.{layer}.mlp.c_proj.kernel", "d_model d_mlp"),
)
_GPT_NEO_BLOCK = (
    *(Key((f"attn.W_{part}",), "head d_model d_head",
          f"h.{{layer}}.attn.attention.{part.lower()}_proj.weight", "(head d_head) d_model",
          f"h.{{layer}}.attn.attention.{part.lower()}_proj.kernel", "d_model (head d_head)")
      for part in ("Q", "K", "V")),
    Key(("attn.W_O",), "head d_head d_model",
        "h.{layer}.attn.attention.out_proj.weight", "d_model (head d_head)",
        "h.{layer}.attn.attention.out_proj.kernel", "(head d_head) d_model"),
    _vector("attn.b_O", "h.{layer}.attn.attention.out_proj.bias", "h.{layer}.attn.attention.out_proj.bias"),
    Key(("mlp.W_in",), "d_model d_mlp", "h.{layer}.mlp.c_fc.weight", "d_mlp d_model", "h.{layer}.mlp.c_fc.kernel", "d_model d_mlp"),
    Key(("mlp.W_out",), "d_mlp d_model", "h.{layer}.mlp.c_proj.weight", "d_model d_mlp", "h.{layer}.mlp.c_proj.kernel", "d_mlp d_model"),
)
# fmt: on


def _lens(ours: str, axes: str, name: str = "") -> Key:
    name = name or f"blocks.{{layer}}.{ours}"
    return Key((ours,), axes, name, axes, optional=name.rpartition(".")[2].startswith("b_"))


_LENS_OUTSIDE = (
    _lens("W_E", "d_vocab d_model", "embed.W_E"),
    _lens("W_pos", "n_ctx d_model", "pos_embed.W_pos"),
    _lens("W_U", "d_model d_vocab_out", "unembed.W_U"),
    _lens("b_U", "d_vocab_out", "unembed.b_U"),
)
_LENS_FINAL = (_lens("ln_final.weight", "d_model", "ln_final.w"), _lens("ln_final.bias", "d_model", "ln_final.b"))
_LENS_ATTENTION = (
    *(_lens(f"attn.W_{part}", "head d_model d_head") for part in "QKV"),
    *(_lens(f"attn.b_{part}", "head d_head") for part in "QKV"),
    _lens("attn.W_O", "head d_head d_model"),
    _lens("attn.b_O", "d_model"),
)
_LENS_MLP = (
    _lens("mlp.W_in", "d_model d_mlp"),
    _lens("mlp.b_in", "d_mlp"),
    _lens("mlp.W_out", "d_mlp d_model"),
    _lens("mlp.b_out", "d_model"),
)

_HUGGING_FACE = {"gpt2": _GPT2_BLOCK, "gpt_neo": _GPT_NEO_BLOCK}
# Masks that older checkpoints store beside the weights.
_BUFFERS = re.compile(r"(h\.\d+\.attn(\.attention)?\.(bias|masked_bias)|blocks\.\d+\.attn\.(mask|IGNORE))")


def keys(spec: Spec) -> tuple[Key, ...]:
    """Lists every tensor that a checkpoint of this model holds, in order."""
    if spec.architecture == "transformer_lens":
        return _lens_keys(spec)
    block = (*_HUGGING_FACE[spec.architecture], *_NORMS, *_BIASES)
    inside = tuple(key.in_block(layer) for layer in range(spec.n_layers) for key in block)
    return (*_OUTSIDE, *inside) if spec.tied else (*_OUTSIDE, *inside, HEAD)


def is_buffer(name: str) -> bool:
    """Says whether a stored tensor is a mask that was kept beside the weights, and no parameter."""
    return _BUFFERS.fullmatch(name) is not None


def _lens_keys(spec: Spec) -> tuple[Key, ...]:
    has_mlp, has_norm = spec.d_mlp is not None, spec.norm == "LN"
    norm = lambda name: (
        _lens(f"{name}.weight", "d_model", f"blocks.{{layer}}.{name}.w"),
        _lens(f"{name}.bias", "d_model", f"blocks.{{layer}}.{name}.b"),
    )
    block = (
        *(norm("ln1") if has_norm else ()),
        *_LENS_ATTENTION,
        *(norm("ln2") if has_norm and has_mlp else ()),
        *(_LENS_MLP if has_mlp else ()),
    )
    inside = tuple(key.in_block(layer) for layer in range(spec.n_layers) for key in block)
    return (*_LENS_OUTSIDE, *inside, *(_LENS_FINAL if has_norm else ()))

"""Random models that Hugging Face's layouts can hold, for the tests of checkpoints."""

import dataclasses as dc
import functools as ft
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

import jaxcirc as jc
from jaxcirc.interop._rotation import Rotation
from jaxcirc.parts import gelu, relu

from .helpers import GEMMA, make_model, RMS_GATED


FLOAT = jnp.zeros(()).dtype  # of the random models


def _zero(model: jc.Transformer, *biases: str) -> jc.Transformer:
    """`model` with the unembedding's bias, and these of every attention and MLP, at zero."""

    def without(part):
        there = {name: getattr(part, name) for name in biases if hasattr(part, name)}
        return dc.replace(part, **{name: jnp.zeros_like(array) for name, array in there.items()})

    blocks = tuple(dc.replace(block, attn=without(block.attn), mlp=without(block.mlp)) for block in model.blocks)
    return dc.replace(model, blocks=blocks, b_U=jnp.zeros_like(model.b_U))


def _gpt2(**kwargs) -> jc.Transformer:
    return _zero(make_model(jax.random.key(1), **({"d_head": 8} | kwargs)))


def _gpt_neo(**kwargs) -> jc.Transformer:
    layers = kwargs.get("layers", 2)
    defaults = {"d_head": 8, "windows": (None, 3), "scales": (1.0,) * layers, "architecture": "gpt_neo"}
    return _zero(make_model(jax.random.key(2), **(defaults | kwargs)), "b_Q", "b_K", "b_V")


OF_MLP = ("b_gate", "b_in", "b_out")
OF_ATTENTION = ("b_Q", "b_K", "b_V", "b_O")


def rotary_model(architecture: str, *zero: str, **kwargs) -> jc.Transformer:
    """A model whose positions rotate, with these biases at zero; it says how they do."""
    model = make_model(jax.random.key(3), architecture=architecture, **kwargs)
    thetas = kwargs.get("thetas", (100.0,) * model.n_layers)
    rotations = tuple(Rotation(theta, 2 * kwargs["pairs"]) for theta in thetas)
    return dc.replace(_zero(model, *zero), positions=rotations)


ALL = (*OF_ATTENTION, *OF_MLP)
LLAMA = RMS_GATED | {"d_head": 6, "vocab_out": 13, "layers": 3}
# The epsilon of each is 1e-5, and the score scale of Gemma a whole number's inverse root.
BEHIND = {"behind": True, "scales": (9**-0.5,) * 3, "windows": (3, None, 3), **GEMMA}
ROTARY: dict[str, Callable[[], jc.Transformer]] = {
    "gpt-neox": lambda: rotary_model("gpt_neox", d_head=8, pairs=2, parallel=True, act=gelu, vocab_out=13),
    "gpt-neox-one-after-the-other": lambda: rotary_model("gpt_neox", *OF_ATTENTION, d_head=8, pairs=3, act=relu),
    "llama": lambda: rotary_model("llama", *ALL, **LLAMA),
    "llama-biases-tied": lambda: rotary_model("llama", **LLAMA | {"vocab_out": None}),
    "mistral": lambda: rotary_model("mistral", *ALL, **LLAMA | {"windows": (4,) * 3}),
    "qwen2": lambda: rotary_model("qwen2", "b_O", *OF_MLP, **LLAMA | {"windows": (None, None, 3)}),
    "qwen3": lambda: rotary_model("qwen3", *ALL, **LLAMA | {"qk_norm": "head"}),
    "gemma": lambda: rotary_model("gemma", *ALL, **LLAMA | GEMMA | {"vocab_out": None}),
    "gemma2": lambda: rotary_model("gemma2", *ALL, **LLAMA | BEHIND | {"cap": 2.0, "logit_cap": 3.0}),
    "gemma3": lambda: rotary_model(
        "gemma3_text", *ALL, **LLAMA | BEHIND | {"qk_norm": "head", "thetas": (10.0, 200.0, 10.0)}
    ),
    "olmo2": lambda: rotary_model("olmo2", *ALL, **LLAMA | {"before": False, "behind": True, "qk_norm": "all"}),
}
LEARNED: dict[str, Callable[[], jc.Transformer]] = {
    "gpt2": _gpt2,
    "gpt2-untied-odd-sizes": lambda: _gpt2(
        vocab=17, vocab_out=17, d_model=15, heads=3, d_head=5, d_mlp=7, n_ctx=11, act=gelu
    ),
    "gpt2-inverse-layer-scale": lambda: _gpt2(layers=3, scales=tuple(8**-0.5 / (i + 1) for i in range(3)), act=relu),
    "gpt2-unscaled": lambda: _gpt2(scales=(1.0, 1.0)),
    "gpt-neo": _gpt_neo,
    "gpt-neo-untied-odd-sizes": lambda: _gpt_neo(
        layers=3, vocab=11, vocab_out=11, d_model=9, heads=3, d_head=3, d_mlp=5, windows=(4, None, 4), act=relu
    ),
}
STORED = LEARNED | ROTARY


@ft.cache
def stored_model(name: str) -> jc.Transformer:
    return STORED[name]()


def same_arrays(a: jc.Transformer, b: jc.Transformer) -> bool:
    """Bit for bit, dtypes and structure included; the name may differ."""
    a, b = dc.replace(a, name=""), dc.replace(b, name="")
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and np.array_equal(x, y) and np.any(x == x) for x, y in pairs)


def logits_of(model: jc.Transformer, seq: int = 7) -> np.ndarray:
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, model.d_vocab, seq), jnp.int32)
    return np.asarray(jc.run(model, tokens)[0])


def edit_config(folder: Path, **changes) -> None:
    """Changes attributes of a saved configuration."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, edit: Callable) -> None:
    """Saves `edit(tensors)` instead, or what it made of the tensors in place."""
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(edit(tensors) or tensors, path)


def load(folder, **kwargs) -> jc.Transformer:
    """`from_pretrained` in the random models' own dtype, so that nothing is rounded."""
    return jc.from_pretrained(folder, **({"dtype": FLOAT} | kwargs))


def shard(folder: Path) -> None:
    """Splits a saved checkpoint's weights into two files with an index."""
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(names.values()):
        safetensors.numpy.save_file({name: tensors[name] for name in tensors if names[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))

"""From a spec and named arrays to a `Transformer`, and back."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from .._checks import check_kind
from .._sites import Kind
from ..models import Transformer
from ..parts import ACTIVATIONS, Attention, Block, LayerNorm, MLP
from ._spec import Spec
from ._tensors import cast


def build(
    spec: Spec, arrays: Mapping[str, np.ndarray], *, name: str, dtype: DTypeLike, processing: tuple[str, ...] = ()
) -> Transformer:
    """Builds the model of `spec` with these arrays, as `dtype`."""
    dtype = checked_dtype(dtype)
    # Not `jnp.asarray`, which compiles a program for every shape.
    get = lambda path: jax.device_put(cast(path, arrays[path], dtype))

    def norm(path: str, *sites: Kind) -> LayerNorm | None:
        if spec.norm is None:
            return None
        weights = (get(f"{path}.weight"), get(f"{path}.bias")) if spec.norm == "LN" else (None, None)
        return LayerNorm(*weights, spec.eps, sites)  # pyright: ignore[reportArgumentType]  # two weights or two Nones

    def block(layer: int) -> Block:
        at = f"blocks.{layer}"
        names = ("W_Q", "b_Q", "W_K", "b_K", "W_V", "b_V", "W_O", "b_O")
        attn = Attention(
            **{name: get(f"{at}.attn.{name}") for name in names},
            scale=jax.device_put(np.asarray(spec.scales[layer], dtype)),
        )
        ln1 = norm(f"{at}.ln1", Kind.LN1_SCALE, Kind.LN1_NORMALIZED)
        if spec.act is None:
            return Block(ln1, attn, None, None)
        names = ("W_in", "b_in", "W_out", "b_out")
        mlp = MLP(**{name: get(f"{at}.mlp.{name}") for name in names}, act=ACTIVATIONS[spec.act])
        return Block(ln1, attn, norm(f"{at}.ln2", Kind.LN2_SCALE, Kind.LN2_NORMALIZED), mlp, spec.parallel)

    return Transformer(
        W_E=get("W_E"),
        W_pos=get("W_pos"),
        blocks=tuple(map(block, range(spec.n_layers))),
        ln_final=norm("ln_final", Kind.FINAL_SCALE, Kind.FINAL_NORMALIZED),
        untied_W_U=None if spec.tied else get("W_U"),
        b_U=get("b_U"),
        windows=spec.windows,
        causal=spec.causal,
        architecture=spec.architecture,
        name=name,
        processing=processing,
    )


def checked_dtype(dtype: DTypeLike) -> np.dtype:
    """Gives `dtype` as NumPy's, after a check that JAX would keep it."""
    try:
        dtype = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"Expected a dtype such as jnp.float32, got {dtype!r}.") from None
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"A model's arrays are of a floating dtype; got {dtype}.")
    if dtype == np.float64 and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]  # set at run time
        raise ValueError(
            'float64 needs jax.config.update("jax_enable_x64", True) first; else JAX would round to float32.'
        )
    return dtype


def arrays_of(model: Transformer) -> dict[str, np.ndarray]:
    """Lists the arrays of `model` under the paths by which its key table calls them."""
    out = {
        "W_E": model.W_E,
        "W_pos": model.W_pos,
        "W_U": model.W_U,
        "b_U": model.b_U,
        **_norm_arrays("ln_final", model.ln_final),
    }
    for layer, block in enumerate(model.blocks):
        at = f"blocks.{layer}"
        out |= _norm_arrays(f"{at}.ln1", block.ln1) | _norm_arrays(f"{at}.ln2", block.ln2)
        attn, mlp = block.attn, block.mlp
        out |= {
            f"{at}.attn.W_Q": attn.W_Q,
            f"{at}.attn.W_K": attn.W_K,
            f"{at}.attn.W_V": attn.W_V,
            f"{at}.attn.W_O": attn.W_O,
        }
        out |= {
            f"{at}.attn.b_Q": attn.b_Q,
            f"{at}.attn.b_K": attn.b_K,
            f"{at}.attn.b_V": attn.b_V,
            f"{at}.attn.b_O": attn.b_O,
        }
        if mlp is not None:
            out |= {
                f"{at}.mlp.W_in": mlp.W_in,
                f"{at}.mlp.b_in": mlp.b_in,
                f"{at}.mlp.W_out": mlp.W_out,
                f"{at}.mlp.b_out": mlp.b_out,
            }
    return {path: np.asarray(array) for path, array in out.items()}


def _norm_arrays(path: str, norm: LayerNorm | None) -> dict[str, jax.Array]:
    if norm is None or norm.weight is None or norm.bias is None:
        return {}
    return {f"{path}.weight": norm.weight, f"{path}.bias": norm.bias}


def spec_of(model: Transformer) -> Spec:
    """Says what `model` is, apart from its arrays: the inverse of `build`."""
    check_kind("model", model, Transformer, "a model, as jc.from_pretrained gives one")
    first = model.blocks[0]
    norm = model.ln_final
    return Spec(
        architecture=model.architecture,
        n_layers=model.n_layers,
        n_heads=model.n_heads,
        d_head=model.d_head,
        d_model=model.d_model,
        d_mlp=None if first.mlp is None else first.mlp.W_in.shape[1],
        d_vocab=model.d_vocab,
        d_vocab_out=len(model.b_U),
        n_ctx=model.n_ctx,
        act=None if first.mlp is None else _act_name(first.mlp),
        eps=1e-5 if norm is None else norm.eps,
        norm=None if norm is None else "LNPre" if norm.weight is None else "LN",
        scales=tuple(float(block.attn.scale) for block in model.blocks),
        windows=model.windows,
        causal=model.causal,
        parallel=any(block.parallel for block in model.blocks),
        tied=model.untied_W_U is None,
        precision=2 * float(jnp.finfo(model.dtype).eps),
    )


def _act_name(mlp: MLP) -> str:
    for name, act in ACTIVATIONS.items():
        if act is mlp.act:
            return name
    raise ValueError(
        f"The activation function {mlp.act!r} has no name in a configuration; known are {', '.join(ACTIVATIONS)}."
    )

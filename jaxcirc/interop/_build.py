"""From a spec and named arrays to a `Transformer`, and back."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from .._checks import check_kind
from .._precision import wide_dtype
from .._sites import Kind
from ..models import Transformer
from ..parts import ACTIVATIONS, Attention, Block, GatedMLP, LayerNorm, make_rotary, MLP, Norm, RMSNorm, Rotary
from ._rotation import Rotation
from ._spec import Spec
from ._tensors import cast, checked_dtype


def build(
    spec: Spec, arrays: dict[str, np.ndarray], *, name: str, dtype: DTypeLike, processing: tuple[str, ...] = ()
) -> Transformer:
    """Builds the model of `spec` with these arrays, as `dtype`; each is let go as soon as the model has it."""
    dtype = checked_dtype(dtype)
    # Not `jnp.asarray`, which compiles a program for every shape.
    get = lambda path: jax.device_put(cast(path, arrays.pop(path), dtype))
    # Beside the weights, which half precision stores, what is computed with: its rounding would turn up in every score.
    computed = wide_dtype(dtype)
    rotaries: dict[Rotation | None, Rotary] = {
        rotation: make_rotary(rotation.frequencies, computed)
        for rotation in set(spec.rotations)
        if rotation is not None
    }

    def rms_norm(path: str, *sites: Kind, weighted: bool = True) -> RMSNorm:
        weight = get(f"{path}.weight") if weighted else None
        return RMSNorm(weight, spec.eps, sites, spec.offset)  # pyright: ignore[reportArgumentType]  # two sites

    def norm(path: str, *sites: Kind) -> Norm | None:
        if spec.norm is None:
            return None
        if spec.norm in ("RMS", "RMSPre"):
            return rms_norm(path, *sites, weighted=spec.norm == "RMS")
        weights = (get(f"{path}.weight"), get(f"{path}.bias")) if spec.norm == "LN" else (None, None)
        return LayerNorm(*weights, spec.eps, sites)  # pyright: ignore[reportArgumentType]  # two weights or two Nones

    def attention(layer: int) -> Attention:
        at = f"blocks.{layer}.attn"
        qk_norm = lambda *where: rms_norm(*where) if spec.qk_norm is not None else None
        return Attention(
            **{f"{what}_{part}": get(f"{at}.{what}_{part}") for part in "QKVO" for what in "Wb"},
            scale=jax.device_put(np.asarray(spec.scales[layer], computed)),
            q_norm=qk_norm(f"{at}.q_norm", Kind.Q_SCALE, Kind.Q_NORMALIZED),
            k_norm=qk_norm(f"{at}.k_norm", Kind.K_SCALE, Kind.K_NORMALIZED),
            rotary=rotaries.get(spec.rotations[layer]) if spec.rotations else None,
            cap=spec.cap,
        )

    def mlp(layer: int) -> MLP | GatedMLP | None:
        if spec.act is None:
            return None
        names = [f"{what}_{which}" for which in (*(("gate",) if spec.gated else ()), "in", "out") for what in "Wb"]
        arrays = {name: get(f"blocks.{layer}.mlp.{name}") for name in names}
        return (GatedMLP if spec.gated else MLP)(**arrays, act=ACTIVATIONS[spec.act])

    def block(layer: int) -> Block:
        at, fed = f"blocks.{layer}", spec.act is not None
        before = lambda there, *where: norm(*where) if there and spec.before else None
        behind = lambda there, *where: rms_norm(*where) if there and spec.behind else None
        return Block(
            ln1=before(True, f"{at}.ln1", Kind.LN1_SCALE, Kind.LN1_NORMALIZED),
            attn=attention(layer),
            ln2=before(fed, f"{at}.ln2", Kind.LN2_SCALE, Kind.LN2_NORMALIZED),
            mlp=mlp(layer),
            parallel=spec.parallel,
            ln1_post=behind(True, f"{at}.ln1_post", Kind.LN1_POST_SCALE, Kind.LN1_POST_NORMALIZED),
            ln2_post=behind(fed, f"{at}.ln2_post", Kind.LN2_POST_SCALE, Kind.LN2_POST_NORMALIZED),
        )

    return Transformer(
        W_E=get("W_E"),
        W_pos=None if spec.rotations else get("W_pos"),
        blocks=tuple(map(block, range(spec.n_layers))),
        ln_final=norm("ln_final", Kind.FINAL_SCALE, Kind.FINAL_NORMALIZED),
        untied_W_U=None if spec.tied else get("W_U"),
        b_U=get("b_U"),
        windows=spec.windows,
        causal=spec.causal,
        architecture=spec.architecture,
        name=name,
        processing=processing,
        embed_scale=spec.embed_scale,
        logit_cap=spec.logit_cap,
        context=spec.n_ctx if spec.rotations else None,
        positions=spec.rotations,
    )


def arrays_of(model: Transformer) -> dict[str, np.ndarray]:
    """Lists the arrays of `model` under the paths by which its key table calls them."""
    spec = spec_of(model)
    found = {"W_U": model.W_U} | {path: _at(model, path) for path in spec.arrays}
    return {path: np.asarray(array) for path, array in found.items()}


def _at(model: Transformer, path: str) -> jax.Array:
    """Finds one array."""
    part: Any = model
    for step in path.split("."):
        part = part[int(step)] if step.isdigit() else getattr(part, step)
    return part


def spec_of(model: Transformer) -> Spec:
    """Says what `model` is, apart from its arrays: the inverse of `build`."""
    check_kind("model", model, Transformer, "a model, as jc.from_pretrained gives one")
    first = model.blocks[0]
    attn, mlp, norm = first.attn, first.mlp, model.ln_final
    turns = any(block.attn.rotary is not None for block in model.blocks)
    scale = jnp.result_type(attn.scale)
    return Spec(
        architecture=model.architecture,
        n_layers=model.n_layers,
        n_heads=model.n_heads,
        n_kv_heads=model.n_kv_heads,
        d_head=model.d_head,
        d_model=model.d_model,
        d_mlp=None if mlp is None else mlp.W_in.shape[1],
        d_vocab=model.d_vocab,
        d_vocab_out=len(model.b_U),
        n_ctx=model.n_ctx,
        act=None if mlp is None else _act_name(mlp),
        eps=1e-5 if norm is None else norm.eps,
        norm=None if norm is None else _norm_name(norm),
        scales=tuple(float(block.attn.scale) for block in model.blocks),
        windows=model.windows,
        causal=model.causal,
        tied=model.untied_W_U is None,
        biases=_biases(model),
        parallel=any(block.parallel for block in model.blocks),
        gated=isinstance(mlp, GatedMLP),
        before=norm is None or first.ln1 is not None,
        behind=first.ln1_post is not None,
        qk_norm="all" if isinstance(attn.q_norm, RMSNorm) and attn.q_norm.joint else "head" if attn.q_norm else None,
        offset=norm.offset if isinstance(norm, RMSNorm) else 0.0,
        rotations=(model.positions or (None,) * model.n_layers) if turns or model.W_pos is None else (),
        cap=attn.cap,
        logit_cap=model.logit_cap,
        embed_scale=model.embed_scale,
        precision=2 * float(jnp.finfo(scale).eps),
    )


def _norm_name(norm: Norm) -> str:
    names = {LayerNorm: ("LN", "LNPre"), RMSNorm: ("RMS", "RMSPre")}
    if type(norm) not in names:
        raise ValueError(
            f"A {type(norm).__name__} has no name in a configuration; {', '.join(c.__name__ for c in names)} have."
        )
    return names[type(norm)][norm.weight is None]  # pyright: ignore[reportAttributeAccessIssue]  # both have one


def _biases(model: Transformer) -> frozenset[str]:
    """Which biases are not zero everywhere."""
    of_attn = lambda block: {f"attn.b_{part}": getattr(block.attn, f"b_{part}") for part in "QKVO"}
    of_mlp = lambda mlp: {f"mlp.{name}": getattr(mlp, name) for name in vars(mlp) if name.startswith("b_")}
    arrays = [("b_U", model.b_U)]
    for block in model.blocks:
        arrays += of_attn(block).items()
        arrays += {} if block.mlp is None else of_mlp(block.mlp).items()
    return frozenset(name for name, array in arrays if np.any(np.asarray(array)))


def _act_name(mlp: MLP | GatedMLP) -> str:
    for name, act in ACTIVATIONS.items():
        if act is mlp.act:
            return name
    raise ValueError(
        f"The activation function {mlp.act!r} has no name in a configuration; known are {', '.join(ACTIVATIONS)}."
    )

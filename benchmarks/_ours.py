"""Our side: the model, its Jacobians, and the check of both against `jax.jvp` of a run."""

import functools as ft
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

import jaxcirc as jc
from jaxcirc._tap import bare_tap
from jaxcirc.parts import Attention, Block, gelu_new, LayerNorm, make_rotary, MLP, RMSNorm

from ._problems import Blocks, Dictionary, EPS, Items, Weights


PATTERN = "blocks.0.attn.hook_pattern"
ENDS = {
    "attention": ("blocks.0.hook_resid_pre", "blocks.0.hook_attn_out"),
    "mlp": ("blocks.0.hook_resid_mid", "blocks.0.hook_mlp_out"),
    "block": ("blocks.0.hook_resid_pre", "blocks.0.hook_resid_post"),
}


def make_model(blocks: Blocks) -> jc.Transformer:
    return jc.Transformer(
        W_E=jnp.asarray(blocks.W_E),
        W_pos=jnp.asarray(blocks.W_pos),
        blocks=tuple(_block(weights, blocks.heads) for weights in blocks.weights),
        ln_final=None,
        untied_W_U=None,
        b_U=jnp.zeros(len(blocks.W_E), jnp.float32),
        windows=(None,) * len(blocks.weights),
        causal=True,
        architecture="gpt2",
        name="random",
    )


def _block(weights: Weights, heads: int) -> Block:
    array = {name: jnp.asarray(value) for name, value in weights.items()}
    W_O = array["W_O"].reshape(heads, -1, array["W_O"].shape[1])
    d_head = W_O.shape[1]
    into = lambda n: (_into_heads(array[f"W_{n}"], d_head), array[f"b_{n}"].reshape(-1, d_head))
    scale = jnp.asarray(d_head**-0.5, jnp.float32)
    rotary = make_rotary(weights["frequencies"], np.dtype(np.float32)) if "frequencies" in weights else None

    def norm(name: str, *sites: jc.Kind) -> LayerNorm | RMSNorm:
        scale, value = sites
        if f"{name}_b" not in array:
            return RMSNorm(array[f"{name}_w"], EPS, (scale, value))
        return LayerNorm(array[f"{name}_w"], array[f"{name}_b"], EPS, (scale, value))

    return Block(
        norm("ln1", jc.Kind.LN1_SCALE, jc.Kind.LN1_NORMALIZED),
        Attention(*into("Q"), *into("K"), *into("V"), W_O, array["b_O"], scale, rotary=rotary),
        norm("ln2", jc.Kind.LN2_SCALE, jc.Kind.LN2_NORMALIZED),
        MLP(array["W_in"], array["b_in"], array["W_out"], array["b_out"], gelu_new),
    )


def _into_heads(W: jax.Array, d_head: int) -> jax.Array:
    return W.reshape(W.shape[0], -1, d_head).transpose(1, 0, 2)


def jacobian(
    blocks: Blocks, source: jc.Site | str, target: jc.Site | str, *, frozen: tuple[str, ...] = (), saes=None
) -> jc.EdgeJacobian:
    return jc.edge(make_model(blocks), jnp.asarray(blocks.tokens), source, target, frozen=frozen, saes=saes or {})


def contraction(J: jc.EdgeJacobian, items: Items):
    """A run of `J.contract`; its arguments are on the device already."""
    arguments = [jnp.asarray(array) for array in items]
    return lambda: J.contract(*arguments)


def swept(blocks: Blocks, items: Items, chunk: int):
    """A run of the edges through all blocks by autodiff: cotangents pulled back `chunk` at a time, and contracted with the vectors."""
    model, seq = make_model(blocks), len(blocks.resid)
    left, left_pos, right, right_pos = (jnp.asarray(array) for array in items)
    masks = model.masks(seq, None)

    def through(resid):
        for layer, (block, mask) in enumerate(zip(model.blocks, masks, strict=True)):
            resid = block(resid, mask, bare_tap(layer))
        return resid

    @jax.jit
    def run(resid, left, left_pos, right, right_pos):
        _, pull = jax.vjp(through, resid)

        def row(item):
            covector, position = item
            gradient = pull(jnp.zeros_like(resid).at[position].set(covector))[0]
            return jnp.einsum("kd,kd->k", gradient[right_pos], right)  # [k d_model] · [k d_model] -> [k]

        return jax.lax.map(row, (left, left_pos), batch_size=chunk)

    return lambda: run(jnp.asarray(blocks.resid), left, left_pos, right, right_pos)


def make_saes(source: Dictionary, target: Dictionary, ends: tuple[str, str]) -> Mapping[str, jc.saes.SAE]:
    def make(dictionary: Dictionary) -> jc.saes.SAE:
        W_enc, b_enc, W_dec = (jnp.asarray(x) for x in (dictionary.W_enc, dictionary.b_enc, dictionary.W_dec))
        b_dec = jnp.zeros(W_dec.shape[1], W_dec.dtype)
        return jc.saes.SAE(W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec, activation=jc.saes.ReLU())

    return {site: make(dictionary) for site, dictionary in zip(ends, (source, target), strict=True)}


def check_columns(
    blocks: Blocks,
    ends: tuple[str, str],
    items: Items,
    edges: np.ndarray,
    *,
    frozen: tuple[str, ...] = (),
    most: int = 4,
) -> tuple[np.ndarray, np.ndarray]:
    """A few columns of `edges` and the same numbers by `jax.jvp` of a run of the model."""
    columns = np.linspace(0, len(items.right) - 1, most).astype(int)
    got, want = [], []
    for column in columns:
        tangent = np.zeros(blocks.resid.shape, np.float32)
        tangent[items.right_pos[column]] = items.right[column]
        image = _jvp(blocks, ends, frozen, tangent)
        got.append(edges[:, column])
        want.append((items.left * image[items.left_pos]).sum(-1))
    return np.stack(got), np.stack(want)


def check_matrix(blocks: Blocks, ends: tuple[str, str], matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The matrix times a random tangent, and the same by `jax.jvp` of a run of the model."""
    tangent = np.random.default_rng(2).standard_normal(blocks.resid.shape).astype(np.float32)
    return np.tensordot(matrix, tangent, axes=2), _jvp(blocks, ends, (), tangent)


def _jvp(blocks: Blocks, ends: tuple[str, str], frozen: tuple[str, ...], tangent: np.ndarray) -> np.ndarray:
    model, tokens = make_model(blocks), jnp.asarray(blocks.tokens)
    return np.asarray(push(model, tokens, jnp.asarray(tangent), ends=ends, frozen=frozen))


@ft.partial(jax.jit, static_argnames=("ends", "frozen"))
def push(model: jc.Transformer, tokens, tangent, *, ends: tuple[str, str], frozen: tuple[str, ...]):
    """The image at the target of a tangent at the source, through a run of the model."""
    source, target = map(jc.Site.parse, ends)
    held = {jc.Site.parse(site): jc.Detach() for site in frozen}
    run = lambda step: jc.run(model, tokens, edits={**held, source: jc.Add(step)}, record=[target])[1][target]
    return jax.jvp(run, (jnp.zeros_like(tangent),), (tangent,))[1]

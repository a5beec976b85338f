"""The untrained models: their shapes, their starts, and which of their arrays are trained."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from weights.train.text import SEQ

import jaxcirc as jc
from jaxcirc._sites import Kind
from jaxcirc.parts import Attention, Block, gelu_new, LayerNorm, MLP


SHAPES = {
    "tiny-gpt2": dict(architecture="gpt2", d_model=128, n_heads=4, windows=(None,) * 4),
    "tiny-gpt-neo": dict(architecture="gpt_neo", d_model=64, n_heads=4, windows=(None, 16)),
}


def initial_model(name: str, vocabulary: int, *, seed: int = 0) -> jc.Transformer:
    """The model that training begins with."""
    return {"tiny-gpt2": random_model, "tiny-gpt-neo": leaning_model}[name](name, vocabulary, seed=seed)


def random_model(name: str, vocabulary: int, *, seed: int) -> jc.Transformer:
    """Normal arrays of GPT-2's kind, no head put in.

    Maps into the sublayers keep the size of what they read; those out of them are `0.3 / sqrt(2 n_layers)` of that (Radford et al. 2019
    scale them so by depth). Positions are sinusoids in the first `d_model / n_heads` dimensions, beside the tokens in all of them.
    """
    shape = SHAPES[name]
    d_model, n_heads, n_layers = shape["d_model"], shape["n_heads"], len(shape["windows"])
    d_head, rng, out = d_model // n_heads, np.random.default_rng(seed), 0.3 / (2 * n_layers) ** 0.5
    normal = lambda *sizes, std: jnp.asarray(std * rng.standard_normal(sizes), jnp.float32)

    def block() -> Block:
        W_Q, W_K, W_V = (normal(n_heads, d_model, d_head, std=d_model**-0.5) for _ in "QKV")
        W_O, bias = normal(n_heads, d_head, d_model, std=out * d_model**-0.5), jnp.zeros((n_heads, d_head))
        scale = jnp.asarray(d_head**-0.5)
        attention = Attention(W_Q, bias, W_K, bias, W_V, bias, W_O, b_O=jnp.zeros(d_model), scale=scale)
        W_in = normal(d_model, 4 * d_model, std=d_model**-0.5)
        W_out = normal(4 * d_model, d_model, std=out * (4 * d_model) ** -0.5)
        mlp = MLP(W_in, jnp.zeros(4 * d_model), W_out, jnp.zeros(d_model), gelu_new)
        return Block(
            norm(Kind.LN1_SCALE, Kind.LN1_NORMALIZED), attention, norm(Kind.LN2_SCALE, Kind.LN2_NORMALIZED), mlp
        )

    norm = lambda *sites: LayerNorm(jnp.ones(d_model), jnp.zeros(d_model), 1e-5, sites)
    return jc.Transformer(
        W_E=normal(vocabulary, d_model, std=0.08),
        W_pos=jnp.zeros((SEQ, d_model)).at[:, :d_head].set(2**0.5 * sinusoids(SEQ, d_head)),
        blocks=tuple(block() for _ in range(n_layers)),
        ln_final=norm(Kind.FINAL_SCALE, Kind.FINAL_NORMALIZED),
        untied_W_U=None,
        b_U=jnp.zeros(vocabulary),
        windows=shape["windows"],
        causal=True,
        architecture=shape["architecture"],
        name=name,
    )


def leaning_model(name: str, vocabulary: int, *, seed: int) -> jc.Transformer:
    """A random model that leans to copying, which otherwise takes most of training to begin.

    Each head's output map starts near a small multiple of a projection, and half of the heads after the first block compare a token with
    itself (after Trockman and Kolter 2023, arXiv 2305.09828). Positions are sinusoids in the first dimensions; the first block's first
    head attends one back and writes what it finds where the second block's first head looks for its own token: a weak induction head.
    Sublayers start small beside the embedding.
    """
    shape = SHAPES[name]
    d_model, n_heads, windows = shape["d_model"], shape["n_heads"], shape["windows"]
    d_head, gpt_neo = d_model // n_heads, shape["architecture"] == "gpt_neo"
    rng = np.random.default_rng(seed)
    normal = lambda *sizes, std: jnp.asarray(std * rng.standard_normal(sizes), jnp.float32)
    scale = 1.0 if gpt_neo else d_head**-0.5
    sharpness = (
        scale * d_head**0.5
    ) ** -0.5  # so that scores have one size with and without the division by sqrt(d_head)

    def projections() -> jax.Array:
        """`[head d_model d_head]`: orthonormal directions, each head its own."""
        basis, _ = np.linalg.qr(rng.standard_normal((d_model, d_model)))
        return jnp.asarray(basis.reshape(d_model, n_heads, d_head).transpose(1, 0, 2), jnp.float32)

    def attention(layer: int) -> Attention:
        noise = lambda: normal(n_heads, d_model, d_head, std=sharpness * d_model**-0.5)
        same = jnp.where((jnp.arange(n_heads) < n_heads // 2) & (layer > 0), 0.8 * sharpness, 0.0)[:, None, None]
        bias, compare, copy = jnp.zeros((n_heads, d_head)), projections(), projections()
        W_Q, W_K = same * compare + 0.5 * noise(), same * compare + 0.5 * noise()
        W_V, W_O = copy, 0.05 * copy.swapaxes(1, 2) + normal(n_heads, d_head, d_model, std=0.002)
        place, one, two, three = (
            jnp.eye(d_head),
            slice(0, d_head),
            slice(d_head, 2 * d_head),
            slice(2 * d_head, 3 * d_head),
        )
        if layer == 0:
            W_Q = W_Q.at[0, one].set(0.8 * sharpness * one_back(d_head))
            W_K = W_K.at[0, one].set(0.8 * sharpness * place)
            W_V, W_O = W_V.at[0].set(0).at[0, two].set(place), W_O.at[0, :, three].set(0.1 * place)
        if layer == 1:
            W_Q = W_Q.at[0].set(0).at[0, two].set(1.4 * sharpness * place)
            W_K = W_K.at[0].set(0).at[0, three].set(1.4 * sharpness * place)
            W_O = W_O.at[0].multiply(4.0)
        return Attention(W_Q, bias, W_K, bias, W_V, bias, W_O, b_O=jnp.zeros(d_model), scale=jnp.asarray(scale))

    def block(layer: int) -> Block:
        W_in, W_out = normal(d_model, 4 * d_model, std=d_model**-0.5), normal(4 * d_model, d_model, std=0.003)
        mlp = MLP(W_in, jnp.zeros(4 * d_model), W_out, jnp.zeros(d_model), gelu_new)
        return Block(
            norm(Kind.LN1_SCALE, Kind.LN1_NORMALIZED), attention(layer), norm(Kind.LN2_SCALE, Kind.LN2_NORMALIZED), mlp
        )

    norm = lambda *sites: LayerNorm(jnp.ones(d_model), jnp.zeros(d_model), 1e-5, sites)
    return jc.Transformer(
        W_E=normal(vocabulary, d_model, std=0.08).at[:, :d_head].multiply(0.25),
        W_pos=normal(SEQ, d_model, std=0.01).at[:, :d_head].set(sinusoids(SEQ, d_head)),
        blocks=tuple(block(layer) for layer in range(len(windows))),
        ln_final=norm(Kind.FINAL_SCALE, Kind.FINAL_NORMALIZED),
        untied_W_U=None,
        b_U=jnp.zeros(vocabulary),
        windows=windows,
        causal=True,
        architecture=shape["architecture"],
        name=name,
    )


def frequencies(width: int) -> np.ndarray:
    """Spread evenly up to one half turn a token, so that positions differ from their neighbours as much as from others."""
    return np.pi * (np.arange(width // 2) + 0.5) / (width // 2)


def sinusoids(n_ctx: int, width: int) -> jax.Array:
    """`[n_ctx width]`, after Vaswani et al. 2017, arXiv 1706.03762, §3.5."""
    angles = np.arange(n_ctx)[:, None] * frequencies(width)
    return jnp.asarray(0.2 * np.concatenate([np.sin(angles), np.cos(angles)], axis=1), jnp.float32)


def one_back(width: int) -> jax.Array:
    """The rotation that takes each row of `sinusoids` to the one before."""
    cos, sin = np.diag(np.cos(frequencies(width))), np.diag(np.sin(frequencies(width)))
    return jnp.asarray(np.block([[cos, sin], [-sin, cos]]), jnp.float32)


def trainable(model: jc.Transformer) -> jc.Transformer:
    """The same tree with True at what is trained: not the scale of the scores, nor what the architecture lacks."""
    fixed = [lambda m: m.b_U, *(lambda m, i=i: m.blocks[i].attn.scale for i in range(model.n_layers))]
    if model.architecture == "gpt_neo":
        for bias in ("b_Q", "b_K", "b_V"):
            fixed += [lambda m, i=i, bias=bias: getattr(m.blocks[i].attn, bias) for i in range(model.n_layers)]
    mask = jax.tree.map(lambda _: True, model)
    for where in fixed:
        mask = eqx.tree_at(where, mask, False)
    return mask

"""Random GPT-2-shaped blocks and random items at their ends, in numpy: both sides are made from the same arrays."""

from typing import NamedTuple

import numpy as np


EPS = 1e-5
MARGIN = np.float32(0.02)  # TF32 leaves a latent's value within a tenth of that
VOCABULARY = 64

Weights = dict[str, np.ndarray]


class Blocks(NamedTuple):
    """Blocks, and the residual stream `resid` `[seq d_model]` that enters the first: token embeddings plus positions."""

    weights: tuple[Weights, ...]
    heads: int
    tokens: np.ndarray
    W_E: np.ndarray
    W_pos: np.ndarray

    @property
    def resid(self) -> np.ndarray:
        return self.W_E[self.tokens] + self.W_pos


class Items(NamedTuple):
    """Covectors `left` `[m d_model]` of the target and vectors `right` `[k d_model]` of the source, at single positions."""

    left: np.ndarray
    left_pos: np.ndarray
    right: np.ndarray
    right_pos: np.ndarray

    def first(self, rows: int) -> "Items":
        """The first `rows` covectors: as random as all."""
        return self._replace(left=self.left[:rows], left_pos=self.left_pos[:rows])


class Dictionary(NamedTuple):
    """A random ReLU dictionary, and which of its latents are on: `latents` `[n]` at `positions` `[n]`."""

    W_enc: np.ndarray
    b_enc: np.ndarray
    W_dec: np.ndarray
    latents: np.ndarray
    positions: np.ndarray


def make_blocks(
    *, d_model: int, heads: int, seq: int, layers: int = 1, vocabulary: int = VOCABULARY, seed: int = 0
) -> Blocks:
    """Weights of the size that keeps activations of order one, no bias and no norm at its default."""
    rng = np.random.default_rng(seed)
    random = lambda *shape: (rng.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32)
    bias = lambda n: (rng.standard_normal(n) / 4).astype(np.float32)

    def block() -> Weights:
        square = {name: random(d_model, d_model) for name in ("W_Q", "W_K", "W_V", "W_O")}
        wide = {"W_in": random(d_model, 4 * d_model), "b_in": bias(4 * d_model), "W_out": random(4 * d_model, d_model)}
        biases = {name: bias(d_model) for name in ("b_Q", "b_K", "b_V", "b_O", "b_out", "ln1_b", "ln2_b")}
        return {**square, **wide, **biases, "ln1_w": 1 + bias(d_model), "ln2_w": 1 + bias(d_model)}

    table = lambda n: rng.standard_normal((n, d_model)).astype(np.float32)
    tokens = rng.integers(0, vocabulary, seq).astype(np.int32)
    return Blocks(tuple(block() for _ in range(layers)), heads, tokens, table(vocabulary), table(seq))


def make_grouped_blocks(*, d_model: int, heads: int, kv_heads: int, seq: int, seed: int = 0) -> Blocks:
    """One block as Llama's: RMS norm, rotary positions (their `frequencies` among the weights), and heads in groups that share keys and
    values.
    """
    blocks = make_blocks(d_model=d_model, heads=heads, seq=seq, seed=seed)
    (weights,) = blocks.weights
    d_head = d_model // heads
    shared = {name: weights[name][..., : kv_heads * d_head] for name in ("W_K", "b_K", "W_V", "b_V")}
    frequencies = 1e4 ** (-np.arange(d_head // 2) / (d_head // 2))
    kept = {name: value for name, value in weights.items() if name not in ("ln1_b", "ln2_b")}
    return blocks._replace(weights=({**kept, **shared, "frequencies": frequencies.astype(np.float32)},))


def make_items(*, d_model: int, seq: int, m: int, k: int, seed: int = 1) -> Items:
    """Random items at random positions."""
    rng = np.random.default_rng(seed)
    vectors = lambda n: rng.standard_normal((n, d_model)).astype(np.float32)
    positions = lambda n: rng.integers(0, seq, n).astype(np.int32)
    return Items(vectors(m), positions(m), vectors(k), positions(k))


def make_dictionary(x: np.ndarray, *, d_sae: int, active: int, seed: int) -> Dictionary:
    """A dictionary of which `active` latents a position are on at `x` `[seq d_model]`, on average, and by so much that products of low
    precision leave them on; some more are on by less.
    """
    rng, (seq, d_model) = np.random.default_rng(seed), x.shape
    random = lambda *shape: (rng.standard_normal(shape) / d_model**0.5).astype(np.float32)
    W_enc, W_dec = random(d_model, d_sae), random(d_sae, d_model)
    pre = x @ W_enc
    # Between two numbers, so that rounding does not decide which latents are on.
    least, below = -np.partition(-pre.ravel(), (active * seq - 1, active * seq))[[active * seq - 1, active * seq]]
    threshold = np.float32((least + below) / 2)
    positions, latents = np.nonzero(pre > threshold)
    order = rng.permutation(len(latents))
    return Dictionary(
        W_enc,
        np.full(d_sae, MARGIN - threshold),
        W_dec,
        latents[order].astype(np.int32),
        positions[order].astype(np.int32),
    )


def sae_items(source: Dictionary, target: Dictionary) -> Items:
    """The items that latents stand for: encoder rows of the target's, decoder rows of the source's."""
    return Items(target.W_enc.T[target.latents], target.positions, source.W_dec[source.latents], source.positions)


def hidden(blocks: Blocks) -> list[np.ndarray]:
    """The hidden activations `[seq d_mlp]` of each block's MLP."""
    resid, found = blocks.resid, []
    for weights in blocks.weights:
        resid = resid + attention(weights, resid, blocks.heads)
        pre = _norm(weights, "ln2", resid) @ weights["W_in"] + weights["b_in"]
        found.append(pre * (1 + np.tanh(np.float32((2 / np.pi) ** 0.5) * (pre + np.float32(0.044715) * pre**3))) / 2)
        resid = resid + found[-1] @ weights["W_out"] + weights["b_out"]
    return found


def _norm(weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
    scale = np.sqrt(x.var(-1, keepdims=True) + EPS)
    return (x - x.mean(-1, keepdims=True)) / scale * weights[f"{name}_w"] + weights[f"{name}_b"]


def attention(weights: Weights, x: np.ndarray, heads: int) -> np.ndarray:
    """The output of the first sublayer: where the target's dictionary encodes."""
    seq, y = len(x), _norm(weights, "ln1", x)
    q, k, v = ((y @ weights[f"W_{n}"] + weights[f"b_{n}"]).reshape(seq, heads, -1).transpose(1, 0, 2) for n in "QKV")
    scores = np.where(np.tri(seq, dtype=bool), q @ k.transpose(0, 2, 1) * q.shape[-1] ** -0.5, -np.inf)
    pattern = np.exp(scores - scores.max(-1, keepdims=True))
    z = pattern / pattern.sum(-1, keepdims=True) @ v
    return z.transpose(1, 0, 2).reshape(x.shape) @ weights["W_O"] + weights["b_O"]

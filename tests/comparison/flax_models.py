"""GPT-2 and GPT-Neo once more, in Flax Linen, batched, under the parameter names of Hugging Face's Flax models.

An oracle that shares nothing with the library: every named activation is sown and perturbed, so its value and its gradient are known.
"""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict


class Named(nn.Module):
    config: Any

    def site(self, name, x):
        x = self.perturb(name, x)
        self.sow("intermediates", name, x)
        return x


class Conv1D(nn.Module):
    """Hugging Face's: the kernel is stored output first."""

    features: int

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(0.3), (self.features, x.shape[-1]))
        return x @ kernel.T + self.param("bias", nn.initializers.normal(0.3), (self.features,))


class Norm(Named):
    @nn.compact
    def __call__(self, x):
        width = x.shape[-1:]
        weight, bias = (
            self.param("scale", nn.initializers.normal(1.0), width),
            self.param("bias", nn.initializers.normal(0.3), width),
        )
        scale = self.site("hook_scale", jnp.sqrt(x.var(-1, keepdims=True) + self.config["eps"]))
        return weight * self.site("hook_normalized", (x - x.mean(-1, keepdims=True)) / scale) + bias


def linear(features, name, bias=True):
    normal = nn.initializers.normal(0.3)
    return nn.Dense(
        features, use_bias=bias, kernel_init=normal, bias_init=normal, name=name, param_dtype=jnp.zeros(()).dtype
    )


class Attention(Named):
    window: int | None

    @nn.compact
    def __call__(self, x):
        x = self.site("hook_in", x)
        batch, seq, width = x.shape
        heads, neo = self.config["heads"], self.config["neo"]
        if neo:
            q, k, v = (linear(width, f"{part}_proj", bias=False)(x) for part in "qkv")
        else:
            q, k, v = jnp.split(Conv1D(3 * width, name="c_attn")(x), 3, axis=-1)
        split = lambda x: x.reshape(batch, seq, heads, width // heads)
        q, k, v = (
            self.site(f"hook_{name}", split(x)).transpose(0, 2, 1, 3) for name, x in zip("qkv", (q, k, v), strict=True)
        )
        scores = q @ k.transpose(0, 1, 3, 2) * (1.0 if neo else (width // heads) ** -0.5)
        mask = jnp.tril(jnp.ones((seq, seq), bool))
        if self.window is not None:
            mask = mask ^ jnp.tril(mask, -self.window)
        scores = self.site("hook_attn_scores", jnp.where(mask, scores, -1e30))
        pattern = self.site("hook_pattern", nn.softmax(scores))
        z = self.site("hook_z", (pattern @ v).transpose(0, 2, 1, 3))
        return (linear(width, "out_proj") if neo else Conv1D(width, name="c_proj"))(z.reshape(batch, seq, width))


class Wrapped(Named):
    """GPT-Neo's attention lies one module deeper."""

    window: int | None

    @nn.compact
    def __call__(self, x):
        return Attention(self.config, self.window, name="attention")(x)


class MLP(Named):
    @nn.compact
    def __call__(self, x):
        x = self.site("hook_in", x)
        layer = linear if self.config["neo"] else lambda features, name: Conv1D(features, name=name)
        pre = self.site("hook_pre", layer(self.config["d_mlp"], "c_fc")(x))
        post = self.site("hook_post", 0.5 * pre * (1 + jnp.tanh((2 / jnp.pi) ** 0.5 * (pre + 0.044715 * pre**3))))
        return layer(x.shape[-1], "c_proj")(post)


class Block(Named):
    window: int | None

    @nn.compact
    def __call__(self, x):
        attention = Wrapped if self.config["neo"] else Attention
        x = self.site("hook_resid_pre", x)
        x = x + self.site(
            "hook_attn_out", attention(self.config, self.window, name="attn")(Norm(self.config, name="ln_1")(x))
        )
        x = self.site("hook_resid_mid", x)
        return self.site(
            "hook_resid_post",
            x + self.site("hook_mlp_out", MLP(self.config, name="mlp")(Norm(self.config, name="ln_2")(x))),
        )


class Blocks(Named):
    @nn.compact
    def __call__(self, x):
        for layer, window in enumerate(self.config["windows"]):
            x = Block(self.config, window, name=str(layer))(x)
        return x


class Body(Named):
    @nn.compact
    def __call__(self, tokens):
        normal, width = nn.initializers.normal(1.0), self.config["width"]
        embed = lambda size, name: nn.Embed(
            size, width, embedding_init=normal, name=name, param_dtype=jnp.zeros(()).dtype
        )
        wte, wpe = embed(self.config["vocab"], "wte"), embed(self.config["n_ctx"], "wpe")
        x = self.site("hook_embed", wte(tokens)) + self.site("hook_pos_embed", wpe(jnp.arange(tokens.shape[1]))[None])
        return Norm(self.config, name="ln_f")(Blocks(self.config, name="h")(x)), wte


class LM(Named):
    @nn.compact
    def __call__(self, tokens):
        x, wte = Body(self.config, name="transformer")(tokens)
        logits = linear(self.config["vocab"], "lm_head", bias=False)(x) if self.config["untied"] else wte.attend(x)
        return self.site("logits", logits)


def by_site(tree: Any) -> dict[str, jax.Array]:
    """What was sown, or its gradients, by TransformerLens name, of the one sequence of the batch."""
    out = {}
    for path, value in flatten_dict(tree, sep=".").items():
        name = path.removeprefix("transformer.").replace("attn.attention.", "attn.").replace("ln_f", "ln_final")
        name = re.sub(r"^h\.", "blocks.", re.sub(r"ln_(\d)", r"ln\1", name))
        out[name] = (value[0] if isinstance(value, tuple) else value)[0]
    return out

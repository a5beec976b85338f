"""transformers' models of every family as oracles: small random ones in true float64, and their activations under our names.

`model.double()` leaves float32 inside norms, rotary positions and softmaxes: what there is called by name is exchanged while a model is
built and run. Positions are compared one by one, each relative to its own largest entry.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import safetensors.torch  # noqa: F401
import torch
import transformers
from torch.overrides import TorchFunctionMode


_SIZES = {
    **{"vocab_size": 31, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"max_position_embeddings": 64, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None},
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 32,
}
# {name: (class with an unembedding, attributes)}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox": ("GPTNeoX", _SIZES | {"rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 0.67}}),
    "gpt_neox: one after the other, no biases, tied": (
        "GPTNeoX",
        _SIZES
        | {"use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True, "hidden_act": "relu"},
    ),
    "llama": ("Llama", _GROUPED),
    "llama: llama3 scaling, biases, tied": (
        "Llama",
        _GROUPED | {"rope_parameters": _LLAMA3, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama: linear scaling, wide heads": (
        "Llama",
        _GROUPED | {"head_dim": 8, "rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.5}},
    ),
    "mistral": ("Mistral", _GROUPED | {"sliding_window": 3}),
    "mistral: no window": ("Mistral", _GROUPED | {"sliding_window": None, "head_dim": 10}),
    "qwen2": ("Qwen2", _GROUPED),
    "qwen2: a window above": (
        "Qwen2",
        _GROUPED | {"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", _GROUPED | {"head_dim": 10, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen3: biases, window": (
        "Qwen3",
        _GROUPED
        | {
            **{"head_dim": 6, "attention_bias": True, "use_sliding_window": True, "sliding_window": 2},
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "gemma": ("Gemma", _GROUPED | {"head_dim": 10, "num_key_value_heads": 1}),
    "gemma: gelu that is the tanh form, untied": (
        "Gemma",
        _GROUPED | {"head_dim": 8, "hidden_act": "gelu", "tie_word_embeddings": False, "attention_bias": True},
    ),
    "gemma2": (
        "Gemma2",
        _GROUPED
        | {
            **{"head_dim": 10, "num_hidden_layers": 3, "sliding_window": 3, "query_pre_attn_scalar": 7},
            **{"attn_logit_softcapping": 0.5, "final_logit_softcapping": 2.0},
        },
    ),
    "gemma2: no caps": (
        "Gemma2",
        _GROUPED
        | {
            **{"head_dim": 6, "attn_logit_softcapping": None, "final_logit_softcapping": None, "sliding_window": 4},
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "gemma3": (
        "Gemma3Text",
        _GROUPED
        | {
            **{"head_dim": 10, "num_hidden_layers": 7, "sliding_window": 3, "query_pre_attn_scalar": 9},
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 300.0, "factor": 4.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
            },
        },
    ),
    "gemma3: capped logits, other layers": (
        "Gemma3Text",
        _GROUPED
        | {
            **{"head_dim": 8, "sliding_window": 2, "final_logit_softcapping": 1.5, "num_key_value_heads": 4},
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "olmo2": ("Olmo2", _GROUPED),
    "olmo2: one key each, biases": (
        "Olmo2",
        _SIZES
        | {
            "attention_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_theta": 50.0, "rope_type": "default"},
        },
    ),
}


# Imported, as safetensors above is, while float32 means float32.
CLASSES = {kind: getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM") for kind, _ in CASES.values()}


@contextlib.contextmanager
def true_float64() -> Iterator[None]:
    """Where float32 is called for by name, float64 is what there is."""
    kept = torch.float32, torch.float, torch.Tensor.float, torch.get_default_dtype()
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float = kept[:3]
        torch.set_default_dtype(kept[3])


def make_config(name: str) -> Any:
    kind, attributes = CASES[name]
    return getattr(transformers, f"{kind}Config")(**attributes)


def make_family(name: str) -> torch.nn.Module:
    """A random model with every parameter away from its default; to be called in `true_float64` for one that is float64 throughout."""
    kind = CASES[name][0]
    model = CLASSES[kind]._from_config(make_config(name), attn_implementation="eager")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            width = parameter.shape[-1] if parameter.ndim > 1 else 9
            random = torch.randn(parameter.shape, generator=generator, dtype=torch.double) / width**0.5
            norm = path.endswith("norm.weight") and "Gemma" not in kind
            parameter.copy_(random * (2 if "embed" in path or "lm_head" in path else 1) + norm)
    return model.eval()


def older_spelling(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration as transformers 4 wrote it."""
    old = {name: value for name, value in config.items() if name not in ("rope_parameters", "dtype", "layer_types")}
    old["torch_dtype"] = config.get("dtype")
    rope = config["rope_parameters"]
    if config["model_type"] == "gemma3_text":
        old |= {"rope_local_base_freq": rope["sliding_attention"]["rope_theta"], "layer_types": config["layer_types"]}
        old["sliding_window_pattern"] = old.pop("_sliding_window_pattern")
        rope = rope["full_attention"]
    if config["model_type"] in ("qwen3", "gemma2") and config["layer_types"]:
        old["layer_types"] = config["layer_types"]
    theta, scaling = (
        rope["rope_theta"],
        {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")},
    )
    if "type" not in scaling and scaling["rope_type"] == "linear":
        scaling["type"] = scaling.pop("rope_type")
    old["rope_scaling"] = None if scaling.get("rope_type") == "default" else scaling
    if config["model_type"] == "gpt_neox":
        return old | {"rotary_emb_base": theta, "rotary_pct": rope["partial_rotary_factor"]}
    return old | {"rope_theta": theta}


class _Softmaxes(TorchFunctionMode):
    """Keeps what enters and leaves each softmax, which is once a layer."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.softmax:
            self.seen.append((args[0], out))
        return out


@contextlib.contextmanager
def _rotations(model: torch.nn.Module) -> Iterator[list]:
    """Keeps queries and keys as they are rotated, once a layer."""
    module, seen = sys.modules[type(model).__module__], []
    rotate = module.apply_rotary_pos_emb

    def kept(*args, **kwargs):
        seen.append(rotate(*args, **kwargs))
        return seen[-1]

    module.apply_rotary_pos_emb = kept
    try:
        yield seen
    finally:
        module.apply_rotary_pos_emb = rotate


@contextlib.contextmanager
def _modules(model: torch.nn.Module) -> Iterator[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Keeps the input and the output of every module, by its name in a bare model."""
    seen = {}
    first = lambda value: value[0] if isinstance(value, tuple) else value

    def keep(name):
        def hook(module, inputs, kwargs, output):
            given = (*inputs, *kwargs.values())
            if isinstance(first(output), torch.Tensor) and given:
                seen[name] = given[0], first(output)

        return hook

    bare = lambda name: name.removeprefix("model.").removeprefix("gpt_neox.")
    handles = [
        module.register_forward_hook(keep(bare(name)), with_kwargs=True) for name, module in model.named_modules()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def family_activations(model: torch.nn.Module, tokens: np.ndarray, **kwargs) -> dict[str, np.ndarray]:
    """Every site of one sequence by its name. Masked scores are some huge negative number."""
    with torch.no_grad(), _modules(model) as seen, _rotations(model) as rotated, _Softmaxes() as softmaxes:
        logits = model(torch.tensor(tokens)[None], **kwargs).logits
    config = model.config
    neox, layer_norm = config.model_type == "gpt_neox", config.model_type == "gpt_neox"
    eps = config.layer_norm_eps if neox else config.rms_norm_eps
    arrays = {name: tuple(x[0].numpy() for x in pair) for name, pair in seen.items() if name != "rotary_emb"}
    into, out = (lambda name: arrays[name][0]), (lambda name: arrays[name][1])
    centred = lambda x: x - x.mean(axis=-1, keepdims=True) if layer_norm else x

    def norm(name: str, module: str) -> dict[str, np.ndarray]:
        x = centred(into(module))
        scale = np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps)
        return {f"{name}.hook_scale": scale, f"{name}.hook_normalized": x / scale}

    values = {
        "hook_embed": out("embed_in" if neox else "embed_tokens"),
        **norm("ln_final", "final_layer_norm" if neox else "norm"),
        "logits": logits[0].numpy(),
    }
    if getattr(config, "final_logit_softcapping", None) is not None:
        values["hook_logit_gate"] = values["logits"] / out("lm_head")
    assert len(rotated) == len(softmaxes.seen) == config.num_hidden_layers
    for layer, ((scores, pattern), (q, k)) in enumerate(zip(softmaxes.seen, rotated, strict=True)):
        block = _neox_block if neox else _block
        values |= {
            f"blocks.{layer}.{name}": value for name, value in block(model, f"layers.{layer}", into, out, norm).items()
        }
        values |= {
            f"blocks.{layer}.attn.hook_rot_q": q[0].transpose(0, 1).numpy(),
            f"blocks.{layer}.attn.hook_rot_k": k[0].transpose(0, 1).numpy(),
            f"blocks.{layer}.attn.hook_attn_scores": scores[0].numpy(),
            f"blocks.{layer}.attn.hook_pattern": pattern[0].numpy(),
        }
    return values


def _results(model: torch.nn.Module, name: str, z: np.ndarray) -> np.ndarray:
    """What each head writes: `[seq head d_head]` by the output's matrix."""
    weight = dict(model.named_modules())[name].weight.detach().numpy()
    W_O = weight.T.reshape(*z.shape[1:], -1)  # [head d_head d_model]
    return np.einsum("shd,hdm->shm", z, W_O)


def _neox_block(model, at, into, out, norm) -> dict[str, np.ndarray]:
    heads, parallel = model.config.num_attention_heads, model.config.use_parallel_residual
    fused = out(f"{at}.attention.query_key_value")
    q, k, v = np.moveaxis(fused.reshape(len(fused), heads, 3, -1), 2, 0)
    z = into(f"{at}.attention.dense").reshape(len(fused), heads, -1)
    return {
        "hook_resid_pre": into(at),
        **norm("ln1", f"{at}.input_layernorm"),
        "attn.hook_in": out(f"{at}.input_layernorm"),
        **{"attn.hook_q": q, "attn.hook_k": k, "attn.hook_v": v},
        "attn.hook_z": z,
        "attn.hook_result": _results(model, f"gpt_neox.{at}.attention.dense", z),
        "hook_attn_out": out(f"{at}.attention.dense"),
        **({} if parallel else {"hook_resid_mid": into(f"{at}.post_attention_layernorm")}),
        **norm("ln2", f"{at}.post_attention_layernorm"),
        "mlp.hook_in": into(f"{at}.mlp"),
        "mlp.hook_pre": out(f"{at}.mlp.dense_h_to_4h"),
        "mlp.hook_act_gate": into(f"{at}.mlp.dense_4h_to_h") / out(f"{at}.mlp.dense_h_to_4h"),
        "mlp.hook_post": into(f"{at}.mlp.dense_4h_to_h"),
        "hook_mlp_out": out(f"{at}.mlp"),
        "hook_resid_post": out(at),
    }


def _block(model, at, into, out, norm) -> dict[str, np.ndarray]:
    config, kind = model.config, model.config.model_type
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    split = lambda x, n: x.reshape(len(x), n, -1)
    attn, mlp = f"{at}.self_attn", f"{at}.mlp"
    behind, before = kind in ("gemma2", "gemma3_text", "olmo2"), kind != "olmo2"
    before_mlp = f"{at}.{'pre_feedforward_layernorm' if behind else 'post_attention_layernorm'}"
    z = split(into(f"{attn}.o_proj"), heads)
    values = {
        "hook_resid_pre": into(at),
        "attn.hook_in": into(f"{attn}.q_proj"),
        "attn.hook_q": split(out(f"{attn}.q_proj"), heads),
        "attn.hook_k": split(out(f"{attn}.k_proj"), kv),
        "attn.hook_v": split(out(f"{attn}.v_proj"), kv),
        "attn.hook_z": z,
        "attn.hook_result": _results(model, f"model.{attn}.o_proj", z),
        "hook_resid_mid": into(before_mlp if before else mlp),
        "mlp.hook_in": into(mlp),
        "mlp.hook_pre": out(f"{mlp}.gate_proj"),
        "mlp.hook_pre_linear": out(f"{mlp}.up_proj"),
        "mlp.hook_act_gate": out(f"{mlp}.act_fn"),
        "mlp.hook_post": into(f"{mlp}.down_proj"),
        "hook_resid_post": out(at),
    }
    if before:
        values |= norm("ln1", f"{at}.input_layernorm") | norm("ln2", before_mlp)
    if behind:
        values |= norm("ln1_post", f"{at}.post_attention_layernorm") | norm(
            "ln2_post", f"{at}.post_feedforward_layernorm"
        )
        values |= {"attn.hook_out": out(f"{attn}.o_proj"), "mlp.hook_out": out(f"{mlp}.down_proj")}
        values |= {
            "hook_attn_out": out(f"{at}.post_attention_layernorm"),
            "hook_mlp_out": out(f"{at}.post_feedforward_layernorm"),
        }
    else:
        values |= {"hook_attn_out": out(f"{attn}.o_proj"), "hook_mlp_out": out(f"{mlp}.down_proj")}
    return values | _qk_norms(attn, heads, kv, kind, norm)


def _qk_norms(attn, heads, kv, kind, norm) -> dict[str, np.ndarray]:
    """Of all heads together the scale is one a position, `[seq 1 1]`, and of each head `[seq head 1]`."""
    values = {}
    for part, n in (("q", heads), ("k", kv)) if kind in ("qwen3", "gemma3_text", "olmo2") else ():
        found = norm(f"attn.{part}_norm", f"{attn}.{part}_norm")
        scale, normed = found.values()
        if kind == "olmo2":
            scale, normed = scale[:, None], normed.reshape(len(normed), n, -1)
        elif scale.shape[0] == n:  # heads first
            scale, normed = scale.swapaxes(0, 1), normed.swapaxes(0, 1)
        values |= dict(zip(found, (scale, normed), strict=True))
    return values

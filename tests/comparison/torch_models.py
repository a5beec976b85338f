"""transformers' PyTorch models as oracles: small random ones, and their activations under our names."""

import contextlib

import numpy as np
import torch
import transformers
from torch.overrides import TorchFunctionMode


GPT2 = {
    "defaults": {"n_embd": 24, "n_head": 3, "n_layer": 2, "n_positions": 9, "vocab_size": 19},
    "odd sizes, untied, exact gelu": {
        **{"n_embd": 15, "n_head": 5, "n_layer": 3, "n_positions": 7, "vocab_size": 11, "n_inner": 13},
        **{"activation_function": "gelu", "tie_word_embeddings": False, "layer_norm_epsilon": 1e-3},
    },
    "divided by the layer": {
        **{"n_embd": 16, "n_head": 2, "n_layer": 3, "n_positions": 12, "vocab_size": 17},
        **{"scale_attn_by_inverse_layer_idx": True, "activation_function": "relu"},
    },
    "unscaled, one head": {
        **{"n_embd": 8, "n_head": 1, "n_layer": 1, "n_positions": 5, "vocab_size": 5},
        **{"scale_attn_weights": False, "activation_function": "gelu_pytorch_tanh"},
    },
}
GPT_NEO = {
    "alternating": {
        **{"hidden_size": 16, "num_heads": 4, "num_layers": 2, "max_position_embeddings": 13, "vocab_size": 23},
        **{"attention_types": [[["global", "local"], 1]], "window_size": 4},
    },
    "odd sizes, untied, local first": {
        **{
            "hidden_size": 21,
            "num_heads": 3,
            "num_layers": 3,
            "max_position_embeddings": 11,
            "vocab_size": 7,
            "intermediate_size": 10,
        },
        **{"attention_types": [[["local", "local", "global"], 1]], "window_size": 3},
        **{"activation_function": "gelu", "tie_word_embeddings": False, "layer_norm_epsilon": 1e-3},
    },
    "a window of one": {
        **{"hidden_size": 8, "num_heads": 2, "num_layers": 2, "max_position_embeddings": 6, "vocab_size": 9},
        **{"attention_types": [[["local"], 2]], "window_size": 1, "activation_function": "relu"},
    },
}
CASES = {f"gpt2: {name}": ("gpt2", case) for name, case in GPT2.items()} | {
    f"gpt-neo: {name}": ("gpt_neo", case) for name, case in GPT_NEO.items()
}
NO_IDS = {"bos_token_id": None, "eos_token_id": None}


def make_torch(kind: str, config: dict, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """A random model with every parameter away from its default."""
    configuration, model_class = {
        "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel),
        "gpt_neo": (transformers.GPTNeoConfig, transformers.GPTNeoForCausalLM),
    }[kind]
    model = model_class._from_config(configuration(**config, **NO_IDS), attn_implementation="eager")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            width = parameter.shape[-1] if parameter.ndim > 1 else 4
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) / width**0.5 + ("ln" in name and "weight" in name)
            )
            if "wte" in name:
                parameter.mul_(width**0.5)
    return model.to(dtype).eval()


class _Watch(TorchFunctionMode):
    """Keeps what enters and leaves each softmax, and lets GPT-Neo, which casts queries and keys to float32, stay in float64."""

    def __init__(self):
        super().__init__()
        self.softmaxes = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.to and args[0].dtype == torch.float64 and args[1:] == (torch.float32,):
            return args[0]
        out = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.softmax:
            self.softmaxes.append((args[0], out))
        return out


@contextlib.contextmanager
def _hooked(model: torch.nn.Module):
    seen = {}
    first = lambda value: value[0] if isinstance(value, tuple) else value

    def keep(name):
        def hook(module, inputs, output):
            if inputs and isinstance(first(output), torch.Tensor):
                seen[name] = (inputs[0], first(output))

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def torch_activations(model: torch.nn.Module, tokens: np.ndarray, **kwargs) -> dict[str, np.ndarray]:
    """Every site of one sequence by its TransformerLens name. Masked scores are some huge negative number."""
    with torch.no_grad(), _hooked(model) as seen, _Watch() as watch:
        logits = model(torch.tensor(tokens)[None], **kwargs).logits
    config, neo = model.config, model.config.model_type == "gpt_neo"
    arrays = {name: tuple(x.numpy() for x in pair) for name, pair in seen.items()}
    into, out = (lambda name: arrays[f"transformer.{name}"][0][0]), (lambda name: arrays[f"transformer.{name}"][1][0])
    heads = config.num_heads if neo else config.n_head
    split = lambda x: x.reshape(len(x), heads, -1)
    scale = lambda x: np.sqrt(x.var(axis=-1, keepdims=True) + np.asarray(config.layer_norm_epsilon, x.dtype))
    normalized = lambda x: (x - x.mean(axis=-1, keepdims=True)) / scale(x)
    values = {
        "hook_embed": out("wte"),
        "hook_pos_embed": np.broadcast_to(out("wpe"), out("wte").shape),
        "ln_final.hook_scale": scale(into("ln_f")),
        "ln_final.hook_normalized": normalized(into("ln_f")),
        "logits": logits[0].numpy(),
    }
    for layer, (scores, pattern) in enumerate(watch.softmaxes):
        h, attn = f"h.{layer}", f"h.{layer}.attn.attention" if neo else f"h.{layer}.attn"
        qkv = [out(f"{attn}.{x}_proj") for x in "qkv"] if neo else np.split(out(f"{attn}.c_attn"), 3, axis=-1)
        project = "out_proj" if neo else "c_proj"
        weight = model.get_submodule(f"transformer.{attn}.{project}").weight.detach().numpy()
        W_O = (weight.T if neo else weight).reshape(heads, -1, weight.shape[0 if neo else 1])
        z = split(into(f"{attn}.{project}"))
        block = {
            "hook_resid_pre": into(h),
            "ln1.hook_scale": scale(into(f"{h}.ln_1")),
            "ln1.hook_normalized": normalized(into(f"{h}.ln_1")),
            "attn.hook_in": out(f"{h}.ln_1"),
            **{f"attn.hook_{name}": split(x) for name, x in zip("qkv", qkv, strict=True)},
            "attn.hook_attn_scores": scores[0].numpy(),
            "attn.hook_pattern": pattern[0].numpy(),
            "attn.hook_z": z,
            "attn.hook_result": np.stack([z[:, i] @ W_O[i] for i in range(heads)], axis=1),
            "hook_attn_out": out(f"{h}.attn"),
            "hook_resid_mid": into(f"{h}.ln_2"),
            "ln2.hook_scale": scale(into(f"{h}.ln_2")),
            "ln2.hook_normalized": normalized(into(f"{h}.ln_2")),
            "mlp.hook_in": out(f"{h}.ln_2"),
            "mlp.hook_pre": out(f"{h}.mlp.c_fc"),
            "mlp.hook_act_gate": out(f"{h}.mlp.act") / out(f"{h}.mlp.c_fc"),
            "mlp.hook_post": out(f"{h}.mlp.act"),
            "hook_mlp_out": out(f"{h}.mlp"),
            "hook_resid_post": out(h),
        }
        values |= {f"blocks.{layer}.{name}": value for name, value in block.items()}
    return values

"""GPT-2's blocks as PyTorch functions of a tensor `[... seq d_model]`."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from .._problems import Blocks, EPS


Tensor = Any  # PyTorch may not be there when this is read
Function = Callable[[Tensor], Tensor]


def device() -> Any:
    """Where JAX computes, so that both sides use the same machine."""
    import jax
    import torch

    on_gpu = jax.default_backend() == "gpu"
    if on_gpu and not torch.cuda.is_available():
        raise RuntimeError(
            "JAX computes on a GPU, and this PyTorch has none. Set JAX_PLATFORMS=cpu to compare on the CPU."
        )
    return torch.device("cuda" if on_gpu else "cpu")


def tensor(array) -> Tensor:
    import torch

    return torch.from_numpy(array).to(device())


def sublayer(blocks: Blocks, what: str, *, frozen: bool = False) -> tuple[Function, Tensor]:
    """The function between the ends of a row, and the point at which it is linearised.

    `what` is `"attention"`, from the residual stream to attention's output, with `frozen` at the clean pattern; `"mlp"`, from the middle
    of the block to the MLP's output; `"block"`, all blocks from the residual stream before to the one after them.
    """
    import torch

    x, heads = tensor(blocks.resid), blocks.heads
    weights = [{name: tensor(value) for name, value in block.items()} for block in blocks.weights]
    first = weights[0]
    with torch.no_grad():
        clean = _pattern(first, _norm(first, "ln1", x), heads) if frozen else None
        middle = x + attention(first, x, heads)

    def through(x: Tensor) -> Tensor:
        for block in weights:
            x = x + attention(block, x, heads)
            x = x + mlp(block, x)
        return x

    functions = {
        "attention": lambda x: attention(first, x, heads, clean),
        "mlp": lambda x: mlp(first, x),
        "block": through,
    }
    return functions[what], middle if what == "mlp" else x


def attention(weights: dict[str, Tensor], x: Tensor, heads: int, pattern: Tensor | None = None) -> Tensor:
    """Layer norm and attention; with `pattern` held where it is given."""
    z = head_outputs(weights, x, heads, pattern)
    return z.transpose(-3, -2).reshape(x.shape) @ weights["W_O"] + weights["b_O"]


def head_outputs(weights: dict[str, Tensor], x: Tensor, heads: int, pattern: Tensor | None = None) -> Tensor:
    """Layer norm and attention up to the heads' outputs `[... head seq d_head]`."""
    y = _norm(weights, "ln1", x)
    pattern = _pattern(weights, y, heads) if pattern is None else pattern
    return pattern @ _shared(_heads(weights, "V", y, heads), heads)


def mlp(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Layer norm and MLP."""
    return hidden(weights, x) @ weights["W_out"] + weights["b_out"]


def hidden(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Layer norm and the MLP's hidden activations."""
    import torch

    pre = _norm(weights, "ln2", x) @ weights["W_in"] + weights["b_in"]
    return torch.nn.functional.gelu(pre, approximate="tanh")


def pattern_with(weights: dict[str, Tensor], x: Tensor, heads: int, queries: Mapping[int, Tensor]) -> Tensor:
    """The attention pattern of a block of which some heads have given queries."""
    return _pattern(weights, _norm(weights, "ln1", x), heads, queries)


def _pattern(
    weights: dict[str, Tensor], y: Tensor, heads: int, queries: Mapping[int, Tensor] = MappingProxyType({})
) -> Tensor:
    import torch

    q, k = (_rotated(weights, _heads(weights, name, y, heads)) for name in "QK")
    for head, given in queries.items():
        q[..., head, :, :] = given
    k, seq = _shared(k, heads), y.shape[-2]
    future = torch.ones(seq, seq, dtype=torch.bool, device=y.device).triu(1)
    return ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).masked_fill(future, -torch.inf).softmax(-1)


def _heads(weights: dict[str, Tensor], name: str, y: Tensor, heads: int) -> Tensor:
    d_head = weights["W_Q"].shape[-1] // heads
    return (y @ weights[f"W_{name}"] + weights[f"b_{name}"]).unflatten(-1, (-1, d_head)).transpose(-3, -2)


def _shared(x: Tensor, heads: int) -> Tensor:
    """Keys or values as each head reads them."""
    return x.repeat_interleave(heads // x.shape[-3], dim=-3) if x.shape[-3] < heads else x


def _rotated(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Queries or keys, rotated by their positions where there are frequencies."""
    import torch

    if "frequencies" not in weights:
        return x
    angles = torch.arange(x.shape[-2], device=x.device)[:, None] * weights["frequencies"]
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _norm(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    import torch

    if f"{name}_b" not in weights:
        return torch.nn.functional.rms_norm(x, x.shape[-1:], weights[f"{name}_w"], EPS)
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weights[f"{name}_w"], weights[f"{name}_b"], EPS)

"""Self-repair in PyTorch: two runs of the whole model for each head, as published, and better.

The clean run, and that of the prompts to resample from, are there beforehand: on this side they are not timed.
"""

from collections.abc import Callable

from .._problems import EPS
from .._repair import Repair
from ._blocks import attention, head_outputs, mlp, Tensor, tensor


class Side:
    """Model and prompts as tensors; `z` `[batch head seq d_head]` and what enters each MLP on the clean run, and the others' `z`."""

    def __init__(self, problem: Repair):
        import torch

        blocks = problem.blocks
        self.heads, self.layers = blocks.heads, problem.layers
        self.W_E, self.W_pos = tensor(blocks.W_E), tensor(blocks.W_pos)
        self.weights = [{name: tensor(value) for name, value in block.items()} for block in blocks.weights]
        self.tokens, self.resample = (tensor(x).long() for x in (problem.tokens, problem.resample))
        with torch.no_grad():
            self.others = self.cache(self.resample)[1]
            _, self.clean, self.entered, self.attn, self.scale = self.cache(self.tokens)
            last = self.W_E[self.tokens[:, 1:]] - self.W_E.mean(0)
            # [batch seq-1 d_model], into which the norm's centring and scale are taken
            self.along = (last - last.mean(-1, keepdim=True)) / self.scale[:, :-1]

    def cache(self, tokens: Tensor, ablate: Callable[[int, Tensor], Tensor] = lambda layer, z: z):
        """A whole run: what is unembedded, and of each layer `z`, what enters the MLP, what attention writes; and the final scale."""
        x, outputs, entered, attn = self.W_E[tokens] + self.W_pos, [], [], []
        for layer, weights in enumerate(self.weights):
            z = ablate(layer, head_outputs(weights, x, self.heads))
            outputs.append(z)
            attn.append(z.transpose(-3, -2).reshape(x.shape) @ weights["W_O"] + weights["b_O"])
            x = x + attn[-1]
            entered.append(x)
            x = x + mlp(weights, x)
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + EPS).sqrt()
        return centred / scale, outputs, entered, attn, scale

    def logits(self, normalized: Tensor) -> Tensor:
        return normalized @ self.W_E.T

    def W_O(self, layer: int) -> Tensor:
        """`[head d_head d_model]`."""
        return self.weights[layer]["W_O"].unflatten(0, (self.heads, -1))

    def direct(self, outputs: list[Tensor]) -> Tensor:
        """Direct effects `[layer head batch seq-1]`, from all heads' outputs in the residual stream."""
        import torch

        # [batch head seq d_head] · [head d_head d_model] -> [batch head seq d_model]
        results = torch.stack([z[:, :, :-1] @ self.W_O(i) for i, z in enumerate(outputs)])
        return (results * self.along[:, None]).sum(-1).transpose(1, 2)


def whole_runs(problem: Repair, amount: int):
    """For each of the first heads a run with its output replaced, another that keeps every head's output, and all their direct effects."""
    import torch

    side = Side(problem)
    order = problem.order()[:amount].tolist()

    def run() -> Tensor:
        with torch.no_grad():
            before = side.direct(side.clean)
            out = []
            for layer, head in order:

                def ablate(at: int, z: Tensor, layer: int = layer, head: int = head) -> Tensor:
                    if at != layer:
                        return z
                    z = z.clone()
                    z[:, head] = side.others[layer][:, head]
                    return z

                side.logits(side.cache(side.tokens, ablate)[0])
                normalized, outputs, *_ = side.cache(side.tokens, ablate)
                side.logits(normalized)
                out.append((side.direct(outputs) - before)[layer + 1 :].sum((0, 1)))
            return torch.stack(out)

    return run


def runs_from_layers(problem: Repair, variant: str, amount: int):
    """The same from the head's layer on, without unembedding, and with attention's output for the sum of its heads: head by head, or
    several heads of a layer as a batch.
    """
    import torch

    side = Side(problem)
    order = problem.order()[:amount]
    together = int(variant.split()[0]) if variant[0].isdecimal() else 1

    def onwards(layer: int, heads: Tensor) -> Tensor:
        """`[head batch seq-1]`."""
        change = (side.others[layer] - side.clean[layer])[:, heads].transpose(0, 1)
        x = side.entered[layer] + change @ side.W_O(layer)[heads][:, None]
        x = x + mlp(side.weights[layer], x)
        total = torch.zeros(len(heads), *side.along.shape[:-1], device=x.device)
        for later in range(layer + 1, side.layers):
            written = attention(side.weights[later], x, side.heads)
            total = total + ((written - side.attn[later])[..., :-1, :] * side.along).sum(-1)
            x = x + written
            x = x + mlp(side.weights[later], x)
        return total

    def run() -> Tensor:
        with torch.no_grad():
            out = torch.zeros(len(order), *side.along.shape[:-1], device=side.W_E.device)
            for layer in range(side.layers):
                rows = torch.as_tensor((order[:, 0] == layer).nonzero()[0])
                for some in rows.split(together):
                    out[some] = onwards(layer, tensor(order[some.numpy(), 1].copy()))
            return out

    return run

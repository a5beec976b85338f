"""Activation patching in PyTorch: a run of the whole model for each cell, as published, and better.

What both prompts' runs make at every site is there beforehand: on this side it is not timed.
"""

from collections.abc import Callable

from .._patching import Patching
from .._problems import EPS
from ._blocks import attention, head_outputs, mlp, Tensor, tensor


RESID, Z = 0, 1


class Side:
    """Model and prompts as tensors; of both runs what enters each block, the heads' outputs and what enters each MLP; and the metric of
    the first.
    """

    def __init__(self, problem: Patching):
        import torch

        blocks = problem.blocks
        self.heads, self.layers, self.seq = blocks.heads, problem.layers, problem.base.shape[1]
        self.W_E, self.W_pos = tensor(blocks.W_E), tensor(blocks.W_pos)
        self.weights = [{name: tensor(value) for name, value in block.items()} for block in blocks.weights]
        self.two = problem.answer, problem.foil
        self.base, self.other = (tensor(x).long() for x in (problem.base, problem.other))
        with torch.no_grad():
            self.pre, self.z, self.mid, last = self.cache(self.base)
            self.pre_other, self.z_other, _, _ = self.cache(self.other)
            self.before = self.metric(last)

    def cache(self, tokens: Tensor, hook: Callable[[int, int, Tensor], Tensor] = lambda layer, kind, x: x):
        """A whole run, in which a hook may change what enters a block and heads' outputs."""
        x, pre, outputs, mid = self.W_E[tokens] + self.W_pos, [], [], []
        for layer, weights in enumerate(self.weights):
            x = hook(layer, RESID, x)
            pre.append(x)
            outputs.append(hook(layer, Z, head_outputs(weights, x, self.heads)))
            x = x + outputs[-1].transpose(-3, -2).reshape(x.shape) @ weights["W_O"] + weights["b_O"]
            mid.append(x)
            x = x + mlp(weights, x)
        return pre, outputs, mid, x

    def normalized(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt()

    def metric(self, x: Tensor) -> Tensor:
        """The difference of the two logits at the last position alone."""
        answer, foil = self.two
        return self.normalized(x[..., -1, :]) @ (self.W_E[answer] - self.W_E[foil])

    def W_O(self, layer: int) -> Tensor:
        """`[head d_head d_model]`."""
        return self.weights[layer]["W_O"].unflatten(0, (self.heads, -1))


def whole_runs(problem: Patching, amount: int):
    """For each of the first cells a run with it replaced, by a hook, and all its logits."""
    import torch

    side = Side(problem)
    cells = problem.cells()[:amount].tolist()

    def run() -> Tensor:
        with torch.no_grad():
            out = []
            for layer, kind, at in cells:

                def hook(
                    here: int, which: int, x: Tensor, layer: int = layer, kind: int = kind, at: int = at
                ) -> Tensor:
                    if (here, which) != (layer, kind):
                        return x
                    x = x.clone()
                    x[:, at] = (side.z_other if kind == Z else side.pre_other)[layer][:, at]
                    return x

                logits = side.normalized(side.cache(side.base, hook)[-1]) @ side.W_E.T
                answer, foil = side.two
                out.append(logits[:, -1, answer] - logits[:, -1, foil] - side.before)
            return torch.stack(out)

    return run


def runs_from_layers(problem: Patching, variant: str, amount: int):
    """The same from the cell's layer on, without unembedding other positions and tokens: all cells of a kind in a layer as a batch, or only
    those in which anything differs.
    """
    import torch

    side = Side(problem)
    cells = problem.cells()[:amount]
    only_moved = variant == "cells that differ"

    def onwards(layer: int, x: Tensor) -> Tensor:
        for weights in side.weights[layer:]:
            x = x + attention(weights, x, side.heads)
            x = x + mlp(weights, x)
        return side.metric(x) - side.before

    def of_positions(layer: int, at: Tensor) -> Tensor:
        change = (side.pre_other[layer] - side.pre[layer])[:, at].transpose(0, 1)
        # [position batch seq d_model]
        x = side.pre[layer].repeat(len(at), 1, 1, 1)
        x[torch.arange(len(at)), :, at] += change
        return onwards(layer, x)

    def of_heads(layer: int, at: Tensor) -> Tensor:
        # [head batch seq d_head] · [head d_head d_model] -> [head batch seq d_model]
        change = (side.z_other[layer] - side.z[layer])[:, at].transpose(0, 1) @ side.W_O(layer)[at][:, None]
        x = side.mid[layer] + change
        return onwards(layer + 1, x + mlp(side.weights[layer], x))

    def run() -> Tensor:
        with torch.no_grad():
            out = torch.zeros(len(cells), len(side.base), device=side.W_E.device)
            for layer in range(side.layers):
                for kind, compute in ((RESID, of_positions), (Z, of_heads)):
                    rows = ((cells[:, 0] == layer) & (cells[:, 1] == kind)).nonzero()[0]
                    at = tensor(cells[rows, 2].copy())
                    if only_moved and kind == RESID and len(rows):
                        moved = (side.pre_other[layer] != side.pre[layer]).any(-1).any(0)[at].cpu()
                        rows, at = rows[moved.numpy()], at[moved]
                    if len(rows):
                        out[torch.as_tensor(rows)] = compute(layer, at)
            return out

    return run

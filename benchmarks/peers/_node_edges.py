"""Edges into single nodes in PyTorch: for each a backward pass through the sublayer that it reads in, and what meets its gradient.

The metric's gradients, and all that nodes write, are there beforehand: on this side they are not timed.
"""

from .._node_edges import NodeEdges
from ._blocks import _heads, _norm, Tensor, tensor


class Side:
    """The clean run `[layer …]`: what enters each sublayer, patterns, values, neurons; and the metric's gradients."""

    def __init__(self, problem: NodeEdges):
        import torch

        blocks = problem.blocks
        self.heads, self.nodes = blocks.heads, problem.nodes
        W_E, W_pos = tensor(blocks.W_E), tensor(blocks.W_pos)
        self.weights = [{name: tensor(value) for name, value in block.items()} for block in blocks.weights]
        tokens = tensor(problem.tokens).long()
        x = self.embed = W_E[tokens] + W_pos
        self.entered, self.middle, self.patterns, self.values, self.neurons = [], [], [], [], []
        scores, pres, zs = [], [], []
        for weights in self.weights:
            self.entered.append(x.detach())
            y = _norm(weights, "ln1", x)
            scores.append(self.scores(weights, y, y).requires_grad_())
            pattern, v = scores[-1].softmax(-1), _heads(weights, "V", y, self.heads)
            zs.append((pattern @ v).requires_grad_())
            x = x + zs[-1].transpose(-3, -2).reshape(x.shape) @ weights["W_O"] + weights["b_O"]
            self.middle.append(x.detach())
            pres.append((_norm(weights, "ln2", x) @ weights["W_in"] + weights["b_in"]).requires_grad_())
            post = torch.nn.functional.gelu(pres[-1], approximate="tanh")
            x = x + post @ weights["W_out"] + weights["b_out"]
            for kept, value in ((self.patterns, pattern), (self.values, v), (self.neurons, post)):
                kept.append(value.detach())
        for kept in (scores, zs, pres):
            for each in kept:
                each.retain_grad()
        logits = x[-1] @ W_E.T
        (logits[problem.answer] - logits[problem.foil]).backward()
        self.gradients = {"scores": [x.grad for x in scores], "z": [x.grad for x in zs], "pre": [x.grad for x in pres]}

    def scores(self, weights: dict[str, Tensor], asking: Tensor, asked: Tensor) -> Tensor:
        import torch

        q, k = _heads(weights, "Q", asking, self.heads), _heads(weights, "K", asked, self.heads)
        future = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool, device=q.device).triu(1)
        return ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).masked_fill(future, -torch.inf)

    def gradient(self, node: tuple[str, int, int, int, int]) -> Tensor:
        """Of what a node reads by the stream in front of it `[seq d_model]`, by one backward pass through its sublayer."""
        import torch

        part, layer, unit, position, key = node
        weights = self.weights[layer]
        x = (self.middle if part == "neuron" else self.entered)[layer].clone().requires_grad_()
        if part == "neuron":
            pre = _norm(weights, "ln2", x) @ weights["W_in"] + weights["b_in"]
            value = pre[position, unit] * self.gradients["pre"][layer][position, unit]
        elif part == "v":
            v = _heads(weights, "V", _norm(weights, "ln1", x), self.heads)
            passed = self.patterns[layer][unit, position, key] * v[unit, key]
            value = passed @ self.gradients["z"][layer][unit, position]
        else:
            y = _norm(weights, "ln1", x)
            sides = (y, y.detach()) if part == "q" else (y.detach(), y)
            at = (unit, position, key)
            value = self.scores(weights, *sides)[at] * self.gradients["scores"][layer][at]
        return torch.autograd.grad(value, x)[0]

    def edges(
        self, node: tuple[str, int, int, int, int], gradient: Tensor, rows: slice | list[int]
    ) -> tuple[Tensor, ...]:
        """What is written upstream along a gradient, at these rows: neurons, heads and tokens."""
        import torch

        part, layer = node[:2]
        G, neurons, heads = gradient[rows], [], []
        for at, weights in enumerate(self.weights):
            post, pattern, v = self.neurons[at][rows], self.patterns[at][:, rows], self.values[at]
            if at < layer:
                neurons.append(post * (G @ weights["W_out"].T))
            else:
                neurons.append(torch.zeros_like(post))
            if at < layer or (at == layer and part == "neuron"):
                read = (G @ weights["W_O"].T).unflatten(-1, (self.heads, -1)).transpose(0, 1)
                heads.append(pattern * (read @ v.transpose(-2, -1)))
            else:
                heads.append(torch.zeros_like(pattern))
        tokens = (self.embed[rows] * G).sum(-1)
        return torch.stack(neurons), torch.stack(heads), tokens


def edges_into(problem: NodeEdges, variant: str, amount: int):
    """Node by node; `variant` says whether the gradient meets what is written at all positions, or at the one where it is not 0."""
    import torch

    side = Side(problem)

    def run() -> Tensor:
        out = []
        for node in problem.nodes[:amount]:
            gradient = side.gradient(node)
            row = node[4] if node[0] in ("k", "v") else node[3]
            with torch.no_grad():
                if variant == "at all positions":
                    neurons, heads, tokens = side.edges(node, gradient, slice(None))
                    neurons, heads, tokens = neurons[:, [row]], heads[:, :, [row]], tokens[[row]]
                else:
                    neurons, heads, tokens = side.edges(node, gradient, [row])
            out.append(torch.cat([neurons.flatten(), heads.flatten(), tokens]))
        return torch.stack(out)

    return run

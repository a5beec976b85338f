"""Path patching to heads' queries in PyTorch: a run of the whole model for each sender, as published, and better.

What both prompts' runs make everywhere is there beforehand: on this side it is not timed.
"""

from .._path_patching import Paths
from ._blocks import _heads, _norm, attention, mlp, pattern_with, Tensor
from ._patching import Side


def moved(problem: Paths, side: Side) -> Tensor:
    """By how much each sender's output differs between the two prompts, `[sender batch seq d_model]`."""
    import torch

    with torch.no_grad():
        out = [side.W_E[side.other] - side.W_E[side.base]]
        _, _, mid_other, _ = side.cache(side.other)
        for layer in range(max(layer for layer, _ in problem.receivers)):
            # [batch head seq d_head] · [head d_head d_model] -> [batch head seq d_model]
            of_heads = (side.z_other[layer] - side.z[layer]) @ side.W_O(layer)
            weights = side.weights[layer]
            out += [*of_heads.unbind(1), mlp(weights, mid_other[layer]) - mlp(weights, side.mid[layer])]
        return torch.stack(out)


class Receivers:
    """The receivers by layer, and what their queries are where something is added to what they read."""

    def __init__(self, problem: Paths, side: Side):
        self.side, self.heads = side, side.heads
        self.layers: dict[int, list[int]] = {}
        for layer, head in problem.receivers:
            self.layers.setdefault(layer, []).append(head)
        self.a_layer = side.heads + 1

    def queries(self, layer: int, change: Tensor) -> dict[int, Tensor]:
        weights = self.side.weights[layer]
        read = _norm(weights, "ln1", self.side.pre[layer] + change)
        every = _heads(weights, "Q", read, self.heads)
        return {head: every[..., head, :, :] for head in self.layers[layer]}

    def reads(self, layer: int, sender: int) -> bool:
        """Whether a sender, by number, writes before the layer."""
        return sender < 1 + layer * self.a_layer


def whole_runs(problem: Paths, amount: int):
    """For each of the first senders the receivers' queries, and a run of the whole model with these, by a hook, and all its logits."""
    import torch

    side = Side(problem.patching)
    receivers, changes = Receivers(problem, side), moved(problem, side)[:amount]
    answer, foil = problem.patching.answer, problem.patching.foil

    def run() -> Tensor:
        with torch.no_grad():
            out = []
            for sender, change in enumerate(changes):
                put = {
                    layer: receivers.queries(layer, change)
                    for layer in receivers.layers
                    if receivers.reads(layer, sender)
                }
                x = side.W_E[side.base] + side.W_pos
                for layer, weights in enumerate(side.weights):
                    pattern = pattern_with(weights, x, side.heads, put.get(layer, {}))
                    x = x + attention(weights, x, side.heads, pattern)
                    x = x + mlp(weights, x)
                logits = side.normalized(x) @ side.W_E.T
                out.append(logits[:, -1, answer] - logits[:, -1, foil])
            return torch.stack(out)

    return run


def runs_from_receivers(problem: Paths, variant: str, amount: int):
    """The same from the first receiver's layer on, without unembedding other positions and tokens, several senders at once."""
    import torch

    side = Side(problem.patching)
    receivers, changes = Receivers(problem, side), moved(problem, side)[:amount]
    size, first = int(variant.split()[0]), min(receivers.layers)

    def run() -> Tensor:
        with torch.no_grad():
            out = []
            for start in range(0, len(changes), size):
                some = changes[start : start + size]
                x = side.pre[first].expand(len(some), *side.pre[first].shape)
                for layer in range(first, side.layers):
                    weights, put = side.weights[layer], {}
                    if layer in receivers.layers:
                        reading = [float(receivers.reads(layer, start + i)) for i in range(len(some))]
                        put = receivers.queries(layer, some * some.new_tensor(reading)[:, None, None, None])
                    x = x + attention(weights, x, side.heads, pattern_with(weights, x, side.heads, put))
                    x = x + mlp(weights, x)
                out.append(side.metric(x))
            return torch.cat(out)

    return run

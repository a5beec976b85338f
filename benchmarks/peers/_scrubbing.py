"""Causal scrubbing in PyTorch: a run of the whole model for each claim and sample, as it is written first; all examples are one batch."""

from .._problems import EPS
from .._scrubbing import Draws, Head, path_of, Scrubbing
from ._blocks import head_outputs, mlp, Tensor, tensor


class Side:
    """Model and prompts as tensors."""

    def __init__(self, problem: Scrubbing):
        blocks = problem.blocks
        self.heads = blocks.heads
        self.W_E, self.W_pos = tensor(blocks.W_E), tensor(blocks.W_pos)
        self.weights = [{name: tensor(value) for name, value in block.items()} for block in blocks.weights]
        self.tokens = tensor(problem.tokens).long()
        self.answer, self.foil = (tensor(x).long() for x in (problem.answer, problem.foil))

    def run(self, rows: Tensor, heads: tuple[Head, ...], queries: dict[Head, Tensor]) -> tuple[Tensor, dict]:
        """A whole run of some prompts: the last residual stream, and what these heads write. `queries`: what is added to what a head's
        query reads.
        """
        x, written = self.W_E[self.tokens[rows]] + self.W_pos, {}
        for layer, weights in enumerate(self.weights):
            z = head_outputs(weights, x, self.heads)
            for at in (at for at in heads if at[0] == layer):
                mine = self.alone(at, x, x + queries[at]) if at in queries else z[:, at[1]]
                written[at] = mine @ weights["W_O"].unflatten(0, (self.heads, -1))[at[1]]
            x = x + z.transpose(-3, -2).reshape(x.shape) @ weights["W_O"] + weights["b_O"]
            x = x + mlp(weights, x)
        return x, written

    def alone(self, at: Head, x: Tensor, asking: Tensor) -> Tensor:
        """A head's output `[batch seq d_head]` whose query reads another stream."""
        import torch

        weights, d_head = self.weights[at[0]], self.W_E.shape[1] // self.heads
        mine = slice(at[1] * d_head, (at[1] + 1) * d_head)
        norm = lambda x: torch.nn.functional.layer_norm(x, x.shape[-1:], weights["ln1_w"], weights["ln1_b"], EPS)
        of = lambda name, x: norm(x) @ weights[f"W_{name}"][:, mine] + weights[f"b_{name}"][mine]
        future = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device).triu(1)
        scores = of("Q", asking) @ of("K", x).transpose(-2, -1) * d_head**-0.5
        return scores.masked_fill(future, -torch.inf).softmax(-1) @ of("V", x)


def whole_runs(problem: Scrubbing, draws: Draws, amount: int):
    """The first samples: for each claim a run on its datum, and for one that others are below a run on what they are not."""
    import torch

    side = Side(problem)
    rows = {path: [tensor(x[:amount].copy()).long() for x in both] for path, both in draws.items()}

    def sample(i: int) -> Tensor:
        others = rows["logits"][1][i]
        x, own = side.run(others, problem.outer, {})
        for outer in problem.outer:
            mine = rows[path_of(outer)][1][i]
            _, before = side.run(mine, problem.inner, {})
            change = torch.zeros_like(x)
            for inner in problem.inner:
                value = side.run(rows[path_of(outer, inner)][0][i], (inner,), {})[1][inner]
                change = change + value - before[inner]
            x = x + side.run(mine, (outer,), {outer: change})[1][outer] - own[outer]
        last = x[:, -1]
        return (last * (side.W_E[side.answer] - side.W_E[side.foil])).sum(-1)

    def run() -> Tensor:
        with torch.no_grad():
            return torch.stack([sample(i) for i in range(amount)])

    return run

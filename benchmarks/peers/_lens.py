"""The Jacobian lens in PyTorch: one-hot cotangents at every valid position of the target, pulled back to all layers in one pass."""

from .._lens import LensProblem
from ._blocks import attention, mlp, Tensor, tensor


class Side:
    """The model's weights, and a forward pass that keeps what leaves each block."""

    def __init__(self, problem: LensProblem):
        self.problem = problem
        self.weights = [{name: tensor(value) for name, value in block.items()} for block in problem.blocks.weights]
        tokens = tensor(problem.tokens).long()
        self.embedded = tensor(problem.blocks.W_E)[tokens] + tensor(problem.blocks.W_pos)

    def forward(self, copies: int) -> list[Tensor]:
        """What leaves each block `[copies seq d_model]`, of the prompt so many times."""
        x, left = self.embedded.expand(copies, *self.embedded.shape), []
        for block in self.weights:
            x = x + attention(block, x, self.problem.blocks.heads)
            x = x + mlp(block, x)
            if not left:  # no gradient is asked for in front of the first
                x = x.detach().requires_grad_()
            left.append(x)
        return left

    def cotangents(self, first: int, count: int) -> Tensor:
        """`[count seq d_model]`: a coordinate of the target each, at every valid position."""
        import torch

        found = torch.zeros(count, *self.embedded.shape, device=self.embedded.device)
        for number in range(count):
            found[number, self.problem.valid, first + number] = 1
        return found


def fit(problem: LensProblem, variant: str, amount: int):
    """Rows of the lens `[layer amount d_model]`. `variant`: how many cotangents a pass, and whether the prompt is run anew for each pass
    on that many copies of the prompt, or once for all.
    """
    import torch

    side, (at_once, how) = Side(problem), variant.split(" ", 1)
    size = int(at_once)

    def run() -> Tensor:
        once, parts = side.forward(1), []
        for first in range(0, amount, size):
            count = min(size, amount - first)
            cotangents = side.cotangents(first, count)
            if how == "on one run":
                back = torch.autograd.grad(
                    once[-1], once[:-1], cotangents[:, None], retain_graph=True, is_grads_batched=True
                )
                gradients = [gradient[:, 0] for gradient in back]
            else:
                *sources, target = side.forward(count)
                gradients = torch.autograd.grad(target, sources, cotangents)
            parts.append(torch.stack([gradient[:, problem.valid].mean(1) for gradient in gradients]))
        return torch.cat(parts, 1)

    return run

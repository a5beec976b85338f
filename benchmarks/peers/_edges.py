"""Edges in PyTorch: a cotangent at one position for each covector, pulled back, and contracted with the vectors."""

import numpy as np

from .._problems import Blocks, Items
from ._blocks import sublayer, Tensor, tensor


class Columns:
    """Vectors laid out by position, so that contracting gradients with them is one batched matrix product."""

    def __init__(self, right: np.ndarray, positions: np.ndarray, seq: int):
        order = np.argsort(positions, kind="stable")
        count = np.bincount(positions, minlength=seq)
        nth = np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count)
        grouped = np.zeros((seq, count.max(), right.shape[1]), np.float32)
        grouped[positions[order], nth] = right[order]
        slots = np.empty(len(order), np.int64)
        slots[order] = positions[order] * count.max() + nth
        self.grouped, self.slots = tensor(grouped).transpose(1, 2).contiguous(), tensor(slots)

    def contract(self, gradients: Tensor) -> Tensor:
        """`[m seq d_model] -> [m k]`."""
        found = gradients.transpose(0, 1) @ self.grouped  # [seq m d_model] · [seq d_model slot]
        return found.transpose(0, 1).reshape(len(gradients), -1)[:, self.slots]


def edges(blocks: Blocks, what: str, items: Items, variant: str, *, frozen: bool = False):
    """A run of the edges by `variant`: `"loop"`, or `"vmap N"` or `"compiled vmap N"` with N covectors at a time."""
    import torch

    function, x = sublayer(blocks, what, frozen=frozen)
    left, positions = tensor(items.left), tensor(items.left_pos).long()
    columns = Columns(items.right, items.right_pos, len(x))
    *how, chunk = variant.split() if variant != "loop" else ("loop", "16")

    def cotangents(begin: int, end: int) -> Tensor:
        out = torch.zeros(end - begin, *x.shape, device=x.device)
        out[torch.arange(end - begin, device=x.device), positions[begin:end]] = left[begin:end]
        return out

    pull = lambda x, cotangents: torch.func.vmap(torch.func.vjp(function, x)[1])(cotangents)[0]
    if how[0] == "compiled":
        pull = torch.compile(pull)

    def chunks(pull_some) -> Tensor:
        starts = range(0, len(left), int(chunk))
        return torch.cat([columns.contract(pull_some(cotangents(i, min(i + int(chunk), len(left))))) for i in starts])

    def by_loop() -> Tensor:
        point = x.detach().requires_grad_()
        out = function(point)
        gradient = lambda cotangent: torch.autograd.grad(out, point, cotangent, retain_graph=True)[0]
        return chunks(lambda cotangents: torch.stack([gradient(cotangent) for cotangent in cotangents]))

    def by_vmap() -> Tensor:
        pull_back = torch.func.vmap(torch.func.vjp(function, x)[1])  # one forward pass for all chunks
        return chunks(lambda cotangents: pull_back(cotangents)[0])

    runs = {"loop": by_loop, "vmap": by_vmap, "compiled": lambda: chunks(lambda cotangents: pull(x, cotangents))}
    return runs[how[0]]


def gathered_edges(blocks: Blocks, items: Items):
    """A run of the MLP's edges as one backward pass over the gathered positions: for who knows that nothing moves between positions."""
    import torch

    function, x = sublayer(blocks, "mlp")
    left, right, positions = tensor(items.left), tensor(items.right), tensor(items.left_pos).long()
    where = lambda positions: [tensor(np.flatnonzero(positions == t)) for t in range(len(x))]
    at_left, at_right = where(items.left_pos), where(items.right_pos)

    def run() -> Tensor:
        gradients = torch.func.vjp(function, x[positions])[1](left)[0]
        out = torch.zeros(len(left), len(right), device=x.device)
        for rows, columns in zip(at_left, at_right, strict=True):
            out[rows[:, None], columns] = gradients[rows] @ right[columns].T
        return out

    return run

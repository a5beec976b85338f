"""Full Jacobians in PyTorch: `torch.func.jacrev` and `jacfwd`, chunked."""

from .._problems import Blocks
from ._blocks import sublayer, Tensor


def matrix(blocks: Blocks, variant: str, positions: int):
    """A run of the Jacobian by `variant`, `"jacrev N"` or `"jacfwd N"` with N rows or columns at a time.

    It is of the last `positions` of the target (jacrev) or the first of the source (jacfwd): each is as much work as any other.
    """
    import torch

    function, x = sublayer(blocks, "block")
    how, chunk = variant.split()
    if how == "jacrev":
        last: object = lambda x: function(x)[len(x) - positions :]
        jacobian = torch.func.jacrev(last, chunk_size=int(chunk))
        return lambda: jacobian(x)

    def moved(first: Tensor) -> Tensor:
        return function(torch.cat([first, x[positions:]]))

    # jacfwd takes all its columns at once, so the chunks are ours.
    def columns() -> Tensor:
        point = x[:positions]
        push = torch.func.vmap(lambda tangent: torch.func.jvp(moved, (point,), (tangent,))[1])
        basis = torch.eye(point.numel(), device=x.device).reshape(-1, *point.shape)
        images = torch.cat([push(some) for some in basis.split(int(chunk))])
        return images.reshape(*point.shape, *x.shape).permute(2, 3, 0, 1)

    return columns

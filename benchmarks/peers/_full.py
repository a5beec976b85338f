"""Full Jacobians in PyTorch: `torch.func.jacrev` and `jacfwd`, chunked."""

from .._problems import Blocks
from ._blocks import sublayer, Tensor


def matrix(blocks: Blocks, variant: str, positions: int):
    """A run of the Jacobian by `variant`, `"jacrev N"`, `"compiled jacrev N"` or `"jacfwd N"` with N rows or columns at a time.

    It is of the last `positions` of the target (jacrev) or the first of the source (jacfwd): each is as much work as any other.
    """
    import torch

    function, x = sublayer(blocks, "block")
    *compiled, how, chunk = variant.split()
    last = lambda x: function(x)[len(x) - positions :]
    if how == "jacrev" and not compiled:
        jacobian = torch.func.jacrev(last, chunk_size=int(chunk))
        return lambda: jacobian(x)
    if how == "jacrev":
        pull = torch.compile(lambda x, cotangents: torch.func.vmap(torch.func.vjp(last, x)[1])(cotangents)[0])

        def rows() -> Tensor:
            basis = torch.eye(positions * x.shape[1], device=x.device).reshape(-1, positions, x.shape[1])
            return torch.cat([pull(x, some) for some in basis.split(int(chunk))]).reshape(positions, -1, *x.shape)

        return rows

    def moved(first: Tensor) -> Tensor:
        return function(torch.cat([first, x[positions:]]))

    # torch.func.jacfwd takes all its columns at once, so the chunks are ours.
    def columns() -> Tensor:
        point = x[:positions]
        push = torch.func.vmap(lambda tangent: torch.func.jvp(moved, (point,), (tangent,))[1])
        basis = torch.eye(point.numel(), device=x.device).reshape(-1, *point.shape)
        images = torch.cat([push(some) for some in basis.split(int(chunk))])
        return images.reshape(*point.shape, *x.shape).permute(2, 3, 0, 1)

    return columns

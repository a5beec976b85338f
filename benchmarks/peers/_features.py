"""Latents by latents in PyTorch: a cotangent for each target latent, pulled back to the source's site, and contracted with its decoder."""

from .._features import Features
from ._blocks import attention, hidden, Tensor, tensor


def gradients(problem: Features, variant: str, amount: int):
    """A run of the first `amount` targets by `variant`.

    `"a backward pass a latent"`: from the latent's value, through the target's encoder. `"loop"`, `"vmap N"`: the encoder's direction is
    the cotangent, one or N at a time. Which latents are on is known.
    """
    import torch

    weights = [{name: tensor(value) for name, value in block.items()} for block in problem.blocks.weights]
    heads, targets = problem.blocks.heads, problem.targets[:amount]
    with torch.no_grad():
        resid = tensor(problem.blocks.resid)
        middle = resid + attention(weights[0], resid, heads)
        point = hidden(weights[0], middle)
    W_enc, b_enc = tensor(problem.out.W_enc), tensor(problem.out.b_enc)
    units, positions = (tensor(column[targets]).long() for column in (problem.out.latents, problem.out.positions))
    written = tensor(problem.into.W_dec[problem.into.latents[problem.sources]])
    at = [
        tensor(problem.source[begin:end])
        for begin, end in zip(problem.begin, problem.begin[1 : amount + 1], strict=False)
    ]

    def through(x: Tensor) -> Tensor:
        resid = middle + x @ weights[0]["W_out"] + weights[0]["b_out"]
        return hidden(weights[1], resid + attention(weights[1], resid, heads))

    def met(gradients: Tensor, begin: int) -> list[Tensor]:
        """`[n seq d_mlp]` at each target's own position, with the sources there."""
        return [written[at[begin + n]] @ gradient[positions[begin + n]] for n, gradient in enumerate(gradients)]

    def by_latent() -> Tensor:
        x = point.clone().requires_grad_()
        acts = torch.relu(through(x) @ W_enc + b_enc)
        gradient = lambda n: torch.autograd.grad(acts[positions[n], units[n]], x, retain_graph=True)[0]
        return torch.cat([each for n in range(len(targets)) for each in met(gradient(n)[None], n)])

    def cotangents(begin: int, end: int) -> Tensor:
        out = torch.zeros(end - begin, *point.shape, device=point.device)
        out[torch.arange(end - begin, device=point.device), positions[begin:end]] = W_enc[:, units[begin:end]].T
        return out

    def by_loop() -> Tensor:
        x = point.clone().requires_grad_()
        out = through(x)
        pull = lambda n: torch.autograd.grad(out, x, cotangents(n, n + 1)[0], retain_graph=True)[0]
        return torch.cat([each for n in range(len(targets)) for each in met(pull(n)[None], n)])

    def by_vmap() -> Tensor:
        pull_some, size = torch.func.vmap(torch.func.vjp(through, point)[1]), int(variant.split()[1])
        cuts = [(begin, min(begin + size, len(targets))) for begin in range(0, len(targets), size)]
        return torch.cat([each for cut in cuts for each in met(pull_some(cotangents(*cut))[0], cut[0])])

    return by_vmap if variant.startswith("vmap") else {"loop": by_loop}.get(variant, by_latent)

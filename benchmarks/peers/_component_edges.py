"""Edges of the component graph in PyTorch: each patched in a run of its own; and all by gradients at per-head inputs.

What senders write in both runs is there beforehand for patches, and is not timed there.
"""

from .._component_edges import ComponentEdges, Edge
from ._blocks import _heads, _norm, head_outputs, mlp, Tensor, tensor


class Side:
    """Model and prompts as tensors; by how much what senders write differs, `{sender: [batch seq d_model]}`."""

    def __init__(self, problem: ComponentEdges, *, writes: bool = True):
        import torch

        blocks, pairs = problem.blocks, problem.pairs
        self.heads, self.metric = blocks.heads, (pairs.answer, pairs.foil)
        self.W_E, self.W_pos = tensor(blocks.W_E), tensor(blocks.W_pos)
        self.weights = [{name: tensor(value) for name, value in block.items()} for block in blocks.weights]
        self.clean, self.corrupt = (tensor(x).long() for x in (pairs.clean, pairs.corrupt))
        if writes:
            with torch.no_grad():
                (own, self.entering, self.middle), (other, _, _) = self.writes(self.clean), self.writes(self.corrupt)
                self.moved = {sender: other[sender] - own[sender] for sender in own}
                self.before = self.read(self.through(self.embed(self.clean)))

    def embed(self, tokens: Tensor) -> Tensor:
        return self.W_E[tokens] + self.W_pos

    def read(self, x: Tensor) -> Tensor:
        """The metric, `[batch]`: of the last position and two tokens alone."""
        answer, foil = self.metric
        return x[..., -1, :] @ (self.W_E[answer] - self.W_E[foil])

    def writes(self, tokens: Tensor) -> tuple[dict, list[Tensor], list[Tensor]]:
        """What each sender writes, and what enters each block and each MLP."""
        x = self.embed(tokens)
        out, entering, middle = {("embed", -1, -1): x}, [], []
        for layer, weights in enumerate(self.weights):
            entering.append(x)
            z = head_outputs(weights, x, self.heads)
            W_O = weights["W_O"].unflatten(0, (self.heads, -1))
            for head in range(self.heads):
                out["head", layer, head] = z[:, head] @ W_O[head]
            x = x + z.transpose(-3, -2).reshape(x.shape) @ weights["W_O"] + weights["b_O"]
            middle.append(x)
            out["mlp", layer, -1] = mlp(weights, x)
            x = x + out["mlp", layer, -1]
        return out, entering, middle

    def through(self, x: Tensor, first: int = 0, patch=None, *, half: bool = False) -> Tensor:
        """Runs blocks from `first` on; `patch(layer, part, x)` gives `(change, head)` of what is read there."""
        for layer in range(first, len(self.weights)):
            weights = self.weights[layer]
            if not (half and layer == first):
                x = x + self.attention(weights, x, None if patch is None else patch(layer, "qkv"))
            change = None if patch is None else patch(layer, "mlp")
            x = x + mlp(weights, x if change is None else x + change)
        return x

    def attention(self, weights: dict[str, Tensor], x: Tensor, patch) -> Tensor:
        """Attention with what one head's query, key or value reads changed: `patch` is `(part, head, change)`, `None`, or for a batch of
        edges a list of them.
        """
        import torch

        y = _norm(weights, "ln1", x)
        parts = {name: _heads(weights, name, y, self.heads) for name in "QKV"}
        if patch is not None:
            d_head = x.shape[-1] // self.heads
            for number, part, head, change in patch:
                read = _norm(weights, "ln1", x[number] + change)
                mine = slice(head * d_head, (head + 1) * d_head)
                name = part.upper()
                parts[name][number, ..., head, :, :] = read @ weights[f"W_{name}"][:, mine] + weights[f"b_{name}"][mine]
        q, k, v = (parts[name] for name in "QKV")
        future = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool, device=q.device).triu(1)
        pattern = ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).masked_fill(future, -torch.inf).softmax(-1)
        return (pattern @ v).transpose(-3, -2).reshape(x.shape) @ weights["W_O"] + weights["b_O"]

    def patched(self, edges: list[Edge], *, whole: bool) -> Tensor:
        """The metric `[edge batch]` of edges into receivers of one layer and kind, run together from there on, or from the embedding."""
        import torch

        part, layer, _ = edges[0].receiver
        changes = [self.moved[edge.sender] for edge in edges]
        kind = "qkv" if part in "qkv" else part
        of = torch.stack(changes)

        def patch(at: int, of_kind: str):
            if at != layer or of_kind != kind:
                return None
            return of if kind == "mlp" else [(i, e.receiver[0], e.receiver[2], of[i]) for i, e in enumerate(edges)]

        if whole:
            first, x = 0, self.embed(self.clean)
        elif kind == "logits":
            return self.read(self.last + of)
        else:
            first, x = layer, (self.middle if kind == "mlp" else self.entering)[layer]
        x = x.expand(len(edges), *x.shape).clone()
        x = self.through(x, first, patch, half=kind == "mlp" and not whole)
        return self.read(x + of if kind == "logits" else x)

    @property
    def last(self) -> Tensor:
        return self.middle[-1] + mlp(self.weights[-1], self.middle[-1])


def whole_runs(problem: ComponentEdges, variant: str, amount: int):
    """For each edge a run of the whole model in which its receiver reads something else."""
    import torch

    side = Side(problem)

    def run() -> Tensor:
        with torch.no_grad():
            return torch.stack([side.patched([edge], whole=True)[0] - side.before for edge in problem.edges[:amount]])

    return run


def runs_from_layers(problem: ComponentEdges, variant: str, amount: int):
    """The same from the receiver's layer on: edge by edge, or several of a layer as a batch."""
    import torch

    side = Side(problem)
    together = int(variant.split()[0]) if variant[0].isdecimal() else 1
    lists: dict[tuple[str, int], list[int]] = {}
    for number, edge in enumerate(problem.edges[:amount]):
        part, layer, _ = edge.receiver
        lists.setdefault(("qkv" if part in "qkv" else part, layer), []).append(number)

    def run() -> Tensor:
        with torch.no_grad():
            out = torch.zeros(amount, len(side.clean), device=side.W_E.device)
            for mine in lists.values():
                for first in range(0, len(mine), together):
                    some = mine[first : first + together]
                    out[some] = side.patched([problem.edges[i] for i in some], whole=False) - side.before
            return out

    return run


def attribution(problem: ComponentEdges, variant: str, amount: int):
    """All edges' scores: two runs without gradients for what senders write, one with an input for each head's query, key and value, whose
    gradients meet the difference of all senders before; `[edge batch]`.
    """
    import torch

    side = Side(problem, writes=False)
    senders: list[tuple[str, int, int]] = [("embed", -1, -1)]
    for layer in range(len(side.weights)):
        senders += [("head", layer, head) for head in range(side.heads)] + [("mlp", layer, -1)]
    index = {sender: number for number, sender in enumerate(senders)}

    def run() -> Tensor:
        with torch.no_grad():
            own, other = side.writes(side.clean)[0], side.writes(side.corrupt)[0]
            moved = torch.stack([other[s] - own[s] for s in senders])  # [sender batch seq d_model]
        inputs, x = {}, side.embed(side.clean)
        for layer, weights in enumerate(side.weights):
            reads = {part: x[:, None].expand(-1, side.heads, -1, -1).clone() for part in "qkv"}
            parts = {}
            for part, read in reads.items():
                read.requires_grad_(True) if not read.requires_grad else read.retain_grad()
                W = weights[f"W_{part.upper()}"].unflatten(1, (side.heads, -1)).transpose(0, 1)
                b = weights[f"b_{part.upper()}"].unflatten(0, (side.heads, -1))[:, None]
                parts[part] = _norm(weights, "ln1", read) @ W + b
                inputs[part, layer] = read
            q, k, v = (parts[part] for part in "qkv")
            future = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool, device=q.device).triu(1)
            pattern = ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).masked_fill(future, -torch.inf).softmax(-1)
            z = (pattern @ v).transpose(-3, -2).reshape(x.shape)
            x = x + z @ weights["W_O"] + weights["b_O"]
            read = x.clone()
            read.requires_grad_(True) if not read.requires_grad else read.retain_grad()
            inputs["mlp", layer] = read
            x = x + mlp(weights, read)
        last = x.clone()
        last.retain_grad()
        inputs["logits", -1] = last
        side.read(last).sum().backward()
        scores = {}
        for place, read in inputs.items():
            gradient = read.grad if read.grad.ndim == 4 else read.grad[:, None]
            # [sender batch seq d_model] · [batch head seq d_model] -> [sender batch head]
            scores[place] = torch.einsum("ubtm,bhtm->ubh", moved, gradient)
        out = [scores[e.receiver[0], e.receiver[1]][index[e.sender], :, max(e.receiver[2], 0)] for e in problem.edges]
        return torch.stack(out)

    return run

"""Sparse feature circuits in PyTorch: as feature-circuits finds them (Marks et al. 2024, arXiv 2403.19647, appendix A), and better.

Weights need no gradients and take none. Clean and corrupt values are there beforehand, and for feature-circuits' algorithm what depends
on them alone, and the forward passes through which edges are pulled back: none of it is timed.
"""

from collections.abc import Callable, Container
from typing import NamedTuple

import numpy as np

from .._circuits import Circuit, STEPS, Wire
from ._blocks import attention, mlp, Tensor, tensor


Touch = Callable[[str, Tensor], Tensor]


class Coder(NamedTuple):
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor

    def encode(self, x: Tensor) -> Tensor:
        return (x @ self.W_enc + self.b_enc).relu()


class Side:
    """Model, prompts and dictionaries as tensors; what dictionaries share is there once."""

    def __init__(self, circuit: Circuit):
        self.circuit, self.heads = circuit, circuit.blocks.heads
        once: dict[int, Tensor] = {}
        put = lambda array: once.setdefault(id(array), tensor(array))
        self.W_E, self.W_pos = tensor(circuit.blocks.W_E), tensor(circuit.blocks.W_pos)
        self.weights = [{name: tensor(value) for name, value in block.items()} for block in circuit.blocks.weights]
        self.coders = {site: Coder(*map(put, coder)) for site, coder in circuit.coders.items()}
        self.tokens = tensor(circuit.pairs.clean).long()

    def logits(self, embedded: Tensor, touch: Touch, held: Container[str] = ()) -> Tensor:
        """A run from the token embeddings on; `touch` sees and may replace the value at every site, after those `held` are detached."""

        def through(site: str, x: Tensor) -> Tensor:
            return touch(site, x.detach() if site in held else x)

        x = through("hook_embed", embedded) + self.W_pos
        for layer in range(len(self.weights)):
            x = self.block(layer, x, through)
        return x @ self.W_E.T

    def block(self, layer: int, x: Tensor, through: Touch) -> Tensor:
        weights = self.weights[layer]
        x = x + through(f"blocks.{layer}.hook_attn_out", attention(weights, x, self.heads))
        x = x + through(f"blocks.{layer}.hook_mlp_out", mlp(weights, x))
        return through(f"blocks.{layer}.hook_resid_post", x)

    def metric(self, logits: Tensor) -> Tensor:
        """The sum over prompts."""
        last, pairs = logits[..., -1, :], self.circuit.pairs
        return (last[..., pairs.answer] - last[..., pairs.foil]).sum()

    def split(self, site: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """Latents and error."""
        acts = self.coders[site].encode(x)
        return acts, x - acts @ self.coders[site].W_dec

    def ends(self, site: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Latents and error, clean and corrupt."""
        clean, corrupt = (tensor(values[site]) for values in (self.circuit.clean, self.circuit.corrupt))
        return self.split(site, clean), self.split(site, corrupt)


def nodes(circuit: Circuit, variant: str, sites: list[str]):
    """A run of the effects at some sites: runs of the whole model, in which latents and error at the site are leaves."""
    import torch

    side = Side(circuit)
    ends = {site: side.ends(site) for site in sites}
    together = STEPS if variant == "all steps at once" else 1

    def gradients(site: str, fractions: Tensor) -> tuple[Tensor, Tensor]:
        (acts, error), (other_acts, other_error) = ends[site]
        fractions = fractions[:, None, None, None]
        acts = ((1 - fractions) * acts + fractions * other_acts).requires_grad_()
        error = ((1 - fractions) * error + fractions * other_error).requires_grad_()
        spliced = (acts @ side.coders[site].W_dec + error).flatten(0, 1)
        tokens = side.tokens.repeat(len(fractions), 1)
        logits = side.logits(side.W_E[tokens], lambda name, x: spliced if name == site else x)
        found = torch.autograd.grad(side.metric(logits), (acts, error))
        return found[0].sum(0) / STEPS, found[1].sum(0) / STEPS

    def effects(site: str) -> Tensor:
        steps = (torch.arange(STEPS, device=side.W_E.device) / STEPS).split(together)
        acts, error = map(sum, zip(*(gradients(site, some) for some in steps), strict=True))
        (a, e), (other_a, other_e) = ends[site]
        return torch.cat([acts * (other_a - a), (error * (other_e - e)).sum(-1, keepdim=True)], dim=-1)

    return lambda: torch.stack([effects(site) for site in sites])


def nodes_from_sites(circuit: Circuit, variant: str, sites: list[str]):
    """The same by the gradient of the plain model, of which only what comes after the site is run, the last position alone is unembedded,
    and the decoder is needed once.
    """
    import torch

    side = Side(circuit)
    value = lambda values, site: tensor(values[site])
    ends = {site: side.ends(site) for site in sites}
    together = STEPS if variant == "all steps at once" else 1

    def after(site: str, x: Tensor) -> Tensor:
        """The logits, given the value at the site."""
        embedded = site == "hook_embed"
        layer, kind = (-1, "resid_post") if embedded else (int(site.split(".")[1]), site.split("hook_")[1])
        x = x + side.W_pos if embedded else x
        if kind != "resid_post":
            before = f"blocks.{layer - 1}.hook_resid_post"
            enters = value(circuit.clean, before) if layer else value(circuit.clean, "hook_embed") + side.W_pos
            if kind == "mlp_out":
                enters = enters + value(circuit.clean, f"blocks.{layer}.hook_attn_out")
            x = enters + x.unflatten(0, (-1, len(enters)))
            x = (x + mlp(side.weights[layer], x) if kind == "attn_out" else x).flatten(0, 1)
        for later in range(layer + 1, len(side.weights)):
            x = side.block(later, x, lambda _, x: x)
        return x[:, -1:] @ side.W_E.T

    def gradient(site: str, fractions: Tensor) -> Tensor:
        clean, corrupt = value(circuit.clean, site), value(circuit.corrupt, site)
        x = (clean + fractions[:, None, None, None] * (corrupt - clean)).flatten(0, 1).requires_grad_()
        found = torch.autograd.grad(side.metric(after(site, x)), x)[0]
        return found.unflatten(0, (len(fractions), -1)).sum(0) / STEPS

    def effects(site: str) -> Tensor:
        steps = (torch.arange(STEPS, device=side.W_E.device) / STEPS).split(together)
        mean = sum(gradient(site, some) for some in steps)
        (a, e), (other_a, other_e) = ends[site]
        acts = (mean @ side.coders[site].W_dec.T) * (other_a - a)
        return torch.cat([acts, (mean * (other_e - e)).sum(-1, keepdim=True)], dim=-1)

    return lambda: torch.stack([effects(site) for site in sites])


def edges(circuit: Circuit, amount: int):
    """A run of the first rows: for each a backward pass from its node through all of the model before it, with what lies between source
    and target held, and the gradient at every latent of the source.
    """
    import torch

    side = Side(circuit)
    rows = circuit.rows.pick(slice(amount))
    graphs = {wire: _graph(side, circuit.wires[wire]) for wire in np.unique(rows.wire).tolist()}
    picked = {wire: _picked(circuit, circuit.wires[wire].source) for wire in graphs}

    def row(wire: int, node: np.ndarray) -> Tensor:
        """`[batch seq node]`, of the source's nodes."""
        nodes, acts, error, leaf, d_acts, d_error = graphs[wire]
        for each in (acts, error, leaf):
            each.grad = None
        nodes[tuple(node.tolist())].backward(retain_graph=True)
        return torch.cat([acts.grad * d_acts, (error.grad * d_error).sum(-1, keepdim=True)], dim=-1)

    def run() -> Tensor:
        # Of all latents, and until all edges are there, as in the reference implementation.
        found = {wire: torch.stack([row(wire, rows.node[i]) for i in rows.of(wire)]) for wire in graphs}
        out = torch.zeros(amount, circuit.width, device=side.W_E.device)
        for wire, values in found.items():
            for i, each in zip(rows.of(wire).tolist(), values, strict=True):
                example = int(rows.node[i][0])
                position, unit = picked[wire][example]
                out[i, : len(unit)] = each[example][position, unit]
        return out

    return run


def _graph(side: Side, wire: Wire) -> tuple[Tensor, ...]:
    """A run with both ends' dictionaries spliced in: the target's nodes times their gradients `[batch seq node]`, and the source's
    latents and error, the token embeddings, and the differences of latents and error.
    """
    import torch

    leaf = side.W_E[side.tokens].requires_grad_()
    seen: dict[str, tuple[Tensor, ...]] = {}

    def touch(site: str, x: Tensor) -> Tensor:
        if site == wire.source:
            acts, error = side.split(site, x)
            acts.retain_grad()
            error = error.detach().requires_grad_()
            seen[site] = acts, error
            return acts @ side.coders[site].W_dec + error
        if site == wire.target:
            gradient = tensor(side.circuit.gradient[site])
            acts, error = side.split(site, x)
            left = gradient @ side.coders[site].W_dec.T
            seen[site] = (torch.cat([left * acts, (gradient * error).sum(-1, keepdim=True)], dim=-1),)
        return x

    side.logits(leaf, touch, wire.held)
    (acts, error), (other_acts, other_error) = side.ends(wire.source)
    return *seen[wire.target], *seen[wire.source], leaf, other_acts - acts, other_error - error


def _picked(circuit: Circuit, site: str) -> list[tuple[Tensor, Tensor]]:
    """The positions and units of the columns there are, for each prompt."""
    places = (place[place[:, 0] >= 0] for place in circuit.columns[site])
    return [(tensor(place[:, 0].copy()), tensor(place[:, 1].copy())) for place in places]


def edges_between(circuit: Circuit, variant: str, wires: int):
    """A run of all rows of the first wires: `torch.func.vjp` of the sublayer between source and target alone, prompt by prompt, of many
    cotangents at a time or in a loop; gradients meet only what the nodes that differ write, which is found here.
    """
    import torch

    side = Side(circuit)
    chunk = int(variant.split()[1]) if variant != "loop" else 1

    def some_rows(wire: Wire, example: int, nodes: np.ndarray, writes: list[Tensor]) -> Tensor:
        """`[row column]`."""
        function, point = _between(side, wire, example)
        position, unit = (tensor(nodes[:, i]) for i in (1, 2))
        covectors = _reads(side, wire.target, example, position, unit)
        pull = torch.func.vjp(function, point)[1]
        pull_all = torch.func.vmap(lambda cotangent: pull(cotangent)[0])
        out = []
        for some, at in zip(covectors.split(chunk), position.split(chunk), strict=True):
            cotangents = torch.zeros(len(some), *point.shape, device=point.device)
            cotangents[torch.arange(len(some)), at] = some
            gradients = pull(cotangents[0])[0][None] if variant == "loop" else pull_all(cotangents)
            # [row d_model] · [d_model column], for the columns of each position
            meet = [gradients[:, s] @ vectors.T for s, vectors in enumerate(writes)]
            out.append(torch.cat(meet, dim=1))
        return torch.cat(out)

    def run() -> Tensor:
        parts = []
        writes = {site: _writes(side, site) for site in {wire.source for wire in circuit.wires[:wires]}}
        for index in range(wires):
            mine = circuit.rows.of(index)
            out = torch.zeros(len(mine), circuit.width, device=side.W_E.device)
            for example in range(len(circuit.pairs.clean)):
                there = np.flatnonzero(circuit.rows.node[mine][:, 0] == example)
                if len(there):
                    nodes = circuit.rows.node[mine[there]]
                    wire = circuit.wires[index]
                    found = some_rows(wire, example, nodes, writes[wire.source][example])
                    out[tensor(there), : found.shape[1]] = found
            parts.append(out)
        return torch.cat(parts)

    return run


def _between(side: Side, wire: Wire, example: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The target as a function of the source, with what is held between them at its clean value; and the source's clean value."""
    at = lambda site: tensor(side.circuit.clean[site][example])
    layer, kind = int(wire.target.split(".")[1]), wire.target.split("hook_")[1]
    weights, into = side.weights[layer], side.W_pos if wire.source == "hook_embed" else 0
    others = into + sum(map(at, wire.held))
    if kind == "mlp_out" and wire.source.endswith("attn_out"):
        enters = at(f"blocks.{layer - 1}.hook_resid_post") if layer else at("hook_embed") + side.W_pos
        return lambda x: mlp(weights, enters + x), at(wire.source)
    functions = {
        "attn_out": lambda x: attention(weights, x + others, side.heads),
        "mlp_out": lambda x: mlp(weights, x + others),
        "resid_post": lambda x: x + others,
    }
    return functions[kind], at(wire.source)


def _writes(side: Side, site: str) -> list[list[Tensor]]:
    """What the nodes of the columns write, times their differences, for each prompt and position `[column d_model]`."""
    import torch

    (acts, error), (other_acts, other_error) = side.ends(site)
    d_acts, d_error, W_dec = other_acts - acts, other_error - error, side.coders[site].W_dec
    out = []
    for example, (position, unit) in enumerate(_picked(side.circuit, site)):
        latents = ((s, unit[position == s][:-1]) for s in range(acts.shape[1]))  # the last is the error
        written = lambda s, units, b=example: d_acts[b, s, units][:, None] * W_dec[units]
        out.append([torch.cat([written(s, units), d_error[example, s][None]]) for s, units in latents])
    return out


def _reads(side: Side, site: str, example: int, position: Tensor, unit: Tensor) -> Tensor:
    """The covectors `[row d_model]` of nodes, times their gradients."""
    import torch

    coder, x, gradient = side.coders[site], side.circuit.clean[site], tensor(side.circuit.gradient[site][example])
    on = coder.encode(tensor(x[example])) > 0
    left = on * (gradient @ coder.W_dec.T)
    errors = gradient - left @ coder.W_enc.T
    latent = unit.clamp(max=left.shape[-1] - 1)
    latents = left[position, latent][:, None] * coder.W_enc[:, latent].T
    return torch.where((unit == left.shape[-1])[:, None], errors[position], latents)

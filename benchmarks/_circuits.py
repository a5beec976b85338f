"""A sparse feature circuit to be found: a GPT-2-shaped model, prompts in pairs, and a dictionary at every site, in numpy.

The wiring is that of Marks et al. 2024 (arXiv 2403.19647, appendix A): every sublayer's output, every block's and the embedding have a
dictionary, and an edge goes from one to another past none.
"""

from typing import NamedTuple

import numpy as np

from ._problems import Blocks, make_blocks


STEPS = 10  # of integrated gradients


class Coder(NamedTuple):
    """A ReLU dictionary: `acts = relu(x W_enc + b_enc)`, `x ≈ acts W_dec`."""

    W_enc: np.ndarray
    b_enc: np.ndarray
    W_dec: np.ndarray

    def encode(self, x: np.ndarray) -> np.ndarray:
        return np.maximum(x @ self.W_enc + self.b_enc, 0)


class Wire(NamedTuple):
    """A direct connection: `source` reaches `target` while the sites `held` are held."""

    source: str
    target: str
    held: tuple[str, ...]


class Pairs(NamedTuple):
    """Prompts `[batch seq]` in pairs, and the two tokens whose logits the metric compares at the last position, clean less corrupt."""

    clean: np.ndarray
    corrupt: np.ndarray
    answer: int
    foil: int


class Rows(NamedTuple):
    """Rows of edges, one for each wire and each node at its target that is above the threshold: `wire` `[row]`, an index, and `node`
    `[row 3]`, the example, position and unit.
    """

    wire: np.ndarray
    node: np.ndarray

    def pick(self, chosen: slice | np.ndarray) -> "Rows":
        return Rows(self.wire[chosen], self.node[chosen])

    def of(self, wire: int) -> np.ndarray:
        """Which rows are those of a wire."""
        return np.flatnonzero(self.wire == wire)


def sites(layers: int) -> tuple[str, ...]:
    """Where the dictionaries are, in execution order."""
    kinds = ("attn_out", "mlp_out", "resid_post")
    return ("hook_embed", *(f"blocks.{layer}.hook_{kind}" for layer in range(layers) for kind in kinds))


def wiring(layers: int) -> tuple[Wire, ...]:
    """All wires, those of a block together, from the middle block outwards: the first few are as deep as all on average."""
    out = []
    for layer in middle_out(layers):
        before = f"blocks.{layer - 1}.hook_resid_post" if layer else "hook_embed"
        attn, mlp, resid = (f"blocks.{layer}.hook_{kind}" for kind in ("attn_out", "mlp_out", "resid_post"))
        out += [Wire(before, attn, ()), Wire(before, mlp, (attn,)), Wire(attn, mlp, ())]
        out += [Wire(before, resid, (attn, mlp)), Wire(attn, resid, (mlp,)), Wire(mlp, resid, ())]
    return tuple(out)


def middle_out(n: int) -> list[int]:
    """`0 … n - 1`, the nearest to the middle first."""
    return sorted(range(n), key=lambda i: (abs(2 * i - n + 1), i))


def make_model(*, layers: int, d_model: int, heads: int, seq: int, vocabulary: int) -> Blocks:
    return make_blocks(d_model=d_model, heads=heads, seq=seq, layers=layers, vocabulary=vocabulary)


def make_pairs(batch: int, seq: int, vocabulary: int, *, seed: int = 5) -> Pairs:
    """Random prompts that differ everywhere, so that every node that is on makes edges."""
    rng = np.random.default_rng(seed)
    clean = rng.integers(0, vocabulary, (batch, seq)).astype(np.int32)
    corrupt = ((clean + rng.integers(1, vocabulary, clean.shape)) % vocabulary).astype(np.int32)
    return Pairs(clean, corrupt, 1, 2)


def make_coders(values: dict[str, np.ndarray], *, d_sae: int, active: int) -> dict[str, Coder]:
    """A dictionary for each site, of which `active` latents a position are on, on average, at `values` `[… seq d_model]`.

    Weights are drawn once for each of the four kinds of sites; biases are each site's own.
    """
    rng, out, drawn = np.random.default_rng(6), {}, {}
    for site, x in values.items():
        kind, x = site.split("hook_")[-1], x.reshape(-1, x.shape[-1])
        if kind not in drawn:
            scale = np.float32(x.shape[-1] ** -0.5)
            random = lambda *shape, scale=scale: scale * rng.standard_normal(shape, np.float32)
            drawn[kind] = random(x.shape[-1], d_sae), random(d_sae, x.shape[-1])
        W_enc, W_dec = drawn[kind]
        out[site] = Coder(W_enc, np.full(d_sae, -np.float32(between((x @ W_enc).ravel(), active * len(x)))), W_dec)
    return out


def between(numbers: np.ndarray, above: int) -> float:
    """What about `above` of them are above, in the middle of the widest gap there, so that rounding decides nothing."""
    near = above // 50 + 1
    first = max(len(numbers) - above - near, 0)
    last = min(first + 2 * near, len(numbers) - 1)
    sorted_there = np.sort(np.partition(numbers, (first, last))[first : last + 1])
    widest = np.argmax(np.diff(sorted_there))
    return float(sorted_there[widest : widest + 2].mean())


def differences(coder: Coder, clean: np.ndarray, corrupt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How latents and error differ, corrupt − clean."""
    acts = coder.encode(corrupt) - coder.encode(clean)
    return acts, corrupt - clean - acts @ coder.W_dec


def node_effects(coder: Coder, acts: np.ndarray, error: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Effects of a site's nodes `[batch seq node]`, given their differences and a gradient there; the error is the last node."""
    return np.concatenate([acts * (gradient @ coder.W_dec.T), (error * gradient).sum(-1, keepdims=True)], axis=-1)


def columns(acts: np.ndarray) -> np.ndarray:
    """The nodes that differ, latents and then the error, as (position, unit), by position, in as many columns as the fullest prompt needs
    `[batch column 2]`; -1 in the others.
    """
    nodes = np.concatenate([acts != 0, np.ones((*acts.shape[:-1], 1), bool)], axis=-1)
    out = np.full((len(acts), nodes.sum(axis=(1, 2)).max(), 2), -1)
    for example, each in enumerate(nodes):
        found = np.argwhere(each)
        out[example, : len(found)] = found
    return out


class Circuit(NamedTuple):
    """All that both sides are given. `clean`, `corrupt` and `gradient`, of the metric at the clean point, `[batch seq d_model]` at every
    site; `effects` and `columns` are those of `node_effects` and `columns`, at every site; `rows` are in random order.
    """

    blocks: Blocks
    pairs: Pairs
    coders: dict[str, Coder]
    clean: dict[str, np.ndarray]
    corrupt: dict[str, np.ndarray]
    gradient: dict[str, np.ndarray]
    effects: dict[str, np.ndarray]
    threshold: float
    wires: tuple[Wire, ...]
    rows: Rows
    columns: dict[str, np.ndarray]

    @property
    def width(self) -> int:
        """How many columns there are at most."""
        return max(each.shape[1] for each in self.columns.values())


def make_circuit(
    blocks: Blocks,
    pairs: Pairs,
    values: tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]],
    *,
    d_sae: int,
    active: int,
    kept: int,
) -> Circuit:
    """The circuit for `values`, clean, corrupt and gradient; of each prompt `kept` nodes a site are above the threshold, on average."""
    clean, corrupt, gradient = values
    both = {site: np.stack([clean[site], corrupt[site]]) for site in clean}
    coders = make_coders(both, d_sae=d_sae, active=active)
    effects, place = {}, {}
    for site, coder in coders.items():
        acts, error = differences(coder, clean[site], corrupt[site])
        effects[site], place[site] = node_effects(coder, acts, error, gradient[site]), columns(acts)
    sizes = np.concatenate([np.abs(each[each != 0]) for each in effects.values()])
    threshold = between(sizes, kept * len(effects) * len(pairs.clean))
    wires = wiring(len(blocks.weights))
    nodes = [np.argwhere(np.abs(effects[wire.target]) > threshold) for wire in wires]
    rows = Rows(np.repeat(np.arange(len(wires)), [len(each) for each in nodes]), np.concatenate(nodes))
    rows = rows.pick(np.random.default_rng(7).permutation(len(rows.wire)))
    return Circuit(blocks, pairs, coders, clean, corrupt, gradient, effects, threshold, wires, rows, place)


def as_table(circuit: Circuit, coo: dict[tuple[str, str], tuple[np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
    """Edges `(target [n 3], source [n 3], value [n])` for each pair of sites as an array `[row column]` of the circuit's rows and columns.
    **Raises:** `ValueError` if there are others.
    """
    ends = {(wire.source, wire.target) for wire in circuit.wires}
    if ends != set(coo):
        raise ValueError(f"edges go between other sites than those of the circuit: {sorted(ends ^ set(coo))}.")
    out = np.zeros((len(circuit.rows.wire), circuit.width), np.float32)
    for i, wire in enumerate(circuit.wires):
        targets, sources, values = coo[wire.source, wire.target]
        mine, place = circuit.rows.of(i), circuit.columns[wire.source]
        row, column = (np.full(circuit.effects[site].shape, -1) for site in (wire.target, wire.source))
        row[tuple(circuit.rows.node[mine].T)] = mine
        there = np.argwhere(place[..., 0] >= 0)
        column[there[:, 0], *place[tuple(there.T)].T] = there[:, 1]
        at = row[tuple(targets.T)], column[tuple(sources.T)]
        if any((index < 0).any() for index in at):
            raise ValueError(
                f"edges from {wire.source} to {wire.target} have ends that are not among the circuit's nodes."
            )
        out[at] = values
    return out

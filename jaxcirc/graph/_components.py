"""The component graph: which heads and MLPs write what which others read, through the residual stream, directly."""

import dataclasses
import functools as ft
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TYPE_CHECKING

import numpy as np
from jaxtyping import Array, Bool, Float

from .._checks import check_choice, check_count
from .._figures import written
from .._run import check_model, NOTHING
from .._shown import Shown
from .._sites import did_you_mean
from ..explorer import Description, figure_of, write_page
from ..models import Transformer
from ._described import check_edges, Component, described
from ._masks import mask_of_names, Named, names_of_mask
from ._slots import iterate_receivers, iterate_senders, LayerShape, Slot


if TYPE_CHECKING:
    from matplotlib.figure import Figure


Embeddings = Literal["joint", "split", "tokens"]


@dataclasses.dataclass(frozen=True, repr=False)
class ComponentGraph(Shown):
    """The residual stream written out as edges: each from a component that adds to it to one that reads it further on.

    **Attributes:**

    - `senders`: `embed`, heads `a0.h1`, MLPs `m0`; with `embeddings="split"` also `pos_embed`, with biases `a0.bias` and `m0.bias`.
    - `receivers`: what each head's query, key and value read, `a0.h1.q`, each MLP `m0`, `logits`. Where heads share keys and values `k`
      and `v` are of the heads that have them, or of each that reads them if they are `"each"`.
    - `edges` `[sender receiver]`: which sender writes before which receiver reads; `[position sender receiver]` with positions.

    Indices into all results over the graph are `graph.sender("m0")`, `graph.receiver("a1.h0.q")`.

    >>> graph = jc.component_graph(model)
    >>> len(graph.senders), len(graph.receivers), graph.n_edges
    (21, 53, 479)
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    has_mlp: bool
    parallel: bool
    embeddings: Embeddings = "joint"
    biases: bool = False
    n_positions: int | None = None

    @ft.cached_property
    def sender_slots(self) -> tuple[Slot, ...]:
        shape = self.n_layers, self.n_heads, self.has_mlp
        return tuple(iterate_senders(*shape, embeddings=1 + (self.embeddings == "split"), biases=self.biases))

    @ft.cached_property
    def receiver_slots(self) -> tuple[Slot, ...]:
        return tuple(iterate_receivers(self.n_layers, self.n_heads, self.n_kv_heads, self.has_mlp))

    @ft.cached_property
    def senders(self) -> tuple[str, ...]:
        return tuple(slot.name for slot in self.sender_slots)

    @ft.cached_property
    def receivers(self) -> tuple[str, ...]:
        return tuple(slot.name for slot in self.receiver_slots)

    @ft.cached_property
    def edges(self) -> Bool[np.ndarray, "*position sender receiver"]:
        after = [slot.written(parallel=self.parallel) for slot in self.sender_slots]
        before = [slot.read(parallel=self.parallel, layers=self.n_layers) for slot in self.receiver_slots]
        edges = np.less.outer(np.array(after), np.array(before))
        if self.n_positions is not None:
            edges = np.broadcast_to(edges, (self.n_positions, *edges.shape))
        edges.setflags(write=False)
        return edges

    @property
    def n_edges(self) -> int:
        return int(self.edges.sum())

    @property
    def n_edges_with_projections(self) -> int:
        """Counts also the edge from each query, key and value input to its own projection, which ACDC (Conmy et al. 2023, arXiv
        2304.14997) has as nodes of their own.
        """
        each = sum(slot.part in ("q", "k", "v") for slot in self.receiver_slots)
        return self.n_edges + each * (self.n_positions or 1)

    def sender(self, name: str) -> int:
        """The index of a sender. **Raises:** `ValueError` for a name that is none."""
        return _index("sender", name, self._sender_index)

    def receiver(self, name: str) -> int:
        """The index of a receiver. **Raises:** `ValueError` for a name that is none."""
        return _index("receiver", name, self._receiver_index)

    def edge(self, name: str) -> tuple[int, int]:
        """The indices of an edge, `"a0.h1->a1.h0.q"`. **Raises:** `ValueError` where there is none of that name."""
        sender, arrow, receiver = name.partition("->")
        if not arrow:
            raise ValueError(f"Expected an edge such as 'm0->logits', got {name!r}.")
        found = self.sender(sender), self.receiver(receiver)
        if not self.edges[(..., *found)].any():
            raise ValueError(
                f"There is no edge {name}: {receiver} reads the residual stream before {sender} writes to it."
            )
        return found

    def mask(self, edges: Iterable[str]) -> Bool[np.ndarray, "*position sender receiver"]:
        """The edges of these names, at every position, or at one: `"m0->logits@5"`. **Raises:** `ValueError` for a name that is none."""
        return mask_of_names(self.named, edges, self.edge)

    def edge_names(self, mask: Bool[np.ndarray, "*position sender receiver"] | None = None) -> list[str]:
        """The names of the edges in a mask, or of all, in order of their senders; those in a mask with positions each with its own.

        **Raises:** `ValueError` for a mask of another graph.
        """
        return names_of_mask(self.named, mask)

    def to_html(
        self,
        path: str | Path,
        scores: Float[Array | np.ndarray, "..."] | None = None,
        *,
        kept: Bool[Array | np.ndarray, "*position sender receiver"] | None = None,
        tokens: Sequence[str] | None = None,
        title: str = "A circuit of components",
        facts: Mapping[str, str] = NOTHING,
    ) -> None:
        """Writes a circuit of the graph as one self-contained page to explore it in: no network, no other file.

        **Arguments:** - `scores`: of each edge, as `jc.edge_attribution` gives them, of one prompt or of a batch, whose mean is shown. -
        `kept`: the edges of the circuit, such as `jc.localisation.select_edges` gives; without it all whose score is not 0. - `tokens`:
        the prompt's, as text, one for each position of a graph with positions. - `title`, `facts`: what the page says of it,
        `facts={"method": "edge attribution", "metric": "logit difference"}`.

        **Raises:** `ValueError` for neither scores nor a circuit, and for those of another graph.

        >>> prompts = jc.data.ioi(tokenizer, 2, seed=0)
        >>> scores = jc.edge_attribution(model, prompts.clean, prompts.corrupt, prompts.metric())
        >>> jc.component_graph(model).to_html("components.html", scores)
        """
        write_page(path, self.described(scores, kept=kept, tokens=tokens, title=title, facts=facts))

    def to_figure(
        self,
        path: str | Path | None = None,
        scores: Float[Array | np.ndarray, "..."] | None = None,
        *,
        kept: Bool[Array | np.ndarray, "*position sender receiver"] | None = None,
        tokens: Sequence[str] | None = None,
        title: str = "A circuit of components",
        facts: Mapping[str, str] = NOTHING,
        most_edges: int = 100,
    ) -> "Figure":
        """Draws the strongest `most_edges` edges of a circuit of the graph, the nodes that they touch and the strongest others.

        **Arguments:** as of `to_html`. - `path`: if given, the picture is also written, by its suffix `.svg`, `.pdf` or `.png`.

        **Returns:** a matplotlib figure, which is part of no global state.

        **Raises:** `ValueError` as `to_html`, and for another suffix.
        """
        check_count("ComponentGraph.to_figure: most_edges", "edges to draw", most_edges, least=0)
        target = written("ComponentGraph.to_figure", path)
        return figure_of(self.described(scores, kept=kept, tokens=tokens, title=title, facts=facts), target, most_edges)

    def described(
        self,
        scores: Float[Array | np.ndarray, "..."] | None = None,
        *,
        kept: Bool[Array | np.ndarray, "*position sender receiver"] | None = None,
        tokens: Sequence[str] | None = None,
        title: str = "A circuit of components",
        facts: Mapping[str, str] = NOTHING,
    ) -> Description:
        """What `to_html` and `to_figure` show; the arguments are theirs."""
        found = check_edges(self.edges, self.axes, scores, kept)
        said = dict(facts) if found.prompts is None else {**facts, "prompts": str(found.prompts)}
        senders = [Component(slot.name, slot.part, slot.layer) for slot in self.sender_slots]
        receivers = [self._owner(i) for i in range(len(self.receivers))]
        apart = self.n_positions is not None
        return described(senders, receivers, found, apart=apart, title=title, facts=said, tokens=tokens)

    def _owner(self, receiver: int) -> tuple[Component, str]:
        """The component that a receiver is an input of, and which; an input that several heads share is a node of its own."""
        slot, readers = self.receiver_slots[receiver], np.flatnonzero(self.reads[:, receiver])
        if slot.part == "logits":
            return Component(slot.name, slot.part, self.n_layers), ""
        if len(readers) > 1:
            return Component(slot.name, "head", slot.layer), slot.part
        owner = self.sender_slots[readers[0]]
        return Component(owner.name, owner.part, owner.layer), slot.part if slot.part in ("q", "k", "v") else ""

    @property
    def of_layer(self) -> LayerShape:
        """How many of the senders and receivers each layer has; they stand one layer behind the other."""
        embeddings = sum(slot.layer < 0 for slot in self.sender_slots)
        senders, receivers = len(self.senders) - embeddings, len(self.receivers) - 1
        return LayerShape(embeddings, senders // self.n_layers, receivers // self.n_layers)

    @property
    def named(self) -> Named:
        """The edges and the names of their ends."""
        return Named(self.edges, self.senders, self.receivers)

    @property
    def of_one_position(self) -> Bool[np.ndarray, "sender receiver"]:
        """The edges at a position, the same at each."""
        return self.edges if self.n_positions is None else self.edges[0]

    @property
    def axes(self) -> str:
        """What the axes of `edges` are, in words."""
        return "[sender receiver]" if self.n_positions is None else "[position sender receiver]"

    @ft.cached_property
    def reads(self) -> Bool[np.ndarray, "sender receiver"]:
        """Through which receivers each sender's own component reads: a head through its query, its key and its value, an MLP through one
        input; none for embeddings and biases, which are given.
        """
        shared_by, reads = self.n_heads // self.n_kv_heads, np.zeros((len(self.senders), len(self.receivers)), bool)
        for number, slot in enumerate(self.receiver_slots):
            if slot.part == "mlp":
                reads[self.sender(slot.name), number] = True
            elif slot.part != "logits":
                heads = 1 if slot.part == "q" else shared_by
                first = self.sender(Slot("head", slot.layer, slot.head * heads).name)
                reads[first : first + heads, number] = True
        reads.setflags(write=False)
        return reads

    @ft.cached_property
    def _sender_index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.senders)}

    @ft.cached_property
    def _receiver_index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.receivers)}


def component_graph(
    model: Transformer,
    *,
    embeddings: Embeddings = "joint",
    biases: bool = False,
    shared: Literal["kv", "each"] = "kv",
    positions: int | None = None,
) -> ComponentGraph:
    """The graph of a model's components: the embedding, heads and MLPs as senders, what heads and MLPs read and the logits as receivers.

    What a component adds to the residual stream is a sender; an edge goes to each receiver further on, past all that lies between. In a
    parallel block attention and MLP read the same stream, so that there is no edge between them. Biases of the outputs belong to no sender
    unless asked for: they are the same in every run.

    **Arguments:**

    - `embeddings`: tokens and learned positions as one sender, `"joint"`; as two, `"split"`; or those of the tokens alone, `"tokens"`, with
      positions that are part of every run, as in Hanna et al. 2024 (arXiv 2403.17806). Of rotary positions there is nothing to split.
    - `biases`: whether biases of attention's and the MLPs' outputs are senders. They matter to ablations that are no runs, such as zero.
    - `shared`: where query heads share keys and values, whether their inputs are one receiver for each head that has them, `"kv"`, or one
      for `"each"` head that reads them, as in the benchmark of Mueller et al. 2025 (arXiv 2504.13151).
    - `positions`: how many tokens the prompts have, for edges at each position apart.

    **Raises:** `ValueError` for another word, or a model whose blocks are not alike.

    >>> jc.component_graph(model, positions=6).edges.shape
    (6, 21, 53)
    """
    check_model(model)
    check_choice("component_graph: embeddings", embeddings, ("joint", "split", "tokens"))
    check_choice("component_graph: shared", shared, ("kv", "each"))
    if positions is not None:
        check_count("component_graph: positions", "positions of the prompts", positions)
    kinds = {(block.mlp is None, block.parallel, len(block.attn.W_Q), len(block.attn.W_K)) for block in model.blocks}
    if len(kinds) > 1:
        raise ValueError(
            f"component_graph: the blocks of {model.name} are not alike: heads, MLP and order must be the same in all."
        )
    if model.W_pos is None and embeddings == "split":
        raise ValueError(
            f"component_graph: {model.name} has no embedding of positions to split off. Use embeddings='joint'."
        )
    return ComponentGraph(
        n_layers=model.n_layers,
        n_heads=model.n_heads,
        n_kv_heads=model.n_heads if shared == "each" else model.n_kv_heads,
        has_mlp=model.blocks[0].mlp is not None,
        parallel=model.blocks[0].parallel and model.blocks[0].mlp is not None,
        embeddings=embeddings,
        biases=biases,
        n_positions=positions,
    )


def _index(kind: str, name: str, numbers: dict[str, int]) -> int:
    if not isinstance(name, str) or name not in numbers:
        hint = did_you_mean(name, numbers) if isinstance(name, str) else ""
        raise ValueError(
            f"Expected a {kind} of the component graph, such as {next(iter(numbers))!r}, got {name!r}. {hint}".rstrip()
        )
    return numbers[name]

"""Batch jobs over the components of a model: heads, MLPs, and the edges between them."""

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from .._checks import check_choice, check_count, check_threshold
from ..attribution import AbstractHeadMethod, check_head_method, Gradient, head_effects
from ..components import direct_effects, Resample, self_repair
from ..data import Prompts
from ..graph import component_graph
from ..jacobian._rules import RULES
from ..models import process_weights, Transformer
from ..patching import edge_attribution
from ._verbs import above, AbstractVerb, Columns, finite, joined, ROW, Saes


_PARTS = ("z", "q", "k", "v")


@dataclasses.dataclass(frozen=True)
class JobOfHeads(AbstractVerb):
    """`jc.head_effects`: a row for each head's output `z`, query, key and value at a position with `|effect| > node_threshold`."""

    name: ClassVar[str] = "heads"
    columns: ClassVar[dict[str, str]] = {"layer": "int", "head": "int", "part": "name", "pos": "int", "effect": "value"}

    method: AbstractHeadMethod = dataclasses.field(default_factory=Gradient)
    node_threshold: float = 0.1

    def __post_init__(self):
        check_head_method(self.name, self.method)
        check_threshold(f"{self.name}: node_threshold", self.node_threshold)

    def names(self, model: Transformer, saes: Saes) -> dict[str, list[str]]:
        return {"part": list(_PARTS)}

    def rows(self, model: Transformer, saes: Saes, prompts: Prompts) -> Columns:
        given = (model, prompts.clean, prompts.corrupt, prompts.metric())
        found = head_effects(*given, method=self.method, mask=prompts.mask)
        parts = []
        for number, part in enumerate(_PARTS):
            values = np.asarray(getattr(found, part))
            index = np.argwhere(above("Effects of heads", values, self.node_threshold))
            columns = dict(zip((ROW, "layer", "head", "pos"), index.T.astype(np.int32), strict=True))
            of_part = np.full(len(index), number, np.int32)
            parts.append(columns | {"part": of_part, "effect": values[tuple(index.T)]})
        return joined(parts)


@dataclasses.dataclass(frozen=True)
class JobOfDirectEffects(AbstractVerb):
    """`jc.direct_effects` at the end of the clean prompt: a row for each component, with what it adds to the answer's logit less the
    foil's; rows of a prompt sum to that difference. `processed` weights, as in publications.
    """

    name: ClassVar[str] = "direct-effects"
    columns: ClassVar[dict[str, str]] = {"component": "name", "effect": "value"}

    processed: bool = True

    def prepared(self, model: Transformer) -> Transformer:
        return process_weights(model) if self.processed else model

    def names(self, model: Transformer, saes: Saes) -> dict[str, list[str]]:
        layers, heads = range(model.n_layers), range(model.n_heads)
        return {
            "component": ["embed", *(f"a{i}.h{j}" for i in layers for j in heads), *(f"m{i}" for i in layers), "biases"]
        }

    def rows(self, model: Transformer, saes: Saes, prompts: Prompts) -> Columns:
        found = direct_effects(model, prompts.clean, prompts.answer, foils=prompts.foil, mask=prompts.mask)
        rows, end = np.arange(len(prompts)), np.asarray(prompts.positions["end"])
        each = [found.embed[:, None], found.heads, found.mlps, found.biases[:, None]]
        at_end = [np.asarray(values)[rows, ..., end].reshape(len(rows), -1) for values in each]
        values = finite("Direct effects", np.concatenate(at_end, axis=1))
        row, component = np.indices(values.shape, np.int32).reshape(2, -1)
        return {ROW: row, "component": component, "effect": values.reshape(-1)}


@dataclasses.dataclass(frozen=True)
class JobOfSelfRepair(AbstractVerb):
    """`jc.self_repair` of the clean prompt, each head by itself with its output on the corrupt one: a row for each head and token, with
    what stands in the result: `direct`, `own`, `backup`, `mlps`, `norm`, `change`, of the true next token's logit. `processed` weights.
    """

    name: ClassVar[str] = "self-repair"
    _values: ClassVar[tuple[str, ...]] = ("direct", "own", "backup", "mlps", "norm", "change")
    columns: ClassVar[dict[str, str]] = {
        **{"layer": "int", "head": "int", "pos": "int"},
        **dict.fromkeys(("direct", "own", "backup", "mlps", "norm", "change"), "value"),
    }

    processed: bool = True

    def prepared(self, model: Transformer) -> Transformer:
        return process_weights(model) if self.processed else model

    def names(self, model: Transformer, saes: Saes) -> dict[str, list[str]]:
        return {}

    def rows(self, model: Transformer, saes: Saes, prompts: Prompts) -> Columns:
        mask = prompts.mask
        with np.errstate(
            divide="ignore", invalid="ignore"
        ):  # of the lines through all tokens, which nobody asks for here
            found = self_repair(model, prompts.clean, Resample(prompts.corrupt, mask=mask), mask=mask)
        used = np.broadcast_to(found.used[:, None, None], found.direct.shape)
        index = np.argwhere(used)
        columns = dict(zip((ROW, "layer", "head", "pos"), index.T.astype(np.int32), strict=True))
        of_each = {name: finite("Effects of ablation", getattr(found, name)[used]) for name in self._values}
        return columns | of_each


@dataclasses.dataclass(frozen=True)
class JobOfEdgeAttribution(AbstractVerb):
    """`jc.edge_attribution`: a row for each edge of `jc.component_graph` with `|effect| > edge_threshold`, from `steps` gradients on the
    way from the clean prompt to the corrupt one, with `derivatives` that are `"exact"`, `"lrp"` or `"detached"`.
    """

    name: ClassVar[str] = "edge-attribution"
    columns: ClassVar[dict[str, str]] = {"sender": "name", "receiver": "name", "effect": "value"}

    steps: int = 1
    edge_threshold: float = 0.02
    derivatives: Literal["exact", "lrp", "detached"] = "exact"

    def __post_init__(self):
        check_count(f"{self.name}: steps", "gradients to integrate", self.steps)
        check_choice(f"{self.name}: derivatives", self.derivatives, RULES)
        check_threshold(f"{self.name}: edge_threshold", self.edge_threshold)

    def names(self, model: Transformer, saes: Saes) -> dict[str, list[str]]:
        graph = component_graph(model)
        return {"sender": list(graph.senders), "receiver": list(graph.receivers)}

    def rows(self, model: Transformer, saes: Saes, prompts: Prompts) -> Columns:
        given = (model, prompts.clean, prompts.corrupt, prompts.metric())
        how = {"steps": int(self.steps), "derivatives": self.derivatives}
        values = np.asarray(edge_attribution(*given, **how, mask=prompts.mask))
        index = np.argwhere(above("Effects of edges", values, self.edge_threshold))
        columns = dict(zip((ROW, "sender", "receiver"), index.T.astype(np.int32), strict=True))
        return columns | {"effect": values[tuple(index.T)]}

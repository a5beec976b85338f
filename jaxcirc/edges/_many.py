"""The strongest edges into many nodes at once."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import check_count, check_list
from .._metrics import Metric
from .._run import NOTHING
from .._sites import BySite, Kind, Site
from .._typing import Keys, Tokens
from ..models import Transformer
from ..nodes import Node
from ..runs import BUDGET, in_groups
from ._dictionaries import Given
from ._into import check_on, sources_of
from ._into_result import EdgesInto
from ._order import Place
from ._question import ask, Question
from ._targets import Target, target_of


if TYPE_CHECKING:
    import pandas as pd


def strongest_edges(
    model: Transformer,
    tokens: Tokens,
    metric: Metric | None,
    nodes: Sequence[Node],
    *,
    k: int = 20,
    order: str = "size",
    saes: Given = NOTHING,
    frozen: Iterable[Site | str] = (),
    activation: str = "post",
    mask: Keys | None = None,
) -> "pd.DataFrame":
    """The `k` first edges into each of many nodes: `jc.edges_into(…).table(k, order=order)` of all, computed for many nodes together.

    **Returns:** a data frame as `EdgesInto.table` gives it, with the number of the target in `nodes` as its first column, `target`.

    **Raises:** as `jc.edges_into`.

    >>> nodes = [jc.Neuron(2, 4, unit) for unit in range(8)]
    >>> len(jc.edges.strongest_edges(model, tokens, jc.LogitDiff(5), nodes, k=3))
    24
    """
    import pandas as pd

    check_count("strongest_edges: k", "edges to list", k)
    settings = {"saes": saes, "frozen": frozen, "activation": activation, "mask": mask}
    found = edges_into_each(model, tokens, metric, nodes, **settings)
    tables = [edges.table(k, order=order) for edges in found]
    return pd.concat(tables, keys=range(len(tables)), names=["target"]).reset_index(0)


def edges_into_each(
    model: Transformer,
    tokens: Tokens,
    metric: Metric | None,
    nodes: Sequence[Node],
    *,
    saes: Given = NOTHING,
    frozen: Iterable[Site | str] = (),
    activation: str = "post",
    mask: Keys | None = None,
) -> list[EdgesInto]:
    """`jc.edges_into` of many nodes, at the price of one run: those of one layer and kind by one program, as many at once as memory is
    budgeted for. Their arrays are NumPy's.

    >>> [edges.activation.shape for edges in jc.edges.edges_into_each(model, tokens, jc.LogitDiff(5), [jc.Neuron(2, 4, 1), jc.Final()])]
    [(), ()]
    """
    nodes = check_list("edges_into_each: nodes", "nodes", nodes)
    question = ask(
        "edges_into_each", model, tokens, metric, nodes, saes=saes, frozen=frozen, activation=activation, mask=mask
    )
    for node in nodes:
        check_on(question, node)
    # What nodes of one kind read, by one program; what they meet where they read the stream at the same place, too.
    alike = lambda number: str(jax.tree.structure(nodes[number]))
    by_place: dict[Place, list[tuple[int, Target]]] = {}
    for _, group in itertools.groupby(sorted(range(len(nodes)), key=alike), key=alike):
        numbers = list(group)
        for number, target in zip(numbers, _targets(question, [nodes[i] for i in numbers]), strict=True):
            by_place.setdefault(target.place, []).append((number, target))
    found: dict[int, EdgesInto] = {}
    for some in by_place.values():
        numbers, targets = zip(*some, strict=True)
        found |= dict(zip(numbers, _meet(question, targets), strict=True))
    return [found[number] for number in range(len(nodes))]


def _targets(question: Question, nodes: Sequence[Node]) -> list[Target]:
    """How nodes of one layer and kind read the stream, as NumPy's arrays."""
    if not jax.tree.leaves(nodes[0]):  # `jc.Final()`: there is one
        return [jax.device_get(target_of(node, question)) for node in nodes]
    place: list[Place] = []

    def read(node):
        target = target_of(node, question)
        place.append(target.place)
        return target[1:]

    stacked = jax.tree.map(lambda *each: np.stack([np.asarray(x) for x in each]), *nodes)
    # As many at once as gradients of all positions fit, and the patterns on their way.
    point = question.point
    each = point.seq * (point.last.shape[1] + 4 * question.model.n_heads * point.seq) * point.last.dtype.itemsize
    found = []
    for numbers in in_groups(len(nodes), each, BUDGET):
        some = jax.device_get(jax.vmap(read)(jax.tree.map(lambda x, n=numbers: x[n], stacked)))
        count = min(len(numbers), len(nodes) - len(found))  # those behind repeat the last
        found += [Target(place[0], *(x[i] for x in some)) for i in range(count)]
    return found


def _meet(question: Question, targets: Sequence[Target]) -> list[EdgesInto]:
    """The edges into targets at one place, on the host: all their rows as those of one gradient meet what is written."""
    rows, gradient = (np.concatenate([target[i] for target in targets]) for i in (1, 2))
    place, scalar = targets[0].place, jnp.zeros((), gradient.dtype)
    parts = []
    for numbers in in_groups(len(rows), _bytes_of_row(question), BUDGET):
        some = sources_of(
            question, Target(place, jnp.asarray(rows[numbers]), jnp.asarray(gradient[numbers]), scalar, scalar)
        )
        parts.append(jax.device_get(some))
    begin, found = 0, []
    for target in targets:
        found.append(_rows_of(parts, len(parts[0].rows), begin, begin + len(target.rows), target))
        begin += len(target.rows)
    return found


def _rows_of(parts: Sequence[EdgesInto], size: int, begin: int, end: int, target: Target) -> EdgesInto:
    """Takes the rows of one target out of edges that are in parts of one size."""
    some = [(parts[n], slice(max(begin - n * size, 0), end - n * size)) for n in range(begin // size, -(-end // size))]

    def of(array: Callable[[EdgesInto], Any], axis: int) -> np.ndarray:
        found = [array(part)[(slice(None),) * (array(part).ndim + axis) + (at,)] for part, at in some]
        return found[0] if len(found) == 1 else np.concatenate(found, axis)

    return EdgesInto(
        rows=target.rows,
        neurons_at_rows=of(lambda part: part.neurons_at_rows, -2),
        heads_at_rows=of(lambda part: part.heads_at_rows, -2),
        latents_at_rows=BySite(
            (s, of(lambda part, s=s: part.latents_at_rows[s], -2)) for s in parts[0].latents_at_rows
        ),
        errors_at_rows=BySite((s, of(lambda part, s=s: part.errors_at_rows[s], -1)) for s in parts[0].errors_at_rows),
        tokens_at_rows=of(lambda part: part.tokens_at_rows, -1),
        positions_at_rows=of(lambda part: part.positions_at_rows, -1),
        biases_at_rows=of(lambda part: part.biases_at_rows, -1),
        gradient_at_rows=target.gradient,
        activation=np.asarray(target.activation),
        derivative=np.asarray(target.derivative),
    )


def _bytes_of_row(question: Question) -> int:
    """How much the edges into one row take, with as much again on the way."""
    point, model = question.point, question.model
    width = sum(values[Kind.MLP_POST].shape[1] for values in point.values if Kind.MLP_POST in values)
    latents = sum(each.d_sae for each in question.dictionaries.values())
    return 2 * point.last.dtype.itemsize * (width + model.n_layers * model.n_heads * point.seq + latents)

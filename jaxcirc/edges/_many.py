"""The strongest edges into many nodes at once."""

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

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
from ..runs import allowance, in_groups
from ._along import edges_along
from ._dictionaries import Given
from ._into import check_on
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
    # What nodes of one kind read, by one program; and what all of them meet, layer by layer.
    alike = lambda number: str(jax.tree.structure(nodes[number]))
    numbers, targets = [], []
    for _, group in itertools.groupby(sorted(range(len(nodes)), key=alike), key=alike):
        some = list(group)
        numbers += some
        targets += _targets(question, [nodes[i] for i in some])
    order = sorted(range(len(targets)), key=lambda i: targets[i].place, reverse=True)
    met = _meet(question, [targets[i] for i in order])
    found = dict(zip((numbers[i] for i in order), met, strict=True))
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
    for numbers in in_groups(len(nodes), each, allowance()):
        some = jax.device_get(jax.vmap(read)(jax.tree.map(lambda x, n=numbers: x[n], stacked)))
        count = min(len(numbers), len(nodes) - len(found))  # those behind repeat the last
        found += [Target(place[0], *(x[i] for x in some)) for i in range(count)]
    return found


def _meet(question: Question, targets: Sequence[Target]) -> list[EdgesInto]:
    """The edges into targets, those furthest on first, on the host: all their rows as those of one gradient meet what is written."""
    rows, gradient = (np.concatenate([target[i] for target in targets]) for i in (1, 2))
    places = [target.place for target in targets for _ in target.rows]
    parts = []
    for group in in_groups(len(rows), _bytes_of_row(question), allowance()):
        given = jnp.asarray(rows[group]), jnp.asarray(gradient[group]), [places[i] for i in group]
        parts.append(jax.device_get(edges_along(question, *given)))
    neurons, heads, biases = (
        _joined([np.stack(part[i]) for part in parts], axis) for i, axis in ((0, 1), (1, 2), (2, 2))
    )
    latents, errors = (
        BySite((site, _joined([part[i][site] for part in parts], 0)) for site in question.dictionaries) for i in (3, 4)
    )
    tokens, positions = (_joined([part[i] for part in parts], 0) for i in (5, 6))
    ends = np.cumsum([len(target.rows) for target in targets])
    found = []
    for target, end in zip(targets, ends, strict=True):
        mine = slice(end - len(target.rows), end)
        found.append(
            EdgesInto(
                rows=target.rows,
                neurons_at_rows=neurons[:, mine],
                heads_at_rows=heads[:, :, mine],
                latents_at_rows=BySite((site, each[mine]) for site, each in latents.items()),
                errors_at_rows=BySite((site, each[mine]) for site, each in errors.items()),
                tokens_at_rows=tokens[mine],
                positions_at_rows=positions[mine],
                biases_at_rows=biases[:, :, mine],
                gradient_at_rows=target.gradient,
                activation=np.asarray(target.activation),
                derivative=np.asarray(target.derivative),
            )
        )
    return found


def _joined(parts: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Puts groups of rows together; one alone is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis)


def _bytes_of_row(question: Question) -> int:
    """How much the edges into one row take, with as much again on the way."""
    point, model = question.point, question.model
    width = sum(values[Kind.MLP_POST].shape[1] for values in point.values if Kind.MLP_POST in values)
    latents = sum(each.d_sae for each in question.dictionaries.values())
    return 2 * point.last.dtype.itemsize * (width + model.n_layers * model.n_heads * point.seq + latents)

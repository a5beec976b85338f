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
from .._sites import Site
from .._typing import Keys, Tokens
from ..models import Transformer
from ..nodes import check_node, Node
from ..runs import BUDGET, in_groups
from ._dictionaries import Given
from ._into import check_on, sources_of
from ._into_result import EdgesInto
from ._question import ask, Question
from ._targets import target_of


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
    settings = {"saes": saes, "frozen": frozen, "activation": activation, "mask": mask}
    question = ask("edges_into_each", model, tokens, metric, None, **settings)
    real = np.ones(len(tokens), bool) if mask is None else np.asarray(mask)
    widths = {site: each.d_sae for site, each in question.dictionaries.items()}
    for node in nodes:
        check_node("edges_into_each", model, node, real, widths)
        check_on(question, node)
    found: dict[int, EdgesInto] = {}
    alike = lambda number: str(jax.tree.structure(nodes[number]))
    for _, group in itertools.groupby(sorted(range(len(nodes)), key=alike), key=alike):
        numbers = list(group)
        found |= dict(zip(numbers, _of_group(question, [nodes[i] for i in numbers]), strict=True))
    return [found[number] for number in range(len(nodes))]


def _of_group(question: Question, nodes: Sequence[Node]) -> list[EdgesInto]:
    """The edges into nodes of one layer and kind, on the host; many of them in one program, as many as the memory is budgeted for."""
    if not jax.tree.leaves(nodes[0]):  # `jc.Final()`: there is one
        return [jax.device_get(sources_of(question, target_of(node, question))) for node in nodes]
    stacked = jax.tree.map(lambda *each: jnp.stack([jnp.asarray(x) for x in each]), *nodes)
    one = lambda node: sources_of(question, target_of(node, question))
    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], stacked))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    found = []
    for places in in_groups(len(nodes), size, BUDGET):
        some = jax.device_get(jax.vmap(one)(jax.tree.map(lambda x, places=places: x[places], stacked)))
        count = min(len(places), len(nodes) - len(found))  # those behind repeat the last
        found += [jax.tree.map(lambda x, i=i: x[i], some) for i in range(count)]
    return found

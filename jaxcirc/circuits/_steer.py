"""Moving chosen nodes, and what the metric does: as the circuit's edges say, and as the model says."""

import functools as ft
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from .._checks import check_list, check_numbers
from .._edits import AbstractEdit, Add
from .._run import run_metric, site_shapes
from .._sites import Site
from .._typing import Progress
from ..models import Transformer
from ..runs import at_once, in_loop, Problem
from ._batches import ArrayBatches
from ._circuit import Circuit
from ._feature_graph import clean_run, held_inputs, nodes_beside


if TYPE_CHECKING:
    import pandas as pd

ALL = "all"


class _Chosen(NamedTuple):
    """The chosen nodes: of each the number of its site, the node there, and the position, -1 for every one."""

    names: list[str]
    sites: tuple[Site, ...]
    site: Int[np.ndarray, " node"]
    unit: Int[np.ndarray, " node"]
    pos: Int[np.ndarray, " node"]


def moved(
    verb: str,
    circuit: Circuit,
    model: Transformer,
    batches: ArrayBatches,
    nodes: Iterable[str],
    strengths: Sequence[float],
    progress: Progress | None,
) -> "pd.DataFrame":
    """Moves nodes, each by itself and then all together, and sets the change of the metric beside what the edges predict: a row for each
    node and strength.
    """
    import pandas as pd

    factors = check_numbers(f"{verb}: strengths", strengths)
    _check_baseline(verb, circuit, batches.problem)
    chosen = _chosen(verb, circuit, nodes)
    measured = _measured(model, batches, chosen, factors, progress or (lambda done, of, stage: None))
    effect = {row.node: row.effect for row in circuit.node_rows()}
    effects = [effect[name] for name in chosen.names]
    effects.append(sum(effects))
    predicted = _predicted(circuit, chosen.names)
    rows = [
        (name, strength, strength * effects[i], strength * predicted[i], measured[i, j])
        for i, name in enumerate([*chosen.names, ALL])
        for j, strength in enumerate(factors)
    ]
    return pd.DataFrame(rows, columns=["node", "strength", "effect", "predicted", "measured"])


def _chosen(verb: str, circuit: Circuit, nodes: Iterable[str]) -> _Chosen:
    """Looks the names up. **Raises:** `ValueError` for none, and for one that the circuit does not have."""
    names = check_list(f"{verb}: nodes", "names of nodes", nodes)
    if not names:
        raise ValueError(
            f"{verb}: no node was named. Give names of the circuit's nodes, such as circuit.node_rows()[0].node."
        )
    part = {row.node: row for row in circuit.subgraph(names).node_rows()}
    names = list(dict.fromkeys(names))
    rows = [part[name] for name in names]
    sites = tuple(sorted({Site.parse(row.site) for row in rows}))
    place = {str(site): number for number, site in enumerate(sites)}
    positions = [-1 if row.pos is None else row.pos for row in rows]
    columns = ([place[row.site] for row in rows], [row.unit for row in rows], positions)
    return _Chosen(names, sites, *(np.array(column, np.int32) for column in columns))


def _check_baseline(verb: str, circuit: Circuit, problem: Problem) -> None:
    """ValueError if the circuit's effects are of going elsewhere than these prompts go."""
    got = "zero" if problem.corrupt is None else "corrupt prompts"
    if (want := circuit.meta.baseline or got) != got:
        raise ValueError(
            f"{verb}: the circuit's effects are those of going to {want}, and these prompts go to {got}. Give corrupt prompts as it was "
            "found, or find it with the same baseline."
        )


def _predicted(circuit: Circuit, names: list[str]) -> list[float]:
    """Sums the edges out of each node, and out of all of them, `[node + 1]`."""
    total = dict.fromkeys(names, 0.0)
    for edge in circuit.edge_rows():
        if edge.source in total:
            total[edge.source] += edge.weight
    each = list(total.values())
    return [*each, sum(each)]


def _measured(
    model: Transformer, batches: ArrayBatches, chosen: _Chosen, strengths: list[float], report: Progress
) -> Float[np.ndarray, "run strength"]:
    """Measures the mean change of the metric when each node is moved, and when all are, `[node + 1 strength]`."""
    n = len(chosen.names)
    members = np.concatenate([np.eye(n, dtype=bool), np.ones((1, n), bool)])
    total = np.zeros((n + 1, len(strengths)))
    dictionaries = {site: batches.problem.saes[site] for site in chosen.sites}
    for i, (part, real) in enumerate(batches):
        report(i, len(batches), "steer")
        clean, values = clean_run(model, dictionaries, part.clean, part.mask)
        if part.corrupt is None:
            others = jax.tree.map(jnp.zeros_like, values)
        else:
            corrupt = clean_run(model, dictionaries, part.corrupt, part.mask)[0]
            others = nodes_beside(dictionaries, corrupt, clean)
        alpha = jnp.asarray(strengths, model.activation_dtype)
        places = tuple(jnp.asarray(column) for column in chosen[2:])
        held = (
            4
            * part.clean.size
            * (sum(sae.d_sae for sae in dictionaries.values()) + model.d_vocab)
            * alpha.dtype.itemsize
        )
        together = at_once(held, on_cpus=1)
        changes = _changes(model, dictionaries, part, values, others, places, jnp.asarray(members), alpha, together)
        total += np.asarray(changes, np.float64)[..., real].sum(-1)
    report(len(batches), len(batches), "steer")
    return total / batches.n


@ft.partial(jax.jit, static_argnames="together")
def _changes(model, saes, problem: Problem, values, others, places, members, strengths, together: int):
    """Runs the prompts with the nodes of each run moved, `together` runs at a time; the metric less the clean one, `[run strength
    batch]`.
    """
    seq = problem.clean.shape[1]
    shapes, (site_of, unit, pos) = site_shapes(model, seq), places
    everywhere = (pos[:, None] == -1) | (pos[:, None] == jnp.arange(seq, dtype=pos.dtype))  # [node seq]

    def one(member, strength, example):
        tokens, keys, metric, before, after = example
        edits: dict[Site, AbstractEdit] = {**held_inputs(model, saes, tokens, keys)}
        for number, (site, sae) in enumerate(saes.items()):
            here = (member & (site_of == number))[:, None] & everywhere & keys
            mask = jnp.zeros((seq, sae.d_sae + 1), bool).at[:, unit].max(here.T, mode="drop")
            acts, error = jax.tree.map(lambda a, b: strength * (b - a), before[site], after[site])
            acts, error = jnp.where(mask[:, :-1], acts, 0), jnp.where(mask[:, -1:], error, 0)
            edits |= {site.acts: Add(acts), site.error: Add(error.reshape(shapes[site].shape))}
        return run_metric(model, metric, tokens, saes=saes, edits=edits, mask=keys)[0]

    examples = (problem.clean, problem.mask, problem.metric, values, others)
    runs = [jnp.repeat(members, len(strengths), axis=0), jnp.tile(strengths, len(members))]
    batch = lambda member, strength: jax.vmap(lambda *example: one(member, strength, example))(*examples)
    clean = batch(jnp.zeros_like(members[0]), jnp.zeros_like(strengths[0]))
    after = in_loop(lambda each: batch(*each), tuple(runs), together)
    return (after - clean).reshape(len(members), len(strengths), -1)

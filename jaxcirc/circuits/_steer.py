"""Moving chosen nodes, and what the metric does: as the circuit's edges say, and as the model says."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_kind, check_list, check_numbers
from .._edits import AbstractEdit, Add
from .._metrics import Metric
from .._run import run_metric, site_shapes
from .._sites import Site
from ..attribution import prepare, Problem
from ..models import Transformer
from ..saes import AbstractDictionary
from ._batches import ArrayBatches, Progress
from ._circuit import Circuit
from ._feature_graph import clean_run, held_inputs, nodes_beside
from ._trial import check_circuit


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


def steer(
    circuit: Circuit,
    model: Transformer,
    saes: Mapping[Site, AbstractDictionary] | Mapping[str, AbstractDictionary],
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"] | None,
    metric: Metric,
    nodes: Iterable[str],
    *,
    strengths: Sequence[float] = (1.0,),
    batch_size: int | None = None,
    mask: Bool[Array, "batch seq"] | None = None,
    progress: Progress | None = None,
) -> "pd.DataFrame":
    r"""Moves nodes, each by itself and then all together, and compares the change of the metric with what the circuit's edges predict.

    At strength $\alpha$ a node moves by $\alpha (a_{corrupt} - a_{clean})$ on every prompt: 1 is activation patching, or with the zero
    baseline ablation, 2 goes as far again, -1 the other way. Everything downstream is computed from there. The prediction is $\alpha$ times
    the sum of the circuit's edges out of the node, to the metric and to its nodes; together, of the edges out of all of them.

    **Arguments:**

    - `circuit`: found with the same baseline: with corrupt prompts, or without.
    - `clean`, `corrupt`, `metric`, `mask`, `batch_size`: as in `jc.discover`. On the prompts of the circuit the prediction is of these
      prompts; on others it is a harder test.
    - `nodes`: names of nodes of the circuit.
    - `strengths`: one run for each of them and each node.

    **Returns:** a data frame, one row for each node and strength, and for `"all"`: `node`, `strength`, `effect` (the node's own times
    strength), `predicted` by the edges, `measured`; all three are changes of the metric, mean over prompts.

    **Raises:** `ValueError` as `jc.evaluate`; for a node that the circuit does not have; for another baseline than the circuit's; for no
    strength at all, or one that is not finite.

    **Reference:** patching and ablation of single features as the check of their effects, Marks et al. 2024, arXiv 2403.19647, §3.

    >>> prompts = jc.data.subject_verb(tokenizer, 8, kind="rc", seed=0)
    >>> arguments = (prompts.clean, prompts.corrupt, prompts.metric())
    >>> circuit = jc.discover(model, saes, *arguments, node_threshold=0.1, edge_threshold=0.001)
    >>> strongest = [node.node for node in circuit.node_rows()[:2]]
    >>> table = jc.steer(circuit, model, saes, *arguments, strongest, strengths=[0.5, 1.0])
    >>> list(table.columns), len(table)
    (['node', 'strength', 'effect', 'predicted', 'measured'], 6)
    """
    import pandas as pd

    check_kind("steer: circuit", circuit, Circuit, "a circuit, as jc.discover gives one")
    problem = prepare(model, saes, clean, corrupt, metric, mask)
    factors = check_numbers("steer: strengths", strengths)
    check_circuit(circuit, model, problem)
    _check_baseline(circuit, problem)
    chosen = _chosen(circuit, nodes)
    batches = ArrayBatches(problem, batch_size, "steer")
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


def _chosen(circuit: Circuit, nodes: Iterable[str]) -> _Chosen:
    names = check_list("steer: nodes", "names of nodes", nodes)
    if not names:
        raise ValueError(
            "steer: no node was named. Give names of the circuit's nodes, such as circuit.node_rows()[0].node."
        )
    part = {row.node: row for row in circuit.subgraph(names).node_rows()}
    names = list(dict.fromkeys(names))
    rows = [part[name] for name in names]
    sites = tuple(sorted({Site.parse(row.site) for row in rows}))
    place = {str(site): number for number, site in enumerate(sites)}
    positions = [-1 if row.pos is None else row.pos for row in rows]
    columns = ([place[row.site] for row in rows], [row.unit for row in rows], positions)
    return _Chosen(names, sites, *(np.array(column, np.int32) for column in columns))


def _check_baseline(circuit: Circuit, problem: Problem) -> None:
    got = "zero" if problem.corrupt is None else "corrupt prompts"
    if (want := circuit.meta.get("baseline", got)) != got:
        raise ValueError(
            f"steer: the circuit's effects are those of going to {want}, and these prompts go to {got}. Give corrupt prompts as it was "
            "found, or find it with the same baseline."
        )


def _predicted(circuit: Circuit, names: list[str]) -> list[float]:
    """The sum of the edges out of each node, and of all of them."""
    total = dict.fromkeys(names, 0.0)
    for edge in circuit.edge_rows():
        if edge.source in total:
            total[edge.source] += edge.weight
    each = list(total.values())
    return [*each, sum(each)]


def _measured(
    model: Transformer, batches: ArrayBatches, chosen: _Chosen, strengths: list[float], report: Progress
) -> Float[np.ndarray, "run strength"]:
    """The mean change of the metric when each node is moved, and when all are."""
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
        changes = _changes(model, dictionaries, part, values, others, places, jnp.asarray(members), alpha)
        total += np.asarray(changes, np.float64)[..., real].sum(-1)
    report(len(batches), len(batches), "steer")
    return total / batches.n


@jax.jit
def _changes(model, saes, problem: Problem, values, others, places, members, strengths):
    """`[run strength batch]`: the metric with the nodes of a run moved, less the clean one."""
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
    after = jax.lax.map(lambda each: batch(*each), tuple(runs))
    return (after - clean).reshape(len(members), len(strengths), -1)

"""Masks of edges trained by gradient, for a share of edges that is given."""

import functools as ft
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_choice, check_count, check_key, check_share
from .._metrics import Metric
from .._traced import check_untraced
from .._typing import Progress
from ..components import AbstractAblation
from ..graph import ComponentGraph
from ..models import Transformer
from ..runs import prepare_prompts, Problem, run_worlds
from ._common import at_all_positions, check_carried, graph_for, others_of
from ._gates import chance_open, sample
from ._trained_masks import TrainedMasks


START = 2.0  # of log alpha: at first nineteen gates in twenty are open
PRICE = 0.3  # by how much the multipliers move for a share that is wrong by 1


def train_masks(
    model: Transformer,
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"] | None,
    metric: Metric,
    *,
    share: float,
    steps: int,
    key: Array,
    objective: Literal["faithful", "least"] = "faithful",
    graph: ComponentGraph | None = None,
    ablation: AbstractAblation | None = None,
    optimizer: Any = None,
    mask: Bool[Array, "batch seq"] | None = None,
    progress: Progress | None = None,
) -> TrainedMasks:
    r"""Trains a gate on every edge, so that a given share of edges does what all do.

    Gates $z \in [0, 1]$ are drawn for each prompt and step from the hard concrete distribution, and are `keep` of `jc.patch_edges`. With
    $s$ the share of gates expected to be open, and $t$ the target, which falls from 1 to `share` in the first half of the steps,

    $$loss = \frac{\sum (m_z - m_{clean})^2}{\sum (m_{corrupt} - m_{clean})^2} + \lambda_1 (s - t) + \lambda_2 (s - t)^2,$$

    where the multipliers $\lambda$ grow by gradient ascent while the share is wrong (a Lagrangian). In the end the edges of the largest
    scores are kept, exactly as many as `share` asks for, so that the circuit is a mask of booleans and its faithfulness is measured.

    **Arguments:**

    - `share`: of all edges to be kept. - `steps`: of the optimizer; a few hundred. - `key`: `jax.random.key(0)`; the outcome is determined
      by it.
    - `objective`: `"faithful"`, as above; or `"least"` for a metric that is a loss, such as `jc.KL`: its mean in place of the squares, as a
      part of its mean on the corrupt prompts.
    - `graph`, `ablation`: as in `jc.patch_edges`; of its conventions this is `"tree"`.
    - `optimizer`: of the package optax; Adam with a rate of 0.1 unless given. - `mask` `[batch seq]`: False for padding.
      - `progress(done, of, stage)` is called on the way.

    All prompts are run at once, and what all senders write is held for every layer: give few prompts, or a small model.

    **Returns:** `TrainedMasks`.

    **Raises:** `ImportError` without optax; `ValueError` as `jc.patch_edges`, for a share that keeps no edge, and where the clean and the
    corrupt metric are equal, so that there is nothing to explain: on each prompt, or for `"least"` on average.

    >>> prompts = jc.data.ioi(tokenizer, 2, seed=0)
    >>> given = model, prompts.clean, prompts.corrupt, prompts.metric()
    >>> found = jc.patching.train_masks(*given, share=0.1, steps=4, key=jax.random.key(0))
    >>> int(found.kept.sum()), found.loss.shape
    (48, (4,))

    **Reference:** the gates are those of Louizos et al. 2018 (arXiv 1712.01312), on edges as in subnetwork probing (Cao et al. 2021, arXiv
    2104.03514) and edge pruning (Bhaskar et al. 2024, arXiv 2406.16778), whose Lagrangian this is.
    """
    who = "train_masks"
    check_untraced(who, model)
    check_carried(who, corrupt, ablation)
    check_share(f"{who}: share", "edges", share)
    check_count(f"{who}: steps", "steps of the optimizer are taken", steps)
    check_choice(f"{who}: objective", objective, ("faithful", "least"))
    check_key(f"{who}: key", key)
    if not (optimizer is None or (hasattr(optimizer, "init") and hasattr(optimizer, "update"))):
        raise TypeError(
            f"{who}: optimizer: expected one of the package optax, such as optax.adam(0.1), got {optimizer!r}."
        )
    optimizer = _adam(who) if optimizer is None else optimizer
    problem = prepare_prompts(model, clean, corrupt, metric, mask)
    model, graph = graph_for(who, model, graph, int(problem.length))
    count = round(share * graph.n_edges)
    if count < 1:
        raise ValueError(f"{who}: a share of {share:g} of {graph.n_edges} edges is none of them. Ask for more.")
    given = _Given(model, problem, others_of(model, graph, problem, ablation)(np.arange(len(problem.clean))))
    full, empty = (_metrics(graph, given, _keep(graph, given, value)) for value in (1.0, 0.0))
    gap, on_average = _gap(np.asarray(full), np.asarray(empty))
    _check_gap(who, on_average if objective == "least" else gap)
    state = _start(model, graph, optimizer)
    losses, shares = [], []
    for step in range(steps):
        target = 1 + (share - 1) * min(1.0, 2 * (step + 1) / steps)
        numbers = jax.random.fold_in(key, step), jnp.asarray(target, model.activation_dtype)
        state, loss, open_share = _step(graph, optimizer, objective, given, full, empty, state, *numbers)
        losses.append(loss)
        shares.append(open_share)
        if progress is not None:
            progress(step + 1, steps, "train masks")
    scores = np.where(graph.edges, np.asarray(chance_open(state.log_alpha)), 0)
    kept = _best(graph, np.asarray(state.log_alpha), count)
    reached = _metrics(graph, given, _keep(graph, given, kept))
    mean = lambda x: float(np.asarray(x).mean())
    history = np.asarray(jnp.stack(losses)), np.asarray(jnp.stack(shares))
    return TrainedMasks(graph, scores, kept, *history, mean(full), mean(empty if on_average else full), mean(reached))


class _Given(NamedTuple):
    """The model, prompts, and what senders write in the other run."""

    model: Transformer
    problem: Problem
    other: Float[Array, "other sender seq d_model"]


class _State(NamedTuple):
    """What is trained, and the optimizer's own."""

    log_alpha: Float[Array, "*position sender receiver"]
    multipliers: Float[Array, "2"]
    optimizer: Any


def _gap(full: Float[np.ndarray, " batch"], empty: Float[np.ndarray, " batch"]) -> tuple[bool, bool]:
    """Whether metrics differ by more than rounding: on any prompt, and on average, which pairs in both directions do not."""
    least, difference = 64 * np.finfo(full.dtype).eps * np.mean(np.abs(full) + np.abs(empty)), full - empty
    return bool(np.abs(difference).max() > least), bool(abs(difference.mean()) > least)


def _check_gap(who: str, there: bool) -> None:
    if not there:
        raise ValueError(
            f"{who}: the metric is the same with all edges and with none, so there is nothing to explain. Give corrupt prompts that change "
            "it; for objective 'least' pairs each in one direction."
        )


def _adam(who: str) -> Any:
    try:
        import optax
    except ImportError:
        raise ImportError(f"{who} takes a package: pip install 'jaxcirc[optax]'.") from None
    return _made(optax.adam)


@ft.cache
def _made(adam: Any) -> Any:
    """The same object each time: programs are kept by it."""
    return adam(0.1)


def _start(model: Transformer, graph: ComponentGraph, optimizer: Any) -> _State:
    log_alpha = jnp.full(graph.edges.shape, START, model.activation_dtype)
    return _State(log_alpha, jnp.zeros(2, model.activation_dtype), optimizer.init(log_alpha))


def _keep(graph: ComponentGraph, given: _Given, value: float | np.ndarray) -> Float[Array, "batch ..."]:
    """The same mask for every prompt."""
    shape = len(given.problem.clean), *graph.edges.shape
    return jnp.broadcast_to(jnp.asarray(value, given.model.activation_dtype), shape)


def _best(graph: ComponentGraph, scores: np.ndarray, count: int) -> Bool[np.ndarray, "*position sender receiver"]:
    """The edges of the largest scores; of equal ones the first."""
    places = np.argwhere(graph.edges)
    chosen = np.argsort(-scores[tuple(places.T)], kind="stable")[:count]
    kept = np.zeros(graph.edges.shape, bool)
    kept[tuple(places[chosen].T)] = True
    return kept


def _metrics_of(graph: ComponentGraph, given: _Given, keep: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
    """The metric of each prompt with its own mask."""
    model, problem, other = given
    weight = jnp.where(graph.edges, 1 - keep, 0)
    weight = at_all_positions(graph, weight, problem.clean.shape[1])
    rows = np.arange(len(problem.clean))
    return run_worlds(model, graph, problem.clean, problem.mask, problem.metric, other, rows, weight)


_metrics = jax.jit(_metrics_of, static_argnames="graph")


@ft.partial(jax.jit, static_argnames=("graph", "optimizer", "objective"))
def _step(
    graph: ComponentGraph, optimizer: Any, objective: str, given: _Given, full, empty, state: _State, key, target
) -> tuple[_State, Float[Array, ""], Float[Array, ""]]:
    """Takes a step down the loss, and up for the multipliers. **Returns:** also the loss, and the share of edges expected to be kept."""

    def total(log_alpha):
        metric = _metrics_of(graph, given, sample(key, log_alpha, len(full)))
        if objective == "faithful":
            loss = ((metric - full) ** 2).sum() / ((empty - full) ** 2).sum()
        else:
            loss = metric.sum() / jnp.abs(empty.sum())
        share = jnp.where(graph.edges, chance_open(log_alpha), 0).sum() / graph.n_edges
        wrong = jnp.stack([share - target, (share - target) ** 2])
        return loss + (state.multipliers * wrong).sum(), (loss, share, wrong)

    gradient, (loss, share, wrong) = jax.grad(total, has_aux=True)(state.log_alpha)
    gradient = jnp.where(graph.edges, gradient, 0)
    with jax.numpy_dtype_promotion("standard"):  # optimizers take powers by their count of steps
        update, optimizer_state = optimizer.update(gradient, state.optimizer, state.log_alpha)
    return _State(state.log_alpha + update, state.multipliers + PRICE * wrong, optimizer_state), loss, share

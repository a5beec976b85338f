"""What the verbs over the component graph share: the graph and the values that it is given, checked, and the writes of the other run."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_count, check_kind
from .._indexing import rows_of
from ..components import AbstractAblation
from ..components._reference import Receivers
from ..graph import component_graph, ComponentGraph
from ..models import check_known, Transformer
from ..runs import allowance, as_graph, in_groups, Problem, sender_writes


T = TypeVar("T", Array, np.ndarray)
Others = Callable[[Int[np.ndarray, " some"]], Float[Array, "some sender seq d_model"]]


def check_carried(who: str, corrupt: object, ablation: object) -> None:
    """**Raises:** `TypeError` for an ablation that is none, `ValueError` where it is not known what patched edges carry."""
    if ablation is not None:
        check_kind(f"{who}: ablation", ablation, AbstractAblation, "jc.Zero(), jc.Mean(tokens) or jc.Resample(tokens)")
    elif corrupt is None:
        raise ValueError(
            f"{who}: without corrupt prompts it is not known what edges carry that are not kept. Give them, or an ablation."
        )


def graph_for(
    who: str, model: Transformer, graph: ComponentGraph | None, seq: int
) -> tuple[Transformer, ComponentGraph]:
    """The model as the graph has it, and the graph: the model's own where none was given.

    **Raises:** `TypeError` for what is no graph; `ValueError` for the graph of another model, or of prompts of another length, and where
    parts of the model are of classes whose weights are not known.
    """
    if graph is None:
        graph = component_graph(model)
    check_kind(f"{who}: graph", graph, ComponentGraph, "a graph as jc.component_graph(model) gives one")
    own = component_graph(model)
    numbers = ("n_layers", "n_heads", "has_mlp", "parallel")
    wrong = [name for name in numbers if getattr(graph, name) != getattr(own, name)]
    if graph.n_kv_heads not in (own.n_kv_heads, own.n_heads):
        wrong.append("n_kv_heads")
    if wrong:
        said = ", ".join(f"{name} {getattr(graph, name)} and not {getattr(own, name)}" for name in wrong)
        raise ValueError(
            f"{who}: the graph is of another model than {model.name}: it has {said}. Make one: jc.component_graph(model)."
        )
    if graph.n_positions not in (None, seq):
        raise ValueError(
            f"{who}: the graph has edges at {graph.n_positions} positions, and the prompts have {seq} tokens."
        )
    check_known(who, model, "attn", "ln1_post", "ln2_post")
    return as_graph(model, graph), graph


def mask_of(what: str, graph: ComponentGraph, given: object) -> Bool[np.ndarray, "*position sender receiver"]:
    """A mask of edges of the graph. **Raises:** `TypeError` for what is none, `ValueError` for one of another shape."""
    if not isinstance(given, (jax.Array, np.ndarray)) or np.dtype(given.dtype) != np.bool_:
        came = f"dtype {given.dtype}" if isinstance(given, (jax.Array, np.ndarray)) else f"a {type(given).__name__}"
        raise TypeError(f"{what}: expected a mask of booleans, as graph.mask([…]) gives one, got {came}.")
    if given.shape != graph.edges.shape:
        raise ValueError(f"{what}: expected a mask {graph.axes}, here {graph.edges.shape}, got {given.shape}.")
    return np.asarray(given)


def others_of(model: Transformer, graph: ComponentGraph, problem: Problem, ablation: AbstractAblation | None) -> Others:
    """What senders write in the other run of some prompts, given by number: on the corrupt prompts, or what an ablation takes.

    **Raises:** `ValueError` where there is no such value, before anything is run.
    """
    if ablation is None:
        tokens, mask = problem.corrupt, problem.mask
        assert tokens is not None
        return lambda rows: sender_writes(model, graph, tokens[rows], mask[rows])
    # Values of other prompts have their positions as the second axis.
    positions_second = lambda x: jnp.swapaxes(x, 1, 2)
    seq, length = problem.clean.shape[1], int(problem.length)
    tokens = problem.clean[:, :length]
    receivers = Receivers(
        model=model,
        tokens=tokens,
        mask=problem.given_mask(),
        others=tokens if problem.corrupt is None else problem.corrupt[:, :length],
        of=lambda tokens, mask: positions_second(sender_writes(model, graph, tokens, mask)),
        zeros=lambda: jnp.zeros((1, seq, len(graph.senders), model.d_model), model.activation_dtype),
        groups=lambda count: prompt_groups(model, graph, count, seq),
    )
    values = ablation.values(receivers)
    return lambda rows: positions_second(values(rows))


def at_all_positions(graph: ComponentGraph, weight: T, seq: int) -> T:
    """The weights of masks at the length at which prompts are run: at padding nothing is read."""
    if graph.n_positions is None:
        return weight
    more = [(0, 0), (0, seq - graph.n_positions), (0, 0), (0, 0)]
    return np.pad(weight, more) if isinstance(weight, np.ndarray) else jnp.pad(weight, more)


def given_budget(who: str, budget: int | None) -> int:
    """The bytes that may be taken, as given or as they suit the device. **Raises:** `ValueError` for fewer than one."""
    budget = allowance(budget)
    check_count(f"{who}: budget", "bytes may be taken", budget)
    return budget


def prompt_groups(
    model: Transformer, graph: ComponentGraph, count: int, seq: int, budget: int | None = None
) -> list[Int[np.ndarray, " group"]]:
    """So many prompts, by number, in groups of which all that senders write fits into a budget of bytes, twice."""
    each = 2 * len(graph.senders) * seq * model.d_model * model.activation_dtype.itemsize
    return in_groups(count, each, allowance(budget))


def some_prompts(problem: Problem, rows: Int[np.ndarray, " some"]) -> tuple:
    """The clean and the corrupt prompts, mask and metric of some, by number."""
    return rows_of((problem.clean, problem.corrupt, problem.mask, problem.metric), rows)


@jax.jit
def difference(one: Array, other: Array) -> Array:
    """By how much what senders write differs in one run from another."""
    return one - other

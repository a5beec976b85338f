"""What each edge of the component graph does by itself, exactly: the run with that one edge patched, of all edges together."""

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._metrics import Metric
from .._traced import check_untraced
from ..components import AbstractAblation
from ..graph import ComponentGraph
from ..models import Transformer
from ..runs import prepare_prompts, record, writes_of
from ._common import check_carried, difference, given_budget, graph_for, mask_of, others_of, prompt_groups, some_prompts
from ._edge_runs import Clean, EdgeRuns, Patches, sites_needed


def exact_edges(
    model: Transformer,
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"] | None,
    metric: Metric,
    *,
    graph: ComponentGraph | None = None,
    ablation: AbstractAblation | None = None,
    edges: Bool[Array | np.ndarray, "..."] | None = None,
    mask: Bool[Array, "batch seq"] | None = None,
    budget: int | None = None,
) -> Float[np.ndarray, "batch *position sender receiver"]:
    r"""What each edge does: how the metric changes if that edge alone carries the corrupt prompt.

    $$effect_{uv} = m\big(x_v \to x_v + u_{corrupt} - u_{clean}\big) - m,$$

    with $x_v$ what a receiver reads in the clean run, and $u$ what a sender writes. This is `jc.patch_edges` with each edge by itself not
    kept, less the clean metric, and what `jc.edge_attribution` estimates. A patched run is the clean one up to the receiver, and only what
    lies behind it is run, from the first position on at which the prompts differ; edges that carry the same in both take no run.

    **Arguments:**

    - `graph`, `ablation`: as in `jc.patch_edges`. With positions each edge is patched at each position by itself.
    - `edges` `[sender receiver]`: those that are wanted, all unless given; with positions `[position sender receiver]`.
    - `mask` `[batch seq]`: False for padding. - `budget`: bytes that variants which are run at once may take,
      unless given those that suit the device.

    **Returns:** `[batch sender receiver]`, in the metric's units; 0 where there is no edge, or none was wanted.

    **Raises:** `ValueError` as `jc.patch_edges`, and for a mask of wanted edges of another shape.

    >>> prompts = jc.data.ioi(tokenizer, 2, seed=0)
    >>> effects = jc.patching.exact_edges(model, prompts.clean, prompts.corrupt, prompts.metric())
    >>> effects.shape
    (2, 21, 53)
    """
    who = "exact_edges"
    check_untraced(who, model)
    check_carried(who, corrupt, ablation)
    budget = given_budget(who, budget)
    problem = prepare_prompts(model, clean, corrupt, metric, mask)
    model, graph = graph_for(who, model, graph, int(problem.length))
    wanted = graph.edges if edges is None else graph.edges & mask_of(f"{who}: edges", graph, edges)
    others = others_of(model, graph, problem, ablation)
    batch, seq = problem.clean.shape
    found = []
    for rows in prompt_groups(model, graph, batch, seq, budget):
        own, _, real, of_rows = some_prompts(problem, rows)
        run = record(model, own, real, sites_needed(model), metric=of_rows)
        moved = difference(others(rows), writes_of(model, graph, run))
        once = np.diff(rows, prepend=-1) > 0  # the last prompt may fill up its group
        found.append(_effects(model, graph, of_rows, Clean(run, moved), wanted, once, budget))
    return np.concatenate(found)[:batch]


def _effects(
    model: Transformer,
    graph: ComponentGraph,
    metric: Metric,
    clean: Clean,
    wanted: Bool[np.ndarray, "*position sender receiver"],
    once: Bool[np.ndarray, " batch"],
    budget: int,
) -> Float[np.ndarray, "batch *position sender receiver"]:
    """Patches the edges of some prompts that are wanted and carry anything, and puts their effects where they belong."""
    differs = np.swapaxes(np.asarray(_differs(clean.moved)), 1, 2)  # [batch seq sender]
    carries = np.any(differs, axis=1) if graph.n_positions is None else differs[:, : graph.n_positions]
    places = np.nonzero(carries[..., None] & wanted & once.reshape(-1, *[1] * wanted.ndim))
    rows, senders, receivers = places[0], places[-2], places[-1]
    first = differs.argmax(1)[rows, senders] if graph.n_positions is None else places[1]
    patches = Patches(rows, np.full(len(rows), -1) if graph.n_positions is None else places[1], senders, receivers)
    before = np.asarray(clean.run.metric)
    effects = np.zeros((len(once), *wanted.shape), before.dtype)
    for numbers, after in EdgeRuns(model, graph, metric, clean, budget).run(patches, first):
        effects[tuple(x[numbers] for x in places)] = np.asarray(after) - before[rows[numbers]]
    return effects


@jax.jit
def _differs(moved: Float[Array, "batch sender seq d_model"]) -> Bool[Array, "batch sender seq"]:
    return (moved != 0).any(-1)

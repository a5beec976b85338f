"""Edge patching: a run in which some edges of the component graph carry what they carry in another run."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_choice
from .._metrics import Metric
from ..components import AbstractAblation
from ..graph import ComponentGraph
from ..models import Transformer
from ..runs import bytes_of_variant, in_groups, prepare_prompts, run_worlds, sender_writes
from ._common import at_all_positions, check_carried, given_budget, graph_for, others_of, prompt_groups, some_prompts


Convention = Literal["tree", "edge"]


def patch_edges(
    model: Transformer,
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"] | None,
    metric: Metric,
    keep: Bool[Array | np.ndarray, "..."] | Float[Array | np.ndarray, "..."],
    *,
    graph: ComponentGraph | None = None,
    ablation: AbstractAblation | None = None,
    convention: Convention = "tree",
    mask: Bool[Array, "batch seq"] | None = None,
    budget: int | None = None,
) -> Float[Array, "*masks batch"]:
    r"""The metric of the model in which only the edges that are kept carry the clean prompt.

    Receiver $v$ reads

    $$x_v = r_v + \sum_u (1 - keep_{uv}) (u_{other} - u),$$

    with $r_v$ the residual stream of this very run, $u$ what sender $u$ writes in it, and $u_{other}$ what it writes on the corrupt prompt.
    What a sender writes depends on what it reads, so patches compose. With all edges kept this is the clean run, with none the corrupt one.
    Biases are no senders unless the graph has them.

    **Arguments:**

    - `clean`, `corrupt` `[batch seq]`: pairs of prompts of one length, aligned position by position.
    - `keep` `[sender receiver]`: which edges are kept, as booleans, or how much of each; any leading axes are of masks run one beside the
      other. Entries that are no edge are not read. It may be traced: the gradient at all kept is the attribution of the edges.
    - `graph`: as `jc.component_graph` gives one; with positions `keep` is `[position sender receiver]`.
    - `ablation`: what an edge carries that is not kept, if that is not the corrupt prompt: `jc.Zero()`, `jc.Mean(…)`, `jc.Resample(…)`.
      `corrupt` may then be `None`.
    - `convention`: `"tree"` runs the clean prompt, and an edge that is not kept carries what its sender writes when the corrupt prompt is
      run by itself. `"edge"` runs the corrupt prompt, and an edge that is kept carries what its sender writes when the clean prompt is. So
      kept edges compose in the first, and the others in the second.
    - `budget`: bytes that variants which are run at once may take, unless given those that suit the device.

    **Returns:** `[*masks batch]`, in the metric's units.

    **Raises:** `ValueError` for prompts of unequal length, masks of another shape or with NaN, a graph of another model, and the convention
    `"edge"` with an ablation.

    >>> prompts = jc.data.ioi(tokenizer, 2, seed=0)
    >>> graph = jc.component_graph(model)
    >>> keep = graph.edges & ~graph.mask(["embed->logits"])
    >>> jc.patch_edges(model, prompts.clean, prompts.corrupt, prompts.metric(), keep).shape
    (2,)

    **Reference:** the two conventions are those of Miller et al. 2024 (arXiv 2407.08734, AutoCircuit's `TREE_PATCH` and `EDGE_PATCH`); the
    first is also that of ACDC (Conmy et al. 2023, arXiv 2304.14997) and of Mueller et al. 2025 (arXiv 2504.13151). Behind a norm that
    follows a sublayer, a head's part is what that norm makes of it at the scale of the run it is of.
    """
    who = "patch_edges"
    check_choice(f"{who}: convention", convention, ("tree", "edge"))
    budget = given_budget(who, budget)
    check_carried(who, corrupt, ablation)
    if convention == "edge" and ablation is not None:
        raise ValueError(
            f"{who}: the convention 'edge' runs the corrupt prompt, and an ablation is no run. Use convention='tree' with it."
        )
    problem = prepare_prompts(model, clean, corrupt, metric, mask)
    model, graph = graph_for(who, model, graph, int(problem.length))
    keep = _checked(keep, graph, model)
    masks, flat = keep.shape[: keep.ndim - graph.edges.ndim], keep.reshape(-1, *graph.edges.shape)
    weight = jnp.where(graph.edges, 1 - flat if convention == "tree" else flat, 0)
    batch, seq = problem.clean.shape
    weight = at_all_positions(graph, weight, seq)
    others = others_of(model, graph, problem, ablation) if convention == "tree" else None
    found, each = [], bytes_of_variant(model, graph, seq)
    for rows in prompt_groups(model, graph, batch, seq, budget):
        own, other, real, of_rows = some_prompts(problem, rows)
        carried = sender_writes(model, graph, own, real) if others is None else others(rows)
        lives = own if others is not None else other
        values = []
        for numbers in in_groups(len(flat) * len(rows), each, budget):
            which, of = np.divmod(numbers, len(rows))
            values.append(run_worlds(model, graph, lives, real, of_rows, carried, of, weight[which]))
        found.append(jnp.concatenate(values)[: len(flat) * len(rows)].reshape(len(flat), len(rows)))
    return jnp.concatenate(found, axis=1)[:, :batch].reshape(*masks, batch)


def _checked(keep, graph: ComponentGraph, model: Transformer) -> Float[Array, "..."]:
    """The masks as numbers. **Raises:** `TypeError` for what are no masks, `ValueError` for another shape or NaN."""
    if not isinstance(keep, (jax.Array, np.ndarray)):
        raise TypeError(f"patch_edges: keep is an array of booleans or of numbers, got a {type(keep).__name__}.")
    shape, wanted = jnp.shape(keep), graph.edges.shape
    if shape[len(shape) - len(wanted) :] != wanted:
        raise ValueError(
            f"patch_edges: keep is of shape {graph.axes}, here {wanted}, behind axes over masks; got {shape}. Indices are "
            "graph.sender(name) and graph.receiver(name)."
        )
    if 0 in shape:
        raise ValueError(f"patch_edges: keep holds no mask, it is of shape {shape}. Give one or more.")
    kind = jnp.result_type(keep)
    if not (kind == jnp.bool_ or jnp.issubdtype(kind, jnp.floating)):
        raise TypeError(f"patch_edges: keep is an array of booleans or of floating-point numbers, got dtype {kind}.")
    if not isinstance(keep, Tracer) and not np.isfinite(np.asarray(keep, np.float64)).all():
        raise ValueError("patch_edges: keep holds NaN or infinity. Give numbers from 0, not kept, to 1, kept.")
    return jnp.asarray(keep).astype(model.activation_dtype)

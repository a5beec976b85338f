"""Edge attribution: what patching each edge of the component graph would do, by gradients at what receivers read."""

import functools as ft
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_choice
from .._edits import Detach
from .._metrics import Metric
from .._sites import Kind, Site
from ..attribution import IntegratedGradients
from ..attribution._vanishing import check_gradient
from ..components import AbstractAblation
from ..edges._question import check_frozen
from ..graph import ComponentGraph
from ..jacobian._rules import ruled, RULES
from ..models import Transformer
from ..runs import (
    bytes_of_way_back,
    in_groups,
    metric_of_variants,
    prepare_prompts,
    receiver_gradients,
    record_moves,
    Recorded,
    repeated,
    shortened,
)
from ._common import check_carried, given_budget, graph_for, others_of, prompt_groups, some_prompts


INSTEAD = "jc.patching.exact_edges, which takes none, or more steps, as steps=5, whose gradients are taken on the way to the other run."


def edge_attribution(
    model: Transformer,
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"] | None,
    metric: Metric,
    *,
    steps: int = 1,
    rule: str = "left",
    start: str = "clean",
    along: Literal["inputs", "activations"] = "inputs",
    derivatives: Literal["exact", "lrp", "detached"] = "exact",
    graph: ComponentGraph | None = None,
    ablation: AbstractAblation | None = None,
    frozen: Iterable[Site | str] = (),
    mask: Bool[Array, "batch seq"] | None = None,
    budget: int | None = None,
) -> Float[Array, "batch *position sender receiver"]:
    r"""An estimate of what each edge does: how the metric would change if that edge alone carried the corrupt prompt.

    $$score_{uv} = \sum_p \big(u_{corrupt} - u_{clean}\big)_p \cdot \bar g_{v,p}, \qquad
    \bar g_v = \sum_k w_k \frac{\partial m}{\partial x_v}\Big|_{\alpha_k},$$

    with $u_p$ `[d_model]` what a sender writes at a position, and $x_v$ what a receiver reads, its norm behind it. A positive score is an
    edge whose patch raises the metric, as for all effects here: **corrupt − clean**. The benchmark of Mueller et al. 2025 ranks by a metric
    that is a loss, so that its scores have the other sign.

    **Arguments:**

    - `steps`, `rule`, `start`: where gradients are taken, as in `jc.IntegratedGradients`. The default, one at the clean prompt, is edge
      attribution patching (Syed et al. 2023, arXiv 2310.10348). `steps=5, rule="left", start="corrupt"` is EAP-IG as published (Hanna et
      al. 2024, arXiv 2403.17806); `rule="midpoint"` integrates as many steps with less error. `steps=2, rule="trapezoid"` is the mean of
      the gradients at the clean and at the corrupt prompt.
    - `along`: what moves on the way. `"inputs"`: what is embedded, and all else follows. `"activations"`: for each sublayer what it writes,
      and all behind follows; an edge gets the gradients of its own sender's way. It takes a way back for each sublayer and step.
    - `graph`, `ablation`: as in `jc.patch_edges`. With positions the scores are of each position.
    - `derivatives`: `"exact"`, or `"lrp"` to propagate relevance as RelP does (Jafari et al. 2025, arXiv 2508.21258): norm scales and
      patterns are held, activation functions are a held quotient times what they read, and of a product of two activations, as in a gated
      MLP, each factor passes half. `"detached"` holds a gated MLP's gate instead.
    - `frozen`: sites held on the way back besides, as in `jc.edge`.
    - `mask` `[batch seq]`: False for padding. - `budget`: bytes that variants which are run at once may take,
      unless given those that suit the device.

    Memory: for each prompt what senders write, in both runs, and for one layer what its receivers read; no input is copied for a head in
    any other layer.

    **Returns:** `[batch sender receiver]`, in the metric's units; 0 where there is no edge.

    **Raises:** `ValueError` as `jc.patch_edges`, for sites to hold that are on the way of the edges themselves, and where the metric has no
    gradient at the clean prompts.

    >>> prompts = jc.data.ioi(tokenizer, 2, seed=0)
    >>> scores = jc.edge_attribution(model, prompts.clean, prompts.corrupt, prompts.metric())
    >>> scores.shape
    (2, 21, 53)

    The reference implementation's way along activations averages, for every edge, over the ways of all sublayers; this one does not.
    """
    who = "edge_attribution"
    path = IntegratedGradients(steps, rule, start)
    check_choice(f"{who}: along", along, ("inputs", "activations"))
    check_choice(f"{who}: derivatives", derivatives, RULES)
    budget = given_budget(who, budget)
    check_carried(who, corrupt, ablation)
    problem = prepare_prompts(model, clean, corrupt, metric, mask)
    model, graph = graph_for(who, model, graph, int(problem.length))
    given = check_frozen(who, model, frozen)
    model, ruled_out = ruled(model, derivatives)
    held = {site: Detach() for site in {*given, *ruled_out}}
    others = None if ablation is None else others_of(model, graph, problem, ablation)
    fractions, weights = (x.astype(model.activation_dtype) for x in path.points())
    batch, seq = problem.clean.shape
    each, parts, totals = bytes_of_way_back(model, graph, seq), [], []
    at_clean = not fractions.any()
    if at_clean:  # nothing moves on any way
        fractions, weights = fractions[:1], weights.sum(keepdims=True)
    ways = _ways(model, graph, "inputs" if at_clean else along)
    cuts = [way.cut for way in ways]
    if at_clean:
        cuts = [Site(layer, Kind.RESID_PRE) for layer in range(model.n_layers + 1)]
    sites = {cut for cut in cuts if cut.layer != model.n_layers}
    for rows in prompt_groups(model, graph, batch, seq, budget):
        own, other, real, of_rows = some_prompts(problem, rows)
        run, moved, after = record_moves(
            model, graph, own, other if others is None else others(rows), real, sites, of_rows
        )
        if at_clean:
            after = _all_moved(model, run, moved, of_rows) if after is None else after
            totals.append(after - run.metric)
        masks, entering = run.masks, {cut: run.at_cut(cut) for cut in cuts}
        scores = jnp.zeros((len(rows), *_shape(graph, seq)), model.activation_dtype)
        for way in ways:
            for some in in_groups(len(fractions), len(rows) * each, budget):
                once = np.where(repeated(some), 0, weights[some])
                variants = np.tile(np.arange(len(rows)), len(some))
                resid = list(entering.values())
                if not at_clean:
                    resid = _on_the_way(entering[way.cut], moved, way.moves, fractions[some])
                back = receiver_gradients(model, graph, of_rows, masks, way.cut, variants, resid, held)
                for first, gradient in back:
                    scores = _added(graph, scores, moved, gradient, once, way.scores, np.asarray(first, np.int32))
        parts.append(scores)
    found = jnp.concatenate(parts)[:batch]
    found = shortened(found, int(problem.length)) if graph.n_positions is not None else found
    found = jnp.where(graph.edges, found, 0)
    if at_clean and not isinstance(found, Tracer):
        sizes, total = np.abs(np.asarray(found)).sum(tuple(range(1, found.ndim))), jnp.concatenate(totals)[:batch]
        check_gradient(model, problem, found=sizes, total=total, instead=INSTEAD)
    return found


def _all_moved(
    model: Transformer, run: Recorded, moved: Float[Array, "batch sender seq d_model"], metric: Metric
) -> Float[Array, " batch"]:
    """The metric where the logits read of every sender what it writes in the other run."""
    every, whole = np.ones(moved.shape[1], moved.dtype), np.ones(1, moved.dtype)
    return metric_of_variants(
        model.without_blocks, metric, np.arange(len(moved)), _on_the_way(run.last, moved, every, whole)
    )


class _Way(NamedTuple):
    """From where to run with what some senders write moved, and which senders' edges get the gradients found: `moves` and `scores`
    `[sender]` say which, as numbers.
    """

    cut: Site
    moves: Float[np.ndarray, " sender"]
    scores: Float[np.ndarray, " sender"]


def _ways(model: Transformer, graph: ComponentGraph, along: str) -> list[_Way]:
    layers = np.array([slot.layer for slot in graph.sender_slots])
    embedded = (layers < 0).astype(model.activation_dtype)
    first = Site(0, Kind.RESID_PRE)
    if along == "inputs":
        return [_Way(first, embedded, np.ones_like(embedded))]
    return [_Way(first, embedded, embedded), *_sublayers(model, graph, layers)]


def _sublayers(model: Transformer, graph: ComponentGraph, layers: np.ndarray) -> Iterator[_Way]:
    """Yields a way for each sublayer, from where all that it writes has arrived."""
    attention = np.array([slot.part in ("head", "bias") for slot in graph.sender_slots])
    for layer, block in enumerate(model.blocks):
        for of_attention in (True, False) if graph.has_mlp else (True,):
            inside = of_attention and block.has_middle
            cut = Site(layer, Kind.RESID_MID) if inside else Site(layer + 1, Kind.RESID_PRE)
            mine = ((layers == layer) & (attention == of_attention)).astype(model.activation_dtype)
            yield _Way(cut, mine, mine)


def _shape(graph: ComponentGraph, seq: int) -> tuple[int, ...]:
    positions = () if graph.n_positions is None else (seq,)
    return (*positions, len(graph.senders), len(graph.receivers))


@jax.jit
def _on_the_way(
    resid: Float[Array, "batch seq d_model"], moved: Float[Array, "batch sender seq d_model"], senders, fractions
) -> Float[Array, "variant seq d_model"]:
    """The stream with fractions of what some senders moved added: all prompts at the first fraction, then at the next."""
    # [sender] · [batch sender seq d_model] -> [batch seq d_model]
    change = jnp.einsum("u,butm->btm", senders, moved)
    return (resid + fractions[:, None, None, None] * change).reshape(-1, *resid.shape[1:])


@ft.partial(jax.jit, static_argnames="graph", donate_argnames="scores")
def _added(graph: ComponentGraph, scores, moved, gradient, weights, senders, first):
    """Adds the scores of edges from some senders into receivers from `first` on, given gradients on the way and their weights."""
    of_each = gradient.reshape(len(weights), -1, *gradient.shape[1:])
    if len(weights) == 1:
        mean, senders = of_each[0], senders * weights
    else:
        # [fraction] · [fraction batch receiver seq d_model] -> [batch receiver seq d_model]
        mean = jnp.einsum("a,abvtm->bvtm", weights, of_each)
    if graph.n_positions is None:
        # Positions and d_model as one axis: over two the product would take copies of both sides, in another order.
        flat = lambda x: x.reshape(*x.shape[:2], -1)
        # [batch sender seq*d_model] · [batch receiver seq*d_model] -> [batch sender receiver]
        product = jnp.einsum("bui,bvi->buv", flat(moved), flat(mean))
    else:
        # [batch sender seq d_model] · [batch receiver seq d_model] -> [batch seq sender receiver]
        product = jnp.einsum("butm,bvtm->btuv", moved, mean)
    so_far = jax.lax.dynamic_slice_in_dim(scores, first, product.shape[-1], axis=-1)
    return jax.lax.dynamic_update_slice_in_dim(scores, so_far + senders[:, None] * product, first, axis=-1)

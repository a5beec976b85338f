"""Path patching: what a sender does to the metric by way of some receivers alone."""

import functools as ft
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_choice, check_count
from .._edits import Blend, Replace
from .._metrics import Metric
from .._run import metric_of_last, only_position
from .._sites import Kind, Site
from .._traced import check_untraced
from ..components._written import final_scale
from ..graph import ComponentGraph
from ..graph._slots import Slot
from ..models import Transformer
from ..runs import (
    in_groups,
    lengthened,
    metric_from,
    prepare_prompts,
    record_moves,
    Recorded,
    resume,
    rounded_up,
    TOKENS_AT_ONCE,
    windows_of,
)
from ..runs._positions import Positions, where_of
from ._common import graph_for, prompt_groups, some_prompts
from ._path_ends import chain_of, Group, groups_of
from ._stages import (
    added,
    Change,
    Enters,
    Given,
    Part,
    Read,
    read_stage,
    senders_of,
    sites_read,
    Stage,
    stage_of,
    sum_of,
    written_by,
)


def path_patch(
    model: Transformer,
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"],
    metric: Metric,
    *,
    receivers: Sequence[str] | Sequence[Sequence[str]],
    senders: Sequence[Group] | None = None,
    mlps: Literal["frozen", "recomputed"] = "frozen",
    norms: Literal["live", "frozen"] = "live",
    positions: Positions | None = None,
    receiver_positions: Positions | None = None,
    graph: ComponentGraph | None = None,
    mask: Bool[Array, "batch seq"] | None = None,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> Float[Array, "sender batch"]:
    r"""The metric with what a sender writes on the corrupt prompt put in along one path: directly into the receivers, and on from there.

    Each receiver $v$ reads $x_v + \sum_{u} (u_{corrupt} - u_{clean})$, the sum over what is sent; everything else between is held at the
    clean run. Behind the last receivers all is recomputed from what they then write.

    **Arguments:**

    - `receivers`: names of the component graph, `["a9.h9.q", "a9.h6.q"]`, `["logits"]`, `["m11"]`; or a chain of such lists: what the first
      write is sent on to the second, and so on. A chain that ends in `["logits"]` holds all that is not on the path, also behind.
    - `senders`: names, or tuples of names that are patched together, a run for each. `None` for every sender of the graph; one that does
      not reach the receivers leaves the metric as it is.
    - `mlps`: `"frozen"` at the clean run, or `"recomputed"`, so that a path passes through MLPs too, but through no attention; one that is
      a sender, or a receiver of the stage before, writes what is sent.
    - `norms`: whether the receivers' norms divide by what they now read, `"live"`, or by what they did in the clean run, `"frozen"`.
    - `positions`: at which the senders are patched: one for all, `[batch]` one a prompt, `[batch k]` several, negative from the end;
      `None` for all. - `receiver_positions`: at which the receivers read it, of the last and of all before in a chain.
    - `graph`: as `jc.component_graph` gives one. - `mask` `[batch seq]`: False for padding.
    - `tokens_at_once`: how many tokens are in flight; it changes memory and time only.

    To put clean values into corrupt runs, exchange the prompts; the metric stays that of the answers.

    **Returns:** `[sender batch]`, in the metric's units.

    **Raises:** `ValueError` for names that are none, a sender asked for that does not reach the receivers, a chain that does not go on from
    its receivers, positions outside the prompts, and as `jc.patch_edges`.

    >>> prompts = jc.data.ioi(tokenizer, 2, seed=0)
    >>> found = jc.path_patch(model, prompts.clean, prompts.corrupt, prompts.metric(), receivers=["a3.h0.q", "a3.h1.q"])
    >>> found.shape
    (21, 2)

    **Reference:** Wang et al. 2022 (arXiv 2211.00593, appendix B) has `mlps="recomputed"`; Goldowsky-Dill et al. 2023 (arXiv 2304.05969)
    hold all but the path, `mlps="frozen"` and a chain to the logits. With `norms="frozen"` the direct path is linear, as in the
    demonstrations of TransformerLens.
    """
    who = "path_patch"
    check_untraced(who, model)
    check_choice(f"{who}: mlps", mlps, ("frozen", "recomputed"))
    check_choice(f"{who}: norms", norms, ("live", "frozen"))
    check_count(f"{who}: tokens_at_once", "tokens are run at once", tokens_at_once)
    if corrupt is None:
        raise ValueError(f"{who}: without corrupt prompts it is not known what is sent. Give them.")
    problem = prepare_prompts(model, clean, corrupt, metric, mask)
    length = int(problem.length)
    model, graph = graph_for(who, model, graph, length)
    chain = chain_of(who, graph, receivers)
    groups = groups_of(who, graph, senders, chain[0])
    real, (batch, seq) = problem.given_mask(), problem.clean.shape
    where = lambda name, given: lengthened(where_of(f"{who}: {name}", given, real), seq, False)
    sent, read_at = where("positions", positions), where("receiver_positions", receiver_positions)
    stages = [stage_of(graph, stage) for stage in chain]
    reached = np.flatnonzero((groups @ graph.of_one_position[:, chain[0]]).any(1))
    most = int(groups[reached].sum(1).max(initial=1))
    wanted = sites_read(model, stages, norms=norms == "frozen")
    found = np.zeros((len(groups), batch), model.activation_dtype)
    for rows in prompt_groups(model, graph, batch, seq):
        own, other, keys, of_rows = some_prompts(problem, rows)
        run, moved, _ = record_moves(model, graph, own, other, keys, wanted, of_rows)
        moved = _sent_at(moved, sent[rows])
        found[:, rows] = np.asarray(run.metric)
        count = len(reached) * len(rows)
        ways = _Paths(
            *(model, graph, run, of_rows, stages, sent[rows], read_at[rows]),
            *(most, count, mlps == "recomputed", norms == "frozen"),
        )
        for numbers in in_groups(count, seq, tokens_at_once) if count else ():
            which, of = np.divmod(numbers, len(rows))
            members = groups[reached[which]].astype(model.activation_dtype)
            found[reached[which], rows[of]] = np.asarray(ways.metric(moved, members, of))
    return jnp.asarray(found)


class _Paths(NamedTuple):
    """The paths of one group of prompts, whose clean run is known: through which stages, where senders are patched, where receivers read,
    how many senders are patched together at most, how many variants there are, whether MLPs are computed anew on the way, and whether norms
    divide as in the clean run.
    """

    model: Transformer
    graph: ComponentGraph
    run: Recorded
    of_prompts: Metric
    stages: list[Stage]
    sent: Bool[np.ndarray, "batch seq"]
    where: Bool[np.ndarray, "batch seq"]
    most: int
    variants: int
    recompute: bool
    norms: bool

    def metric(
        self, moved: Float[Array, "batch sender seq d_model"], members: Float[np.ndarray, "variant sender"], rows
    ) -> Float[Array, " variant"]:
        """The metric of variants of prompts `rows`, each with what some senders moved sent along the path."""
        enters = lambda parts: self._sent(moved, members, rows, parts)
        stages = iter(self.stages)
        read = self._read(next(stages), enters, lambda layer: self._given(members, rows, layer), rows)
        for stage in stages:
            written = written_by(self.model, self.run, read, rows)
            of_parts = lambda parts, written=written: ft.reduce(sum_of, map(written.get, parts), None)
            given = lambda layer, before=read: self.where[rows] if layer in before.mlps else None
            read = self._read(stage, of_parts, given, rows)
        return self._behind(self.stages[-1], read, rows)

    def _read(self, stage: Stage, enters: Enters, given: Given, rows) -> Read:
        how = {"recompute": self.recompute, "norms": self.norms}
        return read_stage(self.model, self.run, stage, enters, given, rows, self.where, **how)

    def _given(self, members, rows, layer: int) -> Bool[np.ndarray, "variant seq"] | None:
        """Where the MLP of a layer is itself a sender, so that what it writes is not computed anew from what others do."""
        mine = members[:, self.graph.sender(Slot("mlp", layer).name)] != 0
        return mine[:, None] & self.sent[rows] if mine.any() else None

    def _sent(self, moved, members, rows, parts: Sequence[Part]) -> Change | None:
        """What the senders of some parts moved, `None` where none of these variants has any. They are taken by number, as most variants
        have one alone; many are summed part by part.
        """
        a_layer = self.graph.of_layer.senders
        count, lists = min(rounded_up(self.most), a_layer), [senders_of(self.graph, part) for part in parts]
        if self.most <= count and lists:
            lists = [np.concatenate(lists)]
        change = None
        for numbers in lists:
            mine = members[:, numbers]
            if mine.any():
                places = np.argsort(mine == 0, axis=1, kind="stable")[:, :count]
                share = np.take_along_axis(mine, places, axis=1)
                more = ((0, 0), (0, count - places.shape[1]))
                change = sum_of(change, _sum_of(moved, np.pad(numbers[places], more), np.pad(share, more), rows))
        return change

    def _behind(self, stage: Stage, read: Read, rows) -> Float[Array, " variant"]:
        """Runs the clean prompts with what the last receivers read in place, from the first of them on."""
        model, run, of_prompts = self.model, self.run, self.of_prompts
        if not stage.layers:
            assert read.logits is not None
            return self._of_logits(rows, _changed(run.last, rows, read.logits))
        # Before the first receiver that reads a change all is the clean run, and what its part of the block then writes is known.
        first = min(
            {*(site.layer for site in read.heads if site.layer is not None), *read.mlps}, default=min(stage.layers)
        )
        last, of_first = max(stage.layers), {site: x for site, x in read.heads.items() if site.layer == first}
        written = written_by(model, run, Read(of_first, {n: x for n, x in read.mlps.items() if n == first}, None), rows)
        attn, inside = written.get((first, "attn")), model.blocks[first].has_middle
        inside = inside and (attn is not None or not written)
        cut = Site(first, Kind.RESID_MID) if inside else Site(first + 1, Kind.RESID_PRE)
        entering = _changed(run.at_cut(cut), rows, attn if inside else sum_of(attn, written.get((first, "mlp"))))
        # Only what the receivers make of it: heads and positions beside them read what an earlier receiver has changed.
        where = jnp.asarray(self.where[rows])
        edits = {}
        for site, value in read.heads.items():
            assert site.layer is not None
            if site.layer > first:
                edits[site] = Blend(where[..., None, None] & stage.heads[site.layer][site.kind][:, None], value)
        for layer, change in read.mlps.items():
            if layer > first or inside:
                site = Site(layer, Kind.MLP_OUT)
                edits[site] = Blend(where[..., None], _changed(run.values[site], rows, change))
        resid = entering
        if first < last or inside:
            resid, _ = resume(model, run.masks, cut, rows, entering, edits=edits, until=last)
        behind = Site(last + 1, Kind.RESID_PRE)
        if read.logits is None:
            window = windows_of(model, of_prompts, entering.shape[1], self.variants).whole(rows)
            return metric_from(model, of_prompts, run.masks, behind, rows, resid, window)
        if last < model.n_layers - 1:
            resid, _ = resume(model, run.masks, behind, rows, resid)
        return self._of_logits(rows, added(resid, read.logits))

    def _of_logits(self, rows, last: Change) -> Float[Array, " variant"]:
        """The metric where the logits, a receiver, read this stream."""
        ends, clean = self.model.without_blocks, self.run.last if self.norms else None
        return _metric_of_logits(ends, self.of_prompts, rows, last, clean)


@ft.partial(jax.jit, donate_argnames="moved")
def _sent_at(moved, where) -> Float[Array, "batch sender seq d_model"]:
    return jnp.where(where[:, None, :, None], moved, 0)


@jax.jit
def _sum_of(moved, senders, share, rows) -> Change:
    """Sums what some senders, by number, moved, for each variant those that are its own by their `share`, 0 for what only fills up."""
    of_each = moved[jnp.asarray(rows)[:, None], senders]
    # [variant member] · [variant member seq d_model] -> [variant seq d_model]
    return jnp.einsum("vu,vutm->vtm", share, of_each)


@jax.jit
def _changed(values, rows, change: Change | None) -> Change:
    return values[rows] if change is None else values[rows] + change


@jax.jit
def _metric_of_logits(ends: Transformer, metric: Metric, rows, last: Change, clean) -> Float[Array, " variant"]:
    """The metric of the last residual streams of variants; given those of the `clean` run, at their final norm's scale."""

    def one(row, last):
        mine, edits = jax.tree.map(lambda x: x[row], metric), {}
        if clean is not None and ends.ln_final is not None:
            scale, (position, _) = final_scale(ends.ln_final, clean[row])[:, None], only_position(mine)
            scale = scale if position is None else scale[position][None]
            edits = {Site(None, Kind.FINAL_SCALE): Replace(scale)}
        return metric_of_last(ends, mine, last, edits)

    return jax.vmap(one)(rows, last)

"""Attention heads as nodes: their queries, keys, values and outputs, run on both prompts."""

import abc
from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .._shown import Shown
from .._sites import Kind, Site
from ..graph import entry
from ..linear._forms import read_by_scores
from ..models import is_known, Transformer
from ..runs import Problem, record_sides


PARTS = {"q": Kind.Q, "k": Kind.K, "v": Kind.V, "z": Kind.Z}


class AbstractHeadMethod(eqx.Module):
    """How the effects of heads are found."""

    @property
    @abc.abstractmethod
    def words(self) -> str:
        """What it is, for people: `"exact patching"`."""

    @abc.abstractmethod
    def heads(self, model: Transformer, problem: Problem) -> "HeadEffects":
        """**Returns:** the effects of all heads' parts. **Raises:** `ValueError` for a model that it cannot serve, before any run."""


def check_head_method(who: str, method: object) -> None:
    """TypeError unless it is a method of head effects."""
    if not isinstance(method, AbstractHeadMethod):
        raise TypeError(
            f"{who}: expected one of jc.AtPStar(), jc.Gradient(), jc.ExactPatching() as the method, got {method!r:.60}."
        )


class HeadEffects(Shown, eqx.Module):
    """Effects of the parts of attention heads on the metric, corrupt − clean, in the metric's units.

    **Attributes:**

    - `q`, `z` `[batch layer head seq]`: of a head's query and output at each position, its `seq`.
    - `k`, `v` `[batch layer kv_head seq]`: of a key and value. Where heads share them (`model.n_kv_heads` is less than `model.n_heads`),
      each is that of a group of heads, which all get another one: `head // (n_heads // n_kv_heads)` is the group of a head.
    - `total` `[batch]`: the change of the metric that there is to explain. With the zero baseline there is no corrupt run, and it is the
      clean metric's negative.
    - `clean` `[batch]`: the metric of the clean run.
    - `method`: what found them, such as `jc.ExactPatching()`; `method.words` says it in words. Given to `jc.head_effects` with further
      prompts, it finds theirs in the same way.
    """

    q: Float[Array, "batch layer head seq"]
    k: Float[Array, "batch layer kv_head seq"]
    v: Float[Array, "batch layer kv_head seq"]
    z: Float[Array, "batch layer head seq"]
    total: Float[Array, " batch"]
    clean: Float[Array, " batch"]
    method: AbstractHeadMethod = eqx.field(static=True)


class HeadStates(eqx.Module):
    """The heads of all layers on a batch of prompt pairs.

    **Attributes:**

    - `clean`, `differences`: of each part in `PARTS`, `[batch layer seq head d_head]`, the clean value, and corrupt − clean, 0 at
      padding; keys and values have `kv_head`s.
    - `placed`: clean queries `q` and keys `k` as the scores read them, normalised and rotated; of attention that is known.
    - `scores` `[batch layer head q_seq k_seq]`: of the clean run, `-inf` where nobody attends.
    - `heads_out` `[batch layer seq d_model]`: of the clean run, the sum that a norm behind attention reads, if there is one.
    - `resid` `[batch seq d_model]`: the clean residual stream at cuts: where each block begins, and after a layer's heads have written
      to it, before anything reads that.
    - `metrics`: the metric of both runs; the second is 0 for the zero baseline.
    """

    clean: dict[str, Float[Array, "batch layer seq _ d_head"]]
    differences: dict[str, Float[Array, "batch layer seq _ d_head"]]
    placed: dict[str, Float[Array, "batch layer seq _ d_head"]]
    scores: Float[Array, "batch layer head q_seq k_seq"]
    heads_out: Float[Array, "batch layer seq d_model"] | None
    resid: dict[Site, Float[Array, "batch seq d_model"]]
    metrics: tuple[Float[Array, " batch"], Float[Array, " batch"]]


def head_states(model: Transformer, problem: Problem) -> HeadStates:
    """Runs both sides. Without corrupt prompts every part goes to zero."""
    layers = range(model.n_layers)
    cuts = {cut for layer in layers for cut in (Site(layer, Kind.RESID_PRE), entry(model, Site(layer, Kind.Z)))}
    known, behind = all(is_known(block, "attn") for block in model.blocks), model.blocks[0].ln1_post is not None
    attn = model.blocks[0].attn
    placed = {name: read_by_scores(attn, PARTS[name]) for name in "qk"} if known else {}
    kinds = {*PARTS.values(), *placed.values(), Kind.ATTN_SCORES, *(cut.kind for cut in cuts)}
    kinds |= {Kind.HEADS_OUT} if behind else set()
    clean, corrupt = record_sides(model, problem, {Site(layer, kind) for layer in layers for kind in kinds})
    of_all = lambda run, kind: [run.values[Site(layer, kind)] for layer in layers]
    stacked = lambda kind: jnp.stack(of_all(clean, kind), axis=1)
    values, differences = {}, {}
    for name, kind in PARTS.items():
        values[name], differences[name] = _compared(
            of_all(clean, kind), None if corrupt is None else of_all(corrupt, kind), problem.mask
        )
    return HeadStates(
        clean=values,
        differences=differences,
        placed={name: values[name] if kind == PARTS[name] else stacked(kind) for name, kind in placed.items()},
        scores=stacked(Kind.ATTN_SCORES),
        heads_out=stacked(Kind.HEADS_OUT) if behind else None,
        resid={cut: clean.at_cut(cut) for cut in cuts},
        metrics=(clean.metric, jnp.zeros_like(clean.metric) if corrupt is None else corrupt.metric),
    )


@jax.jit
def _compared(clean, corrupt, mask) -> tuple[Float[Array, "batch layer ..."], Float[Array, "batch layer ..."]]:
    """Stacks the clean values of all layers, and their differences to the corrupt ones, or where there are none to zero."""
    before = jnp.stack(clean, axis=1)
    after = jnp.zeros_like(before) if corrupt is None else jnp.stack(corrupt, axis=1)
    return before, jnp.where(mask[:, None, :, None, None], after - before, 0)


def layers_and_parts(model: Transformer) -> list[tuple[str, int, Site]]:
    """Every part of every layer's heads, with its site."""
    return [(name, layer, Site(layer, kind)) for name, kind in PARTS.items() for layer in range(model.n_layers)]


def as_effects(effects: Mapping[str, ArrayLike], at: HeadStates, method: AbstractHeadMethod) -> HeadEffects:
    """Effects `[batch layer seq head]` of each part, by head, and what found them."""
    clean, corrupt = at.metrics
    by_head = {name: jnp.swapaxes(jnp.asarray(effects[name]), -1, -2) for name in PARTS}
    return HeadEffects(**by_head, total=corrupt - clean, clean=clean, method=method)

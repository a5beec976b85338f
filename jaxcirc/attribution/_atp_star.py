"""AtP*: attribution patching of heads, with a softmax that is computed and not linearised, and if asked without cancellation."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._edits import AbstractEdit, Add
from .._precision import wide
from .._run import run, site_shapes
from .._sites import Kind, Site
from ..models import check_known, Transformer
from ..runs import in_groups, Problem, TOKENS_AT_ONCE
from ._heads import AbstractHeadMethod, as_effects, head_states, HeadEffects, HeadStates, layers_and_parts
from ._vanishing import check_gradient


class AtPStar(AbstractHeadMethod):
    r"""Attribution patching with the corrections of Kramár et al. 2024, "AtP*", arXiv 2403.00745, §3.1. Two of them:

    - `jc.AtPStar()`, without GradDrop: estimates of the effects themselves, with their signs.
    - `jc.AtPStar(grad_drop=True)`, with GradDrop, as in the paper: sizes, for finding heads whose effect the gradient misses because two
      ways cancel. Not effects: compare them with each other only.

    **Arguments:**

    - `qk_fix`: where attention is saturated, the gradient through the softmax says nothing of what another query or key would do. So a
      query's and a key's effect is the exact change of the attention pattern, times the gradient at the pattern,
      $\sum_{ij} \nabla_{A_{ij}} m \, (A'_{ij} - A_{ij})$. All keys of a head take one pass over its pattern: a key moves the probability
      of its own column, and the rest of each row shrinks alike.
    - `grad_drop`: a direct effect and one through a later layer may cancel to first order, and hide a node. So the effect is found once
      for each layer with the gradient through that layer's attention and MLP dropped, and is the mean over these of its absolute value: a
      layer's own drop gives nothing, hence `1 / (layers - 1)`.

    GradDrop helps where ways cancel and there are many layers, so that dropping one leaves the others as they are. It hides where layers
    are few and effects pass through several of them: each drop then takes away much of what does not cancel. In a model of four layers a
    head whose effect goes by way of all later ones keeps a small part of it, and ranks behind heads that matter less.

    With both `False` it computes what `jc.Gradient()` does.
    """

    qk_fix: bool = eqx.field(static=True, default=True)
    grad_drop: bool = eqx.field(static=True, default=False)

    @property
    def words(self) -> str:
        drop = "with GradDrop (unsigned)" if self.grad_drop else "without GradDrop"
        return f"AtP* {drop}" + ("" if self.qk_fix else ", queries and keys by the gradient")

    def heads(self, model: Transformer, problem: Problem) -> HeadEffects:
        n = model.n_layers
        if self.grad_drop and n < 2:
            raise ValueError(
                f"AtPStar(grad_drop=True) drops one layer's gradient at a time, and {model.name} has a single layer. Use jc.AtPStar()."
            )
        if self.qk_fix:
            check_known("AtPStar", model, "attn")
        at = head_states(model, problem)
        keeps = 1 - np.eye(n) if self.grad_drop else np.ones((1, n))
        effects = _by_gradients(model, problem, at, jnp.asarray(keeps, model.activation_dtype), fix=self.qk_fix)
        if self.grad_drop:
            effects = {name: jnp.abs(each).sum(1) / (n - 1) for name, each in effects.items()}
        else:
            effects = {name: each[:, 0] for name, each in effects.items()}
        before, after = at.metrics
        found = np.max([np.abs(each).max((1, 2, 3)) for each in effects.values()], axis=0)
        check_gradient(model, problem, found=found, total=after - before)
        return as_effects(effects, at, self)


class _Gate(AbstractEdit):
    """Leaves the value as it is, and lets `keep` of its gradient through."""

    keep: Float[Array, ""]

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return _gated(x, self.keep)


@jax.custom_vjp
def _gated(x, keep):
    return x


# Only what goes backward depends on `keep`: a sweep over gates shares one forward pass.
_gated.defvjp(lambda x, keep: (x, keep), lambda keep, g: (keep * g, jnp.zeros_like(keep)))


@ft.partial(jax.jit, static_argnames="fix")
def _by_gradients(model, problem: Problem, at: HeadStates, keeps: Float[Array, "world layer"], *, fix: bool):
    """Effects `[batch world layer seq head]` of each part, one world for each row of gates."""
    batch, seq = problem.clean.shape
    shapes, layers = site_shapes(model, seq), range(model.n_layers)
    patterns = [Site(layer, Kind.PATTERN) for layer in layers]
    places = [site for *_, site in layers_and_parts(model)] + patterns
    ends = [site for site in shapes if site.kind in (Kind.ATTN_OUT, Kind.MLP_OUT)]
    scale = wide(jnp.stack([block.attn.scale for block in model.blocks]))

    def one(example):
        tokens, keys, metric, at = example

        def world(keep):
            gates = {site: _Gate(keep[site.layer]) for site in ends}
            moved = lambda moves: run(model, tokens, edits={**gates, **moves}, mask=keys)[0]
            value = lambda moves: metric(moved({site: Add(x) for site, x in moves.items()}))
            return jax.grad(value)({site: jnp.zeros(shapes[site].shape, shapes[site].dtype) for site in places})

        gradient = jax.vmap(world)(keeps)
        effects = {}
        for name in at.differences:
            mine = [gradient[site] for part, _, site in layers_and_parts(model) if part == name]
            # [world layer seq head d_head] · [layer seq head d_head]
            effects[name] = jnp.einsum("wlshd,lshd->wlsh", jnp.stack(mine, axis=1), at.differences[name])
        if fix:
            slope = jnp.stack([gradient[site] for site in patterns], axis=1)  # [world layer head q_seq k_seq]
            # [layer q_seq head d_head] · [layer k_seq head d_head] -> [layer head q_seq k_seq]
            scores = lambda q, k: jnp.einsum("lqhd,lkhd,l->lhqk", q, k, scale)
            effects["q"] = _of_queries(at.scores, scores(at.differences["q"], at.clean["k"]), slope)
            effects["k"] = _of_keys(at.scores, scores(at.clean["q"], at.differences["k"]), slope)
        return effects

    together = len(in_groups(batch, keeps.shape[0] * seq, TOKENS_AT_ONCE)[0])
    return jax.lax.map(one, (problem.clean, problem.mask, problem.metric, at), batch_size=together)


def _of_queries(
    scores: Float[Array, "layer head q_seq k_seq"],
    change: Float[Array, "layer head q_seq k_seq"],
    slope: Float[Array, "world layer head q_seq k_seq"],
) -> Float[Array, "world layer seq head"]:
    """A query decides on its own row of the pattern."""
    moved = jax.nn.softmax(scores + change, axis=-1) - jax.nn.softmax(scores, axis=-1)
    # [world layer head q_seq k_seq] · [layer head q_seq k_seq] -> [world layer q_seq head]
    return jnp.einsum("wlhqk,lhqk->wlqh", slope, moved)


def _of_keys(
    scores: Float[Array, "layer head q_seq k_seq"],
    change: Float[Array, "layer head q_seq k_seq"],
    slope: Float[Array, "world layer head q_seq k_seq"],
) -> Float[Array, "world layer seq head"]:
    r"""A key decides on one score of every row. With $R$ the weight of the row's other entries, its probability goes from
    $w / (w + R)$ to $w' / (w' + R)$, and what it gains the others lose in proportion.
    """
    finite = jnp.isfinite(scores)
    score = jnp.where(finite, scores - jnp.max(scores, axis=-1, keepdims=True), 0)
    weight = jnp.where(finite, jnp.exp(score), 0)
    rest = _others(weight)
    alone = ~finite | (rest == 0)
    rest = jnp.where(alone, 1, rest)
    gain = jax.nn.sigmoid(score + change - jnp.log(rest)) - jax.nn.sigmoid(score - jnp.log(rest))
    elsewhere = _others(slope * weight) / rest
    # [world layer head q_seq k_seq] · [layer head q_seq k_seq] -> [world layer k_seq head]
    return jnp.einsum("wlhqk,lhqk->wlkh", slope - elsewhere, jnp.where(alone, 0, gain))


def _others(x: Float[Array, "... k_seq"]) -> Float[Array, "... k_seq"]:
    """For each entry the sum of all others of its row; not by subtraction, which would lose small ones beside a large one."""
    before = jnp.cumsum(x, axis=-1)[..., :-1]
    after = jnp.flip(jnp.cumsum(jnp.flip(x, -1), axis=-1), -1)[..., 1:]
    pad = [(0, 0)] * (x.ndim - 1)
    return jnp.pad(before, [*pad, (1, 0)]) + jnp.pad(after, [*pad, (0, 1)])

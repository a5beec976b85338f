"""AtP*: attribution patching of heads, with a softmax that is computed and not linearised, and if asked without cancellation."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._edits import AbstractEdit, Add
from .._precision import widened
from .._run import run, site_shapes
from .._sites import Kind, Site
from ..models import check_known, Transformer
from ..parts._attention import grouped_scores
from ..runs import in_groups, Problem, TOKENS_AT_ONCE
from ._heads import AbstractHeadMethod, as_effects, head_states, HeadEffects, HeadStates, layers_and_parts
from ._patterns import effects_of_keys, effects_of_queries
from ._scores import capped_change, moves_together, placed_change
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
      of its own column, and the rest of each row shrinks alike. The change is that behind a norm of queries and keys, rotation and cap,
      and of a key that several heads read that of all their patterns.
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
            effects |= _by_patterns(model, at, slope)
        return effects

    together = len(in_groups(batch, keeps.shape[0] * seq, TOKENS_AT_ONCE)[0])
    return jax.lax.map(one, (problem.clean, problem.mask, problem.metric, at), batch_size=together)


def _by_patterns(
    model: Transformer, at: HeadStates, slope: Float[Array, "world layer head q_seq k_seq"]
) -> dict[str, Float[Array, "world layer seq _"]]:
    """Effects of one example's queries and keys, by the exact change of the pattern and the gradient at it."""
    attns = [widened(block.attn) for block in model.blocks]
    scale = jnp.stack([attn.scale for attn in attns])
    positions = jnp.arange(slope.shape[-1], dtype=jnp.int32)
    scores_of = lambda q, k: jax.vmap(grouped_scores)(q, k) * scale[:, None, None, None]
    before_cap = scores_of(at.placed["q"], at.placed["k"])

    def moved(part: str, change: Float[Array, "layer seq _ d_head"]) -> Float[Array, "layer head q_seq k_seq"]:
        norms = [attn.q_norm if part == "q" else attn.k_norm for attn in attns]
        given = zip(norms, attns, at.clean[part], change, strict=True)
        change = jnp.stack([placed_change(norm, attn.rotary, x, by, positions) for norm, attn, x, by in given])
        scores = scores_of(change, at.placed["k"]) if part == "q" else scores_of(at.placed["q"], change)
        return jnp.stack([capped_change(*each) for each in zip(attns, before_cap, scores, strict=True)])

    def effects(part: str) -> Float[Array, "world layer seq _"]:
        of_patterns = effects_of_queries if part == "q" else effects_of_keys
        of = lambda change: of_patterns(at.scores, moved(part, change), slope)
        difference = at.differences[part]
        units = difference.shape[2]
        if any(map(moves_together, attns)):
            alone = lambda unit: of(jnp.where(jnp.arange(units)[:, None] == unit, difference, 0)).sum(-1)
            return jnp.moveaxis(jax.lax.map(alone, jnp.arange(units)), 0, -1)
        each = of(difference)  # of each head that queries; those that share keys move together
        return each.reshape(*each.shape[:-1], units, -1).sum(-1)

    return {part: effects(part) for part in ("q", "k")}

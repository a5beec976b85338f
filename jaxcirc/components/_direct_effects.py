"""Direct effects: what every component of a model adds to a logit."""

from collections.abc import Iterable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_count
from .._precision import wide
from .._run import check_mask, check_tokens, NOTHING
from .._shown import Shown
from .._sites import Kind, Site
from .._tap import Tap
from ..models import check_known, Transformer
from ..parts import Attention, Block
from ..runs import in_groups, TOKENS_AT_ONCE
from ._parts import check_heads, check_layers
from ._reading import Asked, asked, at_scale, before_norm_behind, reading
from ._written import final_scale, written


class DirectEffects(Shown, eqx.Module):
    """What every component adds to a logit, before a cap of the logits, in the logit's units, at each position; 0 where there is no
    answer.

    **Attributes:**

    - `heads` `[batch layer head seq]`: of each attention head, its `b_V` included.
    - `mlps` `[batch layer seq]`: of each MLP, its `b_out` included; 0 in a model of attention only.
    - `embed` `[batch seq]`: of the token embedding, and of the positions' where a model has one.
    - `biases` `[batch seq]`: of all `b_O`, of the bias of a norm behind attention and of the final norm, and of `b_U`.
    - `accumulated` `[batch layer+1 seq]`: of the residual stream that enters each block, and of the last one: sums of the above but for
      the final norm's bias and `b_U`.
    - `neurons[layer]` `[batch seq d_mlp]`: of the neurons of the layers asked for; with those of `b_out` and of the bias of a norm behind
      the MLP they sum to the MLP's.
    - `sources[layer, head]` `[batch q_seq k_seq]`: of the heads asked for, from each position that they attend to; they sum to the head's.
    """

    heads: Float[Array, "batch layer head seq"]
    mlps: Float[Array, "batch layer seq"]
    embed: Float[Array, "batch seq"]
    biases: Float[Array, "batch seq"]
    accumulated: Float[Array, "batch layer+1 seq"]
    neurons: dict[int, Float[Array, "batch seq d_mlp"]]
    sources: dict[tuple[int, int], Float[Array, "batch q_seq k_seq"]]

    @property
    def total(self) -> Float[Array, "batch seq"]:
        """The sum of heads, MLPs, embedding and biases: the logit."""
        return self.heads.sum((1, 2)) + self.mlps.sum(1) + self.embed + self.biases


def direct_effects(
    model: Transformer,
    tokens: Int[Array, "batch seq"],
    answers: Int[Array, "..."] | Float[Array, "..."] | int | None = None,
    *,
    foils: Int[Array, "..."] | int | None = None,
    neurons: Iterable[int] = (),
    sources: Iterable[tuple[int, int]] = (),
    mask: Bool[Array, "batch seq"] | None = None,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> DirectEffects:
    r"""What every component adds to the answer's logit, with the norms' scales between it and the logits held at the run's own.

    The last residual stream is a sum of what components wrote, and with its scale $s$ held the final norm is linear. So the logit of
    token $t$ less the mean logit of the vocabulary is a sum over components $c$ of
    $$\mathrm{DE}_c = \langle x_c, d \rangle / s, \qquad d = C\,(w \circ (W_U[:, t] - \bar{W}_U)),$$
    with the component's output $x_c$ `[d_model]`, the norm's weight $w$ and its centring $C$ (none, if it is an RMS norm), and of biases.
    The sum is exact.

    A norm behind attention, as in Gemma 2, is taken in the same way: what head $h$ adds to the residual stream is
    $x_h = w' \circ (z_h W_O[h]) / s'$ with that norm's weight and scale, and these and that of $b_O$ sum to `hook_attn_out`. Where a model
    caps its logits (`model.logit_cap`) no sum goes through the cap, and all this is of the logits before it.

    **Arguments:**

    - `answers`: whose logit. Token ids, one for all, `[batch]`, or `[batch seq]`; or directions in the space that `W_U` reads, after the
      final norm, `[d_model]`, `[batch d_model]` or `[batch seq d_model]`, for a logit of one's own making. `None` is the true next token;
      the last position has none, and is 0.
    - `foils`: tokens whose logits are subtracted, in place of the mean over the vocabulary.
    - `neurons`: layers whose MLP is taken apart. - `sources`: heads `(layer, head)` that are taken apart by the position attended to.
    - `mask` `[batch seq]`: False for padding, where effects are 0.
    - `tokens_at_once`: how many tokens are in flight; it changes memory and time only.

    **Returns:** `DirectEffects`; `.total` is the centred logit, or the difference to the foil's, or the direction's, before a cap.

    **Raises:** `ValueError` for answers of another shape, tokens outside the vocabulary, layers and heads that there are not.

    >>> prompts = jc.data.ioi(tokenizer, 2, seed=0)
    >>> effects = jc.direct_effects(model, prompts.clean, prompts.answer, foils=prompts.foil)
    >>> effects.heads.shape == (2, model.n_layers, model.n_heads, prompts.clean.shape[1])
    True
    >>> logits = jax.vmap(lambda tokens: jc.run(model, tokens)[0])(prompts.clean)
    >>> want = jax.vmap(lambda metric, logits: metric(logits))(prompts.metric(), logits)
    >>> np.allclose(effects.total[:, -1], want, atol=1e-3)
    True

    **Reference:** Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; direct logit attribution in TransformerLens,
    whose `logit_attrs` wants processed weights. Here the norms' weights are in the direction, so that any weights sum to the logit, and
    heads' outputs are read without `[seq head d_model]` of them ever being there.
    """
    check_tokens(model, tokens, batched=True)
    check_known("direct_effects", model, "attn", "ln1_post", "mlp", "ln2_post", "ln_final")
    check_mask(tokens, mask)
    check_count("direct_effects: tokens_at_once", "tokens are run at once", tokens_at_once)
    neurons, sources = check_layers("neurons", model, neurons), check_heads("sources", model, sources)
    for layer in neurons:
        if model.blocks[layer].mlp is None:
            raise ValueError(f"neurons: {model.name} is of attention only, so layer {layer} has none.")
    real = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask)
    ids, wanted = np.asarray(tokens), asked(model, tokens, real, answers, foils)
    found = []
    for rows in in_groups(len(ids), ids.shape[1], tokens_at_once):
        found.append(_of_group(model, ids[rows], real[rows], wanted.of(rows), neurons, sources))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts)[: len(tokens)], *found)


def _of_group(model: Transformer, tokens, mask, wanted: Asked, neurons, sources) -> DirectEffects:
    run, read = written(model, tokens, mask), reading(model, wanted)
    along = at_scale(read, final_scale(model.ln_final, run.last))
    layers = [run.in_layer(layer) for layer in range(model.n_layers)]
    heads, mlps, b_O, entering = zip(*map(effects_of_layer, model.blocks, layers, [along] * len(layers)), strict=True)
    accumulated = jnp.stack([*entering, along_direction(run.last, along)], axis=1)
    at = lambda layer: (model.blocks[layer], run.masks[layer], layers[layer][Kind.RESID_PRE], along)
    return DirectEffects(
        heads=jnp.stack(heads, axis=1),
        mlps=jnp.stack(mlps, axis=1),
        embed=accumulated[:, 0],
        biases=sum(b_O) + read.bias,
        accumulated=accumulated,
        neurons={layer: _neurons(*at(layer)) for layer in neurons},
        sources={(layer, head): _sources(*at(layer), jnp.asarray(head)) for layer, head in sources},
    )


@jax.jit
def effects_of_layer(
    block: Block, values: dict[Kind, Array], along: Float[Array, "batch seq d_model"]
) -> tuple[Array, ...]:
    """Computes the effects of a block's heads `[batch head seq]`, of its MLP, of attention's biases and of what enters it, all
    `[batch seq]`.
    """
    of_sum, bias = before_norm_behind(block.ln1_post, values.get(Kind.LN1_POST_SCALE), along)
    heads = of_heads(block.attn, values[Kind.Z], of_sum)
    mlp = along_direction(values[Kind.MLP_OUT], along) if Kind.MLP_OUT in values else jnp.zeros_like(along[..., 0])
    return heads, mlp, of_sum @ wide(block.attn.b_O) + bias, along_direction(values[Kind.RESID_PRE], along)


def of_heads(
    attn: Attention, z: Float[Array, "batch seq head d_head"], along: Float[Array, "batch seq d_model"]
) -> Float[Array, "batch head seq"]:
    """The direction, in the sum of what the heads write, comes to the heads, `W_O` first: what each writes is never there."""
    # [head d_head d_model] · [batch seq d_model] -> [batch seq head d_head]
    wanted = jnp.einsum("hdm,bsm->bshd", wide(attn.W_O), along)
    return jnp.einsum("bshd,bshd->bhs", z, wanted)


def along_direction(x: Float[Array, "... d_model"], along: Float[Array, "... d_model"]) -> Float[Array, "..."]:
    """The inner product at each position."""
    return jnp.sum(x * along, axis=-1)


@jax.jit
def _neurons(block: Block, mask, resid, along) -> Float[Array, "batch seq d_mlp"]:
    found = _rerun(block, mask, resid, Kind.MLP_POST, *([] if block.ln2_post is None else [Kind.LN2_POST_SCALE]))
    of_sum, _ = before_norm_behind(block.ln2_post, found.get(Kind.LN2_POST_SCALE), along)
    return found[Kind.MLP_POST] * (of_sum @ wide(block.mlp.W_out).T)  # pyright: ignore[reportOptionalMemberAccess]  # checked before


@jax.jit
def _sources(block: Block, mask, resid, along, head) -> Float[Array, "batch q_seq k_seq"]:
    attn, post = block.attn, [] if block.ln1_post is None else [Kind.LN1_POST_SCALE]
    found = _rerun(block, mask, resid, Kind.PATTERN, Kind.V, *post)
    of_sum, _ = before_norm_behind(block.ln1_post, found.get(Kind.LN1_POST_SCALE), along)
    values = found[Kind.V][:, :, head // (len(attn.W_O) // len(attn.W_V))]
    # [batch q_seq d_head] · [batch k_seq d_head] -> [batch q_seq k_seq]
    said = jnp.einsum("bqd,bkd->bqk", of_sum @ wide(attn.W_O[head]).T, values)
    return found[Kind.PATTERN][:, head] * said


def _rerun(block: Block, mask, resid, *kinds: Kind) -> dict[Kind, Float[Array, "..."]]:
    """Runs a block again for values `[batch …]` in it that are large."""

    def one(mask, resid):
        tap = Tap(NOTHING, NOTHING, {Site(0, kind) for kind in kinds}, layer=0)
        block(resid, mask, tap)
        return {site.kind: value for site, value in tap.cache.items()}

    return jax.vmap(one)(mask, resid)

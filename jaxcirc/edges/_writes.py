"""How much each node writes: the norms of the vectors that enter the residual stream."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._precision import wide
from .._run import NOTHING
from .._sites import BySite, Kind, Site
from .._typing import Keys, Tokens
from ..jacobian import frozen
from ..models import Transformer
from ..parts import Block
from ..parts._held_norm import push_through_norm
from ._dictionaries import Given, reads, write_rows, writes
from ._point import Values
from ._question import ask, Question


class WriteNorms(eqx.Module):
    """Euclidean norms of what nodes write to the residual stream, with the scales of norms behind sublayers held.

    **Attributes:** `neurons` `[layer seq d_mlp]`; `heads` `[layer head q_seq k_seq]`; `latents[site]` `[seq d_sae]`, `errors[site]`
    `[seq]`; `tokens` `[seq]`. A latent that writes to several layers has the norm of all that it writes, one behind the other.
    """

    neurons: Float[Array, "layer seq d_mlp"]
    heads: Float[Array, "layer head q_seq k_seq"]
    latents: BySite[Float[Array, "seq d_sae"]]
    errors: BySite[Float[Array, " seq"]]
    tokens: Float[Array, " seq"]


def write_norms(model: Transformer, tokens: Tokens, *, saes: Given = NOTHING, mask: Keys | None = None) -> WriteNorms:
    """How much each node writes at one prompt: its activation times the length of its direction.

    **Arguments:** as in `jc.edges_into`. **Returns:** `WriteNorms`. **Raises:** as `jc.edges_into`.

    >>> jc.edges.write_norms(model, tokens).heads.shape
    (4, 4, 6, 6)

    **Reference:** transformer-debugger (OpenAI 2024), write norms of neurons and of attention's pairs of positions.
    """
    held = frozen.layer_norms(model)
    question = ask("write_norms", model, tokens, None, [], saes=saes, frozen=held, mask=mask)
    layers = list(zip(model.blocks, question.point.values, strict=True))
    return WriteNorms(
        neurons=jnp.stack([_of_neurons(*layer) for layer in layers]),
        heads=jnp.stack([_of_heads(*layer) for layer in layers]),
        latents=BySite((site, _of_latents(question, site)) for site in question.dictionaries),
        errors=BySite((site, _of_errors(question, site)) for site in question.dictionaries),
        tokens=jnp.linalg.norm(question.point.embed, axis=-1),
    )


@jax.jit
def _of_neurons(block: Block, values: Values) -> Float[Array, "seq d_mlp"]:
    if block.mlp is None:
        return jnp.zeros((len(values[Kind.RESID_PRE]), 0), values[Kind.RESID_PRE].dtype)
    lengths = jnp.linalg.norm(_through(block.ln2_post, wide(block.mlp.W_out)), axis=-1)
    return jnp.abs(values[Kind.MLP_POST]) * lengths / values.get(Kind.LN2_POST_SCALE, 1.0)


@jax.jit
def _of_heads(block: Block, values: Values) -> Float[Array, "head q_seq k_seq"]:
    """By the inner products of the directions that each head's values are written in: what a pair writes is never there."""
    v, W = values[Kind.V], _through(block.ln1_post, wide(block.attn.W_O))
    v = jnp.repeat(v, W.shape[0] // v.shape[1], axis=1)
    # [head d_head d_model] · [head d_head d_model] -> [head d_head d_head]
    inner = jnp.einsum("hdm,hem->hde", W, W)
    # [k_seq head d_head] · [head d_head d_head] · [k_seq head d_head] -> [head k_seq]
    squares = jnp.einsum("khd,hde,khe->hk", v, inner, v)
    scale = values[Kind.LN1_POST_SCALE][:, 0, None] if Kind.LN1_POST_SCALE in values else 1.0
    return jnp.abs(values[Kind.PATTERN]) * jnp.sqrt(jnp.maximum(squares, 0))[:, None] / scale


def _through(norm, vectors: Float[Array, "*items d_model"]) -> Float[Array, "*items d_model"]:
    """Takes vectors through the norm behind a sublayer, as if that divided by 1."""
    return vectors if norm is None else push_through_norm(norm, vectors)


def _of_latents(question: Question, site: Site) -> Float[Array, "seq d_sae"]:
    dictionary, acts = question.dictionaries[site], question.acts[site]
    x, squares = question.flat(reads(site, dictionary)), jnp.zeros_like(acts)
    for written in writes(site, dictionary):
        scale, rows = write_rows(site, dictionary, x, written)
        length = jnp.linalg.norm(_enters(question, written, rows), axis=-1)
        squares += (scale[:, None] * length / _scale_behind(question, written)) ** 2
    return jnp.abs(acts) * jnp.sqrt(squares)


def _of_errors(question: Question, site: Site) -> Float[Array, " seq"]:
    return (
        jnp.linalg.norm(_enters(question, site, question.errors[site]), axis=-1, keepdims=True)
        / _scale_behind(question, site)
    )[:, 0]


def _enters(question: Question, site: Site, vectors: Float[Array, "n width"]) -> Float[Array, "n d_model"]:
    """Takes vectors of a site's value to the stream, as if a norm behind the sublayer divided by 1."""
    if site.layer is None or site.kind not in (Kind.Z, Kind.MLP_POST):
        return vectors
    block = question.model.blocks[site.layer]
    if site.kind == Kind.Z:
        W = wide(block.attn.W_O)
        return _through(block.ln1_post, vectors @ W.reshape(-1, W.shape[-1]))
    assert block.mlp is not None
    return _through(block.ln2_post, vectors @ wide(block.mlp.W_out))


def _scale_behind(question: Question, site: Site) -> Float[Array, "seq 1"] | float:
    """By what the norm divides that is between a site and the stream."""
    kind = {Kind.Z: Kind.LN1_POST_SCALE, Kind.MLP_POST: Kind.LN2_POST_SCALE}.get(site.kind)
    if site.layer is None or kind is None:
        return 1.0
    return question.point.values[site.layer].get(kind, 1.0)  # pyright: ignore[reportReturnType]  # an array of the run, or 1

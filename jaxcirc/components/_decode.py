"""A vector at a site, as the vocabulary reads it: by how much it raises the logit of each token."""

import functools as ft
from collections.abc import Mapping
from typing import Any, Literal, TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._checks import check_count, check_kind, check_reals
from .._edits import Detach
from .._precision import wide
from .._run import NOTHING
from .._shown import Shown
from .._sites import by_site, Kind, layer_of, Part, Site
from .._tap import Tap
from .._tokens import token_texts
from ..models import check_known, is_model_known, Transformer
from ..parts import Norm
from ..parts._held_norm import push_through_norm, weighed
from ..saes import AbstractDictionary


if TYPE_CHECKING:
    import pandas as pd


STREAM = {
    Kind.EMBED,
    Kind.POS_EMBED,
    Kind.RESID_PRE,
    Kind.ATTN_OUT,
    Kind.RESID_MID,
    Kind.MLP_OUT,
    Kind.RESID_POST,
    Kind.FINAL_NORMALIZED,
}
"""The kinds of sites whose values are part of the residual stream, which the unembedding reads."""
OF_HEADS = {Kind.Z, Kind.RESULT, Kind.HEADS_OUT}
OF_NEURONS = {Kind.MLP_POST, Kind.NEURONS_OUT}


class Decoded(Shown, eqx.Module):
    """What directions say in tokens.

    **Attributes:** - `logits` `[*items d_vocab]`: the change of each logit, less their mean, for each direction.
    """

    logits: Float[Array, "*items d_vocab"]

    def _tables(self) -> "Mapping[str, pd.DataFrame]":
        return {"tokens; .table(tokenizer) has their text": self.table(k=min(5, self.logits.shape[-1]))}

    def top(self, k: int = 10) -> tuple[Int[Array, "*items k"], Float[Array, "*items k"]]:
        """The `k` tokens whose logits are raised most, and by how much, the largest first.

        **Raises:** `ValueError` for fewer than one token, or more than there are.
        """
        return self._first(k, 1)

    def bottom(self, k: int = 10) -> tuple[Int[Array, "*items k"], Float[Array, "*items k"]]:
        """The `k` tokens whose logits are lowered most, and by how much, the lowest first."""
        return self._first(k, -1)

    def _first(self, k: int, sign: int) -> tuple[Array, Array]:
        check_count("Decoded: k", "tokens", k)
        if k > self.logits.shape[-1]:
            raise ValueError(f"Decoded: k is {k}, and there are logits of {self.logits.shape[-1]} tokens.")
        values, ids = jax.lax.top_k(sign * self.logits, k)
        return ids, sign * values

    def table(self, tokenizer: Any = None, k: int = 10) -> "pd.DataFrame":
        """A row a direction and rank: the token raised most and the one lowered most, and by how much; as text with a `tokenizer`."""
        import pandas as pd

        text = (lambda ids: ids) if tokenizer is None else ft.partial(token_texts, tokenizer)
        columns: dict[str, Any] = {}
        for name, (ids, values) in (("top", self.top(k)), ("bottom", self.bottom(k))):
            flat = np.asarray(ids).reshape(-1)
            columns |= {name: text(flat), f"{name}_logit": np.asarray(values).reshape(-1)}
        count = len(columns["top_logit"]) // k
        return pd.DataFrame({"direction": np.repeat(range(count), k), "rank": list(range(1, k + 1)) * count, **columns})


def decode(
    model: Transformer,
    direction: Float[Array | np.ndarray, "..."],
    site: Site | str | None = None,
    *,
    at: Float[Array | np.ndarray, "... d_model"] | None = None,
    scale: Literal["frozen", "live"] = "frozen",
    through: Float[Array | np.ndarray, "d_model d_model"] | None = None,
    saes: Mapping[Site, AbstractDictionary] | Mapping[str, AbstractDictionary] = NOTHING,
) -> Decoded:
    r"""Reads vectors at a site in tokens: by how much each logit changes with a step along the vector, by what it adds to the last residual
    stream itself and not by way of what lies between.

    $$\text{logits} = \frac{w \circ (v - \bar v)}{s} W_U, \quad \text{less their mean},$$

    with the final norm's weight $w$ and scale $s$; an RMS norm takes no mean off.

    **Arguments:**

    - `direction` `[*items width]`: vectors as the site holds them at one position: `[d_model]` in the residual stream and what is added to
      it, `[head, d_head]` at `hook_z` and `[head, d_model]` at `hook_result`, whose heads are summed, `[d_mlp]` at `mlp.hook_post`,
      `[d_sae]` at the latents of a dictionary. Any axes may come before.
    - `site`: where; without it the residual stream.
    - `at` `[d_model]` or `[*items d_model]`: the last residual stream of a run where it is read, such as
      `cache["blocks.3.hook_resid_post"][-1]` of the last block. Without it the scale is 1: tokens are in the same order, and sizes
      compare with one another alone.
    - `scale`: whether the scale is held, `"frozen"`, as direct effects hold it, or moves with the vector, `"live"`: the derivative of the
      logits before any cap. Live takes `at`.
    - `through` `[out in]`: a map to the last residual stream that vectors pass first: a layer's of a Jacobian lens, `lens.J[2]`.
    - `saes`: dictionaries by site, for directions at their latents. What their normalisation multiplies is left out.

    **Returns:** `Decoded`: `.logits`, `.top(k)`, `.bottom(k)`, `.table(tokenizer)`.

    **Raises:** `ValueError` for vectors of another shape, and at sites that add nothing to the residual stream by a matrix alone, such as
    queries: take what they do by `jc.edge`.

    In blocks with a norm behind a sublayer, heads, neurons and what the sublayer makes pass that norm with its scale 1.

    >>> U, S, Vt = jc.edge(model, tokens, "blocks.1.hook_resid_pre", "blocks.3.hook_resid_post").svd(2)
    >>> jc.decode(model, jnp.moveaxis(U, -1, 0)[:, -1]).table(tokenizer, 2).shape  # at the last position
    (4, 6)
    >>> jc.decode(model, jnp.eye(model.blocks[2].mlp.W_out.shape[0])[17], "blocks.2.mlp.hook_post").top(3)[0].shape
    (3,)

    **Reference:** nostalgebraist 2020, "interpreting GPT: the logit lens"; for weights, Dar et al. 2022, arXiv 2209.02535, section 3.
    """
    check_kind("decode: model", model, Transformer, "a model")
    check_known("decode", model, "ln_final")
    check_kind("decode: direction", direction, (jax.Array, np.ndarray), "an array")
    check_reals("decode: direction", direction)
    if scale not in ("frozen", "live"):
        raise ValueError(f"decode: scale is 'frozen' or 'live', got {scale!r}.")
    if scale == "live" and at is None:
        raise ValueError("decode: a live scale is that of a run. Give at=, the last residual stream where it is read.")
    site = Site(0, Kind.RESID_PRE) if site is None else Site.parse(site)
    vectors = _written(model, jnp.asarray(direction).astype(model.activation_dtype), site, by_site(saes))
    if through is not None:
        vectors = vectors @ _checked("through", through, vectors, (model.d_model, model.d_model)).T
    if site.kind == Kind.FINAL_NORMALIZED:
        if not (at is None and through is None):
            raise ValueError(
                f"decode: behind the final norm, at `{site}`, there is no scale. Leave out at= and through=."
            )
        passed = vectors if model.ln_final is None else weighed(model.ln_final, vectors)
        return Decoded(_logits(model.without_blocks, passed))
    if at is None:
        return Decoded(_read(model.without_blocks, vectors))
    at = _checked("at", at, vectors, (model.d_model,), vectors.shape)
    return Decoded(_read_at(model.without_blocks, vectors, jnp.broadcast_to(at, vectors.shape), scale == "live"))


def _written(
    model: Transformer,
    vectors: Float[Array, "..."],
    site: Site,
    saes: Mapping[Site, AbstractDictionary],
) -> Float[Array, "... d_model"]:
    """Carries vectors at a site to what they add to the residual stream."""
    if site.layer is not None and site.layer >= model.n_layers:
        raise ValueError(f"decode: there is no `{site}`; {model.name} has {model.n_layers} blocks.")
    if site.part == Part.INPUT:
        raise ValueError(f"decode: what a decoder reads, at `{site}`, is not written. Give the site of its latents.")
    if site.part == Part.ACTS:
        if site.value not in saes:
            raise ValueError(f"decode: there is no dictionary at `{site.value}`. Give saes={{site: dictionary}}.")
        W_dec = wide(saes[site.value].W_dec)
        vectors = _shaped(vectors, site, (len(W_dec),)) @ W_dec
        if site.kind in OF_HEADS:  # what it writes has heads side by side
            vectors = vectors.reshape(*vectors.shape[:-1], *_shape(model, site))
    vectors = _shaped(vectors, site, _shape(model, site))
    if site.kind in STREAM:
        return vectors
    block = model.blocks[layer_of(site)]
    if site.kind in OF_HEADS:
        return _behind(block.ln1_post, _from_heads(wide(block.attn.W_O), vectors, site.kind))
    return _behind(block.ln2_post, vectors @ wide(block.mlp.W_out) if site.kind == Kind.MLP_POST else vectors)  # pyright: ignore[reportOptionalMemberAccess]  # _shape has looked


def is_decoded(model: Transformer, site: Site) -> bool:
    """Whether vectors at a site reach the residual stream by a matrix alone, of parts whose weights are known."""
    names = ["attn"] if site.kind in OF_HEADS else ["mlp"] if site.kind in OF_NEURONS else []
    return _by_a_matrix(site) and is_model_known(model, "ln_final", *names)


def _by_a_matrix(site: Site) -> bool:
    return site.part != Part.INPUT and site.kind in STREAM | OF_HEADS | OF_NEURONS


def _shape(model: Transformer, site: Site) -> tuple[int, ...]:
    """The shape of what a site holds at a position. **Raises:** `ValueError` if it reaches the residual stream by more than a matrix."""
    if not _by_a_matrix(site):
        raise ValueError(
            f"decode: vectors at `{site}` reach the residual stream by more than a matrix. Carry them there by a Jacobian, "
            "jc.edge(model, tokens, site, target).mv(…), and decode what comes."
        )
    if site.kind in STREAM:
        return (model.d_model,)
    if site.kind in OF_HEADS:
        check_known("decode", model, "attn")
        heads, d_head, d_model = model.blocks[layer_of(site)].attn.W_O.shape
        return {Kind.Z: (heads, d_head), Kind.RESULT: (heads, d_model), Kind.HEADS_OUT: (d_model,)}[site.kind]
    check_known("decode", model, "mlp")
    mlp = model.blocks[layer_of(site)].mlp
    if mlp is None:
        raise ValueError(f"decode: block {site.layer} of {model.name} has no MLP, and no `{site}`.")
    return (mlp.W_out.shape[site.kind == Kind.NEURONS_OUT],)


def _from_heads(
    W_O: Float[Array, "head d_head d_model"], vectors: Float[Array, "..."], kind: Kind
) -> Float[Array, "... d_model"]:
    if kind == Kind.Z:
        return jnp.einsum("...hd,hdm->...m", vectors, W_O)
    return vectors.sum(-2) if kind == Kind.RESULT else vectors


def _behind(norm: Norm | None, vectors: Float[Array, "*items d_model"]) -> Float[Array, "*items d_model"]:
    return vectors if norm is None else push_through_norm(norm, vectors)


def _shaped(vectors: Array, site: Site, wanted: tuple[int, ...]) -> Array:
    if vectors.shape[-len(wanted) :] != wanted:
        raise ValueError(f"decode: vectors at `{site}` are {list(wanted)}, got {list(vectors.shape)}.")
    return vectors


def _checked(name: str, given: Any, vectors: Array, *shapes: tuple[int, ...]) -> Array:
    check_kind(f"decode: {name}", given, (jax.Array, np.ndarray), "an array")
    check_reals(f"decode: {name}", given)
    if given.shape not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
        raise ValueError(f"decode: {name} is {wanted}, got {list(given.shape)}.")
    return jnp.asarray(given).astype(vectors.dtype)


@jax.jit
def _read(ends: Transformer, vectors: Float[Array, "*items d_model"]) -> Float[Array, "*items d_vocab"]:
    """Reads vectors as if the final norm divided by 1."""
    return _logits(ends, _behind(ends.ln_final, vectors))


@jax.jit
def _read_at(
    ends: Transformer, vectors: Float[Array, "*items d_model"], at: Float[Array, "*items d_model"], live
) -> Float[Array, "*items d_vocab"]:
    """Reads vectors where the last residual stream is `at`: by the final norm's derivative, with its scale held or not."""
    norm = ends.ln_final
    if norm is None:
        return _logits(ends, vectors)

    def passed(edits):
        through = lambda rows: norm(rows, Tap(NOTHING, edits, frozenset()))
        flat = lambda x: x.reshape(-1, x.shape[-1])
        return jax.jvp(through, (flat(at),), (flat(vectors),))[1].reshape(vectors.shape)

    scale = Site(None, Kind.FINAL_SCALE)
    return _logits(ends, jnp.where(live, passed(NOTHING), passed({scale: Detach()})))


def _logits(ends: Transformer, normalized: Float[Array, "*items d_model"]) -> Float[Array, "*items d_vocab"]:
    logits = normalized @ wide(ends.W_U)
    return logits - jnp.mean(logits, axis=-1, keepdims=True)

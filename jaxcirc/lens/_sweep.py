r"""One prompt's part of a lens: one sweep back through the blocks for all layers, from the target layer down.

With the valid positions $V$, row $i$ of a prompt's Jacobian begins as the covectors that the $i$-th coordinate of the target has at *all*
positions of $V$: what comes of them at position $p$ is $\sum_{p' \in V} \partial h_{target}[p']_i / \partial h_l[p]$. Positions before
the first valid one are never computed: in a causal model nothing there has a part in what comes of later ones.
"""

import functools as ft
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._sites import Kind, Site
from ..linear import between_blocks, head_means, pull_rows
from ..models import Transformer
from ..runs import allowance, in_groups, lengthened, padded_length, record


Rows = Float[Array, "window n d_model"]


class Prompt(NamedTuple):
    """A prompt filled up to the length at which it is run, `[1 seq]`: which of its tokens are real, and which of its positions valid."""

    tokens: Int[np.ndarray, "1 seq"]
    mask: Bool[np.ndarray, "1 seq"]
    valid: Bool[np.ndarray, " seq"]


class Entering(NamedTuple):
    """What enters the blocks of a prompt that the sweep passes, and who attends to whom there, by layer."""

    resid: dict[int, Float[Array, "seq d_model"]]
    masks: dict[int, Bool[Array, "q_seq k_seq"]]


def prepare(model: Transformer, tokens: Int[np.ndarray, " seq"], skip_first: int) -> Prompt:
    """Fills up a prompt. Valid are the positions from `skip_first` on, but for the last, which predicts nothing that is known."""
    seq = len(tokens)
    length, at = padded_length(seq, model.most_positions), np.arange(seq)
    fill = lambda x: lengthened(x[None], length, False)
    valid = (at >= skip_first) & (at < seq - 1)
    return Prompt(lengthened(tokens[None], length), fill(np.ones(seq, bool)), fill(valid)[0])


def enter(model: Transformer, prompt: Prompt, layers: range) -> Entering:
    """Runs a prompt, and keeps what enters the blocks of `layers`."""
    run = record(model, prompt.tokens, prompt.mask, [Site(layer, Kind.RESID_PRE) for layer in layers])
    of = lambda layer: run.values[Site(layer, Kind.RESID_PRE)][0]
    return Entering({layer: of(layer) for layer in layers}, {layer: run.masks[layer][0] for layer in layers})


def prompt_jacobians(
    model: Transformer,
    entering: Entering,
    valid: Bool[np.ndarray, " seq"],
    weights: dict[int, Float[np.ndarray, "average seq"]],
    held: frozenset[Site],
    *,
    rows: range,
    first: int,
    by_head: bool = False,
    budget: int | None = None,
) -> dict[int, Float[Array, "path n d_model"]]:
    r"""Some `rows` of the Jacobians of one prompt, for each layer below the target, `[average out in]`: for each of the averages that are
    asked for $\sum_p w_l[p] \sum_{p' \in V} \partial h_{target}[p'] / \partial h_l[p]$.

    **Arguments:** - `weights[l]` `[average seq]`: $w_l$, 0 at what is not valid. - `held`: sites without tangent. - `first`: no valid
    position is before it. - `by_head`: instead of the one average its parts: by way of each head of the block behind the layer, and
    last what passes all of them. - `budget`: bytes for the rows that are swept together, as they are at all positions.
    """
    budget = allowance(budget)
    window = slice(first if model.causal else 0, len(valid) - 1 if model.causal else len(valid))
    width = window.stop - window.start
    d_model = model.d_model
    itemsize = model.activation_dtype.itemsize
    parts: list[dict[int, Array]] = []
    groups = in_groups(len(rows), 2 * width * d_model * itemsize, budget)
    here = jnp.asarray(valid[window])
    of = {layer: jnp.asarray(weight[:, window].astype(model.activation_dtype)) for layer, weight in weights.items()}
    for outputs in groups:
        outputs = jnp.asarray((rows.start + outputs).astype(np.int32))
        swept = _start(here, outputs, d_model, str(model.activation_dtype))
        found = {}
        for layer in sorted(entering.resid, reverse=True):
            own = frozenset(site.offset_layers(-layer) for site in held if site.layer == layer)
            segment = between_blocks(
                (model.blocks[layer],), (entering.masks[layer],), entering.resid[layer], _IN, _OUT, own
            )
            given = {"first": window.start, "budget": budget}
            heads = head_means(segment, swept, of[layer - 1][0], **given) if by_head else None
            swept = pull_rows(segment, swept, **given)
            whole = _averaged(swept, of[layer - 1])
            found[layer - 1] = whole if heads is None else _with_rest(heads, whole)
        parts.append(found)
    return {layer: _joined([part[layer] for part in parts], len(rows)) for layer in parts[0]}


_IN, _OUT = Site(0, Kind.RESID_PRE), Site(0, Kind.RESID_POST)


@ft.partial(jax.jit, static_argnames=("d_model", "dtype"))
def _start(valid: Bool[Array, " window"], outputs: Int[Array, " n"], d_model: int, dtype: str) -> Rows:
    """Makes the covectors of some coordinates of the target, at every valid position at once."""
    one = jax.nn.one_hot(outputs, d_model, dtype=dtype)
    return jnp.where(valid[:, None, None], one, 0)


@jax.jit
def _averaged(rows: Rows, weights: Float[Array, "average window"]) -> Float[Array, "average n d_model"]:
    # [average window] · [window n d_model] -> [average n d_model]
    return jnp.einsum("aw,wnd->and", weights, rows)


@jax.jit
def _with_rest(
    heads: Float[Array, "head n d_model"], whole: Float[Array, "1 n d_model"]
) -> Float[Array, "path n d_model"]:
    """Puts what no head has of the whole behind the heads' parts."""
    return jnp.concatenate([heads, whole - jnp.sum(heads, axis=0)])


def _joined(parts: list[Float[Array, "path n d_model"]], rows: int) -> Float[Array, "path rows d_model"]:
    """Puts groups of rows behind one another; the last is filled up."""
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)[:, :rows]

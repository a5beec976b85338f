"""Moving single latents of a feature Jacobian, and what the target latents do: as their gradients say, and as the model says."""

import functools as ft
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._checks import check_kind, check_numbers
from .._edits import Replace
from .._run import check_tokens, run
from .._sites import by_site
from .._traced import check_untraced
from .._typing import Keys, Tokens
from ..models import Transformer
from ..runs import at_once, filled, in_loop
from ..saes import Saes
from ._ends import Dictionaries, Ends, find_ends
from ._point import flat
from ._result import FeatureJacobian


if TYPE_CHECKING:
    import pandas as pd


def steer_features(
    jacobian: FeatureJacobian,
    model: Transformer,
    saes: Saes,
    tokens: Tokens,
    *,
    rows: Sequence[int] | Int[np.ndarray, " n"] | None = None,
    steps: Sequence[float] = (0.01, 0.1, 1.0),
) -> "pd.DataFrame":
    r"""Moves source latents, one at a time, and compares the change of the target latent with what the gradient predicts.

    The source's latent $f^0_{qi}$ becomes $f^0_{qi} + \epsilon$, and its decoder writes what it then writes: into the reconstruction where
    the source is substituted, else with its error kept. Everything downstream is computed from there, nonlinearities and all. Predicted is
    $\epsilon\,\partial f^1_{pj} / \partial f^0_{qi}$, so the two differ by terms of order $\epsilon^2$ as long as no nonlinearity
    switches.

    **Arguments:**

    - `jacobian`: with the `model`, `saes` and `tokens` that it was computed from.
    - `rows`: which of its rows; by default the ten with the largest |gradient|.
    - `steps`: the $\epsilon$ of each run.

    **Returns:** a data frame, one row for each pair and step: `position`, `source_position`, `source`, `target`, `step`, `predicted` and
    `measured` change of the target's latent.

    **Raises:** `ValueError` for rows that there are not, no steps, and if the target latents have other values here than in the Jacobian.

    >>> J = jc.feature_jacobian(model, saes, tokens, "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out", minimum=0.1)
    >>> table = jc.steer_features(J, model, saes, tokens, rows=J.strongest(2), steps=[0.01])
    >>> list(table.columns[4:]), len(table)
    (['step', 'predicted', 'measured'], 2)
    """
    check_untraced("steer_features", model)
    import pandas as pd

    check_tokens(model, tokens)
    check_kind("steer_features: jacobian", jacobian, FeatureJacobian, "what jc.feature_jacobian gives")
    chosen = _chosen(jacobian, rows)
    steps = check_numbers("steer_features: steps", steps)
    given = by_site(saes)
    ends, pair = find_ends(model, given, jacobian.source_site, jacobian.target_site, jacobian.substitute)
    columns = [getattr(jacobian, name)[chosen] for name in ("position", "source_position", "source", "target")]
    items = tuple(jnp.asarray(np.repeat(column, len(steps) + 1)) for column in columns)
    strides = jnp.asarray(np.tile([0.0, *steps], len(chosen)), model.activation_dtype)
    prompts, mask = filled(tokens[None], np.ones((1, len(tokens)), bool), model.most_positions)
    each = 4 * prompts.shape[1] * (pair.source.d_sae + model.d_vocab) * strides.dtype.itemsize
    together = at_once(each, on_cpus=8)
    moved = _moved(model, pair, prompts[0], mask[0], items, strides, ends=ends, together=together)
    values = np.asarray(moved).reshape(len(chosen), -1)
    before = values[:, :1]
    _check_values(jacobian, chosen, before[:, 0])
    table = pd.DataFrame(
        {name: np.repeat(getattr(jacobian, name)[chosen], len(steps)) for name in _COLUMNS}
        | {"step": np.tile(steps, len(chosen))}
    )
    table["predicted"] = table["step"] * np.repeat(jacobian.gradient[chosen], len(steps))
    table["measured"] = (values[:, 1:] - before).reshape(-1)
    return table


_COLUMNS = ("position", "source_position", "source", "target")


def _chosen(jacobian: FeatureJacobian, rows) -> Int[np.ndarray, " n"]:
    chosen = jacobian.strongest(10) if rows is None else np.asarray(rows)
    if chosen.ndim != 1 or not len(chosen) or not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(
            f"steer_features: rows is a list of numbers of rows, such as jacobian.strongest(5); got {rows!r}."
        )
    if chosen.min() < 0 or chosen.max() >= len(jacobian):
        raise ValueError(
            f"steer_features: the Jacobian has rows 0 to {len(jacobian) - 1}, and rows names {chosen.min()} to {chosen.max()}."
        )
    return chosen


def _check_values(jacobian: FeatureJacobian, chosen: np.ndarray, before: np.ndarray) -> None:
    was = jacobian.target_act[chosen]
    far = np.abs(before - was) > 1e-3 * np.abs(was).max()
    if far.any():
        first = int(np.argmax(far))
        raise ValueError(
            f"steer_features: target latent {jacobian.target[chosen][first]} at position {jacobian.position[chosen][first]} is "
            f"{before[first]:.4g}, and was {was[first]:.4g} in the Jacobian. Give the model, dictionaries and tokens that it is of."
        )


@ft.partial(jax.jit, static_argnames=("ends", "together"))
def _moved(
    model: Transformer,
    saes: Dictionaries,
    tokens: Tokens,
    mask: Keys,
    items: tuple[Int[Array, " n"], ...],
    steps: Float[Array, " n"],
    *,
    ends: Ends,
    together: int,
) -> Float[Array, " n"]:
    """The target's latent when the source's is moved, pair by pair, `together` of them at a time."""
    values = run(model, tokens, record={ends.source, ends.source_read}, mask=mask)[1]
    whole, x = values[ends.source], flat(values[ends.source_read])
    acts = saes.source.encode(x)
    error = 0 if ends.replaced else flat(whole) - saes.source.decode(acts, x)

    def one(each):
        (position, source_position, source, target), step = each
        recon = saes.source.decode(acts.at[source_position, source].add(step.astype(acts.dtype)), x) + error
        edits = {ends.source: Replace(recon.reshape(whole.shape))}
        read = run(model, tokens, edits=edits, record={ends.target_read}, mask=mask)[1][ends.target_read]
        return saes.target.encode(flat(read)[position])[target]

    return in_loop(one, (items, steps), together)

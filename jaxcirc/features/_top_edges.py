r"""The largest entries of each row of a product of two matrices, found in low precision, and for certain the right ones.

With $\hat x$, $\hat y$ the rounded operands and $u$ the rounding of a sum in float32,

$$|x \cdot y - \hat x \cdot \hat y| \le |x - \hat x|\,|y| + |\hat x|\,|y - \hat y| + d\,u\,|\hat x|\,|\hat y|,$$

for every entry, from the norms of the vectors and of what was really lost in rounding them. An entry that may be among the largest within
that is computed again, in float64 on the host: a few of thousands in each row.
"""

import functools as ft
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._precision import rounded
from ..jacobian._recomputed import Recomputed
from ..runs import allowance, BUDGET


SUM = 2.0**-23  # of float32: tensor cores may cut off where others round


class Found(NamedTuple):
    """The columns and values of the largest entries of each row, in float64, the largest first; and what was computed again."""

    column: Int[np.ndarray, "n k"]
    value: Float[np.ndarray, "n k"]
    recomputed: Recomputed


class _Operand(NamedTuple):
    """Rows of one side: rounded, as float32; their norms, those of the rounded ones, and of what was lost."""

    rounded: Float[Array, "n d"]
    norm: Float[np.ndarray, " n"]
    kept: Float[np.ndarray, " n"]
    lost: Float[np.ndarray, " n"]


def largest_of_rows(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "width d"], k: int, precision: str, budget: int | None = None
) -> Found:
    """The `k` largest entries, by absolute value, of each row of `x @ y.T`; products of the whole are in `precision`.

    **Raises:** `ValueError` if a product is further off than it can be.
    """
    budget, n, width = allowance(budget), len(x), len(y)
    right, block = _operand(y, precision), min(n, max(1, budget // (3 * width * 8)))
    column, value = np.zeros((n, k), np.int64), np.zeros((n, k))
    largest, error, bound, edges = 0.0, 0.0, 0.0, 0
    for done in range(0, n, block):
        first = min(done, n - block)  # blocks of one size, which are one program
        left = _operand(x[first : first + block], precision)
        slack = _slack(left, right)
        entries = np.asarray(_contenders(left.rounded, right.rounded, *slack, k=k, precision=precision))
        row, at = np.nonzero(~np.isnan(entries))
        exact = _entries(x[first : first + block], y, row, at)
        off = np.abs(entries[row, at] - exact)
        allowed = _allowed(slack, row, at)
        if not (off <= allowed).all():
            worst = int(np.argmax(off - allowed))
            raise ValueError(
                f"The result is wrong: an entry of a product in {precision} is off by {off[worst]:.3g}, and rounding accounts for "
                f"{allowed[worst]:.3g}. Run `jaxcirc doctor`, and compute in float32."
            )
        order = np.lexsort((at, -np.abs(exact), row))
        begin = np.searchsorted(row, np.arange(block))  # at least k in each row
        kept = order[begin[:, None] + np.arange(k)]
        column[first : first + block], value[first : first + block] = at[kept], exact[kept]
        new = row >= done - first
        largest, edges = max(largest, float(np.abs(exact).max())), edges + int(new.sum())
        error, bound = max(error, float(off.max())), max(bound, float(allowed.max()))
    size = largest or 1.0
    return Found(column, value, Recomputed(precision, error / size, bound / size, edges, n * width))


def _operand(rows: Float[np.ndarray, "n d"], precision: str) -> _Operand:
    made = rounded(jnp.asarray(rows.astype(np.float32)), precision)
    exact, kept = rows.astype(np.float64), np.asarray(made, np.float64)
    norm = ft.partial(np.linalg.norm, axis=1)
    return _Operand(made, norm(exact), norm(kept), norm(exact - kept))


Slack = tuple[Float[Array, "n 3"], Float[Array, "width 3"]]


def _slack(left: _Operand, right: _Operand) -> Slack:
    """Two thin matrices whose product says by how much each entry may be off."""
    sums = SUM * left.rounded.shape[1]
    of_left = np.stack([left.lost, left.kept, sums * left.kept], axis=1)
    of_right = np.stack([right.norm, right.lost, right.kept], axis=1)
    up = 1 + 2.0**-20  # for the rounding of the slack itself
    return jnp.asarray((up * of_left).astype(np.float32)), jnp.asarray((up * of_right).astype(np.float32))


def _allowed(slack: Slack, row: np.ndarray, at: np.ndarray) -> np.ndarray:
    of_left, of_right = (np.asarray(each, np.float64) for each in slack)
    return np.einsum("ei,ei->e", of_left[row], of_right[at])


@ft.partial(jax.jit, static_argnames=("k", "precision"))
def _contenders(
    x: Float[Array, "n d"],
    y: Float[Array, "width d"],
    slack_x: Float[Array, "n 3"],
    slack_y: Float[Array, "width 3"],
    *,
    k: int,
    precision: str,
) -> Float[Array, "n width"]:
    """The entries that may be among the `k` largest of their row, and NaN at all others."""
    if precision == "bfloat16":
        x, y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)  # which nothing is lost by any more
    product = jnp.matmul(x, y.T, precision=precision, preferred_element_type=jnp.float32)
    slack = jnp.matmul(slack_x, slack_y.T, precision="highest")
    size = jnp.abs(product)
    least = jax.lax.top_k(size - slack, k)[0][:, -1:]
    return jnp.where(size + slack >= least, product, jnp.nan)


def _entries(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "width d"], row: np.ndarray, at: np.ndarray
) -> np.ndarray:
    """Single entries of `x @ y.T` in float64, so many at once as the budget holds."""
    found, together = np.zeros(len(row)), max(1, BUDGET // (16 * x.shape[1]))
    for first in range(0, len(row), together):
        some = slice(first, first + together)
        found[some] = np.einsum("ed,ed->e", x[row[some]].astype(np.float64), y[at[some]].astype(np.float64))
    return found

"""What activation patching gives: the metric of every cell's run, normalised as asked, with means over prompts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._shown import Shown
from .._sites import Site
from ._cells import BY
from ._site_groups import group_name


if TYPE_CHECKING:
    import pandas as pd

DIRECTIONS = ("denoise", "noise")
NORMALISATIONS = ("fraction", "difference", "metric")


class PatchedMetrics(Shown, eqx.Module):
    r"""The metric of runs in which one cell of a site has the value of another run. By the short name of a site's kind, such as `"z"`; the
    axes behind the batch are as `by` says, `layer`, then `head` and `position` where there are any.

    **Attributes:**

    - `metrics[name]` `[batch layer …]`: as measured.
    - `base`, `other` `[batch]`: the metric of the run that is patched, and of that which the values are from; `clean` and `corrupt` are
      the same two by prompt.
    - `sites`: all that were patched; `layers(name)` are those of a kind, in the order of the axis.
    - `by`, `direction`, `normalise`: as in `jc.activation_patch`. `dataclasses.replace(found, normalise=…)` normalises otherwise.
    """

    metrics: dict[str, Float[Array, "batch layer ..."]]
    base: Float[Array, " batch"]
    other: Float[Array, " batch"]
    sites: tuple[Site, ...] = eqx.field(static=True)
    by: str = eqx.field(static=True)
    direction: str = eqx.field(static=True)
    normalise: str = eqx.field(static=True)

    @property
    def clean(self) -> Float[Array, " batch"]:
        """The metric of the clean prompts."""
        return self.base if self.direction == "noise" else self.other

    @property
    def corrupt(self) -> Float[Array, " batch"]:
        """The metric of the corrupt prompts."""
        return self.other if self.direction == "noise" else self.base

    @property
    def names(self) -> tuple[str, ...]:
        """The kinds of sites, in execution order."""
        return tuple(dict.fromkeys(map(group_name, self.sites)))

    @property
    def axes(self) -> tuple[str, ...]:
        """What the axes behind the batch are."""
        heads, position = BY[self.by]
        return ("layer", *(("head",) if heads else ()), *(("position",) if position else ()))

    def layers(self, name: str) -> tuple[int | None, ...]:
        """The layers of a kind of site; `None` for an embedding."""
        return tuple(site.layer for site in self.sites if group_name(site) == name)

    @property
    def values(self) -> dict[str, Float[Array, "batch layer ..."]]:
        r"""The metrics, normalised. Of prompt $b$, with base metrics $m_b$ and other ones $m'_b$, a patched metric $p_b$ is
        $$\frac{p_b - m_b}{\overline{m'} - \overline{m}}$$
        as a `"fraction"`: all prompts are divided by one mean difference, as papers do, so the mean over prompts is 1 where every run
        becomes the other, and no prompt on which both are close by outweighs the rest. It is the numerator as a `"difference"`, and
        $p_b$ as a `"metric"`.

        **Raises:** `ValueError` for a fraction where there is no difference.
        """
        if self.normalise == "metric":
            return {name: self.metrics[name] for name in self.names}
        gap = check_gap(np.asarray(self.base), np.asarray(self.other)) if self.normalise == "fraction" else None
        change = lambda x: x - jnp.expand_dims(self.base, tuple(range(1, x.ndim)))
        return {
            name: change(self.metrics[name]) if gap is None else change(self.metrics[name]) / gap for name in self.names
        }

    def mean(self) -> dict[str, Float[np.ndarray, "layer ..."]]:
        """The mean of `values` over prompts."""
        return {name: np.asarray(x).mean(0) for name, x in self.values.items()}

    def standard_error(self) -> dict[str, Float[np.ndarray, "layer ..."]]:
        r"""The standard error of that mean, from the spread of the prompts; NaN for one prompt. A fraction $f$ is a ratio of means, whose
        error is that of $p_b - m_b - f (m'_b - m_b)$, by the mean difference (Cochran 1977, eq. 2.46).
        """
        n = len(self.base)
        out = {}
        for name, x in self.values.items():
            spread = np.asarray(x) - np.asarray(x).mean(0)
            if self.normalise == "fraction":
                gaps = np.asarray(self.other - self.base)
                gaps = (gaps / gaps.mean() - 1).reshape(-1, *[1] * (x.ndim - 1))
                spread = spread - np.asarray(x).mean(0) * gaps
            out[name] = np.sqrt((spread**2).sum(0) / (n - 1) / n) if n > 1 else np.full(x.shape[1:], np.nan)
        return out

    def table(self, tokens: Sequence[str] | None = None) -> "pd.DataFrame":
        """A row a cell, the largest mean first: `site`, `layer`, `head` and `position` where there are any, the mean `value` over prompts
        and its `standard_error`.

        **Arguments:** - `tokens`: the text at each position, for a column `token`.

        **Raises:** `ValueError` for another number of tokens than there are positions.
        """
        import pandas as pd

        if tokens is not None:
            self.check_tokens("table", tokens)
        columns: dict[str, list] = {name: [] for name in ("site", *self.axes, "token", "value", "standard_error")}
        mean, error = self.mean(), self.standard_error()
        for name in self.names:
            own = [site for site in self.sites if group_name(site) == name]
            index = np.indices(mean[name].shape).reshape(mean[name].ndim, -1)
            columns["site"] += [str(own[i]) for i in index[0]]
            columns["layer"] += [own[i].layer for i in index[0]]
            for axis, numbers in zip(self.axes[1:], index[1:], strict=True):
                columns[axis] += numbers.tolist()
            if tokens is not None and "position" in self.axes:
                columns["token"] += [tokens[at] for at in index[-1]]
            columns["value"] += mean[name].ravel().tolist()
            columns["standard_error"] += error[name].ravel().tolist()
        table = pd.DataFrame({name: column for name, column in columns.items() if column or name != "token"})
        # By size where 0 is no change, and as it is where the values are the metric.
        size = table["value"] if self.normalise == "metric" else table["value"].abs()
        return table.iloc[np.argsort(-size.to_numpy(), kind="stable")].reset_index(drop=True)

    def check_tokens(self, who: str, tokens: Sequence[str]) -> None:
        """ValueError unless there is a text for each position."""
        seq = self.metrics[self.names[0]].shape[-1]
        if "position" in self.axes and len(tokens) != seq:
            raise ValueError(f"{who}: tokens are the text at each of {seq} positions, got {len(tokens)}.")


def check_gap(base: Float[np.ndarray, " batch"], other: Float[np.ndarray, " batch"]) -> float:
    """The mean difference of the metric between two runs. **Raises:** `ValueError` if there is none beside rounding."""
    gap, size = float(np.mean(other - base)), float(np.mean(np.abs(base) + np.abs(other)))
    if abs(gap) <= 32 * np.finfo(base.dtype).eps * size:
        raise ValueError(
            f"The metric is the same on clean and corrupt prompts, {float(np.mean(base)):z.6g} on average, so there is no difference to "
            "take fractions of. Give a metric on which they differ, or normalise='difference'."
        )
    return gap

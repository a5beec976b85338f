"""Confidence intervals over prompts."""

import numpy as np
from jaxtyping import Float


def jackknife_interval(
    who: str, estimate: Float[np.ndarray, "..."], without: Float[np.ndarray, "prompt ..."], level: float
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    r"""Student's interval $\hat\theta \pm t_{n-1} s$ with the jackknife's standard error (Tukey 1958): of the estimates $\theta_{(i)}$
    `without` each of the $n$ prompts,
    $$s^2 = \frac{n-1}{n} \sum_i (\theta_{(i)} - \bar\theta)^2.$$
    Percentiles of a bootstrap are too narrow where prompts are few, because it draws from a sample whose spread is too small, and knows
    no $t$. NaN for one prompt, which says nothing of others.

    **Raises:** `ValueError` for a level that is no share.
    """
    if not 0 < level < 1:
        raise ValueError(f"{who}: level is how often the interval holds the true value, such as 0.95; got {level!r}.")
    n = len(without)
    if n < 2:
        nothing = np.full(estimate.shape, np.nan)
        return nothing, nothing
    from scipy.special import stdtrit  # a third of a second, which `import jaxcirc` need not take

    error = np.sqrt((n - 1) / n * ((without - without.mean(0)) ** 2).sum(0))
    reach = stdtrit(n - 1, (1 + level) / 2) * error
    return np.asarray(estimate - reach), np.asarray(estimate + reach)

"""How often confidence intervals over prompts hold the true value, in simulations: `python -m benchmarks.coverage`.

Prompts are drawn of which the true faithfulness, or the true slope of self-repair, is known; intervals of level 0.95 should hold it in
95 of 100 cases. Beside the library's, Student's with the jackknife's standard error, stands the percentile bootstrap's.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

import jaxcirc as jc


RESULTS = Path(__file__).parent / "results"
PROMPTS = (4, 8, 16, 32)

# Of prompts: the change of the metric that the circuit alone makes, and the whole model, from where everything is ablated.
METRICS: dict[str, Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]] = {
    "normal": lambda rng, n: _with_noise(8 + 3 * rng.normal(size=n), 2 * rng.normal(size=n)),
    "shares that differ": lambda rng, n: _of_shares(np.exp(2 + 0.4 * rng.normal(size=n)), rng.beta(4, 1, n)),
    "skewed": lambda rng, n: _with_noise(rng.gamma(2, 4, n), rng.exponential(3, n) - 3),
    "weak": lambda rng, n: _with_noise(2 + 2.5 * rng.normal(size=n), rng.normal(size=n)),
}
SLOPES: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "normal": lambda rng, shape: rng.normal(1, 1, shape),
    "prompts that differ": lambda rng, shape: rng.normal(size=shape) + rng.exponential(2, (shape[0], 1)),
}
TOKENS, SLOPE = 20, -0.4


def _with_noise(whole, noise):
    return 0.7 * whole + noise, whole


def _of_shares(whole, share):
    return share * whole, whole


def of_faithfulness(kind: str, n: int, repeats: int, percentiles: bool) -> tuple[float, float]:
    """How often the interval holds the true faithfulness, and a percentile bootstrap's."""
    rng = np.random.default_rng(n)
    part, whole = METRICS[kind](np.random.default_rng(0), 10**6)
    truth, zero, hits = part.mean() / whole.mean(), np.zeros(n), np.zeros(2)
    for _ in range(repeats):
        part, whole = METRICS[kind](rng, n)
        found = jc.Evaluation({"full": whole, "circuit": part, "empty": zero, "complement": zero}, {})
        hits[0] += _holds(found.interval(), truth)
        if percentiles:
            drawn = rng.multinomial(n, np.full(n, 1 / n), 1000)
            hits[1] += _holds(np.quantile((drawn @ part) / (drawn @ whole), [0.025, 0.975]), truth)
    return tuple(hits / repeats)


def of_slopes(kind: str, n: int, repeats: int, percentiles: bool) -> tuple[float, float]:
    """The same of the slope of self-repair, with noise that a prompt's tokens share."""
    from jaxcirc.components._after_heads import Changes
    from jaxcirc.components._repair import fitted

    rng, hits, shape = np.random.default_rng(n), np.zeros(2), (n, TOKENS)
    used = np.arange(TOKENS) < TOKENS - 1
    for _ in range(repeats):
        direct = SLOPES[kind](rng, shape)
        backup = SLOPE * direct + (0.3 + 0.2 * np.abs(direct)) * rng.normal(size=shape) + 0.3 * rng.normal(size=(n, 1))
        x, y = (array[:, None, None] for array in (direct, backup))
        found = fitted(Changes(x, x, y, y, y, y), np.broadcast_to(used, shape), jc.OLS(), None)
        hits[0] += _holds(np.array(found.interval())[:, 0, 0], SLOPE)
        if percentiles:
            x, y = direct[:, used], backup[:, used]
            sums = np.stack([np.full(n, x.shape[1]), x.sum(1), y.sum(1), (x * x).sum(1), (x * y).sum(1)])
            slopes, _ = jc.OLS().line(sums @ rng.multinomial(n, np.full(n, 1 / n), 1000).T)
            hits[1] += _holds(np.quantile(slopes, [0.025, 0.975]), SLOPE)
    return tuple(hits / repeats)


def _holds(interval, value: float) -> bool:
    return bool(interval[0] <= value <= interval[1])


def table(repeats: int) -> str:
    """As markdown."""
    lines = ["| of | prompts are | how many | held | percentile bootstrap |", "|---|---|---|---|---|"]
    for what, measure, kinds in (("faithfulness", of_faithfulness, METRICS), ("slope", of_slopes, SLOPES)):
        for kind in kinds:
            for n in PROMPTS:
                ours, theirs = measure(kind, n, repeats, True)
                lines.append(f"| {what} | {kind} | {n} | {ours:.3f} | {theirs:.3f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures how often confidence intervals hold the true value.")
    parser.add_argument("--repeats", type=int, default=3000, metavar="N", help="simulations a row (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    found = table(arguments.repeats)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "coverage.md").write_text(found, encoding="utf-8")
    print(found)


if __name__ == "__main__":
    main()

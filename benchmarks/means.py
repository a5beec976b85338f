"""What the mean Jacobian of an MLP takes over a corpus, against running the model up to it: `python -m benchmarks.means`.

A random model of GPT-2-small's shape and random prompts. `forwards` is the embedding, all blocks before and the MLP's own block, compiled
block by block as `jc.jacobian.mean` runs them, in the same batches, up to what the MLP adds: what a run of the model has to do before
anything can be said of that MLP. Both sides are timed in turn, after equality: the mean over the first few positions against `jax.jacfwd`
of the block's own code at each, added up in float64. Beside the ratio stands how many Jacobians of a single position would take as long, by
`jax.jacfwd`. Prints a table and writes `benchmarks/results/means.json` and `.md`.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxcirc as jc
from jaxcirc._tap import bare_tap
from jaxcirc.runs import corpus_batches, values_until

from ._circuits import make_model
from ._ours_repair import model_of
from ._report import RESULTS, write
from ._settings import describe, limit
from ._timing import check_equal, first_call, side_by_side, wait


CHECKED = 4  # positions of which the exact Jacobians are added up


def measured(model: jc.Transformer, tokens: np.ndarray, layer: int, together: int, repeats: int) -> dict[str, Any]:
    """One row: seconds of both sides, and of one position's Jacobian by forward mode."""
    error = check_equal(f"layer {layer}", *_check(model, tokens, layer), limit("highest"))
    added = jc.Site(layer, jc.Kind.MLP_OUT)

    def forwards():
        for batch in corpus_batches("forwards", model, tokens, None, None, together):
            wait(values_until(model, batch.tokens, batch.mask, {added}))

    mean = lambda: jc.jacobian.mean(model, tokens, layer, tokens_at_once=together).matrix
    runs = {"forwards": forwards, "mean": mean}
    compiling = {name: first_call(run)[1] for name, run in runs.items()}
    times = {name: statistics.median(found) for name, found in side_by_side(runs, repeats, at_most=600).items()}
    one = _one_jacobian(model, tokens, layer)
    print(f"layer {layer}: {times['mean'] / times['forwards']:.2f}", file=sys.stderr, flush=True)
    return {
        "layer": layer,
        "positions": tokens.size,
        "forwards": times["forwards"],
        "mean": times["mean"],
        "ratio": times["mean"] / times["forwards"],
        "jacobian": one,
        "equal_to": times["mean"] / one,
        "first_calls": compiling,
        "error": error,
    }


def _check(model: jc.Transformer, tokens: np.ndarray, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean over a few positions of the first prompt, and that of exact Jacobians."""
    weights = np.zeros((1, tokens.shape[1]))
    weights[0, :CHECKED] = 1
    values = values_until(model, tokens[:1], np.ones((1, tokens.shape[1]), bool), {_enters(model, layer)})
    (x,) = values.values()
    each = [np.asarray(_exact(model.blocks[layer], x[0, i]), np.float64) for i in range(CHECKED)]
    return jc.jacobian.mean(model, tokens[:1], layer, weights=weights).matrix, np.mean(each, axis=0)


def _one_jacobian(model: jc.Transformer, tokens: np.ndarray, layer: int) -> float:
    x = jnp.ones(model.d_model, model.activation_dtype)
    return statistics.median(side_by_side({"one": lambda: _exact(model.blocks[layer], x)}, 5)["one"])


def _enters(model: jc.Transformer, layer: int) -> jc.Site:
    return jc.Site(layer, model.blocks[layer].mlp_reads)


@jax.jit
def _exact(block, x):
    """Of what the MLP adds to a sequential block's residual stream."""
    return jax.jacfwd(lambda x: block.feed(x[None], bare_tap(0))[0] - x)(x)


def table(results: dict[str, Any]) -> str:
    """What was measured on, and a line a layer."""
    machine = results["machine"]
    device = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    row = results["rows"][0]
    lines = [
        f"{device}, {machine['cores']} cores, {machine['dtype']}, jax {machine['jax']}. Width {results['width']}, "
        f"{row['positions']:,} positions in prompts of {results['length']}, {results['together']:,} tokens at once. Forwards are of the "
        "embedding and all blocks up to and with the MLP.",
        "",
        "| MLP of layer | mean / forwards | forwards | mean Jacobian | Jacobians of one position in that time |",
        "|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        times = f"{row['forwards']:.1f} s | {row['mean']:.1f} s"
        lines.append(f"| {row['layer']} | {row['ratio']:.2f} | {times} | {row['equal_to']:,.0f} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.means", description="Measures mean Jacobians.")
    add = parser.add_argument
    add("--layers", type=int, nargs="+", metavar="N", default=[0, 5, 11], help="whose MLPs (%(default)s)")
    add("--positions", type=int, metavar="N", default=100_000, help="of the corpus (%(default)s)")
    add("--length", type=int, metavar="N", default=128, help="of its prompts (%(default)s)")
    add("--width", type=int, metavar="N", default=768, help="d_model (%(default)s)")
    add("--together", type=int, metavar="N", default=8192, help="tokens at once (%(default)s)")
    add("--repeats", type=int, metavar="N", default=3, help="(%(default)s)")
    add("--out", type=Path, default=RESULTS, help="folder for JSON and table (%(default)s)")
    given = parser.parse_args(argv)
    sizes = {"layers": max(given.layers) + 1, "d_model": given.width, "heads": max(1, given.width // 64)}
    model = model_of(make_model(**sizes, seq=given.length, vocabulary=1024))
    prompts = -(-given.positions // given.length)
    tokens = np.random.default_rng(0).integers(0, 1024, (prompts, given.length)).astype(np.int32)
    rows = [measured(model, tokens, layer, given.together, given.repeats) for layer in given.layers]
    about = {"width": given.width, "length": given.length, "together": given.together}
    results = {"machine": describe("highest"), **about, "rows": rows}
    write(results, given.out, "means", table)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What each precision of matrix products gives and costs on the device that is here: `python -m benchmarks.precisions`.

For one product, and for the edges through a block at prompts of several lengths: seconds, the share of the rate of a product at the same
precision, and the largest error against float64, in which both are computed first, on the same device. Random weights and items, in GPT-2's
shapes. With the rate at which the device copies. Prints a table and writes `benchmarks/results/precisions.json` and `.md`.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxcirc as jc

from . import _ours, _work
from ._problems import Blocks, Items, make_blocks, make_items
from ._report import last_of, RESULTS, write
from ._settings import describe
from ._timing import first_call, matmul_rate, relative_error, seconds, side_by_side, spread, wait


PRECISIONS = ("highest", "tensorfloat32", "bfloat16")
CHECKED = 512  # rows of the product that are compared


def measured(lengths: list[int], width: int, items: tuple[int, int], repeats: int) -> Iterator[dict[str, Any]]:
    """The numbers so far, of the device and of one product at each precision, and after each edges at a length and a precision."""
    products = [{"precision": precision, **_product(precision)} for precision in PRECISIONS]
    rates = {found["precision"]: found["rate"] for found in products}
    sizes = {"width": width, "heads": width // 64, "m": items[0], "k": items[1]}
    results: dict[str, Any] = {
        "machine": describe("each"),
        "sizes": sizes,
        "copied_bytes_a_second": copy_rate(),
        "products": products,
        "edges": [],
    }
    yield results
    for length in lengths:
        for row in _edges(length, width, items, repeats, rates):
            results["edges"].append(row)
            yield results


def _product(precision: str) -> dict[str, float]:
    """The rate of one product of float32 matrices, and its error over `CHECKED` of its rows."""
    n = 2048
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((rows, n)).astype(np.float32) for rows in (CHECKED, n))
    with jax.default_matmul_precision(precision):
        rate = matmul_rate()
        error = relative_error(jnp.asarray(a) @ jnp.asarray(b), a.astype(np.float64) @ b.astype(np.float64))
    say(f"a product, {precision}: {rate / 1e12:.1f} Tflop/s, relative error {error:.1e}")
    return {"rate": rate, "error": error}


def copy_rate(size: int | None = None) -> float:
    """Bytes a second, read and written, where an array of `size` bytes is read and its negative written; the best of a few."""
    count = (size or (2**28 if jax.default_backend() == "cpu" else 2**32)) // 4
    x = jnp.ones(count, jnp.float32)
    copy = jax.jit(lambda x: -x)
    wait(copy(x))
    return 2 * 4 * count / min(seconds(lambda: copy(x)) for _ in range(5))


def _edges(
    length: int, width: int, items: tuple[int, int], repeats: int, rates: dict[str, float]
) -> Iterator[dict[str, Any]]:
    """A line for each precision."""
    heads, (m, k) = width // 64, items
    blocks = make_blocks(d_model=width, heads=heads, seq=length)
    given = make_items(d_model=width, seq=length, m=m, k=k)
    exact = _in_float64(blocks, given)
    work = _work.block_edges(d_model=width, heads=heads, seq=length, m=m, k=k)["own"]
    for precision in PRECISIONS:
        with jax.default_matmul_precision(precision):
            run = _ours.contraction(_ours.jacobian(blocks, *_ours.ENDS["block"]), given)
            found, first = first_call(run)
            error = relative_error(found, exact)
            took = spread(side_by_side({"ours": run}, repeats)["ours"])
        share = work / took["median"] / rates[precision]
        say(
            f"{length} tokens, {precision}: {took['median']:.3g} s, {share:.0%} of the rate, relative error {error:.1e}"
        )
        row = {"length": length, "precision": precision, "seconds": took, "share": share, "error": error}
        yield row | {"compile_seconds": first - took["median"]}


def _in_float64(blocks: Blocks, items: Items) -> np.ndarray:
    """The same edges with weights, inputs and products in float64."""
    before = jax.config.values["jax_enable_x64"]
    jax.config.update("jax_enable_x64", True)
    try:
        wide = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, _ours.make_model(blocks))
        J = jc.edge(wide, jnp.asarray(blocks.tokens), *_ours.ENDS["block"])
        return np.asarray(
            _ours.contraction(J, items._replace(left=items.left.astype(float), right=items.right.astype(float)))()
        )
    finally:
        jax.config.update("jax_enable_x64", before)


def table(results: dict[str, Any]) -> str:
    """What was measured on, and a table for products and one for edges."""
    machine, sizes = results["machine"], results["sizes"]
    cpu = machine["device"] == "cpu"
    device = machine["processor"] if cpu else machine["device"]
    lines = [
        f"{device}, {machine['cores']} cores, {machine['dtype']}, jax {machine['jax']}; copies "
        f"{results['copied_bytes_a_second'] / 1e9:.0f} GB/s.",
        "",
        "| one product | Tflop/s | relative error |",
        "|---|---|---|",
    ]
    for row in results["products"]:
        lines.append(f"| {row['precision']} | {row['rate'] / 1e12:.3g} | {row['error']:.0e} |")
    lines += [
        "",
        f"{sizes['m']:,} x {sizes['k']:,} edges through a block, d_model {sizes['width']}, heads {sizes['heads']}:",
        "",
        f"| tokens | precision | {'times the first row' if cpu else 'seconds'} | share of the product's rate | relative error |",
        "|---|---|---|---|---|",
    ]
    unit = results["edges"][0]["seconds"]["median"] if cpu and results["edges"] else 1.0
    for row in results["edges"]:
        took = f"{row['seconds']['median'] / unit:.3g} | {row['share']:.0%} | {row['error']:.0e}"
        lines.append(f"| {row['length']} | {row['precision']} | {took} |")
    return "\n".join(lines) + "\n"


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precisions", description="Measures precisions.")
    add = parser.add_argument
    add("--lengths", type=int, nargs="+", metavar="N", default=[128, 512, 1024], help="tokens (%(default)s)")
    add("--width", type=int, metavar="N", default=768, help="d_model, a multiple of 64 (%(default)s)")
    add("--items", type=int, nargs=2, metavar="N", default=[2048, 4096], help="covectors and vectors (%(default)s)")
    add("--repeats", type=int, metavar="N", default=5, help="rounds (%(default)s)")
    add("--out", type=Path, default=RESULTS, help="folder for JSON and table (%(default)s)")
    given = parser.parse_args(argv)
    found = measured(given.lengths, given.width, tuple(given.items), given.repeats)
    results = last_of(found, given.out, "precisions", table)
    write(results, given.out, "precisions", table)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())

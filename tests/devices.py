"""What is computed on several devices of one process, as a process of its own: `python -m tests.devices OUT` writes arrays and tables.

How many devices there are is said before JAX begins, by `XLA_FLAGS`; so the tests run this once for each number of them.
"""

import os
import sys
import warnings
from pathlib import Path

import jax
import numpy as np

import jaxcirc as jc

from .helpers import model_named
from .test_jobs import ROWS, SITES, VERB, write_lines


# More than two for each of two devices, fewer than one for each of eight; all are run at one length.
PROMPTS = [np.random.default_rng(n).integers(0, 13, n) for n in (9, 12, 11, 10, 9, 12, 10)]


def flags(count: int) -> dict[str, str]:
    """The environment of a process with so many devices, with the numbers of this one."""
    return {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}",
        "JAX_ENABLE_X64": str(int(jax.config.jax_enable_x64)),
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    }


def lenses(folder: Path) -> dict[str, np.ndarray]:
    """One that was stopped and goes on, one of clusters that ends when it is sure enough, and one by heads whose rows are divided too."""
    model, count = model_named("gpt2-inverse-layer-scale"), jax.local_device_count()
    data = jax.make_mesh((count,), ("data",))
    both = jax.make_mesh((min(2, count), max(1, count // 2)), ("tangents", "data"))
    fit = lambda mesh, some=PROMPTS, **more: jc.fit_lens(model, some, skip_first=3, mesh=mesh, **more)
    kept = folder / "lens.safetensors"
    fit(data, PROMPTS[:4], checkpoint=kept)
    found = {
        "resumed": fit(data, checkpoint=kept),
        "cluster": fit(data, average="cluster", clusters=2, stop_movement=1e3, least=3),
        "head": fit(both, average="head"),
    }
    assert [number for number, *_ in found["resumed"].history] == list(range(len(PROMPTS)))
    assert found["cluster"].n_prompts == 3
    return {f"{name} {layer}": np.asarray(lens.J[layer]) for name, lens in found.items() for layer in lens.layers}


def main(folder: Path) -> None:
    warnings.simplefilter("error")
    folder.mkdir()
    np.savez(folder / "lenses.npz", **lenses(folder))
    saes, given = jc.load_saes("tiny-gpt-neo"), jc.load_tokenizer("tiny-gpt-neo")
    few = {site: sae for site, sae in saes.items() if str(site) in SITES}
    prompts = write_lines(folder / "prompts.jsonl", ROWS)
    model = jc.from_pretrained("tiny-gpt-neo")
    jc.attribute(model, few, given, prompts, folder / "tables", VERB, batch_size=2, shard_lines=3)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

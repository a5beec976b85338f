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

from .helpers import model_named, tokens_for
from .test_jobs import ROWS, SITES, VERB, write_lines


LENGTHS = (9, 12, 8, 11, 10, 12, 9)  # more than two for each of two devices, fewer than one for each of eight


def flags(count: int) -> dict[str, str]:
    """The environment of a process with so many devices, with the numbers of this one."""
    return {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}",
        "JAX_ENABLE_X64": str(int(jax.config.jax_enable_x64)),
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    }


def lenses(folder: Path) -> dict[str, np.ndarray]:
    """A lens of each kind, and one that was stopped and goes on."""
    model, count = model_named("gpt2-inverse-layer-scale"), jax.local_device_count()
    prompts = [np.asarray(tokens_for(model, n, seed=n)) for n in LENGTHS]
    meshes = {"data": jax.make_mesh((count,), ("data",)), "tangents": jax.make_mesh((count,), ("tangents",))}
    if count > 1:
        meshes["both"] = jax.make_mesh((2, count // 2), ("tangents", "data"))
    fit = lambda mesh, some=prompts, **more: jc.fit_lens(model, some, skip_first=3, mesh=mesh, **more)
    found = {f"lens {name}": fit(mesh) for name, mesh in meshes.items()}
    found["lens cluster"] = fit(meshes["data"], average="cluster", clusters=2)
    found["lens head"] = fit(meshes["tangents"], average="head")
    found["lens stopped"] = fit(meshes["data"], stop_movement=1e3, least=3)
    assert found["lens stopped"].n_prompts == 3
    kept = folder / "lens.safetensors"
    fit(meshes["data"], prompts[:4], checkpoint=kept)
    found["lens resumed"] = fit(meshes["data"], checkpoint=kept)
    assert [number for number, *_ in found["lens resumed"].history] == list(range(len(prompts)))
    return {
        f"{name} {layer}": np.stack([np.asarray(lens.J[layer])])
        for name, lens in found.items()
        for layer in lens.layers
    }


def main(folder: Path) -> None:
    warnings.simplefilter("error")
    folder.mkdir()
    np.savez(folder / "lenses.npz", **lenses(folder), allow_pickle=False)
    saes, given = jc.load_saes("tiny-gpt-neo"), jc.load_tokenizer("tiny-gpt-neo")
    few = {site: sae for site, sae in saes.items() if str(site) in SITES}
    prompts = write_lines(folder / "prompts.jsonl", ROWS)
    model = jc.from_pretrained("tiny-gpt-neo")
    jc.attribute(model, few, given, prompts, folder / "tables", VERB, batch_size=2, shard_lines=3)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

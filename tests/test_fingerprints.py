"""Fingerprints: the same in every process, of everything that decides what is computed, and of nothing else."""

import dataclasses
import functools as ft
import hashlib
import os
import subprocess
import sys
import tracemalloc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc._fingerprint import _gathered, exact_fingerprint, fingerprint
from jaxcirc.attribution import fingerprints
from jaxcirc.parts import gelu, gelu_new, relu
from jaxcirc.saes import Standardise, TopK

from .dictionaries import DICTIONARIES, make_sae
from .helpers import as_dtype, counting_programs, make_model, model_named, MODELS, REPOSITORY, tokens_for


BOTH = (fingerprint, exact_fingerprint)
SITE = jc.Site(1, jc.Kind.RESID_PRE)


def replaced(tree, path: str, value):
    """`tree` with the attribute at a dotted path replaced, whether it is static or not; numbers are indices."""
    name, _, rest = path.partition(".")
    if isinstance(tree, tuple):
        at = int(name)
        return (*tree[:at], replaced(tree[at], rest, value), *tree[at + 1 :])
    return dataclasses.replace(tree, **{name: replaced(getattr(tree, name), rest, value) if rest else value})


MODEL = make_model(jax.random.key(0))
SETTINGS = {
    "activation": replaced(MODEL, "blocks.1.mlp.act", gelu),
    "another activation": replaced(MODEL, "blocks.1.mlp.act", relu),
    "activation of JAX": replaced(MODEL, "blocks.1.mlp.act", jax.nn.relu),
    "activation made in passing": replaced(MODEL, "blocks.1.mlp.act", lambda x: gelu_new(2 * x)),
    "another one made in passing": replaced(MODEL, "blocks.1.mlp.act", lambda x: gelu_new(3 * x)),
    "activation with an argument": replaced(
        MODEL, "blocks.1.mlp.act", ft.partial(jax.nn.leaky_relu, negative_slope=0.1)
    ),
    "another argument": replaced(MODEL, "blocks.1.mlp.act", ft.partial(jax.nn.leaky_relu, negative_slope=0.2)),
    "windows": dataclasses.replace(MODEL, windows=(None, 3)),
    "another window": dataclasses.replace(MODEL, windows=(None, 4)),
    "causality": dataclasses.replace(MODEL, causal=False),
    "parallel": replaced(MODEL, "blocks.0.parallel", True),
    "epsilon": replaced(MODEL, "blocks.0.ln1.eps", 1e-6),
    "no norm": dataclasses.replace(MODEL, ln_final=None),
    "a scale": replaced(MODEL, "blocks.0.attn.scale", jnp.asarray(1.0)),
}
SAE = make_sae(jax.random.key(1), 16, SITE, TopK(3))
SWITCHES = {
    "k": replaced(SAE, "activation.k", 4),
    "rectified": replaced(SAE, "activation.rectified", False),
    "activation": dataclasses.replace(SAE, activation=jc.saes.ReLU()),
    "centred": dataclasses.replace(SAE, centred=False),
    "normalisation": dataclasses.replace(SAE, normalisation=Standardise()),
    "its epsilon": dataclasses.replace(SAE, normalisation=Standardise(1e-3)),
    "weights": dataclasses.replace(SAE, W_dec=SAE.W_dec * 1.05),
}


@pytest.mark.parametrize("of", BOTH)
@pytest.mark.parametrize("objects", [{"": MODEL, **SETTINGS}, {"": SAE, **SWITCHES}], ids=["models", "dictionaries"])
def test_what_is_static_counts(objects, of):
    found = {name: of(x) for name, x in objects.items()}
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize("of", BOTH)
def test_labels_do_not(of):
    renamed = dataclasses.replace(
        MODEL, name="a copy", architecture="transformer_lens", processing=("fold_layer_norm",)
    )
    assert of(renamed) == of(MODEL)
    assert of(dataclasses.replace(SAE, origin="/elsewhere", processing=())) == of(SAE)


class Named(eqx.Module):
    """An activation of a user that goes by its name: no label."""

    name: str = eqx.field(static=True)

    def __call__(self, x):
        return getattr(jax.nn, self.name)(x)


class Slope(eqx.Module):
    slope: float = eqx.field(static=True, default=0.1)

    def __call__(self, x):
        return jax.nn.leaky_relu(x, self.slope)


class Holder(eqx.Module):
    held: Any = eqx.field(static=True)


def test_objects_and_functions_of_users():
    """Each of them another one, and each found again when it is made again."""
    scaled = lambda factor: lambda x: factor * jnp.tanh(x)

    def make():
        modules = [Named("relu"), Named("tanh"), Slope(), Slope(0.2), jax.tree_util.Partial(jnp.add, 2.0)]
        functions = [scaled(2.0), scaled(3.0), jax.jit(scaled(4.0)), scaled(np.arange(3)), scaled(np.arange(1, 4))]
        others = [np.tanh, jnp.tanh, ft.partial(scaled(2.0)), len, "text".join, {"b": 1, "a": {2, 3}}, {"b": "1"}, None]
        return [Holder(x) for x in (*modules, *functions, *others)]

    first, second = (list(map(fingerprint, make())) for _ in range(2))
    assert first == second
    assert len(set(first)) == len(first)
    assert fingerprint(Slope(0.1)) == fingerprint(Slope())


def recursive(n):
    again = lambda x: again(x - 1) if x else n
    return again


def test_a_function_that_holds_itself():
    assert fingerprint({"f": recursive(1)}) == fingerprint({"f": recursive(1)}) != fingerprint({"f": recursive(2)})


def test_what_has_no_name():
    with pytest.raises(TypeError, match="generator has no name by which another process would know it again"):
        fingerprint(ft.partial(len, (x for x in ())))


def test_precision():
    """A fingerprint is that of the numbers in whatever precision; an exact one is not."""
    for tree in (MODEL, SAE):
        single = as_dtype(as_dtype(tree, jnp.bfloat16), jnp.float32)
        for dtype in (jnp.bfloat16, jnp.float32):
            assert fingerprint(as_dtype(single, dtype)) == fingerprint(single)
        assert exact_fingerprint(as_dtype(single, jnp.bfloat16)) != exact_fingerprint(single)
    nearly = dataclasses.replace(SAE, b_dec=SAE.b_dec * (1 + 1e-6))
    assert fingerprint(nearly) == fingerprint(SAE)
    assert exact_fingerprint(nearly) != exact_fingerprint(SAE)


EVERYTHING = """
import jax, jax.numpy as jnp
from tests.test_fingerprints import everything
print(everything())
"""


def everything() -> str:
    """Fingerprints of what the suite has."""
    models = [model_named(name) for name in MODELS] + list(SETTINGS.values())
    dictionaries = [make(jax.random.key(2), 16, SITE) for make in DICTIONARIES.values()]
    J = jc.edge(MODEL, tokens_for(MODEL, 5), SITE.acts, "blocks.1.hook_resid_post", saes={SITE: SAE}, source_pos=[1])
    return " ".join([*map(fingerprint, [*models, *dictionaries]), *map(exact_fingerprint, [J, J.T, MODEL])])


def test_the_same_in_every_process():
    """With another seed of hashes, and other addresses."""
    single = lambda words: words.split()[:-3]
    settings = {"PYTHONHASHSEED": "7", "JAX_ENABLE_X64": str(int(jax.config.jax_enable_x64))}
    settings |= {"PYTHONPATH": str(REPOSITORY), "JAX_NUMPY_DTYPE_PROMOTION": "strict"}
    # The same flags of the compiler too: what enters a block is made by it.
    run = subprocess.run(
        [sys.executable, "-c", EVERYTHING], env=os.environ | settings, capture_output=True, text=True, cwd=REPOSITORY
    )
    assert run.returncode == 0, run.stderr[-2000:]
    mine = everything()
    assert single(run.stdout) == single(mine)
    assert run.stdout.split()[-1] == mine.split()[-1]


GRID = np.random.default_rng(0).normal(size=(3, 700)) * np.logspace(-36, 38, 700)
SPECIAL = [np.nan, -np.nan, np.inf, -np.inf, -0.0, 1e-42, -1e-45, 3.3895e38, 3.4e38, 1.0039062, 1.01171875]
# What circuits that are on disk have recorded: these digits never change. Of int64 they are those of the type that JAX makes of it, by
# whether that has float64 too.
ARRAYS = {
    "float64": (GRID, "8809608d4955eb3c"),
    "float32": (GRID.astype(np.float32), "8809608d4955eb3c"),
    "float16": (GRID.clip(-6e4, 6e4).astype(np.float16), "b721d26b31dc6f00"),
    "bfloat16": (GRID.astype(np.float32).astype(jnp.bfloat16), "8809608d4955eb3c"),
    "transposed": (GRID.T, "9733470f34b5cb80"),
    "strided": (GRID[:, ::3], "a63b0f481416b96b"),
    "beyond float32": (np.array([1e39, -1e300, 3.4e38, 1.00390625, 1.003906250001]), "3b76fbf8ab75c29a"),
    "special": (np.array(SPECIAL, np.float32), "f12a739d96c10c71"),
    "int32": (np.arange(1500, dtype=np.int32), "8a026f3c5484d258"),
    "uint8": (np.arange(3000).astype(np.uint8), "9db655c1fd29067a"),
    "bool": (np.arange(2049) % 3 == 0, "07fab01605fdf4fe"),
    "complex64": (np.arange(10).astype(np.complex64), "01855b6a33f18972"),
    "int64": (np.arange(5000, dtype=np.int64) * 7 - 9, {False: "38cadeac13ec35ae", True: "540338e82c1f33c1"}),
    "nothing": (np.zeros((0, 4)), "f6f253fd9d30f213"),
    "a number": (np.array(1.5), "3fecf5d40817ccaf"),
    "1023": (np.arange(1023.0), "866bd3c4e75a8698"),
    "1024": (np.arange(1024.0), "75e3578241ddb4b8"),
    "2047": (np.arange(2047.0), "67b2b54a224ea763"),
    "2048": (np.arange(2048.0), "f55893cf309e8171"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_known_by_what_was_recorded(name):
    array, recorded = ARRAYS[name]
    recorded = recorded[jax.config.jax_enable_x64] if isinstance(recorded, dict) else recorded
    assert fingerprint(array) == f"{recorded}-9f91161f"
    with np.errstate(over="ignore"):
        assert fingerprint(jnp.asarray(array)) == f"{recorded}-9f91161f"


# Of the model, and of all its dictionaries together.
RECORDED = {
    ("tiny-gpt2", "float32"): ("5167756959e81518-4e6341fe", "75f753a2723359cf"),
    ("tiny-gpt2", "float16"): ("3b25687eb8745504-4e6341fe", "9d146ba1b316aaff"),
    ("tiny-gpt-neo", "float32"): ("b7c0bc7ecb15f118-c981f513", "0385a2a609cdfd87"),
    ("tiny-gpt-neo", "float16"): ("2e10b26466657a93-c981f513", "9acf4b098339e6b8"),
}
RECORDED |= {(name, "bfloat16"): RECORDED[name, "float32"] for name in ("tiny-gpt2", "tiny-gpt-neo")}
RECORDED |= {(name, "float64"): RECORDED[name, "float32"] for name in ("tiny-gpt2", "tiny-gpt-neo")}


@pytest.mark.parametrize(("name", "dtype"), RECORDED)
def test_shipped_models_are_known_by_what_was_recorded(name, dtype):
    loaded = jc.from_pretrained(name), jc.load_saes(name)
    model, dictionaries = fingerprints(*as_dtype(loaded, jnp.dtype(dtype)))
    together = hashlib.sha256(repr(sorted(dictionaries.items())).encode()).hexdigest()[:16]
    assert (model, together) == RECORDED[name, dtype]


def test_nothing_is_copied_or_compiled():
    """On the host a sample is a view, in whatever order the entries are."""
    held = np.ones((2000, 3, 1000), np.float32)
    for array in (held, held.T, held[:, 1], jnp.asarray(held)):
        tracemalloc.start()
        try:
            with counting_programs() as programs:
                fingerprint(array)
            assert tracemalloc.get_traced_memory()[1] < 2**18
        finally:
            tracemalloc.stop()
        assert not programs


def test_entries_are_read_where_the_array_is():
    """By which any other device than the host is asked."""
    at = np.unravel_index(np.arange(1024) * 2, GRID.shape)
    with counting_programs() as programs:
        for array in (jnp.asarray(GRID), 2 * jnp.asarray(GRID)):
            assert np.array_equal(_gathered(array, at), np.asarray(array)[at])
    assert sum("_gathered" in program for program in programs) <= 1


TWO_DEVICES = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tests.test_fingerprints import ARRAYS
from jaxcirc._fingerprint import fingerprint
mesh = jax.make_mesh((2,), ("half",))
for array, _ in ARRAYS.values():
    axis = next((axis for axis, size in enumerate(array.shape) if size and size % 2 == 0), None)
    spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "half")
    with np.errstate(over="ignore"):
        print(fingerprint(jax.device_put(array, NamedSharding(mesh, spec))))
"""


def test_the_same_of_arrays_on_several_devices():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    settings = {
        "XLA_FLAGS": flags,
        "JAX_ENABLE_X64": str(int(jax.config.jax_enable_x64)),
        "PYTHONPATH": str(REPOSITORY),
    }
    run = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES], env=os.environ | settings, capture_output=True, text=True, cwd=REPOSITORY
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.split() == [fingerprint(array) for array, _ in ARRAYS.values()]

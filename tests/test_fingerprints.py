"""Fingerprints: the same in every process, of everything that decides what is computed, and of nothing else."""

import dataclasses
import functools as ft
import os
import subprocess
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc._fingerprint import exact_fingerprint, fingerprint
from jaxcirc.parts import gelu, gelu_new, relu
from jaxcirc.saes import Standardise, TopK

from .dictionaries import DICTIONARIES, make_sae
from .helpers import as_dtype, make_model, model_named, MODELS, REPOSITORY, tokens_for


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

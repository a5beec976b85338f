"""Everything is a pytree of arrays, so that plain `jit`, `vmap`, `grad` and `jax.tree.map` take it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site

from ..helpers import METRICS, MODELS, NEUTRAL_EDITS


SITE = Site(0, Kind.RESID_POST)
TREES = {
    **{f"model {name}": lambda make=make: make(jax.random.key(0)) for name, make in MODELS.items()},
    **{f"edit {name}": lambda make=make: make(jnp.arange(6.0)) for name, make in NEUTRAL_EDITS.items()},
    "edit of numbers": lambda: (jc.Replace(0.0), jc.Add(1.0), jc.Blend(True, np.ones(3)), jc.Blend(0.5, 2.0)),
    **{f"metric {name}": make for name, make in METRICS.items()},
    "metric of lists": lambda: (
        jc.LogitDiff([1, 2], [3, 4]),
        jc.LogProb([1, 2], [0, 1]),
        jc.KL(np.array([[0.0, 1.0]])),
    ),
    "dictionary": lambda: jc.saes.SAE(
        jnp.ones((3, 4)), jnp.ones(4), jnp.ones((4, 3)), jnp.ones(3), jc.saes.JumpReLU(jnp.ones(4)), SITE, ()
    ),
    "identity": lambda: jc.saes.Identity(3, SITE),
    "values of ablated parts": lambda: (jc.Zero(), jc.Mean(jnp.ones((2, 3), int)), jc.Resample(jnp.ones((2, 3), int))),
    "edits by site": lambda: {SITE: jc.Detach(), SITE.acts: jc.Add(1.0)},
}


@pytest.fixture(params=TREES, name="tree")
def make_tree(request):
    return TREES[request.param]()


def test_every_leaf_is_an_array(tree):
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree))


def test_mapping_keeps_everything_but_the_arrays(tree):
    same = jax.tree.map(lambda x: x, tree)
    assert jax.tree.structure(same) == jax.tree.structure(tree)
    assert all(a is b for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(tree), strict=True))
    wide = jax.tree.map(lambda x: jnp.stack([x, x]), tree)
    assert jax.tree.structure(wide) == jax.tree.structure(tree)
    back = jax.vmap(lambda tree: tree, axis_size=2)(wide)
    assert [x.shape for x in jax.tree.leaves(back)] == [x.shape for x in jax.tree.leaves(wide)]


def test_jit_takes_it_and_gives_it_back(tree):
    back = jax.jit(lambda tree: tree)(tree)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(a, b)


def test_structure_is_hashable(tree):
    assert hash(jax.tree.structure(tree)) == hash(jax.tree.structure(jax.tree.map(lambda x: x, tree)))


@pytest.mark.parametrize("name", MODELS)
def test_blocks_of_a_model_share_one_structure(name):
    model = MODELS[name](jax.random.key(0))
    assert len({jax.tree.structure(block) for block in model.blocks}) == 1
    shapes = lambda block: [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(block)]
    assert all(shapes(block) == shapes(model.blocks[0]) for block in model.blocks)

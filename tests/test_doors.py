"""What is wrong with the prompts or the metric is told at the door of every verb, before any work, in one sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc

from .helpers import assert_close, model_named


SITE = "blocks.0.hook_mlp_out"
MODEL = model_named("gpt2")
SAES = {SITE: jc.saes.Identity(16, unit=jnp.ones((), MODEL.dtype))}
CLEAN = jnp.asarray([[1, 5, 2, 8], [3, 3, 7, 0], [4, 1, 1, 2]], jnp.int32)
CORRUPT = CLEAN.at[:, 1].set(9)
GIVEN = {"clean": CLEAN, "corrupt": CORRUPT, "metric": jc.LogitDiff([2, 3, 4], 0), "mask": None}


def circuit():
    import pandas as pd

    return jc.Circuit(pd.DataFrame({"node": [], "effect": []}), pd.DataFrame({"source": [], "target": []}), {})


# Every verb that takes pairs of prompts and a metric. Nothing of what else they take is looked at before these are.
VERBS = {
    "node_effects": lambda g: jc.node_effects(MODEL, SAES, g["clean"], g["corrupt"], g["metric"], mask=g["mask"]),
    "edge_effects": lambda g: jc.edge_effects(
        MODEL, SAES, g["clean"], g["corrupt"], g["metric"], nodes(), threshold=0.1, mask=g["mask"]
    ),
    "head_effects": lambda g: jc.head_effects(MODEL, g["clean"], g["corrupt"], g["metric"], mask=g["mask"]),
    "activation_patch": lambda g: jc.activation_patch(MODEL, g["clean"], g["corrupt"], g["metric"], mask=g["mask"]),
    "discover": lambda g: jc.discover(
        MODEL,
        SAES,
        g["clean"],
        g["corrupt"],
        g["metric"],
        node_threshold=0.1,
        edge_threshold=None,
        mask=g["mask"],
    ),
    **{
        name: lambda g, verb=verb, rest=rest: verb(
            circuit(), MODEL, SAES, g["clean"], g["corrupt"], g["metric"], *rest[0], mask=g["mask"], **rest[1]
        )
        for name, verb, rest in (
            ("evaluate", jc.evaluate, ((), {})),
            ("recovery_curve", jc.recovery_curve, ((), {"thresholds": [0.1]})),
            ("minimality", jc.minimality, ((), {"most": 1})),
            ("prune", jc.prune, ((), {})),
            ("steer", jc.steer, ((["a"],), {})),
        )
    },
}
# What takes a metric, and no pairs.
OF_ONE_SIDE = {
    "ablate_each": lambda g: jc.ablate_each(
        MODEL, g["clean"], [(0, 0)], jc.Resample(CORRUPT), g["metric"], mask=g["mask"]
    ),
}


def nodes():
    return jc.node_effects(MODEL, SAES, CLEAN, CORRUPT, GIVEN["metric"], method=jc.Gradient())


NO_METRIC = {
    "written for a batch": (lambda logits: logits[:, -1, 5].mean(), r"IndexError.*[a-z]\. A metric gets .*\[4, 13\] \[seq d_vocab\]"),
    "a vector": (lambda logits: logits[-1, :5], r"returned float\d\d\[5\]\. A metric gets the logits of one prompt"),
    "a token": (lambda logits: logits[-1].argmax(), r"returned int\d\d\[\]\. .* returns one floating-point number"),
    "two numbers": (lambda logits: (logits[-1, 0], logits[-1, 1]), "returned a tuple of 2 values"),
    "by NumPy": (lambda logits: np.asarray(logits)[-1, 0], "leaves JAX, as NumPy's functions do.*by jax.numpy"),
    "by float": (lambda logits: float(logits[-1, 0]), "raised ConcretizationTypeError"),
    "answers of two axes": (jc.LogitDiff(np.ones((3, 2), int)), r"raised ValueError: LogitDiff holds a batch of 2"),
    "a reference of all positions": (jc.KL(np.zeros((3, 4, 13))), "raised ValueError: KL holds a batch of 4"),
    "one answer too few": (jc.LogitDiff([2, 3], 0), r"leading axis over the 3 prompts; got one of shape \(2,\)"),
    "a token that is not there": (jc.LogitDiff([2, 3, 13], 0), r"Token id 13 at \[2\] is outside the vocabulary"),
    "beyond the prompt": (jc.LogitDiff([2, 3, 4], 0, [3, 4, 3]), "reads position 4 of prompt 1, and the prompts have 4"),
    "no function": (3.0, "expected a metric such as jc.LogitDiff.*got 3.0"),
    "a class": (jc.LogitDiff, "expected a metric such as jc.LogitDiff.*got <class"),
    "nothing": (None, "expected a metric such as jc.LogitDiff.*got None"),
}  # fmt: skip


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("what", NO_METRIC)
@pytest.mark.parametrize("verb", [*VERBS, *OF_ONE_SIDE])
def test_a_metric_makes_one_number_of_one_prompts_logits(verb, what):
    metric, message = NO_METRIC[what]
    if verb == "ablate_each" and metric is None:  # it then keeps the logits
        return
    with pytest.raises((ValueError, TypeError), match=message):
        (VERBS | OF_ONE_SIDE)[verb](GIVEN | {"metric": metric})


NO_PROMPTS = {
    "corrupt equal to clean": ({"corrupt": CLEAN}, r"corrupt prompts are equal to the clean ones.* differ\.$"),
    "corrupt equal but for padding": (
        {"corrupt": CLEAN.at[:, 0].set(9), "mask": jnp.ones((3, 4), bool).at[:, 0].set(False)},
        "corrupt prompts are equal to the clean ones",
    ),
    "corrupt of another length": ({"corrupt": CORRUPT[:, :3]}, "pairs of equal length"),
    "one prompt": ({"clean": CLEAN[0]}, r"Expected token ids of shape \[batch seq\]"),
    "a corrupt token that is not there": ({"corrupt": CORRUPT.at[1, 1].set(13)}, r"Token id 13 at \[1, 1\]"),
    "a clean token that is not there": ({"clean": CLEAN.at[2, 0].set(-1)}, r"Token id -1 at \[2, 0\]"),
    "a mask of numbers": ({"mask": jnp.ones((3, 4), jnp.int32)}, r"expected one boolean a token.*got int32"),
    "nothing but padding": (
        {"mask": jnp.ones((3, 4), bool).at[1].set(False)},
        "prompt 1 has no real token",
    ),
}


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("what", NO_PROMPTS)
@pytest.mark.parametrize("verb", VERBS)
def test_prompts(verb, what):
    change, message = NO_PROMPTS[what]
    with pytest.raises((ValueError, TypeError), match=message):
        VERBS[verb](GIVEN | change)


def test_a_metric_that_fits_is_asked_once_and_taken():
    """One that returns a Python number of its logits' own, and ones with arrays of any rank, are metrics."""

    class Weighted(jc.AbstractMetric):
        weights: jax.Array

        def __call__(self, logits):
            return (logits * self.weights).sum()

        def token_ids(self):
            return ()

    weights = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 13)), MODEL.dtype)
    effects = jc.node_effects(MODEL, SAES, CLEAN, CORRUPT, Weighted(weights), method=jc.Gradient())
    logits = jax.vmap(lambda tokens: jc.run(MODEL, tokens)[0])(CLEAN)
    want = (np.asarray(logits, np.float64) * weights).sum((1, 2))
    assert_close(effects.clean, want, tolerance=1e-5)


KL_OF_CLEAN = jc.KL(jax.vmap(lambda tokens: jc.run(MODEL, tokens)[0][-1])(CLEAN))
FIRST_ORDER = {
    "node_effects": lambda metric: jc.node_effects(MODEL, SAES, CLEAN, CORRUPT, metric, method=jc.Gradient()),
    "left rule of one step": lambda metric: jc.node_effects(
        MODEL, SAES, CLEAN, CORRUPT, metric, method=jc.IntegratedGradients(1, "left")
    ),
    "discover": lambda metric: jc.discover(
        MODEL, SAES, CLEAN, CORRUPT, metric, node_threshold=0.0, edge_threshold=0.0, method=jc.Gradient()
    ),
    "discover by patching": lambda metric: jc.discover(
        MODEL, SAES, CLEAN, CORRUPT, metric, node_threshold=0.0, edge_threshold=0.0, method=jc.ExactPatching()
    ),
    "head_effects": lambda metric: jc.head_effects(MODEL, CLEAN, CORRUPT, metric, method=jc.Gradient()),
    "head_effects, AtP*": lambda metric: jc.head_effects(MODEL, CLEAN, CORRUPT, metric, method=jc.AtPStar()),
}


@pytest.mark.parametrize("verb", FIRST_ORDER)
def test_a_gradient_that_vanishes_is_told(verb):
    """KL at its own reference has none, so that a first-order method sees nothing of it."""
    with pytest.raises(ValueError, match=r"gradient vanishes where it is taken.*jc\.IntegratedGradients"):
        FIRST_ORDER[verb](KL_OF_CLEAN)


def test_methods_that_need_no_gradient_there_take_such_a_metric():
    patched = jc.node_effects(MODEL, SAES, CLEAN, CORRUPT, KL_OF_CLEAN, method=jc.ExactPatching())
    integrated = jc.node_effects(MODEL, SAES, CLEAN, CORRUPT, KL_OF_CLEAN)
    assert min(float(jnp.abs(found.acts[SITE]).max()) for found in (patched, integrated)) > 1e-3


def test_nodes_of_no_effect_are_no_vanishing_gradient():
    """Where nodes matter little, but the metric has a gradient, nothing is wrong."""
    nothing = jc.saes.SAE(
        jnp.zeros((16, 3), MODEL.dtype),
        jnp.ones(3, MODEL.dtype),
        jnp.zeros((3, 16), MODEL.dtype),
        jnp.zeros(16, MODEL.dtype),
        jc.saes.ReLU(),
    )
    late = CLEAN.at[:, -1].set(9)  # the metric reads what is before
    metric = jc.LogitDiff([2, 3, 4], 0, position=0)
    effects = jc.node_effects(MODEL, {SITE: nothing}, CLEAN, late, metric, method=jc.Gradient())
    assert not np.asarray(effects.nodes(SITE)).any()
    assert float(jnp.abs(effects.clean).max()) > 1e-3


def test_results_by_site_take_names():
    """What verbs return by site is asked by site or by name."""
    effects, site = nodes(), jc.Site.parse(SITE)
    edges = jc.edge_effects(MODEL, SAES, CLEAN, CORRUPT, GIVEN["metric"], effects, threshold=0.0)
    for mapping in (
        effects.acts,
        effects.error,
        effects.gradient,
        edges.to_metric,
        edges.sizes,
        jc.load_saes("tiny-gpt2"),
    ):
        assert mapping[str(site)] is mapping[site]
        assert "blocks.7.hook_mlp_out" not in mapping
    two = {SITE: SAES[SITE], "blocks.1.hook_mlp_out": SAES[SITE]}
    effects = jc.node_effects(MODEL, two, CLEAN, CORRUPT, GIVEN["metric"], method=jc.Gradient())
    edges = jc.edge_effects(MODEL, two, CLEAN, CORRUPT, GIVEN["metric"], effects, threshold=0.0)
    pair = (SITE, "blocks.1.hook_mlp_out")
    assert len(edges.coo[pair][2]) == len(edges.coo[tuple(map(jc.Site.parse, pair))][2]) > 0

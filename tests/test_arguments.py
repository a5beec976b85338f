"""What a verb gets instead of what it takes: one thing for a list, nothing, the wrong kind, a number out of range. Each is told in one
sentence from the library's own frame, before any work, and never by an error from inside.
"""

import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc

from .helpers import model_named


MODEL = model_named("gpt2")
SITE, LATER = "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"
SAES = {name: jc.saes.Identity(16, unit=jnp.ones((), MODEL.dtype)) for name in (SITE, LATER)}
TOKENS = jnp.asarray([[1, 5, 2, 8], [3, 3, 7, 0]], jnp.int32)
OTHERS = TOKENS.at[:, 1].set(9)
GIVEN = (TOKENS, OTHERS, jc.LogitDiff([2, 3], 0))


@pytest.fixture(scope="module")
def results():
    """What verbs that take results are given where something else is wrong."""
    return {
        "lens": jc.logit_lens(MODEL, TOKENS),
        "latents": jc.feature_jacobian(MODEL, SAES, TOKENS[0], SITE, LATER, minimum=0.0),
        "repair": jc.self_repair(MODEL, TOKENS, OTHERS),
    }


NOT_MODELS = {
    "run": lambda model: jc.run(model, TOKENS[0]),
    "sites": jc.sites,
    "edge": lambda model: jc.edge(model, TOKENS[0], SITE, LATER),
    "block_paths": lambda model: jc.block_paths(model, TOKENS[0], 0),
    "node_effects": lambda model: jc.node_effects(model, SAES, *GIVEN),
    "head_effects": lambda model: jc.head_effects(model, *GIVEN),
    "discover": lambda model: jc.discover(model, SAES, *GIVEN, node_threshold=0.1, edge_threshold=0.1),
    "direct_effects": lambda model: jc.direct_effects(model, TOKENS),
    "logit_lens": lambda model: jc.logit_lens(model, TOKENS),
    "self_repair": lambda model: jc.self_repair(model, TOKENS, OTHERS),
    "ablate": lambda model: jc.ablate(model, TOKENS, [(0, 0)], jc.Zero()),
    "feature_jacobian": lambda model: jc.feature_jacobian(model, SAES, TOKENS[0], SITE, LATER),
    "process_weights": jc.process_weights,
    "to_torch_state_dict": jc.to_torch_state_dict,
}
DRAW = {"head_effects": "found", "self_repair": "found", "features": "jacobian", "curves": "curves"}
CASES = {
    **{
        f"{verb} of {bad!r}": (lambda _, call=call, bad=bad: call(bad), "xpected a model, as jc.from_pretrained gives one, got")
        for verb, call in NOT_MODELS.items()
        for bad in (None, "tiny-gpt2")
    },
    **{
        f"draw_{what} to {path!r}": (
            lambda _, what=what, path=path: getattr(jc, f"draw_{what}")(None, path),
            "path: expected a path, got",
        )
        for what in DRAW
        for path in (None, 3, b"x.svg")
    },
    **{
        f"draw_{what} of nothing": (
            lambda _, what=what: getattr(jc, f"draw_{what}")(None, "x.svg"),
            f"draw_{what}: {argument}: expected .*, got None",
        )
        for what, argument in DRAW.items()
    },
    **{
        f"top {k!r}": (lambda r, k=k: r["lens"].top(k), f"LogitLens.top: k is how many tokens, at least 1; got {k!r}")
        for k in (0, -1, 2.5, None, "3")
    },
    "top 2000": (lambda r: r["lens"].top(2000), "LogitLens.top: k is 2000, and there are logits of 13 tokens"),
    **{f"logits {d!r}": (lambda r, d=d: r["lens"].logits(d), "depth") for d in (99, -9, 1.5, None, "1")},
    "answers of text": (lambda r: r["lens"].answers("x"), "answers: expected tokens, which are integers, or directions, got 'x'"),
    "direct answers of text": (lambda _: jc.direct_effects(MODEL, TOKENS, "x"), "answers: expected tokens"),
    **{
        f"strongest {n!r}": (lambda r, n=n: r["latents"].strongest(n), f"n is how many rows, at least 1; got {n!r}")
        for n in (0, -1, 2.5, None)
    },
    **{
        f"rows {which!r}": (lambda r, which=which: r["latents"].rows(which), "FeatureJacobian.rows: ")
        for which in (None, 3, "x", [10**9], [1.5], [True])
    },
    **{
        f"steps {steps!r}": (
            lambda r, steps=steps: jc.steer_features(r["latents"], MODEL, SAES, TOKENS[0], steps=steps),
            "steer_features: steps: expected",
        )
        for steps in ([], 0.1, None, ["x"], [np.nan], "0.1")
    },
    "steer_features of nothing": (
        lambda _: jc.steer_features(None, MODEL, SAES, TOKENS[0], steps=[0.1]),
        "steer_features: jacobian: expected what jc.feature_jacobian gives, got None",
    ),
    **{
        f"minimum {x!r}": (lambda _, x=x: jc.feature_jacobian(MODEL, SAES, TOKENS[0], SITE, LATER, minimum=x), "minimum")
        for x in (-1, np.nan, None, "0.1")
    },
    **{
        f"heads drawn {heads!r}": (
            lambda r, heads=heads: jc.draw_self_repair(r["repair"], "x.svg", heads=heads),
            "draw_self_repair: ",
        )
        for heads in ((0, 0), [0], None, 3, "x", [(9, 0)])
    },
    **{f"record {x!r}": (lambda _, x=x: jc.run(MODEL, TOKENS[0], record=x), "record") for x in (None, 3, SITE)},
    **{
        f"frozen {x!r}": (lambda _, x=x: jc.edge(MODEL, TOKENS[0], SITE, LATER, frozen=x), "edge: frozen: expected a list of sites")
        for x in (None, 3, "blocks.0.ln2.hook_scale")
    },
    **{
        f"parts {x!r}": (lambda _, x=x: jc.ablate(MODEL, TOKENS, x, jc.Zero()), "ablate: .*part")
        for x in ((0, 0), 3, None, SITE, [])
    },
    **{
        f"saes {verb.__name__}": (lambda _, verb=verb: verb({SITE: 3}), "a dictionary")
        for verb in (
            lambda saes: jc.run(MODEL, TOKENS[0], saes=saes),
            lambda saes: jc.node_effects(MODEL, saes, *GIVEN),
            lambda saes: jc.edge(MODEL, TOKENS[0], SITE, LATER, saes=saes),
        )
    },
    **{f"steps of IG {n!r}": (lambda _, n=n: jc.IntegratedGradients(n), "steps is how many") for n in (0, -1, 2.5, "2", None)},
    "patched at once": (lambda _: jc.ExactPatching(tokens_at_once="many"), "ExactPatching: tokens_at_once is how many"),
}  # fmt: skip


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("what", CASES)
def test_it_is_told_in_one_sentence(what, results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, message = CASES[what]
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        call(results)
    frame = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert "/jaxcirc/" in frame.filename, frame
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_indices_of_numpy_are_no_explicit_int64():
    """Under float32 a patched run made zeros of NumPy's index type, about which JAX warns; warnings are errors here."""
    with jax.enable_x64(False):
        model, saes = (jax.tree.map(lambda x: x.astype(jnp.float32), tree) for tree in (MODEL, SAES))
        metric = jc.LogitDiff([2, 3], 0)
        found = jc.node_effects(model, saes, TOKENS, OTHERS, metric, method=jc.ExactPatching())
        assert float(jnp.abs(found.nodes(SITE)).max()) > 1e-3

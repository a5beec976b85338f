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


def _tokenizer(text):
    raise AssertionError("no text is encoded before what else is wrong is told")


_tokenizer.encode = _tokenizer


def _edge():
    return jc.edge(MODEL, TOKENS[0], SITE, LATER)


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
    "activation_patch": lambda model: jc.activation_patch(model, *GIVEN),
    "discover": lambda model: jc.discover(model, SAES, *GIVEN, node_threshold=0.1, edge_threshold=0.1),
    "direct_effects": lambda model: jc.direct_effects(model, TOKENS),
    "logit_lens": lambda model: jc.logit_lens(model, TOKENS),
    "self_repair": lambda model: jc.self_repair(model, TOKENS, OTHERS),
    "circuit_curve": lambda model: jc.circuit_curve(model, *GIVEN, np.zeros((7, 15))),
    "ablate": lambda model: jc.ablate(model, TOKENS, [(0, 0)], jc.Zero()),
    "feature_jacobian": lambda model: jc.feature_jacobian(model, SAES, TOKENS[0], SITE, LATER),
    "process_weights": jc.process_weights,
    "to_torch_state_dict": jc.to_torch_state_dict,
}
DRAW = {
    "head_effects": "effects",
    "patching": "found",
    "self_repair": "repair",
    "features": "jacobian",
    "curves": "curves",
    "circuit_curve": "curves",
    "effects": "effects",
    "jacobian_norms": "jacobian",
    "spectra": "spectra",
    "lens": "read",
    "graph_checks": "checks",
}
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
        for path in (3, b"x.svg")
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
    **{
        f"{verb} of no circuit": (lambda _, call=call: call(None), f"{verb}: circuit: expected a circuit, as jc.discover gives .*None")
        for verb, call in {
            "evaluate": lambda c: jc.evaluate(c, MODEL, SAES, *GIVEN),
            "recovery_curve": lambda c: jc.recovery_curve(c, MODEL, SAES, *GIVEN),
            "minimality": lambda c: jc.minimality(c, MODEL, SAES, *GIVEN),
            "prune": lambda c: jc.prune(c, MODEL, SAES, *GIVEN),
            "steer": lambda c: jc.steer(c, MODEL, SAES, *GIVEN, ["a"]),
        }.items()
    },
    **{
        f"{verb} of no file": (lambda _, call=call: call(None), f"{verb}: path: expected a path, got None")
        for verb, call in {
            "load_prompts": lambda path: jc.data.load_prompts(path, _tokenizer),
            "PromptFile": lambda path: jc.data.PromptFile(path, _tokenizer, batch_size=1),
            "load_annotations": jc.load_annotations,
            "load_jacobian": jc.load_jacobian,
            "save_jacobian": lambda path: jc.save_jacobian(_edge(), path),
        }.items()
    },
    **{
        f"{verb} without a tokenizer": (lambda _, call=call: call(None), f"{verb}: expected a tokenizer, such as .* got a NoneType")
        for verb, call in {
            "load_prompts": lambda tokenizer: jc.data.load_prompts("a", tokenizer),
            "PromptFile": lambda tokenizer: jc.data.PromptFile("a", tokenizer, batch_size=1),
            "subject_verb": lambda tokenizer: jc.data.subject_verb(tokenizer, 2, seed=0),
            "ioi": lambda tokenizer: jc.data.ioi(tokenizer, 2, seed=0),
        }.items()
    },
    **{
        f"{n!r} prompts": (lambda _, n=n: jc.data.subject_verb(_tokenizer, n, seed=0), "n is how many prompts to make, at least 1")
        for n in (2.5, None, "3", 0)
    },
    **{
        f"seed {seed!r}": (lambda _, seed=seed: jc.data.ioi(_tokenizer, 2, seed=seed), "seed: expected a whole number from 0 on")
        for seed in (-1, 0.5, None, "x")
    },
    "batches of nothing": (
        lambda _: jc.discover_batches(MODEL, SAES, None, node_threshold=0.1, edge_threshold=0.1),
        "discover_batches: batches: expected a list of jc.data.Prompts",
    ),
    "select of nothing": (lambda _: jc.select(None), "select: J: expected an operator, as jc.edge gives one, got None"),
    "save_jacobian of nothing": (lambda _: jc.save_jacobian(None, "x"), "save_jacobian: J: expected an operator"),
    **{f"mv of {x!r}": (lambda _, x=x: _edge().mv(x), "J.mv: tangent: expected an array, got") for x in (None, 3, "x", [1.0])},
    **{f"rows of {x!r}": (lambda _, x=x: _edge().rows(x), "J: cotangents: expected an array, got") for x in (None, 3, "x")},
    "rows of complex numbers": (lambda _: _edge().rows(np.full((1, *_edge().target_shape), 1j)), "J: cotangents: expected real"),
    "complex items": (lambda _: _edge().contract([[1j] * 16], [0], jnp.ones((1, 16)), [0]), "J.contract: left: expected real"),
    "a complex direction": (lambda _: jc.decode(MODEL, np.full(16, 1j), SITE), "decode: direction: expected real numbers"),
    **{
        f"{name} {n!r} at a time": (lambda _, f=f, n=n: f(n), rf"J\.{name}: chunk is how many rows or columns are .*, at least 1")
        for n in (0, -1, 2.5, "a", True)
        for name, f in {
            "as_matrix": lambda n: _edge().as_matrix(n),
            "cols": lambda n: _edge().cols(jnp.ones((1, *_edge().source_shape)), chunk=n),
        }.items()
    },
    **{f"svd {n!r}": (lambda _, n=n: _edge().svd(n), "J.svd: rank is how many singular triples") for n in (0, 2.5, None, "3")},
    "svd of more than there is": (lambda _: _edge().svd(10**6), r"J\.svd: the Jacobian is 64 x 64, so rank is from 1 to 64"),
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

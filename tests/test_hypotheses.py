"""Claims and hypotheses: what is refused, and files of them."""

import dataclasses
import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Claim, Conditional, Exact, Unconditional
from jaxcirc.scrubbing import Fixed, load_hypothesis, Pool, save_hypothesis, Shared, UnconditionalTogether

from .helpers import model_named
from .test_scrubbing import COUNT, data_of, ioi_like, KEY, SEQ


def refused(message, hypothesis=None, model="gpt2", count=COUNT, **given):
    model = model_named(model)
    tokens, metric = data_of(model, count)
    arguments = {"dataset": tokens, "metric": metric, "key": KEY} | given
    with pytest.raises((ValueError, TypeError), match=message) as said:
        jc.scrub(model, Claim("logits", Exact()) if hypothesis is None else hypothesis, **arguments)
    assert len(str(said.value)) < 400


def under(parent, *children, **more):
    """The logits read `parent`, which reads these."""
    return Claim("logits", Exact(), children=[Claim(parent, Exact(), children=children, **more)])


LEAF = ft.partial(Claim, sampler=Exact())
BAD_TREES = {
    "begins with a claim about 'logits'.*got 'm0'": lambda: LEAF("m0"),
    "begins with a claim about 'logits'.*got 'logits@end'": lambda: LEAF("logits", positions="end"),
    "under logits: Expected a sender.*got 'a0.h7'. Did you mean": lambda: Claim(
        "logits", Exact(), children=[LEAF("a0.h7")]
    ),
    "under logits/m1: Expected a sender.*'a0.h0.q'": lambda: under("m1", LEAF("a0.h0.q")),
    "logits/a0.h1 does not read m0: it reads the residual stream before m0 writes": lambda: under("a0.h1", LEAF("m0")),
    "logits/a1.h1 does not read a1.h0": lambda: under("a1.h1", LEAF("a1.h0", through="v")),
    "logits/m1 does not read m1": lambda: under("m1", LEAF("m1")),
    "logits/embed reads nothing, so it has no children; got embed": lambda: under("embed", LEAF("embed")),
    "m0 is read through 'q', and logits/m1 is no head": lambda: under("m1", LEAF("m0", through="q")),
    "m0 is read through 'k', and logits is no head": lambda: Claim(
        "logits", Exact(), children=[LEAF("m0", through="k")]
    ),
    "logits names m0 twice, as m0 and as m0": lambda: Claim("logits", Exact(), children=[LEAF("m0"), LEAF("m0")]),
    "logits/a1.h0 names m0 twice, as m0 and as m0.q": lambda: under("a1.h0", LEAF("m0"), LEAF("m0", through="q")),
    "names m0 twice, as m0@3 and as m0@2\\+-3": lambda: under(
        "m1", LEAF("m0", positions=3), LEAF("m0", positions=[2, -3])
    ),
    "no position of the prompts is named 'IO'; tokens alone have none": lambda: under("m1", LEAF("m0", positions="IO")),
    "scrub: prompt 0 has 6 tokens, and none at position 6": lambda: under("m1", LEAF("m0", positions=6)),
    "no position of the prompts is named 'S'": lambda: Claim("logits", Conditional("S")),
    "scrub: prompt 0 has 6 tokens, and none at position -7": lambda: Claim("logits", Conditional(-7)),
    "expected one class for each of the 4 prompts, got an array of 3": lambda: Claim(
        "logits", Conditional(np.arange(3))
    ),
    "a class is NaN": lambda: Claim("logits", Conditional(np.array([1.0, np.nan, 1.0, 1.0]))),
    "a class is a number, a text, an array or a tuple of such, got a set": lambda: Claim("logits", Conditional(set)),
    r"of logits others the class 2 holds prompt 2 alone.*, which a strict sampler refuses.* do not ask for strict": lambda: (
        Claim("logits", Exact(), others=Conditional(np.array([1, 1, 2, 1]), strict=True), children=[LEAF("m0")])
    ),
    "there are prompts 0 to 3, got 4": lambda: Claim("logits", Fixed(4)),
    "one for each of the 4 prompts, got 2": lambda: Claim("logits", Fixed([0, 1])),
    "expected a claim about 'logits', as jc.Claim": lambda: "m0",
}


@pytest.mark.parametrize("message", BAD_TREES)
def test_bad_hypotheses_are_refused(message, untyped):
    refused(message, BAD_TREES[message]())


def test_bad_claims_are_refused(untyped):
    for message, make in {
        "Claim m0: sampler: expected a sampler such as jc.Exact": lambda: Claim("m0", Exact),
        "Claim m0: others: expected a sampler": lambda: Claim("m0", Exact(), others="exact"),
        "Claim m0: children: expected a list of claims": lambda: Claim("m0", Exact(), children=LEAF("embed")),
        "Claim m0: children: expected claims": lambda: Claim("m0", Exact(), children=["embed"]),
        "Claim m0: through must be 'q' or 'k' or 'v', got 'z'": lambda: Claim("m0", Exact(), through="z"),
        "Claim m0: paths must be 'direct' or 'any', got 'all'": lambda: Claim("m0", Exact(), paths="all"),
        "Claim m0: positions: expected names or numbers": lambda: Claim("m0", Exact(), positions=2.5),
        "Claim: name: expected the name of a component": lambda: Claim(3, Exact()),
        "Claim m0: positions: expected at least one": lambda: Claim("m0", Exact(), positions=[]),
        "Conditional: expected at least one field": lambda: Conditional([]),
        "Conditional: expected the name of a field": lambda: Conditional(2.5),
        "Conditional: expected the names of fields, or positions": lambda: Conditional(("IO", 2.5)),
        "Conditional: expected the names of fields, or positions, got True": lambda: Conditional(True),
        "Conditional: expected an array of a class for each prompt, got the number 3": lambda: Conditional(np.array(3)),
        "Conditional: strict: expected True or False, got 'false'": lambda: Conditional("IO", strict="false"),
        "Claim m0: positions: expected names or numbers of positions, got True": lambda: Claim(
            "m0", Exact(), positions=True
        ),
        "Fixed: expected the number of a prompt": lambda: Fixed("a"),
        "Pool: size is how many data": lambda: Pool(0),
        "Shared: sampler: expected a sampler": lambda: Shared("exact", "a"),
        "Shared: name: expected a name": lambda: Shared(Exact(), 3),
    }.items():
        with pytest.raises((ValueError, TypeError), match=message):
            make()


def test_other_bad_input(untyped):
    parallel = under("m1", LEAF("a1.h0"))
    refused("logits/m1 does not read a1.h0", parallel, model="parallel")
    refused("under logits: Expected a sender", Claim("logits", Exact(), children=[LEAF("m0")]), model="attention-only")
    refused("prompt 0 is the only one there is, so there is nothing to resample", count=1)
    refused("samples is how many times data are drawn", samples=0)
    refused("key: expected a random key, got 0. Make one: jax.random.key", key=0)
    refused(r"key: expected one random key, got an array \(2,\)", key=jax.random.split(KEY, 2))
    refused(r"key: expected one random key, got an array \(3,\) of uint32", key=jnp.zeros(3, jnp.uint32))
    refused("budget is how many bytes", budget=0)
    mask = jnp.ones((COUNT, SEQ), bool).at[2, 0].set(False)
    refused("prompt 2 is the only one of its length, and others do not take its place", mask=mask)
    mask = mask.at[3, 0].set(False)
    refused("prompt 0 takes the place of prompt 2, and their padding is not", Claim("logits", Fixed(0)), mask=mask)
    short = jnp.ones((COUNT, SEQ), bool).at[2:, 4:].set(False)
    position = jnp.asarray(short.sum(1) - 1)
    of_each = {"mask": short, "metric": jc.LogitDiff(np.arange(4), np.arange(1, 5), position=position)}
    refused("scrub: position -1 of prompt 2 is padding", under("m1", LEAF("m0", positions=-1)), **of_each)
    refused("scrub: position -1 of prompt 2 is padding", Claim("logits", Conditional(-1)), **of_each)
    prompts = ioi_like()
    for beyond in (6, -7):
        moved = dataclasses.replace(prompts, positions=prompts.positions | {"IO": jnp.full(12, beyond)})
        tree = under("m1", LEAF("m0", positions="IO"))
        refused("position 'IO': prompt 0 has 6 tokens, and none at", tree, dataset=moved, metric=prompts.metric())
    refused("prompts have a mask of their own", dataset=prompts, metric=prompts.metric(), mask=mask)
    refused(
        "no position of the prompts is named 'S'; these have 'IO'",
        Claim("logits", Conditional("S")),
        dataset=prompts,
        metric=prompts.metric(),
    )
    refused("a leading axis over the 4 prompts", metric=prompts.metric())


def test_hypotheses_in_files(tmp_path):
    leaf = Claim("embed", Conditional(("IO", 3), strict=True), through="q", positions=("IO", -1))
    both = [
        leaf,
        Claim("m0", Shared(Conditional("S2"), 'a "name"')),
        Claim("a0.h1", Fixed((3, 1)), others=Pool(2), paths="any"),
    ]
    tree = Claim(
        "logits",
        Exact(),
        others=UnconditionalTogether(),
        children=[Claim("a1.h0", Unconditional(), children=both), Claim("m1", Fixed(2))],
    )
    save_hypothesis(tree, tmp_path / "tree.toml")
    assert load_hypothesis(tmp_path / "tree.toml") == tree
    for sampler in (Conditional(len), Conditional(np.arange(3))):
        with pytest.raises(ValueError, match=r"of m0 the sampler .* cannot be written"):
            save_hypothesis(Claim("m0", sampler), tmp_path / "other.toml")
    assert not (tmp_path / "other.toml").exists()


BAD_TOML = {
    "is no TOML: ": "name = logits",
    "the first claim has no sampler. Expected name and sampler": "name = 'logits'",
    "the first claim has no 'childs'. Did you mean": "name = 'logits'\nsampler = 'exact'\n[[childs]]",
    "the claim under /logits has no name": "name = 'logits'\nsampler = 'exact'\n[[children]]\nsampler = 'exact'",
    "sampler of /logits: expected 'exact', .* got 'random'": "name = 'logits'\nsampler = 'random'",
    "others of /logits: .* got {'size': 3}": "name = 'logits'\nsampler = 'exact'\nothers = {size = 3}",
    "sampler of /logits has no 'strikt'": "name = 'logits'\nsampler = {class = 'IO', strikt = true}",
    "sampler of /logits: Conditional: strict": "name = 'logits'\nsampler = {class = 'IO', strict = 'false'}",
    "sampler of /logits: Pool: size is how many": "name = 'logits'\nsampler = {pool = 0}",
    "children of /logits: expected tables": "name = 'logits'\nsampler = 'exact'\nchildren = 3",
    "the claims under /logits: expected tables": "name = 'logits'\nsampler = 'exact'\nchildren = [3]",
    "Claim: name: expected the name of a component": "name = 3\nsampler = 'exact'",
    "Claim logits: paths must be": "name = 'logits'\nsampler = 'exact'\npaths = 'all'",
    "looks like a zip archive": "PK\x03\x04",
}


@pytest.mark.parametrize("message", BAD_TOML)
def test_bad_files_are_refused(message, tmp_path, untyped):
    path = tmp_path / "tree.toml"
    path.write_text(BAD_TOML[message], encoding="utf-8")
    with pytest.raises((ValueError, TypeError), match=message) as said:
        load_hypothesis(path)
    assert str(path) in str(said.value)

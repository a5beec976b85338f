"""Our side of causal scrubbing, what was drawn, and its check against runs of the whole model."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np

import jaxcirc as jc
from jaxcirc.scrubbing._data import Data
from jaxcirc.scrubbing._drawn import draw
from jaxcirc.scrubbing._samplers import Words

from ._ours import make_model
from ._scrubbing import Draws, Head, path_of, Scrubbing


KEY = 0


def hypothesis(problem: Scrubbing) -> jc.Claim:
    """That the outer heads matter, by what the inner ones write to their queries, and all else does not."""
    name = lambda at: "a{}.h{}".format(*at)
    inner = [jc.Claim(name(at), jc.Unconditional(), through="q") for at in problem.inner]
    outer = [jc.Claim(name(at), jc.Exact(), children=inner) for at in problem.outer]
    return jc.Claim("logits", jc.Exact(), children=outer)


def scrub(problem: Scrubbing):
    """A run of all samples."""
    metric = jc.LogitDiff(problem.answer, problem.foil)
    given = make_model(problem.blocks), hypothesis(problem), jnp.asarray(problem.tokens), metric, jax.random.key(KEY)
    return lambda: jc.scrub(*given, samples=problem.samples)


def draws(problem: Scrubbing) -> Draws:
    """The same data for the other sides, each `[sample batch]`."""
    shape = problem.samples, len(problem.tokens)
    data = Data(problem.tokens, np.ones(problem.tokens.shape, bool), None)
    rows = np.broadcast_to(np.arange(shape[1]), shape)
    tree = draw(hypothesis(problem), rows, data, Words(jax.random.key(KEY), "", shape))
    return {node.path: (node.own, node.others) for node in tree.walk()}


def check_scrubbing(problem: Scrubbing, numbers: np.ndarray, *, most: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """A few examples of the first sample, and the same from runs of the whole model with edits, one for each claim."""
    model, drawn = make_model(problem.blocks), draws(problem)
    tokens, sites = jnp.asarray(problem.tokens), jc.sites(model)
    last, want = jc.Site(model.n_layers - 1, jc.Kind.RESID_POST), []
    of = lambda at, found: found[jc.Site(at[0], jc.Kind.RESULT)][:, at[1]]
    for example in range(most):
        datum = lambda path, which, example=example: int(drawn[path][which][0, example])
        cache = {row: _run(model, tokens[row], {}, sites=sites)[1] for row in range(len(tokens))}

        def written(outer: Head, datum=datum, cache=cache):
            others = cache[datum(path_of(outer), 1)]
            at, by = jc.Site(outer[0], jc.Kind.RESID_PRE), jc.Site(outer[0], jc.Kind.Q)
            resid, row = others[at], tokens[datum(path_of(outer), 1)]
            for inner in problem.inner:
                resid += of(inner, cache[datum(path_of(outer, inner), 0)]) - of(inner, others)
            moved = _run(model, row, {at: jc.Replace(resid)}, sites=sites)[1][by]
            query = others[by].at[:, outer[1]].set(moved[:, outer[1]])
            return of(outer, _run(model, row, {by: jc.Replace(query)}, sites=sites)[1])

        row = datum("logits", 1)
        resid = cache[row][last] + sum(written(outer) - of(outer, cache[row]) for outer in problem.outer)
        logits = _run(model, tokens[row], {last: jc.Replace(resid)}, sites=sites)[0][-1]
        want.append(logits[problem.answer[example]] - logits[problem.foil[example]])
    return numbers[0, :most], np.array(want)


@ft.partial(jax.jit, static_argnames="sites")
def _run(model, tokens, edits, *, sites):
    return jc.run(model, tokens, edits=edits, record=sites)

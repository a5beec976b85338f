"""What node effects were computed of, so that edges are not found of one model or metric with the gradients of another."""

import weakref
from collections.abc import Callable, Mapping

import equinox as eqx
import jax
import numpy as np

from .._fingerprint import difference, fingerprint
from .._metrics import Metric
from .._sites import Site
from .._tap import site_read
from ..models import Transformer
from ..runs import Problem
from ..saes import AbstractDictionary, anonymous


class Origin(eqx.Module):
    """The metric, and the fingerprints of the model and of each site's dictionary. Prompts are known from the runs."""

    metric: Metric
    model: str = eqx.field(static=True)
    dictionaries: tuple[tuple[str, str], ...] = eqx.field(static=True)

    def differs(self, other: "Origin") -> str | None:
        """In what the other is another, the end of a sentence; `None` if it is the same."""
        if (how := difference(self.model, other.model)) is not None:
            return f"of another model{how}"
        there = dict(other.dictionaries)
        for site, digits in self.dictionaries:
            if (how := difference(digits, there[site])) is not None:
                return f"of another dictionary at `{site}`{how}"
        return None if _same(self.metric, other.metric) else "of another metric"


def origin(model: Transformer, problem: Problem) -> Origin:
    """Says what effects of a problem are of."""
    of_model, of_dictionaries = fingerprints(model, problem.saes)
    return Origin(problem.metric, of_model, tuple(of_dictionaries.items()))


def fingerprints(model: Transformer, saes: Mapping[Site, AbstractDictionary]) -> tuple[str, dict[str, str]]:
    """Fingerprints a model, and dictionaries by what they do at their site, whatever is said of them, so that they are known again."""

    def of_dictionary(site: Site, sae: AbstractDictionary) -> str:
        read = site_read(site, sae)
        return _once(sae, site, lambda: fingerprint(anonymous(sae, None if read == site else read)))

    of_model = _once(model, None, lambda: fingerprint(model))
    return of_model, {str(site): of_dictionary(site, sae) for site, sae in saes.items()}


_KNOWN: dict[tuple[int, Site | None], str] = {}  # by the `id` of what lives


def _once(thing: eqx.Module, at: Site | None, compute: Callable[[], str]) -> str:
    """A fingerprint that is computed once, as verbs are called prompt by prompt with one model: it is frozen, and its arrays never change,
    but for those of NumPy.
    """
    if not all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(thing)):
        return compute()
    key = id(thing), at
    if key not in _KNOWN:
        _KNOWN[key] = compute()
        weakref.finalize(thing, _KNOWN.pop, key, None).atexit = False
    return _KNOWN[key]


def _same(one: Metric, other: Metric) -> bool:
    """Whether two metrics have equal arrays, and are the same function or functions of the same code."""
    (these, this), (those, that) = jax.tree.flatten(one), jax.tree.flatten(other)
    if len(these) != len(those) or not all(map(np.array_equal, these, those)):
        return False
    try:
        return this == that or fingerprint(one) == fingerprint(other)
    except Exception:  # whatever an object that the caller's function holds says when it is to be written down
        return True

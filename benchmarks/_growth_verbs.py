"""Verbs whose growth is measured, each on a random problem whose sizes are a point: everything in GPT-2-small's proportions."""

import dataclasses
import functools as ft
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxcirc as jc
from jaxcirc.graph import wiring
from jaxcirc.parts import LayerNorm
from jaxcirc.runs import TOKENS_AT_ONCE

from ._circuits import between, make_model, make_pairs, sites
from ._ours import make_model as to_jax
from ._problems import EPS, make_items
from ._timing import Run


ITEMS = 256  # rows and columns of a contraction
KEPT = 8  # nodes of a circuit at a site, on average


class Point(NamedTuple):
    """Sizes: tokens of a prompt, prompts, blocks, and `d_model`, of which all other sizes are multiples."""

    seq: int
    batch: int
    blocks: int
    width: int

    @property
    def d_sae(self) -> int:
        return 32 * self.width

    @property
    def tokens(self) -> int:
        return self.batch * self.seq

    @property
    def heads(self) -> int:
        return max(1, self.width // 64)

    @property
    def sites(self) -> int:
        """How many have dictionaries: every sublayer's output, every block's, and the embedding."""
        return 3 * self.blocks + 1

    @property
    def active(self) -> int:
        """How many latents are on at a position, on average."""
        return max(2, self.d_sae // 512)


class Term(NamedTuple):
    """A part of a verb's memory.

    **Attributes:** - `what`: it is. - `numbers(point)`: that it is in proportion to. - `each`: how many bytes a number takes, at least and
    at most. - `most`: the most bytes that all of them ever take, where they are held within a budget.
    """

    what: str
    numbers: Callable[[Point], float]
    each: tuple[float, float] = (0.0, math.inf)
    most: float = math.inf


class Verb(NamedTuple):
    """One row of the table.

    **Attributes:** - `prepare(point)`: a run, with what it needs on the device. - `batched`: whether it takes many prompts. - `memory`: of
    what parts its memory is, beside one that is constant.
    """

    prepare: Callable[[Point], Run]
    batched: bool
    memory: tuple[Term, ...]


class Problem(NamedTuple):
    """What verbs are given; the metric is of all prompts."""

    model: jc.Transformer
    saes: dict[str, jc.saes.SAE]
    clean: jax.Array
    corrupt: jax.Array
    metric: jc.LogitDiff


def make_problem(point: Point, names: tuple[str, ...] | None = None) -> Problem:
    """A model, prompts that differ everywhere, and dictionaries of the same weights at every site of `names`, or at all of a circuit's."""
    vocabulary = 64 * point.width
    shape = {"d_model": point.width, "heads": point.heads, "seq": point.seq, "vocabulary": vocabulary}
    final = LayerNorm(None, None, EPS, (jc.Kind.FINAL_SCALE, jc.Kind.FINAL_NORMALIZED))
    model = dataclasses.replace(to_jax(make_model(layers=point.blocks, **shape)), ln_final=final)
    pairs = make_pairs(point.batch, point.seq, vocabulary)
    clean, corrupt = jnp.asarray(pairs.clean), jnp.asarray(pairs.corrupt)
    names = sites(point.blocks) if names is None else names
    saes = reconstructing(point, model, clean[0], names)
    each = lambda token: np.full(point.batch, token)
    return Problem(model, saes, clean, corrupt, jc.LogitDiff(each(pairs.answer), each(pairs.foil)))


def reconstructing(
    point: Point, model: jc.Transformer, tokens: jax.Array, names: tuple[str, ...]
) -> dict[str, jc.saes.SAE]:
    """Dictionaries of the same weights at sites, with as many latents on as the point says."""
    return _dictionaries(point, _values(model, tokens, names) if names else {})


@ft.partial(jax.jit, static_argnames="names")
def _values(model: jc.Transformer, tokens: jax.Array, names: tuple[str, ...]) -> dict[jc.Site, jax.Array]:
    return dict(jc.run(model, tokens, record=names)[1])


def _dictionaries(point: Point, values) -> dict[str, jc.saes.SAE]:
    rng = np.random.default_rng(6)
    draw = lambda *shape: rng.standard_normal(shape, np.float32) * np.float32(point.width**-0.5)
    W_enc, W_dec = jnp.asarray(draw(point.width, point.d_sae)), jnp.asarray(draw(point.d_sae, point.width))
    zero = jnp.zeros(point.width, jnp.float32)

    def make(x) -> jc.saes.SAE:
        before = np.asarray(x @ W_enc)[:: max(1, len(x) // 16)]
        bias = np.full(point.d_sae, -np.float32(between(before.ravel(), point.active * len(before))))
        return jc.saes.SAE(W_enc=W_enc, b_enc=jnp.asarray(bias), W_dec=W_dec, b_dec=zero, activation=jc.saes.ReLU())

    return {str(site): make(x) for site, x in values.items()}


def _ends(point: Point) -> tuple[str, str]:
    """What enters the first block, and what leaves the last."""
    return "blocks.0.hook_resid_pre", f"blocks.{point.blocks - 1}.hook_resid_post"


def contraction(point: Point) -> Run:
    model, _, clean, *_ = make_problem(point, ())
    J = jc.edge(model, clean[0], *_ends(point))
    items = [jnp.asarray(x) for x in make_items(d_model=point.width, seq=point.seq, m=ITEMS, k=ITEMS)]
    return lambda: J.contract(*items)


def rows(point: Point) -> Run:
    model, _, clean, *_ = make_problem(point, ())
    J = jc.edge(model, clean[0], *_ends(point), target_pos=[point.seq - 1])
    return lambda: J.as_matrix()


def node_effects(point: Point) -> Run:
    given = make_problem(point)
    return lambda: jc.node_effects(*given)


def edge_effects(point: Point) -> Run:
    given = make_problem(point)
    nodes = jc.node_effects(*given, method=jc.Gradient())
    threshold = threshold_of(nodes, point.batch)
    return lambda: jc.edge_effects(*given, nodes, threshold=threshold, upstream="selected")


def threshold_of(nodes: jc.NodeEffects, batch: int) -> float:
    """The least effect of the strongest nodes, `KEPT` a site and prompt on average."""
    sizes = np.concatenate([np.abs(listed.instances()[1]) for listed in nodes.listed.values()])
    return float(np.sort(sizes)[-KEPT * len(nodes.listed) * batch])


def discover(point: Point) -> Run:
    given = make_problem(point)
    threshold = float(np.abs(strongest_nodes(given).nodes["effect"].to_numpy()).min())
    return lambda: jc.discover(*given, node_threshold=0.999 * threshold, edge_threshold=0.0)


def strongest_nodes(given: Problem) -> jc.Circuit:
    """The strongest nodes, `KEPT` a site."""
    every = jc.discover(*given, node_threshold=0.0, edge_threshold=None, method=jc.Gradient())
    sizes = np.abs(every.nodes["effect"].to_numpy())
    return every.subgraph(every.nodes["node"].to_numpy()[np.argsort(-sizes)[: KEPT * len(given.saes)]])


def evaluate(point: Point) -> Run:
    """By edges, of a circuit with every edge between its nodes."""
    import pandas as pd

    given = make_problem(point)
    circuit = strongest_nodes(given)
    at = {site: list(names) for site, names in circuit.nodes.groupby("site")["node"]}
    between_nodes = [
        (str(wire.source), str(wire.target)) for wire in wiring(given.model, map(jc.Site.parse, given.saes))
    ]
    last = list(given.saes)[-1]
    pairs = [(u, d) for source, target in between_nodes for u in at.get(source, ()) for d in at.get(target, ())]
    pairs += [(u, jc.circuits.METRIC) for u in at.get(last, ())]
    edges = pd.DataFrame(pairs, columns=["source", "target"]).assign(weight=1.0)
    circuit = dataclasses.replace(circuit, edges=edges)
    return lambda: jc.evaluate(circuit, *given, level="edges")


def patched_heads(point: Point) -> Run:
    model, _, clean, corrupt, metric = make_problem(point, ())
    return lambda: jc.head_effects(model, clean, corrupt, metric, method=jc.ExactPatching())


def self_repair(point: Point) -> Run:
    model, _, clean, corrupt, _ = make_problem(point, ())
    return lambda: jc.self_repair(model, clean, corrupt)


def direct_effects(point: Point) -> Run:
    model, _, clean, *_ = make_problem(point, ())
    return lambda: jc.direct_effects(model, clean)


def feature_jacobian(point: Point) -> Run:
    ends = _ends(point)
    model, saes, clean, *_ = make_problem(point, ends)
    return lambda: jc.feature_jacobian(model, saes, clean[0], *ends, minimum=0.0, substitute=())


BUDGET, WAY_BACK = 2**29, 2**28  # bytes; a group on its way back holds a few times what it is granted
AT_SITES = Term(
    "values, differences and gradients at every site, and the latents that are on there",
    lambda p: p.tokens * p.sites * p.width,
    each=(
        32,
        40,
    ),  # three numbers of four bytes, lists, and while prompts are run both sides twice: 35 in a run at GPT-2-small's shape
)
ENCODED = Term("all latents of some positions", lambda p: p.tokens * p.d_sae, most=BUDGET)
BACK = Term("a group of runs on its way back", lambda p: p.tokens * p.blocks * p.width, most=WAY_BACK)
VERBS: dict[str, Verb] = {
    f"contraction, {ITEMS} x {ITEMS}": Verb(
        contraction,
        False,
        (
            Term("rows on their way", lambda p: (p.blocks > 1) * p.seq * p.width, most=BUDGET),
            Term("the blocks, linearised", lambda p: p.blocks * p.seq * p.width),
            Term("attention's patterns", lambda p: p.blocks * p.seq**2 * p.heads),
        ),
    ),
    "rows of a position": Verb(
        rows,
        False,
        (
            Term("the rows, which are the result", lambda p: p.seq * p.width**2, each=(4, math.inf)),
            Term("rows on their way", lambda p: (p.blocks > 1) * p.blocks * p.seq * p.width**2, most=BUDGET),
            Term("the blocks, linearised", lambda p: p.blocks * p.width**2),
        ),
    ),
    "node_effects": Verb(node_effects, True, (AT_SITES, ENCODED, BACK)),
    "edge_effects": Verb(
        edge_effects, True, (AT_SITES, Term("the edges, which are the result", lambda p: p.batch * p.blocks))
    ),
    "discover": Verb(discover, True, (AT_SITES, ENCODED, BACK)),
    "evaluate, by edges": Verb(
        evaluate,
        True,
        (
            Term(
                "all latents of every site, clean and ablated",
                lambda p: p.tokens * p.sites * p.d_sae,
                each=(8, math.inf),
            ),
            Term("targets at once", lambda p: p.tokens * p.d_sae, most=BUDGET),
        ),
    ),
    "head_effects, by patching": Verb(
        patched_heads,
        True,
        (
            Term("queries, keys, values and outputs on both sides", lambda p: p.tokens * p.blocks * p.width),
            Term("attention's patterns", lambda p: p.tokens * p.seq * p.blocks * p.heads),
            Term("patched runs in flight", lambda p: p.width),
        ),
    ),
    "self_repair": Verb(
        self_repair,
        True,
        (
            Term("the effects, which are the result", lambda p: p.tokens * p.blocks * p.heads, each=(4, math.inf)),
            Term("the clean run of every block", lambda p: p.tokens * p.blocks * p.width),
            Term("ablated runs in flight", lambda p: min(p.tokens * p.heads, TOKENS_AT_ONCE) * p.width),
        ),
    ),
    "direct_effects": Verb(
        direct_effects,
        True,
        (
            Term("the effects, which are the result", lambda p: p.tokens * p.blocks * p.heads, each=(4, math.inf)),
            Term("the run of every block", lambda p: min(p.tokens, TOKENS_AT_ONCE) * p.blocks * p.width),
            Term("what every head writes", lambda p: min(p.tokens, TOKENS_AT_ONCE) * p.heads * p.width),
        ),
    ),
    "feature_jacobian": Verb(
        feature_jacobian,
        False,
        (
            Term("the pairs, which are the result", lambda p: p.seq * p.active**2),
            Term("all latents of both dictionaries", lambda p: p.seq * p.d_sae),
            Term("vectors on their way", lambda p: p.blocks * p.seq * p.width),
        ),
    ),
}

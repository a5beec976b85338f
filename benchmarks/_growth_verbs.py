"""Verbs whose growth is measured, each on a random problem whose sizes are a point: everything in GPT-2-small's proportions."""

import dataclasses
import functools as ft
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxcirc as jc
from jaxcirc.graph import wiring
from jaxcirc.parts import LayerNorm

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
    def active(self) -> int:
        """How many latents are on at a position, on average."""
        return max(2, self.d_sae // 512)


class Verb(NamedTuple):
    """One row of the table.

    **Attributes:** - `prepare(point)`: a run, with what it needs on the device. - `batched`: whether it takes many prompts. - `bound`: what
    takes the most of its memory.
    """

    prepare: Callable[[Point], Run]
    batched: bool
    bound: str


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
    heads = max(1, point.width // 64)
    shape = {"d_model": point.width, "heads": heads, "seq": point.seq, "vocabulary": vocabulary}
    final = LayerNorm(None, None, EPS, (jc.Kind.FINAL_SCALE, jc.Kind.FINAL_NORMALIZED))
    model = dataclasses.replace(to_jax(make_model(layers=point.blocks, **shape)), ln_final=final)
    pairs = make_pairs(point.batch, point.seq, vocabulary)
    clean, corrupt = jnp.asarray(pairs.clean), jnp.asarray(pairs.corrupt)
    names = sites(point.blocks) if names is None else names
    saes = _dictionaries(point, _values(model, clean[0], names) if names else {})
    each = lambda token: np.full(point.batch, token)
    return Problem(model, saes, clean, corrupt, jc.LogitDiff(each(pairs.answer), each(pairs.foil)))


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
    sizes = np.concatenate([np.abs(nodes.listed[site].instances()[1]) for site in nodes.listed])
    threshold = float(np.sort(sizes)[-KEPT * len(given.saes) * point.batch])
    return lambda: jc.edge_effects(*given, nodes, threshold=threshold, upstream="selected")


def discover(point: Point) -> Run:
    given = make_problem(point)
    threshold = float(_nodes(given).nodes["effect"].abs().min())
    return lambda: jc.discover(*given, node_threshold=0.999 * threshold, edge_threshold=0.0)


def _nodes(given: Problem) -> jc.Circuit:
    """The strongest nodes, `KEPT` a site."""
    every = jc.discover(*given, node_threshold=0.0, edge_threshold=None, method=jc.Gradient())
    strongest = every.nodes["effect"].abs().nlargest(KEPT * len(given.saes)).index
    return every.subgraph(every.nodes["node"][strongest])


def evaluate(point: Point) -> Run:
    """By edges, of a circuit with every edge between its nodes."""
    import pandas as pd

    given = make_problem(point)
    circuit = _nodes(given)
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
    model, _, *prompts = make_problem(point, ())
    return lambda: jc.head_effects(model, *prompts, method=jc.ExactPatching())


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


EVERY_SITE = "what enters the dictionaries and the gradients at every site, for every position of every prompt"
VERBS: dict[str, Verb] = {
    f"contraction, {ITEMS} x {ITEMS}": Verb(contraction, False, "the linearised blocks, and what the columns make"),
    "rows of a position": Verb(rows, False, "the rows, which are the result"),
    "node_effects": Verb(node_effects, True, EVERY_SITE),
    "edge_effects": Verb(edge_effects, True, "the edges, which are the result, and a chunk of targets"),
    "discover": Verb(discover, True, EVERY_SITE),
    "evaluate, by edges": Verb(evaluate, True, "the latents of every site, clean and ablated, for every prompt"),
    "head_effects, by patching": Verb(patched_heads, True, "attention's patterns on both prompts"),
    "self_repair": Verb(self_repair, True, "direct effects of all heads, and the runs at once"),
    "direct_effects": Verb(direct_effects, True, "what every head writes"),
    "feature_jacobian": Verb(feature_jacobian, False, "the pairs, which are the result"),
}

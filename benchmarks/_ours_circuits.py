"""Our side of sparse feature circuits, and the check of both stages against `jax.jvp` of a run."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np

import jaxcirc as jc

from ._circuits import as_table, Circuit, differences, make_circuit, make_model, make_pairs, Pairs, sites, STEPS
from ._ours import make_model as to_jax, push
from ._problems import Blocks


Values = dict[str, np.ndarray]


def circuit(
    *, layers: int, d_model: int, heads: int, seq: int, vocabulary: int, batch: int, d_sae: int, active: int, kept: int
) -> Circuit:
    """The problem of that size. What enters the dictionaries, which decides their biases, is computed here."""
    blocks = make_model(layers=layers, d_model=d_model, heads=heads, seq=seq, vocabulary=vocabulary)
    pairs = make_pairs(batch, seq, vocabulary)
    return make_circuit(blocks, pairs, _values(blocks, pairs), d_sae=d_sae, active=active, kept=kept)


def _values(blocks: Blocks, pairs: Pairs) -> tuple[Values, Values, Values]:
    tokens = jnp.asarray(np.concatenate([pairs.clean, pairs.corrupt]))
    names = sites(len(blocks.weights))
    found = _run(to_jax(blocks), tokens, _metric(pairs, 2), names=names)
    values, gradients = ({site: np.array(x) for site, x in part.items()} for part in found)
    first = len(pairs.clean)
    part = lambda arrays, rows: {site: arrays[site][rows] for site in names}
    return part(values, slice(first)), part(values, slice(first, None)), part(gradients, slice(first))


@ft.partial(jax.jit, static_argnames="names")
def _run(model: jc.Transformer, tokens, metric, *, names: tuple[str, ...]):
    """The values at the sites, and the gradient of the metric there."""

    def one(tokens, metric):
        def value(moves):
            logits, cache = jc.run(model, tokens, edits={s: jc.Add(x) for s, x in moves.items()}, record=names)
            return metric(logits), {str(site): x for site, x in cache.items()}

        zero = jnp.zeros((len(tokens), model.d_model), model.dtype)
        gradients, values = jax.grad(value, has_aux=True)({name: zero for name in names})
        return values, gradients

    return jax.vmap(one)(tokens, metric)


def _metric(pairs: Pairs, times: int = 1) -> jc.LogitDiff:
    each = lambda token: np.full(times * len(pairs.clean), token)
    return jc.LogitDiff(each(pairs.answer), each(pairs.foil))


def _arguments(circuit: Circuit):
    """Model, dictionaries, prompts and metric on the device; what dictionaries share is there once."""
    once: dict[int, jax.Array] = {}
    put = lambda array: once.setdefault(id(array), jnp.asarray(array))
    d_model = circuit.blocks.W_E.shape[1]
    make = lambda coder: jc.saes.SAE(
        W_enc=put(coder.W_enc),
        b_enc=jnp.asarray(coder.b_enc),
        W_dec=put(coder.W_dec),
        b_dec=jnp.zeros(d_model, coder.W_dec.dtype),
        activation=jc.saes.ReLU(),
    )
    saes = {site: make(coder) for site, coder in circuit.coders.items()}
    pairs = circuit.pairs
    return to_jax(circuit.blocks), saes, jnp.asarray(pairs.clean), jnp.asarray(pairs.corrupt), _metric(pairs)


def nodes(circuit: Circuit):
    """A run of the node stage."""
    arguments = _arguments(circuit)
    return lambda: jc.node_effects(*arguments, method=jc.IntegratedGradients(STEPS, "left"))


def node_numbers(circuit: Circuit, effects: jc.NodeEffects) -> np.ndarray:
    """`[site batch seq node]`."""
    return np.stack([effects.nodes(jc.Site.parse(site)) for site in circuit.coders])


def edges(circuit: Circuit):
    """A run of the edge stage, given the nodes' effects, and with them the runs of the prompts."""
    arguments = _arguments(circuit)
    effects = jc.node_effects(*arguments, method=jc.Gradient())
    return lambda: jc.edge_effects(*arguments, effects, threshold=circuit.threshold)


def edge_numbers(circuit: Circuit, found: jc.EdgeEffects) -> np.ndarray:
    """`[row column]`."""
    return as_table(circuit, {(str(source), str(target)): edges for (source, target), edges in found.coo.items()})


def check_nodes(circuit: Circuit, effects: np.ndarray, *, most: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """The largest effects at a few sites, and the same by the tangent of each node through runs at all steps."""
    names, got, want = list(circuit.coders), [], []
    for index in np.linspace(0, len(names) - 1, most).astype(int):
        site, found = names[index], effects[index, 0]
        largest = np.argsort(-np.abs(found[:, :-1]), axis=None)[:most]
        for position, unit in [*zip(*np.unravel_index(largest, found[:, :-1].shape), strict=True), (-1, -1)]:
            got.append(found[position, unit])
            want.append(_mean_slope(circuit, site, _tangent(circuit, site, position, unit)))
    return np.array(got), np.array(want)


def _mean_slope(circuit: Circuit, site: str, tangent: jax.Array) -> float:
    """The mean derivative of the metric of the first prompt in a direction at `site`, at the points of the left rule."""
    pairs, change = circuit.pairs, circuit.corrupt[site][0] - circuit.clean[site][0]
    points = jnp.asarray(np.arange(STEPS, dtype=np.float32)[:, None, None] / STEPS * change)
    metric = jc.LogitDiff(pairs.answer, pairs.foil)
    slopes = _slopes(to_jax(circuit.blocks), jnp.asarray(pairs.clean[0]), metric, points, tangent, site)
    return float(np.mean(slopes))


@ft.partial(jax.jit, static_argnames="site")
def _slopes(model, tokens, metric, points, tangent, site: str):
    value = lambda x: metric(jc.run(model, tokens, edits={site: jc.Add(x)})[0])
    return jax.lax.map(lambda point: jax.jvp(value, (point,), (tangent,))[1], points)


def check_edges(circuit: Circuit, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each wire of the middle block the edges out of the node with the largest, and the same by its tangent through a run."""
    got, want = [], []
    blocks = circuit.blocks._replace(tokens=circuit.pairs.clean[0])
    model, tokens = to_jax(blocks), jnp.asarray(blocks.tokens)
    for i, wire in enumerate(circuit.wires[:6]):
        mine = [row for row in circuit.rows.of(i) if circuit.rows.node[row][0] == 0]
        if not mine:
            continue
        column = np.abs(edges[mine]).max(0).argmax()
        tangent = _tangent(circuit, wire.source, *circuit.columns[wire.source][0, column])
        image = push(model, tokens, tangent, ends=wire[:2], frozen=wire.held)
        got.append(edges[mine, column])
        want.append(_reads(circuit, wire.target, circuit.rows.node[mine][:, 1:], np.asarray(image)))
    return np.concatenate(got), np.concatenate(want)


def _tangent(circuit: Circuit, site: str, position: int, unit: int) -> jax.Array:
    """What a node of the first prompt writes, at its position; unit -1 is the error."""
    coder = circuit.coders[site]
    acts, error = (x[0] for x in differences(coder, circuit.clean[site], circuit.corrupt[site]))
    tangent = np.zeros_like(error)
    is_error = unit in (-1, acts.shape[-1])
    tangent[position] = error[position] if is_error else acts[position, unit] * coder.W_dec[unit]
    return jnp.asarray(tangent)


def _reads(circuit: Circuit, site: str, nodes: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The change of each of the first prompt's nodes at `site`, times its gradient, for the tangent `image` there."""
    coder, gradient = circuit.coders[site], circuit.gradient[site][0]
    moved = (circuit.clean[site][0] @ coder.W_enc + coder.b_enc > 0) * (image @ coder.W_enc)
    latents = moved * (gradient @ coder.W_dec.T)
    error = ((image - moved @ coder.W_dec) * gradient).sum(-1, keepdims=True)
    return np.concatenate([latents, error], axis=-1)[tuple(nodes.T)]

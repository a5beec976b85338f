"""An attribution graph of a model in GPT-2-small's proportions, with a transcoder on every MLP."""

import dataclasses

import jax.numpy as jnp
import numpy as np

import jaxcirc as jc

from ._growth_verbs import make_problem, Point, Problem, reconstructing, Verb
from ._timing import Run


ROWS = 2000  # latents with rows of their own


def transcoders(point: Point, given: Problem) -> dict[str, jc.saes.Transcoder]:
    """One a layer, of the same weights; each with as many latents on as the point says."""
    sites = [(f"blocks.{layer}.mlp.hook_in", f"blocks.{layer}.hook_mlp_out") for layer in range(point.blocks)]
    saes = reconstructing(point, given.model, given.clean[0], tuple(reads for reads, _ in sites))
    found = {}
    for reads, site in sites:
        sae = saes[reads]
        found[site] = jc.saes.Transcoder(
            W_enc=sae.W_enc,
            b_enc=sae.b_enc,
            W_dec=sae.W_dec,
            b_dec=sae.b_dec,
            activation=sae.activation,
            reads=jc.Site.parse(reads),
            site=jc.Site.parse(site),
        )
    return found


def attribution_graph(point: Point) -> Run:
    """Neither the model nor the dictionaries are on the clock. What is left of a transcoder's output is an error, as always."""
    given = make_problem(point, ())
    model = dataclasses.replace(given.model, name="random")
    target, tokens = np.asarray(given.metric.answer)[:1].tolist(), jnp.asarray(given.clean[0])
    saes = transcoders(point, given)
    # Nothing is pruned: what random transcoders write is next to nothing.
    return lambda: jc.attribution_graph(
        model, saes, tokens, targets=target, max_nodes=ROWS, node_threshold=1.0, edge_threshold=1.0
    )


GRAPH_VERBS: dict[str, Verb] = {"attribution graph": Verb(attribution_graph, False, ())}

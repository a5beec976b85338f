"""Edges from nodes to the metric past all later nodes, against the gradient of one run in which those are held."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc._run import run_metric
from jaxcirc.graph import reaches_output

from .dictionaries import spliced_at
from .helpers import assert_close, by_numpy, counting_programs, make_model, model_named, needs_x64, tokens_for


SEQ, BATCH = 5, 2
# Sites of nodes, which have ways past each other; and one more, behind which begins what reaches the metric if it holds all there is.
EMBED = Site(None, Kind.EMBED)
CASES = {
    "gpt2-inverse-layer-scale": ((Kind.Z, Kind.MLP_POST), EMBED),
    "gemma2": ((Kind.ATTN_OUT, Kind.MLP_OUT), Site(0, Kind.RESID_MID)),
    "parallel": ((Kind.ATTN_OUT, Kind.MLP_OUT), EMBED),
    "gpt-neo": ((Kind.MLP_OUT,), Site(0, Kind.RESID_POST)),
}
PATH = jc.IntegratedGradients(2, "left", "corrupt")


def problem(model, kinds, beside):
    at = [site for site in jc.sites(model) if site.kind in kinds or site == beside]
    saes = {site: spliced_at("relu", model, site, number) for number, site in enumerate(sorted(at))}
    clean = jnp.stack([tokens_for(model, SEQ, seed) for seed in range(BATCH)])
    corrupt = clean.at[:, jnp.asarray([1, -1])].add(1) % model.d_vocab
    return model, saes, clean, corrupt, jc.LogitDiff(jnp.arange(BATCH), jnp.arange(BATCH) + 2)


@by_numpy
def gradients(model, tokens, mask, metric, change):
    """For each node's site the gradient where `change` is added to it and later ones are held."""
    found = {}
    for site, later in reaches_output(model, change).items():
        held = {node: jc.Detach() for node in later}
        value = lambda x, site=site, held=held: run_metric(
            model, metric, tokens, edits={site: jc.Add(x), **held}, mask=mask
        )[0]
        found[site] = jax.grad(value)(change[site])
    return found


@needs_x64
@pytest.mark.parametrize("path", [None, PATH], ids=["clean", "integrated"])
@pytest.mark.parametrize("name", CASES)
def test_they_are_what_a_gradient_gives_with_later_nodes_held(name, path):
    arguments = model, saes, clean, corrupt, metric = problem(model_named(name), *CASES[name])
    mask = jnp.arange(SEQ) > jnp.arange(BATCH)[:, None] - 1  # a prompt of which one token is padding
    nodes = jc.node_effects(*arguments, method=jc.Gradient() if path is None else path, mask=mask)
    edges = "clean" if path is None else "integrated"
    found = jc.edge_effects(*arguments, nodes, threshold=-1.0, mask=mask, edges=edges, path=path or PATH).to_metric
    assert found.keys() == reaches_output(model, saes).keys() > {max(saes)}
    for i in range(BATCH):
        one = jax.tree.map(lambda x, i=i: jnp.asarray(np.asarray(x)[i]), metric)
        before, after = (jc.run(model, tokens[i], record=[*saes], mask=mask[i])[1] for tokens in (clean, corrupt))
        moved = {
            site: jnp.where(mask[i].reshape(-1, *[1] * (x.ndim - 1)), after[site] - x, 0) for site, x in before.items()
        }
        points = [(0.0, 1.0)] if path is None else zip(*path.points(), strict=True)
        parts = [
            jax.tree.map(
                lambda x, weight=weight: weight * np.asarray(x),
                gradients(model, clean[i], mask[i], one, {site: fraction * x for site, x in moved.items()}),
            )
            for fraction, weight in points
        ]
        for site in found:
            slope = sum(part[site] for part in parts).reshape(SEQ, -1)
            sae = saes[site]
            before_here, after_here = (np.asarray(values[site]).reshape(SEQ, -1) for values in (before, after))
            acts = np.asarray(sae.encode(after_here) - sae.encode(before_here))
            want = np.where(np.asarray(mask[i])[:, None], acts, 0) * (slope @ np.asarray(sae.W_dec).T)
            assert_close(np.asarray(found[site])[i, :, :-1], want, mass=1e-5)


def test_deep_models_run_the_same_programs():
    """However many blocks have nodes, and however many are behind them."""
    counts = []
    for layers in (3, 6):
        arguments = problem(make_model(jax.random.key(0), layers=layers, d_mlp=28), (Kind.MLP_OUT,), EMBED)
        nodes = jc.node_effects(*arguments, method=jc.Gradient())
        jax.clear_caches()
        with counting_programs() as programs:
            found = jc.edge_effects(*arguments, nodes, threshold=1e9)  # no others
        assert len(found.to_metric) == layers + 1
        counts.append(sorted(name for name in programs if "_pull" in name))
    assert 0 < len(counts[0]) == len(counts[1]) <= 6

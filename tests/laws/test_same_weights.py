"""Every verb gives the same for a model from TransformerLens' state dict as for the same weights from a Hugging Face folder."""

import contextlib
import inspect
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.interop import save_pretrained

from ..dictionaries import make_sae
from ..figures import cells, panels
from ..helpers import needs_x64, tokens_for
from ..stored_models import load, stored_model
from ..test_public_api import public_names
from ..test_transformer_lens import LENS, lens_state


pytestmark = needs_x64
SEQ, BATCH = 5, 4
ATTN, FIRST, LAST = Site(0, Kind.ATTN_OUT), Site(0, Kind.MLP_OUT), Site(1, Kind.MLP_OUT)
PRE, POST = Site(0, Kind.RESID_PRE), Site(1, Kind.RESID_POST)


@pytest.fixture(scope="module", params=["gpt-neo"])
def models(request, tmp_path_factory):
    """The same weights, read from a folder and from a state dict."""
    model, folder = stored_model(request.param), tmp_path_factory.mktemp(request.param)
    save_pretrained(model, folder)
    of_lens = jc.from_transformer_lens(lens_state(model), LENS[request.param] | {"d_head": 8})
    assert of_lens.architecture == "transformer_lens" != model.architecture
    return load(folder), of_lens


def prompts(model):
    with jax.ensure_compile_time_eval():  # known, also where the model is traced
        clean = jnp.stack([tokens_for(model, SEQ, seed) for seed in range(BATCH)])
        return clean, clean.at[:, 1].set((clean[:, 1] + 1) % model.d_vocab)


def problem(model):
    saes = {site: make_sae(jax.random.key(i), 16, site) for i, site in enumerate((ATTN, FIRST, LAST))}
    return model, saes, *prompts(model), jc.LogitDiff(jnp.arange(BATCH), jnp.arange(BATCH) + 2)


def in_a_batch(model):
    answers = jnp.arange(BATCH)
    return jc.data.Prompts(*prompts(model), answers, answers + 2, {"end": jnp.full(BATCH, SEQ - 1)})


def circuit_of(model):
    circuit = jc.discover(*problem(model), node_threshold=0.02, edge_threshold=0.001, method=jc.Gradient())
    return circuit, *problem(model)


def features(model):
    return jc.feature_jacobian(*problem(model)[:2], prompts(model)[0][0], FIRST, LAST, minimum=0.1)


def edges(model):
    arguments = problem(model)
    nodes = jc.node_effects(*arguments, method=jc.Gradient())
    found = jc.edge_effects(*arguments, nodes, threshold=0.0)
    return found.to_metric, {str(pair): found.dense(pair) for pair in found.coo}


def steered(model):
    circuit, *arguments = circuit_of(model)
    return jc.steer(circuit, *arguments, [circuit.node_rows()[0].node], strengths=[0.5])


def curve_of(model):
    scores = np.random.default_rng(0).normal(size=jc.component_graph(model).edges.shape)
    return jc.circuit_curve(model, *prompts(model), jc.LogitDiff(1, 2), scores, sizes=(0.3, 0.6, 1.0))


def operators(model):
    _, saes, clean, *_ = problem(model)
    return {
        "edge": jc.edge(model, clean[0], PRE, POST),
        "block_paths": jc.block_paths(model, clean[0], 1, saes=saes),
        "mediated_edges": jc.mediated_edges(model, saes, clean[0], PRE, FIRST, POST).__dict__,
    }


def patterns_drawn(model):
    """The numbers in the figure."""
    figure = jc.draw_patterns(model, prompts(model)[0][0], [(0, 1), (1, 0)], value_weighted=True)
    return [cells(axes) for axes in panels(figure)]


VERBS = {
    "run": lambda model: jax.vmap(lambda tokens: jc.run(model, tokens, record=jc.sites(model)))(prompts(model)[0]),
    "process_weights": lambda model: jc.run(jc.process_weights(model), prompts(model)[0][0], record=[POST]),
    "edge": lambda model: operators(model)["edge"].as_matrix(),
    "block_paths": lambda model: {name: J.as_matrix() for name, J in operators(model)["block_paths"].items()},
    "mediated_edges": lambda model: {
        name: J.as_matrix() for name, J in operators(model)["mediated_edges"].items() if J is not None
    },
    "node_effects": lambda model: jc.node_effects(*problem(model)).acts,
    "edge_effects": edges,
    "discover": lambda model: circuit_of(model)[0],
    "discover_batches": lambda model: jc.discover_batches(
        *problem(model)[:2], [in_a_batch(model)], node_threshold=0.02, edge_threshold=0.001
    ),
    "evaluate": lambda model: [jc.evaluate(*circuit_of(model), level=level).per_prompt for level in ("nodes", "edges")],
    "minimality": lambda model: jc.minimality(*circuit_of(model), most=2),
    "prune": lambda model: jc.prune(*circuit_of(model), faithfulness=0.05, level="nodes").nodes["effect"].to_numpy(),
    "recovery_curve": lambda model: jc.recovery_curve(*circuit_of(model), thresholds=[0.0, 0.1]),
    "steer": steered,
    "head_effects": lambda model: jc.head_effects(model, *prompts(model), jc.LogitDiff(1, 2)).z,
    "activation_patch": lambda model: (
        jc.activation_patch(
            model, *prompts(model), jc.LogitDiff(1, 2), sites=["resid_pre", "pattern"], by="layer_position"
        ).values
    ),
    "draw_patterns": patterns_drawn,
    "direct_effects": lambda model: jc.direct_effects(model, prompts(model)[0]),
    "decode": lambda model: jc.decode(model, jnp.eye(model.d_model), POST).logits,
    "logit_lens": lambda model: [
        f(jc.logit_lens(model, prompts(model)[0])) for f in (lambda x: x.logits(1), jc.LogitLens.answers)
    ],
    "ablate": lambda model: jc.ablate(model, prompts(model)[0], [(0, 1)], jc.Mean(prompts(model)[1])),
    "ablate_each": lambda model: jc.ablate_each(
        model, prompts(model)[0], [(0, 1), FIRST], jc.Zero(), jc.LogitDiff(1, 2)
    ),
    "circuit_curve": lambda model: curve_of(model).values,
    "self_repair": lambda model: vars(jc.self_repair(model, *prompts(model))),
    "feature_jacobian": features,
    "steer_features": lambda model: jc.steer_features(
        features(model), *problem(model)[:2], prompts(model)[0][0], rows=[0, 1], steps=[0.1]
    ),
    "sites": lambda model: [(site.layer or 0, int(site.kind)) for site in jc.sites(model)],
}
NODE, METRIC = jc.Neuron(1, SEQ - 1, 3), jc.LogitDiff(1, 2)


def graph_of(model):
    return jc.attribution_graph(model, None, prompts(model)[0][0], targets=[1], max_nodes=20)


def edge_of(model):
    """A row of a graph and a column in it."""
    return graph_of(model).strongest(1)[0].tolist()


def moved(model):
    changes = [jc.attribution_graphs.Change("blocks.0.mlp.hook_post", 1, 3, jc.Scale(2.0))]
    return jc.intervene(model, {}, prompts(model)[0][0], changes, live_from=1)


VERBS |= {
    "edges_into": lambda model: jc.edges_into(model, prompts(model)[0][0], METRIC, NODE),
    "edges_out_of": lambda model: jc.edges_out_of(model, prompts(model)[0][0], METRIC, jc.Token(1)),
    "attribution_graph": lambda model: graph_of(model).rows,
    "check_graph": lambda model: jc.check_graph(graph_of(model), model, None, strengths=[0.0]),
    "intervene": moved,
    "generate": lambda model: [
        getattr(jc.generate(model, None, prompts(model)[0][0], 2), name) for name in ("tokens", "log_probs")
    ],
    "head_loadings": lambda model: jc.head_loadings(graph_of(model), model, None, most=4).heads,
    "qk_attribution": lambda model: jc.qk_attribution(model, None, prompts(model)[0][0], 1, 0, 4, 3).M_q,
    "explain_edge": lambda model: jc.explain_edge(graph_of(model), model, None, *edge_of(model), heads=1).table(),
}
PATCHED = jc.LogitDiff(1, 2)
VERBS |= {
    "component_graph": lambda model: jc.component_graph(model).edges.astype(int),
    "patch_edges": lambda model: jc.patch_edges(
        model, *prompts(model), PATCHED, jc.component_graph(model).mask(["embed->m1", "a0.h1->logits"])
    ),
    "edge_attribution": lambda model: jc.edge_attribution(model, *prompts(model), PATCHED),
    "path_patch": lambda model: jc.path_patch(model, *prompts(model), PATCHED, receivers=["a1.h0.q", "m1"]),
}
HYPOTHESIS = jc.Claim(
    "logits", jc.Exact(), children=[jc.Claim("a1.h0", jc.Exact(), children=[jc.Claim("m0", jc.Exact())])]
)
VERBS["scrub"] = lambda model: [
    getattr(jc.scrub(model, HYPOTHESIS, prompts(model)[0], METRIC, jax.random.key(0), samples=2), name)
    for name in ("values", "reference", "baseline")
]
VERBS["fit_lens"] = lambda model: jc.fit_lens(model, prompts(model)[0], skip_first=1).J


class Letters:
    """A tokenizer of which every letter is a token."""

    bos_token = bos_token_id = eos_token_id = None
    pad_token_id = 0

    def __init__(self, d_vocab: int):
        self.d_vocab = d_vocab

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) % self.d_vocab for letter in text]}

    def encode(self, text: str) -> list[int]:
        return self(text)["input_ids"]


def job(model):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.jsonl"
        pairs = [{"clean": "abcde", "corrupt": f"a{other}cde", "answer": "b", "foil": "c"} for other in "fgh"]
        path.write_text("\n".join(map(json.dumps, pairs)), "utf-8")
        verb = jc.jobs.JobOfNodes(node_threshold=0.001)
        done = jc.attribute(
            model, problem(model)[1], Letters(model.d_vocab), path, Path(folder) / "out", verb, batch_size=3
        )
        return done.table().to_pandas()


VERBS["attribute"] = job
OF_FILES = {"to_torch_state_dict"}  # gives the names of an architecture, of which this one has none on disk


def test_every_verb_of_a_model_is_here():
    takes_a_model = lambda f: callable(f) and not inspect.isclass(f) and "model" in inspect.signature(f).parameters
    top = {name for name, value in public_names().items() if "." not in name and takes_a_model(value)}
    assert top == {*VERBS} | OF_FILES


def leaves(found):
    """All numbers of a result, tables included, in one order."""
    if isinstance(found, jc.Circuit):
        return [*leaves(found.nodes), *leaves(found.edges)]
    if isinstance(found, jc.FeatureJacobian):
        found = found.to_pandas()
    if isinstance(found, pd.DataFrame):
        numbers = found.select_dtypes("number")
        return [column.to_numpy(float) for _, column in numbers.items() if column.notna().all()]
    return [
        np.asarray(leaf) for leaf in jax.tree.leaves(found) if isinstance(leaf, jax.Array | np.ndarray | int | float)
    ]


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_gives_the_same(models, verb):
    of_folder, of_lens = (leaves(VERBS[verb](model)) for model in models)
    assert len(of_folder) == len(of_lens) > 0
    mass = 0.0
    for got, want in zip(of_lens, of_folder, strict=True):
        there = np.isfinite(want.astype(float))
        assert (np.isfinite(got.astype(float)) == there).all()
        size = np.abs(want[there]).max(initial=0.0)
        mass = max(mass, size)
        np.testing.assert_allclose(got[there], want[there], atol=1e-9 * max(size, 1e-3), rtol=0)
    assert mass > 1e-3, "nothing to compare"


TRACED = set(
    "run process_weights edge block_paths mediated_edges sites edges_into edges_out_of direct_effects decode logit_lens ablate "
    "component_graph patch_edges edge_attribution".split()
)


@pytest.mark.parametrize("verb", VERBS)
def test_a_model_is_traced_or_a_verb_says_that_it_cannot_be(models, verb):
    numbers = lambda model: [leaf for leaf in jax.tree.leaves(VERBS[verb](model)) if isinstance(leaf, jax.Array)]
    refused = (
        contextlib.nullcontext() if verb in TRACED else pytest.raises(ValueError, match=r"looked at on the host, so")
    )
    with refused:
        assert jax.eval_shape(numbers, models[0]) or verb in ("sites", "component_graph")

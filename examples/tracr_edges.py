"""Edges of compiled programs, by patching, by search and by gradients: writes `.github/docs/tracr-edges.md`, all numbers computed.

    python examples/tracr_edges.py FOLDER

`FOLDER` holds, for each program, the weights `NAME.npz` of a transformer that Tracr compiled it to, and its true circuit
`NAME.circuit.json`.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import jaxcirc as jc


REPOSITORY = Path(__file__).parents[1]
ACTS = 1e-6  # of what is 1 in the program's output: an edge with more acts
PAIRS, STEPS = 16, 16


class Program(NamedTuple):
    """A compiled program, its graph, its true edges, and of these those that its makers saw act when tokens are exchanged."""

    model: jc.Transformer
    graph: jc.ComponentGraph
    tokens: np.ndarray
    true: np.ndarray
    acting: np.ndarray


class Distance(eqx.Module):
    """How far all logits are from those of the clean run, as a sum of sizes."""

    reference: jax.Array

    def __call__(self, logits: jax.Array) -> jax.Array:
        return jnp.abs(logits - self.reference).sum()


def load(folder: Path, name: str) -> Program:
    stored = dict(np.load(folder / f"{name}.npz"))
    about = json.loads((folder / f"{name}.circuit.json").read_text(encoding="utf-8"))
    state = {key: value.astype(float) for key, value in stored.items() if not key.startswith("test_")}
    model = jc.from_transformer_lens(state, about["config"])
    graph = jc.component_graph(model, embeddings="split")
    true = graph.mask(name_of(u, f"{v}:{part}") for u, v, part, _ in about["structural_edges"])
    silent = graph.mask(name_of(*edge.split("->")) for edge in about["structural_not_causal_on_these_inputs"])
    return Program(model, graph, stored["test_tokens"].astype(np.int32), true, true & ~silent)


def name_of(sender: str, receiver: str) -> str:
    node, _, part = receiver.partition(":")
    return f"{ {'tok': 'embed', 'pos': 'pos_embed'}.get(sender, sender) }->{node if part == 'in' else f'{node}.{part}'}"


def pairs_of(program: Program) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, others for them, and the clean logits."""
    clean = program.tokens[:PAIRS]
    logits = jax.jit(jax.vmap(lambda tokens: jc.run(program.model, tokens)[0]))(jnp.asarray(clean))
    return clean, np.roll(clean, 1, axis=0), np.asarray(logits)


def answers_of(program: Program) -> tuple[jax.Array, jax.Array, jc.LogitDiff]:
    """Each pair once for each position behind the first, whose answer's logit is read."""
    clean, corrupt, logits = pairs_of(program)
    rows, position = np.divmod(np.arange(len(clean) * (clean.shape[1] - 1)), clean.shape[1] - 1)
    answer = logits.argmax(-1)[rows, position + 1]
    return jnp.asarray(clean[rows]), jnp.asarray(corrupt[rows]), jc.LogitDiff(answer, position=position + 1)


def ablations(program: Program) -> dict[str, jc.AbstractAblation | None]:
    inputs = jnp.asarray(program.tokens[:PAIRS])
    return {"another input": None, "the mean": jc.Mean(inputs, by_position=False), "zero": jc.Zero()}


def effects_of(program: Program, ablation: jc.AbstractAblation | None) -> np.ndarray:
    """The mean size of what each edge does to the answer's logit."""
    clean, corrupt, metric = answers_of(program)
    given = clean, corrupt if ablation is None else None, metric
    return np.abs(jc.patching.exact_edges(program.model, *given, graph=program.graph, ablation=ablation)).mean(0)


GRADIENTS: dict[str, dict[str, Any]] = {
    "one gradient": {},
    "along inputs": {"steps": STEPS, "rule": "midpoint"},
    "along activations": {"steps": STEPS, "rule": "midpoint", "along": "activations"},
}


def scores_of(program: Program, ablation: jc.AbstractAblation | None, **how: Any) -> np.ndarray:
    """The mean size of what gradients say that it does."""
    clean, corrupt, metric = answers_of(program)
    given = clean, corrupt if ablation is None else None, metric
    scores = jc.edge_attribution(program.model, *given, graph=program.graph, ablation=ablation, **how)
    return np.abs(np.asarray(scores)).mean(0)


def search(program: Program) -> jc.patching.GreedySearch:
    """Edges whose exchange moves any logit."""
    clean, corrupt, logits = pairs_of(program)
    given = jnp.asarray(clean), jnp.asarray(corrupt), Distance(jnp.asarray(logits))
    return jc.patching.greedy_search(program.model, *given, graph=program.graph, threshold=1e-3)


def auroc(scores: np.ndarray, true: np.ndarray) -> float:
    """How often a true edge has a larger score than another, ties as a half."""
    mine, others = scores[true][:, None], scores[~true][None]
    return float(((mine > others) + (mine == others) / 2).mean())


def main(folder: str | Path, out: Path = REPOSITORY / ".github" / "docs") -> None:
    found = {}
    for path in sorted(Path(folder).glob("*.npz")):
        found[path.stem] = measured(load(Path(folder), path.stem))
    out.mkdir(exist_ok=True)
    (out / "tracr-edges.md").write_text(page(found), encoding="utf-8")


def measured(program: Program) -> dict[str, Any]:
    """All numbers of a program."""
    graph, out = program.graph, {"edges": program.graph.n_edges, "true": int(program.true.sum())}
    effects = {name: effects_of(program, ablation) for name, ablation in ablations(program).items()}
    of_all = np.max(list(effects.values()), axis=0)
    out["off"] = float(of_all[graph.edges & ~program.true].max())
    out["acting"] = int(program.acting.sum())
    out["auroc"] = auroc(effects["another input"][graph.edges], program.acting[graph.edges])
    out["silent"] = graph.edge_names(program.true & (of_all <= ACTS))
    kept = search(program).kept
    out["search"] = (int((kept & program.acting).sum()), int((kept & ~program.acting).sum()))
    out["missed"] = {}
    for name, ablation in ablations(program).items():
        acts = effects[name] > ACTS
        scores = {how: scores_of(program, ablation, **more) for how, more in GRADIENTS.items()}
        out["missed"][name] = int(acts.sum()), {how: graph.edge_names(acts & (x <= ACTS)) for how, x in scores.items()}
    return out


def page(found: dict[str, dict[str, Any]]) -> str:
    rows = "\n".join(
        f"| `{name}` | {x['edges']} | {x['true']} | {x['acting']} | {x['auroc']:.3f} | {x['off']:.1e} | "
        f"{x['search'][0]} + {x['search'][1]} |"
        for name, x in found.items()
    )
    reached = "\n".join(
        f"| `{name}` | {x['true']} | {x['true'] - len(x['silent'])} | {', '.join(f'`{edge}`' for edge in x['silent'])} |"
        for name, x in found.items()
    )
    counts = "\n".join(
        f"| `{name}` | {carried} | {acts} | " + " | ".join(str(acts - len(missed[how])) for how in GRADIENTS) + " |"
        for name, x in found.items()
        for carried, (acts, missed) in x["missed"].items()
    )
    lists = "\n".join(
        f"| `{name}` | {carried} | {', '.join(f'`{edge}`' for edge in missed['one gradient'])} |"
        for name, x in found.items()
        for carried, (acts, missed) in x["missed"].items()
        if missed["one gradient"]
    )
    return f"""# The edges of compiled programs

Tracr compiles a program to the weights of a transformer, so the circuit is known: which component writes what which other one reads. Here
{len(found)} programs tell what each way to find edges finds. `python examples/tracr_edges.py FOLDER` wrote this page and computed every
number. Everything is in float64, on {PAIRS} inputs of each program; an effect is the mean size of the change of the answer's logit, over
the inputs and over all positions behind the first. An edge *acts* if that is more than {ACTS:g}, where the answer's logit is about 1.

## Patching and the search find the circuit

Each edge by itself carries what it carries on another input (`jc.patching.exact_edges`). The edges that act are exactly those true edges
that act by the record beside the weights, which was made by other code: the AUROC of the effects against these is 1. Edges off the circuit
have an effect of 0 whatever they carry (`largest off`, the largest of all: another input, the mean over inputs and positions, or zero).
The greedy search (`jc.patching.greedy_search`, by the distance of all logits from the clean ones, threshold 0.001) keeps so many of the
acting edges + so many others.

| program | edges | true | acting | AUROC | largest off | search |
|---|---|---|---|---|---|---|
{rows}

True edges that do not act carry the same on all inputs, such as positions, the constant 1 and the first token, or change what no position
then reads. What an edge carries decides what is seen: with the mean over inputs *and positions*, or with zero, in its place most of these
act, too. The last column names those that never do: nothing that reads them notices.

| program | true | act with one of the three | never |
|---|---|---|---|
{reached}

## What gradients miss

How many of the acting edges have a score above {ACTS:g}, by what the patched edge would carry: of the gradient at the clean input
(`jc.edge_attribution`), and of means of {STEPS} gradients on the way to what is carried (`rule="midpoint"`), on which all that is embedded
moves (`along="inputs"`) or only what the edge's own sublayer writes (`along="activations"`).

| program | carries | acting | {" | ".join(GRADIENTS)} |
|---|---|---|---|---|---|
{counts}

The edges that act and have no gradient at the clean input:

| program | carries | missed |
|---|---|---|
{lists}

A compiled query meets its key with a score so large that the softmax gives all of the attention to one position: its derivative
`p (1 - p)` is 0 to rounding, so an edge into such a query or key has no gradient, although another value there moves the attention to
another position. Compiled MLPs look their input up with ReLUs that are steps: between two steps they are flat, and an edge into them is
missed likewise. A mean of gradients on the way sees the jump where one of its points falls onto the slope, which is as narrow as the
scores are large. Patching needs no slope.
"""


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Give the folder that holds NAME.npz and NAME.circuit.json.")
    jax.config.update("jax_enable_x64", True)
    main(sys.argv[1])

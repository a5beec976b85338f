"""The attribution graph of one sentence in SmolLM2-135M: writes `.github/docs/smollm2-graph.md` and its picture, all numbers computed.

    python examples/smollm2_graph.py [MODEL]

`MODEL` is a GGUF file, a Hugging Face folder or a Hub id of SmolLM2-135M-Instruct; without it the file is the one that `.ci/smollm2`
fetches.
"""

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import jaxcirc as jc


REPOSITORY = Path(__file__).parents[1]
FETCHED = Path.home() / ".cache" / "jaxcirc" / "SmolLM2-135M-Instruct.Q4_1.gguf"
ROWS, MOVED = 400, 10  # neurons whose inputs are computed; neurons that are taken out


def main(name: str | Path = FETCHED, folder: Path = REPOSITORY / ".github" / "docs") -> None:
    model, tokenizer = jc.from_pretrained(name), jc.load_tokenizer(name)
    folder.mkdir(exist_ok=True)
    tokens, answer, foil = asked(tokenizer)
    texts = [tokenizer.decode([int(token)]) for token in tokens]
    metric = jc.LogitDiff(answer, foil)
    targets, graph = draw_graph(model, tokenizer, folder / "smollm2-graph.png")
    page = [
        "# SmolLM2: the attribution graph of a sentence",
        f""""{"".join(texts)}" goes on with "{tokenizer.decode([answer])}", the name that was said once, and not with
"{tokenizer.decode([foil])}". Which neurons, tokens and biases of SmolLM2-135M make that difference of logits, and through which others?
There are no transcoders here: neurons stand for the MLPs. `python examples/smollm2_graph.py` wrote this page and computed every number.""",
        of_graph(graph, texts),
        checked(graph, model, targets),
        edges(model, tokens, metric, texts),
    ]
    (folder / "smollm2-graph.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")


def asked(tokenizer) -> tuple[np.ndarray, int, int]:
    """The sentence, the name that was said once, and the one that was said twice."""
    prompts = jc.data.ioi(tokenizer, 1, seed=0)
    return prompts.clean[0], int(prompts.answer[0]), int(prompts.foil[0])


def draw_graph(model: jc.Transformer, tokenizer, path: Path) -> tuple[dict[str, jc.LogitDiff], jc.AttributionGraph]:
    """Makes the graph of the difference of both logits, and draws it; returns what it is of, too."""
    tokens, answer, foil = asked(tokenizer)
    targets = {f"{tokenizer.decode([answer])} less {tokenizer.decode([foil])}": jc.LogitDiff(answer, foil)}
    graph = jc.attribution_graph(model, None, tokens, targets=targets, max_nodes=ROWS)
    texts = [tokenizer.decode([int(token)]) for token in tokens]
    graph.to_figure(path, tokens=texts)
    return targets, graph


def of_graph(graph: jc.AttributionGraph, texts: list[str]) -> str:
    """What the graph holds, and its picture."""
    nodes = graph.nodes
    row = graph.whole.rows[np.searchsorted(graph.whole.targets, np.flatnonzero(graph.whole.table.kind == 5))[0]]
    total = float(np.sum(row, dtype=np.float64))
    value = float(nodes.loc[nodes["kind"] == "logit"].index.map(lambda i: graph.values[i])[0])
    latents = nodes[nodes["kind"] == "latent"].sort_values("influence", ascending=False)[:10]
    lines = "\n".join(
        f"| {each.site} | {each.unit} | {each.pos} `{texts[each.pos]}` | {each.activation:.2f} | {each.influence:.4f} |"
        for each in latents.itertuples()
    )
    return f"""## The graph

`jc.attribution_graph(model, None, tokens, targets={{name: jc.LogitDiff(answer, foil)}}, max_nodes={ROWS})`: of {len(graph.whole.table):,}
nodes the {ROWS} neurons of most influence have rows, and thresholds of 0.8 and 0.98 keep {len(nodes)} nodes and
{int(graph.edges.sum()):,} edges. The difference of logits is {value:.4f}, and its row sums to {total:.4f}. Of the influence,
{graph.replacement_score:.0%} begins at tokens and not at neurons without rows, and {graph.completeness_score:.0%} of what nodes
read is not of these.

![The graph](smollm2-graph.png)

The neurons of most influence:

| site | neuron | at | activation | influence |
|---|---|---|---|---|
{lines}"""


def checked(graph: jc.AttributionGraph, model: jc.Transformer, targets: dict[str, jc.LogitDiff]) -> str:
    """Ten neurons taken out, one at a time: what the edges predict, and what the model does."""
    latents = graph.nodes[(graph.nodes["kind"] == "latent") & (graph.nodes["pos"] > 0)]
    chosen = latents.sort_values("influence", ascending=False).index[:MOVED].tolist()
    held = jc.check_graph(graph, model, None, chosen, strengths=[0.0])
    size = float(held["measured"].abs().max())
    off = float((held["measured"] - held["predicted"]).abs().max()) / size
    live = jc.check_graph(graph, model, None, chosen, strengths=[0.0], frozen=(), live_from=0)
    logit = graph.nodes.index[graph.nodes["kind"] == "logit"][0]
    rows = live[live["target"] == logit]
    every = float(np.corrcoef(live["predicted"], live["measured"])[0, 1])
    nodes = graph.nodes
    lines = "\n".join(
        f"| {nodes['site'][each.node]} {nodes['unit'][each.node]} at {nodes['pos'][each.node]} | {each.predicted:+.3f} | "
        f"{each.measured:+.3f} |"
        for each in rows.itertuples()
    )
    return f"""## Ten interventions

`jc.check_graph` takes neurons out, one at a time: the {MOVED} of most influence behind the first position, at which models park attention
that goes nowhere, so that every pattern changes with what is there. With patterns, scales and all other neurons held, what
their edges predict for {len(held):,} pairs of nodes is what the model does: the largest difference is {off:.0e} of the largest change. With
everything live, from the neuron on, the graph predicts to first order, along paths through its own nodes; over {len(live):,} pairs
prediction and measurement correlate at {every:.2f}: neurons of late layers come out as predicted, and those of early ones do not, as what
lies between changes its patterns, scales and gates. On the difference of logits:

| neuron | predicted | measured, all live |
|---|---|---|
{lines}"""


def edges(model: jc.Transformer, tokens, metric: jc.LogitDiff, texts: list[str]) -> str:
    """Direct effects on the difference, and what the strongest head's query and key read."""
    frozen = jc.frozen.layer_norms(model)
    final = jc.edges_into(model, tokens, metric, jc.Final(), frozen=frozen)
    heads = final.table(200)
    head = heads[heads["kind"] == "head"].iloc[0]
    at = [int(head[name]) for name in ("layer", "unit", "pos", "key")]
    lines = []
    for part in ("q", "k"):
        into = jc.edges_into(model, tokens, metric, jc.Head(*at, part), frozen=frozen).table(4)
        lines += [
            f"| {'query' if part == 'q' else 'key'} | {row.node} | {row.edge:+.4f} |" for row in into.itertuples()
        ]
    score = jc.qk_attribution(model, None, jnp.asarray(tokens), at[0], at[1], at[2], at[3], pairs=1)
    listed = "\n".join(lines)
    return f"""## The head that writes the name

Of all direct effects on the difference (`jc.edges_into(…, jc.Final())`) the strongest of a head is {float(head["edge"]):+.3f}, of head
{at[0]}.{at[1]}, which attends from `{texts[at[2]]}` at {at[2]} to `{texts[at[3]]}` at {at[3]}. Why there? The edges into its query and
key (`jc.edges_into(…, jc.Head({at[0]}, {at[1]}, {at[2]}, {at[3]}, "q"))`), in units of the difference:

| into its | from | edge |
|---|---|---|
{listed}

`jc.qk_attribution` splits the score of {float(score.score):.3f} into pairs of nodes that sum to it."""


if __name__ == "__main__":
    main(*sys.argv[1:2])

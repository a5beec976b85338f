"""The attribution graph of a prompt."""

from typing import Any

import numpy as np

from .._checks import check_optional_count
from .._fingerprint import fingerprint
from .._guard import check_backend
from .._precision import matmul_precision
from .._run import check_tokens
from .._target import running_device
from .._traced import check_untraced
from .._typing import Keys, Progress, Tokens
from ..linear import check_fits
from ..models import Transformer
from ..saes import CrossLayerTranscoder
from ._checked import checked_dictionaries
from ._given import Dictionaries, Transcoders
from ._graph import AttributionGraph, check_thresholds, pruned
from ._padding import Real, real_part
from ._prompt import linearised_prompt
from ._select import merge_unselected, select
from ._table import LATENT, Outputs
from ._targets import check_targets, Targets
from ._whole import Whole


def attribution_graph(
    model: Transformer,
    transcoders: Transcoders,
    tokens: Tokens,
    *,
    targets: Targets = None,
    mask: Keys | None = None,
    max_nodes: int | None = 7500,
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    progress: Progress | None = None,
) -> AttributionGraph:
    r"""Computes which latents, tokens, biases and errors of a prompt contribute how much to which latents, and to the logits at its end.

    Held at their clean values are all attention patterns and norm scales; MLPs, and attention where there are dictionaries for it, are
    replaced by what their dictionaries' latents write, the error and the bias. Then all that a node reads is linear in what others write,

    $$A_{ts} = \langle w_s,\; J^T e_t \rangle, \qquad \sum_s A_{ts} = \text{pre-activation of } t,$$

    with $w_s$ the vector that the source writes, $e_t$ the covector by which the target reads, and $J$ what leads from one to the other:
    the residual stream, norms, attention's values by its pattern, linear paths beside dictionaries; never another nonlinearity. Nodes are

    - latents that are on, at each position; where there are no dictionaries, neurons;
    - errors: what a dictionary does not reconstruct of its site, one a position;
    - tokens and position embeddings, one a position;
    - biases, one a position: what attention adds whatever it reads (`b_O`, and what `b_V` and the norm's bias make of it), dictionaries'
      `b_dec`; and one for all that a row has of its own: its encoder's bias and what it reads of a norm's;
    - logits, before a cap, less the mean logit; or other directions.

    A latent's pre-activation is what its activation function reads. A neuron's is its MLP's; a gated MLP's neuron stands with its value,
    its gate held. A latent of a dictionary that reads what an MLP adds reads that with the MLP's gates held, `act(pre) / pre` of each
    neuron, or of a gated MLP `act(gate)`: so the MLP is linear there and sums stay exact, where its derivative would leave a remainder. A
    dictionary that normalises its input has the scale of that held, like a norm's.

    **Arguments:**

    - `transcoders`: dictionaries by site, `{"blocks.0.hook_mlp_out": transcoder, …}`, for the MLPs of all layers or of none; and for what
      attention adds, `hook_attn_out`, in whichever layers; or a cross-layer transcoder. Transcoders read what is in front of their
      layer's attention or MLP (`hook_resid_mid`, `ln2.hook_normalized`, `mlp.hook_in`, …), SAEs their own site. `None` or `{}`: neurons.
    - `tokens` `[seq]`: one prompt.
    - `targets`: what is explained at the last real position. `None`: the most probable tokens, until they make up 0.95, at most 10. Or
      token ids; or directions `[n d_model]` of what the unembedding reads, also by name, `{name: direction}`; or differences of logits by
      name, `{name: jc.LogitDiff(answer, foil)}`. Tokens weigh as they are probable, directions alike.
    - `mask` `[seq]`: False for padding before or behind the prompt, where there are no nodes: the graph is that of the prompt without it,
      at the positions that its tokens have here.
    - `max_nodes`: how many latents have rows; those of most influence, found row by row, ranked anew after every 1,024. `None`: all that
      are on. Latents beyond that are summed up in nodes of kind `"error"`, one a site and position, so that rows sum as before.
    - `node_threshold`, `edge_threshold`: how much of all influence the kept nodes, and the edges between these, make up, from 0 to 1; 1
      keeps all. `AttributionGraph.prune` changes them later.
    - `progress`: called with (done, of, stage) in rows.

    **Returns:** an `AttributionGraph`; its numbers are in the dtype of the model's activations.

    **Raises:** `ValueError` for dictionaries of another model or another site, or missing in some layers; for targets that are no single
    tokens of the model; for padding between tokens; for thresholds that are not from 0 to 1; if the rows are larger than the memory that
    is free.

    A row takes four bytes a node on the host: 2,000 latents with rows, of 40,000 nodes, 320 MB. On the device are two residual streams a
    layer, `8 n_layers d_model` bytes a token; while one layer's attention is gone through three and a half times its pattern, `14 n_heads
    seq` bytes a token; and as many targets at a time as half a gigabyte takes, `32 max(d_model, n_heads d_head)` bytes a token and target,
    at least one. At 6,000 tokens of a model of 26 layers, d_model 2,304 and 8 heads of 256 that is 2.9, 4.0 and 0.5 GB, beside the weights
    and dictionaries.

    >>> graph = jc.attribution_graph(model, None, tokens, max_nodes=100)
    >>> graph.prune(node_threshold=0.5, edge_threshold=0.8).nodes["kind"].value_counts()["token"].item()
    6

    **Reference:** Ameisen et al. 2025, "Circuit Tracing: Revealing Computational Graphs in Language Models", and Lindsey et al. 2025, "On
    the Biology of a Large Language Model", Transformer Circuits. The code of the first, circuit-tracer, has no nodes for biases and
    positions, so that its rows do not sum; it sets features and errors at the first position to zero, where here everything is kept; it
    drops features beyond the most, which here count with the errors in both scores; and influence in its files is cumulated.
    """
    check_untraced("attribution_graph", model)
    check_backend()
    check_tokens(model, tokens)
    real = real_part("attribution_graph", tokens, mask)
    dictionaries = checked_dictionaries("attribution_graph", model, transcoders)
    check_targets(model, targets, real.end - 1)
    check_optional_count("attribution_graph: max_nodes", "latents to have rows", max_nodes)
    check_thresholds("attribution_graph", node_threshold, edge_threshold)
    prompt = linearised_prompt(model, dictionaries, tokens, real, targets)
    table, outputs = prompt.table, prompt.outputs
    latents = int((table.kind == LATENT).sum())
    rows_wanted = len(outputs.tokens) + (latents if max_nodes is None else min(max_nodes, latents))
    dtype = np.dtype(model.activation_dtype)
    check_fits(
        f"attribution_graph: the rows of {rows_wanted} nodes, with {latents} latents on,",
        (rows_wanted, len(table)),
        dtype,
        "Give a smaller max_nodes, a shorter prompt, or sparser dictionaries.",
        on_host=True,
    )
    report = progress or (lambda done, of, stage: None)
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        report(done, rows_wanted, "rows")

    found, kept = select(prompt.rows, table, max_nodes, dtype, count)
    found, kept, table = merge_unselected(found, kept, table)
    meta = _meta(model, dictionaries, tokens, real, outputs, max_nodes, latents)
    whole = Whole(table.moved(real.first), found, kept, meta, outputs.given)
    return pruned(whole, node_threshold, edge_threshold, "attribution_graph")


def _meta(
    model: Transformer,
    dictionaries: Dictionaries,
    tokens: Tokens,
    real: Real,
    outputs: Outputs,
    max_nodes: int | None,
    latents: int,
) -> dict[str, Any]:
    """What a graph is of, as plain JSON."""
    of_each = _each(dictionaries)
    return {
        "model": model.name,
        "n_layers": model.n_layers,
        "d_vocab": len(model.b_U),
        "tokens": np.asarray(tokens).tolist(),
        "real": list(real),
        "dictionaries": {name: getattr(of, "origin", "") for name, of in of_each.items()},
        "targets": None if outputs.names is None else list(outputs.names),
        "latents_on": latents,
        "max_nodes": max_nodes,
        "dtype": str(model.activation_dtype),
        "device": running_device().device_kind,
        "precision": matmul_precision(),
        "fingerprints": {
            "model": fingerprint(model),
            "dictionaries": {name: fingerprint(_without_files(of)) for name, of in of_each.items()},
        },
    }


def _each(dictionaries: Dictionaries) -> dict[str, Any]:
    if isinstance(dictionaries, CrossLayerTranscoder):
        return {"cross-layer": dictionaries}
    return {str(site): sae for site, sae in dictionaries.items()}


def _without_files(of: Any) -> Any:
    """A dictionary without what may lie in files, by which it would have to be read whole to be known again."""
    return (of.W_enc, of.b_enc, of.b_dec, of.activations, of.W_skip) if isinstance(of, CrossLayerTranscoder) else of

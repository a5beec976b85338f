"""Which pairs of nodes, one in the query and one in the key, raise an attention score."""

import dataclasses
import functools as ft
import numbers
from typing import Any, TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._checks import check_count
from .._run import check_tokens
from .._shown import Shown
from .._sites import Kind, Site
from .._traced import check_untraced
from .._typing import Keys, Tokens
from ..models import check_known, Transformer
from ._checked import checked_dictionaries
from ._given import Transcoders
from ._padding import check_real, real_part
from ._pairs import strongest_pairs
from ._prompt import linearised_prompt, Prompt
from ._score_reading import key_kind, query_kind, reading_of
from ._table import KINDS, Table


if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ("kind", "site", "layer", "pos", "unit", "activation")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class QKAttribution(Shown):
    """An attention score as a sum over pairs of nodes.

    **Attributes:**

    - `layer`, `head`, `query`, `key`: which score; `score`: its value before a cap and the softmax, the sum of all pairs.
    - `nodes`: a table of all nodes of the prompt, as `AttributionGraph.nodes` has them: latents that are on, errors, tokens, position
      embeddings, biases. The bias with position -1 is that of the projection, with what it reads of the norm's in front of it.
    - `M_q`, `M_k` `[node d_head]`: what each contributes to the query, and to the key, as the scores read them; `M_q` times the model's
      scale, so that `M_q[i] @ M_k[j]` is a pair's value.
    - `pairs` `[pair 2]`, `values` `[pair]`: the strongest pairs by absolute value, node of the query and node of the key.
    """

    layer: int
    head: int
    query: int
    key: int
    score: float
    records: Table
    M_q: Float[np.ndarray, "node d_head"]
    M_k: Float[np.ndarray, "node d_head"]
    pairs: Int[np.ndarray, "pair 2"]
    values: Float[np.ndarray, " pair"]

    @ft.cached_property
    def nodes(self) -> "pd.DataFrame":
        import pandas as pd

        table = self.records
        columns = {"kind": np.array(KINDS, object)[table.kind], "site": np.array(table.sites, object)[table.site]}
        return pd.DataFrame(columns | {name: getattr(table, name) for name in _COLUMNS[2:]})

    @property
    def of_queries(self) -> Float[np.ndarray, " node"]:
        """What each node contributes by way of the query, whatever is in the key: they sum to the score."""
        return self.M_q @ self.M_k.sum(0)  # [node d_head] · [d_head] -> [node]

    @property
    def of_keys(self) -> Float[np.ndarray, " node"]:
        """So too by way of the key."""
        return self.M_k @ self.M_q.sum(0)  # [node d_head] · [d_head] -> [node]

    def table(self) -> "pd.DataFrame":
        """The strongest pairs: `value`, and of the nodes in the query and in the key the number, `kind`, `site`, `pos` and `unit`."""
        import pandas as pd

        columns: dict[str, Any] = {"value": self.values}
        for side, number in zip(("query", "key"), self.pairs.T, strict=True):
            of = self.nodes.iloc[number]
            columns |= {f"{side}_{name}": of[name].to_numpy() for name in ("kind", "site", "pos", "unit")}
            columns[f"{side}_node"] = number
        return pd.DataFrame(columns)

    def by_kind(self) -> "pd.DataFrame":
        """The sums of all pairs of each two kinds, a row for each kind in the query, a column for each in the key."""
        import pandas as pd

        kinds = [number for number in range(len(KINDS)) if (self.records.kind == number).any()]
        sums = [[M[self.records.kind == kind].sum(0) for kind in kinds] for M in (self.M_q, self.M_k)]
        names = [KINDS[kind] for kind in kinds]
        return pd.DataFrame(np.stack(sums[0]) @ np.stack(sums[1]).T, index=names, columns=names)


def qk_attribution(
    model: Transformer,
    transcoders: Transcoders,
    tokens: Tokens,
    layer: int,
    head: int,
    query: int,
    key: int,
    *,
    pairs: int = 100,
    mask: Keys | None = None,
) -> QKAttribution:
    r"""Splits an attention score into pairs of nodes: what stands in the query against what stands in the key.

    With the scale of the norm in front of attention held, and those of the norms of queries and keys where there are such, a query and a
    key are affine in what latents, errors, embeddings and biases write, and so the score before a cap and the softmax is

    $$S = \text{scale} \, \Big\langle \sum_i M_q^i, \sum_j M_k^j \Big\rangle = \sum_{i,j} \text{scale} \, \langle M_q^i, M_k^j \rangle,$$

    with $M_q^i$ and $M_k^j$ what node $i$ contributes to the query, and node $j$ to the key, both as they are rotated by their positions.
    Nodes reach them by all linear paths before: residual stream, attention by its patterns, linear paths beside transcoders. Only the
    strongest pairs are made, and never the matrix of all of them.

    **Arguments:**

    - `transcoders`: as to `jc.attribution_graph`. - `tokens` `[seq]`: the prompt.
    - `layer`, `head`: a query head; heads that share keys and values each have their own scores.
    - `query`, `key`: positions.
    - `pairs`: how many pairs to list.
    - `mask` `[seq]`: False for padding before or behind the prompt.

    **Returns:** the score, `M_q` and `M_k` `[node d_head]` of all nodes, and the strongest pairs.

    **Raises:** `ValueError` for a layer, head or position that is not there, and for a key to which the query does not attend.

    >>> score = jc.qk_attribution(model, None, tokens, layer=1, head=0, query=5, key=3, pairs=4)
    >>> score.table()["value"].shape
    (4,)

    **Reference:** Kamath et al. 2025, "Tracing Attention Computation Through Feature Interactions", Transformer Circuits, on QK
    attributions. There pairs are of features at the query's own position and at the key's; here nodes reach both by all linear paths
    before, from earlier positions, too, and errors, embeddings and biases are nodes, so that the pairs sum to the score exactly, also with
    norms of queries and keys, rotary positions and shared keys.
    """
    check_untraced("qk_attribution", model)
    check_tokens(model, tokens)
    check_count("qk_attribution: pairs", "pairs to list", pairs)
    check_known("qk_attribution", model, "attn")
    dictionaries, real = (
        checked_dictionaries("qk_attribution", model, transcoders),
        real_part("qk_attribution", tokens, mask),
    )
    seq = len(tokens)
    ranges = {"layer": model.n_layers, "head": model.n_heads, "query": seq, "key": seq}
    for (name, size), value in zip(ranges.items(), (layer, head, query, key), strict=True):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not 0 <= value < size:
            raise ValueError(f"qk_attribution: {name} is 0 to {size - 1} here, got {value!r}.")
    if not bool(model.masks(seq, None)[layer][query, key]):
        raise ValueError(
            f"qk_attribution: in layer {layer} the query at {query} does not attend to the key at {key}"
            + (", which comes behind it." if model.causal and key > query else ": it is outside the layer's window.")
        )
    check_real("qk_attribution", real, query=query, key=key)
    prompt = linearised_prompt(model, dictionaries, tokens, real, None)
    return attribute_score(prompt, int(layer), int(head), int(query) - real.first, int(key) - real.first, pairs)


def attribute_score(prompt: Prompt, layer: int, head: int, query: int, key: int, pairs: int) -> QKAttribution:
    """Splits a score of a prompt that is linearised already, `query` and `key` counted from the first real token."""
    attn = prompt.linear.model.blocks[layer].attn
    kv_head = head // (attn.W_Q.shape[0] // attn.W_K.shape[0])
    of = lambda pos, head: (jnp.asarray(pos, jnp.int32), jnp.asarray(head, jnp.int32))
    here = prompt.passing(layer)
    sides = [
        reading_of(here, *of(query, head), kind=query_kind(attn)),
        reading_of(here, *of(key, kv_head), kind=key_kind(attn)),
    ]
    M_q, M_k = _made_of(prompt, layer, sides, max(query, key))
    M_q *= np.asarray(attn.scale, M_q.dtype)
    index, values = strongest_pairs(M_q, M_k, pairs)
    n = prompt.columns.outputs  # behind the other nodes
    score = float(M_q.sum(0) @ M_k.sum(0))
    first, nodes = prompt.real.first, prompt.table.some(np.arange(n))
    at = layer, head, first + query, first + key
    return QKAttribution(*at, score, nodes.moved(first), M_q, M_k, index, values)


def _made_of(
    prompt: Prompt,
    layer: int,
    sides: list[tuple[Float[Array, "d_head seq d_model"], Float[Array, " d_head"]]],
    last: int,
) -> list[Float[np.ndarray, "node d_head"]]:
    """What every node contributes to query and key, given the covectors by which these are read and their constants."""
    seq = last + 1 if prompt.linear.model.causal else prompt.linear.seq
    covectors = jnp.concatenate([each for each, _ in sides])[:, :seq]
    n = len(covectors)
    out = np.zeros((n, len(prompt.table)), covectors.dtype)
    prompt.rows.along({Site(layer, Kind.RESID_PRE): covectors}, out, np.arange(n), np.ones(n, bool))
    out[:, prompt.columns.own] += np.concatenate([np.asarray(constants) for _, constants in sides])
    return [np.ascontiguousarray(part.T) for part in np.split(out[:, : prompt.columns.outputs], 2)]

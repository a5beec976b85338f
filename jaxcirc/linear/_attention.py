r"""The derivative of attention, in closed form: for one head after another a softmax over keys, of queries by keys, weighs values.

With the pattern `A`, the queries `q_t` and the keys and values `k_s`, `v_s` of the clean run, what a covector `g` of attention's output
at query `t` gives to vectors at key `s`, whose images are a value `dv`, a key `dk` and a query `dq`, is (Vaswani et al. 2017, arXiv
1706.03762, eq. 1, differentiated)

$$\sum_h A_{hts} \langle g_h, dv_h \rangle + dS_{hs} \langle q_{th}, dk_h \rangle
  + [s = t] \Big\langle \sum_{s'} dS_{hs'} k_{s'h}, dq_h \Big\rangle, \qquad
  dS_{hs} = A_{hts} \langle g_h, v_{sh} - z_{th} \rangle \cdot \mathrm{scale}, \qquad z_{th} = \sum_s A_{hts} v_{sh}.$$

Everything that is asked of attention is these three terms. Bilinear forms (`prepare_rows`, `prepare_columns`, `contract_tiles`) take a
head's products of covectors and values first and weigh the results: columns lie in tiles of one position each, so that one entry of
the pattern weighs all of a tile, and what a query asks of a key, $\langle q_{th}, dk_h \rangle$, is the same for all rows at `t`. Where
rows are few they are spread over the keys instead (`spread_to_keys`), as two covectors a head, $W_V g_h$ and $W_K q_{th}$.
"""

from collections.abc import Mapping
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from .._indexing import take
from .._sites import Kind


Positions = Int[Array, " n"]
Vectors = Float[Array, "n width"]
BEFORE_HEADS = (Kind.RESID_PRE, Kind.LN1_NORMALIZED)  # where one vector makes queries, keys and values of all heads


class AttentionRows(NamedTuple):
    """Covectors of attention's output at their queries: `g`, their rows of the `pattern`, and `scores`, the covectors of the scores (`dS`
    above), where queries or keys are live.
    """

    g: Float[Array, "head n d_head"]
    pattern: Float[Array, "head n k_seq"]
    scores: Float[Array, "head n k_seq"] | None


class AttentionColumns(NamedTuple):
    """Vectors as values and keys: the values, and either the keys or `asked`, every query's product with them; `None` where not live."""

    values: Float[Array, "head d_head k"] | None
    keys: Float[Array, "head d_head k"] | None
    asked: Float[Array, "head q_seq k"] | None


class SpreadRows(NamedTuple):
    """Covectors of what attention reads at every position: at key `s` the sum over parts of `directions` times `weights[:, :, s]`."""

    directions: Float[Array, "n part width"]
    weights: Float[Array, "part n k_seq"]


class AttentionMap(eqx.Module):
    """Attention linearised at the clean run, where its output is `z`. `paths` has those of `Kind.Q`, `Kind.K` and `Kind.V` that are live.

    Where a query may not attend the pattern is 0, and with it all three terms; `mask` says where that is.
    """

    q: Float[Array, "seq head d_head"]
    k: Float[Array, "seq head d_head"]
    v: Float[Array, "seq head d_head"]
    z: Float[Array, "seq head d_head"]
    pattern: Float[Array, "head q_seq k_seq"]
    scale: Float[Array, ""]
    W_Q: Float[Array, "head d_head d_model"]
    W_K: Float[Array, "head d_head d_model"]
    W_V: Float[Array, "head d_head d_model"]
    mask: Shaped[Array, "q_seq k_seq"]
    paths: frozenset[Kind] = eqx.field(static=True)

    def reach(self) -> tuple[Int[Array, " q_seq"], Int[Array, " q_seq"]]:
        """Finds the first and the last key that each query may attend to."""
        first = lambda mask: jnp.argmax(mask, axis=1).astype(jnp.int32)
        return first(self.mask), self.mask.shape[1] - 1 - first(self.mask[:, ::-1])

    def prepare_rows(self, g: Float[Array, "n d_z"], positions: Positions) -> AttentionRows:
        """Puts covectors of attention's output beside the pattern at their queries, and differentiates the softmax."""
        g = g.reshape(-1, *self.q.shape[1:])
        pattern = take(self.pattern, positions, axis=1)
        at_heads = g.transpose(1, 0, 2)
        if not self.paths & {Kind.Q, Kind.K}:
            return AttentionRows(at_heads, pattern, None)
        # [head n d_head] · [k_seq head d_head] -> [head n k_seq], [n head d_head] · [n head d_head] -> [head n]
        values = jnp.einsum("hne,she->hns", at_heads, self.v)
        mean = jnp.einsum("nhe,nhe->hn", g, take(self.z, positions))
        return AttentionRows(at_heads, pattern, pattern * (values - mean[..., None]) * self.scale)

    def pull_queries(self, rows: AttentionRows) -> Float[Array, "n d_z"]:
        """Pulls rows back to the queries at their own positions: the third term's covectors."""
        # [head n k_seq] · [k_seq head d_head] -> [n head d_head]
        return jnp.einsum("hns,she->nhe", rows.scores, self.k).reshape(rows.g.shape[1], -1)

    def prepare_columns(self, vectors: Mapping[Kind, Vectors], *, asked: bool) -> AttentionColumns:
        """Makes values and keys of vectors of what attention reads; `asked`: and what every query asks of them, instead of the keys."""
        values, keys = (self._image(vectors, kind) for kind in (Kind.V, Kind.K))
        if keys is None or not asked:
            return AttentionColumns(values, keys, None)
        # [q_seq head d_head] · [head d_head k] -> [head q_seq k]
        return AttentionColumns(values, None, jnp.einsum("the,hek->htk", self.q, keys))

    def _image(self, vectors: Mapping[Kind, Vectors], kind: Kind) -> Float[Array, "head d_head k"] | None:
        """Makes values or keys of vectors; items last, so that the product is laid out as it is read."""
        if kind not in self.paths:
            return None
        if kind in vectors:
            return vectors[kind].T.reshape(*self.q.shape[1:], -1)
        if Kind.LN1_NORMALIZED not in vectors:
            return None
        W, normalized = self.W_V if kind == Kind.V else self.W_K, vectors[Kind.LN1_NORMALIZED]
        return jnp.einsum("hem,km->hek", W, normalized)  # [head d_head d_model] · [k d_model] -> [head d_head k]

    def contract_tiles(
        self, rows: AttentionRows, positions: Positions, columns: AttentionColumns, place: Int[Array, " tile"]
    ) -> Float[Array, "n tile slot"] | None:
        """Contracts rows at `positions` with columns in tiles at the positions `place`: the first two terms. `None` if none is live."""
        tiled = lambda x: x.reshape(*x.shape[:-1], len(place), -1)
        at_tiles = lambda x: take(x, place, axis=2)[..., None]  # [head n tile 1]
        terms = []
        if columns.values is not None:
            values = jnp.einsum(
                "hne,hek->hnk", rows.g, columns.values
            )  # [head n d_head] · [head d_head k] -> [head n k]
            terms.append(jnp.sum(tiled(values) * at_tiles(rows.pattern), axis=0))
        if columns.asked is not None:
            terms.append(jnp.sum(tiled(take(columns.asked, positions, axis=1)) * at_tiles(rows.scores), axis=0))
        if columns.keys is not None:
            # [n head d_head] · [head d_head k] -> [head n k]
            moved = jnp.einsum("nhe,hek->hnk", take(self.q, positions), columns.keys)
            terms.append(jnp.sum(tiled(moved) * at_tiles(rows.scores), axis=0))
        return sum(terms[1:], terms[0]) if terms else None

    def spread_to_keys(
        self, rows: AttentionRows, positions: Positions, source: Kind = Kind.LN1_NORMALIZED
    ) -> SpreadRows | None:
        """Spreads rows at `positions`, or all at one, over the keys, as covectors of what attention reads, or of its keys or values: the
        first two terms, of rank two a head. `None` if neither leads to `source`.
        """
        directions, weights = [], []
        if Kind.V in self.paths and source in (*BEFORE_HEADS, Kind.V):
            directions, weights = [_back_through("hne", rows.g, self.W_V, source)], [rows.pattern]
        if rows.scores is not None and Kind.K in self.paths and source in (*BEFORE_HEADS, Kind.K):
            few = self.q.shape[0] <= len(positions)  # positions, of which rows have the same
            queries = self.q if few else take(self.q, positions)
            keys = _back_through("nhe", queries, self.W_K, source)
            keys = take(keys, positions) if few else keys
            directions.append(jnp.broadcast_to(keys, (rows.g.shape[1], *keys.shape[1:])))
            weights.append(rows.scores)
        return SpreadRows(jnp.concatenate(directions, axis=1), jnp.concatenate(weights, axis=0)) if weights else None

    def pull(
        self, g: Float[Array, "seq n d_z"], positions: Int[Array, " seq"], *, keys: int
    ) -> dict[Kind, Float[Array, "seq n d_z"]]:
        """Pulls covectors of the output at a range of `positions` back to the queries, keys and values there: all three terms, at once.
        The queries attend to nothing behind the first `keys` positions.
        """
        here = lambda array: take(array, positions).transpose(1, 0, 2)  # [head seq d_head]
        q, z, k, v = here(self.q), here(self.z), *(x[:keys].transpose(1, 0, 2) for x in (self.k, self.v))
        pattern = take(self.pattern, positions, axis=1)[:, :, :keys]
        among = lambda x: x if len(positions) == keys else take(x, positions, axis=x.ndim - 1)
        g = g.reshape(*g.shape[:2], *q.shape[::2]).transpose(2, 0, 1, 3)  # [head seq n d_head]
        found = {}
        if Kind.V in self.paths:  # [head q_seq k_seq] · [head q_seq n d_head] -> [head k_seq n d_head]
            found[Kind.V] = jnp.einsum("hqk,hqne->hkne", among(pattern), g)
        if {Kind.Q, Kind.K} & self.paths:
            # [head q_seq n d_head] · [head key d_head] -> [head q_seq n key]
            values = jnp.einsum("hqne,hke->hqnk", g, v)
            mean = jnp.einsum("hqne,hqe->hqn", g, z)  # [head q_seq n d_head] · [head q_seq d_head] -> [head q_seq n]
            scores = pattern[:, :, None] * (values - mean[..., None]) * self.scale
            if Kind.K in self.paths:  # [head q_seq n k_seq] · [head q_seq d_head] -> [head k_seq n d_head]
                found[Kind.K] = jnp.einsum("hqnk,hqe->hkne", among(scores), q)
            if Kind.Q in self.paths:  # [head q_seq n key] · [head key d_head] -> [head q_seq n d_head]
                found[Kind.Q] = jnp.einsum("hqnk,hke->hqne", scores, k)
        return {kind: x.transpose(1, 2, 0, 3).reshape(*x.shape[1:3], -1) for kind, x in found.items()}

    def own(self, images: Mapping[Kind, Vectors], positions: Positions) -> Float[Array, "n d_z"]:
        r"""Pushes queries, keys and values at single positions to the output at the same positions, whatever `paths` says.

        For each head `dq`, `dk`, `dv` at `p` become $A_{pp} dv + \sum_s A_{ps} (dx_s - \sum_{s'} A_{ps'} dx_{s'}) v_s$, with the scores'
        tangents $dx_s = (\langle dq, k_s \rangle + [s = p] \langle q_p, dk \rangle) \cdot \mathrm{scale}$.
        """
        n, shape = len(positions), self.q.shape[1:]
        image = lambda kind: images[kind].reshape(-1, *shape) if kind in images else None
        queries, keys, values = map(image, (Kind.Q, Kind.K, Kind.V))
        pattern = take(self.pattern.transpose(1, 0, 2), positions)  # [n head k_seq]
        here = (positions[:, None] == jnp.arange(self.q.shape[0], dtype=positions.dtype))[:, None]
        scores, out = jnp.zeros_like(pattern), jnp.zeros((n, *shape), pattern.dtype)
        if queries is not None:  # [n head d_head] · [k_seq head d_head] -> [n head k_seq]
            scores += jnp.einsum("nhe,she->nhs", queries, self.k)
        if keys is not None:
            own = jnp.einsum(
                "nhe,nhe->nh", take(self.q, positions), keys
            )  # [n head d_head] · [n head d_head] -> [n head]
            scores += jnp.where(here, own[..., None], 0)
        if queries is not None or keys is not None:
            scores *= self.scale
            moved = pattern * (scores - jnp.sum(pattern * scores, axis=-1, keepdims=True))
            out += jnp.einsum("nhs,she->nhe", moved, self.v)  # [n head k_seq] · [k_seq head d_head] -> [n head d_head]
        if values is not None:
            out += jnp.sum(jnp.where(here, pattern, 0), axis=-1, keepdims=True) * values
        return out.reshape(n, -1)


def contract_spread(
    rows: SpreadRows, normalized: Float[Array, "k width"], place: Int[Array, " tile"]
) -> Float[Array, "n tile slot"]:
    """Contracts rows that were spread over the keys with columns in tiles at the positions `place`."""
    # [part n tile] · [n part width] -> [n tile width], each row at each tile's position; a transposed copy of it would take longer than
    # both products.
    weights = take(rows.weights, place, axis=2)
    there = jax.lax.optimization_barrier(jnp.einsum("pnt,npd->ntd", weights, rows.directions))
    tiled = normalized.reshape(len(place), -1, normalized.shape[-1])
    at_tile = lambda i: jax.lax.dynamic_index_in_dim(there, i, 1, keepdims=False) @ tiled[i].T
    return jax.lax.map(at_tile, jnp.arange(len(place), dtype=jnp.int32)).transpose(1, 0, 2)


def _back_through(axes: str, covectors: Array, W: Float[Array, "head d_head d_model"], source: Kind) -> Array:
    """Pulls covectors of each head's keys or values, with these `axes`, to what makes them, or to those of all heads: `[n head width]`."""
    if source in BEFORE_HEADS:  # [n head d_head] · [head d_head d_model] -> [n head d_model]
        return jnp.einsum(f"{axes},hed->nhd", covectors, W)
    one_head = jnp.eye(len(W), dtype=covectors.dtype)
    found = jnp.einsum(f"{axes},hg->nhge", covectors, one_head)  # [n head d_head] · [head head] -> [n head head d_head]
    return found.reshape(*found.shape[:2], -1)

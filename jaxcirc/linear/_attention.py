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

`q` and `k` are queries and keys as the scores read them. Where they are normalised or rotated on the way from their projection, which goes
by position, `W_K` is not there, and what makes them is local maps. Heads that share keys and values are a group: axes that are
called `head` are `kv_head` times `group`. Capped scores, $c \tanh(S / c)$, have $1 - (S / c)^2$ as a further factor in $dS$.
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
BEFORE_HEADS = (
    Kind.RESID_PRE,
    Kind.LN1_NORMALIZED,
    Kind.ATTN_IN,
)  # where one vector makes queries, keys and values of all heads


class AttentionRows(NamedTuple):
    """Covectors of attention's output at their queries: `g`, their rows of the `pattern`, and `scores`, the covectors of the scores (`dS`
    above), where queries or keys are live.
    """

    g: Float[Array, "head n d_head"]
    pattern: Float[Array, "head n k_seq"]
    scores: Float[Array, "head n k_seq"] | None


class AttentionColumns(NamedTuple):
    """Vectors as values and keys: the values, and either the keys or `asked`, every query's product with them; `None` where not live."""

    values: Float[Array, "kv_head d_head k"] | None
    keys: Float[Array, "kv_head d_head k"] | None
    asked: Float[Array, "head q_seq k"] | None


class SpreadRows(NamedTuple):
    """Covectors of what attention reads at every position: at key `s` the sum over parts of `directions` times `weights[:, :, s]`; and
    covectors of the keys themselves, where these are not made of it by one matrix.
    """

    directions: Float[Array, "n part width"]
    weights: Float[Array, "part n k_seq"]
    keys: Float[Array, "n k_seq d_k"] | None = None


class AttentionMap(eqx.Module):
    """Attention linearised at the clean run, where its output is `z`. `paths` has those of `Kind.Q`, `Kind.K` and `Kind.V` that are live;
    `read` are the kinds of sites of the queries and keys that the scores read.

    Where a query may not attend the pattern is 0, and with it all three terms; `mask` says where that is.
    """

    q: Float[Array, "seq head d_head"]
    k: Float[Array, "seq kv_head d_head"]
    v: Float[Array, "seq kv_head d_head"]
    z: Float[Array, "seq head d_head"]
    pattern: Float[Array, "head q_seq k_seq"]
    scale: Float[Array, ""]
    cap_slopes: Float[Array, "head q_seq k_seq"] | None
    W_K: Float[Array, "kv_head d_head d_model"] | None
    W_V: Float[Array, "kv_head d_head d_model"]
    mask: Shaped[Array, "q_seq k_seq"]
    paths: frozenset[Kind] = eqx.field(static=True)
    read: tuple[Kind, Kind] = eqx.field(static=True)

    @property
    def kinds(self) -> dict[Kind, Kind]:
        """The kinds of the sites that queries, keys and values are read from."""
        return {Kind.Q: self.read[0], Kind.K: self.read[1], Kind.V: Kind.V}

    @property
    def inputs(self) -> dict[Kind, int]:
        """The live inputs, by the kinds of their sites, with the width of each."""
        sizes = {Kind.Q: self.q[0].size, Kind.K: self.k[0].size, Kind.V: self.v[0].size}
        return {self.kinds[each]: size for each, size in sizes.items() if each in self.paths}

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
        # [kv_head group n d_head] · [k_seq kv_head d_head] -> [kv_head group n k_seq], [n head d_head] · [n head d_head] -> [head n]
        values = self._merged(jnp.einsum("jgne,sje->jgns", self._grouped(at_heads), self.v))
        mean = jnp.einsum("nhe,nhe->hn", g, take(self.z, positions))
        return AttentionRows(at_heads, pattern, pattern * (values - mean[..., None]) * self._slopes(positions))

    def _slopes(self, positions: Positions) -> Float[Array, "head n k_seq"] | Float[Array, ""]:
        """Gives the derivative of the scores of queries at `positions` with respect to their products with the keys."""
        return self.scale if self.cap_slopes is None else self.scale * take(self.cap_slopes, positions, axis=1)

    def _grouped(self, x: Float[Array, "head ..."]) -> Float[Array, "kv_head group ..."]:
        return x.reshape(self.k.shape[1], -1, *x.shape[1:])

    def _merged(self, x: Float[Array, "kv_head group ..."]) -> Float[Array, "head ..."]:
        return x.reshape(-1, *x.shape[2:])

    def pull_queries(self, rows: AttentionRows) -> Float[Array, "n d_z"]:
        """Pulls rows back to the queries at their own positions: the third term's covectors."""
        assert rows.scores is not None
        # [kv_head group n k_seq] · [k_seq kv_head d_head] -> [n kv_head group d_head]
        return jnp.einsum("jgns,sje->njge", self._grouped(rows.scores), self.k).reshape(rows.g.shape[1], -1)

    def prepare_columns(self, vectors: Mapping[Kind, Vectors], *, asked: bool) -> AttentionColumns:
        """Makes values and keys of vectors of what attention reads; `asked`: and what every query asks of them, instead of the keys."""
        values, keys = self._image(vectors, Kind.V, self.W_V), self._image(vectors, Kind.K, self.W_K)
        if keys is None or not asked:
            return AttentionColumns(values, keys, None)
        # [kv_head group q_seq d_head] · [kv_head d_head k] -> [kv_head group q_seq k]
        queries = self._grouped(self.q.transpose(1, 0, 2))
        return AttentionColumns(values, None, self._merged(jnp.einsum("jgte,jek->jgtk", queries, keys)))

    def _image(
        self, vectors: Mapping[Kind, Vectors], kind: Kind, W: Float[Array, "kv_head d_head d_model"] | None
    ) -> Float[Array, "kv_head d_head k"] | None:
        """Makes values or keys of vectors; items last, so that the product is laid out as it is read."""
        if kind not in self.paths:
            return None
        if self.kinds[kind] in vectors:
            return vectors[self.kinds[kind]].T.reshape(*self.k.shape[1:], -1)
        if Kind.ATTN_IN not in vectors or W is None:
            return None
        # [kv_head d_head d_model] · [k d_model] -> [kv_head d_head k]
        return jnp.einsum("jem,km->jek", W, vectors[Kind.ATTN_IN])

    def contract_tiles(
        self, rows: AttentionRows, positions: Positions, columns: AttentionColumns, place: Int[Array, " tile"]
    ) -> Float[Array, "n tile slot"] | None:
        """Contracts rows at `positions` with columns in tiles at the positions `place`: the first two terms. `None` if none is live."""
        tiled = lambda x: x.reshape(*x.shape[:-1], len(place), -1)
        at_tiles = lambda x: take(x, place, axis=2)[..., None]  # [head n tile 1]
        terms = []
        if columns.values is not None:
            # [kv_head group n d_head] · [kv_head d_head k] -> [kv_head group n k]
            values = self._merged(jnp.einsum("jgne,jek->jgnk", self._grouped(rows.g), columns.values))
            terms.append(jnp.sum(tiled(values) * at_tiles(rows.pattern), axis=0))
        if columns.asked is not None:
            terms.append(jnp.sum(tiled(take(columns.asked, positions, axis=1)) * at_tiles(rows.scores), axis=0))
        if columns.keys is not None:
            # [kv_head group n d_head] · [kv_head d_head k] -> [kv_head group n k]
            queries = self._grouped(take(self.q, positions).transpose(1, 0, 2))
            moved = self._merged(jnp.einsum("jgne,jek->jgnk", queries, columns.keys))
            terms.append(jnp.sum(tiled(moved) * at_tiles(rows.scores), axis=0))
        return sum(terms[1:], terms[0]) if terms else None

    def spread_to_keys(
        self, rows: AttentionRows, positions: Positions, source: Kind = Kind.ATTN_IN
    ) -> SpreadRows | None:
        """Spreads rows at `positions`, or all at one, over the keys, as covectors of what attention reads, or of its keys or values: the
        first two terms, of rank two a head. `None` if neither leads to `source`, or only by way of keys that no one matrix makes.
        """
        directions, weights = [], []
        if Kind.V in self.paths and source in (*BEFORE_HEADS, Kind.V):
            directions, weights = [self._back_through(rows.g.transpose(1, 0, 2), self.W_V, source)], [rows.pattern]
        if (
            rows.scores is not None
            and self.W_K is not None
            and Kind.K in self.paths
            and source in (*BEFORE_HEADS, Kind.K)
        ):
            few = self.q.shape[0] <= len(positions)  # positions, of which rows have the same
            queries = self.q if few else take(self.q, positions)
            keys = self._back_through(queries, self.W_K, source)
            keys = take(keys, positions) if few else keys
            directions.append(jnp.broadcast_to(keys, (rows.g.shape[1], *keys.shape[1:])))
            weights.append(rows.scores)
        return SpreadRows(jnp.concatenate(directions, axis=1), jnp.concatenate(weights, axis=0)) if weights else None

    def _back_through(
        self, covectors: Float[Array, "n head d_head"], W: Float[Array, "kv_head d_head d_model"], source: Kind
    ) -> Float[Array, "n head width"]:
        """Pulls covectors of what each head has of keys or values to what makes these, or to those of all heads."""
        if source not in BEFORE_HEADS:
            return self.of_all_heads(covectors)
        grouped = covectors.reshape(len(covectors), len(W), -1, covectors.shape[2])
        # [n kv_head group d_head] · [kv_head d_head d_model] -> [n kv_head group d_model]
        return jnp.einsum("njge,jed->njgd", grouped, W).reshape(*covectors.shape[:2], -1)

    def of_all_heads(self, covectors: Float[Array, "n head d_head"]) -> Float[Array, "n head d_k"]:
        """Makes covectors of the one that each head reads covectors of the keys or values of all."""
        read = jnp.repeat(jnp.eye(self.k.shape[1], dtype=covectors.dtype), self.q.shape[1] // self.k.shape[1], axis=0)
        found = jnp.einsum(
            "nhe,hj->nhje", covectors, read
        )  # [n head d_head] · [head kv_head] -> [n head kv_head d_head]
        return found.reshape(*found.shape[:2], -1)

    def spread(self, rows: AttentionRows, positions: Positions) -> SpreadRows | None:
        """Spreads rows at `positions` over the keys by both terms: to what attention reads, and to keys that no one matrix makes of it."""
        spread = self.spread_to_keys(rows, positions)
        if rows.scores is None or Kind.K not in self.paths or self.W_K is not None:
            return spread
        queries = self._grouped(take(self.q, positions).transpose(1, 0, 2))
        # [kv_head group n k_seq] · [kv_head group n d_head] -> [n k_seq kv_head d_head]
        keys = jnp.einsum("jgns,jgne->nsje", self._grouped(rows.scores), queries)
        keys = keys.reshape(*keys.shape[:2], -1)
        if spread is None:
            n, (seq, d_model) = len(keys), (self.q.shape[0], self.W_V.shape[2])
            spread = SpreadRows(jnp.zeros((n, 0, d_model), keys.dtype), jnp.zeros((0, n, seq), keys.dtype))
        return spread._replace(keys=keys)

    def pull(
        self, g: Float[Array, "seq n d_z"], positions: Int[Array, " seq"], *, keys: int
    ) -> dict[Kind, Float[Array, "seq n _"]]:
        """Pulls covectors of the output at a range of `positions` back to the queries, keys and values there: all three terms, at once.
        The queries attend to nothing behind the first `keys` positions.
        """
        here = lambda array: self._grouped(take(array, positions).transpose(1, 0, 2))  # [kv_head group seq d_head]
        q, z, k, v = here(self.q), here(self.z), *(x[:keys].transpose(1, 0, 2) for x in (self.k, self.v))
        pattern = self._grouped(take(self.pattern, positions, axis=1)[:, :, :keys])
        among = lambda x: x if len(positions) == keys else take(x, positions, axis=x.ndim - 1)
        g = self._grouped(
            g.reshape(*g.shape[:2], *self.q.shape[1:]).transpose(2, 0, 1, 3)
        )  # [kv_head group seq n d_head]
        found = {}
        if (
            Kind.V in self.paths
        ):  # [kv_head group q_seq k_seq] · [kv_head group q_seq n d_head] -> [k_seq n kv_head d_head]
            found[Kind.V] = jnp.einsum("jgqk,jgqne->jkne", among(pattern), g).transpose(1, 2, 0, 3)
        if {Kind.Q, Kind.K} & self.paths:
            # [kv_head group q_seq n d_head] · [kv_head key d_head] -> [kv_head group q_seq n key]
            values = jnp.einsum("jgqne,jke->jgqnk", g, v)
            # [kv_head group q_seq n d_head] · [kv_head group q_seq d_head] -> [kv_head group q_seq n]
            mean = jnp.einsum("jgqne,jgqe->jgqn", g, z)
            slopes = self._slopes(positions)
            slopes = slopes if slopes.ndim == 0 else self._grouped(slopes[:, :, :keys])[:, :, :, None]
            scores = pattern[:, :, :, None] * (values - mean[..., None]) * slopes
            if (
                Kind.K in self.paths
            ):  # [kv_head group q_seq n k_seq] · [kv_head group q_seq d_head] -> [kv_head k_seq n d_head]
                found[Kind.K] = jnp.einsum("jgqnk,jgqe->jkne", among(scores), q).transpose(1, 2, 0, 3)
            if (
                Kind.Q in self.paths
            ):  # [kv_head group q_seq n key] · [kv_head key d_head] -> [kv_head group q_seq n d_head]
                found[Kind.Q] = jnp.einsum("jgqnk,jke->jgqne", scores, k).transpose(2, 3, 0, 1, 4)
        return {self.kinds[kind]: x.reshape(*x.shape[:2], -1) for kind, x in found.items()}

    def own(self, images: Mapping[Kind, Vectors], positions: Positions) -> Float[Array, "n d_z"]:
        r"""Pushes queries, keys and values at single positions to the output at the same positions, whatever `paths` says.

        For each head `dq`, `dk`, `dv` at `p` become $A_{pp} dv + \sum_s A_{ps} (dx_s - \sum_{s'} A_{ps'} dx_{s'}) v_s$, with the scores'
        tangents $dx_s = (\langle dq, k_s \rangle + [s = p] \langle q_p, dk \rangle) \cdot \mathrm{scale}$.
        """
        n, (heads, d_head), kv_heads = len(positions), self.q.shape[1:], self.k.shape[1]
        grouped = lambda x: x.reshape(n, kv_heads, -1, d_head)
        queries, keys, values = (images.get(self.kinds[kind]) for kind in (Kind.Q, Kind.K, Kind.V))
        pattern = take(self.pattern.transpose(1, 0, 2), positions)  # [n head k_seq]
        here = (positions[:, None] == jnp.arange(self.q.shape[0], dtype=positions.dtype))[:, None]
        scores, out = jnp.zeros_like(pattern), jnp.zeros((n, kv_heads, heads // kv_heads, d_head), pattern.dtype)
        if queries is not None:  # [n kv_head group d_head] · [k_seq kv_head d_head] -> [n kv_head group k_seq]
            scores += jnp.einsum("njge,sje->njgs", grouped(queries), self.k).reshape(scores.shape)
        if keys is not None:  # [n kv_head group d_head] · [n kv_head 1 d_head] -> [n kv_head group]
            own = jnp.einsum("njge,njue->njg", grouped(take(self.q, positions)), grouped(keys)).reshape(n, heads)
            scores += jnp.where(here, own[..., None], 0)
        if queries is not None or keys is not None:
            slopes = self._slopes(positions)
            scores *= slopes if slopes.ndim == 0 else slopes.transpose(1, 0, 2)
            moved = pattern * (scores - jnp.sum(pattern * scores, axis=-1, keepdims=True))
            # [n kv_head group k_seq] · [k_seq kv_head d_head] -> [n kv_head group d_head]
            out += jnp.einsum("njgs,sje->njge", moved.reshape(n, kv_heads, -1, moved.shape[2]), self.v)
        if values is not None:
            weight = jnp.sum(jnp.where(here, pattern, 0), axis=-1)
            out += weight.reshape(n, kv_heads, -1, 1) * grouped(values)
        return out.reshape(n, -1)


def contract_spread(
    rows: SpreadRows, normalized: Float[Array, "k width"], place: Int[Array, " tile"], *, at_once: bool = False
) -> Float[Array, "n tile slot"]:
    """Contracts rows that were spread over the keys with columns in tiles at the positions `place`, tile by tile or `at_once`."""
    # [part n tile] · [n part width] -> [n tile width], each row at each tile's position; a transposed copy of it would take longer than
    # both products.
    weights = take(rows.weights, place, axis=2)
    there = jax.lax.optimization_barrier(jnp.einsum("pnt,npd->ntd", weights, rows.directions))
    tiled = normalized.reshape(len(place), -1, normalized.shape[-1])
    if at_once:  # [n tile width] · [tile slot width] -> [n tile slot]
        return jnp.einsum("ntd,twd->ntw", there, tiled)
    at_tile = lambda i: jax.lax.dynamic_index_in_dim(there, i, 1, keepdims=False) @ tiled[i].T
    return jax.lax.map(at_tile, jnp.arange(len(place), dtype=jnp.int32)).transpose(1, 0, 2)

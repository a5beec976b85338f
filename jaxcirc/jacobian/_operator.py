r"""`EdgeJacobian`: the Jacobian from one site to another, as an operator.

It holds a linearisation point and not a matrix: products with it are `jax.jvp` and `jax.vjp` of the blocks between its sites, and
matrices and bilinear forms are made in closed form where there is one (`select` tells). It is a pytree of arrays, so it crosses `jit`
and `vmap`, and which layer it is of is one of them: operators of one kind run one compiled program, and can be stacked.
"""

import dataclasses
import functools as ft
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from .._sites import Site
from ._certificate import Certificate, certify
from ._chain import chain_matrix
from ._dense import block_matrix
from ._finite import check_finite
from ._memory import BUDGET, check_fits, halving
from ._positions import check_positions, every_unit, position_axis, put_positions, restricted_shape, take_positions
from ._routes import chunk_for, contract_by_plan, contract_by_sweeps, Items, matrix_route, plan_of
from ._span import pull, push, Span


class EdgeJacobian(eqx.Module):
    r"""$J = \partial\,\mathrm{target} / \partial\,\mathrm{source}$ at one prompt, with what is frozen held. Made by `jc.edge`.

    `J @ K` is J after K, `J.T` the transpose; both are operators of this class.

    **Attributes:**

    - `source`, `target`: the sites; `source_shape`, `target_shape`: of their values, `[seq d_model]` for most.
    - `source_pos`, `target_pos`: the positions that it is restricted to, `None` for all.
    - `engine`: `"auto"`, `"autodiff"` or `"structured"`, as asked for.
    """

    spans: tuple[Span, ...]
    begins: tuple[
        Int[Array, ""], ...
    ]  # the layers at which the spans begin: arrays, so that all layers share their programs
    layers: tuple[Int[Array, ""], Int[Array, ""]]  # of source and target
    source_pos: Int[Array, " source_seq"] | None
    target_pos: Int[Array, " target_seq"] | None
    ends: tuple[Site, Site] = eqx.field(static=True)  # source and target, in layer 0
    engine: str = eqx.field(static=True)
    transposed: bool = eqx.field(static=True, default=False)

    @property
    def source(self) -> Site:
        return self.ends[self.transposed].shift(int(self.layers[self.transposed]))

    @property
    def target(self) -> Site:
        return self.ends[not self.transposed].shift(int(self.layers[not self.transposed]))

    @property
    def source_shape(self) -> tuple[int, ...]:
        return self._shapes()[self.transposed]

    @property
    def target_shape(self) -> tuple[int, ...]:
        return self._shapes()[not self.transposed]

    def _shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        start, end = self._whole_shapes()
        first = restricted_shape(start, self.spans[0].source, self.source_pos)
        return first, restricted_shape(end, self.spans[-1].target, self.target_pos)

    def _whole_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.spans[0].ends()[0].shape, self.spans[-1].ends()[1].shape

    @property
    def dtype(self) -> jnp.dtype:
        return self.spans[0].resid.dtype

    @property
    def T(self) -> "EdgeJacobian":
        """The transpose, from cotangents of the target to cotangents of the source."""
        return dataclasses.replace(self, transposed=not self.transposed)

    def restricted(
        self, *, source_pos: Int[Array, " n"] | None = None, target_pos: Int[Array, " n"] | None = None
    ) -> "EdgeJacobian":
        """The same operator between some of the positions only; a side that is not given stays as it is."""
        seq = self.spans[0].resid.shape[0]
        given = {"source_pos": source_pos, "target_pos": target_pos}
        changes = {name: check_positions(name, jnp.asarray(pos), seq) for name, pos in given.items() if pos is not None}
        return dataclasses.replace(self, **changes)

    def __repr__(self) -> str:
        if any(
            isinstance(layer, Tracer) or jnp.ndim(layer) for layer in self.layers
        ):  # under a transformation, or stacked
            return f"EdgeJacobian({' -> '.join(str(end) for end in self.ends)}, layers relative)"
        return f"EdgeJacobian({self.source} {list(self.source_shape)} -> {self.target} {list(self.target_shape)})"

    def mv(self, tangent: Float[Array, "..."]) -> Float[Array, "..."]:
        """`J v`: from a tangent of the source's shape to one of the target's, by one forward pass (`J.T.mv` by one backward pass)."""
        return self.cols(jnp.asarray(tangent)[None])[0]

    def cols(self, tangents: Float[Array, "n ..."], *, chunk: int | None = None) -> Float[Array, "n ..."]:
        """`J v` for `n` tangents of the source's shape at once, `chunk` of them at a time: one linearisation serves them all."""
        return self._sweep(tangents, chunk, forward=not self.transposed)

    def rows(self, cotangents: Float[Array, "n ..."], *, chunk: int | None = None) -> Float[Array, "n ..."]:
        """`J^T w` for `n` cotangents of the target's shape at once."""
        return self._sweep(cotangents, chunk, forward=self.transposed)

    def _sweep(self, vectors: Array, chunk: int | None, *, forward: bool) -> Array:
        first, last = self._shapes()
        into = first if forward else last
        vectors = jnp.asarray(vectors)
        if vectors.shape[1:] != into:
            site, what = (self.source, "tangents") if forward != self.transposed else (self.target, "cotangents")
            raise ValueError(
                f"Expected {what} of shape [n, {', '.join(map(str, into))}] at `{site}`, got {vectors.shape}."
            )
        vectors = vectors.astype(self.dtype)
        compute = lambda chunk: self._through(vectors, chunk, forward)
        return halving(
            compute, min(chunk or chunk_for(self.spans, BUDGET), max(len(vectors), 1)), "the chunk of vectors"
        )

    def _through(self, vectors: Array, chunk: int, forward: bool) -> Array:
        """Whole batches through all spans, in either direction."""
        ends = [(self.spans[0].source, self.source_pos), (self.spans[-1].target, self.target_pos)]
        begin, end = ends if forward else ends[::-1]
        vectors = put_positions(vectors, *begin, self._whole_shapes()[not forward])
        for span in self.spans if forward else self.spans[::-1]:
            vectors = (push if forward else pull)(span, vectors, chunk=chunk)
        return take_positions(vectors, *end)

    def __matmul__(self, other: "EdgeJacobian") -> "EdgeJacobian":
        if not isinstance(other, EdgeJacobian):
            raise TypeError(
                f"J @ K composes two EdgeJacobians, got a {type(other).__name__}. For a tangent use J.mv(tangent)."
            )
        if self.transposed != other.transposed:
            raise TypeError("J @ K composes two operators of one direction. For J.T J v use J.T.mv(J.mv(v)).")
        if self.transposed:
            return (other.T @ self.T).T
        if other.target != self.source or other._shapes()[1] != self._shapes()[0]:
            raise ValueError(
                f"J @ K is J after K, so K ends where J begins: K ends at `{other.target}` {list(other._shapes()[1])}, and J begins at "
                f"`{self.source}` {list(self._shapes()[0])}."
            )
        if other.target_pos is not None or self.source_pos is not None:
            raise ValueError(
                "J @ K: restrict positions at the outer ends only; all of them matter where K ends and J begins."
            )
        return dataclasses.replace(
            self,
            spans=(*other.spans, *self.spans),
            begins=(*other.begins, *self.begins),
            layers=(other.layers[0], self.layers[1]),
            ends=(other.ends[0], self.ends[1]),
            source_pos=other.source_pos,
        )

    def as_matrix(self, chunk: int | None = None) -> Float[Array, "..."]:
        """The whole Jacobian, of shape `target_shape + source_shape`.

        **Arguments:** - `chunk`: how many rows or columns are computed at a time; by default as many as a fixed budget allows. When the
        device runs out of memory, it is halved, with a warning.

        **Raises:** `ValueError` if the result does not fit into memory, with its size; `jc.save_jacobian` streams it to disk.
        """
        if self.transposed:
            matrix = self.T.as_matrix(chunk)
            split = len(self.T.target_shape)
            return jnp.transpose(matrix, (*range(split, matrix.ndim), *range(split)))
        first, last = self._shapes()
        check_fits(
            "A Jacobian",
            (*last, *first),
            self.dtype,
            "Restrict the positions (source_pos, target_pos), ask for some J.rows or J.cols, or stream it to disk with jc.save_jacobian.",
        )
        out = self._matrix(first, last, chunk)
        check_finite(self, out)
        return out

    def _route(self) -> str:
        seq = self.spans[0].resid.shape[0]
        n_source, n_target = (seq if pos is None else len(pos) for pos in (self.source_pos, self.target_pos))
        return matrix_route(self.spans, self.engine, n_source, n_target)

    def _matrix(self, first: tuple[int, ...], last: tuple[int, ...], chunk: int | None) -> Array:
        seq, route = self.spans[0].resid.shape[0], self._route()
        everywhere = lambda pos: jnp.arange(seq, dtype=jnp.int32) if pos is None else pos
        if route in ("block", "chain"):
            span, targets = self.spans[0], everywhere(self.target_pos)
            if route == "block":
                make = ft.partial(block_matrix, span, targets, everywhere(self.source_pos))
            else:
                make = ft.partial(chain_matrix, span, np.asarray(targets))
            out = halving(lambda budget: make(budget=budget), BUDGET, "the memory budget")
            out = out[:, :, self.source_pos] if route == "chain" and self.source_pos is not None else out
            return out.reshape(*last, *first)
        if route == "contraction":
            left = every_unit(everywhere(self.target_pos), math.prod(last))
            right = every_unit(everywhere(self.source_pos), math.prod(first))
            return contract_by_plan(self.spans, *left, *right, BUDGET).reshape(*last, *first)
        forward = math.prod(first) <= math.prod(last)
        into, out_of = (first, last) if forward else (last, first)
        basis = jnp.eye(math.prod(into), dtype=self.dtype).reshape(-1, *into)
        compute = lambda chunk: self._through(basis, chunk, forward)
        found = halving(compute, min(chunk or chunk_for(self.spans, BUDGET), len(basis)), "the chunk of rows")
        found = found.reshape(*into, *out_of)
        return jnp.moveaxis(found, range(len(into)), range(-len(into), 0)) if forward else found

    def contract(
        self,
        left: Items,
        left_pos: Int[Array, " m"],
        right: Items,
        right_pos: Int[Array, " k"],
        *,
        budget: int = BUDGET,
    ) -> Float[Array, "m k"]:
        r"""$E_{mk} = \mathrm{left}_m^T\, J\, \mathrm{right}_k$: many edges at once, without their Jacobian.

        **Arguments:**

        - `left` `[m d_target]`: covectors of the target at single positions `left_pos` `[m]`; `right` `[k d_source]`: vectors of the
          source at `right_pos` `[k]`. Or integers `[m]`, `[k]`: unit vectors of those coordinates. For a dictionary's latents
          (`site.acts`) these are the latents by number, and cost as much as a vector of the site.
        - `budget`: what the computation may hold beside its result, in bytes.

        **Returns:** `[m k]`, in units of the target per unit of the source.

        **Raises:** `ValueError` for positions outside the sequence, widths that do not fit, and a result larger than the free memory.
        """
        if self.transposed:
            return self.T.contract(right, right_pos, left, left_pos, budget=budget).T
        start, end = self._whole_shapes()
        left, left_pos = self._items("left", left, left_pos, end)
        right, right_pos = self._items("right", right, right_pos, start)
        check_fits(
            "A contraction",
            (len(left_pos), len(right_pos)),
            self.dtype,
            "Contract a part of `left` at a time, and keep of each part what you need.",
        )
        closed = self.engine != "autodiff" and plan_of(self.spans) is not None
        out = (contract_by_plan if closed else contract_by_sweeps)(self.spans, left, left_pos, right, right_pos, budget)
        check_finite(self, out)
        return out

    def _items(self, name: str, items: Items, positions, shape: tuple[int, ...]) -> tuple[Array, Array]:
        seq = self.spans[0].resid.shape[0]
        if any(position_axis(site) for site in self.ends):
            raise ValueError(
                "J.contract is of values with one position; scores and patterns have two. Use J.rows or J.cols."
            )
        positions, width = jnp.asarray(positions), math.prod(shape[1:])
        items = jnp.asarray(items)
        if len(items) == 0:
            raise ValueError(f"J.contract: {name} is empty.")
        units = items.ndim == 1 and jnp.issubdtype(items.dtype, jnp.integer)
        items = items if units else items.reshape(items.shape[0], -1).astype(self.dtype)
        if positions.ndim != 1 or len(positions) != len(items) or not jnp.issubdtype(positions.dtype, jnp.integer):
            raise ValueError(
                f"J.contract: {name}_pos holds one position for each of the {len(items)} rows of {name}, as integers; got "
                f"{positions.dtype}{list(positions.shape)}."
            )
        if not units and items.shape[1] != width:
            raise ValueError(
                f"J.contract: {name} has rows of {items.shape[1]} numbers; a position of its site has {width}."
            )
        positions = check_positions(f"{name}_pos", positions, seq)
        if units and not isinstance(items, Tracer) and not bool(((items >= 0) & (items < width)).all()):
            raise ValueError(
                f"J.contract: {name} holds coordinates from 0 to {width - 1}, got {int(items.min())} to {int(items.max())}."
            )
        return items.astype(jnp.int32) if units else items, positions

    def svd(
        self, rank: int, key: Array, *, oversample: int = 8, iterations: int = 4
    ) -> tuple[Float[Array, "..."], Float[Array, " rank"], Float[Array, "..."]]:
        """The leading singular triples, from products with the operator alone.

        **Arguments:** - `rank`: how many. - `key`: of the random start. - `oversample`, `iterations`: more of them, more exact.

        **Returns:** `U` of shape `target_shape + (rank,)`, `S` `[rank]` in descending order, `Vt` of shape `(rank,) + source_shape`.

        **Reference:** Halko, Martinsson and Tropp 2011, "Finding structure with randomness", arXiv 0909.4061, algorithms 4.4 and 5.1.
        """
        rows, columns = math.prod(self.target_shape), math.prod(self.source_shape)
        if not 1 <= rank <= min(rows, columns):
            raise ValueError(
                f"J.svd: the Jacobian is {rows} x {columns}, so rank is from 1 to {min(rows, columns)}; got {rank}."
            )
        width = min(rank + oversample, rows, columns)
        flat = lambda x: x.reshape(width, -1)
        push = lambda Q: flat(self.cols(Q.T.reshape(width, *self.source_shape))).T
        pull = lambda Q: flat(self.rows(Q.T.reshape(width, *self.target_shape))).T
        Q = jnp.linalg.qr(push(jax.random.normal(key, (columns, width), self.dtype)))[0]
        for _ in range(iterations):
            Q = jnp.linalg.qr(push(jnp.linalg.qr(pull(Q))[0]))[0]
        U, S, Vt = jnp.linalg.svd(pull(Q).T, full_matrices=False)
        U = (Q @ U)[:, :rank].reshape(*self.target_shape, rank)
        return U, S[:rank], Vt[:rank].reshape(rank, *self.source_shape)

    def certificate(
        self,
        key: Array,
        *,
        matrix: Float[Array | np.ndarray, "..."] | None = None,
        probes: int = 4,
        limit: float | None = None,
    ) -> Certificate:
        """The measured error of this operator, or of `matrix`, a result of its `as_matrix`.

        Random probes through the engine that runs are compared with `jax.jvp`, operation by operation and in float64.

        **Arguments:** - `probes`: how many random tangents. - `limit`: the largest relative error that passes; by default what the
        precision of the dtype and of matrix products allows.

        **Returns:** a `Certificate`. **Raises:** `ValueError` if the error is beyond the limit.
        """
        return certify(self, key, matrix, probes, limit)


def select(J: EdgeJacobian) -> str:
    """Which engine makes the matrices and bilinear forms of `J`: `"structured"`, closed forms, or `"autodiff"`.

    Closed forms cover one block, between any of the values that have a position, with or without a dictionary at either end; and whole
    matrices between residual streams, through any number of blocks. `mv`, `rows` and `cols` are always autodiff.
    """
    return "autodiff" if J._route() == "sweep" else "structured"

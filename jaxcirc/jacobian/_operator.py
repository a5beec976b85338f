r"""`EdgeJacobian`: the Jacobian from one site to another, as an operator.

It holds a linearisation point and not a matrix: products with it are `jax.jvp` and `jax.vjp` of the blocks between its sites, and
matrices and bilinear forms are made in closed form where there is one (`select` tells). It is a pytree of arrays, so it crosses `jit`
and `vmap`, and which layer it is of is one of them: operators of one kind run one compiled program, and can be stacked.
"""

import dataclasses
import functools as ft
import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_choice, check_count, check_kind
from .._sites import Site
from ..linear import block_matrix, BUDGET, chain_matrix, check_fits, halving, jvp, Span, vjp
from ._certificate import Certificate, certify
from ._engine import (
    chunk_for,
    CLOSED,
    contract_by_plan,
    contract_by_sweeps,
    contract_route,
    engine_of,
    Items,
    matrix_route,
)
from ._finite import check_finite
from ._place import Place, place_of
from ._positions import check_positions, every_unit, given_positions, position_axis


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
    places: tuple[Place, Place]  # where the spans begin, and where they end, in whichever direction the operator goes
    engine: str = eqx.field(static=True)
    transposed: bool = eqx.field(static=True, default=False)

    # All that has a direction is read off these two, so that nothing else need know of the transpose.
    @property
    def _from(self) -> Place:
        return self.places[self.transposed]

    @property
    def _to(self) -> Place:
        return self.places[not self.transposed]

    @property
    def source(self) -> Site:
        return self._from.site

    @property
    def target(self) -> Site:
        return self._to.site

    @property
    def source_pos(self) -> Int[Array, " source_seq"] | None:
        return self._from.positions

    @property
    def target_pos(self) -> Int[Array, " target_seq"] | None:
        return self._to.positions

    @property
    def source_shape(self) -> tuple[int, ...]:
        return self._shapes()[self.transposed]

    @property
    def target_shape(self) -> tuple[int, ...]:
        return self._shapes()[not self.transposed]

    def _shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        first, last = (place.shape(whole) for place, whole in zip(self.places, self._whole_shapes(), strict=True))
        return first, last

    def _whole_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.spans[0].ends()[0].shape, self.spans[-1].ends()[1].shape

    @property
    def _seq(self) -> int:
        """How many tokens the prompt has."""
        return self.spans[0].resid.shape[0]

    @property
    def has_single_positions(self) -> bool:
        """Whether each value at its ends has one position; scores and patterns have two."""
        return not any(position_axis(place.first) for place in self.places)

    @property
    def dtype(self) -> jnp.dtype:
        return self.spans[0].resid.dtype

    @property
    def T(self) -> "EdgeJacobian":
        """The transpose, from cotangents of the target to cotangents of the source: its source is this one's target."""
        return dataclasses.replace(self, transposed=not self.transposed)

    def restricted(
        self,
        *,
        source_pos: Sequence[int] | Int[Array, " source_seq"] | None = None,
        target_pos: Sequence[int] | Int[Array, " target_seq"] | None = None,
    ) -> "EdgeJacobian":
        """The same operator between some of the positions only; a side that is not given stays as it is."""
        given = [("source_pos", source_pos), ("target_pos", target_pos)]
        checked = [given_positions(f"J.restricted: {name}", pos, self._seq) for name, pos in given]
        first, last = (
            place if pos is None else dataclasses.replace(place, positions=pos)
            for place, pos in zip(self.places, checked[::-1] if self.transposed else checked, strict=True)
        )
        return dataclasses.replace(self, places=(first, last))

    def __repr__(self) -> str:
        if not (self._from.known and self._to.known):  # under a transformation, or stacked
            return f"EdgeJacobian({self._from} -> {self._to}, layers relative)"
        return f"EdgeJacobian({self._from} {list(self.source_shape)} -> {self._to} {list(self.target_shape)})"

    def mv(self, tangent: Float[Array, "..."]) -> Float[Array, "..."]:
        """`J v`: from a tangent of the source's shape to one of the target's, by one forward pass (`J.T.mv` by one backward pass)."""
        check_kind("J.mv: tangent", tangent, (jax.Array, np.ndarray), "an array")
        return self.cols(tangent[None])[0]

    def cols(self, tangents: Float[Array, "n ..."], *, chunk: int | None = None) -> Float[Array, "n ..."]:
        """`J v` for `n` tangents of the source's shape at once, `chunk` of them at a time: one linearisation serves them all."""
        return self._sweep(tangents, chunk, forward=not self.transposed)

    def rows(self, cotangents: Float[Array, "n ..."], *, chunk: int | None = None) -> Float[Array, "n ..."]:
        """`J^T w` for `n` cotangents of the target's shape at once."""
        return self._sweep(cotangents, chunk, forward=self.transposed)

    def _sweep(self, vectors: Array, chunk: int | None, *, forward: bool) -> Array:
        place, into = (self.places[not forward], self._shapes()[not forward])
        what = "tangents" if forward != self.transposed else "cotangents"
        check_kind(f"J: {what}", vectors, (jax.Array, np.ndarray), "an array")
        vectors = jnp.asarray(vectors)
        if vectors.shape[1:] != into:
            raise ValueError(
                f"Expected {what} of shape [n, {', '.join(map(str, into))}] at `{place}`, got {vectors.shape}."
            )
        vectors = vectors.astype(self.dtype)
        compute = lambda chunk: self._through(vectors, chunk, forward)
        return halving(
            compute, min(chunk or chunk_for(self.spans, BUDGET), max(len(vectors), 1)), "the chunk of vectors"
        )

    def _through(self, vectors: Array, chunk: int, forward: bool) -> Array:
        """Whole batches through all spans, in either direction."""
        begin, end = self.places if forward else self.places[::-1]
        vectors = begin.put(vectors, self._whole_shapes()[not forward])
        for span in self.spans if forward else self.spans[::-1]:
            vectors = (jvp if forward else vjp)(span, vectors, chunk=chunk)
        return end.take(vectors)

    def __matmul__(self, other: "EdgeJacobian") -> "EdgeJacobian":
        if not isinstance(other, EdgeJacobian):
            raise TypeError(
                f"J @ K composes two EdgeJacobians, got a {type(other).__name__}. For a tangent use J.mv(tangent)."
            )
        if self.transposed != other.transposed:
            raise TypeError("J @ K composes two operators of one direction. For J.T J v use J.T.mv(J.mv(v)).")
        if not self._from.meets(other._to) or other.target_shape != self.source_shape:
            raise ValueError(
                f"J @ K is J after K, so K ends where J begins: K ends at `{other._to}` {list(other.target_shape)}, and J begins at "
                f"`{self._from}` {list(self.source_shape)}."
            )
        if other.target_pos is not None or self.source_pos is not None:
            raise ValueError(
                "J @ K: restrict positions at the outer ends only; all of them matter where K ends and J begins."
            )
        first, last = (self, other) if self.transposed else (other, self)
        return dataclasses.replace(
            first,
            spans=(*first.spans, *last.spans),
            begins=(*first.begins, *last.begins),
            places=(first.places[0], last.places[1]),
            engine=_engine_of_both(self.engine, other.engine),
        )

    def as_matrix(self, chunk: int | None = None) -> Float[Array, "..."]:
        """The whole Jacobian, of shape `target_shape + source_shape`.

        **Arguments:** - `chunk`: how many rows or columns are computed at a time; by default as many as a fixed budget allows. When the
        device runs out of memory, it is halved, with a warning.

        **Raises:** `ValueError` if the result does not fit into memory, with its size; `jc.save_jacobian` streams it to disk.
        """
        if self.transposed:
            return swapped(self.T.as_matrix(chunk), len(self.source_shape))
        return self._matrix_by(self._route(), chunk)

    def _route(self) -> str:
        """How `as_matrix` goes, one of `_routes`' ways."""
        return matrix_route(self.spans, self.engine, *self._shapes())

    def _contract_route(self) -> str:
        return contract_route(self.spans, self.engine)

    def _matrix_by(self, route: str, chunk: int | None = None) -> Array:
        """The matrix, of spans in their own direction, by a route that leads there."""
        first, last = self._shapes()
        check_fits(
            "A Jacobian",
            (*last, *first),
            self.dtype,
            "Restrict the positions (source_pos, target_pos), ask for some J.rows or J.cols, or stream it to disk with jc.save_jacobian.",
        )
        out = self._made(route, first, last, chunk)
        check_finite(self, out)
        return out

    def _made(self, route: str, first: tuple[int, ...], last: tuple[int, ...], chunk: int | None) -> Array:
        begin, end = (place.positions for place in self.places)
        everywhere = lambda pos: jnp.arange(self._seq, dtype=jnp.int32) if pos is None else pos
        if route == "contraction":
            left = every_unit(everywhere(end), math.prod(last))
            right = every_unit(everywhere(begin), math.prod(first))
            return contract_by_plan(self.spans, *left, *right, BUDGET).reshape(*last, *first)
        if route in CLOSED:
            span, targets = self.spans[0], everywhere(end)
            if route == "block":
                make = ft.partial(block_matrix, span, targets, everywhere(begin))
            else:
                make = ft.partial(chain_matrix, span, np.asarray(targets))
            out = halving(lambda budget: make(budget=budget), BUDGET, "the memory budget")
            out = out[:, :, begin] if route == "chain" and begin is not None else out
            return out.reshape(*last, *first)
        forward = route == "columns"
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

        **Raises:** `ValueError` for positions outside the sequence, coordinates that are not there, widths that do not fit, and a result
        larger than the free memory. Under `jit` and `vmap`, where positions and coordinates are not known yet, those that are not there
        make their row or column NaN.
        """
        ends = self._whole_shapes()
        left, left_pos, left_there = self._items("left", left, left_pos, ends[not self.transposed])
        right, right_pos, right_there = self._items("right", right, right_pos, ends[self.transposed])
        check_fits(
            "A contraction",
            (len(left_pos), len(right_pos)),
            self.dtype,
            "Contract a part of `left` at a time, and keep of each part what you need.",
        )
        make = contract_by_plan if self._contract_route() in CLOSED else contract_by_sweeps
        items = (left, left_pos), (right, right_pos)
        to, of = items[::-1] if self.transposed else items
        out = make(self.spans, *to, *of, budget)
        check_finite(self, out)
        out = out.T if self.transposed else out
        out = out if left_there is None else jnp.where(left_there[:, None], out, jnp.nan)
        return out if right_there is None else jnp.where(right_there, out, jnp.nan)

    def _items(
        self, name: str, items: Items, positions, shape: tuple[int, ...]
    ) -> tuple[Array, Array, Bool[Array, " n"] | None]:
        """The items and their positions, and which of them are there at all; `None` where all are, as the host knows."""
        if not self.has_single_positions:
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
        positions = check_positions(f"J.contract: {name}_pos", positions, self._seq)
        if units and not isinstance(items, Tracer) and not bool(((items >= 0) & (items < width)).all()):
            raise ValueError(
                f"J.contract: {name} holds coordinates from 0 to {width - 1}, got {int(items.min())} to {int(items.max())}."
            )
        items = items.astype(jnp.int32) if units else items
        if not isinstance(positions, Tracer) and not (units and isinstance(items, Tracer)):
            return items, positions, None
        there = (positions >= 0) & (positions < self._seq)
        if units:
            there, items = there & (items >= 0) & (items < width), jnp.clip(items, 0, width - 1)
        return items, jnp.clip(positions, 0, self._seq - 1), there

    def svd(
        self, rank: int, key: Array | None = None, *, oversample: int = 8, iterations: int = 4
    ) -> tuple[Float[Array, "..."], Float[Array, " rank"], Float[Array, "..."]]:
        """The leading singular triples, from products with the operator alone.

        **Arguments:** - `rank`: how many. - `key`: of the random start, by default always the same one. - `oversample`, `iterations`: more
        of them, more exact.

        **Returns:** `U` of shape `target_shape + (rank,)`, `S` `[rank]` in descending order, `Vt` of shape `(rank,) + source_shape`.

        **Reference:** Halko, Martinsson and Tropp 2011, "Finding structure with randomness", arXiv 0909.4061, algorithms 4.4 and 5.1.
        """
        rows, columns = math.prod(self.target_shape), math.prod(self.source_shape)
        check_count("J.svd: rank", "singular triples to find", rank)
        check_count("J.svd: oversample", "more are looked for", oversample, least=0)
        check_count("J.svd: iterations", "times it is iterated", iterations, least=0)
        if rank > min(rows, columns):
            raise ValueError(
                f"J.svd: the Jacobian is {rows} x {columns}, so rank is from 1 to {min(rows, columns)}; got {rank}."
            )
        width = min(rank + oversample, rows, columns)
        key, flat = random_key("J.svd", key), lambda x: x.reshape(width, -1)
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
        key: Array | None = None,
        *,
        matrix: Float[Array | np.ndarray, "..."] | None = None,
        probes: int = 4,
        limit: float | None = None,
    ) -> Certificate:
        """The measured error of this operator, or of `matrix`, a result of its `as_matrix`.

        What is measured is what runs: products from both sides, bilinear forms of few and of many items, and the matrix by the route
        that `as_matrix` takes (as many positions of it as are made quickly). With `matrix` it is that alone. The images of random
        tangents are compared with `jax.jvp`, operation by operation and in float64.

        **Arguments:** - `key`: of the probes, by default always the same one. - `probes`: how many random tangents. - `limit`: the
        largest relative error that passes; by default what the precision of the dtype and of matrix products allows.

        **Returns:** a `Certificate`, whose `engine` names the routes. **Raises:** `ValueError` if the error is beyond the limit.
        """
        return certify(self, random_key("J.certificate", key), matrix, probes, limit)


def make_operator(
    spans: Sequence[Span],
    layers: Sequence[int],
    source: Site,
    target: Site,
    *,
    source_pos: Int[Array, " source_seq"] | None = None,
    target_pos: Int[Array, " target_seq"] | None = None,
    engine: str = "auto",
) -> EdgeJacobian:
    """The operator of spans, one after another, that begin at `layers`, from `source` to `target`, which are at the outer ends."""
    with jax.ensure_compile_time_eval():
        begins = tuple(jnp.asarray(layer, jnp.int32) for layer in layers)
    return EdgeJacobian(tuple(spans), begins, (place_of(source, source_pos), place_of(target, target_pos)), engine)


def select(J: EdgeJacobian, of: str = "any") -> str:
    """Which engine makes the matrices and bilinear forms of `J`: `"structured"`, closed forms, or `"autodiff"`.

    Closed forms cover one block, between any of the values that have a position, with or without a dictionary at either end; and whole
    matrices between residual streams, through any number of blocks. `"auto"` takes those through several blocks where they save more
    time than their programs take to compile, which a few positions of a small model do not. `mv`, `rows` and `cols` are always autodiff.

    **Arguments:** - `of`: `"matrix"` for `J.as_matrix` and `jc.save_jacobian`, `"contract"` for `J.contract`; `"any"` is `"structured"`
    if either of them is.
    """
    check_kind("select: J", J, EdgeJacobian, "an operator, as jc.edge gives one")
    check_choice("select: of", of, ("any", "matrix", "contract"))
    routes = {"matrix": J._route(), "contract": J._contract_route()}
    chosen = routes.values() if of == "any" else (routes[of],)
    return engine_of(*chosen)


def swapped(matrix: Array, split: int) -> Array:
    """A matrix of operators with its first `split` axes put last."""
    return jnp.transpose(matrix, (*range(split, matrix.ndim), *range(split)))


def random_key(name: str, key: Array | None) -> Array:
    """The key that was given, or the one that is always taken."""
    if key is None:
        return jax.random.key(0)
    if not isinstance(key, jax.Array):
        raise TypeError(f"{name}: key is a random key, such as jax.random.key(0); got {key!r}.")
    return key


def _engine_of_both(one: str, other: str) -> str:
    """What two factors were asked for, together: what either must not do, the product must not."""
    if "autodiff" in (one, other):
        return "autodiff"
    return one if one == other else "auto"

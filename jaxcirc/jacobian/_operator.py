r"""`EdgeJacobian`: the Jacobian from one site to another, as an operator.

It holds a linearisation point and not a matrix: products with it are `jax.jvp` and `jax.vjp` of the blocks between its sites, and
matrices and bilinear forms are made in closed form where there is one (`select` tells). It is a pytree of arrays, so it crosses `jit`
and `vmap`, and which layer it is of is one of them: operators of one kind run one compiled program, and can be stacked.
"""

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._checks import check_choice, check_count, check_key, check_kind, check_optional_count, check_reals
from .._shown import Shown
from .._sites import Site
from ..linear import Items
from ._certificate import Certificate, certify
from ._contract import contract
from ._engine import contract_route, engine_of, matrix_route
from ._matrix import matrix
from ._positions import given_positions
from ._product import Product


class EdgeJacobian(Shown, eqx.Module):
    r"""$J = \partial\,\mathrm{target} / \partial\,\mathrm{source}$ at one prompt, with what is frozen held. Made by `jc.edge`.

    `J @ K` is J after K, `J.T` the transpose; both are operators of this class.

    **Attributes:**

    - `source`, `target`: the sites; `source_shape`, `target_shape`: of their values, `[seq d_model]` for most.
    - `source_pos`, `target_pos`: the positions that it is restricted to, `None` for all.
    - `engine`: `"auto"`, `"autodiff"` or `"structured"`, as asked for.
    """

    product: Product

    @property
    def source(self) -> Site:
        return self.product.start.site

    @property
    def target(self) -> Site:
        return self.product.end.site

    @property
    def source_pos(self) -> Int[Array, " source_seq"] | None:
        return self.product.start.positions

    @property
    def target_pos(self) -> Int[Array, " target_seq"] | None:
        return self.product.end.positions

    @property
    def source_shape(self) -> tuple[int, ...]:
        return self.product.source_shape

    @property
    def target_shape(self) -> tuple[int, ...]:
        return self.product.target_shape

    @property
    def engine(self) -> str:
        return self.product.engine

    @property
    def dtype(self) -> jnp.dtype:
        return self.product.dtype

    @property
    def T(self) -> "EdgeJacobian":
        """The transpose, from cotangents of the target to cotangents of the source: its source is this one's target."""
        return EdgeJacobian(self.product.T)

    def restricted(
        self,
        *,
        source_pos: Sequence[int] | Int[Array, " source_seq"] | None = None,
        target_pos: Sequence[int] | Int[Array, " target_seq"] | None = None,
    ) -> "EdgeJacobian":
        """The same operator between some of the positions only; a side that is not given stays as it is."""
        given = (("source_pos", source_pos), ("target_pos", target_pos))
        checked = (given_positions(f"J.restricted: {name}", pos, self.product.seq) for name, pos in given)
        return EdgeJacobian(self.product.restricted(*checked))

    def __repr__(self) -> str:
        start, end = self.product.start, self.product.end
        if not (start.known and end.known):  # under a transformation, or stacked
            return f"EdgeJacobian({start} -> {end}, layers relative)"
        return f"EdgeJacobian({start} {list(self.source_shape)} -> {end} {list(self.target_shape)})"

    def mv(self, tangent: Float[Array, "..."]) -> Float[Array, "..."]:
        """`J v`: from a tangent of the source's shape to one of the target's, by one forward pass (`J.T.mv` by one backward pass)."""
        check_kind("J.mv: tangent", tangent, (jax.Array, np.ndarray), "an array")
        return self.cols(tangent[None])[0]

    def cols(self, tangents: Float[Array, "n ..."], *, chunk: int | None = None) -> Float[Array, "n ..."]:
        """`J v` for `n` tangents of the source's shape at once, `chunk` of them at a time: one linearisation serves them all."""
        return self._sweep("cols", tangents, chunk, forward=not self.product.transposed)

    def rows(self, cotangents: Float[Array, "n ..."], *, chunk: int | None = None) -> Float[Array, "n ..."]:
        """`J^T w` for `n` cotangents of the target's shape at once."""
        return self._sweep("rows", cotangents, chunk, forward=self.product.transposed)

    def _sweep(self, name: str, vectors: Array, chunk: int | None, *, forward: bool) -> Array:
        place, into = self.product.places[not forward], self.product.shapes[not forward]
        what = "tangents" if forward != self.product.transposed else "cotangents"
        check_kind(f"J: {what}", vectors, (jax.Array, np.ndarray), "an array")
        check_reals(f"J: {what}", vectors)
        check_chunk(name, chunk)
        vectors = jnp.asarray(vectors)
        if vectors.shape[1:] != into:
            raise ValueError(
                f"Expected {what} of shape [n, {', '.join(map(str, into))}] at `{place}`, got {vectors.shape}."
            )
        out = self.product.sweep(vectors.astype(self.dtype), chunk, forward=forward)
        there = place.there(self.product.seq)
        # A vector that has a part where there is nothing.
        return out if there is None else jnp.where(there.all(), out, jnp.nan)

    def __matmul__(self, other: "EdgeJacobian") -> "EdgeJacobian":
        if not isinstance(other, EdgeJacobian):
            raise TypeError(
                f"J @ K composes two EdgeJacobians, got a {type(other).__name__}. For a tangent use J.mv(tangent)."
            )
        ours, theirs = self.product, other.product
        if ours.transposed != theirs.transposed:
            raise TypeError("J @ K composes two operators of one direction. For J.T J v use J.T.mv(J.mv(v)).")
        if not ours.start.meets(theirs.end) or other.target_shape != self.source_shape:
            raise ValueError(
                f"J @ K is J after K, so K ends where J begins: K ends at `{theirs.end}` {list(other.target_shape)}, and J begins at "
                f"`{ours.start}` {list(self.source_shape)}."
            )
        if other.target_pos is not None or self.source_pos is not None:
            raise ValueError(
                "J @ K: restrict positions at the outer ends only; all of them matter where K ends and J begins."
            )
        return EdgeJacobian(ours.after(theirs))

    def as_matrix(self, chunk: int | None = None) -> Float[Array, "..."]:
        """The whole Jacobian, of shape `target_shape + source_shape`.

        **Arguments:** - `chunk`: how many rows or columns are computed at a time; by default as many as a fixed budget allows. When the
        device runs out of memory, it is halved, with a warning.

        **Raises:** `ValueError` if the result does not fit into memory, with its size; `jc.save_jacobian` streams it to disk.
        """
        check_chunk("as_matrix", chunk)
        return matrix(self.product, chunk)

    def contract(
        self,
        left: Items,
        left_pos: Int[Array, " m"],
        right: Items,
        right_pos: Int[Array, " k"],
        *,
        budget: int | None = None,
    ) -> Float[Array, "m k"]:
        r"""$E_{mk} = \mathrm{left}_m^T\, J\, \mathrm{right}_k$: many edges at once, without their Jacobian.

        **Arguments:**

        - `left` `[m d_target]`: covectors of the target at single positions `left_pos` `[m]`; `right` `[k d_source]`: vectors of the
          source at `right_pos` `[k]`. Or integers `[m]`, `[k]`: unit vectors of those coordinates. For a dictionary's latents
          (`site.acts`) these are the latents by number, and cost as much as a vector of the site.
        - `budget`: what the computation may hold beside its result, in bytes. Unless given, half a gibibyte on a CPU, and on an
          accelerator, which is the faster the more it does at once, a sixteenth of its memory.

        **Returns:** `[m k]`, in units of the target per unit of the source.

        **Raises:** `ValueError` for positions outside the sequence, coordinates that are not there, widths that do not fit, and a result
        larger than the free memory. Under `jit` and `vmap`, where positions and coordinates are not known yet, those that are not there
        make their row or column NaN.
        """
        return contract(self.product, left, left_pos, right, right_pos, budget)

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
        tangents are compared with forward mode in float64, which NumPy computes.

        **Arguments:** - `key`: of the probes, by default always the same one. - `probes`: how many random tangents. - `limit`: the
        largest relative error that passes; by default what the precision of the dtype and of matrix products allows.

        **Returns:** a `Certificate`, whose `engine` names the routes. **Raises:** `ValueError` if the error is beyond the limit.
        """
        return certify(self.product, random_key("J.certificate", key), matrix, probes, limit)


def select(J: EdgeJacobian, of: str = "any") -> str:
    """Which engine makes the matrices and bilinear forms of `J`: `"structured"`, closed forms, or `"autodiff"`.

    Closed forms cover any number of blocks: bilinear forms between any of the values that have a position, with or without a dictionary at
    either end, and whole matrices of one block, or between residual streams. `"auto"` takes those through several blocks where they save
    more time than their programs take to compile, which a few positions of a small model, or a few items, do not; and under `jit` and
    `vmap` it never does. `mv`, `rows` and `cols` are always autodiff.

    **Arguments:** - `of`: `"matrix"` for `J.as_matrix` and `jc.save_jacobian`; `"contract"` for `J.contract`, with at least as many items
    on either side as the smaller end has units; `"any"` is `"structured"` if either of them is.
    """
    check_kind("select: J", J, EdgeJacobian, "an operator, as jc.edge gives one")
    check_choice("select: of", of, ("any", "matrix", "contract"))
    routes = {"matrix": matrix_route(J.product), "contract": contract_route(J.product)}
    chosen = routes.values() if of == "any" else (routes[of],)
    return engine_of(*chosen)


def check_chunk(name: str, chunk: int | None) -> None:
    """ValueError unless `chunk`, if it was given, is how many rows or columns can be computed at a time."""
    check_optional_count(f"J.{name}: chunk", "rows or columns are computed at a time", chunk)


def random_key(name: str, key: Array | None) -> Array:
    """The key that was given, or the one that is always taken."""
    if key is None:
        return jax.random.key(0)
    check_key(f"{name}: key", key)
    return key

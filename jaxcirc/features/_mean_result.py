"""`MeanEdges`: mean edges between all latents of two dictionaries, as rows, as the largest of each, merged, saved and certified."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any, NamedTuple, TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from .._checks import check_choice, check_count, check_kind, check_path
from .._precision import PRECISIONS, wide
from .._shown import Shown
from .._sites import Site
from ..jacobian import Certificate
from ..jacobian._certificate import issue_certificate
from ..jacobian._means import check_same, merged, opened, write
from ..jacobian._operator import random_key
from ..jacobian._recomputed import Recomputed
from ..jacobian._reference import image_of
from ..jacobian._sample import Sample
from ..runs import BUDGET
from ._mean_path import Path
from ._mean_sums import Pairs, readings
from ._top_edges import largest_of_rows


if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse

FORMAT = "jaxcirc mean edges 1"
PROBES = 4  # random combinations that a certificate is of
_ABOUT = (
    *("weight", "n_positions", "n_prompts", "source", "target", "through", "frozen"),
    *("model", "dictionaries", "dtype"),
)


class TopEdges(NamedTuple):
    """The largest edges into each target latent, by absolute value, the largest first: `target` `[n]`, `source` `[n k]`, -1 where there are
    no more, and `value` `[n k]`, 0 there. `recomputed`: what low precision did to them, `None` if they were found in full precision.
    """

    target: Int[np.ndarray, " n"]
    source: Int[np.ndarray, "n k"]
    value: Float[np.ndarray, "n k"]
    recomputed: Recomputed | None = None

    def to_pandas(self) -> "pd.DataFrame":
        """A row an edge: `target`, `source`, `value`."""
        import pandas as pd

        there = self.source >= 0
        targets = np.broadcast_to(self.target[:, None], there.shape)[there]
        return pd.DataFrame({"target": targets, "source": self.source[there], "value": self.value[there]})


@dataclasses.dataclass(frozen=True, eq=False)
class MeanEdges(Shown):
    r"""Mean edges between all latents of two dictionaries over the positions of a corpus. Made by `jc.features.mean_edges`.

    **Attributes:**

    - `readings` `[n d_source]`: what each target latent reads of the source's site on average, of which `readings @ W_dec.T` are the edges;
      `None` for edges times the source's activation.
    - `pairs` `[n d_sae]`, sparse: those; `None` for derivatives.
    - `W_dec` `[d_sae d_source]`: the source's directions. `targets` `[n]`: the numbers of the target's latents.
    - `weight`: the sum of the positions' weights, by which it was divided; `n_positions`, `n_prompts`: how many count.
    - `source`, `target`: the dictionaries' sites; `through`, `frozen`: what is between, and the names of what was held of it.
    - `model`, `dictionaries`: fingerprints; `dtype`: in which it was computed.
    - `certified`: of one that was loaded, the certificate that was saved with it, as a mapping.
    """

    readings: Float[np.ndarray, "n d_source"] | None
    pairs: "scipy.sparse.csr_array | None"
    W_dec: Float[np.ndarray, "d_sae d_source"]
    targets: Int[np.ndarray, " n"]
    weight: float
    n_positions: int
    n_prompts: int
    source: Site
    target: Site
    through: str
    frozen: tuple[str, ...]
    model: str
    dictionaries: tuple[str, str]
    dtype: str
    certified: dict[str, Any] | None = None
    path: Path | None = dataclasses.field(default=None, repr=False)
    sample: Sample | None = dataclasses.field(default=None, repr=False)

    @property
    def weighted(self) -> bool:
        """Whether each derivative is times the source's activation."""
        return self.pairs is not None

    def __repr__(self) -> str:
        what = "derivatives times activations" if self.weighted else "derivatives"
        return (
            f"MeanEdges({self.source} -> {self.target} through the {self.through}, {what}, {len(self.targets)} by {len(self.W_dec)} "
            f"latents, {self.n_positions} positions of {self.n_prompts} prompts)"
        )

    def rows(self, latents: Sequence[int] | Int[np.ndarray, " m"]) -> Float[np.ndarray, "m d_sae"]:
        """All edges into some of the target's latents, by their numbers.

        **Raises:** `ValueError` for a latent that is not among `targets`.
        """
        wanted = np.atleast_1d(np.asarray(latents))
        order = np.argsort(self.targets)
        at = order[np.searchsorted(self.targets[order], wanted).clip(max=len(order) - 1)]
        if (self.targets[at] != wanted).any():
            missing = wanted[self.targets[at] != wanted][0]
            raise ValueError(f"MeanEdges.rows: latent {missing} is not among the {len(self.targets)} targets.")
        return self._rows_at(at)

    def _rows_at(self, at: np.ndarray | slice, dtype: Any = np.float64) -> np.ndarray:
        if self.pairs is not None:
            return self.pairs[at].toarray()
        assert self.readings is not None
        return self.readings[at].astype(dtype) @ self.W_dec.T.astype(dtype)

    def top(self, k: int, *, precision: str = "float32") -> TopEdges:
        """The `k` largest edges into each target latent, found in blocks of rows: the whole matrix is never there.

        **Arguments:** - `precision`: of the products of matrices: `"bfloat16"` or `"tensorfloat32"` is faster on accelerators. How far
        rounding can put an edge off is known from the vectors that are rounded; all edges that may be among the largest within that are
        computed again in float64, so that the largest are found as surely as in full precision. `.recomputed` says how many, and how far
        they were really off. On a CPU operands are rounded as well, and nothing is gained.

        **Raises:** `ValueError` for another precision, or a lower one of edges that are `weighted`: these are sums already.
        """
        check_count("MeanEdges.top: k", "edges are kept for each target latent", k)
        check_choice("MeanEdges.top: precision", precision, PRECISIONS)
        n, width = len(self.targets), len(self.W_dec)
        kept, block = min(k, width), max(1, BUDGET // (3 * width * 8))
        if precision != "float32":
            if self.readings is None:
                raise ValueError(
                    f"MeanEdges.top: precision={precision!r} is of the products that edges are made by, and edges times the source's "
                    "activation are there already. Leave it out."
                )
            found = largest_of_rows(self.readings, self.W_dec, kept, precision)
            return TopEdges(self.targets, np.where(found.value == 0, -1, found.column), found.value, found.recomputed)
        source, value = np.full((n, kept), -1, np.int64), np.zeros((n, kept))
        for first in range(0, n, block):
            some = slice(first, min(first + block, n))
            dense = self._rows_at(some, self.W_dec.dtype)
            best = np.argpartition(np.abs(dense), width - kept, axis=1)[:, width - kept :]
            if self.readings is None:
                found = np.take_along_axis(dense, best, 1)
            else:  # in float64, whatever they were chosen in: [n d_source] · [n k d_source] -> [n k]
                found = np.einsum("ni,nki->nk", self.readings[some], self.W_dec[best])
            order = np.lexsort((best, -np.abs(found)), axis=1)
            source[some], value[some] = (np.take_along_axis(x, order, 1) for x in (best, found))
        source[value == 0] = -1
        return TopEdges(self.targets, source, value)

    def merge(self, other: "MeanEdges") -> "MeanEdges":
        """The mean over both corpora, as if they were one.

        **Raises:** `ValueError` unless both are of one model and the same dictionaries, between the same sites, of the same latents.
        """
        check_kind("MeanEdges.merge: other", other, MeanEdges, "another, as jc.features.mean_edges gives one")
        names = ("source", "target", "through", "frozen", "weighted", "dtype", "dictionaries")
        check_same("MeanEdges.merge", self, other, names)
        if not np.array_equal(self.targets, other.targets):
            raise ValueError("MeanEdges.merge: the other has other target latents.")
        return merged(self, other, ["readings", "pairs"], keeps="path")

    def certificate(self, key: Array | None = None, *, probes: int = PROBES, limit: float | None = None) -> Certificate:
        """The measured error of what made these edges, on up to 32 positions drawn evenly from those of the corpus where a target latent is
        on, and with `weighted` one of the source too: random combinations of source latents through the mean over these by the same
        programs, against the mean of their images by forward mode in float64, which NumPy computes. Which latents are on, and their
        values, are those of the run.

        **Arguments:** - `key`: of the combinations, by default always the same one. - `probes`: how many. - `limit`: the largest relative
        error that passes, by default as of `J.certificate`.

        **Raises:** `ValueError` if the error is beyond the limit; if no target latent is on at any position, or with `weighted` no two
        together; of edges that were loaded, whose positions are not there (`certified` is what was measured before they were saved).
        """
        check_count("MeanEdges.certificate: probes", "random combinations", probes)
        if (found := self._measured(key, probes, limit)) is None:
            raise ValueError(
                "MeanEdges.certificate: there is no position with an edge other than 0, so there is nothing to measure. Look at the "
                "dictionaries: is a latent of the target on, and with it one of the source?"
            )
        return found

    def _measured(self, key: Array | None, probes: int, limit: float | None) -> Certificate | None:
        if self.path is None or self.sample is None:
            raise ValueError(
                "MeanEdges.certificate: edges that were loaded have no positions to be measured on. `certified` is the certificate that "
                "was saved with them."
            )
        rng = np.random.default_rng(np.asarray(jax.random.bits(random_key("MeanEdges.certificate", key), (4,))))
        combinations = rng.standard_normal((probes, len(self.W_dec)))
        error = _error(self.path, self.targets, self.sample, combinations, weighted=self.weighted)
        if error is None:
            return None
        what = f"structured (sums over {self.sample.of(self.n_positions, ' with an edge')})"
        dtype = self.sample.rows.dtype
        return issue_certificate(error, probes=probes, what=what, dtype=dtype, limit=limit)

    def save(self, path: str | FilePath, *, key: Array | None = None) -> Certificate | None:
        """Writes a safetensors file of all that is there but the positions, with a new certificate.

        **Returns:** the certificate, `None` for edges that are all 0, of which there is nothing to measure, and for edges that were loaded,
        whose `certified` is written again.

        **Raises:** `ValueError` if `path` holds something else, or the certificate fails; then nothing is written.
        """
        path = check_path("MeanEdges.save: path", path)
        if path.exists():
            opened(path, FORMAT, "mean edges that MeanEdges.save wrote")
        certificate = None if self.sample is None else self._measured(key, PROBES, None)
        certified = self.certified if certificate is None else certificate.as_dict()
        tensors = {"W_dec": self.W_dec, "targets": self.targets}
        if self.pairs is None:
            assert self.readings is not None
            tensors["readings"] = self.readings
        else:
            tensors |= {f"pairs.{name}": getattr(self.pairs, name) for name in ("data", "indices", "indptr")}
        write(path, FORMAT, self, _ABOUT, tensors, certified)
        return certificate

    @staticmethod
    def load(path: str | FilePath) -> "MeanEdges":
        """Reads what `save` wrote, to be merged with others or read. **Raises:** `ValueError` for another file."""
        path = check_path("MeanEdges.load: path", path)
        about, tensors = opened(path, FORMAT, "mean edges that MeanEdges.save wrote")
        pairs, W_dec, targets = None, tensors["W_dec"], tensors["targets"]
        if "readings" not in tensors:
            import scipy.sparse  # a third of a second, which `import jaxcirc` need not take

            parts = tuple(tensors[f"pairs.{name}"] for name in ("data", "indices", "indptr"))
            pairs = scipy.sparse.csr_array(parts, shape=(len(targets), len(W_dec)))
        rest = {name: about[name] for name in ("weight", "n_positions", "n_prompts", "through", "model", "dtype")}
        rest |= {name: tuple(about[name]) for name in ("frozen", "dictionaries")}
        ends = {name: Site.parse(about[name]) for name in ("source", "target")}
        return MeanEdges(tensors.get("readings"), pairs, W_dec, targets, **ends, **rest, certified=about["certified"])


def _error(
    path: Path, targets: np.ndarray, sample: Sample, combinations: Float[np.ndarray, "n d_sae"], *, weighted: bool
) -> float | None:
    """The largest relative error of combinations of the source's latents, over the positions of a sample; `None` if all edges are 0."""
    if not len(sample.rows):
        return None
    widths = (sample.rows.shape[1] - path.target.d_in - path.source.d_in, path.target.d_in)
    parts = np.split(sample.rows, np.cumsum(widths), axis=1)
    values = jax.device_put(parts[0]), jax.device_put(parts[1]), jax.device_put(parts[2])
    exact = lambda array: np.asarray(wide(array), np.float64)
    decoder, encoder = exact(path.source.W_dec), exact(path.target.W_enc)[:, targets]
    gates, scale = exact(path.target.slopes(values[1]))[:, targets], exact(path.source.decoder_scale(values[2]))
    acts = exact(path.source.encode(values[2])) if weighted else np.ones((1, len(decoder)))
    if weighted:
        pairs = Pairs(path, targets)
        pairs.add(values, sample.weights)
        made = pairs.sum @ combinations.T
    else:
        made = readings(path, targets, values, sample.weights)[0] @ (decoder.T @ combinations.T)
    errors = []
    for combination, got in zip(combinations, made.T, strict=True):
        tangents = np.broadcast_to((acts * combination) @ decoder, parts[0].shape[:1] + decoder.shape[1:])
        images = image_of(path.sub, parts[0], tangents * scale[:, None])
        want = np.einsum("n,nk,nk->k", sample.weights, gates, images @ encoder)
        size = np.abs(want).max()
        if not size > 0:
            return None
        errors.append(float(np.abs(got - want).max() / size))
    return float(np.max(errors))  # `max` of Python passes over NaN

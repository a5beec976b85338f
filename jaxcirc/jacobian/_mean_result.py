"""`MeanJacobian`: a mean over a corpus, which is merged with others, saved and certified."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_count, check_kind, check_path, check_reals
from .._fingerprint import difference, fingerprint
from .._shown import Shown
from .._sites import Site
from ..models import Transformer
from ._certificate import Certificate, issue_certificate
from ._means import check_same, merged, opened, write
from ._operator import random_key
from ._reference import image_of
from ._sample import Sample
from ._sublayer import Sublayer
from ._total import Total


FORMAT, WHAT = "jaxcirc mean jacobian 1", "a mean Jacobian that MeanJacobian.save wrote"
_ABOUT = ("weight", "n_positions", "n_prompts", "source", "target", "frozen", "model", "dtype", "engine")


@dataclasses.dataclass(frozen=True, eq=False)
class MeanJacobian(Shown):
    r"""The mean of an MLP's Jacobians over the positions of a corpus. Made by `jc.jacobian.mean`.

    **Attributes:**

    - `matrix` `[d_target d_source]`: the mean, in float64 on the host.
    - `weight`: the sum of the positions' weights, by which it was divided; `n_positions`: how many count; `n_prompts`: of how many prompts.
    - `source`, `target`: the sites; `frozen`: the names of what was held between them.
    - `model`: the fingerprint of the model; `dtype`: in which it computed; `engine`: `"structured"` for closed forms, or `"autodiff"`.
    - `certified`: of one that was loaded, the certificate that was saved with it, as a mapping.
    """

    matrix: Float[np.ndarray, "d_target d_source"]
    weight: float
    n_positions: int
    n_prompts: int
    source: Site
    target: Site
    frozen: tuple[str, ...]
    model: str
    dtype: str
    engine: str
    certified: dict[str, Any] | None = None
    sublayer: Sublayer | None = dataclasses.field(default=None, repr=False)
    sample: Sample | None = dataclasses.field(default=None, repr=False)

    def __repr__(self) -> str:
        return (
            f"MeanJacobian({self.source} -> {self.target} {list(self.matrix.shape)}, {self.n_positions} positions of "
            f"{self.n_prompts} prompts)"
        )

    def mv(self, tangents: Float[Array | np.ndarray, "*items d_source"]) -> Float[np.ndarray, "*items d_target"]:
        """The images of tangents of the source, each a position's or anything else's: `mean.mv(J.mv(v))` goes on from where an
        `EdgeJacobian` ends.
        """
        return self._applied("mv: tangents", tangents, self.matrix)

    def rows(self, cotangents: Float[Array | np.ndarray, "*items d_target"]) -> Float[np.ndarray, "*items d_source"]:
        """What cotangents of the target read of the source."""
        return self._applied("rows: cotangents", cotangents, self.matrix.T)

    def _applied(self, name: str, vectors: Any, matrix: np.ndarray) -> np.ndarray:
        check_kind(f"MeanJacobian.{name}", vectors, (jax.Array, np.ndarray), "an array")
        check_reals(f"MeanJacobian.{name}", vectors)
        if not vectors.ndim or vectors.shape[-1] != matrix.shape[1]:
            raise ValueError(
                f"MeanJacobian.{name}: expected vectors of {matrix.shape[1]} numbers, got {list(vectors.shape)}."
            )
        return np.asarray(vectors, np.float64) @ matrix.T

    def merge(self, other: "MeanJacobian") -> "MeanJacobian":
        """The mean over both corpora, as if they were one.

        **Raises:** `ValueError` unless both are of one model, between the same sites, with the same held.
        """
        check_kind("MeanJacobian.merge: other", other, MeanJacobian, "another, as jc.jacobian.mean gives one")
        check_same("MeanJacobian.merge", self, other, ("source", "target", "frozen", "dtype"))
        return merged(self, other, ["matrix"], keeps="sublayer")

    def certificate(self, key: Array | None = None, *, probes: int = 4, limit: float | None = None) -> Certificate:
        """The measured error of what made this mean, on up to 32 positions drawn evenly from the corpus: random tangents through the mean
        over these by the same programs, against the mean of their images by forward mode in float64, which NumPy computes.

        **Arguments:** - `key`: of the tangents, by default always the same one. - `probes`: how many. - `limit`: the largest relative
        error that passes, by default as of `J.certificate`.

        **Raises:** `ValueError` if the error is beyond the limit; of a mean that was loaded from a file, whose positions are not there
        (`certified` is what was measured before it was saved).
        """
        check_count("MeanJacobian.certificate: probes", "random tangents", probes)
        if self.sublayer is None or self.sample is None:
            raise ValueError(
                "MeanJacobian.certificate: a mean that was loaded has no positions to be measured on. `certified` is the certificate that "
                "was saved with it."
            )
        rng = np.random.default_rng(np.asarray(jax.random.bits(random_key("MeanJacobian.certificate", key), (4,))))
        sub, (rows, weights, *_) = self.sublayer, self.sample
        made = Total(sub).add(jax.device_put(rows[None]), weights[None]).matrix()
        errors = []
        for _ in range(probes):
            tangent = rng.standard_normal(rows.shape[1])
            want = weights @ image_of(sub, rows, np.broadcast_to(tangent, rows.shape))
            off, size = np.abs(made @ tangent - want).max(), np.abs(want).max()
            errors.append(off / size if size or off else 0.0)  # of an MLP that does nothing, nothing
        what = f"{self.engine} (sums over {self.sample.of(self.n_positions)})"
        return issue_certificate(float(np.max(errors)), probes=probes, what=what, dtype=rows.dtype, limit=limit)

    def save(self, path: str | Path, *, key: Array | None = None) -> Certificate | None:
        """Writes a safetensors file: the tensor `jacobian`, float64, and the rest as metadata, with a new certificate.

        **Returns:** the certificate, `None` for a mean that was loaded, whose `certified` is written again.

        **Raises:** `ValueError` if `path` holds something else, or the certificate fails; then nothing is written.
        """
        path = check_path("MeanJacobian.save: path", path)
        if path.exists():
            opened(path, FORMAT, WHAT)
        certificate = None if self.sample is None else self.certificate(key)
        certified = self.certified if certificate is None else certificate.as_dict()
        write(path, FORMAT, self, _ABOUT, {"jacobian": self.matrix}, certified)
        return certificate

    @staticmethod
    def load(path: str | Path, model: Transformer | None = None) -> "MeanJacobian":
        """Reads what `save` wrote, to be merged with others or read.

        **Arguments:** - `model`: if given, what it has to be of.

        **Raises:** `ValueError` for another file, and for a mean of another model.
        """
        path = check_path("MeanJacobian.load: path", path)
        about, tensors = opened(path, FORMAT, WHAT)
        if model is not None:
            if (how := difference(about["model"], fingerprint(model))) is not None:
                raise ValueError(f"{path} is of another model than {model.name}{how}.")
        ends = {name: Site.parse(about[name]) for name in ("source", "target")}
        rest: dict[str, Any] = {name: about[name] for name in _ABOUT if name not in ends}
        rest["frozen"] = tuple(about["frozen"])
        return MeanJacobian(tensors["jacobian"], **ends, **rest, certified=about["certified"])

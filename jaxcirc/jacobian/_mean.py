"""`mean`: the mean Jacobian of an MLP over a corpus."""

from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._checks import check_list
from .._fingerprint import fingerprint
from .._guard import check_backend
from .._run import check_model
from .._sites import Site
from .._traced import check_untraced
from .._typing import Progress
from ..models import Transformer
from ..runs import Corpus, corpus_batches, TOKENS_AT_ONCE, values_until
from ._around import ends_around, sublayer_between
from ._mean_result import MeanJacobian
from ._sample import Sample
from ._total import Total


def mean(
    model: Transformer,
    prompts: Corpus,
    layer: int | None = None,
    *,
    source: Site | str | None = None,
    target: Site | str | None = None,
    mask: Bool[Array | np.ndarray, "prompt seq"] | None = None,
    weights: Float[Array | np.ndarray, "prompt seq"] | None = None,
    frozen: Iterable[Site | str] = (),
    tokens_at_once: int = TOKENS_AT_ONCE,
    progress: Progress | None = None,
) -> MeanJacobian:
    r"""The mean over all positions of a corpus of the Jacobian of an MLP with its norm, exactly, at the price of running it.

    $$\bar J = \frac{\sum_s w_s J_s}{\sum_s w_s}, \qquad
      \sum_s J_s = W_{out}^T \Big[\mathrm{diag}\big(\textstyle\sum_s A_s\big)\, R\,P \;-\;
      \tfrac1D \textstyle\sum_s (A_s \odot R\,y_s)\, y_s^T\Big], \qquad A_s = act'(\mathrm{pre}_s) / \sigma_s$$

    for an MLP behind a norm with value $y_s$ `[d_model]` before its weight, scale $\sigma_s$ and centring $P$, where $R$ is $W_{in}^T$
    times the norm's weight, and $D$ is d_model. All that changes with the position is in a vector `[d_mlp]` and one sum of outer products
    `[d_mlp d_model]`; no Jacobian of a single position is made. `jaxcirc/jacobian/_sublayer.py` has gated MLPs and norms behind the MLP.
    Sums within a batch are in the model's dtype, those over batches in float64 on the host. An MLP or a norm without a closed form is
    differentiated by its own code, position by position.

    **Arguments:**

    - `prompts`: token ids `[prompt seq]`; or an iterable of prompts `[seq]`, arrays `[batch seq]`, `jc.data.Prompts`, or tuples `(tokens,
      mask)` or `(tokens, mask, weights)`. It is read once and streamed, whatever the lengths.
    - `layer`: of the MLP, from what it reads of the residual stream (`hook_resid_mid`, in a parallel block `hook_resid_pre`) to
      `hook_mlp_out`.
    - `source`, `target`: other sites around it: from `mlp.hook_in`, which is behind the norm; to `hook_resid_post`, with the identity for
      the stream that flows on, in a sequential block.
    - `mask` `[prompt seq]`: False for padding, which is not attended to and does not count. `weights` `[prompt seq]`: what each position
      counts, 1 without; 0 leaves one out that is attended to.
    - `frozen`: sites held, as in `jc.edge`: `jc.frozen.layer_norms(model)` holds the scales of the norms. Those that are not in between
      have no part in it.
    - `tokens_at_once`: in a batch; of no effect on the result but by rounding. `progress`: called as `progress(done, of, stage)` in
      prompts; `of` is `done` where nobody knows it.

    **Returns:** a `MeanJacobian`, whose `matrix` is `[d_model d_model]`, target first.

    **Raises:** `ValueError` for a layer that there is not or that has no MLP, for sites that are not around one MLP, an empty corpus, one
    without a position that counts, an MLP that mixes positions, prompts, masks and weights that do not fit, and a result that is not
    finite; `RuntimeError` on a compiler that is known to compute wrong Jacobians.

    >>> J = jc.jacobian.mean(model, tokens[None], 1)
    >>> J.matrix.shape, J.n_positions
    ((128, 128), 6)
    >>> print(J.certificate().error < 1e-4)
    True

    **Reference:** the derivative of a norm and of an MLP, summed; of the mean Jacobian as a lens between layers see Gurnee et al. 2026,
    "Verbalizable Representations Form a Global Workspace in Language Models".
    """
    verb = "jacobian.mean"
    check_untraced(verb, model)
    check_backend()
    check_model(model)
    start, end = ends_around(verb, model, layer, source, target)
    held = check_list(f"{verb}: frozen", "sites", frozen)
    sub = sublayer_between(verb, model, start, end, held)
    report = progress or (lambda done, of, stage: None)
    of = len(prompts) if hasattr(prompts, "__len__") else 0  # pyright: ignore[reportArgumentType]
    total, positions, done, sample = Total(sub), 0, 0, Sample.empty(model.d_model)
    for batch in corpus_batches(verb, model, prompts, mask, weights, tokens_at_once):
        x = values_until(model, batch.tokens, batch.mask, {start})[start]
        total.add(x, batch.weights)
        sample = sample.drawn(x, batch.weights)
        positions, done = positions + int((batch.weights > 0).sum()), done + batch.prompts
        report(done, max(of, done), "prompts")
    matrix = total.matrix() / total.weight
    if not np.isfinite(matrix).all():
        raise ValueError(
            f"{verb}: the mean from `{start}` to `{end}` is not finite. Look at the values there with jc.run(…, record=[…]), and at the "
            "weights before them."
        )
    return MeanJacobian(
        matrix=matrix,
        weight=total.weight,
        n_positions=positions,
        n_prompts=done,
        source=start,
        target=end,
        frozen=tuple(sorted(str(Site(start.layer, kind)) for kind in sub.frozen)),
        model=fingerprint(model),
        dtype=str(jnp.dtype(model.activation_dtype)),
        engine="structured" if sub.is_closed else "autodiff",
        sublayer=sub,
        sample=sample,
    )

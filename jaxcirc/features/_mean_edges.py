"""`mean_edges`: the mean edges between all latents of two dictionaries, over a corpus."""

from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_choice, check_list
from .._fingerprint import fingerprint
from .._guard import check_backend
from .._precision import wide
from .._run import check_model
from .._sites import by_site, Site
from .._traced import check_untraced
from .._typing import Progress
from ..jacobian._sample import Sample
from ..models import Transformer
from ..runs import Corpus, corpus_batches, TOKENS_AT_ONCE, values_until
from ..saes import Saes
from ._mean_path import find_path, THROUGH
from ._mean_result import MeanEdges
from ._mean_sums import Pairs, readings


def mean_edges(
    model: Transformer,
    saes: Saes,
    prompts: Corpus,
    source: Site | str,
    target: Site | str,
    *,
    through: str = "mlp",
    weighted: bool = False,
    targets: Sequence[int] | Int[np.ndarray, " n"] | None = None,
    mask: Bool[Array | np.ndarray, "prompt seq"] | None = None,
    weights: Float[Array | np.ndarray, "prompt seq"] | None = None,
    frozen: Iterable[Site | str] = (),
    tokens_at_once: int = TOKENS_AT_ONCE,
    progress: Progress | None = None,
) -> MeanEdges:
    r"""The mean over a corpus of the edges between all latents of two dictionaries, at the same position: of derivatives, or of those
    times the source's activation.

    $$E_{kj} = \frac{\sum_s w_s\, g_{sk}\; W_{enc,\cdot k}^{1\top} J_s W^0_{dec,j}}{\sum_s w_s}, \qquad
      E^{weighted}_{kj} = \frac{\sum_s w_s\, g_{sk}\; W_{enc,\cdot k}^{1\top} J_s W^0_{dec,j}\; f^0_{sj}}{\sum_s w_s}$$

    with $g$ the slope of the target's nonlinearity (1 where a latent is on), $f^0$ the source's latents, $J_s$ the Jacobian of what is
    between at position $s$, exact. Neither the Jacobians nor the matrix of latents by latents is made: `jaxcirc/features/_mean_sums.py` has
    the formulas. The first is a covector for each target latent, from which rows of the matrix are made when asked for; the second are
    numbers of pairs that were on together.

    **Arguments:**

    - `saes`: dictionaries keyed by site, with those of `source` and `target` among them; transcoders are at the site that they write.
    - `prompts`, `mask`, `weights`, `frozen`, `tokens_at_once`, `progress`: as of `jc.jacobian.mean`. In the run that is made no dictionary
      takes the place of its site.
    - `through`: `"mlp"`, from what an MLP reads (`hook_resid_mid`, `mlp.hook_in`) to what it adds (`hook_mlp_out`, `hook_resid_post`), the
      norms live; `"stream"`, from an embedding, a sublayer's output or the stream through that alone to the stream further on, or to what a
      norm makes of it (`mlp.hook_in`, `attn.hook_in`), with what lies between, attention and other MLPs, held: so from transcoder to
      transcoder. There `frozen=jc.frozen.layer_norms(model)` makes it linear, as attribution graphs have it.
    - `weighted`: times the source's activation. What is held grows with the pairs of latents that are ever on together; `targets` bounds
      it.
    - `targets`: the numbers of the target's latents whose edges are wanted, `None` for all.

    **Returns:** a `MeanEdges`: `rows` makes some rows, `top` keeps the largest of each.

    **Raises:** `ValueError` for a site without a dictionary, sites that are not joined as `through` says, a dictionary of another width or
    a target that normalises its input, a part without a closed form, latents that there are not, and a corpus as in `jc.jacobian.mean`.

    >>> stream = jc.Site(1, jc.Kind.RESID_MID)
    >>> both = {stream: jc.saes.Identity(128, stream), **saes}  # from the residual stream's own coordinates
    >>> edges = jc.features.mean_edges(model, both, tokens[None], stream, "blocks.1.hook_mlp_out")
    >>> edges.top(3).value.shape[1], edges.rows([0]).shape
    (3, (1, 128))

    **Reference:** Ameisen et al. 2025, "Circuit Tracing: Revealing Computational Graphs in Language Models", global weights: the weighted
    edges along the stream with the norm's scale held are the expected residual attribution there; Dunefsky et al. 2024, arXiv 2406.11944.
    """
    verb = "features.mean_edges"
    check_untraced(verb, model)
    check_backend()
    check_model(model)
    check_choice(f"{verb}: through", through, THROUGH)
    given, start, end = by_site(saes), Site.parse(source), Site.parse(target)
    held = check_list(f"{verb}: frozen", "sites", frozen)
    between = find_path(verb, model, given, start, end, through, held)
    path, wanted = between.path, {between.enters, between.reads, between.encodes}
    chosen = _chosen(verb, targets, path.target.d_sae)
    report = progress or (lambda done, of, stage: None)
    known = len(prompts) if hasattr(prompts, "__len__") else 0  # pyright: ignore[reportArgumentType]
    pairs = Pairs(path, chosen) if weighted else None
    read = np.zeros((len(chosen), path.source.d_out))
    weight, positions, done, sample = 0.0, 0, 0, None
    for batch in corpus_batches(verb, model, prompts, mask, weights, tokens_at_once):
        found, flat = values_until(model, batch.tokens, batch.mask, wanted), batch.weights.reshape(-1)
        rows = {site: value.reshape(len(flat), -1) for site, value in found.items()}
        values = rows[between.enters], rows[between.reads], rows[between.encodes]
        if pairs is None:
            found_here, on = readings(path, chosen, values, flat)
            read += found_here
        else:
            on = pairs.add(values, flat)
        # Of positions where there is an edge: of a latent that is seldom on an even sample would have none.
        together = jnp.concatenate(values, axis=1)[None]
        sample = (sample or Sample.empty(together.shape[-1])).drawn(together, np.where(on, flat, 0)[None])
        weight, positions = weight + float(flat.sum()), positions + int((flat > 0).sum())
        done += batch.prompts
        report(done, max(known, done), "prompts")
    numbers = read if pairs is None else pairs.sum.data  # pyright: ignore[reportAttributeAccessIssue]  # scipy types it as any kind of sparse array
    if not np.isfinite(numbers).all():
        raise ValueError(
            f"{verb}: the edges from `{start}` to `{end}` are not finite. Look at the values there with jc.run(…, record=[…]), and at the "
            "dictionaries."
        )
    return MeanEdges(
        readings=read / weight if pairs is None else None,
        pairs=None if pairs is None else pairs.sum / weight,
        W_dec=np.asarray(wide(path.source.W_dec)),
        targets=chosen,
        weight=weight,
        n_positions=positions,
        n_prompts=done,
        source=start,
        target=end,
        through=through,
        frozen=tuple(sorted(str(Site(between.enters.layer, kind)) for kind in path.sub.frozen)),
        model=fingerprint(model),
        dictionaries=(fingerprint(path.source), fingerprint(path.target)),
        dtype=str(jnp.dtype(model.activation_dtype)),
        path=path,
        sample=sample,
    )


def _chosen(verb: str, targets, d_sae: int) -> Int[np.ndarray, " n"]:
    if targets is None:
        return np.arange(d_sae)
    chosen = np.asarray(targets)
    if chosen.ndim != 1 or not len(chosen) or not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(f"{verb}: targets is a list of the numbers of latents, at least one; got {targets!r}.")
    if len(bad := chosen[(chosen < 0) | (chosen >= d_sae)]) or len(np.unique(chosen)) < len(chosen):
        what = f"no latent {bad[0]}" if len(bad) else "a latent twice"
        raise ValueError(f"{verb}: targets are numbers from 0 to {d_sae - 1}, each once; there is {what}.")
    return chosen.astype(np.int64)

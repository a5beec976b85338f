"""`feature_jacobian`: the Jacobian between the latents of two dictionaries, those that are on."""

from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._checks import check_number
from .._guard import check_backend
from .._run import check_tokens
from .._sites import by_site, Kind, Site
from .._traced import check_untraced
from .._typing import Progress, Tokens
from ..jacobian._blocks import chain_of_blocks, is_position_local
from ..jacobian._finite import check_finite
from ..models import check_known, OF_BLOCK, Transformer
from ..saes import Saes
from ._all import all_pairs, gradients_at_all, gradients_one_by_one
from ._cosine import cosines
from ._ends import find_ends, named_sides, SIDES
from ._latents import Latents, latents_above, Pairs
from ._point import run_at_point
from ._result import FeatureJacobian
from ._same import at_shared_positions, gradients_at_same, same_pairs


POSITIONS = ("same", "all")


def feature_jacobian(
    model: Transformer,
    saes: Saes,
    tokens: Tokens,
    source: Site | str,
    target: Site | str,
    *,
    minimum: float = 1.0,
    positions: str = "same",
    substitute: Iterable[str] = SIDES,
    progress: Progress | None = None,
) -> FeatureJacobian:
    r"""The derivative of each latent that is on at `target` with respect to each that is on at `source`, at one prompt.

    $$\frac{\partial f^1_{pj}}{\partial f^0_{qi}} = \sigma'_{pj}\; W_{enc,\cdot j}^{1\top}\;
      \frac{\partial x^1_p}{\partial x^0_q}\; s_q\, W^0_{dec,i}$$

    with $f^0$ [seq d_sae], $f^1$ [seq d_sae'] the latents, $x^0$, $x^1$ the values where the source's decoder writes and the target's
    encoder reads, $\sigma'$ the slope of the target's nonlinearity (1 for a ReLU, JumpReLU or TopK latent that is on; thresholds, and
    which latents are among the top, are held) and $s_q$ the scale by which a normalising dictionary stretches its decoder. Everything
    between, attention, norms and MLPs, is live; a source's own encoder takes no part, its latents are the variable.

    In a causal model nothing comes back to a position from later ones. So `positions="same"` is the derivative of each position's own
    chain, and one pass of the fewer latents through the blocks gives all positions; see `jaxcirc/jacobian/_own.py`.

    **Arguments:**

    - `saes`: dictionaries keyed by site, with those of `source` and `target` among them.
    - `tokens` `[seq]`: one prompt.
    - `source`, `target`: sites with dictionaries, for example `blocks.0.mlp.hook_post` and `blocks.1.mlp.hook_post`.
    - `minimum`: a latent is on if its value is greater; on both sides, in the run that is made.
    - `positions`: `"same"` for pairs at one position, `"all"` for those of any two.
    - `substitute`: the dictionaries whose reconstruction, without the error, is put in place of their site in the run; at the others the
      model's own value stays, which is the reconstruction with its error held. The target's latents are upstream of its reconstruction,
      so `"target"` changes nothing that is computed here, and says of which run it is.
    - `progress`: called as `progress(done, of, stage)`.

    **Returns:** a `FeatureJacobian`, one row a pair. Its cosine is that of what a unit of the source's latent adds to the residual stream
    and what the target's encoder reads from it: `W_dec0[i] W_out0` and `W_in1 W_enc1[:, j]` for hidden activations of MLPs (in a gated one
    `W_in` is of what the gates multiply, and the gates are held), the decoder's and the encoder's vectors themselves at `resid`,
    `attn_out` and `mlp_out`, `W_O` and `W_V` at `z`. Through a norm, one behind a sublayer too, its weight is multiplied in, and by a
    layer norm the mean over d_model left out of both, so that it is the same for processed weights (`jc.process_weights`) as for
    unprocessed ones. It is NaN where a source does not write into the residual stream linearly, and where a target reads queries or keys
    behind their norm or rotation.

    **Raises:** `ValueError` if no latent is on, with the largest that there is; for a site without a dictionary; a source that is not
    upstream; an unknown name in `substitute` or `positions`; tokens that are not one sequence; `RuntimeError` on a compiler that is
    known to compute wrong Jacobians.

    >>> J = jc.feature_jacobian(model, saes, tokens, "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out", minimum=0.1)
    >>> bool((J.position == J.source_position).all()), J.gradient.shape == J.cosine.shape == (len(J),)
    (True, True)

    **Reference:** latents by latents of an earlier layer are in a published notebook on dictionaries of TinyStories-2L-33M. Every gradient
    there is that of the *negative* activation; here it is of the activation. Its first cell puts both reconstructions in place, and is
    `substitute=("source", "target")` with latents above 0.1; its last one only the target's, and is `substitute=("target",)` with
    latents above 1, the first position left out, by one backward pass for each target latent. It takes steps in what the source's
    dictionary reads, where the gradient is that of what it writes; `jc.steer_features` steps in the variable that is differentiated.
    """
    check_untraced("feature_jacobian", model)
    check_backend()
    check_tokens(model, tokens)
    check_known("feature_jacobian", model, *OF_BLOCK)
    _check_options(minimum, positions)
    given, source, target = by_site(saes), Site.parse(source), Site.parse(target)
    replaced = named_sides(substitute)
    ends, pair = find_ends(model, given, source, target, replaced)
    run, displacement, point = run_at_point(model, pair, np.asarray(tokens), ends=ends)
    on = lambda acts, site: _on(np.asarray(acts)[: len(tokens)], minimum, site)
    targets, sources = on(point.target_acts, target), on(point.source_acts, source)
    masks = [mask[0] for mask in run.masks]
    entering = [run.values[Site(layer, Kind.RESID_PRE)][0] for layer in range(model.n_layers)]
    J = chain_of_blocks(model, masks, entering, ends.source, ends.target_read, displacement)
    report = progress or (lambda done, of, stage: None)
    if positions == "all":
        pairs = _some(all_pairs(targets, sources, causal=model.causal), minimum, "upstream of one another")
        gradient = gradients_at_all(J, pair, point, targets, sources, pairs)
    else:
        targets, sources = at_shared_positions(targets, sources)
        pairs = _some(same_pairs(targets, sources), minimum, "on at the same position")
        at_same = gradients_at_same if is_position_local(J.product, causal=model.causal) else gradients_one_by_one
        gradient = at_same(J, pair, point, targets, sources, pairs, report)
    if not np.isfinite(gradient).all():
        check_finite(J.product, jnp.asarray(gradient))
    to, of = targets.at(pairs.target), sources.at(pairs.source)
    return FeatureJacobian(
        position=to.position,
        source_position=of.position,
        source=of.unit,
        target=to.unit,
        source_act=np.asarray(point.source_acts)[of.position, of.unit],
        target_act=np.asarray(point.target_acts)[to.position, to.unit],
        gradient=gradient,
        cosine=cosines(model, pair, ends, targets, sources, pairs, same=positions == "same"),
        source_site=source,
        target_site=target,
        minimum=float(minimum),
        positions=positions,
        substitute=replaced,
    )


def _check_options(minimum: float, positions: str) -> None:
    check_number("feature_jacobian: minimum", minimum)
    if minimum < 0:
        raise ValueError(
            f"feature_jacobian: minimum is the value above which a latent is on, 0 or more; got {minimum}."
        )
    if positions not in POSITIONS:
        raise ValueError(f"feature_jacobian: positions is one of {', '.join(map(repr, POSITIONS))}; got {positions!r}.")


def _on(acts: Float[np.ndarray, "seq d_sae"], minimum: float, site: Site) -> Latents:
    latents = latents_above(acts, minimum)
    if not len(latents.unit):
        raise ValueError(
            f"feature_jacobian: no latent of `{site}` is above the minimum {minimum:g}; the largest is {float(acts.max()):.3g}. "
            "Give a lower minimum."
        )
    return latents


def _some(pairs: Pairs, minimum: float, how: str) -> Pairs:
    if not len(pairs.target):
        raise ValueError(
            f"feature_jacobian: no two latents above the minimum {minimum:g} are {how}. Give a lower minimum."
        )
    return pairs

"""`intercept`: what a value has beside its Jacobian times another."""

from collections.abc import Iterable, Sequence

from jaxtyping import Array, Float, Int

from .._run import NOTHING, run
from .._sites import Site
from .._typing import Keys, Tokens
from ..models import Transformer
from ..saes import Saes
from ._edge import edge


def intercept(
    model: Transformer,
    tokens: Tokens,
    source: Site | str,
    target: Site | str,
    *,
    frozen: Iterable[Site | str] = (),
    saes: Saes = NOTHING,
    target_pos: Sequence[int] | Int[Array, " n"] | None = None,
    mask: Keys | None = None,
) -> Float[Array, "..."]:
    r"""What the value at `target` has beside its Jacobian times the value at `source`: $c = y - J x$, at the clean run.

    With all that is not linear held, `frozen=jc.frozen.detached(model)`, it is what the model adds wherever the source is: the biases on
    the way, carried to the target, and what enters behind or beside the source, as the position embedding does beside `hook_embed`. With
    less held it is of the tangent at the clean run, and has what that misses, too.

    **Arguments:** as of `jc.edge`, over all positions of the source.

    **Returns:** an array of the shape of the value at `target`, at `target_pos`.

    **Raises:** as `jc.edge`.

    >>> ends = "blocks.0.hook_resid_pre", "blocks.3.hook_resid_post"
    >>> jc.jacobian.intercept(model, tokens, *ends, frozen=jc.frozen.detached(model), target_pos=[-1]).shape
    (1, 128)
    """
    J = edge(model, tokens, source, target, frozen=frozen, saes=saes, target_pos=target_pos, mask=mask)
    _, cache = run(model, tokens, saes=saes, record=[J.source, J.target], mask=mask)
    return J.product.end.take(cache[J.target][None])[0] - J.mv(cache[J.source])

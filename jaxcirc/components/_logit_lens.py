"""The logit lens: what the residual stream of each layer would say if it were the last."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_count, check_number
from .._run import check_mask, check_tokens
from .._shown import Shown
from .._sites import Kind, Site
from .._tap import bare_tap
from .._traced import kept_known
from ..models import check_known, Transformer
from ..runs import in_groups, record, TOKENS_AT_ONCE
from ._reading import asked, reading
from ._written import final_scale


class LogitLens(Shown, eqx.Module):
    """The residual stream at each depth, as the final norm and the unembedding read it. Depth 0 is what enters the first block, and
    depth `n` what enters block `n`, so that the last is the model's own reading.

    **Attributes:** - `resid` `[batch layer+1 seq d_model]`. - `ends`: the model without its blocks. - `tokens`, `mask` `[batch seq]`.
    """

    resid: Float[Array, "batch depth seq d_model"]
    ends: Transformer
    tokens: Int[Array, "batch seq"]
    mask: Bool[Array, "batch seq"]

    def answers(
        self,
        answers: Int[Array, "..."] | Float[Array, "..."] | int | None = None,
        *,
        foils: Int[Array, "..."] | int | None = None,
    ) -> Float[Array, "batch depth seq"]:
        """Answers' logits, which and less what as in `jc.direct_effects`, and like those before a cap, at each depth. Nothing else is
        unembedded.
        """
        read = reading(self.ends, asked(self.ends, self.tokens, np.asarray(self.mask), answers, foils))
        scale = final_scale(self.ends.ln_final, self.resid)
        # [batch layer+1 seq d_model] · [batch seq d_model] -> [batch layer+1 seq]
        return jnp.einsum("bnsm,bsm->bns", self.resid, read.direction) / scale + read.bias[:, None]

    def logits(self, depth: int) -> Float[Array, "batch seq d_vocab"]:
        """All logits at one depth, capped where the model caps them."""
        n = self.resid.shape[1]
        check_number("LogitLens.logits: depth", depth)
        if depth != int(depth) or not -n <= depth < n:
            raise ValueError(
                f"There is no depth {depth}: they are 0, before the first block, to {n - 1}, after the last."
            )
        return _unembedded(self.ends, self.resid[:, int(depth)])

    def top(self, k: int = 10) -> tuple[Int[Array, "batch depth seq k"], Float[Array, "batch depth seq k"]]:
        """The `k` tokens with the largest logits at each depth, and their logits.

        **Raises:** `ValueError` for fewer than one token, or more than there are.
        """
        check_count("LogitLens.top: k", "tokens", k)
        if k > len(self.ends.b_U):
            raise ValueError(f"LogitLens.top: k is {k}, and there are logits of {len(self.ends.b_U)} tokens.")
        best = lambda depth: jax.lax.top_k(self.logits(depth), k)
        values, ids = zip(*map(best, range(self.resid.shape[1])), strict=True)
        return jnp.stack(ids, axis=1), jnp.stack(values, axis=1)


def logit_lens(
    model: Transformer,
    tokens: Int[Array, "batch seq"],
    *,
    mask: Bool[Array, "batch seq"] | None = None,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> LogitLens:
    r"""Reads the residual stream at each depth with the final norm and the unembedding: $\mathrm{norm}_f(r_n) W_U + b_U$.

    The norm's scale is that of each depth. With the last one's at every depth it is a sum of what was written until then, and
    `jc.direct_effects(…).accumulated`.

    **Arguments:** - `mask` `[batch seq]`: False for padding. - `tokens_at_once`: how many tokens are in flight.

    **Returns:** `LogitLens`: `.answers(…)`, `.logits(depth)` and `.top(k)`, each computed when it is asked for.

    >>> lens = jc.logit_lens(model, tokens[None])
    >>> lens.answers().shape, lens.logits(2).shape, lens.top(3)[0].shape
    ((1, 5, 6), (1, 6, 1059), (1, 5, 6, 3))

    **Reference:** nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    check_tokens(model, tokens, batched=True)
    check_known("logit_lens", model, "ln_final")
    check_mask(tokens, mask)
    check_count("logit_lens: tokens_at_once", "tokens are run at once", tokens_at_once)
    with kept_known(tokens, mask):
        tokens = jnp.asarray(tokens)
        mask = jnp.ones(tokens.shape, bool) if mask is None else jnp.asarray(mask)
    cuts, found = [Site(layer, Kind.RESID_PRE) for layer in range(model.n_layers)], []
    for rows in in_groups(len(tokens), tokens.shape[1], tokens_at_once):
        run = record(model, tokens[rows], mask[rows], cuts)
        found.append(jnp.stack([*(run.values[cut] for cut in cuts), run.last], axis=1))
    resid = jnp.concatenate(found)[: len(tokens)]
    return LogitLens(resid, model.without_blocks, tokens, mask)


@jax.jit
def _unembedded(ends: Transformer, resid: Float[Array, "batch seq d_model"]) -> Float[Array, "batch seq d_vocab"]:
    return jax.vmap(lambda resid: ends.unembed(resid, bare_tap()))(resid)

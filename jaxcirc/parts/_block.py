"""A block of the residual stream: attention and an MLP, one after the other or beside each other."""

import equinox as eqx
from jaxtyping import Array, Float, Int

from .._sites import Kind
from .._tap import bare_tap, Tap
from .._typing import Mask, Resid
from ._attention import Attention, KVCache
from ._mlp import MLP
from ._norm import LayerNorm


class Block(eqx.Module):
    """A pre-norm block: attention reads the residual stream, then the MLP reads the sum, or both read the same if they are `parallel`.

    The two halves of a sequential block can be run apart, because the residual stream between them is a cut of the graph. `ln1` is
    `None` in a model without norms, `ln2` and `mlp` are `None` in one of attention only.
    """

    ln1: LayerNorm | None
    attn: Attention
    ln2: LayerNorm | None
    mlp: MLP | None
    parallel: bool = eqx.field(static=True, default=False)

    @property
    def has_middle(self) -> bool:
        """Whether the residual stream has a site between attention and an MLP that reads it."""
        return self.mlp is not None and not self.parallel

    @property
    def mlp_reads(self) -> Kind:
        """The residual stream that the MLP reads."""
        return Kind.RESID_MID if self.has_middle else Kind.RESID_PRE

    def __call__(self, resid: Resid, mask: Mask, tap: Tap, cache: KVCache | None = None) -> Resid:
        """With a cache `resid` is of some positions alone, with a row of the mask for each."""
        if self.has_middle:
            return self.feed(self.attend(resid, mask, tap, cache), tap)
        if self.mlp is None:
            return tap(Kind.RESID_POST, self.attend(resid, mask, tap, cache))
        resid = tap(Kind.RESID_PRE, resid)
        attn = self._attention(resid, mask, tap, cache)
        return tap(Kind.RESID_POST, resid + attn + self._mlp(resid, tap))

    def at(
        self, position: Int[Array, ""], resid: Resid, mask: Mask, cache: KVCache | None = None
    ) -> Float[Array, "1 d_model"]:
        """What leaves the block at one position, where nothing else is wanted: only keys and values are computed everywhere. With a cache
        the position counts from the first of `resid`.
        """
        tap, here = bare_tap(0), resid[position][None]
        normalized = resid if self.ln1 is None else self.ln1(resid, tap)
        attn = self.attn(normalized, mask[position][None], tap, queries=normalized[position][None], cache=cache)
        if self.has_middle:
            return self.feed(here + attn, tap)
        return here + attn if self.mlp is None else here + attn + self._mlp(here, tap)

    def attend(self, resid: Resid, mask: Mask, tap: Tap, cache: KVCache | None = None) -> Resid:
        """From `resid_pre` to what enters `resid_mid` (`resid_post` in a model of attention only)."""
        resid = tap(Kind.RESID_PRE, resid)
        return resid + self._attention(resid, mask, tap, cache)

    def feed(self, resid: Resid, tap: Tap) -> Resid:
        """From `resid_mid` to `resid_post`."""
        resid = tap(Kind.RESID_MID, resid)
        return tap(Kind.RESID_POST, resid + self._mlp(resid, tap))

    def keys_and_values(self, resid: Resid) -> tuple[Float[Array, "seq head d_head"], Float[Array, "seq head d_head"]]:
        """Those of attention where `resid` enters, for a cache of them."""
        return self.attn.keys_and_values(resid if self.ln1 is None else self.ln1(resid, bare_tap(0)))

    def _attention(self, resid: Resid, mask: Mask, tap: Tap, cache: KVCache | None = None) -> Resid:
        normalized = resid if self.ln1 is None else self.ln1(resid, tap)
        if cache is None:  # other classes of attention know of none
            return tap(Kind.ATTN_OUT, self.attn(normalized, mask, tap))
        return tap(Kind.ATTN_OUT, self.attn(normalized, mask, tap, cache=cache))

    def _mlp(self, resid: Resid, tap: Tap) -> Resid:
        assert self.mlp is not None
        normalized = resid if self.ln2 is None else self.ln2(resid, tap)
        return tap(Kind.MLP_OUT, self.mlp(normalized, tap))

"""A block of the residual stream: attention and an MLP, one after the other or beside each other."""

import equinox as eqx
from jaxtyping import Array, Float, Int

from .._indexing import take
from .._sites import Kind
from .._tap import bare_tap, Tap
from .._typing import Mask, Resid
from ._attention import Attention, KVCache
from ._mlp import GatedMLP, MLP
from ._norm import Norm


class Block(eqx.Module):
    """Attention reads the residual stream, then the MLP reads the sum, or both read the same if they are `parallel`.

    `ln1` and `ln2` are norms of what the sublayers read, `ln1_post` and `ln2_post` of what they write; each is `None` where a model has
    none there. `mlp` is `None` in a model of attention only. The two halves of a sequential block can be run apart, because the residual
    stream between them is a cut of the graph.
    """

    ln1: Norm | None
    attn: Attention
    ln2: Norm | None
    mlp: MLP | GatedMLP | None
    parallel: bool = eqx.field(static=True, default=False)
    ln1_post: Norm | None = None
    ln2_post: Norm | None = None

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
        tap, only = bare_tap(0), position[None]
        here = take(resid, only)
        attn = self._attention(resid, mask, tap, cache, only)
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

    def keys_and_values(
        self, resid: Resid
    ) -> tuple[Float[Array, "seq kv_head d_head"], Float[Array, "seq kv_head d_head"]]:
        """Those of attention where `resid` enters, for a cache of them."""
        return self.attn.keys_and_values(resid if self.ln1 is None else self.ln1(resid, bare_tap(0)))

    def _attention(
        self, resid: Resid, mask: Mask, tap: Tap, cache: KVCache | None = None, only: Int[Array, " query"] | None = None
    ) -> Float[Array, "query d_model"]:
        read = tap(Kind.ATTN_IN, resid if self.ln1 is None else self.ln1(resid, tap))
        # Other classes of attention know of neither.
        more = {name: value for name, value in {"cache": cache, "only": only}.items() if value is not None}
        out = self.attn(read, mask, tap, **more)
        if self.ln1_post is not None:
            out = self.ln1_post(tap(Kind.HEADS_OUT, out), tap)
        return tap(Kind.ATTN_OUT, out)

    def _mlp(self, resid: Resid, tap: Tap) -> Resid:
        assert self.mlp is not None
        out = self.mlp(tap(Kind.MLP_IN, resid if self.ln2 is None else self.ln2(resid, tap)), tap)
        if self.ln2_post is not None:
            out = self.ln2_post(tap(Kind.NEURONS_OUT, out), tap)
        return tap(Kind.MLP_OUT, out)

"""Full Jacobians, all positions by all positions, of one block and of several."""

import functools as ft

from .. import _ours, _work
from .._problems import make_blocks
from .._row import register, Rival, Row
from ..peers import _full as peers


def full(*, layers: int, d_model: int, heads: int, seq: int, chunks: tuple[int, ...]) -> Row:
    sizes = {"d_model": d_model, "heads": heads, "seq": seq, "layers": layers}
    blocks = make_blocks(**sizes)
    ends = ("blocks.0.hook_resid_pre", f"blocks.{layers - 1}.hook_resid_post")

    def prepare():
        J = _ours.jacobian(blocks, *ends)
        return J.as_matrix

    def expected(ours, variant: str, positions: int):
        return ours[seq - positions :] if "jacrev" in variant else ours[:, :, :positions]

    peer = ft.partial(peers.matrix, blocks)

    def rival(name: str, *variants: str) -> Rival:
        return Rival(
            name, variants, peer, expected, "positions", tried=max(1, seq // 16), timed=max(2, seq // 2), all=seq
        )

    plain = rival("PyTorch autodiff", *(f"{how} {chunk}" for how in ("jacrev", "jacfwd") for chunk in chunks))
    compiled = rival("PyTorch autodiff with torch.compile", f"compiled jacrev {chunks[len(chunks) // 2]}")
    peer = ft.partial(peers.matrix, blocks)
    return Row(
        what=f"`{ends[0]}` to `{ends[1]}`: [T, D, T, D], everything live",
        sizes=sizes,
        prepare=prepare,
        check=ft.partial(_ours.check_matrix, blocks, ends),
        rivals=(plain, compiled),
        work=_work.full(**sizes),
    )


QUICK = {"d_model": 16, "heads": 2, "seq": 3, "chunks": (8,)}
SMALL = {"d_model": 256, "heads": 4, "seq": 32, "chunks": (128, 512)}
SEVERAL = {**SMALL, "d_model": 128, "layers": 4}
XL = {"d_model": 512, "heads": 8, "seq": 64, "chunks": (256, 1024, 4096)}


@register("full-one-block", quick=QUICK, small=SMALL, xl=XL)
def full_one_block(**sizes) -> Row:
    return full(layers=1, **sizes)


@register("full-several-blocks", quick={**QUICK, "layers": 2}, small=SEVERAL, xl={**XL, "layers": 4})
def full_several_blocks(**sizes) -> Row:
    return full(**sizes)

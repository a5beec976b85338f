"""Latents by latents of the next layer at the same position, those that are on."""

import functools as ft

import numpy as np

from .. import _features as ours, _work
from .._row import register, Rival, Row
from ..peers import _features as peers


QUICK = {"d_model": 32, "heads": 4, "seq": 8, "d_sae": 256, "source_active": 12, "target_active": 16, "timed": 16}
SMALL = {
    "d_model": 1024,
    "heads": 16,
    "seq": 64,
    "d_sae": 16384,
    "source_active": 75,
    "target_active": 100,
    "timed": 64,
}
XL = {"d_model": 1600, "heads": 25, "seq": 256, "d_sae": 51200, "source_active": 75, "target_active": 100, "timed": 512}


@register("feature-jacobian", quick=QUICK, small=SMALL, xl=XL)
def feature_jacobian(*, timed: int, **sizes: int) -> Row:
    problem = ours.make_features(**sizes)
    m, k = len(problem.out.latents), len(problem.into.latents)
    timed = min(timed, len(problem.targets))

    def expected(numbers: np.ndarray, variant: str, amount: int) -> np.ndarray:
        return numbers[: problem.begin[amount]]

    def rival(name: str, *variants: str) -> Rival:
        prepare = ft.partial(peers.gradients, problem)
        return Rival(name, variants, prepare, expected, "target latents", tried=timed // 2, timed=timed, all=m)

    shapes = {name: sizes[name] for name in ("d_model", "heads", "seq", "d_sae")} | {"m": m, "k": k}
    each = f"{sizes['source_active']} by {sizes['target_active']} a position on average"
    return Row(
        what=f"latents of `{ours.ENDS[0]}` to latents of `{ours.ENDS[1]}` at the same position, those that are on: {each}",
        sizes=shapes,
        prepare=lambda: ours.run(problem),
        check=ft.partial(ours.check, problem),
        rivals=(
            rival("PyTorch, a backward pass a latent", "a backward pass a latent"),
            rival("PyTorch autodiff of what lies between", "loop", "vmap 8", "vmap 32"),
        ),
        work=_work.features(**shapes),
        numbers=ft.partial(ours.gradients, problem),
    )

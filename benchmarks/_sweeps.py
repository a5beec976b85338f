"""Cost against one size, the others fixed: the data of the plots."""

from typing import Any

import numpy as np

from . import peers
from ._measure import Progress, Settings
from ._row import Maker, Rival
from ._settings import limit
from ._timing import check_equal, first_call, side_by_side
from .rows._edges import attention_block
from .rows._full import full


EDGES = {
    "quick": {"d_model": 32, "heads": 4, "seq": 8, "m": 48, "k": 40, "timed": 16},
    "small": {"d_model": 768, "heads": 12, "seq": 64, "m": 512, "k": 2048, "timed": 64},
    "xl": {"d_model": 1600, "heads": 25, "seq": 256, "m": 2048, "k": 8192, "timed": 512},
}
FULL = {
    "quick": {"d_model": 16, "heads": 2, "seq": 3, "layers": 1, "chunks": (8,)},
    "small": {"d_model": 64, "heads": 4, "seq": 16, "layers": 1, "chunks": (128,)},
    "xl": {"d_model": 256, "heads": 4, "seq": 64, "layers": 1, "chunks": (1024,)},
}
VALUES: dict[str, dict[str, tuple[int, ...]]] = {
    "seq": {"quick": (4, 8), "small": (16, 32, 64, 128, 256), "xl": (64, 128, 256, 512, 1024)},
    "m": {"quick": (24, 48), "small": (64, 256, 1024, 4096), "xl": (512, 2048, 8192, 32768)},
    "k": {"quick": (20, 40), "small": (128, 512, 2048, 8192), "xl": (512, 2048, 8192, 32768)},
    "layers": {"quick": (1, 2), "small": (1, 2, 4, 8), "xl": (1, 2, 4, 8)},
}
LABELS = {"seq": "T, positions", "m": "M, covectors", "k": "K, vectors", "layers": "blocks, full Jacobian"}
OURS, PEER = "jaxcirc", "PyTorch autodiff"


def sweep(settings: Settings, progress: Progress) -> list[dict[str, Any]]:
    """One plot for each of T, M, K and the number of blocks: seconds of our side and of PyTorch's, scaled where a part is timed."""
    return [_plot(name, settings, progress) for name in VALUES]


def _plot(name: str, settings: Settings, progress: Progress) -> dict[str, Any]:
    maker: Maker = full if name == "layers" else attention_block
    sizes = (FULL if name == "layers" else EDGES)[settings.size]
    values = VALUES[name][settings.size]
    series: dict[str, list[float]] = {OURS: []}
    for value in values:
        for side, took in _point(maker, {**sizes, name: value}, settings).items():
            series.setdefault(side, []).append(took)
        progress(
            f"plot: {LABELS[name]} = {value}: " + ", ".join(f"{side} {took[-1]:.3g} s" for side, took in series.items())
        )
    fixed = {key: value for key, value in sizes.items() if key not in (name, "chunks", "timed")}
    return {"name": name, "label": LABELS[name], "fixed": fixed, "values": list(values), "seconds": series}


def _point(maker: Maker, sizes: dict[str, Any], settings: Settings) -> dict[str, float]:
    """The median times at one point; the peer in one formulation, vmap or jacrev in chunks, equal to ours."""
    row = maker(**sizes)
    run = row.prepare()
    ours = np.asarray(first_call(run)[0])
    runs, scale = {OURS: run}, 1.0
    if peers.missing():
        check_equal("ours against jax.jvp", *row.check(ours), limit(settings.precision))
    else:
        rival = row.rivals[0]
        variant = rival.variants[0] if rival.unit == "positions" else _largest_vmap(rival)
        runs[PEER], scale = rival.prepare(variant, rival.timed), rival.all / rival.timed
        assert rival.expected is not None
        want = rival.expected(ours, variant, rival.timed)
        check_equal(f"ours against {PEER}, {variant}", want, first_call(runs[PEER])[0], limit(settings.precision))
    times = side_by_side(runs, min(settings.repeats, 3))
    return {side: float(np.median(took)) * (scale if side == PEER else 1.0) for side, took in times.items()}


def _largest_vmap(rival: Rival) -> str:
    return [variant for variant in rival.variants if variant.startswith("vmap")][-1]

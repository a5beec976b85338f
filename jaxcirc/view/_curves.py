"""Recovery curves, drawn."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._checks import check_kind
from .._files import write_text, writing_file
from ._svg import check_svg
from .plot import across, band, COLOURS, curve, document, frame, GREY, legend, line, upwards


if TYPE_CHECKING:
    import pandas as pd


def draw_curves(curves: "Mapping[str, pd.DataFrame]", path: str | Path) -> None:
    """Draws recovery curves as an SVG file, a panel for each, under its name: how much is recovered by how many nodes or edges.

    **Arguments:** - `curves`: tables of `jc.recovery_curve`, for example `{"by nodes": …, "by edges": …}`.

    **Raises:** `ValueError` if there is none, or one is empty.
    """
    check_svg(path)
    check_kind("draw_curves: curves", curves, Mapping, "tables by name, {'by nodes': jc.recovery_curve(…)}")
    if not curves or any(len(table) == 0 for table in curves.values()):
        raise ValueError("draw_curves: expected at least one table of jc.recovery_curve, none of them empty.")
    panels = [_panel(name, table) for name, table in curves.items()]
    with writing_file(path) as aside:
        write_text(aside, document(panels, title="Recovery of the metric against the size of the circuit"))


def _panel(name: str, table: "pd.DataFrame") -> str:
    # Where edges are dropped, all nodes stay.
    what = "edges" if len(set(table["nodes"].tolist())) == 1 < len(set(table["edges"].tolist())) else "nodes"
    rows = [row for row in table.to_dict("records") if row[what] > 0]
    sizes = [row[what] for row in rows]
    values = [row[name] for row in rows for name in ("faithfulness", "low", "high", "completeness", "random")]
    least, most = np.nanmin(values), np.nanmax(values)
    x = across(min(sizes) / 1.3, max(sizes) * 1.3, log=True)
    y = upwards(min(-0.1, least - 0.05), max(1.1, most + 0.05))
    at = lambda column: list(zip(sizes, (row[column] for row in rows), strict=True))
    series = {"faithfulness": COLOURS[0], "completeness": COLOURS[1], "random": GREY}
    parts = [frame(x, y, label=f"{what} kept", note=name), line([(x.begin, y.at(1)), (x.end, y.at(1))], dashes="2 3")]
    if not np.isnan([row["low"] for row in rows]).any():  # one prompt has no interval
        parts += [band(x, y, at("low"), at("high"), COLOURS[0])]
    parts += [curve(x, y, at(column), colour) for column, colour in series.items()]
    return "".join([*parts, legend(list(series.items()), step=104)])

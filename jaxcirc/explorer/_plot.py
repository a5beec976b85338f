"""The drawing, in Bokeh's models: empty sources for edges, nodes and rings, which the page's own JavaScript fills.

Why Bokeh: its wheel holds its JavaScript, so that a page is whole without a network and without a build step; it draws on a canvas, where
20,000 edges are lines and no elements; it has wheel, pinch and drag for zoom and pan. Plotly's script is several times as large;
Cytoscape and vis-network lead edges on ways of their own, which run under nodes, and are no Python packages; D3 with SVG makes an element
of every edge, which is too slow from some thousands on.
"""

from typing import Any

from ._layout import Layout


LEVELS = ((4.0, 0.9), (2.6, 0.75), (1.7, 0.6), (1.1, 0.45), (0.8, 0.28))
"""Width in pixels and opacity of edges, by steps of their share of the strongest weight."""
COLOURS = {"positive": "#b2182b", "negative": "#2166ac"}
NAME = "explorer"


def plot_item(layout: Layout) -> dict[str, Any]:
    """Makes the drawing as Bokeh embeds it, plain JSON. Its models are found by their names: `edges-positive-0`, `nodes` and so on."""
    from bokeh.embed import json_item

    return dict(json_item(_plot(layout)))


def scripts() -> str:
    """Bokeh's JavaScript, without what this page does not use."""
    from bokeh.resources import Resources

    return "\n".join(Resources(mode="inline", components=["bokeh"], log_level="error", minified=True).js_raw)


def _plot(layout: Layout) -> Any:
    from bokeh.models import ColumnDataSource, CustomJS, Range1d
    from bokeh.plotting import figure

    of = lambda end: Range1d(start=0, end=max(end, 1))
    ranges = {"x_range": of(layout.width), "y_range": of(layout.height)}
    options = {"tools": "pan,wheel_zoom", "active_scroll": "wheel_zoom", "toolbar_location": None, "name": NAME}
    plot: Any = figure(sizing_mode="stretch_both", min_border=0, outline_line_color=None, **ranges, **options)
    plot.axis.visible, plot.grid.visible = False, False
    empty = lambda name, *columns: ColumnDataSource({column: [] for column in columns}, name=name)
    bands = [*layout.rows, *([] if len(layout.columns) < 2 else layout.columns[1::2])]
    across = lambda band: (band.low, band.high, -1e4, 1e4)
    along = lambda band: (-1e4, 1e4, band.low - 0.15, band.high + 0.15)
    sides = [along(band) if i < len(layout.rows) else across(band) for i, band in enumerate(bands)]
    left, right, bottom, top = zip(*sides, strict=True) if sides else ((), (), (), ())
    source = ColumnDataSource({"left": left, "right": right, "bottom": bottom, "top": top})
    plot.quad("left", "right", "top", "bottom", source=source, fill_color="#64748b", fill_alpha=0.07, line_color=None)
    for level in reversed(range(len(LEVELS))):  # the strongest on top
        width, alpha = LEVELS[level]
        for sign, colour in COLOURS.items():
            source = empty(f"edges-{sign}-{level}", "x", "y")
            style = {"line_color": colour, "line_width": width, "line_alpha": alpha, "line_join": "round"}
            plot.line("x", "y", source=source, name=f"line-{sign}-{level}", **style)
    marked = empty("marked", "xs", "ys", "colour", "width")
    plot.multi_line("xs", "ys", source=marked, line_color="colour", line_width="width", line_join="round")
    rings = empty("rings", "x", "y", "colour")
    plot.scatter("x", "y", source=rings, name="ring", fill_alpha=0, line_color="colour", line_width=3)
    nodes = empty("nodes", "x", "y", "shape", "fill", "rim")
    plot.scatter("x", "y", source=nodes, marker="shape", name="mark", fill_color="fill", line_color="rim")
    text = {"text_align": "center", "text_baseline": "middle", "text_color": "ink"}
    plot.text("x", "y", "label", source=empty("letters", "x", "y", "ink", "label"), name="text", **text)
    groups = empty("groups", "x", "y", "text", "colour")
    shown = {"text_color": "colour", "text_baseline": "bottom", "text_font_style": "bold", "text_font_size": "13px"}
    plot.text("x", "y", "text", source=groups, text_align="center", name="group", **shown)
    for event in ("tap", "mousemove", "mouseleave"):
        plot.js_on_event(event, CustomJS(code=f"window.explorer.pointed('{event}', cb_obj)"))
    return plot

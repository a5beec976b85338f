"""Plots as SVG, by hand: axes, lines, bands and dots, laid out in panels; whole panels of dots, of bars and of coloured cells."""

import math
import statistics
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple


WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 420.0, 300.0, 64.0, 34.0, 14.0, 64.0
COLOURS = ("#0b5fa5", "#c2410c", "#15803d", "#6d28d9")
GREY = "#777777"
ROOM = 26.0  # pixels more that slanted names of columns take below a panel, and twice what names of rows take beside it
EMPTY = "#dddddd"  # a cell of a heat map without a number: light, so that the dash in it is read

Point = tuple[int | float, int | float]  # an axis may count
Points = Sequence[Point]


class Axis(NamedTuple):
    """From `low` to `high` onto pixels from `begin` to `end`, linear or logarithmic."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def at(self, value: int | float) -> float:
        scale: Callable[[float], float] = math.log if self.log else float
        part = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return self.begin + part * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Chooses round numbers on the axis."""
        return log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high)


def across(low: float, high: float, *, log: bool = False) -> Axis:
    """Makes the horizontal axis of a panel."""
    return Axis(low, high, LEFT, WIDTH - RIGHT, log)


def upwards(low: float, high: float, *, log: bool = False) -> Axis:
    """Makes the vertical axis of a panel."""
    return Axis(low, high, HEIGHT - BOTTOM, TOP, log)


def around(values: Sequence[int | float]) -> tuple[float, float]:
    """Finds the ends of an axis that shows all of `values`, with room at both sides."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    return low - room, high + room


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between the ends; 1, 2 and 5 times those where there are fewer than three."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1,), (1, 2, 5)):
        ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            break
    return ticks


def linear_ticks(low: float, high: float) -> list[float]:
    """Chooses four to ten multiples of a power of ten, or of 2 or 5 times one."""
    size = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(size * factor for factor in (1, 2, 5, 10) if (high - low) / (size * factor) <= 8)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def document(panels: Sequence[str], *, title: str, columns: int = 2) -> str:
    """Panels side by side as one SVG document."""
    columns = min(columns, max(len(panels), 1))
    width, height = columns * WIDTH, -(-len(panels) // columns) * HEIGHT
    placed = "".join(
        f'<g transform="translate({i % columns * WIDTH:g},{i // columns * HEIGHT:g})">{panel}</g>'
        for i, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}" '
        f'font-family="sans-serif" font-size="11"><title>{escape(title)}</title>'
        f'<rect width="100%" height="100%" fill="#ffffff"/>{placed}</svg>\n'
    )


def frame(
    x: Axis,
    y: Axis,
    *,
    label: str,
    side: str = "",
    note: str = "",
    x_ticks: Sequence[float] | None = None,
    unit: str = "",
) -> str:
    """Draws the box of a panel with its ticks; below it what the horizontal axis is, beside it what the vertical one is."""
    parts = [
        f'<rect x="{x.begin}" y="{y.end}" width="{x.end - x.begin}" height="{y.begin - y.end}" fill="none" stroke="#444444"/>'
    ]
    for value in x.ticks() if x_ticks is None else x_ticks:
        parts += [line([(x.at(value), y.begin), (x.at(value), y.begin + 4)])]
        parts += [text(x.at(value), y.begin + 16, f"{value:g}", anchor="middle")]
    for tick in y.ticks():
        parts += [line([(x.begin, y.at(tick)), (x.end, y.at(tick))], stroke="#e5e5e5")]
        parts += [text(x.begin - 6, y.at(tick) + 4, f"{tick:g}{unit}", anchor="end")]
    middle = (x.begin + x.end) / 2
    parts += [text(middle, y.begin + 33, label, anchor="middle")]
    parts += [text(middle, y.begin + 48, note, anchor="middle", fill=GREY)]
    if side:
        parts += [_turned(14.0, (y.begin + y.end) / 2, side)]
    return "".join(parts)


def scatter(
    points: Points,
    *,
    label: str,
    side: str,
    title: str = "",
    note: str = "",
    fit: bool | tuple[float, float] = False,
    marked: tuple[Point, str] | None = None,
) -> str:
    """Draws a panel of dots, `label` saying what is across and `side` what is upwards; with `fit` the line of least squares through them,
    or one of given slope and intercept; and with `marked` one point that stands out, and its name.
    """
    shown = [*points, marked[0]] if marked else points
    x, y = across(*around([a for a, _ in shown])), upwards(*around([b for _, b in shown]))
    parts = [
        frame(x, y, label=label, side=side, note=note),
        text((x.begin + x.end) / 2, TOP - 10, title, anchor="middle"),
    ]
    parts += [dot(x.at(a), y.at(b), COLOURS[0], opacity=0.45) for a, b in points]
    if fit and len({a for a, _ in points}) > 1:
        least = lambda: statistics.linear_regression([a for a, _ in points], [b for _, b in points])
        slope, start = fit if isinstance(fit, tuple) else least()
        parts += [line(_within(x, y, slope, start), stroke=GREY, dashes="5 3", width=2)]
    if marked:
        (a, b), name = marked
        parts += [dot(x.at(a), y.at(b), COLOURS[1], radius=5.0), _beside(x.at(a), y.at(b) - 9, name)]
    return "".join(parts)


def heat_map(
    values: Sequence[Sequence[float]],
    *,
    label: str,
    side: str,
    title: str = "",
    note: str = "",
    unit: str = "",
    columns: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    most: float | None = None,
    positive: bool = False,
) -> str:
    """Draws a panel of coloured cells, the first row on top; colours are symmetric around 0, and a bar beside says what they mean in
    `unit`. Numbers stand in cells that have room for them; what is not a number is grey, with a dash.

    **Arguments:** - `columns`, `rows`: their names; without any they are counted from 0. - `most`: the size at which colours are full, by
    default the largest of the values. - `positive`: no value is below 0, and the bar begins there.
    """
    x = Axis(0, len(values[0]), LEFT if rows is None else LEFT + ROOM / 2, WIDTH - RIGHT - 58)
    names_below = ROOM if _slants(x, columns) else 0.0
    y = Axis(0, len(values), TOP, HEIGHT - BOTTOM - names_below)
    sizes = (abs(value) for row in values for value in row if not math.isnan(value))
    most = (max(sizes, default=0) if most is None else most) or 1.0
    wide, high = (x.end - x.begin) / len(values[0]), (y.end - y.begin) / len(values)
    size = min(10.0, high - 3, wide / 2.9)  # of numbers such as -0.41
    parts = [text((x.begin + x.end) / 2, TOP - 10, title, anchor="middle")]
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            at = (x.at(j), y.at(i), wide, high)
            parts += [_cell(*at, EMPTY if math.isnan(value) else diverging(value / most))]
            if size >= 6.5:
                shown = "–" if math.isnan(value) else f"{value:z.2f}"
                ink = "#ffffff" if abs(value) > 0.6 * most else "#222222"
                middle = (x.at(j + 0.5), y.at(i + 0.5) + size / 3)
                parts += [f'<g font-size="{size:.1f}">{text(*middle, shown, anchor="middle", fill=ink)}</g>']
    parts += [*_column_names(x, y.end, len(values[0]), columns), *_row_names(x.begin, y, len(values), rows)]
    corners = [(x.begin, y.begin), (x.end, y.begin), (x.end, y.end), (x.begin, y.end), (x.begin, y.begin)]
    parts += [line(corners)]
    middle = (x.begin + x.end) / 2
    parts += [
        text(middle, y.end + 33 + names_below, label, anchor="middle"),
        text(middle, y.end + 48 + names_below, note, anchor="middle", fill=GREY),
    ]
    bar = Axis(0.0 if positive else -most, most, y.end, TOP)
    parts += [_turned(14.0, (y.begin + y.end) / 2, side), _colour_bar(bar, unit)]
    return "".join(parts)


def _column_names(x: Axis, below: float, count: int, names: Sequence[str] | None) -> list[str]:
    """Writes the numbers of columns below a heat map, or their names."""
    wide = (x.end - x.begin) / count
    if names is not None and _slants(x, names):
        return [
            _slanted(x.at(j + 0.5) + 3, below + 10, _shortened(names[j])) for j in range(0, count, _every(wide, 10.0))
        ]
    shown = [str(j) for j in range(count)] if names is None else names
    return [text(x.at(j + 0.5), below + 14, shown[j], anchor="middle") for j in range(0, count, _every(wide, 16.0))]


def _slants(x: Axis, names: Sequence[str] | None) -> bool:
    """Says whether names of columns are too long to stand beside each other."""
    return names is not None and 6.2 * max(map(len, names)) > (x.end - x.begin) / len(names)


def _row_names(beside: float, y: Axis, count: int, names: Sequence[str] | None) -> list[str]:
    """Writes the numbers of rows beside a heat map, or their names."""
    high = (y.end - y.begin) / count
    if names is None:
        places = range(0, count, _every(high, 11.0))
        return [text(beside - 6, y.at(i + 0.5) + 4, str(i), anchor="end") for i in places]
    shown = [(i, _shortened(names[i])) for i in range(0, count, _every(high, 8.0))]
    labels = [text(beside - 4, y.at(i + 0.5) + 3, name, anchor="end") for i, name in shown]
    return [f'<g font-size="8">{label}</g>' for label in labels]


def diverging(part: float) -> str:
    """Mixes a colour for a number from -1 to 1: white at 0, blue below, red above."""
    end = (11, 95, 165) if part < 0 else (194, 65, 12)
    mixed = (round(255 + min(abs(part), 1) * (channel - 255)) for channel in end)
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def histogram(
    values: Sequence[int | float],
    *,
    label: str,
    side: str = "count",
    title: str = "",
    note: str = "",
    bins: int = 30,
    marked: tuple[int | float, str] | None = None,
) -> str:
    """Draws a panel of how many of `values` lie in each of `bins` intervals of equal width, and with `marked` one value that stands out."""
    low, high = around([*values, marked[0]] if marked else values)
    x, counts = across(low, high), [0] * bins
    for value in values:
        counts[min(int((value - low) / (high - low) * bins), bins - 1)] += 1
    y, width = upwards(0.0, 1.12 * max(counts)), (x.end - x.begin) / bins
    parts = [
        frame(x, y, label=label, side=side, note=note),
        text((x.begin + x.end) / 2, TOP - 10, title, anchor="middle"),
    ]
    parts += [
        f'<rect x="{x.begin + i * width:.1f}" y="{y.at(count):.1f}" width="{width:.1f}" height="{y.begin - y.at(count):.1f}" '
        f'fill="{COLOURS[0]}" stroke="#ffffff" stroke-width="0.5"/>'
        for i, count in enumerate(counts)
        if count
    ]
    if marked:
        value, name = marked
        parts += [line([(x.at(value), y.begin), (x.at(value), y.end)], stroke=COLOURS[1], width=2)]
        parts += [_beside(x.at(value), y.end + 12, name)]
    return "".join(parts)


def dot(x: float, y: float, colour: str, *, radius: float = 3.0, opacity: float = 1.0) -> str:
    """Draws a dot at a pixel."""
    thin = f' opacity="{opacity:g}"' if opacity < 1 else ""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{colour}"{thin}/>'


def _colour_bar(y: Axis, unit: str, steps: int = 40) -> str:
    """Draws what the colours of a heat map mean, along an axis that ends where they are full."""
    x, high = WIDTH - RIGHT - 44, (y.begin - y.end) / steps
    value = lambda i: y.low + (y.high - y.low) * (i + 0.5) / steps
    shades = (diverging(value(i) / y.high) for i in range(steps))
    parts = [_cell(x, y.begin - (i + 1) * high, 10.0, high + 0.3, shade) for i, shade in enumerate(shades)]
    parts += [text(x + 14, y.at(tick) + 4, f"{tick:g}") for tick in y.ticks()]
    return "".join([*parts, text(x + 5, y.begin + 16, unit, anchor="middle", fill=GREY)])


def _cell(x: float, y: float, wide: float, high: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{high:.1f}" fill="{colour}"/>'


def _every(pixels: float, needed: float) -> int:
    """Says which labels have room: 1 for all, 2 for every second one."""
    return next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if step * pixels >= needed)


def _turned(x: float, y: float, label: str) -> str:
    """Writes text upwards."""
    return f'<g transform="translate({x:g},{y:.1f}) rotate(-90)">{text(0.0, 0.0, label, anchor="middle")}</g>'


def _slanted(x: float, y: float, label: str) -> str:
    """Writes small text that rises to a pixel."""
    written = text(0.0, 0.0, label, anchor="end")
    return f'<g transform="translate({x:.1f},{y:.1f}) rotate(-55)" font-size="9">{written}</g>'


def _shortened(name: str, most: int = 12) -> str:
    """Shortens a name to what there is room for, its end kept."""
    return name if len(name) <= most else f"{name[: most - 5]}…{name[-4:]}"


def _beside(x: float, y: float, name: str) -> str:
    """Writes a name beside a pixel, on the side where there is more room."""
    right = x < (LEFT + WIDTH - RIGHT) / 2
    return text(x + (7 if right else -7), y, name, anchor="start" if right else "end", fill=COLOURS[1])


def _within(x: Axis, y: Axis, slope: float, start: float) -> Points:
    """Finds the pixels of both ends of a straight line where it leaves the panel."""
    ends = [x.low, x.high]
    if slope:
        meets = sorted(((y.low - start) / slope, (y.high - start) / slope))
        ends = [max(x.low, meets[0]), min(x.high, meets[1])]
    return [(x.at(a), y.at(slope * a + start)) for a in ends]


def legend(names: Sequence[tuple[str, str]], *, step: int = 116) -> str:
    """Names in their colours above a panel."""
    return "".join(text(LEFT + 8 + step * i, TOP - 8, name, fill=colour) for i, (name, colour) in enumerate(names))


def curve(x: Axis, y: Axis, points: Points, colour: str, *, dashes: str = "") -> str:
    """Draws a line with a dot at every point."""
    pixels = [(x.at(a), y.at(b)) for a, b in points]
    dots = "".join(dot(a, b, colour) for a, b in pixels)
    return line(pixels, stroke=colour, dashes=dashes, width=2) + dots


def band(x: Axis, y: Axis, low: Points, high: Points, colour: str) -> str:
    """Fills what lies between two lines."""
    corners = [(x.at(a), y.at(b)) for a, b in [*low, *reversed(high)]]
    return f'<polygon points="{_pixels(corners)}" fill="{colour}" opacity="0.18"/>'


def line(pixels: Points, *, stroke: str = "#444444", dashes: str = "", width: int = 1) -> str:
    """Draws a line through pixels."""
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<polyline points="{_pixels(pixels)}" fill="none" stroke="{stroke}" stroke-width="{width}"{dashed}/>'


def text(x: float, y: float, label: str, *, anchor: str = "start", fill: str = "#222222") -> str:
    """Writes text at a pixel."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}">{escape(label)}</text>'


def _pixels(points: Points) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in points)

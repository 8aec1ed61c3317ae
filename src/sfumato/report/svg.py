"""Small line charts and dot plots as inline SVG; colours come from the page's style, so they follow light and dark."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sfumato.report.html import Markup, element
from sfumato.report.style import CHARTS, COLOURS

MOST_POINTS = 400
LEFT, RIGHT, TOP, BOTTOM = 52.0, 12.0, 30.0, 38.0


@dataclass(frozen=True)
class Series:
    """Points (x, y) in order of x. `tone` picks the colour (0, 1, 2, ...); a faint one lies behind the others."""

    name: str
    points: Sequence[tuple[float, float]]
    tone: int = 0
    faint: bool = False


@dataclass(frozen=True)
class Axis:
    """Values [low, high] laid over pixels [start, end]."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value lies, in pixels."""
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        share = 0.5 if high == low else (at - low) / (high - low)
        return self.start + share * (self.end - self.start)


def linear_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values inside [low, high], 1, 2 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten inside [low, high]; powers alone where the range is wide."""
    factors = (1,) if high / low > 300 else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [f * 10.0**p for p in powers for f in factors if low * 0.999 <= f * 10.0**p <= high * 1.001]


def number(value: float) -> str:
    """A tick's label: 0.05, 2, 15k, 1.5M."""
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def line_chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    log: bool = False,
    width: int = 520,
    height: int = 260,
    log_x: bool = False,
) -> Markup:
    """A chart with axes, grid lines and a legend; points that are not finite (or not positive, `log`) are left out.

    log, log_x: logarithmic axes; `log_x` takes positive x.
    """
    kept = [Series(s.name, _usable(s.points, log), s.tone, s.faint) for s in series]
    kept = [s for s in kept if s.points]
    if not kept:
        return element("p", f"No values of {y_label} were logged.", class_="note")
    xs = [x for s in kept for x, _ in s.points]
    low, high = _padded([y for s in kept for _, y in s.points], log)
    x_axis = Axis(min(xs) if log_x else min(0.0, *xs), max(xs), LEFT, width - RIGHT, log_x)
    y_axis = Axis(low, high, height - BOTTOM, TOP, log)
    y_ticks = log_ticks(low, high) if log else linear_ticks(low, high)
    parts = [_y_tick(y_axis(tick), number(tick), width) for tick in (y_ticks or [low, high])]
    x_ticks = (log_ticks if log_x else linear_ticks)(x_axis.low, x_axis.high)
    parts += [_x_tick(x_axis(tick), number(tick), height) for tick in x_ticks]
    parts.append(
        element(
            "text", x_label, x=f"{(LEFT + width - RIGHT) / 2:g}", y=height - 4, class_="label", text_anchor="middle"
        )
    )
    for s in sorted(kept, key=lambda s: not s.faint):
        parts.append(_line(s, x_axis, y_axis))
    parts.append(_legend(kept, LEFT, 14.0))
    title = f"{y_label} over {x_label}"
    return _svg(parts, width, height, title)


def dot_plot(
    rows: Sequence[str], series: Sequence[tuple[str, Sequence[float | None]]], width: int = 1036, row_height: int = 26
) -> Markup:
    """Shares in [0, 1], a row per name and a mark per series: the first is filled, the others are outlines."""
    left = 96.0
    height = int(TOP + row_height * len(rows) + BOTTOM - 6)
    axis = Axis(0, 1, left, width - 24.0)
    bottom = TOP + row_height * len(rows)
    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        at = f"{axis(tick):.1f}"
        parts.append(element("line", x1=at, x2=at, y1=TOP, y2=bottom, class_="grid"))
        parts.append(element("text", f"{tick:.0%}", x=at, y=bottom + 16, class_="tick", text_anchor="middle"))
    for place, name in enumerate(rows):
        y = TOP + row_height * (place + 0.5)
        parts.append(element("text", name, x=left - 14, y=f"{y + 4:.1f}", class_="row", text_anchor="end"))
        values = [v for _, column in series if (v := column[place]) is not None]
        if values:
            ends = {"x1": f"{axis(min(values)):.1f}", "x2": f"{axis(max(values)):.1f}"}
            parts.append(element("line", **ends, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="span"))
        for tone in reversed(range(len(series))):
            value = series[tone][1][place]
            if value is not None:
                parts.append(_mark(tone, axis(value), y, f"{series[tone][0]}: {value:.1%}"))
    x = left
    for tone, (name, _) in enumerate(series):
        parts.append(_mark(tone, x + 6, 10.0, name))
        parts.append(element("text", name, x=f"{x + 17:.1f}", y=14, class_="label"))
        x += 34 + 6.2 * len(name)
    return _svg(parts, width, height, "share of facts that hold, by kind")


def standalone(chart: Markup) -> str:
    """A chart as a file of its own, with the colours of the page; it follows light and dark, too."""
    style = element("style", Markup(f"{COLOURS}svg.chart {{ background: var(--paper); }}\n{CHARTS}"))
    opening, rest = chart.split(">", 1)
    return f'{opening} xmlns="http://www.w3.org/2000/svg">{style}{rest}\n'


def _svg(parts: Sequence[str], width: int, height: int, title: str) -> Markup:
    return element(
        "svg",
        element("title", title),
        *parts,
        class_="chart",
        viewBox=f"0 0 {width} {height}",
        role="img",
        style=f"max-width:{width}px",
    )


def _usable(points: Sequence[tuple[float, float]], log: bool) -> list[tuple[float, float]]:
    good = [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not log)]
    stride = -(-len(good) // MOST_POINTS)
    return good if stride <= 1 else [*good[:-1:stride], good[-1]]


def _padded(values: Sequence[float], log: bool) -> tuple[float, float]:
    """The range of the values with a little air, never empty."""
    forward: Callable[[float], float] = math.log if log else float
    low, high = forward(min(values)), forward(max(values))
    air = 0.06 * (high - low) or 0.1 * (abs(high) or 1.0)
    low, high = low - air, high + air
    return (math.exp(low), math.exp(high)) if log else (low, high)


def _y_tick(y: float, label: str, width: int) -> Markup:
    line = element("line", x1=LEFT, x2=width - RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid")
    return Markup(line + element("text", label, x=LEFT - 8, y=f"{y + 4:.1f}", class_="tick", text_anchor="end"))


def _x_tick(x: float, label: str, height: int) -> Markup:
    return element("text", label, x=f"{x:.1f}", y=f"{height - BOTTOM + 16:g}", class_="tick", text_anchor="middle")


def _line(series: Series, x_axis: Axis, y_axis: Axis) -> Markup:
    css = f"line tone-{series.tone}" + (" faint" if series.faint else "")
    places = [(x_axis(x), y_axis(y)) for x, y in series.points]
    if len(places) == 1:
        return element("circle", cx=f"{places[0][0]:.1f}", cy=f"{places[0][1]:.1f}", r=3, class_=f"dot {css}")
    return element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places), class_=css)


def _legend(series: Sequence[Series], x: float, y: float) -> Markup:
    parts = []
    for s in series:
        css = f"line tone-{s.tone}" + (" faint" if s.faint else "")
        parts.append(element("line", x1=f"{x:.1f}", x2=f"{x + 18:.1f}", y1=y - 4, y2=y - 4, class_=css))
        parts.append(element("text", s.name, x=f"{x + 24:.1f}", y=y, class_="label"))
        x += 44 + 6.2 * len(s.name)
    return Markup("".join(parts))


def _mark(tone: int, x: float, y: float, title: str) -> Markup:
    """Full disc, ring, square, tick: told apart without colour."""
    css = f"mark tone-{tone}"
    name = element("title", title)
    if tone == 0:
        return element("circle", name, cx=f"{x:.1f}", cy=f"{y:.1f}", r=5, class_=f"{css} full")
    if tone == 1:
        return element("circle", name, cx=f"{x:.1f}", cy=f"{y:.1f}", r=6.5, class_=css)
    if tone == 2:
        return element("rect", name, x=f"{x - 4.5:.1f}", y=f"{y - 4.5:.1f}", width=9, height=9, class_=css)
    return element("line", name, x1=f"{x:.1f}", x2=f"{x:.1f}", y1=f"{y - 6:.1f}", y2=f"{y + 6:.1f}", class_=css)

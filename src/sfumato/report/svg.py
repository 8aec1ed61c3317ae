"""Small line charts and dot plots as inline SVG; colours come from the page's style, so they follow light and dark."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from sfumato.report.templating import render, stylesheet

MOST_POINTS = 400
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 30, 38
LETTER = 6.2
"""The mean width of a letter in a legend, in pixels."""


@dataclass(frozen=True)
class Series:
    """Points (x, y) in order of x. `tone` picks the colour (0, 1, 2, ...); a faint one is drawn behind the others; one
    without a name is not in the legend."""

    name: str
    points: Sequence[tuple[float, float]]
    tone: int = 0
    faint: bool = False


@dataclass(frozen=True)
class Axis:
    """Maps values [low, high] to pixels [start, end]."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The position of a value, in pixels."""
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
    """The label of a tick: 0.05, 2, 15k, 1.5M."""
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

    log, log_x: logarithmic axes; `log_x` requires positive x.
    """
    shown = [Series(s.name, _usable(s.points, log), s.tone, s.faint) for s in series]
    shown = [s for s in shown if s.points]
    if not shown:
        return Markup('<p class="note">No values of {} were logged.</p>').format(y_label)
    xs = [x for s in shown for x, _ in s.points]
    low, high = _padded([y for s in shown for _, y in s.points], log)
    x_axis = Axis(min(xs) if log_x else min(0.0, *xs), max(xs), LEFT, width - RIGHT, log_x)
    y_axis = Axis(low, high, height - BOTTOM, TOP, log)
    y_ticks = (log_ticks if log else linear_ticks)(low, high) or [low, high]
    x_ticks = (log_ticks if log_x else linear_ticks)(x_axis.low, x_axis.high)
    return render(
        "line_chart.svg",
        width=width,
        height=height,
        title=f"{y_label} over {x_label}",
        left=LEFT,
        right=width - RIGHT,
        bottom=height - BOTTOM,
        x_label=x_label,
        x_ticks=[(_pixels(x_axis(tick)), number(tick)) for tick in x_ticks],
        y_ticks=[(_pixels(y_axis(tick)), number(tick)) for tick in y_ticks],
        lines=[_line(s, x_axis, y_axis) for s in sorted(shown, key=lambda s: not s.faint)],
        legend=_legend([(s.name, _css(s)) for s in shown if s.name], LEFT, 44),
    )


def dot_plot(
    rows: Sequence[str], series: Sequence[tuple[str, Sequence[float | None]]], width: int = 1036, row_height: int = 26
) -> Markup:
    """Shares in [0, 1], a row per name and a mark per series: the first is filled, the others are outlines."""
    left, bottom = 96, TOP + row_height * len(rows)
    axis = Axis(0, 1, left, width - 24)

    def marks(place: int) -> list[dict[str, Any]]:
        values = [(tone, name, column[place]) for tone, (name, column) in enumerate(series)]
        return [
            {"tone": tone, "x": _pixels(axis(value)), "title": f"{name}: {value:.1%}"}
            for tone, name, value in values
            if value is not None
        ]

    return render(
        "dot_plot.svg",
        width=width,
        height=bottom + BOTTOM - 6,
        title="share of true facts by kind",
        left=left,
        top=TOP,
        bottom=bottom,
        x_ticks=[(_pixels(axis(tick)), f"{tick:.0%}") for tick in (0, 0.25, 0.5, 0.75, 1)],
        rows=[
            {"name": name, "y": TOP + row_height * (place + 0.5), "marks": marks(place)}
            for place, name in enumerate(rows)
        ],
        legend=[
            {"tone": tone, **entry} for tone, entry in enumerate(_legend([(name, "") for name, _ in series], left, 40))
        ],
    )


def standalone(chart: Markup) -> str:
    """A chart as a separate file, with the colours of the page in light and dark mode."""
    style = f"{stylesheet('colours.css')}svg.chart {{ background: var(--paper); }}\n{stylesheet('charts.css')}"
    opening, rest = chart.split(">", 1)
    return f'{opening} xmlns="http://www.w3.org/2000/svg"><style>{style}</style>{rest}\n'


def _pixels(place: float) -> float:
    """Rounds to a tenth of a pixel."""
    return round(place, 1)


def _css(series: Series) -> str:
    return f"line tone-{series.tone}" + (" faint" if series.faint else "")


def _line(series: Series, x_axis: Axis, y_axis: Axis) -> dict[str, Any]:
    return {"css": _css(series), "places": [(_pixels(x_axis(x)), _pixels(y_axis(y))) for x, y in series.points]}


def _legend(entries: Sequence[tuple[str, str]], x: float, gap: float) -> list[dict[str, Any]]:
    """Positions of the entries (name, CSS classes), from left to right starting at `x`."""
    placed = []
    for name, css in entries:
        placed.append({"name": name, "css": css, "x": _pixels(x)})
        x += gap + LETTER * len(name)
    return placed


def _usable(points: Sequence[tuple[float, float]], log: bool) -> list[tuple[float, float]]:
    good = [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not log)]
    stride = -(-len(good) // MOST_POINTS)
    return good if stride <= 1 else [*good[:-1:stride], good[-1]]


def _padded(values: Sequence[float], log: bool) -> tuple[float, float]:
    """The range of the values with some margin, never empty."""
    forward: Callable[[float], float] = math.log if log else float
    low, high = forward(min(values)), forward(max(values))
    margin = 0.06 * (high - low) or 0.1 * (abs(high) or 1.0)
    low, high = low - margin, high + margin
    return (math.exp(low), math.exp(high)) if log else (low, high)

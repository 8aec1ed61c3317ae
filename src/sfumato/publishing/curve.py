"""A chart of a training's losses as a PNG: pages of the hub show no SVG."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from sfumato.report.curves import LogLines, points
from sfumato.report.format import value
from sfumato.report.svg import linear_ticks

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 60, 16, 28, 30
INK, RULE, LINE = (90, 90, 90), (225, 225, 225), (160, 74, 36)
LETTERS = 13
MOST_POINTS = 400


def loss_curve(lines: LogLines, names: Sequence[str], title: str) -> Image.Image | None:
    """The first of the named values that the log has, over the steps; None for a log with fewer than two values."""
    found = next((known for name in names if len(known := points(lines, name)) > 1), None)
    if found is None:
        return None
    shown = found[:: max(1, len(found) // MOST_POINTS)]
    low, high = min(y for _, y in shown), max(y for _, y in shown)
    span = (high - low) or abs(high) or 1.0
    first, last = shown[0][0], max(shown[-1][0], shown[0][0] + 1)
    image = Image.new("RGB", (WIDTH, HEIGHT), (255, 255, 255))
    canvas = ImageDraw.Draw(image)

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (y - low) / span * (HEIGHT - TOP - BOTTOM)

    canvas.text((LEFT, 6), title, fill=INK, font_size=LETTERS)
    for tick in linear_ticks(low, high):
        height = at(first, tick)[1]
        canvas.line([(LEFT, height), (WIDTH - RIGHT, height)], fill=RULE)
        canvas.text((LEFT - 6, height), value(float(tick)), fill=INK, anchor="rm", font_size=LETTERS)
    for tick in linear_ticks(first, last):
        canvas.text((at(tick, low)[0], HEIGHT - BOTTOM + 6), f"{tick:,.0f}", fill=INK, anchor="ma", font_size=LETTERS)
    canvas.line([at(x, y) for x, y in shown], fill=LINE, width=2)
    return image

"""Formats numbers for reading."""

from collections.abc import Sequence
from typing import Any


def percent(share: float | None) -> str:
    """0.934 -> 93.4 %; a dash for None."""
    return "–" if share is None else f"{share:.1%}".replace("%", " %")


def duration(seconds: float) -> str:
    """48 s, 11 min 52 s, 3 h 05 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"


def short_duration(seconds: float) -> str:
    """Seconds as one short number: 48 s, 11.9 min, 3.1 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def rate(per_second: float) -> str:
    """A rate with three digits."""
    return f"{per_second:.0f}" if per_second >= 100 else f"{per_second:.3g}"


def millions(parameters: int) -> str:
    """A count of parameters."""
    return f"{parameters / 1e6:.2f} M"


def shape(sizes: Sequence[int]) -> str:
    """(4, 16, 16) -> 4 × 16 × 16."""
    return " × ".join(str(size) for size in sizes)


def value(content: Any) -> str:
    """A number with four digits, a list of them, or any other value as text; a dash for None."""
    if isinstance(content, float):
        return f"{content:.4g}"
    if isinstance(content, list | tuple):
        return ", ".join(value(one) for one in content)
    return "–" if content is None else str(content)

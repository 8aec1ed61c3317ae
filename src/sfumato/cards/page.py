"""The card as a page: one self-contained HTML file with embedded images."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sfumato.cards.card import Card, Metric, flat
from sfumato.cards.measure import Closest
from sfumato.cards.readings import readings
from sfumato.report.format import value
from sfumato.report.templating import render

TILES = 4
SIDE_BY_SIDE = 8
"""Samples that are shown at each number of steps."""
COMPARABLE = "Protocol: only cards with equal protocols are compared"


def page(
    card: Card,
    samples: Tensor | None = None,
    captions: Sequence[str] = (),
    closest: Sequence[Closest] = (),
    at_steps: Mapping[int, Tensor] | None = None,
) -> str:
    """The whole page. `samples`: uint8 (N, 3, H, W), the first ones; of an autoencoder originals and outputs.

    at_steps: the samples of equal seeds at several numbers of steps, the card's own among them.
    """
    shown_captions = [] if samples is None else [*captions, *[""] * (len(samples) - len(captions))]
    return render(
        "card.html",
        card=card,
        samples=samples,
        captions=shown_captions,
        closest=closest,
        at_steps={steps: images[:SIDE_BY_SIDE] for steps, images in (at_steps or {}).items()},
        by_steps=_by_steps(card),
        tiles=[
            (shown(metric.value), name + _direction(metric), "") for name, metric in list(card.metrics.items())[:TILES]
        ],
        numbers=[_number_row(name, metric) for name, metric in card.metrics.items()],
        readings=[
            [name, shown(card.metrics[name].value), reading.usual, reading.says]
            for name, reading in readings(card.metrics)
        ],
        details=_facts(card.details),
        protocol=_protocol(card),
    )


def _by_steps(card: Card) -> list[list[str]]:
    """A row for each number of steps, a column for each metric."""
    if not card.at_steps:
        return []
    measured = {str(card.sampling.get("steps")): card.metrics, **card.at_steps}
    return [
        [steps, *(shown(metrics[name].value) for name in card.metrics)]
        for steps, metrics in sorted(measured.items(), key=lambda one: int(one[0]))
    ]


def shown(number: float) -> str:
    """A number with four decimals below 1, else two."""
    return f"{number:.4f}" if abs(number) < 1 else f"{number:.2f}"


def with_spread(metric: Metric) -> str:
    """The value, its spread and its interval."""
    text = shown(metric.value)
    if metric.std is not None:
        text += f" ± {shown(metric.std)}"
    if metric.low is not None and metric.high is not None:
        text += f" [{shown(metric.low)}, {shown(metric.high)}]"
    return text


def _direction(metric: Metric) -> str:
    return f" ({metric.better} is better)" if metric.better else ""


def _number_row(name: str, metric: Metric) -> list[str]:
    interval = "–" if metric.low is None or metric.high is None else f"{shown(metric.low)} to {shown(metric.high)}"
    spread = "–" if metric.std is None else shown(metric.std)
    return [name, shown(metric.value), spread, interval, metric.better or "–"]


def _facts(facts: Mapping[str, Any] | None) -> list[list[str]]:
    return [[key.replace("_", " "), value(given)] for key, given in flat(dict(facts or {})).items()]


def _protocol(card: Card) -> list[tuple[str, list[list[str]]]]:
    """(title, rows) of what another card must share, and of what may explain a difference."""
    groups = [
        ("Subject", _facts(card.subject)),
        ("Sampling", _facts(card.sampling)),
        ("Data", _facts(card.data)),
        (COMPARABLE, _facts(card.protocol)),
        ("Metrics", [_metric_row(name, metric) for name, metric in card.metrics.items() if metric.protocol]),
    ]
    return [(title, rows) for title, rows in groups if rows]


def _metric_row(name: str, metric: Metric) -> list[str]:
    return [name, "; ".join(f"{key} {value(given)}" for key, given in metric.protocol.items())]

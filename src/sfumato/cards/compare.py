"""Compares two cards: first the differences in how they were made, then the numbers. Refuses incompatible protocols."""

from dataclasses import dataclass
from typing import Any

from sfumato.cards.card import Card, Metric, flat
from sfumato.errors import UserError


@dataclass(frozen=True)
class Difference:
    """A field with its two values; None if a card lacks it."""

    field: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Row:
    """One metric of both cards. `better`: 0 or 1 for the better card, None if they tie or the metric has no direction.

    `clear`: whether the two intervals do not overlap; None without intervals.
    """

    name: str
    first: Metric
    second: Metric
    better: int | None
    clear: bool | None


@dataclass(frozen=True)
class Comparison:
    """`settings`: allowed differences, such as samplers; `rows`: the metrics that both cards have."""

    settings: tuple[Difference, ...]
    rows: tuple[Row, ...]


def compare(first: Card, second: Card) -> Comparison:
    """Compares both cards' metrics. Raises UserError naming every field of the protocol that differs."""
    if first.kind != second.kind:
        raise UserError(f"the cards cannot be compared: one measures {first.kind}, the other {second.kind}")
    names = [name for name in first.metrics if name in second.metrics]
    protocol = differences(first.protocol, second.protocol)
    for name in names:
        protocol += differences({name: first.metrics[name].protocol}, {name: second.metrics[name].protocol})
    if protocol:
        mismatches = "; ".join(
            f"{d.field} is {_shown(d.first)} in one and {_shown(d.second)} in the other" for d in protocol
        )
        raise UserError(f"the cards cannot be compared, their protocols differ: {mismatches}")
    if not names:
        raise UserError(
            f"the cards cannot be compared, they share no metric: {', '.join(first.metrics) or 'none'} "
            f"and {', '.join(second.metrics) or 'none'}"
        )
    settings = [*differences(first.subject, second.subject), *differences(first.sampling, second.sampling)]
    return Comparison(tuple(settings), tuple(_row(name, first.metrics[name], second.metrics[name]) for name in names))


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[Difference]:
    """The fields, by dotted name, whose values differ."""
    a, b = flat(first), flat(second)
    return [Difference(key, a.get(key), b.get(key)) for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]


def _row(name: str, first: Metric, second: Metric) -> Row:
    ahead = None
    if first.better is not None and first.value != second.value:
        ahead = 0 if (first.value < second.value) == (first.better == "lower") else 1
    bounds = (first.low, first.high, second.low, second.high)
    clear = None
    if first.low is not None and None not in bounds:
        assert first.high is not None
        assert second.low is not None
        assert second.high is not None
        clear = first.high < second.low or second.high < first.low
    return Row(name, first, second, ahead, clear)


def _shown(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 40 else text[:18] + "…" + text[-18:]

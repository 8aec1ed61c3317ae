"""The card as a page: one HTML file that carries its pictures and asks no other file for anything."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sfumato.cards.card import Card, Metric, flat
from sfumato.cards.measure import Closest
from sfumato.report.html import Markup, element, figure, image, join, table
from sfumato.report.sections import duration, section
from sfumato.report.style import CSS

TILES = 4
OWN_CSS = """
.grid { display: grid; grid-template-columns: repeat(8, 1fr); gap: 6px; }
.grid img, .copy img { width: 100%; }
.copies { display: grid; grid-template-columns: 1fr 1fr; gap: 20px 48px; }
.copy { display: grid; grid-template-columns: repeat(4, 1fr); gap: 6px; align-items: start; }
.copy img:first-child { outline: 3px solid var(--tone-0); }
.copy p { grid-column: 1 / -1; margin: 0; font-size: 12px; color: var(--soft); }
.warning { color: var(--bad); background: var(--bad-panel); padding: 8px 12px; border-radius: 4px; max-width: none; }
table.facts td { white-space: normal; overflow-wrap: anywhere; }
"""


def page(
    card: Card, samples: Tensor | None = None, captions: Sequence[str] = (), closest: Sequence[Closest] = ()
) -> str:
    """The whole page. `samples`: uint8 (N, 3, H, W), the first ones; for autoencoders originals beside outputs."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{card.subject.get('path', 'card')}: {_title(card)}"),
        element("style", Markup(CSS + OWN_CSS)),
    )
    parts = [_numbers(card)]
    if samples is not None and len(samples):
        parts.append(_samples(card, samples, captions))
    if card.memorisation is not None:
        parts.append(_memorisation(card.memorisation, closest))
    if card.details:
        parts.append(_facts("Further numbers", card.details))
    if card.labels:
        parts.append(_labels(card.labels))
    parts.append(_protocol(card))
    body = element("body", _opening(card), element("main", *parts), _closing(card))
    return "<!doctype html>\n" + element("html", head, body, lang="en") + "\n"


def _title(card: Card) -> str:
    return "autoencoder" if card.kind == "autoencoder" else "samples"


def shown(value: float) -> str:
    """A number with as many digits as it deserves."""
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"


def with_spread(metric: Metric) -> str:
    """The value, its spread and its interval."""
    text = shown(metric.value)
    if metric.std is not None:
        text += f" ± {shown(metric.std)}"
    if metric.low is not None and metric.high is not None:
        text += f" [{shown(metric.low)}, {shown(metric.high)}]"
    return text


def _opening(card: Card) -> Markup:
    first = list(card.metrics.items())[:TILES]
    tiles = [
        element(
            "div", element("dd", shown(metric.value), class_="big"), element("dt", join([name, _direction(metric)]))
        )
        for name, metric in first
    ]
    warnings = [element("p", warning, class_="warning") for warning in card.warnings]
    what = "Samples" if card.kind == "samples" else "Reconstructions"
    lead = f"{what} of {card.subject.get('path')} against {card.data.get('path')}."
    return element(
        "header",
        element("p", f"sfumato {card.version} · card · {card.created}", class_="eyebrow"),
        element("h1", f"{what}, measured"),
        element("p", lead, class_="lead"),
        *warnings,
        element("dl", *tiles, class_="headline"),
    )


def _direction(metric: Metric) -> str:
    return f" ({metric.better} is better)" if metric.better else ""


def _numbers(card: Card) -> Markup:
    rows = []
    for name, metric in card.metrics.items():
        interval = "–" if metric.low is None or metric.high is None else f"{shown(metric.low)} to {shown(metric.high)}"
        spread = "–" if metric.std is None else shown(metric.std)
        rows.append([name, shown(metric.value), spread, interval, metric.better or "–"])
    note = (
        "The spread is the standard deviation between subsets, splits or pictures; the interval holds 95 % of what "
        "other draws of as many pictures would give."
    )
    return section(
        "Numbers",
        "",
        table(["", "value", "spread", "interval", "better"], rows),
        element("p", note, class_="note", style="margin-top:14px"),
    )


def _samples(card: Card, samples: Tensor, captions: Sequence[str]) -> Markup:
    said = [*captions, *[""] * (len(samples) - len(captions))]
    tiles = [element("span", image(one, text or "sample"), title=text) for one, text in zip(samples, said, strict=True)]
    first = "Original and reconstruction, in turn" if card.kind == "autoencoder" else "The first ones, not chosen"
    caption = first + ("; point at one to read its caption." if any(captions) else ".")
    return section("Pictures", "", figure(element("div", *tiles, class_="grid"), caption))


def _memorisation(figures: Mapping[str, float], closest: Sequence[Closest]) -> Markup:
    lead = (
        f"Of each sample, the nearest of {figures['searched']:.0f} pictures of the data in feature space. "
        f"{figures['authenticity']:.1%} of the samples are farther from it than it is from its own nearest relative; "
        "fresh pictures of the same kind are so in about half of the cases or more, copies never. "
        f"{figures['copies']:.1%} come within half of that distance: look at them. "
        "This says something where the data is what the model was trained on."
    )
    rows = [
        element(
            "div",
            image(one.sample, "sample"),
            *(image(picture, "picture of the data") for picture in one.training),
            element("p", f"ratio {one.ratio:.2f}; distances {', '.join(f'{d:.2f}' for d in one.distances)}"),
            class_="copy",
        )
        for one in closest
    ]
    note = "The samples that come closest, each with its three nearest pictures. Ratio: its distance to the first over "
    note += "that one's distance to its own nearest relative."
    return section(
        "Copies?",
        "Nearest neighbours in feature space; authenticity: Alaa et al. 2022",
        element("p", lead),
        figure(element("div", *rows, class_="copies"), note) if rows else Markup(),
    )


def _labels(labels: Mapping[str, int]) -> Markup:
    rows = [[name, str(count)] for name, count in labels.items()]
    return section("Label balance", "", table(["class", "pictures"], rows, css="plain"))


def _facts(title: str, facts: Mapping[str, Any]) -> Markup:
    rows = [[key.replace("_", " "), in_words(value)] for key, value in flat(dict(facts)).items()]
    return section(title, "", table(["", ""], rows, css="facts"))


def in_words(value: Any) -> str:
    """A number with four digits, a list of them, or what else it is."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(in_words(one) for one in value)
    return "–" if value is None else str(value)


def _protocol(card: Card) -> Markup:
    """Everything that another card must share, and everything that explains a difference."""
    groups: list[tuple[str, Mapping[str, Any]]] = [
        ("Subject", card.subject),
        ("How its pictures were made", card.drawing),
        ("Data", card.data),
        ("Protocol: cards are compared only where it is equal", card.protocol),
    ]
    networks: dict[str, Mapping[str, Any]] = {}
    for name, metric in card.metrics.items():
        if metric.protocol:
            networks[name] = metric.protocol
    tables = []
    for title, facts in groups:
        if facts:
            rows = [[key.replace("_", " "), in_words(value)] for key, value in flat(dict(facts)).items()]
            tables += [element("h3", title), table(["", ""], rows, css="facts")]
    rows = [[name, "; ".join(f"{k} {in_words(v)}" for k, v in protocol.items())] for name, protocol in networks.items()]
    if rows:
        tables += [element("h3", "Metrics"), table(["", ""], rows, css="facts")]
    return section("Protocol", "", *tables)


def _closing(card: Card) -> Markup:
    phases = ", ".join(f"{name} {duration(seconds)}" for name, seconds in card.seconds.items())
    machine = ", ".join(str(value) for value in card.machine.values())
    return element(
        "footer",
        element("p", f"Time: {phases}. Machine: {machine}."),
        element("p", f"Every number of this page is in card.json beside it. Made by sfumato {card.version}."),
    )

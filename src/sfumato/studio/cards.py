"""Evaluation cards below the studio's folders, with the images of their pages."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from sfumato.cards.card import CARD_FILE, PAGE_FILE, load_card
from sfumato.errors import UserError
from sfumato.studio.places import INSIDE_RUNS, Places, is_large

MOST_CARDS = 200
SHOWN = 16
MOST_PAGE_BYTES = 20_000_000
EMBEDDED = "data:image/png;base64,"


def find_cards(places: Places) -> list[dict[str, Any]]:
    """The cards as JSON, newest first; damaged ones are left out."""
    found: list[Path] = []

    def enter(folder: Path, files: list[str], inner: list[str]) -> bool:
        if CARD_FILE in files:
            found.append(folder)
        return folder.name not in INSIDE_RUNS and not is_large(files, inner)

    for _ in places.folders_in(enter):
        pass
    cards = [card for folder in found[:MOST_CARDS] if (card := _described(folder, places)) is not None]
    return sorted(cards, key=lambda card: str(card["created"]), reverse=True)


def _described(folder: Path, places: Places) -> dict[str, Any] | None:
    try:
        card = load_card(folder)
    except UserError:
        return None
    return {
        "path": str(folder),
        "name": places.name_of(folder),
        "page": str(folder / PAGE_FILE) if (folder / PAGE_FILE).is_file() else None,
        **card.model_dump(mode="json", include={"kind", "created", "subject", "data", "protocol", "sampling"}),
        "metrics": {name: metric.model_dump(mode="json") for name, metric in card.metrics.items()},
        "memorisation": card.memorisation,
        "warnings": list(card.warnings),
    }


def images_of(folder: Path) -> list[str]:
    """The first images of a card's page, as data URIs."""
    page = folder / PAGE_FILE
    try:
        if page.stat().st_size > MOST_PAGE_BYTES:
            return []
        text = page.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return []
    reader = _Images()
    reader.feed(text)
    return reader.found[:SHOWN]


class _Images(HTMLParser):
    """Collects the embedded images of the grid."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "div" and (self._depth or given.get("class") == "grid"):
            self._depth += 1
        source = given.get("src") or ""
        if tag == "img" and self._depth and source.startswith(EMBEDDED):
            self.found.append(source)

    def handle_endtag(self, tag: str) -> None:
        if tag == "div" and self._depth:
            self._depth -= 1

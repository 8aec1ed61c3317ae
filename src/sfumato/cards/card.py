"""A card: metrics with everything that they depend on. Written as card.json."""

import math
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from sfumato import __version__
from sfumato.checkpoint import write_text
from sfumato.config import parse
from sfumato.documents import read_json_object
from sfumato.errors import UserError
from sfumato.plain_json import to_json
from sfumato.report.machine import describe
from sfumato.schema import Schema

CARD_FILE = "card.json"
PAGE_FILE = "index.html"


class Metric(Schema):
    """One number. `std` is its spread between subsets or splits, `low` and `high` its 95 % interval if requested."""

    value: float
    better: Literal["lower", "higher"] | None = None
    std: float | None = None
    low: float | None = None
    high: float | None = None
    protocol: dict[str, Any] = Field(default_factory=dict)
    """Settings of this number besides the card's protocol: network, its hash, resize filter, neighbours, ..."""

    def __init__(self, **values: Any) -> None:
        """Raises UserError for a number that is not finite: no card is written with it."""
        for name in ("value", "std", "low", "high"):
            number = values.get(name)
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(
                    f"a metric's {name} is {number:g}, not a finite number: the values contain NaN or infinity, or "
                    "there are too few of them"
                )
        super().__init__(**values)


class Card(Schema):
    """The card that `sfumato evaluate` and `sfumato evaluate-autoencoder` write.

    `protocol`: what must be equal for two cards to be compared, like a metric's own protocol for that metric;
    `sampling`: how the subject generated its images, which may differ; `subject` and `data`: what was measured against
    what.
    """

    format: Literal[1] = 1
    kind: Literal["samples", "autoencoder"]
    version: str
    created: str
    subject: dict[str, Any]
    data: dict[str, Any]
    protocol: dict[str, Any]
    sampling: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Metric]
    at_steps: dict[str, dict[str, Metric]] = Field(default_factory=dict)
    """The metrics at further numbers of steps, which are not compared."""
    labels: dict[str, int] | None = None
    """Images of each class."""
    memorisation: dict[str, float] | None = None
    details: dict[str, Any] = Field(default_factory=dict)
    """Further numbers that are not compared, such as the latent's channels."""
    warnings: tuple[str, ...] = ()
    seconds: dict[str, float] = Field(default_factory=dict)
    """Wall time by phase."""
    machine: dict[str, Any] = Field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Writes card.json into the folder, atomically."""
        write_text(folder / CARD_FILE, to_json(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")


def new_card(kind: Literal["samples", "autoencoder"], device: torch.device, **fields: Any) -> Card:
    """A card with the current time, machine and version; `device` is where the subject computes."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return Card(kind=kind, version=__version__, created=created, machine=asdict(describe(device)), **fields)


def load_card(path: Path) -> Card:
    """The card in a folder or file. Raises UserError if there is none or the file is not a card."""
    file = path / CARD_FILE if path.is_dir() else path
    if not file.exists():
        raise UserError(f"{str(path)!r} contains no {CARD_FILE}: give the folder that sfumato evaluate wrote")
    try:
        raw = read_json_object(file)
    except UserError as error:
        raise UserError(f"{str(file)!r} cannot be read as a card: {error}") from None
    if "protocol" not in raw:
        raise UserError(f"{str(file)!r} is not a card: give the folder that sfumato evaluate wrote")
    return parse(raw, Card, str(file))


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested mappings to dotted keys."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out

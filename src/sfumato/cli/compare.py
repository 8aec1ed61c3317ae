"""`sfumato compare`."""

from dataclasses import dataclass
from pathlib import Path

import typer

from sfumato.cli.flags import REQUIRED, command, flag, like


@dataclass(frozen=True, kw_only=True)
class FirstCard:
    """One card."""

    first: Path = flag(
        REQUIRED, "what to sample", "A folder that sfumato evaluate wrote.", metavar="CARD", argument=True
    )


@dataclass(frozen=True, kw_only=True)
class CompareFlags(FirstCard):
    """The options of `sfumato compare`."""

    second: Path = like(FirstCard, "first", metavar="CARD", argument=True)


@command(CompareFlags)
def compare(flags: CompareFlags) -> None:
    """Compare two evaluation cards side by side.

    Differences in subject and settings come first. Refuses cards whose protocols differ, and names the fields.
    """
    from sfumato.cards.card import load_card
    from sfumato.cards.compare import compare as compared
    from sfumato.cards.page import with_spread
    from sfumato.cli.tables import show

    found = compared(load_card(flags.first), load_card(flags.second))
    names = [str(flags.first), str(flags.second)]
    if found.settings:
        rows = [[d.field, _text(d.first), _text(d.second)] for d in found.settings]
        show(["differs", *names], rows)
        typer.echo("")
    rows = []
    for row in found.rows:
        ahead = "" if row.better is None else ("first", "second")[row.better]
        if row.better is not None and row.clear is False:
            ahead += ", within the intervals"
        rows.append([row.name, with_spread(row.first), with_spread(row.second), ahead])
    show(["metric", *names, "better"], rows)


def _text(value: object) -> str:
    return "-" if value is None else str(value)

"""`sfumato compare`."""

from pathlib import Path
from typing import Annotated

import typer

CardArgument = Annotated[Path, typer.Argument(metavar="CARD", help="A folder that sfumato evaluate wrote.")]


def compare(first: CardArgument, second: CardArgument) -> None:
    """Print two cards of evaluate side by side.

    Differences in how they were made come first. Refuses cards whose protocols differ, and names the fields.
    """
    from sfumato.cards.card import load_card
    from sfumato.cards.compare import compare as compared
    from sfumato.cards.page import with_spread
    from sfumato.cli.tables import show

    found = compared(load_card(first), load_card(second))
    names = [str(first), str(second)]
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

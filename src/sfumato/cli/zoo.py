"""`sfumato zoo`."""

from typing import Annotated

import typer


def zoo(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Print this configuration, to change and to train from.")
    ] = None,
) -> None:
    """List the shipped configurations, or print one of them."""
    from sfumato.cli.tables import show
    from sfumato.config import ZOO_PREFIX, zoo_names, zoo_text

    if name is not None:
        typer.echo(zoo_text(name.removeprefix(ZOO_PREFIX)), nl=False)
        return
    show(["configuration", "what"], [[ZOO_PREFIX + each, _description(zoo_text(each))] for each in zoo_names()])


def _description(text: str) -> str:
    """The first comment line of a YAML text."""
    return next((line.lstrip("# ").rstrip() for line in text.splitlines() if line.startswith("#")), "")

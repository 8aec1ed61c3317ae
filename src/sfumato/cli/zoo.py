"""`sfumato zoo`."""

from dataclasses import dataclass

import typer

from sfumato.cli.flags import command, flag

PAPER = "ldm/"


@dataclass(frozen=True, kw_only=True)
class ZooFlags:
    """The options of `sfumato zoo`."""

    name: str | None = flag(
        None,
        "output",
        "Print this configuration, to edit and train from, or the card of this model.",
        metavar="[NAME]",
        argument=True,
    )


@command(ZooFlags)
def zoo(flags: ZooFlags) -> None:
    """List the shipped models and configurations.

    With a name, print that configuration, as a start for your own.
    """
    from sfumato.cli.tables import show
    from sfumato.config import ZOO_PREFIX, zoo_names, zoo_text
    from sfumato.shipped import CARD, WEIGHTS, description, shipped_models

    name = None if flags.name is None else flags.name.removeprefix(ZOO_PREFIX)
    if name is not None and name in shipped_models():
        typer.echo((WEIGHTS / name / CARD).read_text(encoding="utf-8"), nl=False)
        return
    if name is not None:
        typer.echo(zoo_text(name), nl=False)
        return
    own = [each for each in zoo_names() if not each.startswith(PAPER)]
    show(["model", "what"], [[ZOO_PREFIX + each, description(each)] for each in shipped_models()])
    typer.echo("\nConfigurations to train from:")
    show(["configuration", "what"], [[ZOO_PREFIX + each, _description(zoo_text(each))] for each in own])
    typer.echo("\nThe paper's models, as training configurations; `sfumato import` opens the published weights.")
    show(["configuration", "task", "f", "latent", "parameters", "paper's score", "needs"], _papers())


def _papers() -> list[list[str]]:
    from sfumato.interop.published import PUBLISHED

    rows = []
    for row in PUBLISHED:
        on = "" if row.first_stage is None else f", on {row.first_stage}"
        size = f"{row.parameters:.1f} M"
        rows.append([row.config, row.task, str(row.factor), row.regulariser, size, row.score, row.needs + on])
    return rows


def _description(text: str) -> str:
    """The first comment line of a YAML text."""
    return next((line.lstrip("# ").rstrip() for line in text.splitlines() if line.startswith("#")), "")

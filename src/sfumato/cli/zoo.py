"""`sfumato zoo`: the shipped configurations and what each needs."""

from typing import Annotated

import typer


def zoo(
    name: Annotated[str | None, typer.Argument(help="Print one configuration, such as ldm/kl-f8.")] = None,
) -> None:
    """List the shipped configurations: the paper's models, and small ones to start with."""
    from sfumato.config import ZOO_PREFIX, read_source, zoo_names
    from sfumato.interop.published import PUBLISHED

    if name is not None:
        typer.echo(_text(name.removeprefix(ZOO_PREFIX)))
        return
    facts = {f"ldm/{row.name}": row for row in PUBLISHED}
    typer.echo("The paper's models. Train one with `sfumato train autoencoder|diffusion CONFIG --data DIR --out RUN`;")
    typer.echo("`sfumato import` opens the published weights. Scores are those of the authors' repository.\n")
    rows: list[tuple[str, ...]] = [("CONFIG", "TASK", "F", "LATENT", "PARAMETERS", "PUBLISHED SCORE", "NEEDS")]
    for row in PUBLISHED:
        on = "" if row.first_stage is None else f", on {row.first_stage}"
        millions = f"{row.parameters:.1f} M"
        rows.append((row.config, row.task, str(row.factor), row.regulariser, millions, row.score, row.needs + on))
    _print(rows)
    others = [known for known in zoo_names() if known not in facts]
    if others:
        typer.echo("\nSmall ones that train on a laptop:\n")
        for known in others:
            stage = "autoencoder" if "model" in read_source(f"{ZOO_PREFIX}{known}") else "diffusion"
            typer.echo(f"  {ZOO_PREFIX}{known}  ({stage})")


def _text(name: str) -> str:
    from importlib import resources

    from sfumato.config import ZOO_PREFIX, read_source

    read_source(f"{ZOO_PREFIX}{name}")  # says which names there are
    return (resources.files("sfumato") / "zoo" / f"{name}.yaml").read_text(encoding="utf-8").rstrip()


def _print(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

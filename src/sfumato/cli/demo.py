"""`sfumato demo`: both stages on the built-in toy world, samples, scores, and a page that shows it all."""

from pathlib import Path
from typing import Annotated

import typer

MOST_MINUTES = 100_000


def demo(
    out: Annotated[Path, typer.Option("--out", help="The demo's folder; an interrupted demo there is resumed.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="A shortened run: shows that everything works, not how well.")
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", help="About how long it may take; slow machines train fewer steps. [12]"),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.", metavar="DEVICE")] = "auto",
) -> None:
    """Go through the whole paper on a small scale.

    Trains both stages on the toy world, draws, scores, and writes OUT/report.html.
    """
    from dataclasses import replace

    from sfumato.cli.demo_run import FULL, QUICK, run_demo
    from sfumato.cli.options import within

    if minutes is not None:
        within("--minutes", minutes, 1, MOST_MINUTES, "about how many minutes it may take")
    plan = QUICK if quick else FULL
    run_demo(plan if minutes is None else replace(plan, minutes=minutes), out, device)

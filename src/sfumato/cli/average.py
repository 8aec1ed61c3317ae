"""`sfumato average`: weights averaged over another width of the training, from a run's snapshots."""

from pathlib import Path
from typing import Annotated

import typer


def average(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run that was trained with train.power_averages.")],
    width: Annotated[
        float, typer.Option("--width", help="Standard deviation of the average as a share of the training, as 0.08.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The model folder to write.")],
    step: Annotated[
        int | None, typer.Option("--step", help="Where the average ends, a snapshot's step [default: the last].")
    ] = None,
) -> None:
    """Choose the weights' average after training."""
    from sfumato.cli.options import new_model_folder
    from sfumato.training import posthoc

    with new_model_folder(out):
        made = posthoc.average(run, width, step)
        made.model.save(out)
    typer.echo(
        f"width {width:g} at step {made.step}, from {made.snapshots} snapshots (their sum misses the profile by "
        f"{made.miss:.1%}): {out}"
    )

"""`sfumato ema`: weights averaged over another width of the training, from a run's snapshots."""

from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.options import OverwriteOption


def ema(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run that was trained with train.power_averages.")],
    width: Annotated[
        float, typer.Option("--width", help="Standard deviation of the average as a share of the training, as 0.08.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The model folder to write.")],
    step: Annotated[
        int | None, typer.Option("--step", help="Where the average ends, a snapshot's step [default: the last].")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Choose the weights' average after training."""
    from sfumato.cli.options import MOST_STEPS, at_least, within
    from sfumato.outputs import out_is_free, written
    from sfumato.training.averages import posthoc

    if step is not None:
        at_least("--step", step, 0, MOST_STEPS)
    within("--width", width, 0, 1, "a share of the training such as 0.08")
    place = out_is_free(out, (run,), overwrite)
    with written(place):
        made = posthoc.average(run, width, step)
        made.model.save(place)
    typer.echo(
        f"width {width:g} at step {made.step}, from {made.snapshots} snapshots (their sum misses the profile by "
        f"{made.miss:.1%}): {out}"
    )

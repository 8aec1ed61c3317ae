"""`sfumato ema`: weights averaged over another width of the training, from a run's snapshots."""

from dataclasses import dataclass
from pathlib import Path

import typer

from sfumato.cli.flags import REQUIRED, command, flag
from sfumato.cli.machine import Overwriting
from sfumato.limits import MOST_OTHERWISE
from sfumato.pipeline.options import Range


@dataclass(frozen=True, kw_only=True)
class EmaFlags(Overwriting):
    """The options of `sfumato ema`."""

    run: Path = flag(
        REQUIRED, "what to sample", "A run that was trained with train.power_averages.", metavar="RUN", argument=True
    )
    width: float = flag(
        REQUIRED,
        "machine",
        "Width of the average: its standard deviation as a fraction of the training, such as 0.08.",
        Range(0.0, 1.0),
    )
    out: Path = flag(REQUIRED, "output", "The model folder to write.")
    step: int | None = flag(
        None,
        "machine",
        "The step of the snapshot at which the average ends [default: the last].",
        Range(0, MOST_OTHERWISE, whole=True),
    )


@command(EmaFlags)
def ema(flags: EmaFlags) -> None:
    """Compute a post-hoc EMA from a run's snapshots."""
    from sfumato.outputs import out_is_free, written
    from sfumato.training.averages import posthoc

    place = out_is_free(flags.out, (flags.run,), flags.overwrite)
    with written(place):
        made = posthoc.average(flags.run, flags.width, flags.step)
        made.model.save(place)
    typer.echo(
        f"width {flags.width:g} at step {made.step}, from {made.snapshots} snapshots (error of the profile "
        f"{made.miss:.1%}): {flags.out}"
    )

"""The options of `sfumato fit`."""

from dataclasses import dataclass
from pathlib import Path

from sfumato.cli.flags import REQUIRED, flag
from sfumato.pipeline.options import Range

MINUTES = 60.0
MOST_MINUTES = 100_000.0
LEAST_MINUTES = 0.5


@dataclass(frozen=True, kw_only=True)
class FitFlags:
    """The options of `sfumato fit`."""

    folder: Path = flag(
        REQUIRED,
        "what to sample",
        "The folder of images, or of shards, tables or databases.",
        metavar="DIR",
        argument=True,
    )
    settings: list[str] | None = flag(
        None,
        "what to sample",
        "Settings of both trainings, such as data.size=64; autoencoder.… or diffusion.… for one of them.",
        metavar="[a.b=c]...",
        argument=True,
    )
    out: Path | None = flag(None, "output", "The folder of the result; an interrupted fit there is resumed.")
    minutes: float | None = flag(
        None,
        "machine",
        f"About how long it may take, the evaluation included. [{MINUTES:g}]",
        Range(LEAST_MINUTES, MOST_MINUTES),
    )
    hours: float | None = flag(None, "machine", "The same in hours.", Range(LEAST_MINUTES / 60, MOST_MINUTES / 60))
    dry_run: bool = flag(False, "output", "Print the plan, and train nothing.", names=("--dry-run",))
    plan: Path | None = flag(
        None,
        "output",
        "Write the plan as configurations of `sfumato train`: FILE-autoencoder.yaml and FILE-diffusion.yaml.",
        metavar="FILE",
    )
    device: str = flag("auto", "machine", "auto, cpu or cuda.", metavar="DEVICE")
    threads: int | None = flag(
        None,
        "machine",
        "Threads on the CPU. [measured: one per core, or a single one if another program occupies a core]",
        Range(1, 4096),
    )

    @property
    def seconds(self) -> float | None:
        """The time that was asked for. Raises UserError where it is given twice."""
        from sfumato.errors import UserError

        if self.minutes is not None and self.hours is not None:
            raise UserError("--minutes and --hours are both given: give one of them")
        if self.hours is not None:
            return 3600 * self.hours
        return None if self.minutes is None else 60 * self.minutes

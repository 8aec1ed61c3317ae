"""`sfumato demo`: both stages on the built-in toy world, samples, scores, and a page that shows it all."""

from dataclasses import dataclass
from pathlib import Path

from sfumato.cli.flags import REQUIRED, command, flag
from sfumato.cli.schema_flags import schema_flag
from sfumato.pipeline.options import Range


@dataclass(frozen=True, kw_only=True)
class DemoFlags:
    """The options of `sfumato demo`."""

    out: Path = flag(REQUIRED, "output", "The demo's folder; an interrupted demo there is resumed.")
    seed: int = schema_flag(
        "training.settings:LoopSettings",
        "seed",
        "what to sample",
        help="Seed of both trainings; the scenes, prompts and seeds of samples stay the same.",
    )
    quick: bool = flag(
        False, "machine", "A short run to check that everything works; its samples are poor.", names=("--quick",)
    )
    minutes: float | None = flag(
        None,
        "machine",
        "About how long it may take; slow machines train fewer steps. [12]",
        Range(1.0, 100_000.0),
    )
    device: str = flag("auto", "machine", "auto, cpu or cuda.", metavar="DEVICE")


@command(DemoFlags)
def demo(flags: DemoFlags) -> None:
    """Go through the whole paper on a small scale.

    Trains both stages on the toy world, samples, scores, and writes OUT/report.html.
    """
    from dataclasses import replace

    from sfumato.cli.demo_run import FULL, QUICK, run_demo

    plan = replace(QUICK if flags.quick else FULL, seed=flags.seed)
    run_demo(plan if flags.minutes is None else replace(plan, minutes=flags.minutes), flags.out, flags.device)

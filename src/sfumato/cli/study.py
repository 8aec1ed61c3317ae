"""`sfumato study`: the paper's questions on one's own data; which latent space is easiest to learn."""

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from sfumato.cli.arguments import Command, Group
from sfumato.cli.flags import command, flag
from sfumato.cli.schema_flags import schema_flag
from sfumato.cli.study_data import StudyPlace
from sfumato.cli.study_joint import JointStudyFlags, joint
from sfumato.cli.study_latents import LatentsFlags, latents
from sfumato.cli.study_run import run_to_page
from sfumato.pipeline.options import Range, check_number

if TYPE_CHECKING:
    from sfumato.data.table import DataConfig

app = typer.Typer(cls=Group, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

SCHEMA = "studies.plan:StudyConfig"
FEATURE_SIZE = 64
MOST_SECONDS = 365 * 86400.0
MOST_DIGITS = 10
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@app.callback()
def _study() -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class StudyFlags(StudyPlace):
    """The options of both studies; most are fields of `study.yaml`."""

    budget: str = flag("30m", "training", "Training time per method and seed, both stages together: 90s, 30m, 2h, 1d.")
    seeds: int = schema_flag(SCHEMA, "seeds", "training", help="Training runs per method.")
    parameters: int = schema_flag(SCHEMA, "parameters", "training")
    channels: int = schema_flag(SCHEMA, "channels", "training")
    perceptual: bool = schema_flag(SCHEMA, "perceptual", "training", names=("--perceptual",))
    samples: int = schema_flag(SCHEMA, "samples", "evaluation")
    sampling_steps: str = schema_flag(
        SCHEMA,
        "sampling_steps",
        "evaluation",
        help="Numbers of sampling steps at which speed and quality are measured.",
        typed_default="5,10,20,50",
    )
    feature_size: int = flag(
        FEATURE_SIZE,
        "evaluation",
        "Resolution at which features are computed; 64 is ten times cheaper than 224.",
        Range(8, 4096, whole=True),
    )

    def settings(self, data: "DataConfig") -> dict[str, Any]:
        """As `study.yaml` has them. Raises UserError."""
        names = ("seeds", "parameters", "channels", "perceptual", "samples", "precision")
        return {
            **{name: getattr(self, name) for name in names},
            "budget": seconds(self.budget),
            "sampling_steps": numbers("--sampling-steps", self.sampling_steps),
            "data": data.model_dump(mode="json"),
        }


@dataclass(frozen=True, kw_only=True)
class DownsamplingFlags(StudyFlags):
    """The options of `sfumato study downsampling`."""

    factors: str = flag("", "training", "Downsampling factors; 1 is pixel space [default: those that fit].")
    equal: str = schema_flag(
        SCHEMA, "equal", "training", help="Budget held equal across factors: time or compute.", type=str
    )


@dataclass(frozen=True, kw_only=True)
class BaselinesFlags(StudyFlags):
    """The options of `sfumato study baselines`."""

    budget: str = flag("15m", "training", "Training time per method and seed, both stages together: 90s, 30m, 2h, 1d.")
    seeds: int = schema_flag(SCHEMA, "seeds", "training", 2, help="Training runs per method.")
    factor: int = flag(
        4, "training", "Downsampling factor of latent diffusion and of the codes.", Range(1, 256, whole=True)
    )
    codebook: int = schema_flag(SCHEMA, "codebook", "training")


@app.command("downsampling", cls=Command)
@command(DownsamplingFlags)
def downsampling(flags: DownsamplingFlags) -> None:
    """Find the downsampling factor that suits the data.

    Trains both stages for every factor with the same budget and evaluates them; OUT/study.html shows the results.
    """
    from sfumato.training.data import height_width

    source = flags.source()
    factors = numbers("--factors", flags.factors) if flags.factors else fitting(height_width(source))
    run(flags, {**flags.settings(source), "factors": factors, "equal": flags.equal})


@app.command("baselines", cls=Command)
@command(BaselinesFlags)
def baselines(flags: BaselinesFlags) -> None:
    """Compare latent diffusion with its baselines.

    Latent diffusion, pixel diffusion, and a transformer over VQ codes train for the same time, first stages included;
    OUT/study.html compares them.
    """
    from sfumato.errors import UserError

    if flags.factor == 1:
        raise UserError("--factor 1 is pixel space, which is trained anyway: give 2, 4, 8, 16 or 32")
    chosen = {"factors": [flags.factor, 1], "codes": [flags.factor], "codebook": flags.codebook}
    run(flags, {**flags.settings(flags.source()), **chosen})


app.command("latents", cls=Command)(command(LatentsFlags)(latents))
app.command("joint", cls=Command)(command(JointStudyFlags)(joint))


def run(flags: StudyFlags, settings: dict[str, Any]) -> None:
    """Runs a study, or what is left of it. Raises UserError."""
    from sfumato.config import parse
    from sfumato.evaluation.features import efficientnet_lite0
    from sfumato.fit.phases import clock
    from sfumato.studies.plan import StudyConfig, arms
    from sfumato.studies.run import run_study

    device = flags.checked_device()
    config = parse(settings, StudyConfig, "study")
    count = len(arms(config))
    plan = f"{count} training runs of {clock(config.budget)} each: {clock(count * config.budget)} of training in all"
    typer.echo(f"{plan}, plus encoding and evaluation", err=True)
    network = efficientnet_lite0(flags.feature_size)
    run_to_page(flags.out, device, partial(run_study, config, flags.out, network))


def seconds(text: str) -> float:
    """Of "90s", "30m", "2h" or "1d". Raises UserError for anything else."""
    from sfumato.errors import UserError

    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip().lower())
    if found is None or float(found.group(1)) == 0:
        raise UserError(f"--budget {text!r} is not a time: give a number and a unit, such as 90s, 30m, 2h or 1d")
    found_seconds = float(found.group(1)) * UNITS[found.group(2)]
    check_number("--budget", found_seconds, Range(1.0, MOST_SECONDS))
    return found_seconds


def numbers(name: str, text: str) -> list[int]:
    """Of "1,2,4". Raises UserError where one is no whole number from 1 on."""
    from sfumato.errors import UserError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < MOST_DIGITS and int(part) >= 1 for part in parts):
        raise UserError(f"{name} {text!r} is not a list of whole numbers such as 1,2,4, each below a billion")
    return [int(part) for part in parts]


def fitting(size: tuple[int, int]) -> list[int]:
    """The paper's factors that leave a latent of 2x2 at least."""
    return [f for f in (1, 2, 4, 8, 16, 32) if not size[0] % f and not size[1] % f and min(size) >= 2 * f]

"""`sfumato study latents`: which first stage is easiest for stage 2, on the toy world or on one's own images."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import typer

from sfumato.cli.flags import flag, like
from sfumato.cli.schema_flags import schema_flag
from sfumato.cli.study_data import StudyPlace
from sfumato.cli.study_run import run_to_page

SCHEMA = "studies.latents.plan:LatentsStudyConfig"
DATA = "zoo:toy/small-text"
FEATURES = "efficientnet-lite0@64"
FIELDS: tuple[str, ...] = (
    "first_minutes",
    "first_steps",
    "longest",
    "first_seed",
    "minutes",
    "steps",
    "seeds",
    "factor",
    "channels",
)
FIELDS += ("parameters", "batch", "samples", "sampling_steps", "points", "measured", "precision")
"""The options that are fields of `study.yaml` as they are."""


@dataclass(frozen=True, kw_only=True)
class LatentsFlags(StudyPlace):
    """The options of `sfumato study latents`; most are fields of `study.yaml`."""

    data: str = like(StudyPlace, "data", DATA)
    spaces: str = schema_flag(
        SCHEMA,
        "spaces",
        "training",
        help="Latent spaces to compare, with commas; plain is one of them.",
        typed_default="plain,equivariance,noise,spectral",
        type=str,
    )
    first_stages: Path | None = flag(
        None, "training", "Another study's folder: use its first stages instead of training them."
    )
    first_minutes: float = schema_flag(SCHEMA, "first_minutes", "training")
    first_steps: int | None = schema_flag(SCHEMA, "first_steps", "training")
    longest: float = schema_flag(SCHEMA, "longest", "training")
    first_seed: int = schema_flag(SCHEMA, "first_seed", "training", help="Seed of every first stage.")
    minutes: float = schema_flag(SCHEMA, "minutes", "training")
    steps: int | None = schema_flag(SCHEMA, "steps", "training")
    seeds: int = schema_flag(SCHEMA, "seeds", "training")
    factor: int = schema_flag(SCHEMA, "factor", "training")
    channels: int = schema_flag(SCHEMA, "channels", "training")
    parameters: int = schema_flag(SCHEMA, "parameters", "training")
    batch: int = schema_flag(SCHEMA, "batch", "training", help="Latents in a step of stage 2.")
    samples: int = schema_flag(SCHEMA, "samples", "evaluation")
    sampling_steps: int = schema_flag(SCHEMA, "sampling_steps", "evaluation")
    points: int = schema_flag(SCHEMA, "points", "evaluation")
    measured: int = schema_flag(SCHEMA, "measured", "evaluation")
    features: str = flag(
        FEATURES, "evaluation", "Feature network of the kernel distance, for images other than the toy world's."
    )

    def settings(self) -> dict[str, Any]:
        """As `study.yaml` has them. Raises UserError."""
        spaces = [name.strip() for name in self.spaces.split(",")]
        fields = {name: getattr(self, name) for name in FIELDS}
        return {**fields, "spaces": spaces, "data": self.source().model_dump(mode="json")}


def latents(flags: LatentsFlags) -> None:
    """Find the first stage whose latents are easiest to learn.

    Trains first stages with different regularisers until their reconstructions are equally good, then the same second
    stage on the latents of each; OUT/study.html has scores, images, and which numbers of the latents predict the order.
    """
    from sfumato.config import parse
    from sfumato.studies.latents.plan import LatentsStudyConfig
    from sfumato.studies.latents.run import run_latents_study

    device = flags.checked_device()
    config = parse(flags.settings(), LatentsStudyConfig, "study")
    typer.echo(plan_of(config), err=True)
    study = partial(run_latents_study, config, flags.out, flags.features, flags.first_stages)
    run_to_page(flags.out, device, study)


def plan_of(config: Any) -> str:
    """The trainings of a study, in a sentence."""
    spaces = len(config.spaces)
    first = f"{config.first_steps} steps" if config.first_steps else f"about {config.first_minutes:g} minutes"
    second = f"{config.steps} steps" if config.steps else f"{config.minutes:g} minutes"
    return (
        f"{spaces} first stages of {first} each, up to {config.longest:g} times that where reconstructions are worse; "
        f"{spaces * config.seeds} second stages of {second} each; plus evaluation"
    )

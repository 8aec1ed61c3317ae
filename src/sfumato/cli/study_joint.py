"""`sfumato study joint`: both stages at once in several couplings, against one after the other."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from sfumato.cli.flags import REQUIRED, flag
from sfumato.cli.schema_flags import schema_flag
from sfumato.cli.study_run import StudyFolder, run_to_page

if TYPE_CHECKING:
    from sfumato.studies.joint.plan import JointStudyConfig

SCHEMA = "studies.joint.plan:JointStudyConfig"
FEATURE_SIZE = 64
FIELDS = ("minutes", "seeds", "first_share", "first_batch", "samples", "sampling_steps", "guidance", "every")
"""The options that are fields of `study.yaml` as they are."""


@dataclass(frozen=True, kw_only=True)
class JointStudyFlags(StudyFolder):
    """The options of `sfumato study joint`; most are fields of `study.yaml`."""

    config: str = flag(
        REQUIRED,
        "machine",
        "A configuration of `sfumato train joint`, such as zoo:toy/joint: networks, losses and data of all ways.",
        metavar="CONFIG",
        argument=True,
        path=True,
    )
    overrides: list[str] | None = flag(
        None, "machine", "Settings to change, such as train.draws=8.", metavar="[a.b=c]...", argument=True
    )
    data: str | None = flag(None, "data", "The folder of images, or shards. The toy world needs none.", metavar="PLACE")
    ways: str = schema_flag(
        SCHEMA,
        "ways",
        "training",
        help="What to compare, with commas: two-stage, naive, detached, prior, anchored.",
        typed_default="two-stage,naive,detached,prior,anchored",
        type=str,
    )
    minutes: float = schema_flag(SCHEMA, "minutes", "training")
    seeds: int = schema_flag(SCHEMA, "seeds", "training")
    first_share: float = schema_flag(SCHEMA, "first_share", "training")
    first_batch: int = schema_flag(SCHEMA, "first_batch", "training")
    samples: int = schema_flag(SCHEMA, "samples", "evaluation")
    sampling_steps: int = schema_flag(SCHEMA, "sampling_steps", "evaluation")
    guidance: float = schema_flag(SCHEMA, "guidance", "evaluation")
    every: int = schema_flag(SCHEMA, "every", "evaluation")

    def configuration(self) -> "JointStudyConfig":
        """As `study.yaml` has it. Raises UserError."""
        from sfumato.cli.run_configuration import check_given_once, with_data, with_overrides
        from sfumato.config import parse
        from sfumato.studies.joint.plan import JointStudyConfig
        from sfumato.training.joint_run import JointRun

        check_given_once(self.overrides or [], {"data.path": ("--data", self.data)})
        raw = with_data(with_overrides(self.config, self.overrides or [], JointRun), self.data)
        run = parse(_with_precision(raw, self.precision), JointRun, self.config)
        fields: dict[str, Any] = {name: getattr(self, name) for name in FIELDS}
        ways = [name.strip() for name in self.ways.split(",")]
        return parse({**fields, "ways": ways, "run": run.model_dump(mode="json")}, JointStudyConfig, "study")


def _with_precision(raw: dict[str, Any], precision: str) -> dict[str, Any]:
    """The configuration with --precision in it, unless it has one of its own."""
    from sfumato.config import section

    return {**raw, "train": {"precision": precision, **section(raw, "train")}}


def joint(flags: JointStudyFlags) -> None:
    """Compare training both stages at once and one by one.

    Trains the same networks in every way for the same minutes, encoding included; OUT/study.html has kernel distances,
    facts, PSNR, the curves of the latents' spread and effective rank, and images.
    """
    from sfumato.evaluation.features import efficientnet_lite0
    from sfumato.fit.phases import clock
    from sfumato.studies.joint.plan import arms
    from sfumato.studies.joint.run import run_joint_study

    device = flags.checked_device()
    config = flags.configuration()
    count, each = len(arms(config)), 60 * config.minutes
    plan = f"{count} trainings of {clock(each)} each: {clock(count * each)} of training in all"
    typer.echo(f"{plan}, plus evaluation", err=True)
    network = efficientnet_lite0(FEATURE_SIZE)
    run_to_page(flags.out, device, partial(run_joint_study, config, flags.out, network))

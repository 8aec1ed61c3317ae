"""The plan of `sfumato fit`: made for a new folder, read from that of an interrupted fit, printed, written as files."""

import shlex
from dataclasses import replace
from pathlib import Path

import typer

from sfumato.cli.data import stored_config
from sfumato.cli.fit_flags import MINUTES, FitFlags
from sfumato.cli.options import chosen_device
from sfumato.cli.progress import bars
from sfumato.cli.run_configuration import check_given_once
from sfumato.config import apply_overrides, to_yaml
from sfumato.counts import how_many
from sfumato.errors import UserError
from sfumato.fit.configs import autoencoder_run, data_settings, diffusion_run, with_settings
from sfumato.fit.describe import describe, reading_seconds
from sfumato.fit.folder import CACHE, Fit, check_same, digest_of, stored_fit
from sfumato.fit.measure import StepTimer, machine_facts, measured_plan
from sfumato.fit.plan import SIZES
from sfumato.fit.threads import fix_threads, one_is_faster, with_threads
from sfumato.fit.trained import shown_lines
from sfumato.outputs import out_is_free
from sfumato.training.launch import launched
from sfumato.training.workers import Workers, available_cores, use_all_cores


def show_plan(flags: FitFlags) -> tuple[Fit, bool]:
    """The plan, printed and written where that was asked for, and whether it is that of an interrupted fit.

    Raises UserError for a folder that cannot be used, a time that is too short, and a fit that is another one.
    """
    if launched().world > 1:
        raise UserError("sfumato fit runs in one process: start it without a launcher")
    settings = tuple(flags.settings or ())
    check_given_once(settings, {"data.path": ("DIR", flags.folder)})
    files = None if flags.plan is None else _plan_files(flags.plan)
    use_all_cores()
    fix_threads(flags.threads, available_cores())
    known = None if flags.out is None else stored_fit(flags.out)
    if known is not None and flags.out is not None:
        check_same(flags.out, known, flags.folder, flags.seconds, settings)
    fit = known or _new_fit(flags, settings)
    typer.echo("\n".join(shown_lines(fit.plan, None if known is None else flags.out)))
    if files is not None:
        _write(files, fit, flags.folder)
    return fit, known is not None


def _new_fit(flags: FitFlags, settings: tuple[str, ...]) -> Fit:
    seconds = 60 * MINUTES if flags.seconds is None else flags.seconds
    raw = apply_overrides({"data": {"path": str(flags.folder)}}, data_settings(settings))["data"]
    size = raw.get("size")
    config = stored_config({"size": SIZES[0], **raw})
    if config.buckets is not None:
        raise UserError(
            "data.buckets: sfumato fit trains on squares; leave it out, or write the plan with --plan and give "
            "data.buckets to its two commands"
        )
    if size is not None and not isinstance(size, int):
        raise UserError(f"data.size={size}: sfumato fit trains on squares; give one number, or use `sfumato train`")
    if flags.device == "cpu":
        _on_cpu()
    chosen_device(flags.device)
    workers = Workers("cpu" if flags.device == "cpu" else None)
    with bars() as (say, progress):
        found, facts = describe(config, progress("scanning"), None if flags.out is None else flags.out / CACHE)
        for note in dict.fromkeys((*found.dataset.notes, *found.file_warnings())):
            say(note)
        say(f"{how_many(facts.total, 'image')} in {flags.folder}; measuring this machine")
        machine = with_threads(machine_facts(workers, reading_seconds(found.dataset)))
        timer = StepTimer(workers, settings)
        plan = measured_plan(facts, machine, seconds, timer, size, say)
        if one_is_faster(plan, timer):
            say("a single thread is currently faster than one per core: measuring with one")
            plan = measured_plan(facts, replace(machine, threads=1), seconds, timer, size, say)
    plan = with_settings(plan, flags.folder, settings)
    return Fit(str(flags.folder), digest_of(flags.folder, flags.out), seconds, settings, plan)


def _plan_files(plan: Path) -> tuple[Path, Path]:
    """Where the two configurations are written. Raises UserError if one is there."""
    stem = plan.with_suffix("") if plan.suffix in (".yaml", ".yml") else plan
    first, second = (stem.with_name(f"{stem.name}-{stage}.yaml") for stage in ("autoencoder", "diffusion"))
    return out_is_free(first, single_file=True), out_is_free(second, single_file=True)


def _write(files: tuple[Path, Path], fit: Fit, folder: Path) -> None:
    from sfumato.checkpoint import write_text

    first, second = files
    write_text(first, to_yaml(autoencoder_run(fit.plan, folder, fit.settings)))
    write_text(second, to_yaml(diffusion_run(fit.plan, folder, fit.settings)))
    out = ["--out", "runs/autoencoder"]
    typer.echo("")
    typer.echo(shlex.join(["sfumato", "train", "autoencoder", str(first), *out]))
    further = ["--autoencoder", "runs/autoencoder", "--out", "runs/model"]
    typer.echo(shlex.join(["sfumato", "train", "diffusion", str(second), *further]))


def _on_cpu() -> None:
    import os

    os.environ["ACCELERATE_USE_CPU"] = "true"  # both trainings read this

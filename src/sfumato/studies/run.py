"""A whole study: its folder, its arms one after the other, and the page after each of them."""

from collections.abc import Callable
from pathlib import Path

from sfumato.checkpoint import write_text
from sfumato.config import parse, parse_mapping, to_yaml
from sfumato.data.dataset import Progress
from sfumato.errors import UserError
from sfumato.evaluation.features import FeatureNetwork
from sfumato.report.machine import describe
from sfumato.studies.arm import run_arm
from sfumato.studies.bench import Bench
from sfumato.studies.evaluator import Evaluator
from sfumato.studies.pace import paces, steps
from sfumato.studies.page import render
from sfumato.studies.plan import StudyConfig, arms, named
from sfumato.studies.result import ArmResult, comparison, recommendation
from sfumato.training.data import open_data
from sfumato.training.workers import Workers

CONFIG_FILE = "study.yaml"
PAGE_FILE = "study.html"


def run_study(
    config: StudyConfig,
    folder: Path,
    network: FeatureNetwork,
    workers: Workers,
    command: str,
    say: Callable[[str], None],
    progress: Callable[[str], Progress],
) -> list[ArmResult]:
    """Runs what is left of a study in `folder`, and writes its page after every arm.

    Raises UserError where the folder holds another study, Stopped after a signal.
    """
    claim(config, folder)
    data = open_data(config.data, config.held_out, folder, folder / "cache", say, progress)
    judge = Evaluator.of(network.to(workers.device), data.training, folder / "reference.safetensors")
    known = paces(config, data.training, folder, workers, say)
    machine = describe(workers.device)
    bench = Bench(config, data, judge, workers, progress)
    results: list[ArmResult] = []
    todo = arms(config)
    for number, arm in enumerate(todo, start=1):
        bought = steps(config, known, arm.way)
        say(f"[{number}/{len(todo)}] {named(config, arm.way)}, seed {arm.seed}: {bought.first} + {bought.second} steps")
        results.append(run_arm(bench, arm, known[arm.way], bought, folder / arm.name))
        where = f"{machine.device}, {machine.threads} threads, torch {machine.torch}"
        write_text(folder / PAGE_FILE, render(config, results, folder, network.name, where, command))
    say((comparison(results) if config.codes else recommendation(results))[1])
    return results


def claim(config: StudyConfig, folder: Path) -> None:
    """Makes the folder, or checks that the study in it is this one; more seeds than before go on with it.

    Raises UserError naming what differs.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {str(folder)!r} is a file: give a folder")
    file = folder / CONFIG_FILE
    if file.exists():
        before = parse(parse_mapping(file.read_text(encoding="utf-8"), str(file)), StudyConfig, str(file))
        for name in StudyConfig.model_fields:
            old, new = getattr(before, name), getattr(config, name)
            if old != new and not (name == "seeds" and new > old):
                raise UserError(
                    f"--out {str(folder)!r} holds a study with {name} = {old!r}, not {new!r}: give the same command to "
                    "go on with it, or another folder"
                )
    write_text(file, to_yaml(config))

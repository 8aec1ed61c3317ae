"""Runs a whole study: its folder, its arms one after the other, and the page after each of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sfumato.checkpoint import write_text
from sfumato.config import parse, parse_mapping, to_yaml
from sfumato.data.dataset import Progress
from sfumato.errors import UserError
from sfumato.evaluation.features import FeatureNetwork
from sfumato.report.machine import describe
from sfumato.schema import Schema
from sfumato.studies.arm import run_arm
from sfumato.studies.context import StudyContext
from sfumato.studies.evaluator import Evaluator
from sfumato.studies.page import render
from sfumato.studies.plan import StudyConfig, arms, named
from sfumato.studies.result import ArmResult, comparison, recommendation
from sfumato.studies.step_cost import step_costs, steps
from sfumato.training.data import open_data
from sfumato.training.run import flat
from sfumato.training.workers import Workers

CONFIG_FILE = "study.yaml"
PAGE_FILE = "study.html"
C = TypeVar("C", bound=Schema)


def run_study(
    config: StudyConfig,
    folder: Path,
    network: FeatureNetwork,
    workers: Workers,
    command: str,
    say: Callable[[str], None],
    progress: Callable[[str], Progress],
) -> list[ArmResult]:
    """Runs the unfinished arms of a study in `folder`, and writes its page after each.

    Raises UserError if the folder contains another study, Stopped after a signal.
    """
    claim(config, folder, lambda name, old, new: name == "seeds" and new > old)
    data = open_data(config.data, config.held_out, folder, folder / "cache", say, progress)
    evaluator = Evaluator.of(network.to(workers.device), data.training, folder / "reference.safetensors")
    known = step_costs(config, data.training, folder, workers, say)
    machine = describe(workers.device)
    context = StudyContext(config, data, evaluator, workers, progress)
    results: list[ArmResult] = []
    todo = arms(config)
    for number, arm in enumerate(todo, start=1):
        counts, name = steps(config, known, arm.method), named(config, arm.method)
        say(f"[{number}/{len(todo)}] {name}, seed {arm.seed}: {counts.first} + {counts.second} steps")
        results.append(run_arm(context, arm, known[arm.method], counts, folder / arm.name))
        where = f"{machine.device}, {machine.threads} threads, torch {machine.torch}"
        write_text(folder / PAGE_FILE, render(config, results, folder, network.name, where, command))
    say((comparison(results) if config.codes else recommendation(results))[1])
    return results


def claim(config: C, folder: Path, may_change: Callable[[str, Any, Any], bool]) -> None:
    """Creates the folder, or checks that it contains this study.

    `may_change` is given the name, the old and the new value of each setting that differs.
    Raises UserError naming what differs.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {str(folder)!r} is a file: give a folder")
    file = folder / CONFIG_FILE
    if file.exists():
        before = parse(parse_mapping(file.read_text(encoding="utf-8"), str(file)), type(config), str(file))
        for name in type(config).model_fields:
            old, new = getattr(before, name), getattr(config, name)
            if old != new and not may_change(name, old, new):
                key, old, new = _first_difference(name, old, new)
                raise UserError(
                    f"--out {str(folder)!r} contains a study with {key} = {old!r}, not {new!r}: give the same command "
                    "to continue it, or another folder"
                )
    write_text(file, to_yaml(config))


def _first_difference(name: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    """A setting that differs, or the first one in it if it is a group of settings: dotted key, old and new value."""
    if not (isinstance(old, Schema) and isinstance(new, Schema)):
        return name, old, new
    before, now = flat(old), flat(new)
    key = next(key for key in sorted({*before, *now}) if before.get(key) != now.get(key))
    return f"{name}.{key}", before.get(key), now.get(key)

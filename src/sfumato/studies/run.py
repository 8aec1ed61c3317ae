"""Runs a whole study of downsampling factors, or of baselines."""

from collections.abc import Callable
from pathlib import Path

from sfumato.data.dataset import Progress
from sfumato.evaluation.features import FeatureNetwork
from sfumato.studies.arm import run_arm
from sfumato.studies.context import StudyContext
from sfumato.studies.evaluator import Evaluator
from sfumato.studies.folder import claim, run_in_turn
from sfumato.studies.page import render
from sfumato.studies.plan import Arm, StudyConfig, arms, named
from sfumato.studies.result import ArmResult, comparison, recommendation
from sfumato.studies.step_cost import step_costs, steps
from sfumato.training.data import open_data
from sfumato.training.workers import Workers


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
    context = StudyContext(config, data, evaluator, workers, progress)

    def title(arm: Arm) -> str:
        counts = steps(config, known, arm.method)
        return f"{named(config, arm.method)}, seed {arm.seed}: {counts.first} + {counts.second} steps"

    results = run_in_turn(
        arms(config),
        folder,
        workers,
        say,
        title,
        lambda arm: run_arm(context, arm, known[arm.method], steps(config, known, arm.method), folder / arm.name),
        lambda results, where: render(config, results, folder, network.name, where, command),
    )
    say((comparison(results) if config.codes else recommendation(results))[1])
    return results

"""Runs a whole study of joint training: its folder, its arms one after the other, and the page after each of them."""

from collections.abc import Callable
from pathlib import Path

from sfumato.data.dataset import Progress
from sfumato.evaluation.features import FeatureNetwork
from sfumato.studies.evaluator import Evaluator
from sfumato.studies.folder import claim, run_in_turn
from sfumato.studies.joint.arm import JointContext, run_arm
from sfumato.studies.joint.page import render
from sfumato.studies.joint.plan import JointStudyConfig, arms
from sfumato.studies.joint.result import JointResult, conclusion
from sfumato.studies.joint.scoring import Scorer
from sfumato.training.data import open_data
from sfumato.training.joint_model import first_model
from sfumato.training.joint_run import second_stage
from sfumato.training.needs import check_needs
from sfumato.training.second_stage import check_sizes
from sfumato.training.workers import Workers


def run_joint_study(
    config: JointStudyConfig,
    folder: Path,
    network: FeatureNetwork,
    workers: Workers,
    command: str,
    say: Callable[[str], None],
    progress: Callable[[str], Progress],
) -> list[JointResult]:
    """Runs the unfinished arms of a study in `folder`, and writes its page after each.

    Raises UserError if the folder contains another study, Stopped after a signal.
    """
    check_sizes(second_stage(config.run), first_model(config.run))
    claim(config, folder, lambda name, old, new: name == "seeds" and new > old)
    data = open_data(config.run.data, config.run.held_out, folder, folder / "cache", say, progress)
    check_needs(config.run.conditioner, data)
    evaluator = Evaluator.of(network.to(workers.device), data.training, folder / "reference.safetensors")
    context = JointContext(config, data, Scorer.of(config, evaluator, data), workers, say, progress)
    results = run_in_turn(
        arms(config),
        folder,
        workers,
        say,
        lambda arm: f"{arm.way}, seed {arm.seed}: {config.minutes:g} minutes",
        lambda arm: run_arm(context, arm, folder / arm.name),
        lambda results, where: render(config, results, folder, network.name, where, command),
    )
    say(conclusion(results))
    return results

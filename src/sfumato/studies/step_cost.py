"""How many steps each method can afford: measured once, stored in the study's folder, the same for every seed."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from sfumato.checkpoint import write_text
from sfumato.conditioning.condition import ConditionSpec
from sfumato.data.dataset import Dataset
from sfumato.estimate import measure, work
from sfumato.estimate.from_config import diffusion_config
from sfumato.model import ModelConfig, build, pixel_space
from sfumato.plain_json import to_json
from sfumato.studies.plan import (
    Arm,
    Method,
    StudyConfig,
    codes_run,
    first_run,
    latent_of,
    methods,
    named,
    reference,
    second_run,
)
from sfumato.training.data import height_width
from sfumato.training.workers import Workers

STEP_COST_FILE = "step-costs.json"
TIMED = 5
"""Steps that are measured of each stage."""


@dataclass(frozen=True)
class StepCost:
    """Seconds and operations of a step of both stages (0 for stage 1 of pixel space), seconds of encoding an image."""

    first_seconds: float
    first_operations: int
    second_seconds: float
    second_operations: int
    encoding_seconds: float


@dataclass(frozen=True)
class Steps:
    """Training steps of both stages within the budget."""

    first: int
    second: int


def step_costs(
    config: StudyConfig, data: Dataset, folder: Path, workers: Workers, say: Callable[[str], None]
) -> dict[Method, StepCost]:
    """The step costs of every method, read from the folder or measured."""
    file = folder / STEP_COST_FILE
    stored = json.loads(file.read_text()) if file.exists() else {}
    known = {method: StepCost(**stored[method.key]) for method in methods(config) if method.key in stored}
    for method in methods(config):
        if method not in known:
            say(f"timing a few steps of {named(config, method)}")
            known[method] = measure_step_cost(config, method, data, workers)
            write_text(file, to_json({m.key: asdict(cost) for m, cost in known.items()}, indent=1) + "\n")
    return known


def measure_step_cost(config: StudyConfig, method: Method, data: Dataset, workers: Workers) -> StepCost:
    """Runs a few steps of the real training loops, with an untrained stage 1."""
    arm, size, latent = Arm(method, 0), height_width(config.data), latent_of(config, method)
    first = first_run(config, arm, 1)
    seconds, operations = 0.0, 0
    if first is not None:
        seconds = measure.time_first_stage(first, "generator", data, TIMED, workers).step
        operations = config.first_batch * work.first_stage(first, "generator").total
    model = pixel_space(size) if first is None else build(ModelConfig(autoencoder=first.model, image_size=size))
    model = model.to(workers.device)
    if method.codes:
        codes = codes_run(config, arm, latent, 1)
        step = measure.code_step_seconds(codes, model, data, TIMED, workers)
        each = work.code_stage(codes, model.config.autoencoder, latent[1] * latent[2]).total
    else:
        second = second_run(config, arm, latent, 1)
        step = measure.time_second_stage(second, model, data, TIMED, workers)[0].step
        each = work.second_stage(diffusion_config(second), latent, ConditionSpec()).total
    encoding = measure.encoding_seconds(model, data, config.precision)
    return StepCost(seconds, operations, step, config.batch * each, encoding)


def steps(config: StudyConfig, known: dict[Method, StepCost], method: Method) -> Steps:
    """Steps of both stages of an arm: by the time of its steps, or by their operations at the reference arm's speed."""
    cost = known[method]
    share = 0.0 if method.factor == 1 else config.first_share
    if config.equal == "time":
        first, second = cost.first_seconds, cost.second_seconds
    else:
        other = known[reference(config)]
        rate = other.second_operations / other.second_seconds
        first, second = cost.first_operations / rate, cost.second_operations / rate
    counts = max(1, round(share * config.budget / first)) if first else 0
    return Steps(counts, max(1, round((1 - share) * config.budget / second)))

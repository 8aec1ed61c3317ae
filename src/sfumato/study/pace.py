"""How many steps the budget buys each factor: measured once, kept in the study's folder, the same for every seed."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from sfumato.checkpoint import write_text
from sfumato.conditioning.condition import ConditionSpec
from sfumato.cost import measure, work
from sfumato.cost.examine import described
from sfumato.data.dataset import Dataset
from sfumato.model import ModelConfig, build, pixel_space
from sfumato.study.plan import Arm, StudyConfig, first_run, latent_of, reference, second_run
from sfumato.training.data import height_width
from sfumato.training.workers import Workers

PACE_FILE = "pace.json"
TIMED = 5
"""Steps that are measured of each stage."""


@dataclass(frozen=True)
class Pace:
    """Seconds and operations of a step of both stages (0 in pixel space's first), seconds of encoding a picture."""

    first_seconds: float
    first_operations: int
    second_seconds: float
    second_operations: int
    encoding_seconds: float


@dataclass(frozen=True)
class Steps:
    """What the budget buys."""

    first: int
    second: int


def paces(
    config: StudyConfig, data: Dataset, folder: Path, workers: Workers, say: Callable[[str], None]
) -> dict[int, Pace]:
    """Of every factor, from the folder or measured."""
    file = folder / PACE_FILE
    known = {int(f): Pace(**values) for f, values in json.loads(file.read_text()).items()} if file.exists() else {}
    for factor in config.factors:
        if factor not in known:
            say(f"timing a few steps at f = {factor}")
            known[factor] = measured(config, factor, data, workers)
            write_text(file, json.dumps({f: asdict(pace) for f, pace in known.items()}, indent=1) + "\n")
    return known


def measured(config: StudyConfig, factor: int, data: Dataset, workers: Workers) -> Pace:
    """From the real loops, on stage 1 as it begins."""
    arm, size = Arm(factor, 0), height_width(config.data)
    first = first_run(config, arm, 1)
    seconds, operations = 0.0, 0
    if first is not None:
        seconds = measure.time_first_stage(first, "generator", data, TIMED, workers).step
        operations = config.first_batch * work.first_stage(first, "generator").total
    model = pixel_space(size) if first is None else build(ModelConfig(autoencoder=first.model, image_size=size))
    model = model.to(workers.device)
    second = second_run(config, arm, latent_of(config, factor), 1)
    timing, _ = measure.time_second_stage(second, model, data, TIMED, workers)
    each = work.second_stage(described(second), latent_of(config, factor), ConditionSpec()).total
    encoding = measure.encoding_seconds(model, data, config.precision)
    return Pace(seconds, operations, timing.step, config.batch * each, encoding)


def steps(config: StudyConfig, known: dict[int, Pace], factor: int) -> Steps:
    """Of both stages of an arm: by the time of its steps, or by their operations at the reference arm's pace."""
    pace = known[factor]
    share = 0.0 if factor == 1 else config.first_share
    if config.equal == "time":
        first, second = pace.first_seconds, pace.second_seconds
    else:
        other = known[reference(config)]
        rate = other.second_operations / other.second_seconds
        first, second = pace.first_operations / rate, pace.second_operations / rate
    bought = max(1, round(share * config.budget / first)) if first else 0
    return Steps(bought, max(1, round((1 - share) * config.budget / second)))

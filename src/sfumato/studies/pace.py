"""How many steps the budget buys each way: measured once, kept in the study's folder, the same for every seed."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from sfumato.checkpoint import write_text
from sfumato.conditioning.condition import ConditionSpec
from sfumato.data.dataset import Dataset
from sfumato.estimate import measure, work
from sfumato.estimate.from_config import described
from sfumato.model import ModelConfig, build, pixel_space
from sfumato.plain_json import to_json
from sfumato.studies.plan import (
    Arm,
    StudyConfig,
    Way,
    codes_run,
    first_run,
    latent_of,
    named,
    reference,
    second_run,
    ways,
)
from sfumato.training.data import height_width
from sfumato.training.workers import Workers

PACE_FILE = "pace.json"
TIMED = 5
"""Steps that are measured of each stage."""


@dataclass(frozen=True)
class Pace:
    """Seconds and operations of a step of both stages (0 in pixel space's first), seconds of encoding an image."""

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
) -> dict[Way, Pace]:
    """Of every way, from the folder or measured."""
    file = folder / PACE_FILE
    kept = json.loads(file.read_text()) if file.exists() else {}
    known = {way: Pace(**kept[way.key]) for way in ways(config) if way.key in kept}
    for way in ways(config):
        if way not in known:
            say(f"timing a few steps of {named(config, way)}")
            known[way] = measured(config, way, data, workers)
            write_text(file, to_json({w.key: asdict(pace) for w, pace in known.items()}, indent=1) + "\n")
    return known


def measured(config: StudyConfig, way: Way, data: Dataset, workers: Workers) -> Pace:
    """From the real loops, on stage 1 as it begins."""
    arm, size, latent = Arm(way, 0), height_width(config.data), latent_of(config, way)
    first = first_run(config, arm, 1)
    seconds, operations = 0.0, 0
    if first is not None:
        seconds = measure.time_first_stage(first, "generator", data, TIMED, workers).step
        operations = config.first_batch * work.first_stage(first, "generator").total
    model = pixel_space(size) if first is None else build(ModelConfig(autoencoder=first.model, image_size=size))
    model = model.to(workers.device)
    if way.codes:
        codes = codes_run(config, arm, latent, 1)
        step = measure.code_step_seconds(codes, model, data, TIMED, workers)
        each = work.code_stage(codes, model.config.autoencoder, latent[1] * latent[2]).total
    else:
        second = second_run(config, arm, latent, 1)
        step = measure.time_second_stage(second, model, data, TIMED, workers)[0].step
        each = work.second_stage(described(second), latent, ConditionSpec()).total
    encoding = measure.encoding_seconds(model, data, config.precision)
    return Pace(seconds, operations, step, config.batch * each, encoding)


def steps(config: StudyConfig, known: dict[Way, Pace], way: Way) -> Steps:
    """Of both stages of an arm: by the time of its steps, or by their operations at the reference arm's pace."""
    pace = known[way]
    share = 0.0 if way.factor == 1 else config.first_share
    if config.equal == "time":
        first, second = pace.first_seconds, pace.second_seconds
    else:
        other = known[reference(config)]
        rate = other.second_operations / other.second_seconds
        first, second = pace.first_operations / rate, pace.second_operations / rate
    bought = max(1, round(share * config.budget / first)) if first else 0
    return Steps(bought, max(1, round((1 - share) * config.budget / second)))

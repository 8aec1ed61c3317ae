"""Shared by all trainings of a study of latent spaces."""

from collections.abc import Callable
from dataclasses import dataclass

from sfumato.data.dataset import Progress
from sfumato.studies.latents.plan import LatentsStudyConfig
from sfumato.studies.latents.scoring import Scorer
from sfumato.training.data import RunData
from sfumato.training.workers import Workers


@dataclass(frozen=True)
class Pace:
    """Seconds of a training step of the plain first stage and of the second stage, on this machine."""

    first: float
    second: float


@dataclass(frozen=True)
class LatentsContext:
    """Shared by all trainings of a study."""

    config: LatentsStudyConfig
    data: RunData
    scorer: Scorer
    pace: Pace
    workers: Workers
    say: Callable[[str], None]
    progress: Callable[[str], Progress]

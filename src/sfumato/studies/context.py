"""Shared by all arms of a study, and what they all do: stop on a signal, and evaluate a finished model."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sfumato.data.dataset import Progress
from sfumato.images import image_grid, save_png
from sfumato.studies.evaluator import Evaluator
from sfumato.studies.plan import StudyConfig
from sfumato.studies.result import SamplingResult
from sfumato.training.data import RunData
from sfumato.training.state import TrainState
from sfumato.training.workers import Workers

SHEET = 32
"""Images on a saved sheet."""
SAMPLED_TOGETHER = 64
"""Batch size of sampling."""


class Stopped(Exception):  # noqa: N818 - requested by the user, not an error
    """The signal of this number stopped the training; its state has been saved."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True)
class StudyContext:
    """Shared by all arms of a study."""

    config: StudyConfig
    data: RunData
    evaluator: Evaluator
    workers: Workers
    progress: Callable[[str], Progress]

    def evaluate_sampling(self, sample: Callable[[], Tensor], steps: int, folder: Path) -> SamplingResult:
        """Times `sample`, whose images take `steps` steps each, evaluates the images and saves a sheet of them."""
        t_start = time.perf_counter()
        images = sample().cpu()
        elapsed = time.perf_counter() - t_start
        save_png(folder / sheet_name(steps), image_grid(images[:SHEET], columns=8))
        return SamplingResult(steps, len(images) / elapsed, self.evaluator(images, frechet=True))


def sheet_name(steps: int) -> str:
    """The file of the samples that were generated with `steps` steps."""
    return f"samples-{steps}.png"


def finished(state: TrainState) -> float:
    """The training time in seconds. Raises Stopped if a signal stopped the training."""
    if state.stopped_by:
        raise Stopped(state.stopped_by)
    return state.seconds

"""What all arms of a study share, and what they all do: stop when asked to, and judge a finished model's images."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sfumato.data.dataset import Progress
from sfumato.images import image_grid, save_png
from sfumato.studies.evaluator import Evaluator
from sfumato.studies.plan import StudyConfig
from sfumato.studies.result import Drawing
from sfumato.training.data import RunData
from sfumato.training.state import TrainState
from sfumato.training.workers import Workers

SHEET = 32
"""Images that are kept to be looked at."""
SAMPLED_TOGETHER = 64
"""Images of a batch."""


class Stopped(Exception):  # noqa: N818 - what was asked for, no mistake
    """A signal, of this number, asked the training to stop; it has been saved."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True)
class Bench:
    """What all arms of a study share."""

    config: StudyConfig
    data: RunData
    judge: Evaluator
    workers: Workers
    progress: Callable[[str], Progress]

    def drawing(self, draw: Callable[[], Tensor], steps: int, folder: Path) -> Drawing:
        """Times and judges `draw`, whose images take so many steps each; keeps a sheet of them."""
        t_start = time.perf_counter()
        images = draw().cpu()
        elapsed = time.perf_counter() - t_start
        save_png(folder / sheet_name(steps), image_grid(images[:SHEET], columns=8))
        return Drawing(steps, len(images) / elapsed, self.judge(images, frechet=True))


def sheet_name(steps: int) -> str:
    """The file of the samples drawn in so many steps."""
    return f"samples-{steps}.png"


def finished(state: TrainState) -> float:
    """The seconds that a training took. Raises Stopped where a signal stopped it."""
    if state.stopped_by:
        raise Stopped(state.stopped_by)
    return state.seconds

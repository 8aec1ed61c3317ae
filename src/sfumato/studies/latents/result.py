"""The numbers of a study of latent spaces, and their files."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from sfumato.checkpoint import write_text
from sfumato.plain_json import to_json
from sfumato.studies.latents.plan import TOLERANCE

Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class FirstResult:
    """A finished first stage.

    Attributes:
        space: its name.
        steps: training steps, those of the decoder alone included.
        seconds: of training.
        psnr: mean over held-out images, in dB.
        best: the PSNR of the best first stage when all had the same number of steps.
        metrics: of its latents and reconstructions, by name; see `cards.first_stage`.
        better: for each metric whether lower or higher values are thought to be better, where that is known.
    """

    space: str
    steps: int
    seconds: float
    psnr: float
    best: float
    metrics: dict[str, float]
    better: dict[str, Better]

    @property
    def apart(self) -> float:
        """dB above the best first stage; negative below."""
        return self.psnr - self.best

    @property
    def equal(self) -> bool:
        """Whether the reconstructions count as equally good as the best ones."""
        return abs(self.apart) <= TOLERANCE

    def save(self, path: Path) -> None:
        """Writes JSON, atomically."""
        write_text(path, to_json(asdict(self), indent=1) + "\n")


@dataclass(frozen=True)
class ScorePoint:
    """A score during a training: after this many steps and training seconds."""

    step: int
    seconds: float
    score: float


@dataclass(frozen=True)
class SecondResult:
    """A finished second stage: its score at the end, details of it by name, and the scores on the way."""

    space: str
    seed: int
    steps: int
    seconds: float
    parameters: int
    score: float
    details: dict[str, float]
    curve: tuple[ScorePoint, ...]

    def save(self, path: Path) -> None:
        """Writes JSON, atomically."""
        write_text(path, to_json(asdict(self), indent=1) + "\n")


def load_first(path: Path) -> FirstResult:
    """Reads what `FirstResult.save` wrote."""
    return FirstResult(**json.loads(path.read_text(encoding="utf-8")))


def load_second(path: Path) -> SecondResult:
    """Reads what `SecondResult.save` wrote."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    curve = tuple(ScorePoint(**point) for point in raw.pop("curve"))
    return SecondResult(**raw, curve=curve)

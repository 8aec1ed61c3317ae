"""The numbers of a demo: what `report.json` holds and the page shows."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Machine:
    """Where it ran."""

    device: str
    cores: int
    threads: int
    system: str
    python: str
    torch: str


@dataclass(frozen=True)
class Training:
    """One training: optimiser steps, images seen, seconds of training over all sessions, trained parameters.

    `configured` steps are those of its configuration, where the machine had no time for all; None: it did them all.
    """

    config: str
    steps: int
    images: int
    seconds: float
    parameters: int
    configured: int | None = None

    @property
    def images_per_second(self) -> float:
        """0 where no time was measured."""
        return self.images / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class LatentChannel:
    """One channel of the raw latent over the held-out images, and how the diffusion model sees it."""

    mean: float
    std: float
    kurtosis: float
    shift: float
    scale: float

    @property
    def scaled_mean(self) -> float:
        """Mean after scaling: 0 if the held-out images are like the training set."""
        return (self.mean - self.shift) * self.scale

    @property
    def scaled_std(self) -> float:
        """Standard deviation after scaling: 1 if the held-out images are like the training set."""
        return self.std * self.scale


@dataclass(frozen=True)
class FirstStage:
    """What the autoencoder keeps of held-out images: means of PSNR (dB) and SSIM, and the latent."""

    images: int
    psnr: float
    ssim: float
    image_shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int]
    bits_per_dimension: float | None
    """The KL posterior's; None for a codebook."""
    channels: tuple[LatentChannel, ...]

    @property
    def factor(self) -> int:
        """f: pixels per latent position, along a side."""
        return self.image_shape[1] // self.latent_shape[1]

    @property
    def compression(self) -> float:
        """Numbers in an image per number in its latent."""
        (C, H, W), (c, h, w) = self.image_shape, self.latent_shape
        return C * H * W / (c * h * w)


@dataclass(frozen=True)
class ScoreRow:
    """Facts that the reader finds true in one set of images: shares by kind, of all facts, of whole prompts."""

    name: str
    prompts: int
    rates: Mapping[str, float]
    guidance: float | None = None


@dataclass(frozen=True)
class Sampling:
    """How fast images come: at `steps` steps with guidance, one alone and in batches of `batch`."""

    sampler: str
    steps: int
    guidance: float
    batch: int
    seconds_alone: float
    seconds_in_batch: float


@dataclass(frozen=True)
class DemoResult:
    """All numbers of the page."""

    version: str
    created: str
    quick: bool
    seconds: float
    """All phases, over all sessions."""
    phases: Mapping[str, float]
    machine: Machine
    autoencoder: Training
    diffusion: Training
    first_stage: FirstStage
    sampling: Sampling
    facts: Mapping[str, int]
    """How many facts of each kind the prompts state."""
    generated: ScoreRow
    """At the default guidance, all prompts."""
    other_generated: tuple[ScoreRow, ...]
    """Other guidance scales and other prompts."""
    real: ScoreRow
    reconstructed: ScoreRow
    chance: ScoreRow

    @property
    def headline(self) -> dict[str, float]:
        """The numbers to remember."""
        return {
            "facts_right": self.generated.rates["facts"],
            "prompts_right": self.generated.rates["prompts"],
            "psnr": self.first_stage.psnr,
            "ssim": self.first_stage.ssim,
            "images_per_second": 1 / self.sampling.seconds_in_batch,
            "minutes": self.seconds / 60,
        }

    def to_json(self) -> dict[str, Any]:
        """Everything as plain numbers, lists and mappings, the derived ones too."""
        plain = {"headline": self.headline, **asdict(self)}
        for name, training in (("autoencoder", self.autoencoder), ("diffusion", self.diffusion)):
            plain[name]["images_per_second"] = training.images_per_second
        plain["first_stage"] |= {"factor": self.first_stage.factor, "compression": self.first_stage.compression}
        return plain

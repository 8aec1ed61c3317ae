"""The numbers of a demo: the content of `report.json` and of the page."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Machine:
    """The machine on which a result was measured."""

    device: str
    cores: int
    threads: int
    system: str
    python: str
    torch: str


@dataclass(frozen=True)
class Training:
    """One training run: optimiser steps, images seen, training seconds over all sessions, trained parameters.

    `configured`: the steps of its configuration if the time budget allowed fewer; None if all were done.
    """

    config: str
    steps: int
    images: int
    seconds: float
    parameters: int
    configured: int | None = None

    @property
    def images_per_second(self) -> float:
        """0 if no time was measured."""
        return self.images / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class LatentChannel:
    """One channel of the raw latent over the held-out images, and its scaling for the diffusion model."""

    mean: float
    std: float
    kurtosis: float
    shift: float
    scale: float

    @property
    def scaled_mean(self) -> float:
        """Mean after scaling: 0 if the held-out images match the training set."""
        return (self.mean - self.shift) * self.scale

    @property
    def scaled_std(self) -> float:
        """Standard deviation after scaling: 1 if the held-out images match the training set."""
        return self.std * self.scale


@dataclass(frozen=True)
class FirstStage:
    """Reconstruction quality on held-out images: mean PSNR (dB) and SSIM, and statistics of the latent."""

    images: int
    psnr: float
    ssim: float
    image_shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int]
    bits_per_dimension: float | None
    """Of the KL posterior; None for a codebook."""
    channels: tuple[LatentChannel, ...]

    @property
    def factor(self) -> int:
        """f: pixels per latent position along one axis."""
        return self.image_shape[1] // self.latent_shape[1]

    @property
    def compression(self) -> float:
        """Numbers in an image per number in its latent."""
        (C, H, W), (c, h, w) = self.image_shape, self.latent_shape
        return C * H * W / (c * h * w)


@dataclass(frozen=True)
class ScoreRow:
    """Shares of true facts in one set of images: by kind, of all facts, and of prompts with all facts true."""

    name: str
    prompts: int
    rates: Mapping[str, float]
    guidance: float | None = None


@dataclass(frozen=True)
class Sampling:
    """Sampling speed: at `steps` steps with guidance, for one image and in batches of `batch`."""

    sampler: str
    steps: int
    guidance: float
    batch: int
    seconds_alone: float
    seconds_in_batch: float


@dataclass(frozen=True)
class DemoResult:
    """All numbers on the page."""

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
    """Number of stated facts by kind."""
    generated: ScoreRow
    """At the default guidance, all prompts."""
    other_generated: tuple[ScoreRow, ...]
    """Other guidance scales and other prompts."""
    real: ScoreRow
    reconstructed: ScoreRow
    chance: ScoreRow
    seed: int = 0
    """Of both trainings."""

    @property
    def headline(self) -> dict[str, float]:
        """The most important numbers."""
        return {
            "facts_right": self.generated.rates["facts"],
            "prompts_right": self.generated.rates["prompts"],
            "psnr": self.first_stage.psnr,
            "ssim": self.first_stage.ssim,
            "images_per_second": 1 / self.sampling.seconds_in_batch,
            "minutes": self.seconds / 60,
        }

    def to_json(self) -> dict[str, Any]:
        """Everything as plain numbers, lists and mappings, including derived values."""
        plain = {"headline": self.headline, **asdict(self)}
        for name, training in (("autoencoder", self.autoencoder), ("diffusion", self.diffusion)):
            plain[name]["images_per_second"] = training.images_per_second
        plain["first_stage"] |= {"factor": self.first_stage.factor, "compression": self.first_stage.compression}
        return plain

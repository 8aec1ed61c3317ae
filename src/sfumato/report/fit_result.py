"""The numbers and images of a fit: the content of its `report.json` and of its page."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from sfumato.report.result import FirstStage, Machine, Sampling, Training


@dataclass(frozen=True)
class Memorised:
    """Whether samples repeat training images, by the nearest of these in pixels.

    Attributes:
        share: f_mem, the share of samples whose nearest training image is less than a third as far as the second
            nearest.
        samples, training: numbers of images that were compared.
        side: height and width at which they were compared.
        mirrored: whether each training image was compared mirrored as well, and counts twice.
    """

    share: float
    samples: int
    training: int
    side: int
    mirrored: bool = False


@dataclass(frozen=True)
class Agreement:
    """How often the training image nearest to a sample has the sample's condition, and how often by chance.

    `best` and `worst` are (word or class, share, samples).
    """

    share: float
    chance: float
    best: tuple[tuple[str, float, int], ...]
    worst: tuple[tuple[str, float, int], ...]


@dataclass(frozen=True)
class KernelScore:
    """The kernel distance (unbiased, 0 for equal distributions) of samples from real images.

    Attributes:
        value: of the samples; `training`: of training images, for comparison.
        samples, real: numbers of images.
        features: name of the feature network.
    """

    value: float
    training: float
    samples: int
    real: int
    features: str


@dataclass(frozen=True)
class LatentNumber:
    """A number about the latent on `images` images: its value, usual values, and its meaning for stage 2.

    `position`: "below" or "above" the usual values, "" within them.
    """

    name: str
    value: float
    usual: str
    says: str
    images: int
    position: str = ""


@dataclass(frozen=True)
class FitResult:
    """All numbers on the page. `learnt` are sentences; `on_training`: nothing was held out."""

    version: str
    created: str
    folder: str
    images: int
    size: int
    conditioner: str
    on_training: bool
    seconds: float
    asked: float
    phases: Mapping[str, float]
    machine: Machine
    autoencoder: Training
    diffusion: Training
    first_stage: FirstStage
    sampling: Sampling
    memorised: Memorised | None
    agreement: Agreement | None
    variety: float | None
    """Mean distance between samples, over that between training images."""
    kernel: KernelScore | None
    learnt: tuple[str, ...]
    plan: tuple[str, ...]
    latent: tuple[LatentNumber, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything as plain numbers, lists and mappings."""
        return asdict(self)


@dataclass(frozen=True)
class SampleRow:
    """Samples of one condition, images (3, H, W): `groups` by guidance scale; what they are conditioned on, and a real
    image with the same condition."""

    title: str
    condition: Tensor | None
    groups: tuple[Tensor, ...]
    real: Tensor | None


@dataclass(frozen=True)
class NearRow:
    """A sample, its nearest training images, and the ratio of the distances of the first two."""

    title: str
    sample: Tensor
    nearest: tuple[Tensor, ...]
    ratio: float


@dataclass(frozen=True)
class FitGallery:
    """The images of the page, in [-1, 1]."""

    originals: Tensor
    reconstructions: Tensor
    guidance: tuple[float, ...]
    """Scales of the groups of each row; empty without guidance."""
    rows: tuple[SampleRow, ...]
    sheet: Tensor
    near: tuple[NearRow, ...]

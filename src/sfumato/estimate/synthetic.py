"""Synthetic data of the right shape, for timing that does not depend on the content."""

from dataclasses import dataclass

import torch

from sfumato.data.dataset import Dataset, Example, LatentExample
from sfumato.data.latents import Statistics
from sfumato.rng import generator

WORDS = ("a red round shape on blue", "two green squares", "a small star beside a large ring", "something yellow")


@dataclass(frozen=True)
class SyntheticImages:
    """Random pixels with a caption and a label, for use without data."""

    size: tuple[int, int]
    count: int = 256
    fields: tuple[str, ...] = ("text", "label")
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        pixels = torch.randint(0, 256, (3, *self.size), dtype=torch.uint8, generator=generator(0, "synthetic", index))
        return Example(pixels, {"text": WORDS[index % len(WORDS)], "label": 0})

    def fingerprint(self) -> str:
        return f"synthetic-{self.size}-{self.count}"

    def captions(self) -> list[str] | None:
        return list(WORDS)


@dataclass(frozen=True)
class SyntheticLatents:
    """Random latents with the fields of real images, for timing stage 2 before stage 1 is trained."""

    images: Dataset
    shape: tuple[int, int, int]
    """(M, h, w) of the moments."""
    channels: int

    @property
    def fields(self) -> tuple[str, ...]:
        return self.images.fields

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.images.classes

    def __len__(self) -> int:
        return min(256, len(self.images))

    def __getitem__(self, index: int) -> LatentExample:
        moments = torch.randn(self.shape, generator=generator(0, "synthetic", index)).half()
        return LatentExample(moments, self.images[index].fields)

    def fingerprint(self) -> str:
        return f"synthetic-{self.shape}"

    def captions(self) -> list[str] | None:
        return self.images.captions()

    def statistics(self) -> Statistics:
        """Zero mean, unit deviation."""
        return Statistics(torch.zeros(self.channels).double(), torch.ones(self.channels).double())

"""Cached latents with conditions that are sampled at each reading, consistently with the latent's variant.

They are functions of (index, seed), like the variant itself: batches depend on seed and position alone.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
import torch

from sfumato.conditioning.metadata import MaskInput
from sfumato.data.conditions.config import LowResolutionConfig
from sfumato.data.conditions.degrade import bicubic, degrade
from sfumato.data.dataset import Blocks, Buckets, Dataset, LatentExample, blocks_of, buckets_of
from sfumato.data.latents import LatentDataset
from sfumato.data.loader import to_unit
from sfumato.data.transforms import flips
from sfumato.rng import derive, numpy_generator


class Sampled(Protocol):
    """Fields of row `index`, or of its mirror image if `mirrored`; a function of the arguments alone."""

    @property
    def fields(self) -> tuple[str, ...]: ...

    def __call__(self, index: int, seed: int, mirrored: bool, /) -> dict[str, Any]: ...

    def fingerprint(self) -> str: ...


class LowResolution:
    """`low_resolution` (3, h, w) float32 in [-1, 1] at the latent's size, computed from the image at each reading."""

    fields = ("low_resolution",)

    def __init__(self, images: Dataset, config: LowResolutionConfig, latent_size: tuple[int, int]) -> None:
        """`latent_size` (h, w) is that of images of `images`; of several sizes, those of the first bucket's."""
        self.images, self.config, self.latent_size = images, config, latent_size
        buckets = buckets_of(images)
        self._factor = None if buckets is None else buckets.sizes[0][0] // latent_size[0]

    def __call__(self, index: int, seed: int, mirrored: bool) -> dict[str, Any]:
        image = self.images[index].image.numpy()
        image = image[:, :, ::-1] if mirrored else image
        rng = numpy_generator(seed, "degrade")
        small = degrade(image, self.config.factor, self.config.degradation, rng)
        H, W = image.shape[1:]
        size = self.latent_size if self._factor is None else (H // self._factor, W // self._factor)
        if small.shape[1:] != size:
            small = bicubic(small, size)
        return {"low_resolution": to_unit(torch.from_numpy(small))}

    def fingerprint(self) -> str:
        return f"{self.images.fingerprint()}-{self.config.model_dump_json()}-{self.latent_size}"


class MaskedLatents:
    """`masked_latent` (C, h, w), the masked image's unscaled latent (its posterior's mean), and `mask` (1, h, w).

    One of the cached variants of the row is sampled; `values` defines the values of the mask.
    """

    fields = ("masked_latent", "mask")

    def __init__(self, cached: LatentDataset, variants: int, values: MaskInput) -> None:
        """`cached` holds `variants` rows for each row of the latents, as `MaskedImages` numbers them."""
        self.cached, self.variants, self.values = cached, variants, values

    def __call__(self, index: int, seed: int, mirrored: bool) -> dict[str, Any]:
        row = index * self.variants + derive(seed, "mask") % self.variants
        example = self.cached.row(row, mirrored)
        mean = example.moments.chunk(2)[0] if self.cached.header.variational else example.moments
        hole = example.fields["mask"].flip(-1) if mirrored else example.fields["mask"]
        mask = torch.where(hole > 0, self.values.hole, self.values.keep)
        return {"masked_latent": mean.float(), "mask": mask}

    def fingerprint(self) -> str:
        return f"{self.cached.fingerprint()}-{self.variants}-{self.values.model_dump_json()}"


class LatentsWithConditions:
    """Cached latents with sampled fields; cached maps and boxes are mirrored with their latent."""

    def __init__(self, latents: LatentDataset, sampled: Sequence[Sampled]) -> None:
        self.latents, self.sampled = latents, tuple(sampled)

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.latents.fields, *(name for one in self.sampled for name in one.fields))))

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.latents.classes

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> LatentExample:
        return self._with(index, derive(0, "plain", index), False)

    def variant(self, index: int, seed: int) -> LatentExample:
        return self._with(index, seed, self.latents.header.mirrored and flips(seed))

    def captions(self) -> list[str] | None:
        return self.latents.captions()

    def blocks(self) -> Blocks | None:
        return blocks_of(self.latents)

    def buckets(self) -> Buckets | None:
        return buckets_of(self.latents)

    def fingerprint(self) -> str:
        if not self.sampled:
            return self.latents.fingerprint()
        parts = (self.latents.fingerprint(), *(one.fingerprint() for one in self.sampled))
        return blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()

    def _with(self, index: int, seed: int, mirrored: bool) -> LatentExample:
        example = self.latents.row(index, mirrored)
        fields = placed(example.fields, mirrored)
        for one in self.sampled:
            fields |= one(index, seed, mirrored)
        return LatentExample(example.moments, fields)


def placed(fields: Mapping[str, Any], mirrored: bool) -> dict[str, Any]:
    """An image's fields as conditioners read them: boxes as tensors (N, 4) and (N,); all mirrored if `mirrored`."""
    out = dict(fields)
    if "boxes" in out and "categories" in out:
        boxes = np.array(out["boxes"], np.float32).reshape(-1, 4)
        if mirrored:
            boxes[:, 0] = 1 - boxes[:, 0] - boxes[:, 2]
        out["boxes"] = torch.from_numpy(boxes)
        out["categories"] = torch.tensor(out["categories"], dtype=torch.long)
    if mirrored and "crop_box" in out:
        x, y, across, down = out["crop_box"].unbind()
        out["crop_box"] = torch.stack([1 - x - across, y, across, down])
    if mirrored and "map" in out:
        out["map"] = out["map"].flip(-1)
    return out

"""Random crops whose places in their images are a condition: several of each image are encoded for stage 2."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

from sfumato.data.captions import Captioned, Choices
from sfumato.data.dataset import Blocks, Buckets, Dataset, Example, blocks_of, buckets_of, example_or_variant
from sfumato.data.image_dataset import ImageDataset
from sfumato.errors import UserError
from sfumato.rng import derive


class CropBoxes:
    """The field `crop_box` (4,): x, y, width and height of what is visible, as shares of the whole image."""

    fields = ("crop_box",)

    def __init__(self, images: ImageDataset) -> None:
        """Raises UserError if the images are not cropped at random."""
        if not images.framing.random_crop:
            raise UserError("conditions.crop needs random crops: set data.crop=random, or leave it out")
        self._images = images

    def __call__(self, index: int, seed: int | None) -> dict[str, Any]:
        scan = self._images.scan
        framing = self._images.framing_of(scan.files[index])
        whole = framing.frame_boxes(np.array([[0.0, 0.0, 1.0, 1.0]]), *scan.headers[index].upright, seed)
        x, y, across, down = whole[0].tolist()  # the whole image in units of the frame, mirrored with it
        return {"crop_box": torch.tensor([-x / across, -y / down, 1 / across, 1 / down], dtype=torch.float32)}

    def fingerprint(self) -> str:
        return "crop-boxes"


class RandomCrops:
    """`variants` examples of an image, one after the other, each another random variant of it; row i is of image
    i // variants."""

    def __init__(self, images: Dataset, variants: int) -> None:
        self.images, self.variants = images, variants

    @property
    def fields(self) -> tuple[str, ...]:
        return self.images.fields

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.images.classes

    def __len__(self) -> int:
        return len(self.images) * self.variants

    def __getitem__(self, index: int) -> Example:
        return example_or_variant(self.images, index // self.variants, derive(0, "crop", index))

    def captions(self) -> list[str] | None:
        texts = self.images.captions()
        return None if texts is None else [text for text in texts for _ in range(self.variants)]

    def caption_choices(self) -> Sequence[Choices] | None:
        found = self.images.caption_choices() if isinstance(self.images, Captioned) else None
        return None if found is None else [each for each in found for _ in range(self.variants)]

    def blocks(self) -> Blocks | None:
        whole = blocks_of(self.images)
        return None if whole is None else Blocks(tuple(s * self.variants for s in whole.starts), whole.together)

    def buckets(self) -> Buckets | None:
        whole = buckets_of(self.images)
        return None if whole is None else whole.taken(np.repeat(range(len(self.images)), self.variants))

    def fingerprint(self) -> str:
        return blake2b(f"{self.images.fingerprint()}-crops-{self.variants}".encode(), digest_size=16).hexdigest()

"""Images with further fields that belong to the image itself, such as maps and boxes."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Protocol

from sfumato.data.captions import Captioned, Choices
from sfumato.data.dataset import Blocks, Buckets, Dataset, Example, blocks_of, buckets_of, example_or_variant


class FieldSource(Protocol):
    """Fields of an image by its index, cropped like the plain example, or like the seed's variant of it.

    `fingerprint()` changes when any field does. Errors are those of the source.
    """

    @property
    def fields(self) -> tuple[str, ...]: ...

    def __call__(self, index: int, seed: int | None, /) -> dict[str, Any]: ...

    def fingerprint(self) -> str: ...


class WithFields:
    """A dataset with the additional fields of `sources`; a later source overrides an earlier one."""

    def __init__(self, images: Dataset, sources: Sequence[FieldSource]) -> None:
        self.images = images
        self.sources = tuple(sources)

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.images.fields, *(n for source in self.sources for n in source.fields))))

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.images.classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        return self._with(self.images[index], index, None)

    def variant(self, index: int, seed: int) -> Example:
        return self._with(example_or_variant(self.images, index, seed), index, seed)

    def captions(self) -> list[str] | None:
        return self.images.captions()

    def caption_choices(self) -> Sequence[Choices] | None:
        return self.images.caption_choices() if isinstance(self.images, Captioned) else None

    def blocks(self) -> Blocks | None:
        return blocks_of(self.images)

    def buckets(self) -> Buckets | None:
        return buckets_of(self.images)

    def fingerprint(self) -> str:
        parts = (self.images.fingerprint(), *(source.fingerprint() for source in self.sources))
        return blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()

    def _with(self, example: Example, index: int, seed: int | None) -> Example:
        fields = dict(example.fields)
        for source in self.sources:
            fields |= source(index, seed)
        return Example(example.image, fields)


class ToyBoxes:
    """The toy world's boxes in the form that conditioners read: `boxes` [x, y, width, height] and `categories`."""

    fields = ("boxes", "categories")

    def __init__(self, world: Dataset) -> None:
        self._world = world

    def __call__(self, index: int, seed: int | None) -> dict[str, Any]:
        found = self._world[index].fields["boxes"]
        return {
            "boxes": [[x0, y0, x1 - x0, y1 - y0] for _, x0, y0, x1, y1 in found],
            "categories": [category for category, *_ in found],
        }

    def fingerprint(self) -> str:
        return "toy-boxes"
